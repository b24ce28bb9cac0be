"""The layout that a training uses, and the check on a real triplet that it is exact."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from axolotl_tspin.training.attention import STRUCTURED, use_attention
from axolotl_tspin.training.layout_choice import PLAIN, Choice, choose_layout
from axolotl_tspin.training.layouts import pad_triplets, triplets_of
from axolotl_tspin.training.policies import base_of, unwrapped, vocabulary_size
from axolotl_tspin.training.trial_step import Trial, run_trial
from axolotl_tspin.triplets import TripletTokens

LOG = logging.getLogger(__name__)


class Tolerance(NamedTuple):
    """Differences that rounding explains.

    Attributes:
        logps: of a response's mean log-probability per token, in nats.
        gradient: of the gradients' cosine from 1, and of the ratio of their norms from 1.
    """

    logps: float
    gradient: float


TOLERANCE = {
    torch.float64: Tolerance(1e-5, 1e-5),
    torch.float32: Tolerance(1e-3, 1e-3),
    torch.float16: Tolerance(2e-2, 5e-2),
    torch.bfloat16: Tolerance(1e-1, 1e-1),
}

MOST_PLAIN_LOGITS = 2**28
"""Logits of the plain side of the check: 1 GiB of float32, of which a backward holds a few."""

FEWEST_TOKENS = 16
"""A triplet whose prompt and responses are shorter than this is not made smaller."""

FAILED, OUT_OF_MEMORY, RAN = 0.0, 1.0, 2.0
"""What became of a trial, the worst first."""


class Comparison(NamedTuple):
    """A way beside padded rows and plain logits, by the worst rank.

    Attributes:
        outcome: of the trials.
        agrees: True if the differences are rounding.
        text: the differences, or the error.
    """

    outcome: float
    agrees: bool
    text: str


class CheckedLayout:
    """The layout of a training. It is chosen for the policy. Before the first step it is compared
    with the plain layout in a training step of one real triplet. Where they differ, padded rows
    replace it; where the head differs too, so do plain logits.

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
        self._plain_attention = base_of(model).config._attn_implementation
        if self.choice.layout == "shared_prefix":
            use_attention(base_of(model), STRUCTURED)

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
        tolerance = TOLERANCE[dtype if dtype in TOLERANCE else torch.bfloat16]
        ways = dict.fromkeys((self.choice[:2], ("padded", self.choice.head), PLAIN[:2]))
        reason = self.choice.reason
        for layout, head in ways:
            way = Choice(layout, head, reason)
            if way[:2] == PLAIN[:2]:
                self._take(way, model)
                return
            found = self._compare(model, way, batch, tolerance)
            if found.agrees or found.outcome == OUT_OF_MEMORY:
                self._take(way, model)
                if log and found.agrees:
                    LOG.info("T-SPIN layout: checked against padded rows: %s", found.text)
                elif log:
                    LOG.warning(
                        "T-SPIN layout: %s with the %s head was not checked: %s. Going on with it; "
                        "if the training runs out of memory, lower `micro_batch_size`",
                        way.layout,
                        way.head,
                        found.text,
                    )
                return
            if log:
                LOG.warning(
                    "T-SPIN layout: %s with the %s head is not exact for this policy: %s "
                    "(tolerance %.0e for log-probabilities, %.0e for the gradient). Going on with "
                    "padded rows",
                    way.layout,
                    way.head,
                    found.text,
                    *tolerance,
                )
            reason = f"{way.layout} with the {way.head} head is not exact: {found.text}"

    def laid_out(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch, padded if it was packed before the check failed."""
        if self.choice.layout != "padded" or batch["layout"].rows is None:
            return batch
        padded = pad_triplets(triplets_of(batch), pad_token_id=0)
        padded |= {name: batch[name] for name in ("reference_logps", "rows") if name in batch}
        repeated = batch["layout"].repeated
        padded["layout"] = dataclasses.replace(padded["layout"], repeated=repeated)
        return padded

    def _take(self, choice: Choice, model: Any) -> None:
        if choice.layout != self.choice.layout:
            use_attention(base_of(unwrapped(model)), self._plain_attention)
        self.choice = choice

    def _compare(
        self, model: Any, way: Choice, batch: dict[str, Any], tolerance: Tolerance
    ) -> Comparison:
        """Compare a way with the plain one on one of the batch's triplets, or on a shorter one
        where memory runs out."""
        triplet = triplet_to_check(triplets_of(batch), vocabulary_size(unwrapped(model)))
        while True:
            outcome, trials, text = self._trials(model, way, triplet, batch["input_ids"].device)
            shorter = halved(triplet)
            # Ranks go on together, although their triplets differ.
            if outcome != OUT_OF_MEMORY or self._lowest(float(shorter != triplet)) == 0:
                break
            triplet = shorter
        if outcome != RAN:
            return Comparison(outcome, False, text)
        logps, cosine, ratio = differences(*trials)
        logps, cosine, ratio = (-self._lowest(-x) for x in (logps, cosine, ratio))
        # Each by itself: the largest of several numbers may hide one that is not a number.
        agrees = (
            logps <= tolerance.logps
            and cosine <= tolerance.gradient
            and ratio <= tolerance.gradient
        )
        text = (
            f"log-probabilities differ by {logps:.1e} nats a token, gradients by {cosine:.1e} in "
            f"their cosine and {ratio:.1e} in their norm"
        )
        return Comparison(outcome, agrees, text)

    def _trials(
        self, model: Any, way: Choice, triplet: TripletTokens, device: torch.device
    ) -> tuple[float, list[Trial], str]:
        """Run the way and the plain one, in training mode; if that draws random numbers, which two
        layouts draw differently, in evaluation mode as well."""
        fast_attention = STRUCTURED if way.layout == "shared_prefix" else self._plain_attention
        trials: list[Trial] = []
        training = True
        while len(trials) < 2:
            choice, attention = (PLAIN, self._plain_attention) if trials else (way, fast_attention)
            outcome, text = RAN, "it fails on another rank"
            try:
                trial = run_trial(triplet, model, choice, attention, device, training=training)
            except Exception as error:
                LOG.debug("T-SPIN layout: a trial of the check failed", exc_info=True)
                outcome = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
                text = f"it fails ({type(error).__name__}: {error})"
            if outcome == OUT_OF_MEMORY and device.type == "cuda":
                torch.cuda.empty_cache()
            # Ranks must stop together: the next forward waits for all of them.
            worst = self._lowest(outcome)
            if worst != RAN:
                return worst, [], text if outcome == worst else "it fails on another rank"
            if training and self._lowest(-float(trial.drew)) < 0:
                training = False
                continue
            trials.append(trial)
        return RAN, trials, ""


def differences(fast: Trial, plain: Trial) -> tuple[float, float, float]:
    """Compare two trials of a triplet.

    Returns:
        Largest difference of a response's mean log-probability, in nats; 1 − the gradients' cosine;
        the distance of their norms' ratio from 1. Not finite if a trial is not.
    """
    logps = (fast.logps - plain.logps).abs().max().item()
    norms = [trial.gradient.norm().item() for trial in (fast, plain)]
    if norms == [0.0, 0.0]:
        return logps, 0.0, 0.0
    if 0.0 in norms:
        return logps, 1.0, float("inf")
    product = (fast.gradient * plain.gradient).sum().item()
    return logps, 1 - product / (norms[0] * norms[1]), abs(norms[0] / norms[1] - 1)


def is_out_of_memory(error: Exception) -> bool:
    """True for what PyTorch raises when a device's or the host's memory does not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def triplet_to_check(triplets: Sequence[TripletTokens], vocabulary: int) -> TripletTokens:
    """Choose the longest triplet whose plain logits fit into memory, or the shortest of all."""

    def logits(triplet: TripletTokens) -> int:
        return 3 * (len(triplet.prompt) + max(map(len, triplet[1:]))) * vocabulary

    affordable = [t for t in triplets if logits(t) <= MOST_PLAIN_LOGITS]
    return max(affordable, key=logits) if affordable else min(triplets, key=logits)


def halved(triplet: TripletTokens) -> TripletTokens:
    """Take the first half of the prompt and of each response, where they are not short already."""
    return TripletTokens(
        *(ids if len(ids) < FEWEST_TOKENS else ids[: len(ids) // 2] for ids in triplet)
    )
