"""Disk space: needs that are larger than any disk, and that fit on any."""

import subprocess

import pyarrow as pa
import pytest

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.disk_space import (
    DiskNeed,
    check_disk_space,
    compare_with_free,
    disk_need,
    stored_bytes,
)
from axolotl_tspin.run.directory import Due, RunDirectory
from axolotl_tspin.run.prompts import freeze_prompts
from axolotl_tspin.run.tables import write_table

MORE_THAN_ANY = 2**80
MODEL = 10**6
ROW = {
    "prompt": "p",
    "prompt_messages": "",
    "annotated": "a",
    "input_ids": [1, 2],
    "labels": [-100, 2],
    "stop_ids": [2],
    "source_row": 0,
}


@pytest.fixture
def run(tmp_path):
    """A run of three rows, before its first response."""
    return begun(tmp_path / "run")


def begun(folder):
    directory = RunDirectory(folder)
    freeze_prompts(directory.prompts("train"), [ROW] * 3, 3)
    directory.begin({}, {}, initial_policy="p")
    return directory


def sampled(run, number):
    """Triplets whose responses have 5 tokens on average."""
    metadata = {"sampled": 3, "tokens": 15}
    triplets = pa.table({"row": [0], "text": ["x" * 9000]})
    write_table(run.iteration(number).triplets("train"), triplets, metadata)


def config(iterations=5, **keys):
    return TSpinConfig(iterations=iterations, **keys)


def test_a_step_that_does_not_fit_is_refused(tmp_path):
    compare_with_free(tmp_path, DiskNeed(1, 1), Due(2, "train"))
    with pytest.raises(TSpinError, match="the step 'train' of iteration 2 takes at least") as error:
        compare_with_free(tmp_path, DiskNeed(MORE_THAN_ANY, MORE_THAN_ANY), Due(2, "train"))
    assert f"output_dir: {tmp_path}" in str(error.value)


def test_a_rest_that_does_not_fit_is_warned_of(tmp_path, caplog):
    compare_with_free(tmp_path, DiskNeed(1, 1), Due(2, "train"))
    assert caplog.text == ""
    compare_with_free(tmp_path, DiskNeed(1, MORE_THAN_ANY), Due(2, "train"))
    assert "the run's rest can take" in caplog.text and "keep_models" in caplog.text


def test_the_settings_decide_whether_the_rest_fits(run, policy_dir, caplog):
    cfg = {"base_model": str(policy_dir)}
    check_disk_space(cfg, run, config(), Due(0, "generate"))
    assert caplog.text == ""
    long = config(generation={"max_new_tokens": 2**70})
    check_disk_space(cfg, run, long, Due(0, "generate"))
    assert "the run's rest can take" in caplog.text


def test_a_damaged_file_is_left_to_the_step_that_needs_it(run, policy_dir, caplog):
    sampled(run, 0)
    run.iteration(0).triplets("train").write_bytes(b"torn")
    long = config(generation={"max_new_tokens": 2**70})
    check_disk_space({"base_model": str(policy_dir)}, run, long, Due(0, "train"))
    assert caplog.text == ""


def test_a_need_counts_what_is_left(run):
    each = stored_bytes(3, 256, 3 * 256)
    need = disk_need(run, config(), Due(0, "generate"), MODEL)
    assert need == (run.prompts("train").stat().st_size, 5 * (each + MODEL))
    assert disk_need(run, config(1), Due(0, "generate"), 0).rest == each

    sampled(run, 0)  # now the length is known, and nothing of iteration 0 is left to sample
    need = disk_need(run, config(), Due(0, "train"), MODEL)
    assert need == (MODEL, stored_bytes(3, 5, 0) + 4 * stored_bytes(3, 5, 15) + 5 * MODEL)

    run.iteration(0).mark_trained({})
    need = disk_need(run, config(), Due(1, "generate"), MODEL)
    assert need.step == run.iteration(0).triplets("train").stat().st_size
    assert need.rest == 4 * (stored_bytes(3, 5, 15) + MODEL)
    assert disk_need(run, config(iteration=3), Due(3, "generate"), 0).rest == need.rest / 4 - MODEL


@pytest.mark.parametrize(("keep", "models"), [("all", 4), ("last", 1), (2, 2), (9, 4)])
def test_a_need_counts_the_models_that_are_kept(run, keep, models):
    sampled(run, 0)
    run.iteration(0).model.mkdir()
    run.iteration(0).mark_trained({})
    without = disk_need(run, config(keep_models=keep), Due(1, "generate"), 0)
    need = disk_need(run, config(keep_models=keep), Due(1, "generate"), MODEL)
    assert need.rest - without.rest == models * MODEL


def test_a_model_that_does_not_fit_is_refused_and_an_adapter_is_not_counted(tmp_path, policy_dir):
    """On a real small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        run = begun(disk / "run")
        sampled(run, 0)
        cfg = {"base_model": str(policy_dir)}
        with pytest.raises(TSpinError, match="the step 'train' of iteration 0 takes at least"):
            check_disk_space(cfg, run, config(1), Due(0, "train"))
        check_disk_space(cfg | {"adapter": "lora"}, run, config(1), Due(0, "train"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
