"""The T-SPIN loss (eq. 7 of arXiv 2601.08198), its baseline and its ablations, as one pure function
of log-probabilities.

    method       reward of a response z, over α           historical term
    t_spin       log π_θ(z|x)                             β·ℓ(α·v)             eq. 7
    no_history   log π_θ(z|x)                             none                 "w/o H-A"
    spin         log π_θ(z|x) − log π_θt(z|x)             none                 eq. 3; α is SPIN's λ
    t_spin_ref   log π_θ(z|x) − log π_θt(z|x)             β·ℓ(α·v)             eq. 9

So two things decide the method: whether `reference_logps` are given, and whether `beta` is 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("logistic", "exponential")


class TripletLoss(NamedTuple):
    """The loss of a batch of B triplets and its parts; every field is (B,).

    `current_advantage` (u) and `historical_advantage` (v) are differences of rewards in nats, not
    yet times α. With reference log-probabilities they are relative to the reference.
    """

    loss: Tensor
    current: Tensor
    historical: Tensor
    current_advantage: Tensor
    historical_advantage: Tensor


def ell(advantage: Tensor, loss: str) -> Tensor:
    """Compute the monotonically decreasing ℓ of eq. 7, elementwise.

    Args:
        advantage: any shape; already times α.
        loss: "logistic" for −log σ(a), "exponential" for exp(−a). The latter leaves float32's
            range at a < −88, where it and its gradient are inf, so sequence-level advantages need
            a small α with it.

    Raises:
        ValueError: `loss` is neither.
    """
    if loss == "logistic":
        return -F.logsigmoid(advantage)
    if loss == "exponential":
        return torch.exp(-advantage)
    raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {loss!r}")


def ell_weight(advantage: Tensor, loss: str) -> Tensor:
    """Compute |ℓ′|, the weight of a triplet's gradient (eq. 7, theorem 1), elementwise.

    Args:
        advantage: any shape; already times α.
        loss: "logistic" (σ(−a)) or "exponential" (exp(−a)).
    """
    if loss == "logistic":
        return torch.sigmoid(-advantage)
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
    reference_logps: Tensor | None = None,
) -> TripletLoss:
    """Compute ℓ(α·u) + β·ℓ(α·v) of each triplet (eq. 7; eq. 3 and 9 with `reference_logps`).

    With log π(z|x) the sum over a response's tokens, u = log π(y|x) − log π(y′|x) is the current
    advantage and v = log π(y′|x) − log π(y0|x) the historical one. With a reference policy, the
    same difference under that policy is subtracted from both.

    Args:
        annotated_logps, synthetic_logps, proto_synthetic_logps: (B,) sums of log-probabilities,
            in nats, float32 or wider.
        alpha: scale of both advantages, > 0.
        beta: weight of the historical term, ≥ 0. At 0 the historical term is not in the graph, so
            even an extreme value cannot reach a gradient.
        loss: "logistic" or "exponential".
        reference_logps: (B, 3) the same sums for the three responses under the frozen policy that
            the iteration starts from; None for the methods without a reference.

    Returns:
        Per-triplet values; the batch's loss is the mean of `.loss`.
    """
    current_advantage = annotated_logps - synthetic_logps
    historical_advantage = synthetic_logps - proto_synthetic_logps
    if reference_logps is not None:
        annotated, synthetic, proto_synthetic = reference_logps.unbind(dim=1)
        current_advantage = current_advantage - (annotated - synthetic)
        historical_advantage = historical_advantage - (synthetic - proto_synthetic)
    current = ell(alpha * current_advantage, loss)
    if beta == 0:
        historical = ell(alpha * historical_advantage.detach(), loss)
        total = current
    else:
        historical = ell(alpha * historical_advantage, loss)
        total = current + beta * historical
    return TripletLoss(total, current, historical, current_advantage, historical_advantage)
