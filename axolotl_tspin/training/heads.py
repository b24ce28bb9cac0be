"""The policy's head, applied at the positions that predict response tokens (torch only).

Both implementations run one forward of the (wrapped) policy and return the same numbers. "chunked"
never holds more than a few hundred rows of logits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from axolotl_tspin.training.policies import unwrapped, vocabulary_size

MOST_LOGITS = 2**25
"""Logits in one chunk: 128 MiB of float32."""

LEAN_ROWS = 64
"""Rows of logits processed at a time, so that they fit into the processor's cache."""


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) log-probabilities in nats of targets (N,) under logits (N, vocabulary); float32, or
    float64 for float64 logits."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return -F.cross_entropy(logits.to(dtype), targets, reduction="none")


class _LeanTokenLogps(torch.autograd.Function):
    """`token_logps` whose backward turns the logits into their gradient in place. Of the four
    tensors of the logits' size that cross-entropy holds, one is left. The logits must be float32
    or wider, and nothing else may use them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        normalisers = torch.cat([part.logsumexp(1) for part in logits.split(LEAN_ROWS)])
        ctx.save_for_backward(logits, targets, normalisers)
        return logits.gather(1, targets[:, None])[:, 0] - normalisers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalisers = ctx.saved_tensors
        for part, rows in zip(
            logits.split(LEAN_ROWS),
            zip(*(x.split(LEAN_ROWS) for x in (targets, normalisers, gradient)), strict=True),
            strict=True,
        ):
            row_targets, row_normalisers, row_gradient = (x[:, None] for x in rows)
            part.sub_(row_normalisers).exp_().mul_(-row_gradient)
            part.scatter_add_(1, row_targets, row_gradient)
        return logits, None


def lean_token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """`token_logps` with less memory. The backward pass overwrites the logits, so autograd refuses
    to run it twice."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return _LeanTokenLogps.apply(logits.to(dtype), targets)


def plain_head(
    model: nn.Module, forward: Callable[[], Any], predicting: Tensor, targets: Tensor
) -> Tensor:
    """(N,) log-probabilities from all logits of all positions, as the policy returns them."""
    return token_logps(forward().logits.flatten(0, 1)[predicting], targets)


def chunked_head(
    model: nn.Module, forward: Callable[[], Any], predicting: Tensor, targets: Tensor
) -> Tensor:
    """(N,) log-probabilities from chunks of positions, recomputed in the backward pass.

    The chunks go through the policy's own head module (tied, quantised, under an adapter, sharded
    or not) while its forward runs, so wrappers see an ordinary forward. A hook takes the hidden
    states of the predicting positions and passes a single position on to the head.

    Raises:
        NotImplementedError: the policy has no head module, or its forward does not call it once.
    """
    policy = unwrapped(model)
    head = policy.get_output_embeddings()
    if head is None:
        raise NotImplementedError(f"{type(policy).__name__} has no output embeddings")
    to_logits = logit_transform(policy.config)
    chunks = -(-len(targets) // max(MOST_LOGITS // vocabulary_size(policy), 1))
    if is_sharded(policy):
        chunks = _most_on_any_rank(chunks, targets.device)
    found: list[Tensor] = []
    busy = False

    def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
        # Not `[0]`, whose gradient is a second tensor of the logits' size.
        return lean_token_logps(to_logits(head(hidden[None]).squeeze(0)), targets)

    def take_hidden(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal busy
        if busy:
            return None
        hidden = args[0].flatten(0, 1)[predicting]
        busy = True
        try:
            found.append(_in_chunks(chunk_logps, hidden, targets, chunks))
        finally:
            busy = False
        return (args[0][:1, :1], *args[1:])

    hook = head.register_forward_pre_hook(take_hidden, prepend=True)
    try:
        logits = forward().logits
    finally:
        hook.remove()
    if len(found) != 1:
        raise NotImplementedError(f"{type(policy).__name__} called its head {len(found)} times")
    if not is_sharded(policy):
        return found[0]
    # Sharding wrappers hang their backward hooks on what the forward returned.
    return found[0] + 0 * logits.flatten()[0]


def is_sharded(policy: nn.Module) -> bool:
    """True if ranks hold parts of a policy's weights (DeepSpeed's ZeRO-3, FSDP2). They must then
    run each module, and its backward, equally often."""
    # Between forwards FSDP2's parameters may be unsharded, but its modules can be recognised.
    return any(isinstance(module, FSDPModule) for module in policy.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in policy.parameters()
    )


def _most_on_any_rank(number: int, device: torch.device) -> int:
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def _in_chunks(
    chunk_logps: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunks: int
) -> Tensor:
    """(N,) log-probabilities from equal parts of the positions; some parts may be empty if other
    ranks have more positions."""
    if chunks <= 1:
        return chunk_logps(hidden, targets)
    parts = zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    return torch.cat([checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in parts])


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


HEADS = {"chunked": chunked_head, "plain": plain_head}
