"""The package itself: importing it stays light."""

import subprocess
import sys


def test_importing_the_package_imports_no_decoder() -> None:
    code = (
        "import omni, encoders, token_reduction, processors, sys; "
        "print(sorted({'av', 'decord', 'pypdfium2', 'torchcodec', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
