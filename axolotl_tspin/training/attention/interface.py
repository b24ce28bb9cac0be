"""Registration of structured attention with transformers, and the choice of a layer's backend."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.flash import attend_flash, obstacle_to_flash
from axolotl_tspin.training.attention.per_part import (
    attend_in_full,
    attend_per_part,
    causal_mask,
    needs_scores,
)
from axolotl_tspin.training.attention.varlen import attend_varlen, obstacle_to_varlen
from axolotl_tspin.training.layouts import BatchIndices
from axolotl_tspin.training.layouts.segments import Segments

STRUCTURED = "t_spin"
"""Name of this attention, for `use_attention`. Outside `structured_attention` it is transformers'
`sdpa`, with the soft caps and sinks that this one leaves out."""

BACKENDS: dict[str, tuple[Callable[..., str | None], Callable[..., Tensor]]] = {
    "varlen": (obstacle_to_varlen, attend_varlen),
    "flash": (obstacle_to_flash, attend_flash),
    "per part": (lambda query, value, layer: None, attend_per_part),
}
"""Name → what finds an obstacle, and the backend; the first without an obstacle is taken."""

_current = threading.local()


@contextlib.contextmanager
def structured_attention(segments: Segments | None, indices: BatchIndices) -> Iterator[None]:
    """Make forwards of a model under `STRUCTURED` attend as a batch's plan says, within this
    context; None leaves attention as it is.

    The model makes its masks once per forward, so a recomputation in the backward pass (gradient
    checkpointing) may run outside. Give the model no `attention_mask`.
    """
    before = getattr(_current, "plan", None)
    _current.plan = None
    if segments is not None:
        cumulative = indices.cu_queries.int(), indices.cu_keys.int()
        _current.plan = StructuredMask(segments, *cumulative, window=None)
    try:
        yield
    finally:
        _current.plan = before


def structured_mask(
    *args: Any,
    local_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """Implement transformers' mask interface: a `StructuredMask`; outside `structured_attention`
    the mask that `sdpa` takes. `local_size` is the layer's sliding window."""
    plan = getattr(_current, "plan", None)
    if plan is None:
        return sdpa_mask(*args, local_size=local_size, **kwargs)
    return dataclasses.replace(plan, window=local_size)


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
        (rows, length, heads, value's size).

    Raises:
        NotImplementedError: the layer asks for a position bias.
    """
    if kwargs.get("position_bias") is not None and isinstance(attention_mask, StructuredMask):
        raise NotImplementedError("no attention with `position_bias` over shared-prefix rows")
    layer = Layer(scaling, dropout, softcap, kwargs.get("s_aux"))
    if isinstance(attention_mask, StructuredMask):
        _, attend = BACKENDS[backend_of(query, value, layer)]
        return attend(query, key, value, attention_mask, layer), None
    if needs_scores(layer):
        if attention_mask is None:
            attention_mask = causal_mask(query.shape[2], key.shape[2], None, query.device)
        output = attend_in_full(query, key, value, attention_mask, layer)
        return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )


def backend_of(query: Tensor, value: Tensor, layer: Layer) -> str:
    """Name the backend that computes a layer."""
    return next(
        name for name, (obstacle, _) in BACKENDS.items() if obstacle(query, value, layer) is None
    )


def use_attention(model: Any, implementation: str) -> str:
    """Set the attention implementation of a transformers model and of modules in it that hold a
    copy of its configuration; return the previous one."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == before != implementation:
            config._attn_implementation = implementation
    return before


AttentionInterface.register(STRUCTURED, structured_attention_forward)
AttentionMaskInterface.register(STRUCTURED, structured_mask)
