"""benchmarks/gpu: every stage at tiny sizes, and what its runner does with a stage that fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.data import ROOT

KIT = ROOT / "benchmarks" / "gpu"
STAGES = {
    1: "Attention against dense mathematics",
    2: "Whole policies, shared against padded",
    3: "Attention of one layer, timed",
    4: "The head",
    5: "A training step beside TRL's DPO",
    6: "Sampling",
    7: "Curves of both layouts, and planned memory",
    8: "The README's YAML through the commands",
}


@pytest.fixture
def kit(monkeypatch):
    """The runner as a module."""
    monkeypatch.syspath_prepend(str(KIT))
    import run

    yield run
    del sys.modules["run"], sys.modules["table"]


def dry(*stages: int, **environment: str) -> tuple[list[dict], str]:
    """The records and the printed tables of some stages."""
    command = [sys.executable, str(KIT / "run.py"), "--dry", "--out", "gpu.jsonl"]
    done = subprocess.run(
        [*command, "--stages", ",".join(map(str, stages))],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in Path("gpu.jsonl").read_text().splitlines()]
    outcomes = {r["stage"]: r["outcome"] for r in records if r["event"] == "ended"}
    assert outcomes == dict.fromkeys([0, *stages], "ok")
    assert not [r for r in records if "error" in r]
    again = subprocess.run(
        [sys.executable, str(KIT / "run.py"), "--table", "gpu.jsonl"],
        capture_output=True,
        text=True,
    )
    assert again.stdout == done.stdout
    return records, done.stdout


def results(records: list[dict], stage: int, **keys) -> list[dict]:
    found = [r for r in records if r["event"] == "result" and r["stage"] == stage]
    return [r for r in found if keys.items() <= r.items()]


def test_every_stage_but_the_commands_measures_at_tiny_sizes(tmp_path):
    records, tables = dry(1, 2, 3, 4, 5, 6, 7)
    for stage in range(1, 8):
        assert f"## {stage}. {STAGES[stage]}\n" in tables
        assert results(records, stage), stage
        (began,) = (r for r in records if r["event"] == "began" and r["stage"] == stage)
        assert began["machine"]["torch"] and "--dry" in began["command"]
    compared = [r for r in results(records, 1) if "skipped" not in r]
    assert len(compared) > 20 and all(r["agrees"] for r in compared)
    assert all(r["top-left"] > 1000 * r["tolerance"] for r in compared), "alignment is seen"
    (shared,) = results(records, 2, layout="auto")
    assert shared["taken"] == "shared_prefix" and shared["check"].startswith("checked")
    assert results(records, 3, way="per part", lengths="1792/256")
    assert {r["way"] for r in results(records, 4) if "skipped" not in r} == {"plain", "chunked"}
    assert len(results(records, 5, method="TRL DPO")) == 2
    (ours,) = results(records, 6, table="Rates", way="ours")
    assert ours["tokens"] == 32 and ours["met"] is None, "a CPU says nothing about the target"
    (curves,) = results(records, 7, table="Distance of the curves")
    assert curves["largest"] < 1e-4
    losses = results(records, 7, layout="auto")[0]["losses"]
    assert sum(losses[-2:]) < sum(losses[:2]), "an epoch has two steps"
    assert all(r["planned, MiB"] > 0 for r in results(records, 7, table="Planned memory"))


def test_the_commands_run_the_readmes_yaml(tmp_path):
    records, tables = dry(8)
    assert f"## 8. {STAGES[8]}\n" in tables
    iterations = results(records, 8, table="Iterations")
    assert [r["step"] for r in iterations] == ["done", "done"]
    assert all(r["optimizer steps"] == 2 and r["sampled tokens"] > 0 for r in iterations)
    assert results(records, 8, page="report.html")


def test_torch_and_transformers_are_enough(tmp_path):
    """Axolotl, TRL and data sets are hidden from the stages that could use them."""
    hidden = "axolotl", "datasets", "trl"
    lines = (f"sys.modules[{name!r}] = None" for name in hidden)
    (tmp_path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    records, _ = dry(5, 6, 7, 8, PYTHONPATH=str(tmp_path))
    assert results(records, 5, skipped="TRL is not installed")
    assert results(records, 5, method="packed (auto)")
    assert results(records, 8, skipped="Axolotl is not installed")


HANGS = """
import subprocess, sys, time

