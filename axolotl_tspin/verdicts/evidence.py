"""What an iteration, or a whole run, changed: figures of the policy before and after it.

They are about held-out prompts where there are any, else about a few triplets of the training. A
policy's log-probabilities are computed by the trainer, before its first step and after its last
one. What a policy writes is known once the next generation step has sampled from it.
"""

import json
import re
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_json
from axolotl_tspin.run.logps import all_logps, rows_to_score
from axolotl_tspin.run.tables import DamagedTable, open_groups, read_metadata
from axolotl_tspin.verdicts.answers import is_right
from axolotl_tspin.verdicts.diversity import repetition

MOST_HELD_OUT, MOST_TRAINED_ON = 1000, 64
"""Triplets that are measured, at most, of those held out and of those trained on."""

RESAMPLES, SEED = 1999, 0
MEASURES = (
    "logps/annotated_per_token",
    "logps/annotated",
    "order_per_token",
    "order",
    "accuracy",
    "length_ratio",
    "tokens",
    "cut",
    "empty",
    "repetition",
)
"""Names of the figures: log π(y|x) in nats; the share of prompts whose y is likelier than a fresh
y′ of the policy; the share of right answers; mean tokens of y′, also relative to y; the shares of
y′ that were cut or are empty; the share of repeated 4-grams in a y′."""

When = Literal["before", "after"]


class Figure(BaseModel):
    """A mean over prompts under both policies, and its change with the ends of a 95% interval
    (bootstrap over prompts); None where it is unknown or not finite."""

    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None

    def rose(self, by: float) -> bool:
        """True if it rose by at least this much, and the interval lies above 0."""
        return self.change is not None and self.change >= by and (self.low or 0) > 0

    def fell(self, by: float) -> bool:
        """True if it fell by at least this much, and the interval lies below 0."""
        return self.change is not None and self.change <= -by and (self.high or 0) < 0


class Evidence(BaseModel):
    """What was measured before and after an iteration, or a run.

    Attributes:
        first, last: the policies compared, by the number of iterations that they were trained for.
        held_out: True if the prompts were never trained on.
        prompts: number of prompts.
        figures: by the names in `MEASURES`.
        is_finite: False if a log-probability under the later policy is not finite.
        is_sampled: True if the later policy's responses are known.
        saturated: share of logged triplets without a gradient; None if none was logged.
    """

    first: int
    last: int
    held_out: bool
    prompts: int
    figures: dict[str, Figure]
    is_finite: bool
    is_sampled: bool
    saturated: float | None

    def figure(self, name: str) -> Figure:
        return self.figures.get(name, Figure())


def rows_to_measure(split: str, rows: int) -> np.ndarray:
    """(≤ limit,) numbers of the triplets that are measured, the same in every iteration."""
    return rows_to_score(rows, MOST_HELD_OUT if split == "test" else MOST_TRAINED_ON)


def evidence_of(run: RunDirectory, config: TSpinConfig, first: int, last: int) -> Evidence | None:
    """Compare the policies that were trained for `first` and for `last` iterations.

    Returns:
        None if nothing was measured, as in runs of earlier versions.
    """
    split = "test" if "test" in run.splits() else "train"
    before = _logps(run, first, "before", split)
    after = _logps(run, last - 1, "after", split)
    if before is None or after is None:
        return None
    rows = rows_to_measure(split, triplet_count(run, first, split))
    measured = [
        policy_values(run, config, split, rows, number, logps)
        for number, logps in ((first, before), (last, after))
    ]
    saturations = [
        entry["saturation/both"]
        for t in range(first, last)
        for entry in run.iteration(t).training_log()[0]
        if entry.get("saturation/both") is not None
    ]
    return Evidence(
        first=first,
        last=last,
        held_out=split == "test",
        prompts=len(rows),
        figures={name: figure_of(*(m[name] for m in measured)) for name in MEASURES},
        is_finite=bool(np.isfinite(after).all()),
        is_sampled=bool(np.isfinite(measured[1]["tokens"]).any()),
        saturated=float(np.mean(saturations)) if saturations else None,
    )


