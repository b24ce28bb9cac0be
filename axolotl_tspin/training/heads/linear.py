"""The way through a trained head that is a plain linear layer (torch only).

The loss gives each token's log-probability one weight, its factor, which the backward pass
multiplies into the hidden states and their gradient. So the derivatives by the logits do not depend
on it: those of the last chunk are made in the forward pass and kept; the other chunks' logits are
made again.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from axolotl_tspin.training.heads.base import in_chunks
from axolotl_tspin.training.heads.in_place import in_place_logps, logps_and_derivatives


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        to_logps: Callable[[Tensor, Tensor], Tensor],
        chunks: int,
    ) -> Tensor:
        dtype = _product_dtype(weight)
        ctx.dtype, ctx.to_logps, ctx.chunks = dtype, to_logps, chunks
        ctx.save_for_backward(hidden, weight, bias, targets)
        *others, (last, last_targets) = in_chunks(chunks, hidden, targets)
        logps = []
        with torch.autocast(weight.device.type, enabled=False):
            head = _cast(weight, bias, dtype)
            for part, part_targets in others:
                logps.append(to_logps(F.linear(part.to(dtype), *head), part_targets))
            outputs = F.linear(last.to(dtype), *head)
            last_logps, ctx.kept = logps_and_derivatives(to_logps, outputs, last_targets)
        return torch.cat([*logps, last_logps])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        hidden_gradient = (
            torch.empty_like(hidden) if of_hidden else hidden.new_empty(len(hidden), 0)
        )
        weight_sum = bias_sum = None
        parts = in_chunks(ctx.chunks, hidden, targets, gradient[:, None], hidden_gradient)
        with torch.autocast(weight.device.type, enabled=False):
            head = _cast(weight, bias, ctx.dtype)
            # The kept chunk comes first, and is let go before another one is made.
            for part, part_targets, factors, part_gradient in reversed([*parts]):
                narrow = part.to(ctx.dtype)
                derivatives, ctx.kept = ctx.kept, None
                if derivatives is None:
                    outputs = F.linear(narrow, *head)
                    _, derivatives = logps_and_derivatives(ctx.to_logps, outputs, part_targets)
                    del outputs
                if of_hidden:
                    part_gradient.copy_((derivatives @ head[0]) * factors)
                if of_weight:
                    weighted = (narrow * factors).to(ctx.dtype)
                    weight_sum = _add_product(weight_sum, derivatives.T, weighted)
                if of_bias:
                    bias_sum = _add_product(bias_sum, derivatives.T, factors.to(ctx.dtype))
                del derivatives
        return (
            hidden_gradient if of_hidden else None,
            None if weight_sum is None else weight_sum.to(weight.dtype),
            None if bias_sum is None else bias_sum[:, 0].to(bias.dtype),
            None,
            None,
            None,
        )


def linear_logps(
    head: nn.Linear,
    to_logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    chunks: int,
) -> Tensor:
    """(N,) log-probabilities. One chunk's derivatives by the logits are kept for the backward pass.

    Args:
        head: the policy's head; its forward is not called.
        to_logits: what the policy does to its head's output.
        hidden: (N, size) hidden states.
        targets: (N,) tokens.
    """

    def to_logps(outputs: Tensor, targets: Tensor) -> Tensor:
        return in_place_logps(to_logits(outputs), targets)

    return _LinearLogps.apply(hidden, head.weight, head.bias, targets, to_logps, chunks)


def is_plain_linear(head: nn.Module, *, hooks: int) -> TypeGuard[nn.Linear]:
    """True if a head's forward is `F.linear` on ordinary parameters, and its only hooks are so many
    before its forward."""
    others = (head._forward_hooks, head._backward_hooks, head._backward_pre_hooks)
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and "forward" not in vars(head)
        and len(head._forward_pre_hooks) == hooks
        and not any(others)
    )


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The data type in which `F.linear` computes now, under autocast or not."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Add a product to a sum, which is in float32 or wider from the second product on."""
    if total is None:
        return a @ b
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)
