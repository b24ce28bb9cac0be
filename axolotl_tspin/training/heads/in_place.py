"""Log-probabilities of tokens whose gradient takes the logits' place (torch only).

Of the four tensors of the logits' size that cross-entropy holds, one is left.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from axolotl_tspin.training.heads.eager import KERNELS as EAGER
from axolotl_tspin.training.heads.kernels import Kernels


class _InPlaceLogps(torch.autograd.Function):
    """Nothing else may use the logits. The backward pass overwrites them, so autograd refuses to
    run it twice."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, kernels: Kernels) -> Tensor:
        logps, normalisers = kernels.forward(logits, targets)
        ctx.save_for_backward(logits, targets, normalisers)
        ctx.kernels = kernels
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normalisers = ctx.saved_tensors
        logits = logits.detach()
        ctx.kernels.backward(logits, targets, normalisers, gradient)
        return logits, None, None


def in_place_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """`token_logps` with less memory, for logits that nothing else uses."""
    kernels = fused_kernels(logits)
    if kernels is None:
        kernels = EAGER
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _InPlaceLogps.apply(logits, targets, kernels)


def logps_and_derivatives(
    make_logps: Callable[[Tensor, Tensor], Tensor], values: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """(N,) log-probabilities that a function makes of values (N, size) and targets (N,), and
    (N, size) the derivative of each by its own values."""
    # This graph ends here: hooks that move a policy's activations elsewhere have no part in it.
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        leaf = values.detach().requires_grad_()
        logps = make_logps(leaf, targets)
        (derivatives,) = torch.autograd.grad(logps.sum(), leaf)
    return logps.detach(), derivatives


def fused_kernels(logits: Tensor) -> Kernels | None:
    """Get the Triton kernels if they take such logits and can be had."""
    fits = logits.is_cuda and logits.dtype != torch.float64 and logits.stride(1) == 1
    return _fused() if fits else None


@functools.cache
def _fused() -> Kernels | None:
    try:
        from axolotl_tspin.training.heads.fused import KERNELS
    except ImportError:
        return None
    return KERNELS


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
