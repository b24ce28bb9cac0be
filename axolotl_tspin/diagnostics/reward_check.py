"""Check whether the training reward agrees with an independent judge.

The reward is the method's: α·log π(z|x), or relative to the frozen policy (eq. 3, 9), for an
iteration's triplets under the policy that it trained. A log-probability falls with a response's
length. Therefore both the sum, which is trained, and its mean over tokens are compared.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from axolotl_tspin.diagnostics.figures import method_of, tokens_of_rows
from axolotl_tspin.diagnostics.judges import Judge, JudgedTriplet
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.logps import kept_scores, reference_logps
from axolotl_tspin.run.prompts import messages_of
from axolotl_tspin.run.triplets import iterate_triplets
from axolotl_tspin.training.metrics import rewards_of
from axolotl_tspin.triplets import RESPONSES

RESAMPLES = 500
SEED = 0


class Correlation(NamedTuple):
    """Correlation of rewards and judgements.

    Attributes:
        of: the responses or differences that are correlated.
        reward: "sum", as trained, or "per token".
        n: number of judged values.
        spearman_low, spearman_high, kendall_low, kendall_high: ends of 95% bootstrap intervals. All
            figures are NaN if rewards or judgements are all the same.
    """

    of: str
    reward: str
    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    kendall: float
    kendall_low: float
    kendall_high: float


class RewardCheck(NamedTuple):
    """Correlations over `rows` triplets of an iteration."""

    judge: str
    iteration: int
    rows: int
    correlations: list[Correlation]


def check_rewards(
    config_path: Path, judge: Judge, *, iteration: int | None = None, rows: int | None = None
) -> RewardCheck:
    """Correlate a run's training reward with a judge.

    Args:
        iteration: the iteration; by default the last trained one.
        rows: use only this many of the first scored triplets.

    Raises:
        TSpinError: the iteration is not trained, or not scored.
    """
    config, run = inspect_run(read_yaml(config_path))
    trained = [t for t in range(config.iterations) if run.step_of(t).step == "done"]
    number = trained[-1] if iteration is None and trained else iteration
    if number not in trained:
        raise TSpinError(f"iteration {number or 0} of the run in {run.path} is not trained yet")
    scores = kept_scores(run, number)
    if scores is None:
        raise TSpinError(
            f"iteration {number} of the run in {run.path} has no scores: compute them with "
            f"`axolotl t-spin report {config_path} --score`"
        )
    chosen = scores.rows[:rows]
    wanted = set(chosen.tolist())
    triplets_path = run.iteration(number).triplets("train")
    columns = ["row", "prompt", "messages", *RESPONSES]
    triplets = [
        JudgedTriplet(row["row"], row["prompt"], messages_of(row), *(row[n] for n in RESPONSES))
        for row in iterate_triplets(triplets_path, columns)
        if row["row"] in wanted
    ]
    logps = scores.logps[: len(chosen)]
    reference = reference_logps(run, number)
    rewards = rewards_of(
        logps,
        method_of(run, number, config).alpha,
        None if reference is None else reference[chosen],
    )
    tokens = np.maximum(tokens_of_rows(triplets_path, chosen), 1)
    return RewardCheck(
        judge.name, number, len(triplets), correlations(rewards, tokens, judge(triplets))
    )


def correlations(
    rewards: np.ndarray, tokens: np.ndarray, judgements: np.ndarray
) -> list[Correlation]:
    """Correlate pooled responses, and the differences within a prompt that the loss trains.

    Args:
        rewards, tokens, judgements: (n, 3) in the order of `RESPONSES`; judgements may be NaN.

    Raises:
        TSpinError: fewer than three triplets are judged.
    """
    found = []
    for reward, values in (("sum", rewards), ("per token", rewards / tokens)):
        groups = {
            "all responses": (values, judgements),
            "y′ and y0": (values[:, 1:], judgements[:, 1:]),
            "y − y′": (values[:, :1] - values[:, 1:2], judgements[:, :1] - judgements[:, 1:2]),
            "y′ − y0": (values[:, 1:2] - values[:, 2:], judgements[:, 1:2] - judgements[:, 2:]),
        }
        if _is_constant(judgements[:, 0]):
            # A judge that measures against y says nothing about y itself.
            del groups["all responses"]
        for of, (x, y) in groups.items():
            judged = ~np.isnan(y).all(axis=1)
            if judged.sum() >= 3:
                found.append(_correlation(of, reward, x[judged], y[judged]))
    if not found:
        raise TSpinError("fewer than three triplets are judged; there is nothing to correlate")
    return found


def _correlation(of: str, reward: str, x: np.ndarray, y: np.ndarray) -> Correlation:
    """Correlate (prompts, k) values. Whole prompts are resampled, as their responses belong
    together."""
    generator = np.random.default_rng(SEED)
    draws = generator.integers(0, len(x), (RESAMPLES, len(x)))
    figures: list[float] = []
    # "asymptotic" avoids the costly exact p-value, which is not used here.
    for statistic in (spearmanr, partial(kendalltau, method="asymptotic")):
        resampled = np.array([_pooled(statistic, x[draw], y[draw]) for draw in draws])
        # A draw with a constant side has no correlation.
        seen = resampled[~np.isnan(resampled)]
        ends = np.quantile(seen, (0.025, 0.975)) if len(seen) else (math.nan, math.nan)
        figures += [_pooled(statistic, x, y), *map(float, ends)]
    return Correlation(of, reward, int((~np.isnan(y)).sum()), *figures)


def _pooled(statistic: Callable[..., tuple[float, float]], x: np.ndarray, y: np.ndarray) -> float:
    a, b = x.ravel(), y.ravel()
    judged = ~np.isnan(b)
    a, b = a[judged], b[judged]
    return math.nan if _is_constant(a) or _is_constant(b) else float(statistic(a, b)[0])


def _is_constant(values: np.ndarray) -> bool:
    known = values[~np.isnan(values)]
    return len(known) == 0 or bool(np.ptp(known) == 0)
