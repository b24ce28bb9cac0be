"""What some policies do to their head's output (torch only)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def logit_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """Make the function that the policy's forward applies to its head's output: Cohere's scale,
    Granite's divisor, Gemma's soft cap."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    softcap = getattr(config, "final_logit_softcapping", None)

    def to_logits(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return logits

    return to_logits
