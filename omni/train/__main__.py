"""`python -m omni.train FOLDER STAGE [THREADS]`: one stage of the recipe, as `omni train` runs it; under torchrun, by
several processes together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from omni.train import ranks
from omni.train.recipe import Recipe, tiny

if __name__ == "__main__":
    if len(sys.argv) > 3:
        torch.set_num_threads(int(sys.argv[3]))
    ranks.join()
    tiny(Recipe(folder=Path(sys.argv[1])), sys.argv[2])
