"""Formats of numbers in the tables of the commands."""


def duration(seconds: float | None) -> str:
    """Format seconds in at most eight characters; "" for None."""
    if seconds is None:
        return ""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{amount(seconds // 3600)} h"


def amount(number: float) -> str:
    """Format a number in at most six characters."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if unit == "k" else size
            return f"{number / scale:.4g}{unit}"
    return f"{number:.4g}"


def figure(value: float | None) -> str:
    """Format a figure in at most nine characters; "" for None."""
    return "" if value is None else f"{value:.3g}"


def disk_size(size: int) -> str:
    """Format bytes on a disk in at most nine characters."""
    return f"{size / 1e9:.2f} GB" if size < 9.99e11 else f"{amount(size / 1e12)} TB"


def memory_size(size: int) -> str:
    """Format bytes of memory."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**26 else f"{size / 2**20:.2f} MiB"
