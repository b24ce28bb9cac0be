"""Callback that scores triplets at the end of a training, and warns of saturation in its log."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.findings import saturated
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import Scores, rows_to_score, write_scores
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.run.triplets import triplets_of_rows
from axolotl_tspin.training.trainer import TripletTrainer
from axolotl_tspin.triplets import as_row

LOG = get_logger(__name__)


class Recorder(TrainerCallback):
    """Keeps the trainer's log, warns when saturated advantages are first logged, and scores the
    iteration's triplets when the training ends.

    Args:
        trainer: the trainer of this training.
        number: the iteration; None without a run directory (a direct training).
    """

    def __init__(
        self, trainer: TripletTrainer, run: RunDirectory, number: int | None, config: TSpinConfig
    ) -> None:
        self.log_history: list[dict[str, float]] = []
        self._trainer = trainer
        self._run = run
        self._number = number
        self._config = config
        self._has_warned = False
        self._logps: dict[int, list[float]] = {}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._has_warned or not state.is_world_process_zero or not state.log_history:
            return
        finding = saturated(self._number or 0, state.log_history[-1], self._config.alpha)
        if finding:
            LOG.warning("T-SPIN: %s", finding)
            self._has_warned = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log_history[:] = state.log_history
        # In the next iteration, selection by advantage needs the scores of all rows.
        selects = self._config.generation.select == "advantage"
        count = "all" if selects else self._config.diagnostics
        if self._number is None or count == 0:
            return
        triplets = self._run.iteration(self._number).triplets("train")
        rows = rows_to_score(read_metadata(triplets, verify=False)["rows"], count)
        self._logps = self._trainer.score(rows_to_collate(triplets, rows))

    def write_scores(self, policy: str) -> None:
        """Write the scores, on one rank, once the trained policy's fingerprint is known."""
        if self._number is None or not self._logps:
            return
        iteration = self._run.iteration(self._number)
        scores = Scores(np.array(list(self._logps)), np.array(list(self._logps.values())), policy)
        write_scores(iteration.scores, scores, iteration.triplets("train"))


def rows_to_collate(triplets: Path, rows: np.ndarray) -> Dataset:
    """Make rows of triplets that the collator takes, with their numbers in `row`."""
    read = triplets_of_rows(triplets, rows)
    return Dataset.from_list(
        [{"row": int(row), **as_row(triplet)} for row, triplet in zip(rows, read, strict=True)]
    )
