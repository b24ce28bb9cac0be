"""Each rank reads the YAML of each case as `axolotl train` does, and writes what came of it. A rank
whose number is a folder in a case's folder has that for `output_dir`: a node without the others'
file system.

torchrun --nproc_per_node 2 tests/support/step_on_ranks.py OUT CASE ...
"""

import os
import sys
from pathlib import Path

import yaml
from axolotl.utils.dict import DictDefault

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.plugin.plugin import TSpinPlugin

out, *cases = sys.argv[1:]
for case in cases:
    folder, rank = Path(out) / case, os.environ["RANK"]
    cfg = DictDefault(yaml.safe_load((Path(out) / "run.yml").read_text()))
    own = folder / rank
    cfg["output_dir"] = str(own if own.exists() else folder / "shared")
    try:
        TSpinPlugin().register(cfg)
        outcome = f"iteration {cfg['t_spin']['resolved']['iteration']}"
    except TSpinError as error:
        outcome = str(error)
    (folder / f"outcome-{rank}.txt").write_text(outcome)
