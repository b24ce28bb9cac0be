"""Attention over shared-prefix rows: a response sees its prompt and itself, nothing else.

It is registered with transformers' attention and mask interfaces under `STRUCTURED`, so every
model that supports custom attention can use it (torch and transformers only).
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axolotl_tspin.triplets import TripletSpan

STRUCTURED = "t_spin"
"""Name of this attention: `model.set_attn_implementation(STRUCTURED)`. Outside
`structured_attention` it is transformers' `sdpa`."""

BLOCK = 128
"""FlexAttention's own block size."""

MASK_QUERIES = 8 * BLOCK
"""Queries whose visibility is computed at a time."""

Rows = tuple[tuple[TripletSpan, ...], ...]


@dataclass(frozen=True)
class StructuredMask:
    """Stand-in for a mask that layers get: each row's triplets, and the layer's sliding window."""

    rows: Rows
    window: int | None


_current = threading.local()


@contextlib.contextmanager
def structured_attention(rows: Rows | None) -> Iterator[None]:
    """Make forwards of a model under `STRUCTURED` attend as `rows` says, within this context.

    The model makes its masks once per forward, so a recomputation in the backward pass (gradient
    checkpointing) may run outside. Give the model no `attention_mask`.
    """
    before = getattr(_current, "rows", None)
    _current.rows = rows
    try:
        yield
    finally:
        _current.rows = before


def structured_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *args: Any,
    local_size: int | None = None,
    device: torch.device | None = None,
    **kwargs: Any,
) -> Any:
    """Implement transformers' mask interface: a `StructuredMask`, or on CUDA a `BlockMask`; outside
    `structured_attention` the mask that `sdpa` takes. `local_size` is the layer's sliding
    window."""
    rows = getattr(_current, "rows", None)
    if rows is None:
        return sdpa_mask(
            batch_size, q_length, kv_length, *args, local_size=local_size, device=device, **kwargs
        )
    if device is not None and torch.device(device).type == "cuda":
        return block_mask(rows, q_length, local_size, torch.device(device))
    return StructuredMask(rows, local_size)


def structured_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface.

    Args:
        query: (rows, heads, length, size); `key` and `value` may have fewer heads.
        attention_mask: made by `structured_mask`.

    Returns:
        (rows, length, heads, size), 0 on padding.

    Raises:
        NotImplementedError: the layer asks for sinks or a position bias.
    """
    common = {"scaling": scaling, "dropout": dropout, **kwargs}
    if isinstance(attention_mask, BlockMask):
        output, _ = flex_attention_forward(
            module, query, key, value, attention_mask, softcap=softcap, **common
        )
        return output, None
    if not isinstance(attention_mask, StructuredMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **common)
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"no attention with `{name}` over shared-prefix rows")
    attend = functools.partial(
        _attend, scaling=scaling, dropout=dropout, softcap=softcap, window=attention_mask.window
    )
    length = query.shape[2]
    outputs = []
    for row, spans in enumerate(attention_mask.rows):
        q, k, v = (x[row : row + 1] for x in (query, key, value))
        parts = []
        for span in spans:
            begin = span.start + span.prompt
            prompt = slice(span.start, begin)
            parts.append(attend(q[:, :, prompt], k[:, :, prompt], v[:, :, prompt]))
            for tokens in span.responses:
                response = slice(begin, begin + tokens)
                begin += tokens
                seen = [torch.cat([x[:, :, prompt], x[:, :, response]], dim=2) for x in (k, v)]
                parts.append(attend(q[:, :, response], *seen))
        output = torch.cat(parts, dim=2)
        outputs.append(F.pad(output, (0, 0, 0, length - output.shape[2])))
    return torch.cat(outputs).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention in which the last query has the position of the last key."""
    queries, keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if queries == 0:
        return query
    if window is not None and window >= keys:
        window = None
    if softcap is None:
        plainly_causal = queries == keys and window is None
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if plainly_causal else causal_mask(queries, keys, window, query.device),
            dropout_p=dropout,
            is_causal=plainly_causal,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    mask = causal_mask(queries, keys, window, query.device)
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return F.dropout(weights.to(query.dtype), dropout) @ value


@functools.lru_cache(maxsize=64)
def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool, True where a query sees a key; the last ones share a position."""
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = position - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def block_mask(rows: Rows, length: int, window: int | None, device: torch.device) -> BlockMask:
    """Make the same visibility for FlexAttention.

    The result equals `create_block_mask`'s, but is counted `MASK_QUERIES` queries at a time: that
    function holds the dense mask, which is quadratic in the length of a row.
    """
    visible = visibility(rows, length, window, device)
    blocks = -(-length // BLOCK)
    keys = torch.arange(blocks * BLOCK, device=device)
    inside = keys < length
    keys = keys.clamp(max=length - 1)
    seen = torch.zeros(len(rows), 1, blocks, blocks, dtype=torch.int32, device=device)
    for row in range(len(rows)):
        for first in range(0, blocks * BLOCK, MASK_QUERIES):
            queries = slice(first, first + MASK_QUERIES)
            mask = visible(row, 0, keys[queries, None], keys[None])
            mask &= inside[queries, None] & inside[None]
            counts = mask.view(-1, BLOCK, blocks, BLOCK).sum(dim=(1, 3))
            seen[row, 0, first // BLOCK : first // BLOCK + len(counts)] = counts
    full = seen == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_ordered((seen > 0) & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Count the blocks of each row of blocks, and list their columns before the others."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), columns.int()


def visibility(rows: Rows, length: int, window: int | None, device: torch.device | str) -> Any:
    """Make FlexAttention's `mask_mod(batch, head, query, key)` for shared-prefix rows. A padding
    token sees only itself."""
    triplet = torch.zeros(len(rows), length, dtype=torch.int32)
    response = torch.zeros_like(triplet)
    position = torch.zeros_like(triplet)
    for row, spans in enumerate(rows):
        end = spans[-1].end
        triplet[row, end:] = -1 - torch.arange(length - end)
        for number, span in enumerate(spans):
            triplet[row, span.start : span.end] = number
            begin = span.start + span.prompt
            position[row, span.start : begin] = torch.arange(span.prompt)
            for index, tokens in enumerate(span.responses, 1):
                response[row, begin : begin + tokens] = index
                position[row, begin : begin + tokens] = span.prompt + torch.arange(tokens)
                begin += tokens
    triplet, response, position = (x.to(device) for x in (triplet, response, position))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = triplet[b, q] == triplet[b, k]
        read = (response[b, k] == 0) | (response[b, k] == response[b, q])
        visible = same & read & (k <= q)
        if window is not None:
            visible = visible & (position[b, q] - position[b, k] < window)
        return visible

    return mask_mod


AttentionInterface.register(STRUCTURED, structured_attention_forward)
AttentionMaskInterface.register(STRUCTURED, structured_mask)
