"""Two iterations of every method, and references that are stopped, damaged or of another policy."""

import math

import pytest
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_train

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve import loading
from axolotl_tspin.resolve.steps import prepare_generation, prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_metadata, read_table, write_table
from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import TripletTokens

METHODS = ("t_spin", "spin", "t_spin_ref", "no_history")

WITH_REFERENCE = ("spin", "t_spin_ref")


pytestmark = pytest.mark.usefixtures("small_blocks")


def train(path) -> None:
    """`axolotl train`, in this process."""
    do_train(load_cfg(str(path)), TrainerCliArgs())


def logged(run: RunDirectory, number: int) -> list[dict]:
    history = run.iteration(number).training_record()["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
def test_two_iterations_of_every_method(make_yaml, tmp_path, method):
    """The real steps; a method with a reference starts every iteration from margins of 0."""
    settings = {
        "method": method,
        "alpha": 0.1,
        "beta": 0.5,
        "iterations": 2,
        "history_window": 1,
        "generation": {"max_new_tokens": 12, "batch_size": 4},
    }
    path = make_yaml(rows=8, t_spin=settings, val_set_size=0, micro_batch_size=4)
    run = RunDirectory(tmp_path / "out")
    for number in range(2):
        assert generate(path).due == "train"
        train(path)
        record, steps = run.iteration(number).training_record(), logged(run, number)
        assert record["method"] == method
        with_history = method in ("t_spin", "t_spin_ref") and number == 1
        assert record["beta"] == (0.5 if with_history else 0.0)
        for step in steps:
            weighed = record["beta"] * step["loss/historical"]
            assert step["loss"] == pytest.approx(step["loss/current"] + weighed, rel=1e-4)
        # 8 triplets a step; iteration 1 also has those of iteration 0.
        assert len(steps) == 1 + number
        first = steps[0]
        if method in WITH_REFERENCE:
            assert first["loss/current"] == pytest.approx(math.log(2), abs=1e-4)
            assert abs(first["rewards/margins"]) < 1e-4
            assert abs(first["advantages/historical"]) < 1e-3
            assert abs(first["logps/margins"]) > 1e-2
        else:
            assert first["advantages/current"] == pytest.approx(first["logps/margins"], abs=1e-4)
        folders = [path.name for path in (run.iteration(number).path / "reference").glob("*")]
        wanted = [f"iteration_{t}" for t in range(number + 1)] if method in WITH_REFERENCE else []
        assert sorted(folders) == wanted
    assert run.due(2).step == "done"


def sampled(make_yaml, method="spin", **keys):
    settings = {"method": method, "generation": {"max_new_tokens": 12, "batch_size": 4}}
    return make_yaml(rows=10, t_spin=settings | keys)


def test_stopped_scoring_goes_on_and_switching_the_method_only_scores(
    make_yaml, tmp_path, monkeypatch
):
    """10 rows are blocks of 4, 4 and 2; the process is stopped after the first."""
    assert generate(sampled(make_yaml, "t_spin")).due == "train"
    path = sampled(make_yaml, "t_spin_ref")
    with pytest.raises(TSpinError, match="lacks log-probabilities that `method: t_spin_ref` needs"):
        prepare_training(read_yaml(path))
    scored = []

    def counting(model, triplets: list[TripletTokens], **settings):
        scored.append(len(triplets))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_triplets(model, triplets, **settings)

    monkeypatch.setattr(loading, "score_triplets", counting)
    with pytest.raises(KeyboardInterrupt):
        generate(path)
    assert prepare_generation(read_yaml(path)).due.step == "generate"
    outcome = generate(path)
    assert (outcome.due, outcome.generated, scored) == ("train", 0, [4, 4, 4, 2])
    ((_, reference),) = RunDirectory(tmp_path / "out", reference_window=0).references(0)
    assert read_table(reference)[0]["row"].to_pylist() == list(range(10))
    assert not list(reference.parent.glob("*/block_*"))
    prepare_training(read_yaml(path))


def test_references_of_another_policy_other_triplets_or_damaged_ones_are_refused(
    make_yaml, tmp_path
):
    path = sampled(make_yaml)
    generate(path)
    ((_, reference),) = RunDirectory(tmp_path / "out", reference_window=0).references(0)
    whole, (table, metadata) = reference.read_bytes(), read_table(reference)
    for change, message in (
        ({"policy": "feed"}, r"log-probabilities under the policy feed, and this .* starts from"),
        ({"triplets": "feed"}, "computed for other triplets than"),
    ):
        write_table(reference, table, metadata | change)
        with pytest.raises(TSpinError, match=message):
            prepare_training(read_yaml(path))
    reference.write_bytes(whole[:-40])
    with pytest.raises(TSpinError, match=r"reference/iteration_0/train\.parquet cannot be read"):
        prepare_training(read_yaml(path))
    reference.unlink()
    assert generate(path).due == "train"
    assert read_metadata(reference) == metadata
    assert read_table(reference)[0] == table
    prepare_training(read_yaml(path))


def test_prepared_data_follows_the_references(make_yaml, tmp_path):
    folders = set()
    for method in METHODS:
        path = sampled(make_yaml, method)
        generate(path)
        prepare_training(raw := read_yaml(path))
        folders.add(raw.dataset_prepared_path)
    assert len(folders) == 4
