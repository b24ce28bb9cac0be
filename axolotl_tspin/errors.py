"""The one error that this package raises for what a user can put right."""


class TSpinError(ValueError):
    """Bad input: the message names the file, row, column or key, and says what to do."""
