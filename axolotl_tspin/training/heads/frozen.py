"""The way through a head that is not trained (torch only).

The loss gives each token's log-probability one weight. So the derivative by its hidden state can be
made in the forward pass and multiplied by that weight in the backward pass: two products with the
head's weight, and no logits are kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from axolotl_tspin.training.heads.base import in_chunks
from axolotl_tspin.training.heads.in_place import logps_and_derivatives


class _FrozenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        chunk_logps: Callable[[Tensor, Tensor], Tensor],
        chunks: int,
    ) -> Tensor:
        parts = in_chunks(chunks, hidden, targets)
        pairs = [logps_and_derivatives(chunk_logps, *part) for part in parts]
        logps, derivatives = map(torch.cat, zip(*pairs, strict=True))
        ctx.save_for_backward(derivatives)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (derivatives,) = ctx.saved_tensors
        return (derivatives * gradient[:, None]).to(derivatives.dtype), None, None, None


def frozen_logps(
    chunk_logps: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunks: int
) -> Tensor:
    """(N,) log-probabilities. What is kept for the backward pass is as large as the hidden states.

    Args:
        chunk_logps: makes a chunk's log-probabilities of its hidden states and targets.
        hidden: (N, size) hidden states.
        targets: (N,) tokens.
    """
    return _FrozenLogps.apply(hidden, targets, chunk_logps, chunks)
