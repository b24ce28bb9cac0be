"""The pair of kernels that `in_place` needs (torch only)."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Kernels(NamedTuple):
    """Two functions over logits (N, vocabulary).

    Attributes:
        forward: logits and targets (N,) → (N,) the targets' log-probabilities in nats, and (N,)
            log Σ exp of each row.
        backward: logits, targets, what `forward` returned second, and (N,) the gradient by each
            log-probability; overwrites the logits with the gradient by them.
    """

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], None]
