"""Every verdict, and every stop, from a real short run that deserves it."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from support.commands import call
from support.fine_tuned import fine_tune, sums
from support.runs import own_environment, train_here, write_yaml

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.findings import findings_of_run
from axolotl_tspin.diagnostics.model_card import license_of, write_model_card
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.verdicts.evidence import read_evidence
from axolotl_tspin.verdicts.verdict import verdict_on_iteration, verdict_on_run

GENERATION = {"max_new_tokens": 24, "batch_size": 48}
NO_GRADIENT = "no gradient before the first step"


@pytest.fixture(scope="module")
def beginner(tmp_path_factory, tokenizer):
    """A policy that knows the answers' form, and some of the answers."""
    return fine_tune(tmp_path_factory.mktemp("beginner") / "model", tokenizer, steps=50)


@pytest.fixture(scope="module")
def expert(tmp_path_factory, tokenizer):
    """A policy that knows the answers by heart."""
    return fine_tune(tmp_path_factory.mktemp("expert") / "model", tokenizer, steps=150)


def t_spin(generation=(), **keys) -> dict:
    return {
        "iterations": 1,
        "alpha": 0.2,
        "held_out": 12,
        "on_warning": "stop",
        "answer": "#### ([0-9]+)",
        "generation": GENERATION | dict(generation),
    } | keys


@pytest.fixture
def make(tmp_path, beginner):
    def make(t_spin: dict, policy=beginner, **keys):
        keys = {"datasets": [sums(tmp_path)], "num_epochs": 2} | keys
        if keys["datasets"] is None:  # the word problems
            del keys["datasets"]
        return write_yaml(tmp_path, policy, t_spin=t_spin, **keys)

    return make


def trained(path) -> tuple[RunDirectory, TSpinConfig]:
    with own_environment():
        train_here(path)
    config, run = inspect_run(read_yaml(path))
    return run, config


def generated_and_trained(path) -> tuple[RunDirectory, TSpinConfig]:
    with own_environment():
        generate(path)
    return trained(path)


def to_train_again(run: RunDirectory) -> None:
    """What the messages say to do."""
    shutil.rmtree(run.iteration(0).model)
    run.iteration(0).trained_marker.unlink()


def test_a_training_that_helps_is_better(make, policy_dir):
    path = make(
        t_spin(alpha=0.05, on_warning="continue", answer="([0-9]+)"),
        policy=policy_dir,
        datasets=None,
        rows=36,
        learning_rate=3e-3,
    )
    run, config = generated_and_trained(path)
    evidence = read_evidence(run, 0, config)
    assert evidence.held_out and evidence.prompts == Prompts(run.prompts("test")).rows == 12
    figure = evidence.figure("logps/annotated_per_token")
    assert "not known yet" in (run.iteration(0).model / "README.md").read_text()
    assert figure.before < figure.after and 0 < figure.low < figure.change < figure.high
    assert verdict_on_iteration(run, 0, config).word == "better"
    # What it writes is not known before it is sampled, and that is done once.
    assert not evidence.is_sampled
    outcome = generate(path)
    assert (outcome.iteration, outcome.due, outcome.generated) == (1, "done", 12)
    assert not run.iteration(1).triplets("train").exists()
    evidence = read_evidence(run, 0, config)
    assert evidence.is_sampled and evidence.figure("accuracy").after is not None
    verdict = verdict_on_run(run, config)
    assert "accuracy" in verdict.sentence
    assert generate(path).generated == 0
    # The commands, and the model's card.
    (row,) = json.loads(call("status", path, "--json"))
    assert row["verdict"] == row["verdict_since_start"] == verdict._asdict()
    assert "Against the initial policy: better" in call("status", path)
    write_model_card(run, 0, config)
    card = ModelCard.load(run.iteration(0).model / "README.md")
    assert f"**better**, {verdict.sentence}" in card.text
    per_token, *rest = [r for r in card.data.eval_results if r.metric_type != "accuracy"]
    assert per_token.metric_value == round(figure.after, 4) and not rest
    assert card.data.license is None


def test_tiny_steps_change_nothing(make):
    run, config = generated_and_trained(make(t_spin(), learning_rate=1e-9))
    assert verdict_on_iteration(run, 0, config).word == "unchanged"


