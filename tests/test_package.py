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


def test_a_command_starts_without_torch_and_names_stay_functions_whoever_imports_their_modules() -> None:
    code = (
        "import sys, omni, omni.cli; "
        "assert 'torch' not in sys.modules, 'torch is imported'; "
        "import omni.load, omni.ask; from omni.ask import ask; "
        "assert omni.ask is ask and callable(omni.load) and callable(omni.ingest); "
        "assert set(omni.__all__) <= set(dir(omni)); "
        "from omni import *; assert Result is omni.Result; "
        "assert not hasattr(omni, 'what')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
