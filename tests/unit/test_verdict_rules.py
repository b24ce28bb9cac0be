"""The rules of verdicts, one by one, and their table in the documentation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data import ROOT

from axolotl_tspin.verdicts.evidence import Evidence, Figure, figure_of, interval
from axolotl_tspin.verdicts.verdict import PER_TOKEN, RULES, verdict_of


def figure(before: float, change: float, width: float = 0.001) -> Figure:
    return Figure(
        before=before,
        after=before + change,
        change=change,
        low=change - width,
        high=change + width,
    )


def evidence(saturated=0.0, is_finite=True, **figures) -> Evidence:
    per_token = figures.pop("per_token", figure(-1.0, 0.0))
    return Evidence(
        first=0,
        last=1,
        held_out=True,
        prompts=50,
        figures={PER_TOKEN: per_token, **figures},
        is_finite=is_finite,
        is_sampled=True,
        saturated=saturated,
    )


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (evidence(is_finite=False, per_token=figure(-1, 0.5)), "collapsed"),
        (evidence(per_token=figure(-1.0, -0.51)), "collapsed"),
        (evidence(per_token=figure(-1.0, -0.49)), "worse"),
        (evidence(per_token=figure(-3.0, -0.6)), "worse"),  # not a quarter
        (evidence(per_token=figure(-1.0, 0.1), repetition=figure(0.1, 0.35)), "collapsed"),
        (evidence(per_token=figure(-1.0, 0.1), empty=figure(0.0, 0.4)), "collapsed"),
        (evidence(per_token=figure(-1.0, 0.1), cut=figure(0.0, 0.6)), "collapsed"),
        (evidence(per_token=figure(-1.0, 0.1), cut=figure(0.0, 0.2)), "worse"),
        (evidence(per_token=figure(-1.0, 0.1), cut=figure(0.0, 0.2, width=0.3)), "better"),
        (evidence(saturated=0.95), "nothing learned: saturated"),
        (evidence(saturated=0.85), "unchanged"),
        (evidence(saturated=0.95, per_token=figure(-1.0, 0.1)), "better"),
        (evidence(saturated=0.95, per_token=figure(-1.0, -0.1)), "worse"),
        (evidence(per_token=figure(-1.0, 0.1)), "better"),
        (evidence(per_token=figure(-1.0, 0.1, width=0.2)), "unchanged"),
        (evidence(per_token=figure(-1.0, 0.004)), "unchanged"),
        (evidence(per_token=figure(-1.0, -0.1)), "worse"),
        (evidence(per_token=figure(-1.0, -0.1, width=0.2)), "unchanged"),
        (evidence(per_token=figure(-1.0, 0.1), accuracy=figure(0.5, -0.1)), "worse"),
        (evidence(per_token=figure(-1.0, -0.1), accuracy=figure(0.5, 0.1)), "better"),
        (evidence(per_token=figure(-1.0, 0.1), accuracy=figure(0.5, -0.1, 0.2)), "better"),
        (evidence(per_token=Figure(before=-1.0, after=-0.9, change=0.1)), "unchanged"),
    ],
)
def test_the_first_rule_that_holds_gives_the_word(found, word):
    assert verdict_of(found).word == word


def test_every_rule_is_reached_by_a_case_above():
    cases = test_the_first_rule_that_holds_gives_the_word.pytestmark[0].args[1]
    reached = {next(i for i, rule in enumerate(RULES) if rule.holds(found)) for found, _ in cases}
    assert reached == set(range(len(RULES)))


def test_the_documentation_has_the_same_table():
    text = (ROOT / "docs" / "verdicts.md").read_text().replace("\\|", "|")
    rows = [f"| {rule.word} | {rule.when} |" for rule in RULES]
    assert "\n".join(["|---|---|", *rows, ""]) in text


def test_the_sentence_has_the_figures_and_their_interval():
    found = evidence(per_token=figure(-1.0, 0.1), accuracy=figure(0.5, 0.125, 0.25))
    sentence = verdict_of(found).sentence
    assert "on 50 held-out prompts" in sentence
    assert "-1.000 → -0.900 (+0.100, 95% +0.099 to +0.101)" in sentence
    assert "accuracy 50.0% → 62.5% (+12.5%, 95% -12.5% to +37.5%)" in sentence
    assert "no gradient" not in sentence
    assert "95% of the triplets had no gradient" in verdict_of(evidence(saturated=0.95)).sentence
    assert "prompts trained on" in verdict_of(found.model_copy(update={"held_out": False})).sentence


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_an_interval_holds_its_mean_and_narrows_with_more_prompts(values):
    low, high = interval(np.array(values))
    assert low <= np.mean(values) + 1e-9 and high >= np.mean(values) - 1e-9
    more = interval(np.tile(values, 9))
    assert more[1] - more[0] <= (high - low) * 0.75 + 1e-9


def test_an_interval_covers_the_true_mean():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = interval(generator.normal(0.3, 1.0, 40))
        covered += low <= 0.3 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_a_change_is_over_the_prompts_known_on_both_sides():
    found = figure_of(np.array([1.0, np.nan, 3.0]), np.array([2.0, 9.0, np.nan]))
    assert (found.before, found.after, found.change) == (2.0, 5.5, 1.0)
    assert (found.low, found.high) == (None, None)
    unknown = figure_of(np.array([1.0, 2.0]), np.array([np.nan, np.nan]))
    assert unknown.change is None and not unknown.rose(0) and not unknown.fell(0)
