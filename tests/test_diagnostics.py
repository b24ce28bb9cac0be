"""Scores, figures, warnings, report and model card of a real run of a tiny policy."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import yaml
from conftest import conversations, train_here, write_jsonl, write_yaml
from huggingface_hub import ModelCard
from test_commands import call, refused
from test_generation import plain_logp
from transformers import AutoModelForCausalLM

from axolotl_tspin.diagnostics import findings
from axolotl_tspin.diagnostics.comparison import compare
from axolotl_tspin.diagnostics.diversity import distinct_n, repetition
from axolotl_tspin.diagnostics.figures import Method, policy_figures, read_figures, sampling_figures
from axolotl_tspin.diagnostics.rescoring import score_missing
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import (
    Scores,
    kept_scores,
)
from axolotl_tspin.run.tables import read_table

ROWS = 10
T_SPIN = {
    "iterations": 2,
    "alpha": 0.1,
    "gradient_norms": 2,
    "generation": {"max_new_tokens": 12, "batch_size": 4, "select": "advantage", "fraction": 0.5},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, policy_dir):
    """Two iterations, generated and trained for real, whose second selects by advantage."""
    folder = tmp_path_factory.mktemp("diagnosed")
    path = write_yaml(folder, policy_dir, rows=ROWS, t_spin=T_SPIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):
            generate(path)
            train_here(path)
    return path, RunDirectory(folder / "out")


def triplets_of(directory: RunDirectory, number: int) -> list[dict]:
    return read_table(directory.iteration(number).triplets("train"))[0].to_pylist()


def reference_logps(directory: RunDirectory, number: int) -> np.ndarray:
    """(rows, 3) under the trained policy in float64, token by token."""
    policy = AutoModelForCausalLM.from_pretrained(directory.iteration(number).model)
    policy = policy.double().eval()
    names = ("annotated", "synthetic", "proto_synthetic")
    return np.array(
        [
            [plain_logp(policy, row["prompt_ids"], row[f"{name}_ids"]) for name in names]
            for row in triplets_of(directory, number)
        ]
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_training_leaves_its_triplets_scores_under_the_trained_policy(run, number):
    _, directory = run
    scores = kept_scores(directory, number)
    assert scores.rows.tolist() == list(range(ROWS))
    np.testing.assert_allclose(scores.logps, reference_logps(directory, number), rtol=1e-4)


def test_the_figures_are_those_of_the_triplets_and_of_the_scores(run):
    _, directory = run
    figures = read_figures(directory, 1)
    rows, logps = triplets_of(directory, 1), reference_logps(directory, 1)
    policy = figures.policy
    assert policy.policy == directory.iteration(1).training_record()["policy"]
    gap = logps[:, 0] - logps[:, 1]
    error = 1.96 * gap.std(ddof=1) / math.sqrt(ROWS)
    assert policy.gap == pytest.approx((gap.mean(), gap.mean() - error, gap.mean() + error), 1e-3)
    # No reference policy: rewards and likelihoods have one order.
    above = int((gap > 0).sum())
    assert policy.table == [[above, 0], [0, ROWS - above]]
    for i, name in enumerate(("annotated", "synthetic", "proto_synthetic")):
        tokens = np.array([len(row[f"{name}_ids"]) for row in rows])
        assert policy.logps[name] == pytest.approx(logps[:, i].mean(), rel=1e-4)
        assert policy.rewards[name] == pytest.approx(0.1 * logps[:, i].mean(), rel=1e-4)
        assert policy.logps_per_token[name] == pytest.approx((logps[:, i] / tokens).mean(), 1e-4)
        assert figures.triplets.tokens[name] == pytest.approx(tokens.mean())
    same = np.mean([row["synthetic_ids"] == row["proto_synthetic_ids"] for row in rows])
    assert figures.triplets.same_as_proto == pytest.approx(same) and same >= 0.5
    assert figures.triplets.same_as_annotated == 0
    assert figures.triplets.foreign_anchors == 0
    assert figures.sampling.sampled == 5


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


def test_compare_reads_scores_instead_of_loading_the_trained_policy(run):
    path, directory = run
    after = [c for c in compare(path, rows=4) if c.policy == "after"]
    for comparison in after:
        expected = reference_logps(directory, comparison.iteration)[:4].mean(axis=0)
        assert comparison.logps == pytest.approx(tuple(expected), rel=1e-4)


def test_status_shows_gap_saturation_and_warnings(run):
    path, directory = run
    first, second = json.loads(call("status", path, "--json"))
    assert second["gap"] == pytest.approx(read_figures(directory, 1).policy.gap[0])
    assert 0 <= second["saturated"] <= 1
    assert any("cut at the limit of 12 tokens" in warning for warning in first["warnings"])
    assert "Warning (iteration 0)" in call("status", path)


def test_the_report_is_one_page_with_its_pictures(run, tmp_path):
    path, directory = run
    out = tmp_path / "report.html"
    assert "pictures in" in call("report", path, "--out", out)
    page = out.read_text()
    pictures = sorted(p.stem for p in (tmp_path / "report_figures").iterdir())
    assert pictures == ["gap", "gradient_norms", "responses", "saturation", "training_curves"]
    assert all(
        p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "report_figures").iterdir()
    )
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"""(src|href)=["'](?!data:|https://arxiv)""", page), "self-contained"
    assert "&lt;|im_start|&gt;user" in page, "texts are escaped"
    figures = read_figures(directory, 1)
    assert f"{figures.policy.gap[0]:,.1f}".replace("-", "−") in page
    assert directory.iteration(1).training_record()["policy"] in page
    assert "responses cut" in page


