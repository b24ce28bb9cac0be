"""The errors that this package raises: bad input, and a step that failed."""


class TSpinError(ValueError):
    """Bad input: the message names the file, row, column or key, and says what to do."""


class StepFailed(Exception):
    """A step's command failed; its own error is in the output above.

    Args:
        command: the command as a user would type it.
        status: its exit status, negative for a signal.
    """

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"`{command}` failed with status {status}; its own error is above")
        self.status = status
