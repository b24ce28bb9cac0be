"""The chunked head: only the positions that predict, a chunk of them at a time (torch only)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from axolotl_tspin.training.heads.base import chunk_count, is_sharded, response_sums
from axolotl_tspin.training.heads.frozen import frozen_logps
from axolotl_tspin.training.heads.in_place import in_place_logps
from axolotl_tspin.training.heads.linear import is_plain_linear, linear_logps
from axolotl_tspin.training.heads.recomputed import recomputed_logps
from axolotl_tspin.training.heads.transforms import logit_transform
from axolotl_tspin.training.layouts import BatchIndices
from axolotl_tspin.training.policies import unwrapped, vocabulary_size

Way = Callable[[Tensor, Tensor, int], Tensor]
"""(N,) log-probabilities from hidden states (N, size), targets (N,) and a number of chunks."""


def chunked_head(model: nn.Module, forward: Callable[[], Any], indices: BatchIndices) -> Tensor:
    """(D,) log-probabilities from chunks of positions.

    The chunks go through the policy's own head (tied, quantised, under an adapter, sharded or not)
    while its forward runs, so wrappers see an ordinary forward. A hook takes the hidden states of
    the predicting positions and passes a single position on to the head.

    Raises:
        NotImplementedError: the policy has no head module, or its forward does not call it once.
    """
    policy = unwrapped(model)
    head = policy.get_output_embeddings()
    if head is None:
        raise NotImplementedError(f"{type(policy).__name__} has no output embeddings")
    to_logits = logit_transform(policy.config)
    sharded = is_sharded(policy)
    targets = indices.targets
    chunks = chunk_count(len(targets), vocabulary_size(policy), targets.device)
    if sharded:
        chunks = _most_on_any_rank(chunks, targets.device)
    found: list[Tensor] = []
    busy = False

    def take_hidden(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal busy
        if busy:
            return None
        hidden = args[0].flatten(0, 1).index_select(0, indices.predicting)
        busy = True
        try:
            found.append(way_through(head, to_logits, hidden, sharded)(hidden, targets, chunks))
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
    sums = response_sums(found[0], indices)
    # Sharding wrappers hang their backward hooks on what the forward returned.
    return sums + 0 * logits.flatten()[0] if sharded else sums


def way_through(
    head: nn.Module, to_logits: Callable[[Tensor], Tensor], hidden: Tensor, sharded: bool
) -> Way:
    """Choose the way through a head that has one hook, the one that asks."""

    def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
        # Not `[0]`, whose gradient is a second tensor of the logits' size.
        return in_place_logps(to_logits(head(hidden[None]).squeeze(0)), targets)

    trained = any(parameter.requires_grad for parameter in head.parameters())
    # Ranks that share a head must call it, and its backward, equally often: only autograd does.
    if torch.is_grad_enabled() and not sharded:
        if hidden.requires_grad and not trained:
            return partial(frozen_logps, chunk_logps)
        if trained and is_plain_linear(head, hooks=1):
            return partial(linear_logps, head, to_logits)
    return partial(recomputed_logps, chunk_logps)


def _most_on_any_rank(number: int, device: torch.device) -> int:
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)