def policy_values(
    run: RunDirectory,
    config: TSpinConfig,
    split: str,
    rows: np.ndarray,
    number: int,
    logps: np.ndarray,
) -> dict[str, np.ndarray]:
    """(rows,) values by the names in `MEASURES`, NaN where unknown, of the policy that iteration
    `number` starts from.

    Args:
        rows: the triplets that were measured.
        logps: (rows, 3) log-probabilities under the policy; only those of y are read.
    """
    unknown = np.full(len(rows), np.nan)
    values = dict.fromkeys(MEASURES, unknown)
    y_tokens = np.maximum(_annotated_tokens(run, split, rows), 1)
    values["logps/annotated"] = logps[:, 0]
    values["logps/annotated_per_token"] = logps[:, 0] / y_tokens
    table = _triplets(run, number, split, rows)
    if table is None:
        return values
    # A response kept from an earlier iteration does not tell what the policy writes now.
    fresh = table["synthetic_iteration"].to_numpy() == number
    ids = table["synthetic_ids"].to_pylist()
    s_tokens = np.array([len(i) for i in ids])
    tokens = table["synthetic_tokens"].to_numpy().astype(float)
    values["tokens"] = np.where(fresh, tokens, np.nan)
    values["length_ratio"] = np.where(fresh, s_tokens / y_tokens.mean(), np.nan)
    values["cut"] = np.where(fresh, _is(table, "synthetic_finish_reason", "length"), np.nan)
    values["empty"] = np.where(fresh, tokens == 0, np.nan)
    values["repetition"] = np.where(fresh, [repetition([i]) for i in ids], np.nan)
    if config.answer:
        pattern = re.compile(config.answer)
        right = [
            is_right(pattern, y, s)
            for y, s in zip(
                table["annotated"].to_pylist(), table["synthetic"].to_pylist(), strict=True
            )
        ]
        judged = np.array([np.nan if r is None else float(r) for r in right])
        values["accuracy"] = np.where(fresh, judged, np.nan)
    own = _logps(run, number, "before", split)
    if own is not None:
        sums = own[:, 0] > own[:, 1]
        values["order"] = np.where(fresh, sums, np.nan)
        per_token = own[:, 0] / y_tokens > own[:, 1] / np.maximum(s_tokens, 1)
        values["order_per_token"] = np.where(fresh, per_token, np.nan)
    return values


def figure_of(before: np.ndarray, after: np.ndarray) -> Figure:
    """Compute a figure from (prompts,) values; its change is over the prompts known in both."""
    both = np.isfinite(before) & np.isfinite(after)
    change = (after - before)[both]
    ends = interval(change)
    return Figure(
        before=_mean(before),
        after=_mean(after),
        change=_mean(change),
        low=ends[0],
        high=ends[1],
    )


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Ends of the mean's 95% interval by bootstrap; None for fewer than two values."""
    if len(values) < 2:
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # takes a second to import

    ends = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return float(ends.low), float(ends.high)


def keep_evidence(run: RunDirectory, number: int, config: TSpinConfig) -> Evidence | None:
    """Compute and store what iteration `number` changed, as far as it is known by now."""
    evidence = evidence_of(run, config, number, number + 1)
    if evidence is not None:
        write_json(run.iteration(number).evidence, json.loads(evidence.model_dump_json()))
    return evidence


def read_evidence(run: RunDirectory, number: int, config: TSpinConfig) -> Evidence | None:
    """Read what an iteration changed; compute it where that was not stored."""
    try:
        return Evidence.model_validate_json(run.iteration(number).evidence.read_text())
    except (OSError, ValidationError):
        return evidence_of(run, config, number, number + 1)


def evidence_since_start(run: RunDirectory, trained: int, config: TSpinConfig) -> Evidence | None:
    """Compare the policy that was trained for `trained` iterations with the initial one; None for
    0 iterations, and as for `evidence_of`."""
    if trained <= 1:
        return read_evidence(run, 0, config) if trained else None
    return evidence_of(run, config, 0, trained)


def triplet_count(run: RunDirectory, number: int, split: str) -> int:
    """Number of an iteration's triplets."""
    return int(read_metadata(run.iteration(number).triplets(split), verify=False)["rows"])


def _logps(run: RunDirectory, number: int, when: When, split: str) -> np.ndarray | None:
    path = run.iteration(number).measured(when, split)
    try:
        return all_logps(path) if path.exists() else None
    except DamagedTable:
        return None


def _triplets(run: RunDirectory, number: int, split: str, rows: np.ndarray) -> pa.Table | None:
    path = run.iteration(number).triplets(split)
    if not path.exists():
        return None
    columns = [
        "annotated",
        *(
            f"synthetic{suffix}"
            for suffix in ("", "_ids", "_tokens", "_iteration", "_finish_reason")
        ),
    ]
    with open_groups(path) as file:
        return file.read(columns=columns).take(rows)


def _annotated_tokens(run: RunDirectory, split: str, rows: np.ndarray) -> np.ndarray:
    """(rows,) tokens of the annotated responses."""
    with open_groups(run.prompts(split)) as file:
        ids = file.read(columns=["annotated_ids"])["annotated_ids"]
    return np.array([len(i) for i in ids.take(rows).to_pylist()])


def _is(table: pa.Table, column: str, value: str) -> np.ndarray:
    return np.array(table[column].to_pylist()) == value


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
