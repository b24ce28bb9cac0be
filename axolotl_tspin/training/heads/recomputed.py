"""The way through any head: chunks that the backward pass makes again (torch only)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from axolotl_tspin.training.heads.base import in_chunks


def recomputed_logps(
    chunk_logps: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunks: int
) -> Tensor:
    """(N,) log-probabilities. A single chunk is kept for the backward pass.

    Args:
        chunk_logps: makes a chunk's log-probabilities of its hidden states and targets.
        hidden: (N, size) hidden states.
        targets: (N,) tokens.
    """
    if chunks == 1:
        return chunk_logps(hidden, targets)
    parts = in_chunks(chunks, hidden, targets)
    return torch.cat([checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in parts])
