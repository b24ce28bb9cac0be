"""Ctrl-C and SIGTERM while a real `run` samples or trains."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import ENVIRONMENT, call
from support.data import ROOT

from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.run.directory import RunDirectory


def begin(path, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "axolotl_tspin", "run", str(path), *arguments],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, reached) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


# Steps are forks where one process does them, and processes under another launcher.
@pytest.mark.parametrize(
    ("step", "number", "arguments"),
    [
        ("generate", signal.SIGINT, ()),
        ("train", signal.SIGTERM, ()),
        ("train", signal.SIGINT, ("--launcher", "accelerate")),
    ],
)
def test_an_interrupted_run_says_what_is_kept(make_yaml, tmp_path, step, number, arguments):
    keys = {"num_epochs": 10_000, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    generation = {"max_new_tokens": 12 if step == "train" else 100, "batch_size": 1}
    t_spin = {"iterations": 2, "on_warning": "continue", "generation": generation}
    path = make_yaml(rows=40, t_spin=t_spin, **keys)
    run = RunDirectory(tmp_path / "out")
    process = begin(path, *arguments)

    def reached() -> bool:
        if step == "train":
            return run.iteration(0).last_checkpoint() is not None
        return rows_done(run.iteration(0).responses("train"))[0] > 0

    wait_for(process, reached)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, output
    *_, last = output.splitlines()
    kept = (
        "up to checkpoint-"
        if step == "train"
        else r"the \d+ responses sampled for iteration 0 are kept"
    )
    assert re.search(rf"Interrupted: .*{kept}", last), output
    assert " ".join(["To go on: axolotl t-spin run", str(path), *arguments]) in last
    assert "Traceback" not in output and "config:" not in output
    assert run.due(2) == (0, step)
    if step == "train":
        assert run.iteration(0).model.exists()
        (row,) = re.findall(r"^ *0 +train .*$", call("status", path), re.MULTILINE)
        assert "yes" not in row and "no" not in row, "it is not a policy that is kept"


def test_a_killed_step_ends_the_run_and_is_gone_on_with(make_yaml, tmp_path):
    generation = {"max_new_tokens": 40, "batch_size": 1}
    path = make_yaml(rows=12, t_spin={"iterations": 1, "held_out": 2, "generation": generation})
    run = RunDirectory(tmp_path / "out")
    process = begin(path)
    wait_for(process, lambda: rows_done(run.iteration(0).responses("train"))[0] > 0)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGKILL
    assert "failed with status -9" in output and "t_spin.log" in output
    before = rows_done(run.iteration(0).responses("train"))[0]
    assert 0 < before < 10
    process = begin(path)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert run.due(1) == (0, "done") and not run.lacks_final_samples(1)
    assert "Against the initial policy: " in output and (run.path / "report.html").exists()
    assert "\x0e" not in output and "config:" not in output
