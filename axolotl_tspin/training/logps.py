"""Log-probabilities of responses under a causal language model (torch and transformers only)."""

from typing import Any

import torch
from torch import Tensor, nn

from axolotl_tspin.training.attention import structured_attention
from axolotl_tspin.training.heads import HEADS
from axolotl_tspin.training.layouts import indices_of

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")


def triplet_logps(
    model: nn.Module, batch: dict[str, Any], *, head: str = "chunked"
) -> tuple[Tensor, Tensor]:
    """Sum the log-probabilities of a batch's responses, in one forward of the policy.

    Args:
        model: a causal language model whose output has `.logits`, wrapped or not. For a batch of
            `pack_triplets` its attention implementation is `attention.STRUCTURED`.
        batch: a batch of B triplets, as `layouts` describes it.
        head: one of `heads.HEADS`.

    Returns:
        (B, 3) sums in nats, accumulated in float32 (float64 logits stay float64), 0 for an empty
        response; (B, 3) response token counts.
    """
    indices = indices_of(batch)

    def by_triplet(of_distinct: Tensor) -> Tensor:
        return of_distinct.index_select(0, indices.responses).view(-1, 3)

    return by_triplet(response_logps(model, batch, head=head)), by_triplet(indices.lengths)


def response_logps(model: nn.Module, batch: dict[str, Any], *, head: str) -> Tensor:
    """(D,) sums of log π of each distinct response's tokens, in nats, at least float32."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    indices = indices_of(batch)
    if batch["layout"].segments is not None:
        # Nothing reads it. Without it, transformers looks in every forward whether the positions
        # are those of packed rows, and the host waits for the answer.
        inputs["attention_mask"] = torch.ones_like(batch["input_ids"])

    def forward() -> Any:
        with structured_attention(batch["layout"].segments, indices):
            return model(**inputs, use_cache=False)

    return HEADS[head](model, forward, indices)
