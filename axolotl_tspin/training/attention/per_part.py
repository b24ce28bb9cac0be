"""Structured attention part by part, by PyTorch's `scaled_dot_product_attention`.

It runs everywhere, in every type, and knows all that a layer can ask for. Where that function does
not, the scores of one part are written out.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.layouts.segments import Part


def attend_per_part(
    query: Tensor, key: Tensor, value: Tensor, mask: StructuredMask, layer: Layer
) -> Tensor:
    """Implement `backend` for any device and type."""
    # `unbind` and `split`, not slices: the backward of each slice writes all of its row.
    rows = zip(query.unbind(0), key.unbind(0), value.unbind(0), mask.segments.rows, strict=True)
    outputs = [_attend_row(*row, mask.window, layer) for row in rows]
    return torch.cat(outputs).transpose(1, 2).contiguous()


def _attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    window: int | None,
    layer: Layer,
) -> Tensor:
    """(1, heads, length, value's size)."""
    sizes = [part.tokens for part in parts]
    queries, keys, values = (x[None].split(sizes, dim=2) for x in (query, key, value))
    outputs = []
    for number, part in enumerate(parts):
        if part.tokens == 0:
            continue
        k, v = keys[number], values[number]
        if part.prompt is not None:
            k = torch.cat([keys[part.prompt], k], dim=2)
            v = torch.cat([values[part.prompt], v], dim=2)
        outputs.append(_attend(queries[number], k, v, window, layer))
    return torch.cat(outputs, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, window: int | None, layer: Layer) -> Tensor:
    """Causal attention in which the last query has the position of the last key."""
    queries, keys = query.shape[2], key.shape[2]
    if window is not None and window >= keys:
        window = None
    if needs_scores(layer):
        return attend_in_full(
            query, key, value, causal_mask(queries, keys, window, query.device), layer
        )
    causal = queries == keys and window is None
    bias: Tensor | None = None
    if not causal and query.is_cuda and window is None:
        # A mask rules the flash kernel out, this bias does not.
        bias = causal_lower_right(queries, keys)
    elif not causal:
        bias = causal_mask(queries, keys, window, query.device)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        dropout_p=layer.dropout,
        is_causal=causal,
        scale=layer.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def needs_scores(layer: Layer) -> bool:
    """True if a layer asks for what `scaled_dot_product_attention` does not know."""
    return layer.softcap is not None or layer.sinks is not None


def attend_in_full(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, layer: Layer) -> Tensor:
    """Attention whose scores are written out, in at least float32.

    Args:
        query: (rows, heads, queries, size); `key` and `value` may have fewer heads.
        seen: (queries, keys) bool, or with dimensions for rows and heads before them.

    Returns:
        (rows, heads, queries, value's size).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if layer.scale is None else layer.scale
    scores = query @ key.transpose(2, 3) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    # Not −∞, which would make padding that sees nothing not a number.
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if layer.sinks is not None:
        sinks = layer.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1).to(value.dtype)
    if layer.sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights, layer.dropout) @ value


@functools.lru_cache(maxsize=64)
def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool, True where a query sees a key; the last ones share a position."""
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = position - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
