"""Status of a run directory: one line per iteration, finished or in progress."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import harness_scores
from axolotl_tspin.diagnostics.figures import read_figures
from axolotl_tspin.diagnostics.findings import Finding, findings_of_run, findings_of_sampling
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.verdicts.evidence import evidence_since_start
from axolotl_tspin.verdicts.verdict import verdict_of, verdict_on_iteration


class IterationStatus(NamedTuple):
    """One iteration.

    Attributes:
        step: "generate", "train" or "done".
        rows, sampled: number of prompts, and of responses sampled in this iteration so far.
        dropped: number of the data sets' rows that are not prompts of the run, by kind.
        tokens: number of tokens of these responses.
        generation_seconds: seconds spent on finished blocks.
        training: optimizer steps done, and steps in all.
        loss, current_advantage, historical_advantage: values logged last (advantages in nats).
        training_seconds: seconds of the last call that trained.
        policy: the trained policy's fingerprint.
        gap: log π(y|x) − log π(y′|x) under the trained policy, the mean over the scored triplets.
        saturated: share of triplets without a gradient, as logged last.
        scores: scores of lm-evaluation-harness, by task.
        verdict: verdict on the trained policy, against the one that the iteration started from.
        verdict_since_start: verdict on it against the initial policy.
        warnings: texts of the warnings about the iteration.
    """

    iteration: int
    step: str
    rows: int
    sampled: int
    dropped: dict[str, int]
    tokens: int
    generation_seconds: float | None
    training: tuple[int, int] | None
    loss: float | None
    current_advantage: float | None
    historical_advantage: float | None
    training_seconds: float | None
    policy: str | None
    folder: str
    model: str | None
    gap: float | None
    saturated: float | None
    scores: dict[str, float]
    verdict: dict[str, str] | None
    verdict_since_start: dict[str, str] | None
    warnings: list[str]


def run_status(run: RunDirectory, config: TSpinConfig) -> list[IterationStatus]:
    """List the status of every iteration that has begun, and of the one that is due."""
    due = run.due(config.iterations)
    findings = findings_of_run(run, config)
    untrained = run.iteration(due.iteration).triplets("train").exists() and due.step != "done"
    if untrained:
        findings += findings_of_sampling(run, due.iteration, config)
    return [_status(run, number, config, findings) for number in range(due.iteration + 1)]


def _status(
    run: RunDirectory, number: int, config: TSpinConfig, findings: list[Finding]
) -> IterationStatus:
    iteration = run.iteration(number)
    splits = run.splits()
    rows = sampled = tokens = 0
    seconds = None
    for split in splits:
        rows += Prompts(run.prompts(split)).rows
        triplets = iteration.triplets(split)
        if triplets.exists():
            metadata = read_metadata(triplets, verify=False)
            sampled += metadata["sampled"]
            tokens += metadata["tokens"]
            seconds = (seconds or 0.0) + metadata["seconds"]
        else:
            made, theirs = rows_done(iteration.responses(split))
            sampled, tokens = sampled + made, tokens + theirs
    history, progress = iteration.training_log()
    done = iteration.trained_marker.exists()
    figures = read_figures(run, number) if done else None
    verdict = verdict_on_iteration(run, number, config) if done else None
    since_start = evidence_since_start(run, number + 1, config) if done else None
    return IterationStatus(
        iteration=number,
        step=run.step_of(number).step,
        rows=rows,
        sampled=sampled,
        dropped=run.dropped(),
        tokens=tokens,
        generation_seconds=seconds,
        training=progress,
        loss=_last(history, "loss"),
        current_advantage=_last(history, "advantages/current"),
        historical_advantage=_last(history, "advantages/historical"),
        training_seconds=_last(history, "train_runtime"),
        policy=iteration.training_record()["policy"] if done else None,
        folder=str(iteration.path),
        model=str(iteration.model) if iteration.model.exists() else None,
        gap=figures.policy.gap[0] if figures and figures.policy else None,
        saturated=_last(history, "saturation/both"),
        scores={score.task: score.value for score in harness_scores(iteration.path)},
        verdict=verdict._asdict() if verdict else None,
        verdict_since_start=verdict_of(since_start)._asdict() if since_start else None,
        warnings=[f.text for f in findings if f.iteration == number],
    )


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Describe the rows that a run left out, the commonest kind first; "" if there are none."""
    kinds = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{count} × {kind}" for kind, count in kinds)
    total = sum(dropped.values())
    return f"{total} {'row' if total == 1 else 'rows'} dropped: {counts}" if kinds else ""


def _last(history: list[dict[str, Any]], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)
