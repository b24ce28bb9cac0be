"""scripts/quickstart.py with a tiny random model in place of the one that it would unpack."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from support.commands import ENVIRONMENT
from support.data import ROOT, write_jsonl

from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.verdicts.verdict import verdict_on_run

EXAMPLE = ROOT / "examples" / "yaml" / "smollm2_quickstart.yml"


def quickstart(folder: Path, on_warning: str) -> subprocess.CompletedProcess:
    """Run it on 24 of the example's rows; the random model ends no response within 4 tokens."""
    cfg = yaml.safe_load(EXAMPLE.read_text())
    cfg["t_spin"]["on_warning"] = on_warning
    cfg["t_spin"]["generation"]["max_new_tokens"] = 4
    (folder / "example.yml").write_text(yaml.safe_dump(cfg))
    lines = (ROOT / cfg["datasets"][0]["path"]).read_text().splitlines()
    data = write_jsonl(folder / "notes.jsonl", [json.loads(line) for line in lines[:24]])
    script = [sys.executable, ROOT / "scripts" / "quickstart.py", folder]
    return subprocess.run(
        [*map(str, script), "--config", str(folder / "example.yml"), "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )


def test_it_ends_on_a_held_out_prompt_the_verdict_and_the_report(tmp_path, policy_dir):
    shutil.copytree(policy_dir, tmp_path / "SmolLM2-135M-Instruct")
    stopped = quickstart(tmp_path, "stop")
    assert stopped.returncode != 0
    assert "were cut at the token limit" in stopped.stdout and "Report:" not in stopped.stdout

    done = quickstart(tmp_path, "continue")
    assert done.returncode == 0, done.stdout[-6000:]
    config, run = inspect_run(read_keys(tmp_path / "run.yml"))
    assert run.path == RunDirectory(tmp_path / "run").path
    first, final = (read_table(run.iteration(t).triplets("test"))[0].to_pylist()[0] for t in (0, 2))
    end = done.stdout[done.stdout.index("--- first prompt, held out") :]
    for text in (first["annotated"], first["synthetic"], final["synthetic"]):
        assert text in end
    assert f"\n{verdict_on_run(run, config)}\n" in end
    assert f"Report: {run.path / 'report.html'}\n" in end
    assert (run.path / "report.html").exists() and (run.iteration(1).model).exists()
