"""Several CPU ranks (gloo) train what one process trains: DDP, DeepSpeed's ZeRO-1, 2 and 3, FSDP2.

The libraries are the real ones, driven by TripletTrainer through transformers and accelerate as
Axolotl drives it (`support.rank_cases.engine_arguments` says how). Each world size is one launch.
"""

import functools
import subprocess
from pathlib import Path

import pytest
from support.rank_cases import CASES, Case
from support.rank_checks import assert_as_one
from support.ranks import SCRIPTS, on_ranks

SCRIPT = SCRIPTS / "train_on_ranks.py"
ALL = [
    pytest.param(world, case, id=f"{world}-{case.name}")
    for world, cases in CASES.items()
    for case in cases
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a world size's trainings, and how they ended."""

    @functools.cache
    def launch(world: int) -> tuple[Path, subprocess.CompletedProcess]:
        out = tmp_path_factory.mktemp(f"world-{world}")
        return out, on_ranks(world, SCRIPT, out)

    return launch


@pytest.mark.parametrize(("world", "case"), ALL)
def test_ranks_are_as_one(trained, world: int, case: Case):
    """Loss, gradient norm, metrics of each step, and parameters, evaluation and scores at the end,
    against one process in float64."""
    folder, ended = trained(world)
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert_as_one(folder / case.name, world, case)
