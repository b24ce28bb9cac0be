"""Figures of one iteration: of its triplets, and of the policy that it trained.

`iteration_t/diagnostics/figures.json` stores them, so status and report need not read tables.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_json
from axolotl_tspin.run.logps import Scores, kept_scores, reference_logps, rows_to_score
from axolotl_tspin.run.tables import open_groups, read_metadata
from axolotl_tspin.triplets import RESPONSES
from axolotl_tspin.verdicts.diversity import distinct_n, repetition

N_GRAMS = (1, 2, 3)
NORMAL_95 = 1.96


class Sampling(BaseModel):
    """Counts of an iteration's generation step: responses sampled, their tokens, and the number
    that were cut at the token limit."""

    iteration: int
    sampled: int
    tokens: int
    cut: int

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.sampled if self.sampled else 0.0

    @property
    def cut_share(self) -> float:
        return self.cut / self.sampled if self.sampled else 0.0


class TripletFigures(BaseModel):
    """Figures of an iteration's triplets.

    Attributes:
        rows: number of triplets examined.
        tokens: mean response tokens, by response.
        same_as_annotated, same_as_proto: share of y′ = y and of y′ = y0, token for token.
        distinct: distinct-1, -2 and -3 of annotated and of synthetic responses.
        repetition: share of repeated 4-grams within a response, for the same two.
        foreign_anchors: number of proto-synthetic responses that the initial policy did not sample,
            over all rows.
    """

    rows: int
    tokens: dict[str, float]
    same_as_annotated: float
    same_as_proto: float
    distinct: dict[str, list[float]]
    repetition: dict[str, float]
    foreign_anchors: int


class PolicyFigures(BaseModel):
    """Figures of an iteration's triplets under the policy that it trained; means, in nats.

    Attributes:
        policy: the policy's fingerprint.
        rows: number of triplets scored.
        logps, logps_per_token, rewards: by response.
        gap: log π(y|x) − log π(y′|x), with the ends of its 95% confidence interval (figure 7).
        table: counts of triplets [r(y) > r(y′), r(y) ≤ r(y′)] × [log π(y) > log π(y′), ≤]
            (figure 3).
        saturated: share of triplets whose gradient is weighted by less than `SATURATED`, for the
            current term, the historical term, and both together.
    """

    policy: str
    rows: int
    logps: dict[str, float]
    logps_per_token: dict[str, float]
    rewards: dict[str, float]
    gap: tuple[float, float | None, float | None]
    table: list[list[int]]
    saturated: dict[str, float]


class IterationFigures(BaseModel):
    """One iteration's figures; `policy` is None if its triplets were not scored."""

    iteration: int
    sampling: Sampling
    triplets: TripletFigures
    policy: PolicyFigures | None


class Method(NamedTuple):
    """Settings that decide rewards and gradients: α, the β in force, and ℓ."""

    alpha: float
    beta: float
    loss: str


def sampling_figures(run: RunDirectory, number: int) -> Sampling:
    """Read the counts in the metadata of an iteration's training triplets."""
    metadata = read_metadata(run.iteration(number).triplets("train"), verify=False)
    return Sampling(
        iteration=number,
        sampled=metadata["sampled"],
        tokens=metadata["tokens"],
        cut=metadata["finish_reasons"].get("length", 0),
    )


def policy_figures(
    scores: Scores, tokens: np.ndarray, method: Method, reference: np.ndarray | None = None
) -> PolicyFigures:
    """Compute the figures of scored triplets.

    Args:
        tokens: (n, 3) response token counts of the scored rows.
        reference: (n, 3) log-probabilities under the frozen policy, for the methods whose rewards
            are relative to it (eq. 3, 9).
    """
    import torch

    from axolotl_tspin.training.metrics import rewards_of, saturated_triplets

    logps = scores.logps
    rewards = rewards_of(logps, method.alpha, reference)
    gap = logps[:, 0] - logps[:, 1]
    error = NORMAL_95 * gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
    reward_order = rewards[:, 0] > rewards[:, 1]
    likelihood_order = gap > 0
    table = [
        [int(((reward_order == a) & (likelihood_order == b)).sum()) for b in (True, False)]
        for a in (True, False)
    ]
    current, historical = torch.from_numpy(rewards[:, :2] - rewards[:, 1:]).unbind(dim=1)
    saturated = saturated_triplets(current, historical, beta=method.beta, loss=method.loss)
    return PolicyFigures(
        policy=scores.policy,
        rows=len(gap),
        logps=_by_response(logps.mean(axis=0)),
        logps_per_token=_by_response((logps / np.maximum(tokens, 1)).mean(axis=0)),
        rewards=_by_response(rewards.mean(axis=0)),
        gap=(float(gap.mean()), *_interval(float(gap.mean()), error)),
        table=table,
        saturated={name: float(found.double().mean()) for name, found in saturated.items()},
    )


