"""Log-probabilities of triplets under a policy, outside training."""

from collections.abc import Sequence
from typing import Any

import torch

from axolotl_tspin.training.layouts import on_device, pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.policies import autocast
from axolotl_tspin.triplets import TripletTokens


@torch.no_grad()
def score_triplets(
    model: Any,
    triplets: Sequence[TripletTokens],
    *,
    pad_token_id: int,
    batch_size: int,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """(len(triplets), 3) float64: log π of annotated, synthetic and proto-synthetic response, in
    nats.

    Args:
        model: the policy, on its device.
        batch_size: triplets in one forward.
        precision: type that the forward is autocast to.
    """
    model.eval()
    # Triplets of similar length go together, to keep padding small.
    order = sorted(range(len(triplets)), key=lambda i: sum(map(len, triplets[i])))
    logps = torch.empty(len(triplets), 3, dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = pad_triplets([triplets[i] for i in chunk], pad_token_id=pad_token_id)
        with autocast(model, precision):
            sums, _ = triplet_logps(model, on_device(batch, model.device))
        logps[chunk] = sums.double().cpu()
    return logps
