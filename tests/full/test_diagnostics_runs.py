"""Each warning, provoked by a real training, and what else needs one more."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from support.commands import call, refused
from support.data import conversations, write_jsonl
from support.pages import parsed
from support.runs import ROWS, T_SPIN, diagnosed_run, train_here, write_yaml

from axolotl_tspin.diagnostics import findings
from axolotl_tspin.diagnostics.figures import read_figures, sampling_figures
from axolotl_tspin.diagnostics.rescoring import score_missing
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import kept_scores
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.verdicts.evidence import read_evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory, policy_dir):
    return diagnosed_run(tmp_path_factory.mktemp("diagnosed"), policy_dir)


def test_selection_by_advantage_takes_the_scores_that_training_left(run):
    """The rows with the largest u under the trained policy, with no pass of its own."""
    _, directory = run
    scores = kept_scores(directory, 0).logps
    table, _ = read_table(directory.iteration(1).selection("train"))
    np.testing.assert_array_equal(table["advantage"].to_numpy(), scores[:, 0] - scores[:, 1])


def test_gradient_norms_are_logged_every_other_step(run):
    _, directory = run
    first, second = (directory.iteration(t).training_record()["log_history"] for t in (0, 1))
    for log in (first, second):
        assert [e["step"] for e in log if "grad_norm/current" in e] == [1, 3]
    assert all(e["grad_norm/historical"] == 0 for e in first if "grad_norm/historical" in e)
    assert all(e["grad_norm/historical"] > 0 for e in second if "grad_norm/historical" in e)


def test_lost_scores_are_computed_again_when_asked_for(run, monkeypatch, tmp_path):
    path, directory = run
    iteration = directory.iteration(0)
    whole = kept_scores(directory, 0)
    figures = iteration.figures.read_text()
    data = bytearray(iteration.scores.read_bytes())
    data[len(data) // 3] ^= 1
    iteration.scores.write_bytes(data)
    assert kept_scores(directory, 0) is None, "damage is seen"
    assert score_missing(path) == [0]
    np.testing.assert_allclose(kept_scores(directory, 0).logps, whole.logps, rtol=1e-5)
    again, before = json.loads(iteration.figures.read_text()), json.loads(figures)
    assert again["policy"]["gap"] == pytest.approx(before["policy"]["gap"], rel=1e-4)
    assert score_missing(path) == []


def test_runs_are_reported_side_by_side(run, tmp_path):
    path, _ = run
    other = tmp_path / "other.yml"
    other.write_text(path.read_text())
    call("report", path, other, "--out", tmp_path / "both.html")
    page = parsed(tmp_path / "both.html")
    assert [h.text for h in page.by_id("loss").find("h3")] == ["run", "other"]
    assert "named twice" in refused("report", path, path)


def settings(path):
    return inspect_run(read_yaml(path))


def train_again(run, folder, **keys):
    """Iteration 1 of the module's run once more, with other settings, in a copy of the run."""
    path, directory = run
    copy = folder / "copy"
    shutil.copytree(directory.path, copy)
    shutil.rmtree(copy / "iteration_1")
    cfg = yaml.safe_load(path.read_text())
    t_spin_keys = keys.pop("t_spin", {})
    cfg |= {"output_dir": str(copy), **keys}
    cfg["t_spin"] |= t_spin_keys
    changed = folder / "changed.yml"
    changed.write_text(yaml.safe_dump(cfg))
    generate(changed)
    return changed, RunDirectory(copy)


