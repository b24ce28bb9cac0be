"""Prepared rows that a killed training left half made are made again; whole ones are kept."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from datasets import Dataset, load_from_disk

from axolotl_tspin.generation.step import generate
from axolotl_tspin.plugin.prepared import clear_half_prepared
from axolotl_tspin.run.directory import RunDirectory

PREPARE = """
import json, os, signal, sys
from datasets import Dataset, arrow_dataset
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

save, each = Dataset.save_to_disk, arrow_dataset.iflatmap_unordered

def killed_after_the_rows(*args, **kwargs):
    yield from each(*args, **kwargs)
    kill()

def killed(*args, **kwargs):
    if sys.argv[2] == "after the rows":
        arrow_dataset.iflatmap_unordered = killed_after_the_rows
    else:
        json.dump = kill
    save(*args, **kwargs)

Dataset.save_to_disk = killed
load_datasets(cfg=load_cfg(sys.argv[1]))
"""


def prepared_folders() -> list[Path]:
    return [path for path in Path("last_run_prepared").glob("t_spin-*/*") if path.is_dir()]


@pytest.mark.parametrize("entrance", ["the YAML", "train.yml"])
@pytest.mark.parametrize("moment", ["after the rows", "in the state"])
def test_a_training_killed_while_it_prepares_rows_can_be_repeated(
    make_yaml, tmp_path, moment, entrance
):
    path = make_yaml(rows=6)
    generate(path)
    load_cfg(str(path))  # writes train.yml
    if entrance == "train.yml":
        path = RunDirectory(tmp_path / "out").iteration(0).training_config
    child = subprocess.run(
        [sys.executable, "-c", PREPARE, str(path), moment], capture_output=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-3000:]
    (half,) = prepared_folders()
    assert list(half.glob("data-*.arrow"))
    with pytest.raises((OSError, ValueError)):
        load_from_disk(str(half))

    rows = load_datasets(cfg=load_cfg(str(path))).train_dataset
    assert len(rows) == 6
    (whole,) = prepared_folders()
    assert len(load_from_disk(str(whole))) == 6
    written = (whole / "state.json").stat().st_mtime_ns
    load_datasets(cfg=load_cfg(str(path)))
    assert (whole / "state.json").stat().st_mtime_ns == written, "whole rows are kept"


def test_rows_that_a_live_process_prepares_are_left_to_it(tmp_path):
    Dataset.from_dict({"a": [1]}).save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "rows" / "state.json").unlink()
    clearing = threading.Thread(target=clear_half_prepared, args=[str(tmp_path)])
    with filelock.FileLock(tmp_path / "datasets_prep.lock"):
        clearing.start()
        clearing.join(0.3)
        assert clearing.is_alive() and (tmp_path / "rows").exists()
    clearing.join()
    assert not (tmp_path / "rows").exists()
