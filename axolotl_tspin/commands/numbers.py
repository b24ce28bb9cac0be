"""Formats of numbers in the tables of the commands."""


def seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def amount(number: float) -> str:
    """Format a number in at most six characters."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if unit == "k" else size
            return f"{number / scale:.4g}{unit}"
    return f"{number:g}"


def memory_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**26 else f"{size / 2**20:.2f} MiB"
