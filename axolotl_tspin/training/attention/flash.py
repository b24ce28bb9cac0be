"""Structured attention as flash-attn's variable-length attention, for what PyTorch's lacks."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.varlen import attend_gathered, obstacle_to_flash_kernels

KERNEL_REPOSITORY = "kernels-community/flash-attn2"
"""Where the `kernels` package gets flash-attn from if it is not installed; transformers' own name
for it."""


@functools.cache
def flash_attn_varlen_func() -> Callable[..., Tensor] | None:
    """Find flash-attn's function: installed, else through `kernels`; None if there is neither."""
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func as installed

        return installed
    if importlib.util.find_spec("kernels") is None:
        return None
    from kernels import get_kernel

    try:
        return get_kernel(KERNEL_REPOSITORY).flash_attn_varlen_func
    except Exception:  # no network, or no build for this torch, CUDA or Python
        return None


def obstacle_to_flash(query: Tensor, value: Tensor, layer: Layer) -> str | None:
    """Explain why a layer cannot use this kernel; None if it can."""
    if layer.sinks is not None:
        return "it knows no sinks"
    obstacle = obstacle_to_flash_kernels(query, value)
    # Looked for last: it may be fetched.
    if obstacle is None and flash_attn_varlen_func() is None:
        return "flash-attn is not installed"
    return obstacle


def attend_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: StructuredMask,
    layer: Layer,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Implement `backend`; without a `kernel` by flash-attn's, where `obstacle_to_flash` finds
    nothing."""
    kernel = kernel or flash_attn_varlen_func()
    assert kernel is not None

    def called(*args: Any, scale: float, **kwargs: Any) -> Tensor:
        # `causal` aligns the last query with the last key since flash-attn 2.1.
        return kernel(*args, softmax_scale=scale, causal=True, **kwargs)

    return attend_gathered(
        query,
        key,
        value,
        mask,
        layer,
        called,
        dropout_p=layer.dropout,
        softcap=layer.softcap or 0.0,
    )
