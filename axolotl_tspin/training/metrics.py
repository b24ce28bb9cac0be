"""The figures of a triplet batch, under TRL's metric names, and their running means."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from axolotl_tspin.training.loss import TripletLoss, ell_weight
from axolotl_tspin.triplets import RESPONSES

Array = TypeVar("Array", Tensor, np.ndarray)

SATURATED = 0.01
"""A gradient's weight |ℓ′| below this is saturated: α·u > 4.6 nats for the logistic loss."""


def triplet_metrics(
    losses: TripletLoss,
    logps: Tensor,
    counts: Tensor,
    alpha: float,
    reference_logps: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute every metric of a batch of B triplets, each (B,), float32, detached.

    Args:
        losses: the result of `t_spin_loss`.
        logps: (B, 3) sums of log-probabilities in nats, in the order of `RESPONSES`.
        counts: (B, 3) response token counts.
        alpha: the loss's α: rewards are α·log π (section 3 of the paper).
        reference_logps: (B, 3) the same sums under the frozen policy, for the methods whose
            rewards are relative to it (eq. 3, 9): α·(log π − log π_ref). `logps/…` stay absolute,
            so that the order of rewards can be compared with the order of likelihoods.
    """
    rewards = rewards_of(logps, alpha, reference_logps)
    gap = logps[:, 0] - logps[:, 1]
    per_token = logps / counts.clamp(min=1)
    current, historical = losses.current_advantage, losses.historical_advantage
    metrics = {
        "loss/current": losses.current,
        "loss/historical": losses.historical,
        "rewards/margins": alpha * current,
        "rewards/accuracies": current > 0,
        "rewards/historical_margins": alpha * historical,
        "rewards/historical_accuracies": historical > 0,
        "advantages/current": current,
        "advantages/historical": historical,
        "logps/margins": gap,
        "logps/accuracies": gap > 0,
    }
    for index, name in enumerate(RESPONSES):
        metrics[f"rewards/{name}"] = rewards[:, index]
        metrics[f"logps/{name}"] = logps[:, index]
        metrics[f"logps/{name}_per_token"] = per_token[:, index]
    return {name: value.detach().float() for name, value in metrics.items()}


def saturation_metrics(
    losses: TripletLoss, *, alpha: float, beta: float, loss: str
) -> dict[str, Tensor]:
    """Mark the triplets that have (almost) no gradient left, each (B,), float32 of 0 and 1.

    `saturation/current` and `saturation/historical` look at one term's weight |ℓ′|,
    `saturation/both` at |ℓ′(α·u)| + β·|ℓ′(α·v)|.
    """
    saturated = saturated_triplets(
        alpha * losses.current_advantage.detach(),
        alpha * losses.historical_advantage.detach(),
        beta=beta,
        loss=loss,
    )
    return {f"saturation/{name}": found.float() for name, found in saturated.items()}


def rewards_of(logps: Array, alpha: float, reference_logps: Array | None = None) -> Array:
    """Compute the reward of each response, α·log π, relative to the frozen policy if the method has
    one (eq. 3, 9); same shape and kind (tensor or array) as `logps`."""
    return alpha * (logps if reference_logps is None else logps - reference_logps)


def saturated_triplets(
    current: Tensor, historical: Tensor, *, beta: float, loss: str
) -> dict[str, Tensor]:
    """Mark the triplets with a gradient's weight below `SATURATED`, each bool, of one shape.

    Args:
        current, historical: both advantages, already times α.

    Returns:
        Under `current` and `historical` by each term's |ℓ′|; under `both` by
        |ℓ′(α·u)| + β·|ℓ′(α·v)|.
    """
    weights = {"current": ell_weight(current, loss), "historical": ell_weight(historical, loss)}
    weights["both"] = weights["current"] + beta * weights["historical"]
    return {name: weight < SATURATED for name, weight in weights.items()}


class RunningMeans:
    """Means over all triplets added since the last reset, kept on the device as sums."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._totals: Tensor | None = None

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one value per triplet for every metric; all (B,), the same names each time."""
        self._names = list(metrics)
        values = torch.stack([*metrics.values(), torch.ones_like(next(iter(metrics.values())))])
        totals = values.double().sum(dim=1)
        self._totals = totals if self._totals is None else self._totals + totals

    def totals(self) -> Tensor | None:
        """(metrics + 1,) float64 sums, the last the number of triplets; None when empty."""
        return self._totals

    def means(self, totals: Tensor) -> dict[str, float]:
        """Compute means from totals (this process's, or summed over ranks); resets the sums."""
        *sums, triplets = totals.tolist()
        self._totals = None
        return {name: total / triplets for name, total in zip(self._names, sums, strict=True)}
