"""The errors that this package raises: bad input, and a step that failed."""


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
    """A step's command failed; its own error is in the output above.

    Args:
        command: the command as a user would type it.
        status: its exit status, negative for a signal.
    """

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"`{command}` failed with status {status}; its own error is above")
        self.status = status
