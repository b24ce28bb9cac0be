"""The plain layout: three right-padded rows per triplet (torch only)."""

from collections.abc import Sequence
from typing import Any

import torch

from axolotl_tspin.training.layouts.batch import BatchLayout
from axolotl_tspin.triplets import IGNORE_INDEX, TripletTokens


def pad_triplets(
    triplets: Sequence[TripletTokens], *, pad_token_id: int, pad_to_multiple_of: int = 1
) -> dict[str, Any]:
    """Lay out each triplet as three right-padded rows of prompt and response, in one batch.

    Args:
        triplets: B triplets, each prompt of at least one token.
        pad_token_id: fills `input_ids` after a row's end.
        pad_to_multiple_of: the length is rounded up to a multiple of this.

    Returns:
        A batch as `layouts` describes it, of 3·B rows, triplet by triplet in the order of
        `RESPONSES`, with `attention_mask`, 1 on tokens and 0 on padding.
    """
    rows = [(t.prompt, response) for t in triplets for response in t[1:]]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    predicting: list[int] = []
    targets: list[int] = []
    for row, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response])
        labels[row, start:end] = input_ids[row, start:end]
        attention_mask[row, :end] = 1
        predicting += range(row * length + start - 1, row * length + end - 1)
        targets += response
    layout = BatchLayout(
        lengths=tuple(len(response) for _, response in rows),
        responses=tuple((i, i + 1, i + 2) for i in range(0, len(rows), 3)),
    )
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "indices": layout.joined(predicting, targets),
        "layout": layout,
    }


def unpad_triplets(batch: dict[str, Any]) -> list[TripletTokens]:
    """Recover the triplets that `pad_triplets` was given."""
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    lengths = batch["layout"].lengths
    responses = [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]
    return [
        TripletTokens(rows[i][: len(rows[i]) - lengths[i]], *responses[i : i + 3])
        for i in range(0, len(rows), 3)
    ]
