"""The T-SPIN loss (eq. 7 of arXiv 2601.08198), a pure function of log-probabilities."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("logistic", "exponential")


class TripletLoss(NamedTuple):
    """The loss of a batch of B triplets and what it is made of; every field is (B,).

    `current_advantage` (u) and `historical_advantage` (v) are in nats, not yet times α.
    """

    loss: Tensor
    current: Tensor
    historical: Tensor
    current_advantage: Tensor
    historical_advantage: Tensor


def ell(advantage: Tensor, loss: str) -> Tensor:
    """The monotonically decreasing ℓ of eq. 7, elementwise.

    Args:
        advantage: any shape; already times α.
        loss: "logistic" for −log σ(a), "exponential" for exp(−a). The latter leaves float32's
            range at a < −88, where it is inf (and so is its gradient): sequence-level advantages
            need a small α with it.

    Raises:
        ValueError: `loss` is neither.
    """
    if loss == "logistic":
        return -F.logsigmoid(advantage)
    if loss == "exponential":
        return torch.exp(-advantage)
    raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {loss!r}")


def t_spin_loss(
    annotated_logps: Tensor,
    synthetic_logps: Tensor,
    proto_synthetic_logps: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    loss: str = "logistic",
) -> TripletLoss:
    """ℓ(α·u) + β·ℓ(α·v) for each triplet (eq. 7); no reference policy.

    With log π(z|x) the sum over a response's tokens, u = log π(y|x) − log π(y′|x) is the current
    advantage and v = log π(y′|x) − log π(y0|x) the historical one.

    Args:
        annotated_logps, synthetic_logps, proto_synthetic_logps: (B,) sums of log-probabilities,
            in nats, float32 or wider.
        alpha: scale of both advantages, > 0.
        beta: weight of the historical term, ≥ 0. At 0 the historical term takes no part in the
            graph, so its value, however extreme, cannot reach a gradient.
        loss: "logistic" or "exponential".

    Returns:
        Per-triplet values; the batch's loss is the mean of `.loss`.
    """
    current_advantage = annotated_logps - synthetic_logps
    historical_advantage = synthetic_logps - proto_synthetic_logps
    current = ell(alpha * current_advantage, loss)
    if beta == 0:
        historical = ell(alpha * historical_advantage.detach(), loss)
        total = current
    else:
        historical = ell(alpha * historical_advantage, loss)
        total = current + beta * historical
    return TripletLoss(total, current, historical, current_advantage, historical_advantage)
