"""Progress display of the sampling: rows, tokens per second, time left."""

import time
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from axolotl_tspin.logs import console, get_logger

LOG = get_logger(__name__)
SECONDS_BETWEEN_LOGS = 30.0


class Progress:
    """Progress bar on a terminal, or a line every half minute in a log.

    Args:
        total: number of rows in all.
        done: number of rows that an earlier call sampled.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total = total
        self._done = self._start_done = done
        self._tokens = self._decoded = 0  # of finished batches, and of the one in work
        self._logged_rows: int | None = None
        self._started = self._logged = time.monotonic()
        self._console = console()
        self._bar = RichProgress(
            TextColumn("sampling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[tokens]:,} tokens  {task.fields[rate]:.0f}/s "),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("sampling", total=total, completed=done, rate=0.0, tokens=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
        if self._logged_rows != self._done:
            self._log()

    def advance(self, rows: int, tokens: int) -> None:
        """Count a batch of sampled rows and their tokens."""
        self._done += rows
        self._tokens += tokens
        self._decoded = 0
        self._show(rows)

    def decoded(self, tokens: int) -> None:
        """Count tokens of the batch that is being sampled."""
        self._decoded += tokens
        self._show(0)

    def _show(self, rows: int) -> None:
        tokens = self._tokens + self._decoded
        self._bar.update(self._task, advance=rows, rate=self._rate(), tokens=tokens)
        if not self._console.is_terminal and time.monotonic() - self._logged > SECONDS_BETWEEN_LOGS:
            self._log()

    def _rate(self) -> float:
        return (self._tokens + self._decoded) / max(time.monotonic() - self._started, 1e-9)

    def _log(self) -> None:
        self._logged, self._logged_rows = time.monotonic(), self._done
        sampled = self._done - self._start_done
        elapsed = self._logged - self._started
        left = (self._total - self._done) * elapsed / sampled if sampled else None
        LOG.info(
            "T-SPIN: %s of %s rows sampled, %s tokens, %.0f a second%s",
            self._done,
            self._total,
            self._tokens + self._decoded,
            self._rate(),
            "" if left is None else f", {left:.0f} s left",
        )
