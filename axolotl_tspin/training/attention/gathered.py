"""Keys and values as variable-length attention reads them: `[x], [x, y], [x, y′], [x, y0]`.

Tokens lie in the first dimension here: (tokens, heads, size), all rows one after another.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from axolotl_tspin.training.layouts.segments import Segments


class _Gather(torch.autograd.Function):
    """Copies each part behind its prompt. The backward adds the copies' gradients up in float32 and
    in a fixed order; autograd would do it in the tensors' type."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        parts = tokens.split(_sizes(segments))
        return torch.cat([parts[number] for number in _copied(segments)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sizes, copied = _sizes(ctx.segments), list(_copied(ctx.segments))
        copies: list[list[Tensor]] = [[] for _ in sizes]
        pieces = gradient.split([sizes[number] for number in copied])
        for number, piece in zip(copied, pieces, strict=True):
            copies[number].append(piece)
        return torch.cat([_total(found) for found in copies if found]), None


def gathered(tokens: Tensor, segments: Segments) -> Tensor:
    """(keys of all segments, heads, size) copies of (tokens, heads, size)."""
    return _Gather.apply(tokens, segments)


def flattened(x: Tensor) -> Tensor:
    """(rows · length, heads, size) view or copy of (rows, heads, length, size)."""
    return x.transpose(1, 2).flatten(0, 1)


def _sizes(segments: Segments) -> list[int]:
    return [part.tokens for row in segments.rows for part in row]


def _copied(segments: Segments) -> Iterator[int]:
    """Numbers of the parts, counted through all rows, in the order of the keys."""
    first = 0
    for row in segments.rows:
        for number, part in enumerate(row):
            if part.tokens and part.prompt is not None:
                yield first + part.prompt
            if part.tokens:
                yield first + number
        first += len(row)


def _total(pieces: list[Tensor]) -> Tensor:
    if len(pieces) == 1:
        return pieces[0]
    dtype = torch.promote_types(pieces[0].dtype, torch.float32)
    total = pieces[0].to(dtype, copy=True)
    for piece in pieces[1:]:
        total += piece
    return total.to(pieces[0].dtype)
