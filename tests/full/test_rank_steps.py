"""Ranks look at the run directory together, and only rank 0 writes there."""

import shutil
from pathlib import Path

from support.ranks import SCRIPTS, on_ranks
from support.runs import pretend_trained

from axolotl_tspin.generation.step import generate
from axolotl_tspin.plugin.plugin import TSpinPlugin
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, without Axolotl's log."""
    found = (f for f in folder.rglob("*") if f.is_file() and f.name != "debug.log")
    return {str(f): f.read_bytes() for f in found}


def test_only_rank_0_writes_the_run_directory(make_yaml, tmp_path, monkeypatch):
    path = make_yaml(rows=4)
    generate(path)
    run = RunDirectory(tmp_path / "out")
    run.fingerprints.unlink()
    before = files(run.path)
    monkeypatch.setenv("RANK", "1")
    TSpinPlugin().register(read_yaml(path))
    assert files(run.path) == before
    monkeypatch.setenv("RANK", "0")
    TSpinPlugin().register(read_yaml(path))
    written = {Path(f).name for f in files(run.path).keys() - before.keys()}
    assert written == {"fingerprints.json", "train.yml"}


def test_nodes_that_see_different_run_directories_all_end_with_the_reason(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    generate(path)
    out = tmp_path / "cases"
    for case in ("shared", "not-on-1", "not-on-0", "stale-on-1"):
        shutil.copytree(tmp_path / "out", out / case / "shared")
    (out / "not-on-1" / "1").mkdir()
    (out / "not-on-0" / "0").mkdir()
    # Rank 0 has iteration 1's triplets, rank 1 is still at iteration 0.
    stale = out / "stale-on-1"
    shutil.copytree(stale / "shared", stale / "1")
    run = RunDirectory(stale / "shared")
    pretend_trained(run, 0)
    generate(make_yaml(rows=4, output_dir=str(run.path)))
    shutil.copy(path, out / "run.yml")
    cases = sorted(folder.name for folder in out.iterdir() if folder.is_dir())
    done = on_ranks(2, SCRIPTS / "step_on_ranks.py", out, *cases, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]

    def outcomes(case: str) -> list[str]:
        return [(out / case / f"outcome-{rank}.txt").read_text() for rank in (0, 1)]

    assert outcomes("shared") == ["iteration 0"] * 2
    for outcome in outcomes("not-on-1"):
        assert outcome.startswith("rank 1 on ") and "nothing to train on yet" in outcome
        assert "put it on a file system that they share" in outcome
    first, second = outcomes("not-on-0")
    assert first.startswith("nothing to train on yet")
    assert second.startswith("rank 0 on ") and "nothing to train on yet" in second
    for outcome in outcomes("stale-on-1"):
        assert outcome.startswith("rank 1 on ")
        assert "found iteration 0" in outcome and "rank 0 found iteration 1" in outcome
