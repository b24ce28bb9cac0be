"""A run whose training or policy is not finite, or whose policy is missing: nothing is marked or
sampled, and the error says what helps."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.runs import pretend_trained, train_here

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.plugin.plugin import TSpinPlugin
from axolotl_tspin.resolve.steps import prepare_generation, prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint

T_SPIN = {
    "iterations": 3,
    "on_warning": "continue",
    "generation": {"max_new_tokens": 12, "batch_size": 4},
}


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def test_a_rate_that_ruins_the_policy_ends_the_run_and_a_lower_one_goes_on(make_yaml, tmp_path):
    """As a user meets it: the error, then what it says to do."""
    saves = {"save_strategy": "steps", "save_steps": 1, "t_spin": T_SPIN, "num_epochs": 2}
    path = make_yaml(rows=12, learning_rate=1e3, **saves)
    generate(path)
    iteration = RunDirectory(tmp_path / "out").iteration(0)
    with pytest.raises(TSpinError, match=r"not finite at step .*`learning_rate` \(now 1000\)"):
        train_here(path)
    assert not iteration.trained_marker.exists()
    checkpoint = iteration.last_checkpoint()
    weights = load_file(checkpoint / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())

    path = make_yaml(rows=12, learning_rate=1e-3, **saves)
    for checkpoint in iteration.model.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    train_here(path)
    record = json.loads(iteration.trained_marker.read_text(), parse_constant=refuse)
    rates = {entry["learning_rate"] for entry in record["log_history"] if "loss" in entry}
    assert rates == {1e-3}


@pytest.fixture
def trained_run(make_yaml, tmp_path):
    """A run with its first iteration trained, as it seems."""
    path = make_yaml(rows=4, t_spin=T_SPIN)
    run = RunDirectory(tmp_path / "out")
    generate(path)
    pretend_trained(run, 0)
    return path, run


def ruin(run, number):
    """Plant a value in a trained policy as if it had been trained so."""
    model = run.iteration(number).model
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    policy = policy_fingerprint(Policy(str(model)), run.fingerprints)
    run.iteration(number).mark_trained({"policy": policy, "log_history": []})


def test_a_policy_whose_logits_are_not_finite_is_not_sampled_from(trained_run):
    path, run = trained_run
    ruin(run, 0)
    model = run.iteration(0).model
    with pytest.raises(TSpinError) as error:
        generate(path)
    assert f"the policy {model} gives logits that are not finite at the prompt of row " in str(
        error.value
    )
    assert "train iteration_0 again with a lower `learning_rate`" in str(error.value)
    assert not list(run.iteration(1).responses("train").glob("*.parquet"))


def test_a_policy_whose_scores_are_not_finite_is_no_reference(make_yaml, tmp_path):
    path = make_yaml(rows=4, t_spin=T_SPIN | {"method": "spin"})
    run = RunDirectory(tmp_path / "out", reference_window=0)
    generate(path)
    pretend_trained(run, 0)
    generate(path)
    reference = run.references(1)[0][1]
    assert reference.exists()
    reference.unlink()
    ruin(run, 0)
    foreign = make_yaml(rows=4, t_spin=T_SPIN | {"method": "spin", "allow_foreign": True})
    with pytest.raises(TSpinError, match="log-probabilities that are not finite for 4 of 4"):
        generate(foreign)
    assert not reference.exists()


def test_a_missing_policy_is_named_before_anything_is_loaded(trained_run):
    path, run = trained_run
    model = run.iteration(0).model
    model.rename(model.with_name("moved"))
    for step in (generate, train_here, lambda p: prepare_generation(read_yaml(p))):
        if step is train_here:  # its triplets are there already
            shutil.copytree(run.iteration(0).path / "triplets", run.iteration(1).path / "triplets")
        with pytest.raises(TSpinError) as error:
            step(path)
        assert str(error.value).startswith(f"{model}: the policy that iteration_0 trained is miss")
        assert "Restore the folder from a copy" in str(error.value)
        shutil.rmtree(run.iteration(1).path, ignore_errors=True)
    model.with_name("moved").rename(model)
    assert generate(path).due == "train"


def test_what_the_error_says_trains_a_missing_policy_again(trained_run):
    path, run = trained_run
    generate(path)
    first, second = run.iteration(0), run.iteration(1)
    shutil.rmtree(first.model)
    with pytest.raises(TSpinError, match=r"move model and trained.json out of .*iteration_0, and "):
        train_here(path)
    first.trained_marker.unlink()
    shutil.rmtree(second.path)
    assert prepare_generation(read_yaml(path)).due == (0, "train")


def test_a_policy_that_no_step_needs_any_more_may_be_gone(trained_run):
    """As `keep_models: last` leaves it."""
    path, run = trained_run
    generate(path)
    pretend_trained(run, 1)
    shutil.rmtree(run.iteration(0).model)
    assert prepare_generation(read_yaml(path)).policy == Policy(str(run.iteration(1).model))


def test_an_iteration_whose_saved_weights_are_not_finite_is_not_marked(trained_run):
    """Axolotl calls `post_train` before and after it saves the model."""
    path, run = trained_run
    generate(path)
    cfg = read_yaml(path)
    prepare_training(cfg)
    plugin = TSpinPlugin()
    plugin.post_train(cfg, None)
    shutil.copytree(run.iteration(0).model, run.iteration(1).model)
    weights = load_file(run.iteration(1).model / "model.safetensors")
    weights["lm_head.weight"][2, 3] = torch.inf
    save_file(weights, run.iteration(1).model / "model.safetensors")
    with pytest.raises(
        TSpinError, match=r"the weights `lm_head.weight` are not finite, so the ite"
    ):
        plugin.post_train(cfg, None)
    assert not run.iteration(1).trained_marker.exists()