def test_runs_are_reported_side_by_side(run, tmp_path):
    path, _ = run
    other = tmp_path / "other.yml"
    other.write_text(path.read_text())
    call("report", path, other, "--out", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert "<b>run</b>" in page and "<b>other</b>" in page
    assert "named twice" in refused("report", path, path)


def test_a_run_without_a_trained_iteration_has_no_report(make_yaml):
    assert "no iteration of the run" in refused("report", make_yaml())


def test_the_model_card_replaces_axolotls(run):
    _, directory = run
    card = ModelCard.load(directory.iteration(1).model / "README.md")
    assert card.data.library_name == "transformers"
    assert {"axolotl", "t-spin"} <= set(card.data.tags)
    record = directory.iteration(1).training_record()
    assert record["policy"] in card.text and directory.initial_policy() in card.text
    assert "| method | T-SPIN (eq. 7) |" in card.text
    assert "| α, β, ℓ | 0.1, 0.1, logistic |" in card.text
    assert "| learning_rate | 0.001 |" in card.text
    assert "`word_problems.jsonl`" in card.text and "2601.08198" in card.text
    assert str(directory.path.parent) not in card.content, "no paths of this machine"


# Each warning, provoked.


def test_the_2_by_2_table_tells_reward_order_from_likelihood_order():
    """Relative to a reference, rewards and likelihoods may differ (figure 3 of the paper)."""
    logps = np.array([[-1.0, -2, -3], [-5, -2, -3], [-9, -2, -3], [-1, -2, -3]])
    reference = np.array([[-2.0, -2, -3], [-9, -2, -3], [-9, -3, -3], [-1, -9, -3]])
    scores = Scores(np.arange(4), logps, "p")
    tokens = np.ones((4, 3))
    figures = policy_figures(scores, tokens, Method(0.5, 0.0, "logistic"), reference)
    assert figures.table == [[1, 1], [1, 1]]
    assert figures.rewards["annotated"] == pytest.approx(0.5 * (1 + 4 + 0 + 0) / 4)
    without = policy_figures(scores, tokens, Method(0.5, 0.0, "logistic"))
    assert without.table == [[2, 0], [0, 2]]


@pytest.mark.parametrize(
    ("loss", "weight"),
    [("logistic", lambda a: 1 / (1 + np.exp(a))), ("exponential", lambda a: np.exp(-a))],
)
def test_saturation_weighs_both_terms(loss, weight):
    logps = np.random.default_rng(0).normal(-40, 8, (200, 3))
    figures = policy_figures(
        Scores(np.arange(200), logps, "p"), np.ones((200, 3)), Method(0.4, 0.1, loss)
    )
    u, v = 0.4 * (logps[:, 0] - logps[:, 1]), 0.4 * (logps[:, 1] - logps[:, 2])
    assert figures.saturated["current"] == np.mean(weight(u) < 0.01)
    assert figures.saturated["historical"] == np.mean(weight(v) < 0.01)
    assert figures.saturated["both"] == np.mean(weight(u) + 0.1 * weight(v) < 0.01)
    assert 0 < figures.saturated["both"] < figures.saturated["current"]


def test_distinct_n_and_repetition():
    assert distinct_n([[1, 2, 1], [2, 1]], 1) == 2 / 5
    assert distinct_n([[1, 2, 1], [2, 1]], 2) == 2 / 3
    assert distinct_n([[1]], 2) == 0
    assert repetition([[1, 2, 3, 4, 5]]) == 0
    assert repetition([[7] * 8, [1, 2]]) == pytest.approx(1 - 1 / 5)


def settings(path):
    return inspect_run(read_yaml(path))


def test_cut_responses_warn_in_generation(make_yaml, caplog):
    """The tiny policy never ends its turn within 3 tokens."""
    path = make_yaml(rows=4, t_spin={"generation": {"max_new_tokens": 3, "batch_size": 4}})
    generate(path)
    config, directory = settings(path)
    sampling = sampling_figures(directory, 0)
    assert sampling.cut == 4
    [finding] = findings.sampling_findings(sampling, sampling, config)
    assert "4 of 4 sampled responses (100%)" in finding.text
    assert "t_spin.generation.max_new_tokens" in finding.text
    [row] = json.loads(call("status", path, "--json"))
    assert row["warnings"] == [finding.text]
    assert not findings.cut_at_the_limit(sampling.model_copy(update={"cut": 0}), 3)


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
    figures, first = (read_figures(directory, t) for t in (1, 0))
    before, after = (f.policy.logps_per_token["annotated"] for f in (first, figures))
    assert f"fell from {before:.2f} to {after:.2f}" in found["collapse"]
    assert "(β = 3). Set `t_spin.beta` to 0.1" in found["collapse"]
    low = findings.collapse(figures, first.policy, beta=0.1)
    assert "`learning_rate`" in low.text and "t_spin.beta" not in low.text
    assert findings.collapse(first, figures.policy, beta=3.0) is None, "a rise is none"


def test_annotated_below_synthetic_is_named(run):
    """Random weights, hardly trained: likelihoods of y lie far below those of samples."""
    path, directory = run
    config, _ = settings(path)
    figures = read_figures(directory, 0)
    [finding] = [
        f
        for f in findings.findings_of_run(directory, config)
        if f.iteration == 0 and f.sign == "annotated below synthetic"
    ]
    assert f"a gap of {figures.policy.gap[0]:.1f} nats" in finding.text
    assert figures.policy.gap[0] < 0
    assert "masked or templated wrongly" in finding.text


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
    text = findings.annotated_below_synthetic(figures, spin).text
    assert "7 triplets have the higher reward and yet the lower likelihood" in text
    assert "`t_spin.method: spin` rewards a response relative to a reference" in text
