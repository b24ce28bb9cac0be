"""Cheaper decoding for transformers' generation.

- A cache with room: transformers' cache is copied with every token.
- Attention to grouped heads as they are cached: under a padding mask, transformers' `sdpa` repeats
  keys and values for every query head, with every token.
- One random number per sampled token: transformers draws one for every token of the vocabulary.
- Separate stop tokens for every row: transformers has one set for the whole batch.

And a note of rows whose logits were not finite, which transformers would sample from.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    LogitsProcessor,
    StoppingCriteria,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axolotl_tspin.training.policies import base_of

DECODING = "t_spin_decoding"
"""Name of this attention: `model.set_attn_implementation(DECODING)`."""

ROOM = 64
"""Tokens that a cache can take before it is copied to a larger one."""

PART = 256
"""Neighbouring tokens of the vocabulary whose probabilities are summed before one is drawn."""


class RoomyLayer(DynamicLayer):
    """A DynamicLayer that is copied every `ROOM` tokens; `keys` and `values` are views.

    Args:
        tokens: number of tokens to have room for from the start.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._stores: tuple[Tensor, Tensor] | None = None
        self._view: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, length = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        # Other code that changed the layer left tensors without room.
        stores = self._stores if self.keys is self._view else None
        if stores is None or stores[0].shape[-2] < length:
            rows = len(key_states)
            stores = (
                self._room_for(rows, length, key_states),
                self._room_for(rows, length, value_states),
            )
            if self.keys is not None and self.values is not None and old:
                stores[0][:, :, :old] = self.keys
                stores[1][:, :, :old] = self.values
        stores[0][:, :, old:length] = key_states
        stores[1][:, :, old:length] = value_states
        return self._keep(*stores, length)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is None or self.values is None:
            return
        length = self.get_seq_length()
        keys = self._room_for(len(indices), length, self.keys)
        values = self._room_for(len(indices), length, self.values)
        torch.index_select(self.keys, 0, indices, out=keys[:, :, :length])
        torch.index_select(self.values, 0, indices, out=values[:, :, :length])
        self._keep(keys, values, length)

    def _room_for(self, rows: int, length: int, like: Tensor) -> Tensor:
        """(rows, heads, room for `length` tokens and more, size), empty."""
        capacity = max(length + ROOM, self._tokens)
        return like.new_empty(rows, like.shape[1], capacity, like.shape[3])

    def _keep(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        self._stores = (keys, values)
        self.keys = self._view = keys[:, :, :length]
        self.values = values[:, :, :length]
        return self.keys, self.values


def give_room(cache: DynamicCache, tokens: int = 0) -> None:
    """Let a cache's full-attention layers take further tokens without a copy each, at least
    `tokens` in all."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            roomy = RoomyLayer(tokens)
            if layer.keys is not None and layer.values is not None:
                roomy.lazy_initialization(layer.keys, layer.values)
                roomy.keys, roomy.values = layer.keys, layer.values
            cache.layers[number] = roomy


class RowSampler(LogitsProcessor):
    """Draws every row's tokens from the row's own seed, whatever else is in the batch.

    Each token takes one uniform number, at which the cumulative distribution is inverted: first
    over sums of `PART` tokens, then within one of them. Only the drawn token stays in the scores,
    so greedy decoding takes it.

    Args:
        seeds: the rows' seeds.
        prompt_length: tokens of `input_ids` before the first drawn one.
        limit: most tokens that are drawn for a row.
        device: the scores' device.
    """

    def __init__(
        self, seeds: Sequence[int], prompt_length: int, limit: int, device: torch.device
    ) -> None:
        self._prompt_length = prompt_length
        # Drawn on the CPU, so that a seed means the same on every device.
        self._uniform = torch.stack(
            [
                torch.rand(
                    limit, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
                )
                for seed in seeds
            ]
        ).to(device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._uniform = self._uniform[rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) scores, −inf except for the drawn tokens."""
        uniform = self._uniform[:, input_ids.shape[1] - self._prompt_length, None]
        probabilities = scores.float().softmax(dim=1)
        if missing := -probabilities.shape[1] % PART:
            probabilities = F.pad(probabilities, (0, missing))
        parts = probabilities.unflatten(1, (-1, PART))
        part, left = _inverted(parts.sum(dim=2), uniform)
        inside = parts.gather(1, part[:, :, None].expand(-1, 1, PART))[:, 0]
        drawn = (part * PART + _inverted(inside, left)[0]).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


class FiniteRows(LogitsProcessor):
    """Notes on the device in which rows all logits were finite, or −inf beside finite ones."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.finite = torch.ones(rows, dtype=torch.bool, device=device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.finite = self.finite[rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) scores, as they are; NaN counts as the largest."""
        self.finite &= scores.amax(dim=1).isfinite()
        return scores


def _inverted(weights: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the cumulative sums of (rows, N) weights pass a share (rows, 1) of their total.

    Returns:
        (rows, 1) index of a positive weight, and the share of that weight below the point.
    """
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(share * total, total.nextafter(torch.zeros_like(total)))
    # NaN sorts behind all; such a row is refused later, and must not end the device's work here.
    index = torch.searchsorted(cumulative, point, right=True).clamp(max=weights.shape[1] - 1)
    weight = weights.gather(1, index).double()
    return index, (point - (cumulative.gather(1, index) - weight)) / weight


class RowStops(StoppingCriteria):
    """Ends every row at its own stop tokens, which can differ between data sets.

    Args:
        stop_ids: the rows' stop tokens.
    """

    def __init__(self, stop_ids: Sequence[Sequence[int]], device: torch.device) -> None:
        most = max(map(len, stop_ids))
        # −1 is not a token.
        padded = [[*ids, *[-1] * (most - len(ids))] for ids in stop_ids]
        self._stop_ids = torch.tensor(padded, dtype=torch.long, device=device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._stop_ids = self._stop_ids[rows]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """(rows,) bool: the rows whose last token ends them."""
        return (input_ids[:, -1:] == self._stop_ids).any(dim=1)


def decoding_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface as `sdpa`, with fewer copies of keys.

    A single token's queries are put next to each other over their shared key head. For longer
    ones under a mask, a CPU's kernels take grouped heads; elsewhere `sdpa` repeats the keys.
    """
    rows, heads, length, size = query.shape
    grouped = heads != key.shape[1] and kwargs.get("position_bias") is None
    kernel_groups = attention_mask is not None and query.device.type == "cpu"
    if not grouped or (length > 1 and not kernel_groups):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query if length > 1 else query.reshape(rows, key.shape[1], -1, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=length > 1,
    )
    output = output.reshape(rows, heads, length, value.shape[-1])
    return output.transpose(1, 2).contiguous(), None


def use_decoding_attention(model: Any) -> None:
    """Switch a model that uses `sdpa` to this attention."""
    base = base_of(model)
    if base.config._attn_implementation == "sdpa" and base._supports_attention_backend:
        base.set_attn_implementation(DECODING)


AttentionInterface.register(DECODING, decoding_attention)
AttentionMaskInterface.register(DECODING, sdpa_mask)
