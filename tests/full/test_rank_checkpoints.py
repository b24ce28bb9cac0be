"""Checkpoints of two ranks, killed and resumed by two and by one, and the policy at the end."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.rank_cases import CHECKPOINTED, Case, make_policy, reference
from support.ranks import SCRIPTS, on_ranks
from transformers import AutoModelForCausalLM

from axolotl_tspin.run.directory import Policy
from axolotl_tspin.run.fingerprints import policy_fingerprint

SCRIPT = SCRIPTS / "resume_on_ranks.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    killed = on_ranks(2, SCRIPT, out, "save")
    assert killed.returncode != 0 and "SIGKILL" in killed.stdout, killed.stdout[-6000:]
    for case in CHECKPOINTED:
        if case.engine == "zero2":
            make_universal(out / case.name / "checkpoint-2")
    for ranks in (2, 1):
        done = on_ranks(ranks, SCRIPT, out, "resume", 2)
        assert done.returncode == 0, done.stdout[-6000:]
    return out


def make_universal(checkpoint: Path) -> None:
    """DeepSpeed's way to another number of ranks."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint / "global_step2"), "--inject_missing_state"]
    command += ["--output_folder", str(checkpoint / "universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


reference = functools.cache(reference)


@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("case", CHECKPOINTED, ids=lambda case: case.name)
def test_a_killed_training_ends_as_an_uninterrupted_one(folder, tmp_path, case: Case, ranks: int):
    """The losses of all steps, and the policy as transformers loads it."""
    model = folder / case.name / f"model-{ranks}"
    if case.engine == "zero3" and ranks == 1:
        refused = (model / "refused.txt").read_text()
        assert "used a DP world size of 2 but the current world size is 1" in refused
        return
    expected = reference(case._replace(engine=""))
    losses = json.loads((model / "losses.json").read_text())
    expected_losses = [step["loss"] for step in expected.steps]
    assert losses == pytest.approx(expected_losses, rel=max(case.tolerance, 1e-5))

    if case.lora:
        base = make_policy(case._replace(lora=()), case.dtype)
        policy = PeftModel.from_pretrained(base, model, is_trainable=True)
        base.save_pretrained(tmp_path / "base")
        trained = Policy(str(tmp_path / "base"), str(model))
    else:
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=case.dtype)
        trained = Policy(str(model))
    loaded = dict(policy.named_parameters())
    for name, expected_parameter in expected.parameters.items():
        torch.testing.assert_close(
            loaded[name].double(),
            expected_parameter,
            rtol=case.tolerance,
            atol=case.tolerance,
            msg=name,
        )
    assert policy_fingerprint(trained, tmp_path / "fingerprints.json")