def triplet_figures(run: RunDirectory, number: int, rows: np.ndarray) -> TripletFigures:
    """Compute the figures of the given rows of an iteration's triplets."""
    initial = run.initial_policy()
    ids: dict[str, list[list[int]]] = {name: [] for name in RESPONSES}
    columns = [f"{name}_ids" for name in RESPONSES]
    foreign = first = 0
    with open_groups(run.iteration(number).triplets("train")) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[*columns, "proto_synthetic_policy"])
            policies = table["proto_synthetic_policy"].to_pylist()
            foreign += sum(policy != initial for policy in policies)
            wanted = table.take(rows[(rows >= first) & (rows < first + table.num_rows)] - first)
            for name in RESPONSES:
                ids[name] += wanted[f"{name}_ids"].to_pylist()
            first += table.num_rows
    y, s, p = (ids[name] for name in RESPONSES)
    return TripletFigures(
        rows=len(rows),
        tokens={name: float(np.mean([len(r) for r in ids[name]])) for name in RESPONSES},
        same_as_annotated=float(np.mean([a == b for a, b in zip(s, y, strict=True)])),
        same_as_proto=float(np.mean([a == b for a, b in zip(s, p, strict=True)])),
        distinct={
            name: [distinct_n(ids[name], n) for n in N_GRAMS] for name in ("annotated", "synthetic")
        },
        repetition={name: repetition(ids[name]) for name in ("annotated", "synthetic")},
        foreign_anchors=foreign,
    )


def tokens_of_rows(triplets: Path, rows: np.ndarray) -> np.ndarray:
    """(len(rows), 3) response token counts."""
    with open_groups(triplets) as file:
        lengths = [
            [len(ids) for ids in file.read([f"{name}_ids"])[0].to_pylist()] for name in RESPONSES
        ]
    return np.array(lengths).T[rows]


def iteration_figures(
    run: RunDirectory, number: int, config: TSpinConfig, scores: Scores | None
) -> IterationFigures:
    """Compute an iteration's figures.

    Args:
        scores: scores of its triplets under the policy that it trained, if there are any.
    """
    triplets = run.iteration(number).triplets("train")
    rows = (
        scores.rows
        if scores
        else rows_to_score(read_metadata(triplets, verify=False)["rows"], config.diagnostics)
    )
    policy = None
    if scores:
        reference = reference_logps(run, number)
        policy = policy_figures(
            scores,
            tokens_of_rows(triplets, rows),
            method_of(run, number, config),
            None if reference is None else reference[rows],
        )
    return IterationFigures(
        iteration=number,
        sampling=sampling_figures(run, number),
        triplets=triplet_figures(run, number, rows),
        policy=policy,
    )


def method_of(run: RunDirectory, number: int, config: TSpinConfig) -> Method:
    """Read the method that an iteration was trained with."""
    record = run.iteration(number).training_record()
    return Method(*(record.get(name, getattr(config, name)) for name in Method._fields))


def read_figures(run: RunDirectory, number: int) -> IterationFigures | None:
    """Read an iteration's stored figures; None if there are none, or if another version wrote
    them."""
    try:
        return IterationFigures.model_validate_json(run.iteration(number).figures.read_text())
    except (OSError, ValidationError):
        return None


def run_figures(run: RunDirectory, config: TSpinConfig) -> list[IterationFigures]:
    """Read the figures of every trained iteration, and compute those that were not stored, as far
    as that is possible without a policy."""
    found = []
    for number in range(config.iterations):
        if run.step_of(number).step != "done":
            break
        figures = read_figures(run, number)
        found.append(figures or iteration_figures(run, number, config, kept_scores(run, number)))
    return found


def keep_figures(run: RunDirectory, number: int, config: TSpinConfig) -> None:
    """Compute and store the figures of a trained iteration, with its scores if it has any."""
    figures = iteration_figures(run, number, config, kept_scores(run, number))
    write_json(run.iteration(number).figures, json.loads(figures.model_dump_json()))


def _interval(mean: float, error: float) -> tuple[float | None, float | None]:
    return (mean - error, mean + error) if math.isfinite(error) else (None, None)


def _by_response(values: np.ndarray) -> dict[str, float]:
    return dict(zip(RESPONSES, map(float, values), strict=True))