def test_what_was_known_by_heart_gets_worse_on_prompts_that_are_held_out(make):
    run, config = generated_and_trained(make(t_spin(), learning_rate=1e-4, num_epochs=4))
    assert read_evidence(run, 0, config).figure("logps/annotated_per_token").high < 0
    assert verdict_on_iteration(run, 0, config).word == "worse"


def test_a_wrecked_policy_has_collapsed_and_is_not_sampled_from(make):
    keys = {"learning_rate": 3.0, "max_grad_norm": 0.0}
    path = make(t_spin(iterations=2), **keys)
    run, config = generated_and_trained(path)
    assert verdict_on_iteration(run, 0, config).word == "collapsed"
    advice = " ".join(f.text for f in findings_of_run(run, config))
    assert "lower `learning_rate`" in advice and "raise `learning_rate`" not in advice
    with pytest.raises(TSpinError, match=r"iteration 0 collapsed.*Lower.*on_warning"):
        generate(path)
    assert not run.iteration(1).path.exists(), "nothing was sampled from it"
    assert generate(make(t_spin(iterations=2, on_warning="continue"), **keys)).generated == 48
    shutil.rmtree(run.iteration(1).path)
    to_train_again(run)
    path = make(t_spin(iterations=2), learning_rate=1e-6)
    trained(path)
    assert generate(path).iteration == 1
    assert verdict_on_iteration(run, 0, config).word == "unchanged"


def test_a_saturated_loss_is_stopped_before_it_starts_and_learns_nothing(make, expert):
    noisy = {"temperature": 3.0, "max_new_tokens": 150}
    path = make(t_spin(noisy, alpha=5.0), policy=expert)
    with pytest.raises(TSpinError, match=NO_GRADIENT) as stopped:
        generated_and_trained(path)
    assert not RunDirectory(path.parent / "out").iteration(0).trained_marker.exists()
    run, config = trained(make(t_spin(noisy, alpha=5.0, on_warning="continue"), policy=expert))
    assert verdict_on_iteration(run, 0, config).word == "nothing learned: saturated"
    to_train_again(run)
    alpha = float(re.search(r"to ([0-9.e-]+), which leaves", str(stopped.value)).group(1))
    run, config = trained(make(t_spin(noisy, alpha=alpha), policy=expert))
    assert read_evidence(run, 0, config).saturated < 0.9
    assert verdict_on_iteration(run, 0, config).word != "nothing learned: saturated"


def test_cut_responses_are_not_trained_on(make):
    path = make(t_spin({"max_new_tokens": 1}))
    with pytest.raises(TSpinError, match=r"cut at the token limit.*max_new_tokens") as stopped:
        generated_and_trained(path)
    run = RunDirectory(path.parent / "out")
    assert not run.iteration(0).measured("before", "train").exists(), "no policy was loaded"
    for folder in re.search(r"move (\S+) and (\S+) away", str(stopped.value)).groups():
        shutil.rmtree(folder)
    run, _ = generated_and_trained(make(t_spin()))
    assert run.iteration(0).trained_marker.exists()


def test_responses_that_are_the_annotated_ones_are_not_trained_on(make, expert):
    with pytest.raises(TSpinError, match="are the annotated ones, token for token") as stopped:
        generated_and_trained(make(t_spin({"temperature": 0}), policy=expert))
    for folder in re.search(r"move (\S+) and (\S+) away", str(stopped.value)).groups():
        shutil.rmtree(folder)
    run, _ = generated_and_trained(make(t_spin({"temperature": 1.5}), policy=expert))
    assert run.iteration(0).trained_marker.exists()


def test_they_are_trained_on_where_the_user_wants_it(make):
    run, _ = generated_and_trained(make(t_spin({"max_new_tokens": 1}, on_warning="continue")))
    assert run.iteration(0).trained_marker.exists()


def test_the_licence_of_the_base_model_is_passed_on(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n# A model\n")
    assert license_of(str(tmp_path)) == "gemma"
    (tmp_path / "README.md").write_text("# A model\n")
    assert license_of(str(tmp_path)) is None
    assert license_of(str(tmp_path / "none")) is None
    assert license_of("nobody/has-this") is None
