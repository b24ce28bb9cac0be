"""Runs one stage in this process, and writes its results to standard output, a JSON line each.

    python benchmarks/gpu/worker.py STAGE_FILE DEVICE SIZES

`run.py` starts it. What libraries print goes to standard error.
"""

import importlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


def main() -> None:
    file, device, sizes = Path(sys.argv[1]), *sys.argv[2:]
    if device == "cuda" and not has_cuda():
        sys.exit("torch finds no CUDA device here; `--dry` runs on the CPU")
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)
        # The stage's folder, what stages share, benchmarks/step.py, and the package of this clone.
        sys.path[:0] = map(str, (file.resolve().parent, HERE, HERE.parent, REPOSITORY))
        stage = importlib.import_module(file.stem)
        for result in stage.run(device, stage.SIZES[sizes]):
            print(json.dumps(result), file=results, flush=True)


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
