"""Structured attention as PyTorch's variable-length attention, one kernel for all segments."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.gathered import flattened, gathered

try:
    from torch.nn.attention.varlen import varlen_attn as _torchs_kernel
except ImportError:  # torch < 2.10
    _torchs_kernel = None  # type: ignore[assignment]

LARGEST_SIZE = 256
"""Largest head size of the kernel."""

Kernel = Callable[..., Any]
"""Called as `varlen_attn`: (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale,
window_size, enable_gqa) → (queries, heads, size)."""

varlen_attn: Kernel | None = _torchs_kernel
"""PyTorch's kernel; None if it has none."""


def obstacle_to_varlen(query: Tensor, value: Tensor, layer: Layer) -> str | None:
    """Explain why a layer cannot use this kernel; None if it can. Source: torch's documentation of
    `varlen_attn`."""
    if varlen_attn is None:
        return f"torch {torch.__version__} has no variable-length attention"
    if layer.dropout:
        return "it knows no dropout"
    if layer.softcap is not None or layer.sinks is not None:
        return "it knows no soft caps or sinks"
    return obstacle_to_flash_kernels(query, value)


def obstacle_to_flash_kernels(query: Tensor, value: Tensor) -> str | None:
    """Explain why no kernel of flash attention takes these tensors; None if one does."""
    if computed_type(query) not in (torch.float16, torch.bfloat16):
        return f"it knows no {computed_type(query)}"
    if max(query.shape[-1], value.shape[-1]) > LARGEST_SIZE:
        return f"it knows no heads larger than {LARGEST_SIZE}"
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        return "it needs an Ampere GPU or a later one"
    return None


def computed_type(query: Tensor) -> torch.dtype:
    """Get the type that a layer computes in: autocast's if it is on. Norms and rotations may have
    left queries and keys in float32 next to values in bfloat16."""
    device = query.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else query.dtype


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: StructuredMask,
    layer: Layer,
    kernel: Kernel | None = None,
) -> Tensor:
    """Implement `backend`; without a `kernel` by `varlen_attn`, where `obstacle_to_varlen` finds
    nothing."""
    kernel = kernel or varlen_attn
    assert kernel is not None
    grouped = query.shape[1] != key.shape[1]
    return attend_gathered(query, key, value, mask, layer, kernel, enable_gqa=grouped)


def attend_gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: StructuredMask,
    layer: Layer,
    kernel: Kernel,
    **arguments: Any,
) -> Tensor:
    """Gather the keys, and call a kernel that takes segments."""
    rows, _, length, size = query.shape
    dtype, value_size = computed_type(query), value.shape[-1]
    query, key, value = (flattened(x).to(dtype) for x in (query, key, value))
    scale = size**-0.5 if layer.scale is None else layer.scale
    # The kernel wants heads of one size. Zeros add nothing to a score or to an output.
    widest = max(size, value_size)
    query, key, value = (F.pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    output = kernel(
        query,
        gathered(key, mask.segments),
        gathered(value, mask.segments),
        mask.cu_queries,
        mask.cu_keys,
        *mask.segments.longest,
        scale=scale,
        # The last key counts, so a window of w positions reaches w − 1 to the left.
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        **arguments,
    )
    return output[..., :value_size].unflatten(0, (rows, length))
