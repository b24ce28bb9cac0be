"""Forward and backward of one triplet under one way to compute it, for the layout's check."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

from axolotl_tspin.training.attention import use_attention
from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.training.layouts import indices_of, on_device, pack_triplets, pad_triplets
from axolotl_tspin.training.logps import response_logps
from axolotl_tspin.training.policies import base_of, unwrapped
from axolotl_tspin.triplets import TripletTokens

WEIGHTS = (1.0, 0.7, 0.5)
"""Of the three log-probabilities in the scalar whose gradient is taken. They differ, so that
confused responses are seen, and have one sign, so that the prompt's gradients add up."""


class Trial(NamedTuple):
    """What a forward and backward gave, float64.

    Attributes:
        logps: (3,) mean log-probabilities of the responses' tokens, in nats.
        gradient: (T, hidden) of Σ `WEIGHTS` · log π, with respect to the embeddings of the T
            distinct tokens x, y, y′, y0. All layers' backward passes lie before it.
        drew: True if random numbers were drawn, as for dropout.
    """

    logps: Tensor
    gradient: Tensor
    drew: bool


def run_trial(
    triplet: TripletTokens,
    model: Any,
    choice: Choice,
    attention: str,
    device: torch.device,
    *,
    training: bool,
) -> Trial:
    """Compute a triplet's log-probabilities and the gradient of its embeddings.

    The policy, its parameters' gradients and the random state are left as they were.

    Args:
        model: the policy as it is trained, wrapped.
        attention: the attention implementation for this trial only.
        training: True for training mode.
    """
    policy = unwrapped(model)
    if not isinstance(model, FullyShardedDataParallel):
        # The forwards of DDP and DeepSpeed wait for a step's backward, and DDP's synchronises
        # buffers depending on whether the last one ended. FSDP's brings the weights together.
        model = policy
    lay_out = pack_triplets if choice.layout == "shared_prefix" else pad_triplets
    batch = on_device(lay_out([triplet], pad_token_id=0), device)
    with (
        _restored(policy, attention, training=training),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _embeddings(policy) as found,
        torch.enable_grad(),
    ):
        before = _random_state(device)
        sums = response_logps(model, batch, head=choice.head)
        indices = indices_of(batch)
        logps = sums.index_select(0, indices.responses)
        counts = indices.lengths.index_select(0, indices.responses)
        # As in the Trainer's step, autocast covers the forward only.
        with torch.autocast(device.type, enabled=False):
            scalar = (logps * torch.tensor(WEIGHTS, device=device)).sum()
            # Not `.backward()`: wrappers would take it for a part of a step.
            (gradient,) = torch.autograd.grad(scalar, found)
        drew = not torch.equal(before, _random_state(device))
    logps = logps.detach().double() / counts.clamp(min=1)
    return Trial(logps, _by_token(triplet, gradient, choice.layout), drew)


def _by_token(triplet: TripletTokens, gradient: Tensor, layout: str) -> Tensor:
    """Bring (rows, length, hidden) of either layout to the (T, hidden) distinct tokens."""
    prompt = len(triplet.prompt)
    responses = [list(response) for response in triplet[1:]]
    begins: list[int] = []
    end = prompt
    for number, response in enumerate(responses):
        first = responses.index(response)
        begins.append(end if first == number else begins[first])
        end += len(response) if first == number else 0
    total = gradient.new_zeros((end, gradient.shape[-1]), dtype=torch.float64)
    if layout == "shared_prefix":
        return total + gradient[0, :end]
    for row, begin, response in zip(gradient, begins, responses, strict=True):
        total[:prompt] += row[:prompt]
        total[begin : begin + len(response)] += row[prompt : prompt + len(response)]
    return total


@contextlib.contextmanager
def _restored(policy: Any, attention: str, *, training: bool) -> Iterator[None]:
    """Use an attention implementation and a mode, and bring back what was there."""
    base, mode = base_of(policy), policy.training
    before = use_attention(base, attention)
    checkpointed = {
        module: module._gradient_checkpointing_func
        for module in base.modules()
        if hasattr(module, "_gradient_checkpointing_func")
    }
    policy.train(training)
    for module in checkpointed:
        # Reentrant checkpoints refuse `torch.autograd.grad`.
        module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for module, function in checkpointed.items():
            module._gradient_checkpointing_func = function
        policy.train(mode)
        use_attention(base, before)


@contextlib.contextmanager
def _embeddings(policy: Any) -> Iterator[Sequence[Tensor]]:
    """Collect what the policy's input embeddings return; it requires a gradient."""
    found: list[Tensor] = []

    def take(module: Any, args: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        found.append(output)
        return output

    hook = base_of(policy).get_input_embeddings().register_forward_hook(take)
    try:
        yield found
    finally:
        hook.remove()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
