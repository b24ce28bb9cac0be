"""The plain head: all logits of all positions (torch only)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from axolotl_tspin.training.heads.base import response_sums, token_logps
from axolotl_tspin.training.layouts import BatchIndices


def plain_head(model: nn.Module, forward: Callable[[], Any], indices: BatchIndices) -> Tensor:
    """(D,) log-probabilities from all logits of all positions, as the policy returns them."""
    logits = forward().logits.flatten(0, 1).index_select(0, indices.predicting)
    return response_sums(token_logps(logits, indices.targets), indices)
