"""Triplets as token ids, in the terms that all modules share (no torch, no axolotl)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

RESPONSES = ("annotated", "synthetic", "proto_synthetic")
"""The three responses of a triplet, in the order of every axis of length 3."""

IGNORE_INDEX = -100
"""The label of a token that is not part of a response."""

TOKEN_COLUMNS = ("prompt_ids", *(f"{name}_ids" for name in RESPONSES))
"""Columns of a triplets file that hold the fields of `TripletTokens`, in their order."""


class TripletTokens(NamedTuple):
    """One triplet as token ids: the prompt x and the responses y, y′, y0."""

    prompt: Sequence[int]
    annotated: Sequence[int]
    synthetic: Sequence[int]
    proto_synthetic: Sequence[int]


@dataclass(frozen=True)
class TripletSpan:
    """Place of a triplet in a row: `start`, the prompt's tokens, then its responses' tokens."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.prompt + sum(self.responses)


def joined(prompt: Sequence[int], annotated: Sequence[int]) -> dict[str, list[int]]:
    """Join prompt and annotated response to the two columns that Axolotl's own filters need.

    Returns:
        `input_ids` with both, `labels` with −100 on the prompt.
    """
    return {
        "input_ids": [*prompt, *annotated],
        "labels": [IGNORE_INDEX] * len(prompt) + list(annotated),
    }


def parted(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Split a row that `joined` joined into its prompt and its annotated response."""
    prompt_length = sum(label == IGNORE_INDEX for label in row["labels"])
    return row["input_ids"][:prompt_length], row["input_ids"][prompt_length:]


def as_row(triplet: TripletTokens) -> dict[str, list[int]]:
    """Convert a triplet to the row that the collator takes."""
    return {
        **joined(triplet.prompt, triplet.annotated),
        "synthetic_ids": list(triplet.synthetic),
        "proto_synthetic_ids": list(triplet.proto_synthetic),
    }


def from_row(row: Mapping[str, Any]) -> TripletTokens:
    """Read a row that a dataset strategy or `as_row` made."""
    return TripletTokens(*parted(row), row["synthetic_ids"], row["proto_synthetic_ids"])
