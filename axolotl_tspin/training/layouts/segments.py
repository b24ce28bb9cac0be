"""Plan of which tokens of shared-prefix rows see each other, as Python numbers (no torch)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from axolotl_tspin.triplets import TripletSpan


class Part(NamedTuple):
    """Consecutive tokens of a row: a prompt, a response, or the padding at the row's end.

    Its tokens see what comes before them in the part. If it has a prompt (the number of another
    part of the same row), they see all of that first.
    """

    tokens: int
    prompt: int | None = None


@dataclass(frozen=True)
class Segments:
    """The parts of every row of a batch. All rows have equally many tokens.

    In the terms of variable-length attention each part that is not empty is a segment of queries.
    Its keys are the prompt's tokens, if it has one, and its own. The last query has the position
    of the last key.
    """

    rows: tuple[tuple[Part, ...], ...]

    @cached_property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """The segments' numbers of queries and of keys, row after row."""
        return tuple(
            (part.tokens, part.tokens + (0 if part.prompt is None else row[part.prompt].tokens))
            for row in self.rows
            for part in row
            if part.tokens
        )

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys of a segment."""
        queries, keys = zip(*self.lengths, strict=True)
        return max(queries), max(keys)

    def cumulative(self) -> Iterator[list[int]]:
        """Where the segments of queries begin and end, then those of keys; segments + 1 each."""
        for lengths in zip(*self.lengths, strict=True):
            yield [0, *itertools.accumulate(lengths)]


def segments_of(rows: tuple[tuple[TripletSpan, ...], ...], length: int) -> Segments:
    """Make the plan of rows of triplets that are padded to `length` tokens."""
    return Segments(tuple(tuple(_parts(spans, length)) for spans in rows))


def _parts(spans: tuple[TripletSpan, ...], length: int) -> list[Part]:
    parts: list[Part] = []
    for span in spans:
        prompt = len(parts)
        parts += [Part(span.prompt), *(Part(tokens, prompt) for tokens in span.responses)]
    padding = length - spans[-1].end
    return [*parts, Part(padding)] if padding else parts