def test_a_high_beta_and_step_size_collapse_and_are_named(run, tmp_path):
    generation = {"max_new_tokens": 12, "batch_size": 4}
    path, directory = train_again(
        run,
        tmp_path,
        t_spin={"beta": 3.0, "generation": generation},
        learning_rate=1.0,
        num_epochs=4,
    )
    train_here(path)
    config, _ = settings(path)
    found = {f.sign: f.text for f in findings.findings_of_run(directory, config)}
    evidence = read_evidence(directory, 1, config)
    figure = evidence.figure("logps/annotated_per_token")
    assert f"{figure.before:.3f} → {figure.after:.3f}" in found["collapse"]
    assert "(β = 3). Set `t_spin.beta` to 0.1" in found["collapse"]
    low = findings.harm(1, evidence, beta=0.1)
    assert "`learning_rate`" in low.text and "t_spin.beta" not in low.text
    figure.before, figure.after = figure.after, figure.before
    figure.change, figure.low, figure.high = -figure.change, -figure.high, -figure.low
    assert findings.harm(1, evidence, beta=3.0) is None, "a rise is none"


def test_a_policy_that_no_longer_ends_its_turns_is_seen_in_the_next_iteration(run, tmp_path):
    """Its lengths: iteration 0 asked for 12 tokens, a later one, set to 40, gets them all."""
    generation = T_SPIN["generation"] | {"max_new_tokens": 40}
    path, directory = train_again(run, tmp_path, t_spin={"generation": generation})
    first, second = (sampling_figures(directory, t) for t in (0, 1))
    finding = findings.length_explosion(second, first)
    assert f"{second.mean_tokens:.0f} tokens on average" in finding.text
    assert "times the" in finding.text and "learning_rate" in finding.text
    _, row = json.loads(call("status", path, "--json"))
    assert finding.text in row["warnings"]
    assert findings.length_explosion(first, first) is None


def test_saturated_advantages_are_seen_when_they_are_logged(run, tmp_path, caplog):
    """A large α leaves no gradient: iteration 1's y′ are told apart easily."""
    rows = [
        row | {"synthetic": "No. " * 12, "proto_synthetic": "No. " * 24} for row in conversations(4)
    ]
    data = write_jsonl(tmp_path / "direct.jsonl", rows)
    path = write_yaml(
        tmp_path,
        yaml.safe_load(run[0].read_text())["base_model"],
        datasets=[{"path": str(data), "type": "t_spin.chat_template"}],
        output_dir=str(tmp_path / "direct"),
        t_spin={"alpha": 5.0},
        name="direct.yml",
    )
    with caplog.at_level("WARNING"):
        train_here(path)
    messages = [r.getMessage() for r in caplog.records if "saturate" in r.getMessage()]
    assert len(messages) == 1, "once, and not at every step"
    assert re.search(r"the gradient of 100% of the triplets was all but zero", messages[0])
    assert "`t_spin.alpha` (now 5)" in messages[0]


def test_foreign_anchors_are_counted(run, tmp_path, make_yaml):
    """Responses of another run, imported: nothing proves that θ0 sampled them."""
    path, _ = run
    call("export", path, tmp_path / "spin.jsonl", "--format", "spin")
    imported = make_yaml(
        output_dir=str(tmp_path / "imported"),
        datasets=[{"path": str(tmp_path / "spin.jsonl"), "type": "t_spin.spin"}],
        t_spin={"iterations": 2, "allow_foreign": True},
    )
    call("import", imported)
    train_here(imported)
    config, directory = settings(imported)
    found = {f.sign: f.text for f in findings.findings_of_run(directory, config)}
    assert f"{ROWS} proto-synthetic responses (y0) were not sampled" in found["foreign anchor"]
    assert "allow_foreign" in found["foreign anchor"]
    card = (directory.iteration(0).model / "README.md").read_text()
    assert "not sampled by this run's own policies (`t_spin.allow_foreign`)" in card
    assert str(tmp_path) not in card


def test_spin_is_named_where_its_reward_and_likelihood_part(run):
    """The cause that is named follows the method."""
    path, directory = run
    config, _ = settings(path)
    figures = read_figures(directory, 0)
    figures.policy.table = [[1, 7], [0, 2]]
    spin = config.model_copy(update={"method": "spin"})
    text = findings.annotated_below_synthetic(figures, spin, None).text
    assert "7 triplets have the higher reward and yet the lower likelihood" in text
    assert "`t_spin.method: spin` rewards a response relative to a reference" in text
