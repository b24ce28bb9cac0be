"""Scores, figures, warnings, report and model card of a real run of a tiny policy."""

import json
import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from support.commands import call
from support.pages import parsed
from support.policies import plain_logp
from support.runs import ROWS, diagnosed_run
from transformers import AutoModelForCausalLM

from axolotl_tspin.diagnostics import findings
from axolotl_tspin.diagnostics.comparison import compare
from axolotl_tspin.diagnostics.figures import read_figures, sampling_figures
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import kept_scores
from axolotl_tspin.run.tables import read_table


@pytest.fixture(scope="module")
def run(tmp_path_factory, policy_dir):
    return diagnosed_run(tmp_path_factory.mktemp("diagnosed"), policy_dir)


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


def test_the_report_lies_in_the_run_directory(run):
    path, directory = run
    assert call("report", path).strip() == str(directory.path / "report.html")
    page = parsed(directory.path / "report.html")
    assert "On 10 prompts trained on (the run holds none out)" in page.text
    gap = read_figures(directory, 1).policy.gap[0]
    assert f"{gap:,.1f}".replace("-", "−") in page.text
    [cut] = [w for w in page.find(kind="warning") if w.find("b")[0].text == "responses cut"]
    assert "iterations 0, 1" in cut.text and cut.find("a")[0].attributes["href"] == "#cut"
    assert cut.find("pre")[0].text == "t_spin: generation: max_new_tokens: 24"
    assert "held out" not in page.by_id("cut").text


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
