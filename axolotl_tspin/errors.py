"""The errors that this package raises: bad input, and a step that failed."""

from pathlib import Path


class TSpinError(ValueError):
    """Bad input: the message names the file, row, column or key, and says what to do."""


class BadRow(TSpinError):
    """A row of a data set that cannot be trained on.

    Args:
        message: names the row, says what is wrong and what to do.
        kind: the fault in a few words, the same for all rows that have it; rows are counted by it.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class UntrainedRow(BadRow):
    """A row that its data set excludes from training: dropped and counted, never an error."""


class StepFailed(Exception):
    """A step's command failed.

    Args:
        command: the command as a user would type it.
        status: its exit status, negative for a signal.
        log: the file that has its output; None if its output is on the terminal.
    """

    def __init__(self, command: str, status: int, log: Path | None = None) -> None:
        place = f"all it printed is in {log}" if log else "its own error is above"
        super().__init__(f"`{command}` failed with status {status}; {place}")
        self.status = status


class Interrupted(Exception):
    """The user or the system asked `run` to stop, and its step has ended.

    Args:
        signal: the signal's number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


class Unexpected(Exception):
    """Any other error within a quiet command; its traceback is in the log file."""

    def __init__(self, error: BaseException, log: Path) -> None:
        text = " ".join(str(error).split()) or "no message"
        super().__init__(f"{type(error).__name__}: {text} (its traceback is in {log})")
