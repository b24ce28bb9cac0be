"""A triplet as token ids, and the description of a batch that every layout shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

RESPONSES = ("annotated", "synthetic", "proto_synthetic")
"""The three responses of a triplet, in the order of every axis of length 3."""

IGNORE_INDEX = -100
"""The label of a token that is not part of a response."""


class TripletTokens(NamedTuple):
    """One triplet as token ids: the prompt x and the responses y, y′, y0."""

    prompt: Sequence[int]
    annotated: Sequence[int]
    synthetic: Sequence[int]
    proto_synthetic: Sequence[int]


@dataclass(frozen=True)
class TripletSpan:
    """Where a triplet lies in a row: `start`, the prompt's tokens, then its responses' tokens."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.prompt + sum(self.responses)


@dataclass(frozen=True)
class BatchLayout:
    """What a batch of B triplets holds, as Python numbers (no transfer from the device needed).

    Attributes:
        lengths: token counts of the D distinct responses, in the order of `targets`.
        responses: (B, 3) index of each triplet's responses among the distinct ones. In the padded
            layout D = 3·B; in the shared one equal responses of a triplet are one.
        rows: the triplets of each row of a shared-prefix batch; None in a padded one.
        repeated: how many of the last triplets only fill the batch, so that all ranks have as
            many, and count nowhere: another rank has them too.
    """

    lengths: tuple[int, ...]
    responses: tuple[tuple[int, int, int], ...]
    rows: tuple[tuple[TripletSpan, ...], ...] | None = None
    repeated: int = 0

    @property
    def counted(self) -> int:
        """How many triplets count in the loss: all but the repeated ones."""
        return len(self.responses) - self.repeated