SIZES = {"dry": None}

def run(device, sizes):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield {"child": child.pid}
    time.sleep(300)
"""
BROKEN = {
    "measures": "    yield {'figure': 1.5, 'target': 'above 2', 'met': False}",
    "raises": "    yield {'figure': 1}\n    raise ValueError('no such luck')",
    "dies": "    yield {'figure': 2}\n    import os\n    os.kill(os.getpid(), 11)",
    "rejects": "    yield {'figure': 3, 'failed': True, 'error': 'not exact'}",
    "prints": "    print('from a library')\n    yield {'figure': 4}",
}


def stages_of(kit, folder: Path) -> list:
    for name, body in BROKEN.items():
        code = f"SIZES = {{'dry': None}}\n\ndef run(device, sizes):\n{body}\n"
        (folder / f"{name}.py").write_text(code)
    (folder / "hangs.py").write_text(HANGS)
    names = ["measures", "raises", "dies", "rejects", "hangs", "prints"]
    return [kit.Stage(n, name, folder / f"{name}.py") for n, name in enumerate(names, start=1)]


def run_broken(kit, stages: list, minutes: float) -> tuple[bool, list[dict]]:
    with open("gpu.jsonl", "a") as file:
        log = kit.Log(file)
        passed = kit.run_stages(
            stages, log, Path("logs"), device="cpu", sizes="dry", minutes=minutes
        )
    written = [json.loads(line) for line in Path("gpu.jsonl").read_text().splitlines()]
    assert written == log.records
    return passed, written


def test_a_stage_that_fails_or_hangs_is_shown_and_does_not_stop_the_others(kit, tmp_path):
    started = time.monotonic()
    passed, records = run_broken(kit, stages_of(kit, tmp_path), minutes=0.1)
    assert not passed and time.monotonic() - started < 60
    ended = {r["title"]: r for r in records if r["event"] == "ended"}
    outcomes = {title: record["outcome"] for title, record in ended.items()}
    failed = dict.fromkeys(("raises", "dies", "rejects", "hangs"), "failed")
    assert outcomes == {"measures": "ok", "prints": "ok"} | failed
    assert "ValueError: no such luck" in ended["raises"]["error"]
    assert "exit status -11" in ended["dies"]["error"]
    assert "limit of 0.1 minutes" in ended["hangs"]["error"]
    assert {r["title"] for r in records if r["event"] == "result"} == set(ended), (
        "kept, all of them"
    )
    child = next(r["child"] for r in records if "child" in r)
    assert not is_alive(child)
    tables = kit.tables_of(records)
    assert tables.count("**failed** after") == 4
    assert "ValueError: no such luck" in tables and "**failed** not exact" in tables
    assert "above 2: **missed**" in tables
    assert "from a library" in Path("logs/stage_6.txt").read_text()


def is_alive(pid: int) -> bool:
    """False also for a process that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("numbers", "status"), [("1", 0), ("1,2", 1)])
def test_the_exit_status_says_whether_a_stage_failed(kit, tmp_path, monkeypatch, numbers, status):
    monkeypatch.setattr(kit, "STAGES", tuple(stages_of(kit, tmp_path)))
    monkeypatch.setattr(sys, "argv", ["run.py", "--dry", "--stages", numbers])
    assert kit.main() == status


def test_a_missed_target_alone_is_no_failure_and_an_unknown_stage_is_refused(kit, tmp_path):
    assert run_broken(kit, stages_of(kit, tmp_path)[:1], minutes=1)[0]
    with pytest.raises(SystemExit, match="no stage 9"):
        kit.chosen("1,9")
