"""Callback that measures the policy before the first step and after the last one."""

from typing import Any, Literal

import numpy as np
from transformers import TrainerCallback

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.before_training import saturated_from_the_start, stop_at
from axolotl_tspin.plugin.callbacks import rows_to_collate
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import Scores, write_scores
from axolotl_tspin.training.trainer import TripletTrainer
from axolotl_tspin.verdicts.evidence import rows_to_measure, triplet_count


class Measurer(TrainerCallback):
    """Scores held-out triplets, and a few of those trained on, at both ends of a training; stops
    it before the first step if it could not learn.

    Args:
        trainer: the trainer of this training.
        number: the iteration.
        beta: the β in force.
        start_policy: fingerprint of the policy that the training starts from.
    """

    def __init__(
        self,
        trainer: TripletTrainer,
        run: RunDirectory,
        number: int,
        config: TSpinConfig,
        *,
        beta: float,
        start_policy: str,
    ) -> None:
        self._trainer = trainer
        self._run = run
        self._number = number
        self._config = config
        self._beta = beta
        self._start_policy = start_policy
        self._after: dict[str, Scores] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the policy that the training starts from, unless it resumes a checkpoint.

        Raises:
            TSpinError: the triplets have no gradient, and `t_spin.on_warning` is `stop`.
        """
        if state.global_step:
            return
        before = {split: self._scores(split, self._start_policy) for split in self._run.splits()}
        if state.is_world_process_zero:
            self._write("before", before)
        finding = saturated_from_the_start(
            self._number, before["train"].logps, self._config, self._beta
        )
        if finding is not None:
            stop_at(finding, self._config)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._after = {split: self._scores(split, "") for split in self._run.splits()}

    def write_after(self, policy: str) -> None:
        """Write the measurements after the training, on one rank, once the trained policy's
        fingerprint is known."""
        self._write("after", {split: s._replace(policy=policy) for split, s in self._after.items()})

    def _scores(self, split: str, policy: str) -> Scores:
        rows = rows_to_measure(split, triplet_count(self._run, self._number, split))
        triplets = self._run.iteration(self._number).triplets(split)
        logps = self._trainer.score(rows_to_collate(triplets, rows))
        return Scores(np.array(list(logps)), np.array(list(logps.values())), policy)

    def _write(self, when: Literal["before", "after"], scores: dict[str, Scores]) -> None:
        iteration = self._run.iteration(self._number)
        for split, found in scores.items():
            write_scores(iteration.measured(when, split), found, iteration.triplets(split))
