"""How triplets are laid out as tensors (torch only)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_tspin.logps import IGNORE_INDEX

RESPONSES = ("annotated", "synthetic", "proto_synthetic")
"""The three responses of a triplet, in the order of every axis of length 3."""


class TripletTokens(NamedTuple):
    """One triplet as token ids: the prompt x and the responses y, y′, y0."""

    prompt: Sequence[int]
    annotated: Sequence[int]
    synthetic: Sequence[int]
    proto_synthetic: Sequence[int]


def pad_triplets(
    triplets: Sequence[TripletTokens], *, pad_token_id: int, pad_to_multiple_of: int = 1
) -> dict[str, Tensor]:
    """Three right-padded rows a triplet, prompt and response, in one batch.

    Args:
        triplets: B triplets, each prompt of at least one token.
        pad_token_id: fills `input_ids` after a row's end.
        pad_to_multiple_of: the length is rounded up to a multiple of this.

    Returns:
        int64 tensors of shape (B, 3, length), the second axis in the order of `RESPONSES`:
        `input_ids`; `attention_mask`, 1 on tokens and 0 on padding; `labels`, the response's
        tokens and −100 on prompt and padding.
    """
    rows = [(t.prompt, response) for t in triplets for response in t[1:]]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for row, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response])
        labels[row, start:end] = input_ids[row, start:end]
        attention_mask[row, :end] = 1
    shape = (len(triplets), 3, length)
    return {
        "input_ids": input_ids.view(shape),
        "attention_mask": attention_mask.view(shape),
        "labels": labels.view(shape),
    }
