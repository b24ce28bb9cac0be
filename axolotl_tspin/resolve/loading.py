"""Loading of a policy for sampling or scoring, in the precision of its training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from axolotl.cli.utils.load import load_model_and_tokenizer
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import TripletTokens

Score = Callable[[Sequence[TripletTokens]], torch.Tensor]
"""Computes (B, 3) log-probabilities of B triplets, in nats."""


class LoadedPolicy(NamedTuple):
    """A policy in this process.

    Attributes:
        precision: type that its forward passes run in (see `training_precision`).
        batch_size: triplets in one forward when scoring, the YAML's `micro_batch_size`.
    """

    tokenizer: PreTrainedTokenizerBase
    model: Any
    precision: torch.dtype | None
    batch_size: int

    def score(self, triplets: Sequence[TripletTokens]) -> torch.Tensor:
        """(len(triplets), 3) float64 log-probabilities of the responses, in nats."""
        return score_triplets(
            self.model,
            triplets,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            batch_size=self.batch_size,
            precision=self.precision,
        )


def load_policy(cfg: Any) -> LoadedPolicy:
    """Load the model and the tokenizer of a validated configuration of the generation step."""
    if not torch.accelerator.is_available():
        cfg.device_map = {"": "cpu"}  # Axolotl places rank n on GPU n even where there is none
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    return LoadedPolicy(tokenizer, model, training_precision(cfg), cfg.micro_batch_size)


def training_precision(cfg: Any) -> torch.dtype | None:
    """Get the type that the Trainer's autocast computes in; None without autocast.

    Axolotl keeps embeddings and norms in float32 next to bfloat16 or float16 weights, so a forward
    pass without this autocast fails. The rule is the one in Axolotl's
    `TrainerBuilderBase._configure_precision_settings`.
    """
    if cfg.bf16 == "full":
        return None
    if cfg.bf16 or cfg.bfloat16:
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else None
