"""The run directory says by its contents which iteration is due and which step of it."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Due, Policy, RunDirectory
from axolotl_tspin.run.files import write_atomically

IDENTITY = {"base_model": "m", "datasets": [{"path": "d"}], "sequence_len": 64}


def begun(path, splits=("train",)) -> RunDirectory:
    run = RunDirectory(path)
    for split in splits:
        run.prompts(split).parent.mkdir(parents=True, exist_ok=True)
        run.prompts(split).touch()
    run.begin(IDENTITY, {"axolotl": "0"}, initial_policy="0f")
    return run


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@given(steps=st.integers(0, 6), iterations=st.integers(1, 3))
def test_the_due_step_follows_from_what_is_there(tmp_path_factory, steps, iterations):
    run = begun(tmp_path_factory.mktemp("run"))
    for step in range(min(steps, 2 * iterations)):
        iteration = run.iteration(step // 2)
        touch(iteration.trained_marker if step % 2 else iteration.triplets("train"))
    if steps >= 2 * iterations:
        assert run.due(iterations) == Due(iterations - 1, "done")
    else:
        assert run.due(iterations) == Due(steps // 2, "train" if steps % 2 else "generate")


def test_all_splits_need_their_triplets(tmp_path):
    run = begun(tmp_path, splits=("train", "test"))
    touch(run.iteration(0).triplets("train"))
    assert run.due(2).step == "generate"
    touch(run.iteration(0).triplets("test"))
    assert run.due(2).step == "train"


def test_a_pinned_iteration(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(TSpinError, match="policy of iteration 0, which is not trained"):
        run.due(3, pinned=1)
    touch(run.iteration(0).trained_marker)
    assert run.due(3, pinned=1) == Due(1, "generate")
    assert run.due(3, pinned=0) == Due(0, "done")


def test_the_policy_that_an_iteration_starts_from(tmp_path):
    run, initial = begun(tmp_path), Policy("base")
    assert run.policy_after(-1, initial, adapter=True) == initial
    model = str(tmp_path / "iteration_1" / "model")
    assert run.policy_after(1, initial, adapter=False) == Policy(model)
    assert run.policy_after(1, initial, adapter=True) == Policy("base", model)


def test_another_configuration_is_refused_by_key(tmp_path):
    run = begun(tmp_path)
    run.check_identity(IDENTITY)
    with pytest.raises(TSpinError, match=r"sequence_len: the run has 64, the YAML 128"):
        run.check_identity(IDENTITY | {"sequence_len": 128})
    run.check_identity(IDENTITY | {"a_later_key": 1})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    run = begun(tmp_path)
    run.manifest.write_text(text)
    with pytest.raises(TSpinError, match=r"t_spin\.json"):
        run.check_identity(IDENTITY)


def test_a_manifest_of_another_format_is_refused(tmp_path):
    run = begun(tmp_path)
    run.manifest.write_text(json.dumps({"format": 99, "identity": {}}))
    with pytest.raises(TSpinError, match="format 99"):
        run.check_identity(IDENTITY)


def test_an_output_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TSpinError, match=r"output_dir: .*file/out.*Not a directory"):
        RunDirectory(tmp_path / "file" / "out").check_writable()


def test_two_writers_with_the_same_process_number_do_not_meet(tmp_path, monkeypatch):
    """As on two machines with one file system."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "file"

    def meanwhile(temporary):
        temporary.write_text("first")
        write_atomically(path, lambda other: other.write_text("second"))

    write_atomically(path, meanwhile)
    assert path.read_text() == "first"


def test_what_was_frozen_without_a_run_is_cleared_but_no_response(tmp_path):
    run = RunDirectory(tmp_path)
    response = run.iteration(0).responses("train") / "block_000000.parquet"
    for path in (run.prompts("test"), run.iteration(0).triplets("train"), response):
        touch(path)
    assert run.due(2) == Due(0, "generate") and run.splits() == []
    run.clear_unbegun()
    assert not run.prompts("test").exists()
    assert not run.iteration(0).triplets("train").exists()
    assert response.exists()


def test_a_trained_run_without_its_manifest_is_not_begun_again(tmp_path):
    run = begun(tmp_path)
    touch(run.iteration(0).trained_marker)
    run.manifest.unlink()
    with pytest.raises(TSpinError, match=r"t_spin\.json is missing; restore it"):
        run.clear_unbegun()
    assert run.prompts("train").exists()


def test_only_checkpoints_that_were_written_to_their_end_count(tmp_path):
    iteration = RunDirectory(tmp_path).iteration(0)
    assert iteration.last_checkpoint() is None
    for step, state in ((4, "{}"), (9, "{}"), (12, '{"half'), (20, None)):
        folder = iteration.model / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert iteration.last_checkpoint() == iteration.model / "checkpoint-9"


@pytest.mark.parametrize(
    "files",
    [
        ["config.json", "model.safetensors"],
        ["config.json", "model.safetensors.index.json"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ],
)
def test_an_iteration_is_trained_once_its_policy_is_there(tmp_path, files):
    iteration = RunDirectory(tmp_path).iteration(0)
    iteration.model.mkdir(parents=True)
    (iteration.model / files[0]).touch()
    with pytest.raises(TSpinError, match="no trained policy"):
        iteration.check_trained()
    (iteration.model / files[1]).touch()
    iteration.check_trained()
    iteration.mark_trained({"iteration": 0})
    assert iteration.training_record() == {"iteration": 0}


def test_old_models_are_dropped_and_nothing_else(tmp_path):
    run = begun(tmp_path)
    for number in range(3):
        touch(run.iteration(number).triplets("train"))
        touch(run.iteration(number).model / "model.safetensors")
    assert run.drop_models_before(2) == [0, 1]
    assert run.drop_models_before(2) == []
    assert [run.iteration(t).model.exists() for t in range(3)] == [False, False, True]
    assert all(run.iteration(t).triplets("train").exists() for t in range(3))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
