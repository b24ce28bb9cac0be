"""Access to the transformers model inside wrappers, its sizes and its precision (torch only)."""

import contextlib
from typing import Any

import torch
from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """Take the policy out of DDP's, DeepSpeed's or a compiler's wrapper; PEFT's stays."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def base_of(policy: Any) -> Any:
    """Get the transformers model, under PEFT or not."""
    return policy.get_base_model() if hasattr(policy, "peft_config") else policy


def vocabulary_size(policy: Any) -> int:
    return policy.config.get_text_config().vocab_size


def autocast(policy: Any, precision: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Run forward passes on the policy's device in bfloat16 or float16; None changes nothing."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(policy.device.type, dtype=precision)
