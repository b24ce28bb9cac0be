"""What a training on several ranks left, against one process in float64."""

import functools
import json
from pathlib import Path

import pytest
import torch

from support import rank_cases
from support.rank_cases import Case
from support.ranks import SCRIPTS, on_ranks

WRAPPERS = {"ddp": "DistributedDataParallel", "zero": "DeepSpeedEngine", "fsdp2": "FSDP"}

reference = functools.cache(rank_cases.reference)


def assert_as_one(out: Path, world: int, case: Case) -> None:
    """Compare loss, gradient norm and metrics of each step, and parameters, evaluation and scores
    at the end."""
    done = json.loads((out / "log.json").read_text())
    wrapper = next(name for engine, name in WRAPPERS.items() if case.engine.startswith(engine))
    assert done["engine"].startswith(wrapper) or (world == 1 and case.engine == "ddp")
    # One rank of two that cannot share rows takes the other with it.
    way = ("padded" if case.fault else case.layout, "chunked")
    assert (done["layout"], done["head"]) == way

    tolerance = case.tolerance
    logged = max(tolerance, 1e-5)  # what is logged was float32
    expected = reference(case._replace(engine="", layout="", packed=None, fault=""))
    log = [entry for entry in done["log"] if "loss" in entry]
    assert len(log) == len(expected.steps) == 5
    for entry, step, norms in zip(log, expected.steps, expected.norms, strict=True):
        for name, value in (step | (norms if case.engine == "ddp" else {})).items():
            assert entry[name] == pytest.approx(value, rel=logged, abs=logged), name
    for name, value in expected.evaluation.items():
        assert done["evaluation"][f"eval_{name}"] == pytest.approx(value, rel=logged, abs=logged)

    weights = torch.load(out / "weights.pt")
    for row, scores in enumerate(expected.scores):
        assert done["scores"].pop(str(row)) == pytest.approx(scores, rel=logged, abs=logged)
    assert done["scores"] == {}
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(
            weights[name].double(), parameter, rtol=tolerance, atol=tolerance, msg=name
        )


def assert_ranks_stop(out: Path, engines: list[str]) -> None:
    """Two ranks, of which one alone finds a loss or a weight that is not finite in step 3, end with
    one error; a training without it goes on to its end."""
    done = on_ranks(2, SCRIPTS / "stop_on_ranks.py", out, *engines)
    assert done.returncode == 0, done.stdout[-6000:]
    checkpoints = {"loss": {2}, "weights": set(), "nothing": {2, 4, 5}}
    for engine in engines:
        for what, steps in checkpoints.items():
            folder = out / f"{engine}-{what}"
            first, second = ((folder / f"rank-{rank}.txt").read_text() for rank in (0, 1))
            assert first == second
            kept = {int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")}
            assert kept == steps, (engine, what)
            if what == "nothing":
                assert first == "trained 5 steps"
            else:
                assert first.startswith(f"the {what} ") and "not finite at step 3" in first
