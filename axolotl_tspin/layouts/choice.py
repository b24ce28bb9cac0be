"""Which layout a policy can be trained in, and the proof on a real triplet."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.layouts import TripletTokens, on_device, pack_triplets, pad_triplets
from axolotl_tspin.layouts.attention import STRUCTURED
from axolotl_tspin.logps import response_token_logps
from axolotl_tspin.policies import base_of, unwrapped

TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Mean difference of a token's log-probability, in nats, that rounding explains."""


class Choice(NamedTuple):
    """A layout, how the head is applied (`heads.HEADS`), and why."""

    layout: str
    head: str
    reason: str


PLAIN = Choice("padded", "plain", "what every other way is compared with")

MOST_PLAIN_LOGITS = 2**29
"""Logits of the plain side of the check: 2 GiB of float32."""


def choose_layout(model: Any, wanted: str, *, compiled: bool = False) -> Choice:
    """The fastest exact layout for a policy, by what its class and configuration say.

    Args:
        model: the policy (a transformers model, or one under PEFT), not yet wrapped.
        wanted: `t_spin.layout`: "auto", "shared_prefix" or "padded".
        compiled: the policy is compiled by torch.compile.

    Raises:
        TSpinError: "shared_prefix" is wanted and the policy cannot take it.
    """
    head = "plain" if compiled or model.get_output_embeddings() is None else "chunked"
    if wanted == "padded":
        return Choice("padded", head, "`t_spin.layout: padded`")
    obstacle = obstacle_to_sharing(model, compiled=compiled)
    if obstacle is None:
        return Choice("shared_prefix", head, "each prompt is computed once for its responses")
    if wanted == "shared_prefix":
        raise TSpinError(
            f"`t_spin.layout: shared_prefix` does not fit this policy: {obstacle}. Use `auto` or "
            "`padded`"
        )
    return Choice("padded", head, obstacle)


def obstacle_to_sharing(model: Any, *, compiled: bool) -> str | None:
    """Why responses cannot share their prompt's row, if they cannot."""
    base = base_of(model)
    name = type(base).__name__
    config = base.config.get_text_config()
    if compiled:
        return "torch.compile would compile anew for every row's shape"
    if base.config.is_encoder_decoder:
        return f"{name} is an encoder-decoder"
    if getattr(base, "_is_stateful", False):
        return f"{name} carries a state along the row, which would run through all responses"
    others = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if others:
        return f"{name} has layers of type {', '.join(sorted(others))}"
    if getattr(config, "attention_chunk_size", None):
        return f"{name} attends in chunks of the row"
    if not getattr(base, "_supports_attention_backend", False):
        return f"{name} takes no other attention than its own"
    return None


def use_structured_attention(model: Any) -> str:
    """Set the policy's attention implementation to `STRUCTURED`; returns what it was."""
    base = base_of(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(STRUCTURED)
    return before


def triplet_to_check(triplets: Sequence[TripletTokens], vocabulary: int) -> TripletTokens:
    """The longest triplet whose plain logits are affordable, or the shortest of all."""

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

    The policy is put into evaluation mode meanwhile, so that dropout does not count.

    Args:
        model: the policy as it is trained, wrapped.
        attention: the attention implementation for this once.
    """
    if isinstance(model, DistributedDataParallel):
        # Its forward synchronises buffers by whether the last one ended: a rank where this one
        # fails would be out of step.
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
