"""Settings that have changed since an iteration was made, from the files of the iteration."""

import json

import pyarrow as pa
import pytest
import yaml

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import Due, RunDirectory
from axolotl_tspin.run.settings import changed_settings, made_with
from axolotl_tspin.run.tables import write_table

SAMPLED = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256, "select": "all", "seed": 7}


def resolved(block=None, **keys) -> dict:
    """A YAML as it is written to train.yml."""
    config = TSpinConfig.model_validate(block or {})
    cfg = {"t_spin": config.model_dump(exclude_none=True), "learning_rate": 1e-3, "seed": 7}
    return cfg | {"optimizer": "rmsprop", "micro_batch_size": 2} | keys


@pytest.fixture
def run(tmp_path):
    """Iteration 0 is sampled and trained."""
    directory = RunDirectory(tmp_path)
    made(directory, 0)
    return directory


def made(run, number, sampled=SAMPLED, cfg=None):
    iteration = run.iteration(number)
    write_table(iteration.triplets("train"), pa.table({"row": [0]}), sampled)
    iteration.training_config.write_text(yaml.safe_dump(cfg or resolved()))


def checkpoint(run, number):
    folder = run.iteration(number).model / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({}))


@pytest.mark.parametrize("step", ["generate", "train"])
def test_nothing_is_said_where_nothing_changed(run, step):
    assert changed_settings(run, Due(1, step), resolved()) == ""
    assert changed_settings(run, Due(0, step), resolved({"alpha": 3.0})) == "", "nothing before"
    assert changed_settings(run, Due(0, "done"), resolved({"alpha": 3.0})) == ""


@pytest.mark.parametrize("step", ["generate", "train"])
@pytest.mark.parametrize(
    ("block", "keys", "said"),
    [
        ({"alpha": 0.5}, {}, "t_spin.alpha 1.0 → 0.5"),
        ({"beta": 0.2, "loss": "exponential"}, {}, None),
        ({"method": "no_history"}, {}, "t_spin.method t_spin → no_history"),
        ({"history_window": 1}, {}, "t_spin.history_window 0 → 1"),
        ({}, {"learning_rate": 5e-4}, "learning_rate 0.001 → 0.0005"),
        ({}, {"seed": None}, "seed 7 → 42"),
        ({}, {"weight_decay": 0.1}, "weight_decay (not set) → 0.1"),
        ({}, {"optimizer": "adamw_torch"}, "optimizer rmsprop → adamw_torch"),
        ({}, {"micro_batch_size": 4}, "micro_batch_size 2 → 4"),
    ],
)
def test_what_changed_is_said_at_both_steps(run, step, block, keys, said):
    said = said or "t_spin.loss logistic → exponential, t_spin.beta 0.1 → 0.2"
    assert changed_settings(run, Due(1, step), resolved(block, **keys)) == (
        f"since iteration 0: {said}"
    )


def test_sampling_is_compared_with_what_was_sampled_with(run):
    """Not with train.yml, which may have been written after a change."""
    now = resolved({"generation": {"max_new_tokens": 512, "temperature": 0.7}})
    made(run, 0, cfg=now)
    assert changed_settings(run, Due(1, "generate"), now) == (
        "since iteration 0: t_spin.generation.max_new_tokens 256 → 512, "
        "t_spin.generation.temperature 1.0 → 0.7"
    )
    assert changed_settings(run, Due(1, "train"), now) == "", "the responses are there"


def test_the_share_of_prompts_is_compared(run):
    some = {"select": "fraction", "fraction": 0.5}
    made(run, 0, SAMPLED | {"select": "fraction"}, resolved({"generation": some}))
    more = resolved({"generation": some | {"fraction": 0.75}})
    said = changed_settings(run, Due(1, "generate"), more)
    assert said == "since iteration 0: t_spin.generation.fraction 0.5 → 0.75"


def test_a_number_that_yaml_reads_as_text_is_the_number(run):
    assert changed_settings(run, Due(1, "train"), resolved(learning_rate="1e-3")) == ""


def test_a_training_that_goes_on_is_compared_with_its_own_beginning(run):
    made(run, 1, cfg=resolved(learning_rate=5e-4))
    now = resolved(learning_rate=5e-4)
    assert changed_settings(run, Due(1, "train"), now) == (
        "since iteration 0: learning_rate 0.001 → 0.0005"
    )
    checkpoint(run, 1)
    assert changed_settings(run, Due(1, "train"), now) == ""
    assert changed_settings(run, Due(1, "train"), resolved()) == (
        "since the checkpoint of iteration 1: learning_rate 0.0005 → 0.001"
    )
    anew = resolved(learning_rate=5e-4, auto_resume_from_checkpoints=False)
    assert changed_settings(run, Due(1, "train"), anew) == (
        "since iteration 0: learning_rate 0.001 → 0.0005"
    )


@pytest.mark.parametrize("text", [None, "", "[1", "t_spin: 3", "\x00"])
def test_what_files_do_not_tell_is_not_compared(run, text):
    iteration = run.iteration(0)
    if text is None:
        iteration.training_config.unlink()
    else:
        iteration.training_config.write_text(text)
    write_table(iteration.triplets("train"), pa.table({"row": [0]}), {"sampled": 0})  # imported
    assert made_with(iteration) == {}
    assert changed_settings(run, Due(1, "generate"), resolved({"alpha": 3.0})) == ""
    iteration.triplets("train").write_bytes(b"torn")
    assert made_with(iteration) == {}
