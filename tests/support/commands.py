"""The commands: of `axolotl t-spin` in this process, and real ones in separate processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from axolotl_tspin.commands import t_spin
from axolotl_tspin.run.directory import RunDirectory

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def call(*arguments) -> str:
    result = CliRunner().invoke(t_spin, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments) -> str:
    result = CliRunner().invoke(t_spin, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 1
    return result.output


def axolotl(*args, check=True) -> subprocess.CompletedProcess:
    """Runs `axolotl …` and gives its output."""
    done = subprocess.run(
        [str(BIN / "axolotl"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
    )
    assert done.returncode == 0 or not check, done.stdout[-6000:]
    return done


def train(path, check=True) -> str:
    # `--launcher python` saves the start-up of accelerate; one test goes without it.
    return axolotl("train", path, "--launcher", "python", check=check).stdout


def record(run: RunDirectory, number: int) -> dict:
    return json.loads(run.iteration(number).trained_marker.read_text())


def losses(run: RunDirectory, number: int) -> list[float]:
    return [entry["loss"] for entry in record(run, number)["log_history"] if "loss" in entry]
