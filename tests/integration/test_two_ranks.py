"""Two CPU ranks train what one process trains; every case is in tests/full/test_ranks.py."""

import pytest
from support.rank_cases import Case
from support.rank_checks import assert_as_one
from support.ranks import SCRIPTS, on_ranks

CHOSEN = (
    Case("ddp", packed=40, accumulation=2, checkpointing=True),
    Case("fsdp2", "padded", accumulation=2),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    ended = on_ranks(2, SCRIPTS / "train_on_ranks.py", out, *(case.name for case in CHOSEN))
    assert ended.returncode == 0, ended.stdout[-6000:]
    return out


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_two_ranks_are_as_one(trained, case: Case):
    assert_as_one(trained / case.name, 2, case)
