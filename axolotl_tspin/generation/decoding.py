"""Cheaper decoding for transformers' generation: a cache with room, attention without copies of
grouped heads, one random number a token, every row's own end.

The first three are what transformers does, with less work: its cache is copied with every token,
under a padding mask its `sdpa` repeats keys and values for every query head, and its sampling draws
a random number for every token of the vocabulary. Its end tokens are the whole batch's.
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

from axolotl_tspin.policies import base_of

DECODING = "t_spin_decoding"
"""The name of this attention: `model.set_attn_implementation(DECODING)`."""

ROOM = 32
"""Tokens that a cache can take before it is copied to a larger one."""


class RoomyLayer(DynamicLayer):
    """A DynamicLayer that is copied every `ROOM` tokens; `keys` and `values` are views."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stores: tuple[Tensor, Tensor] | None = None
        self._view: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, length = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        # Rows that left the batch left it through a copy, which has no room.
        stores = self._stores if self.keys is self._view else None
        if stores is None or stores[0].shape[-2] < length:
            rows, heads, _, _ = key_states.shape
            stores = (
                key_states.new_empty(rows, heads, length + ROOM, key_states.shape[-1]),
                value_states.new_empty(rows, heads, length + ROOM, value_states.shape[-1]),
            )
            if self.keys is not None and self.values is not None and old:
                stores[0][:, :, :old] = self.keys
                stores[1][:, :, :old] = self.values
        stores[0][:, :, old:length] = key_states
        stores[1][:, :, old:length] = value_states
        self._stores = stores
        self.keys = self._view = stores[0][:, :, :length]
        self.values = stores[1][:, :, :length]
        return self.keys, self.values


def give_room(cache: DynamicCache) -> None:
    """Let a cache's full-attention layers take further tokens without a copy each."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            roomy = RoomyLayer()
            roomy.lazy_initialization(layer.keys, layer.values)
            roomy.keys, roomy.values = layer.keys, layer.values
            cache.layers[number] = roomy


class RowSampler(LogitsProcessor):
    """Draws every row's token from its own seed, whatever else is in the batch.

    Inverts the cumulative distribution (float64) at one uniform number a token, and leaves the
    drawn token alone in the scores, so that greedy decoding takes it.

    Args:
        seeds: of the rows.
        prompt_length: tokens of `input_ids` before the first one that is drawn.
        limit: most tokens that are drawn for a row.
    """

    def __init__(self, seeds: Sequence[int], prompt_length: int, limit: int) -> None:
        self._prompt_length = prompt_length
        self._uniform = torch.stack(
            [
                torch.rand(
                    limit, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
                )
                for seed in seeds
            ]
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch."""
        self._uniform = self._uniform[list(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) scores, −inf but for the drawn tokens."""
        uniform = self._uniform[:, input_ids.shape[1] - self._prompt_length, None]
        cumulative = scores.float().softmax(dim=1).cumsum(dim=1, dtype=torch.float64)
        point = uniform.to(scores.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


class RowStops(StoppingCriteria):
    """Ends every row at its own stop tokens, which rows of several data sets do not share.

    Args:
        stop_ids: of the rows.
    """

    def __init__(self, stop_ids: Sequence[Sequence[int]], device: torch.device) -> None:
        most = max(map(len, stop_ids))
        # Filled up with what is no token.
        padded = [[*ids, *[-1] * (most - len(ids))] for ids in stop_ids]
        self._stop_ids = torch.tensor(padded, dtype=torch.long, device=device)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""
        self._stop_ids = self._stop_ids[rows]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """(rows,) bool: the rows that have ended with their last token."""
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
    """transformers' attention interface: `sdpa`, but for one new token and grouped heads the
    queries of a group stand side by side over their one key head."""
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if length > 1 or groups == 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query.view(rows, key.shape[1], groups, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


def use_decoding_attention(model: Any) -> None:
    """Have a model that attends by `sdpa` decode this way."""
    base = base_of(model)
    if base.config._attn_implementation == "sdpa" and base._supports_attention_backend:
        base.set_attn_implementation(DECODING)


AttentionInterface.register(DECODING, decoding_attention)
AttentionMaskInterface.register(DECODING, sdpa_mask)
