"""Commands that only read answer without loading torch, transformers or Axolotl."""

import re
import subprocess
import sys

import pytest
from support.commands import ENVIRONMENT
from support.data import ROOT
from support.runs import diagnosed_run

SLOW = {"torch", "transformers", "axolotl", "datasets", "trl", "accelerate"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, policy_dir):
    """The YAML of a run whose two iterations are trained."""
    return diagnosed_run(tmp_path_factory.mktemp("finished"), policy_dir)[0]


def imported(*arguments, status: int = 0) -> set[str]:
    """Run a command in its own process; the top-level packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "axolotl_tspin", *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr[-3000:]
    names = re.findall(r"^import time:[^|]*\|[^|]*\| +(\S+)$", done.stderr, re.MULTILINE)
    return {name.split(".")[0] for name in names}


def test_help_and_version(finished):
    assert not imported("--help") & SLOW
    assert not imported("--version") & SLOW
    assert not imported("run", "--help") & SLOW


def test_views_of_a_finished_run(finished, tmp_path):
    assert not imported("status", finished) & SLOW
    assert not imported("status", finished, "--json") & SLOW
    assert not imported("report", finished, "--out", tmp_path / "report.html") & SLOW


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_export(finished, tmp_path, name):
    assert not imported("export", finished, tmp_path / name) & SLOW
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("command", ["status", "generate", "run", "plan", "compare", "import"])
@pytest.mark.parametrize(
    "content", ["rl: [", "rl: dpo", "{rl: t_spin, output_dir: out, t_spin: {iterations: 0}}"]
)
def test_faults_of_the_yaml(tmp_path, command, content):
    path = tmp_path / "bad.yml"
    path.write_text(content)
    assert not imported(command, path, status=1) & SLOW
    assert not (tmp_path / "out").exists()


def test_a_command_that_computes_loads_them(finished):
    assert {"torch", "axolotl"} <= imported("plan", "--verbose", finished)
