"""‖∇L‖ split into the current and the historical part (torch only).

They answer an open question on gradient collapse: does the historical term keep the gradient from
vanishing once the current advantages have saturated?
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("current", "historical")


class GradientParts:
    """The gradients of the loss's two terms over the micro-batches of one optimizer step.

    Each part takes a backward pass in addition to the training's. `.grad` and the random state are
    restored, so measuring does not change the training. While a step is measured, two float32
    copies of the trainable parameters are held.

    Args:
        policy: the policy inside DDP's wrapper, so that this rank's gradients stay local.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        self._sums = {
            part: [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters]
            for part in PARTS
        }

    def add(self, parts: Callable[[], Sequence[Tensor]]) -> None:
        """Add a micro-batch.

        Args:
            parts: runs a forward pass and returns the two terms (scalars) as this micro-batch adds
                them to the step's loss. It is called once per term, as some heads' graphs serve
                only one backward pass.
        """
        held = [p.grad for p in self._parameters]
        devices = sorted({p.device for p in self._parameters if p.is_cuda}, key=str)
        try:
            for index, part in enumerate(PARTS):
                for parameter in self._parameters:
                    parameter.grad = None
                # Both parts and the training's own pass draw the same dropout.
                with torch.random.fork_rng(devices=devices):
                    term = parts()[index]
                    if not term.requires_grad:
                        continue  # β = 0: the historical term is not in the graph
                    term.backward()
                for parameter, total in zip(self._parameters, self._sums[part], strict=True):
                    if parameter.grad is not None:
                        total += parameter.grad
        finally:
            for parameter, gradient in zip(self._parameters, held, strict=True):
                parameter.grad = gradient

    def norms(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Compute ‖∇‖ of each part. Every rank must call this: gradients are averaged first."""
        norms = {}
        for part, sums in self._sums.items():
            total = torch.zeros((), dtype=torch.float64)
            for gradient in sums:
                total += mean_over_ranks(gradient).double().pow(2).sum().cpu()
            norms[part] = total.sqrt().item()
        return norms


def obstacle_to_measuring(trainer: Any) -> str | None:
    """Explain why a trainer's gradients cannot be split on this rank; None if they can."""
    if trainer.is_deepspeed_enabled:
        return "DeepSpeed shards or reduces gradients as they are made"
    if trainer.is_fsdp_enabled:
        return "FSDP shards the parameters"
    if trainer.args.fp16:
        return "fp16 gradients underflow without the loss scale of the training's own pass"
    if any(type(p).__name__ == "DTensor" for p in trainer.model.parameters()):
        return "tensor parallelism shards the parameters"
    return None
