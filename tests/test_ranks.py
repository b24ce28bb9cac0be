"""Several CPU ranks (gloo) train what one process trains: DDP, DeepSpeed's ZeRO-1, 2 and 3, FSDP2.

The libraries are the real ones, driven by TripletTrainer through transformers and accelerate as
Axolotl drives it (`rank_cases.engine_arguments` says how). Each world size is one launch.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_cases import CASES, Case, reference

SCRIPT = Path(__file__).parent / "train_on_ranks.py"
ALL = [
    pytest.param(world, case, id=f"{world}-{case.name}")
    for world, cases in CASES.items()
    for case in cases
]
WRAPPERS = {"ddp": "DistributedDataParallel", "zero": "DeepSpeedEngine", "fsdp2": "FSDP"}


def on_ranks(ranks: int, *arguments: object, timeout: int = 400) -> subprocess.CompletedProcess:
    """Runs a script on so many ranks; one that hangs has failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks
        output, _ = process.communicate()
        output += f"\nended after {timeout} s"
    return subprocess.CompletedProcess(command, process.returncode, output)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a world size's trainings, and how they ended."""

    @functools.cache
    def launch(world: int) -> tuple[Path, subprocess.CompletedProcess]:
        out = tmp_path_factory.mktemp(f"world-{world}")
        return out, on_ranks(world, SCRIPT, out)

    return launch


reference = functools.cache(reference)


@pytest.mark.parametrize(("world", "case"), ALL)
def test_ranks_are_as_one(trained, world: int, case: Case):
    """Loss, gradient norm, metrics of each step, and parameters, evaluation and scores at the end,
    against one process in float64."""
    folder, ended = trained(world)
    assert ended.returncode == 0, ended.stdout[-6000:]
    out = folder / case.name
    done = json.loads((out / "log.json").read_text())
    wrapper = next(name for engine, name in WRAPPERS.items() if case.engine.startswith(engine))
    assert done["engine"].startswith(wrapper) or (world == 1 and case.engine == "ddp")
    # One rank of two that cannot share rows takes the other with it.
    way = ("padded", "plain") if case.fault else (case.layout, "chunked")
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
