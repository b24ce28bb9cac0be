"""The fast layout: a row holds `x | y | y′ | y0`, triplet after triplet (torch only)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from axolotl_tspin.training.layouts.batch import BatchLayout
from axolotl_tspin.training.layouts.segments import segments_of
from axolotl_tspin.triplets import IGNORE_INDEX, TripletSpan, TripletTokens


def pack_triplets(
    triplets: Sequence[TripletTokens],
    *,
    pad_token_id: int,
    max_tokens_per_row: int | None = None,
    pad_to_multiple_of: int = 1,
) -> dict[str, Any]:
    """Lay out each prompt once, followed by its distinct responses, packed into rows.

    Every response's positions continue its prompt's. Responses of a triplet that are equal token
    for token (y′ = y0 at iteration 0) are computed once. Triplets keep their order; a row takes
    the next one while it fits.

    Args:
        triplets: B triplets, each prompt of at least one token.
        pad_token_id: fills `input_ids` after a row's end.
        max_tokens_per_row: begin a new row rather than exceed it (a longer triplet gets a separate
            row); None packs all triplets into one row.
        pad_to_multiple_of: the length is rounded up to a multiple of this.

    Returns:
        A batch as `layouts` describes it, with `position_ids`, 0 on padding. Its attention is
        correct only within `attention.structured_attention`.
    """
    rows: list[list[TripletSpan]] = [[]]
    row_tokens: list[list[int]] = [[]]
    row_positions: list[list[int]] = [[]]
    row_labels: list[list[int]] = [[]]
    sources: list[tuple[int, int]] = []  # row and offset of each predicting position
    targets: list[int] = []
    lengths: list[int] = []
    owners: list[tuple[int, int, int]] = []
    for triplet in triplets:
        prompt = list(triplet.prompt)
        distinct: list[list[int]] = []
        owner = []
        for response in map(list, triplet[1:]):
            if response not in distinct:
                distinct.append(response)
            owner.append(len(lengths) + distinct.index(response))
        tokens = len(prompt) + sum(map(len, distinct))
        full = max_tokens_per_row is not None and len(row_tokens[-1]) + tokens > max_tokens_per_row
        if full and rows[-1]:
            for new in (rows, row_tokens, row_positions, row_labels):
                new.append([])
        row, start = len(rows) - 1, len(row_tokens[-1])
        span = TripletSpan(start, len(prompt), tuple(map(len, distinct)))
        rows[-1].append(span)
        row_tokens[-1] += prompt
        row_positions[-1] += range(len(prompt))
        row_labels[-1] += [IGNORE_INDEX] * len(prompt)
        for response in distinct:
            begin = len(row_tokens[-1])
            if response:
                # The prompt's last token predicts every response's first.
                sources.append((row, start + len(prompt) - 1))
                sources += [(row, begin + i) for i in range(len(response) - 1)]
            row_tokens[-1] += response
            row_positions[-1] += range(len(prompt), len(prompt) + len(response))
            row_labels[-1] += response
            targets += response
            lengths.append(len(response))
        owners.append((owner[0], owner[1], owner[2]))

    longest = max(map(len, row_tokens))
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    spans = tuple(map(tuple, rows))
    layout = BatchLayout(tuple(lengths), tuple(owners), spans, segments_of(spans, length))
    return {
        "input_ids": _padded(row_tokens, length, pad_token_id),
        "position_ids": _padded(row_positions, length, 0),
        "labels": _padded(row_labels, length, IGNORE_INDEX),
        "indices": layout.joined([row * length + offset for row, offset in sources], targets),
        "layout": layout,
    }


def unpack_triplets(batch: dict[str, Any]) -> list[TripletTokens]:
    """Recover the triplets that `pack_triplets` was given."""
    rows = batch["input_ids"].tolist()
    prompts: list[list[int]] = []
    distinct: list[list[int]] = []
    for row, spans in zip(rows, batch["layout"].rows, strict=True):
        for span in spans:
            begin = span.start + span.prompt
            prompts.append(row[span.start : begin])
            for length in span.responses:
                distinct.append(row[begin : begin + length])
                begin += length
    return [
        TripletTokens(prompt, *(distinct[i] for i in owner))
        for prompt, owner in zip(prompts, batch["layout"].responses, strict=True)
    ]


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.int64)
