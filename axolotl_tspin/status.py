"""What a run directory holds: one line an iteration, finished or in the middle."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.generation.store import Prompts
from axolotl_tspin.run_directory import Iteration, RunDirectory
from axolotl_tspin.tables import read_metadata


class IterationStatus(NamedTuple):
    """One iteration.

    Attributes:
        step: "generate", "train" or "done".
        rows, sampled: prompts, and those with a response sampled in this iteration so far.
        tokens: of these responses.
        generation_seconds: spent on finished blocks.
        training: optimizer steps done, of how many.
        loss, current_advantage, historical_advantage: as logged last (advantages in nats).
        training_seconds: of the last call that trained.
        policy: the trained policy's fingerprint.
    """

    iteration: int
    step: str
    rows: int
    sampled: int
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


def run_status(run: RunDirectory, iterations: int) -> list[IterationStatus]:
    """Every iteration that has begun, and the one that is due."""
    due = run.due(iterations)
    return [_status(run, number) for number in range(due.iteration + 1)]


def _status(run: RunDirectory, number: int) -> IterationStatus:
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
    history, progress = _training(iteration)
    done = iteration.trained_marker.exists()
    return IterationStatus(
        iteration=number,
        step=run.step_of(number).step,
        rows=rows,
        sampled=sampled,
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
    )


def _training(iteration: Iteration) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
    """What the trainer logged, and how far it came: of a finished training, or at its last
    checkpoint."""
    checkpoint = iteration.last_checkpoint()
    if iteration.trained_marker.exists():
        record = iteration.training_record()
        history = record["log_history"]
        steps = max((entry["step"] for entry in history), default=0)
        return history, (steps, steps)
    if checkpoint:
        state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
        return state["log_history"], (state["global_step"], state["max_steps"])
    return [], None


def _last(history: list[dict[str, Any]], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)
