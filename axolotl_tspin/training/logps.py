"""Log-probabilities of responses under a causal language model (torch and transformers only)."""

from typing import Any

import torch
from torch import Tensor, nn

from axolotl_tspin.training.attention import structured_attention
from axolotl_tspin.training.heads import HEADS

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
    lengths, responses = batch["layout"].lengths, batch["layout"].responses
    index = torch.tensor(responses, device=batch["input_ids"].device)
    token_logps = response_token_logps(model, batch, head=head)
    sums = torch.stack([part.sum() for part in token_logps.split(lengths)])
    return sums[index], torch.tensor(lengths, device=sums.device)[index]


def response_token_logps(model: nn.Module, batch: dict[str, Any], *, head: str) -> Tensor:
    """(N,) log π of each of the batch's `targets`, in nats, at least float32."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}

    def forward() -> Any:
        with structured_attention(batch["layout"].rows):
            return model(**inputs, use_cache=False)

    return HEADS[head](model, forward, batch["predicting"], batch["targets"])
