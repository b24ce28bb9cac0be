"""The figures of a triplet batch, under TRL's metric names, and their running means."""

import torch
from torch import Tensor

from axolotl_tspin.layouts import RESPONSES
from axolotl_tspin.loss import TripletLoss, ell_weight

SATURATED = 0.01
"""A gradient's weight |ℓ′| below this counts as saturated: α·u > 4.6 nats for the logistic loss."""


def triplet_metrics(
    losses: TripletLoss,
    logps: Tensor,
    counts: Tensor,
    alpha: float,
    reference_logps: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every metric of a batch of B triplets, each (B,), float32, detached.

    Args:
        losses: what `t_spin_loss` returned.
        logps: (B, 3) sums of log-probabilities in nats, in the order of `RESPONSES`.
        counts: (B, 3) response token counts.
        alpha: the loss's α: rewards are α·log π (section 3 of the paper).
        reference_logps: (B, 3) the same sums under the frozen policy, for the methods whose
            rewards are relative to it (eq. 3, 9): α·(log π − log π_ref). `logps/…` stay absolute,
            so that the order of rewards and the order of likelihoods can be told apart.
    """
    rewards = alpha * (logps if reference_logps is None else logps - reference_logps)
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
    """Which triplets have (almost) no gradient left, each (B,), float32 of 0 and 1.

    `saturation/current` and `saturation/historical` look at one term's weight |ℓ′|,
    `saturation/both` at |ℓ′(α·u)| + β·|ℓ′(α·v)|.
    """
    current = ell_weight(alpha * losses.current_advantage.detach(), loss)
    historical = ell_weight(alpha * losses.historical_advantage.detach(), loss)
    weights = {"current": current, "historical": historical, "both": current + beta * historical}
    return {f"saturation/{name}": (w < SATURATED).float() for name, w in weights.items()}


class RunningMeans:
    """Means over all triplets added since the last reset, kept on the device as sums."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._totals: Tensor | None = None

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one value a triplet for every metric; all (B,), the same names each time."""
        self._names = list(metrics)
        values = torch.stack([*metrics.values(), torch.ones_like(next(iter(metrics.values())))])
        totals = values.double().sum(dim=1)
        self._totals = totals if self._totals is None else self._totals + totals

    def totals(self) -> Tensor | None:
        """(metrics + 1,) float64 sums, the last the number of triplets; None when empty."""
        return self._totals

    def means(self, totals: Tensor) -> dict[str, float]:
        """Means from totals (this process's own, or summed over ranks); resets the sums."""
        *sums, triplets = totals.tolist()
        self._totals = None
        return {name: total / triplets for name, total in zip(self._names, sums, strict=True)}
