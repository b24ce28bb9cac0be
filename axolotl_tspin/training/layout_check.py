"""The layout that a training uses, and the check on a real triplet that it is exact."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from axolotl_tspin.training.attention import STRUCTURED
from axolotl_tspin.training.layout_choice import PLAIN, Choice, choose_layout
from axolotl_tspin.training.layouts import on_device, pack_triplets, pad_triplets, triplets_of
from axolotl_tspin.training.logps import response_token_logps
from axolotl_tspin.training.policies import base_of, unwrapped, vocabulary_size
from axolotl_tspin.triplets import TripletTokens

LOG = logging.getLogger(__name__)

TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest mean difference of a token's log-probability, in nats, that rounding explains."""

MOST_PLAIN_LOGITS = 2**29
"""Logits of the plain side of the check: 2 GiB of float32."""


class CheckedLayout:
    """The layout of a training. It is chosen for the policy and compared with the plain layout
    before the first step; where they differ, the plain one replaces it.

    Args:
        model: the policy, not yet wrapped; its attention implementation is set.
        wanted: `t_spin.layout`.
        compiled: True if torch.compile compiles the policy.
        lowest: returns a number's minimum over the ranks.

    Raises:
        TSpinError: the policy cannot take the layout that is wanted.
    """

    def __init__(
        self, model: Any, wanted: str, *, compiled: bool, lowest: Callable[[float], float]
    ) -> None:
        self.choice = choose_layout(model, wanted, compiled=compiled)
        self._lowest = lowest
        self._is_checked = False
        self._plain_attention = ""
        if self.choice.layout == "shared_prefix":
            self._plain_attention = use_structured_attention(model)

    def check(self, model: Any, batch: dict[str, Any], dtype: torch.dtype, *, log: bool) -> None:
        """Compare with the plain layout, once; all ranks use the worst rank's result.

        Args:
            model: the policy as it is trained, wrapped.
            batch: a batch on the policy's device.
            dtype: the type that the training computes in.
            log: True if this process reports the result.
        """
        if self._is_checked:
            return
        self._is_checked = True
        if (self.choice.layout, self.choice.head) == (PLAIN.layout, PLAIN.head):
            return
        worst, reason = self._difference(model, batch)
        tolerance = TOLERANCE[dtype if dtype in TOLERANCE else torch.bfloat16]
        if worst <= tolerance:
            if log:
                LOG.info("T-SPIN layout: checked against padded rows: %s", reason)
            return
        if log:
            LOG.warning(
                "T-SPIN layout: %s with the %s head is not exact for this policy: %s (tolerance "
                "%.0e). Going on with padded rows and plain logits",
                self.choice.layout,
                self.choice.head,
                reason,
                tolerance,
            )
        if self.choice.layout == "shared_prefix":
            base_of(unwrapped(model)).set_attn_implementation(self._plain_attention)
        self.choice = PLAIN._replace(reason=reason)

    def laid_out(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch, padded if it was packed before the check failed."""
        if self.choice.layout != "padded" or batch["layout"].rows is None:
            return batch
        padded = pad_triplets(triplets_of(batch), pad_token_id=0)
        if "reference_logps" in batch:
            padded["reference_logps"] = batch["reference_logps"]
        repeated = batch["layout"].repeated
        padded["layout"] = dataclasses.replace(padded["layout"], repeated=repeated)
        return padded

    def _difference(self, model: Any, batch: dict[str, Any]) -> tuple[float, str]:
        """Compute the mean difference of a token's log-probability over the worst rank's triplet,
        in nats (infinite if a layout fails), and describe it."""
        policy = unwrapped(model)
        attention = base_of(policy).config._attn_implementation
        plain_attention = self._plain_attention or attention
        triplet = triplet_to_check(triplets_of(batch), vocabulary_size(policy))
        device = batch["input_ids"].device
        logps: list[Tensor] = []
        reason = "it fails on another rank"
        ways = ((self.choice, attention), (PLAIN, plain_attention))
        for number, (choice, its_attention) in enumerate(ways, start=1):
            try:
                logps.append(checked_logps(triplet, model, choice, its_attention, device))
            except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                reason = f"it fails ({error})"
            # Ranks must stop together: the next forward waits for all of them.
            if self._lowest(len(logps)) < number:
                return float("inf"), reason
        worst = -self._lowest(-(logps[0] - logps[1]).abs().mean().item())
        return worst, f"log-probabilities differ by {worst:.1e} nats a token on average"


def use_structured_attention(model: Any) -> str:
    """Set the policy's attention implementation to `STRUCTURED`; return the previous one."""
    base = base_of(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(STRUCTURED)
    return before


def triplet_to_check(triplets: Sequence[TripletTokens], vocabulary: int) -> TripletTokens:
    """Choose the longest triplet whose plain logits fit into memory, or the shortest of all."""

    def logits(triplet: TripletTokens) -> int:
        return 3 * (len(triplet.prompt) + max(map(len, triplet[1:]))) * vocabulary

    affordable = [t for t in triplets if logits(t) <= MOST_PLAIN_LOGITS]
    return max(affordable, key=logits) if affordable else min(triplets, key=logits)


@torch.no_grad()
def checked_logps(
    triplet: TripletTokens, model: Any, choice: Choice, attention: str, device: Any
) -> Tensor:
    """(N,) log-probabilities in nats of a triplet's response tokens, y, y′ and y0 one after
    another, float64.

    Meanwhile the policy is in evaluation mode, without dropout.

    Args:
        model: the policy as it is trained, wrapped.
        attention: the attention implementation for this forward only.
    """
    if isinstance(model, DistributedDataParallel):
        # DDP's forward synchronises buffers depending on whether the last forward ended. A rank
        # where this forward fails would be out of step.
        model = model.module
    base = base_of(unwrapped(model))
    before = base.config._attn_implementation
    training = model.training
    lay_out = pack_triplets if choice.layout == "shared_prefix" else pad_triplets
    batch = on_device(lay_out([triplet], pad_token_id=0), device)
    model.eval()
    try:
        base.set_attn_implementation(attention)
        logps = response_token_logps(model, batch, head=choice.head)
    finally:
        base.set_attn_implementation(before)
        model.train(training)
    parts = logps.double().split(batch["layout"].lengths)
    return torch.cat([parts[i] for i in batch["layout"].responses[0]])
