"""Several ranks (CPU, gloo): the gradient, the metrics and the evaluation of one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def train(out: Path, ranks: int, batch_size: int, accumulation: int, triplets: int):
    out.mkdir()
    script = Path(__file__).parent / "train_on_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--master_port", "29517", str(script), str(out)]
    command += [str(batch_size), str(accumulation), str(triplets)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    training, evaluation = json.loads((out / "log.json").read_text())
    return training, evaluation, torch.load(out / "weights.pt")


def test_two_ranks_are_as_one(tmp_path):
    """8 triplets in one optimizer step; evaluated in batches of 3 a rank, the last one uneven."""
    one = train(tmp_path / "one", 1, 8, 1, 8)
    two = train(tmp_path / "two", 2, 2, 2, 8)
    names = [name for name in one[0] if name.split("/")[0] in ("rewards", "logps", "advantages")]
    assert len(names) == 17
    for name in (*names, "loss", "loss/current", "loss/historical"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5), name
    for name in ("loss", "loss/current", "loss/historical", *names):
        assert two[1][f"eval_{name}"] == pytest.approx(one[1][f"eval_{name}"], rel=1e-5), name
    for name, weight in one[2].items():
        torch.testing.assert_close(two[2][name], weight, rtol=1e-7, atol=1e-9)
