"""Figures of triplets, against figures counted by hand."""

import numpy as np
import pytest

from axolotl_tspin.diagnostics.figures import Method, policy_figures
from axolotl_tspin.run.logps import Scores
from axolotl_tspin.verdicts.diversity import distinct_n, repetition


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
