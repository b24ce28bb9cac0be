"""Numbers of rows that the encoding of data sets left out, for the caller that has them encoded.

Axolotl calls the encoding and returns only the rows that are left.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_counts: ContextVar[Counter[str] | None] = ContextVar("rows dropped, by kind", default=None)


@contextmanager
def dropped_rows() -> Iterator[Counter[str]]:
    """Count the rows by kind that are dropped within this block, over all data sets."""
    counts: Counter[str] = Counter()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def count_dropped(kinds: Mapping[str, int]) -> None:
    """Add a data set's numbers to those of the enclosing `dropped_rows`, if there is one."""
    counts = _counts.get()
    if counts is not None:
        counts.update(kinds)
