"""Load a policy to sample from it or to score with it, in the precision of its training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from axolotl.cli.utils.load import load_model_and_tokenizer
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.layouts import TripletTokens
from axolotl_tspin.scoring import score_triplets


class LoadedPolicy(NamedTuple):
    """A policy in this process.

    `precision` is what its forward passes run in (see `training_precision`).
    """

    tokenizer: PreTrainedTokenizerBase
    model: Any
    precision: torch.dtype | None

    def score(self, triplets: Sequence[TripletTokens], batch_size: int) -> torch.Tensor:
        """(len(triplets), 3) float64 log-probabilities of the responses, in nats.

        Args:
            batch_size: triplets in one forward.
        """
        return score_triplets(
            self.model,
            triplets,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            batch_size=batch_size,
            precision=self.precision,
        )


def load_policy(cfg: Any) -> LoadedPolicy:
    """Load the model and the tokenizer of a validated configuration of the generation step."""
    if not torch.accelerator.is_available():
        cfg.device_map = {"": "cpu"}  # Axolotl places rank n on GPU n even where there is none
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    return LoadedPolicy(tokenizer, model, training_precision(cfg))


def training_precision(cfg: Any) -> torch.dtype | None:
    """The type that the Trainer's autocast computes in; None where it has none.

    Axolotl keeps embeddings and norms in float32 beside bfloat16 or float16 weights, so that a
    forward pass without this autocast fails. The rule is that of Axolotl's
    `TrainerBuilderBase._configure_precision_settings`.
    """
    if cfg.bf16 == "full":
        return None
    if cfg.bf16 or cfg.bfloat16:
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else None
