"""Loading of a policy for sampling or scoring, in the precision of its training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from axolotl.cli.utils.load import load_model_and_tokenizer
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.resolve.policies import not_finite
from axolotl_tspin.run.directory import Policy
from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import TripletTokens

LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")

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
        """(len(triplets), 3) float64 log-probabilities of the responses, in nats.

        Raises:
            TSpinError: one is not finite.
        """
        logps = score_triplets(
            self.model,
            triplets,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            batch_size=self.batch_size,
            precision=self.precision,
        )
        bad = int((~logps.isfinite().all(dim=1)).sum())
        if bad:
            what = f"log-probabilities that are not finite for {bad} of {len(logps)} triplets"
            raise not_finite(self.model, what)
        return logps


def load_policy(cfg: Any) -> LoadedPolicy:
    """Load the model and the tokenizer of a validated configuration of the generation step.

    Its weights have the types that they have in training.
    """
    if not torch.accelerator.is_available():
        cfg.device_map = {"": "cpu"}  # Axolotl places rank n on GPU n even where there is none
    is_new = bool(cfg.adapter) and not cfg.lora_model_dir
    if is_new:
        for kernel in LORA_KERNELS:
            cfg[kernel] = False  # they would stay in the model without the adapter
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    if is_new:
        model = model.unload()  # the adapter is still to be trained
    if is_wholly_narrow(cfg):
        # As DeepSpeed does it, also for quantised models, whose own `half` refuses.
        module = torch.nn.Module
        (module.bfloat16 if cfg.torch_dtype == torch.bfloat16 else module.half)(model)
    model.t_spin_policy = Policy(cfg.base_model, cfg.lora_model_dir)  # for messages
    return LoadedPolicy(tokenizer, model, training_precision(cfg), cfg.micro_batch_size)


def is_wholly_narrow(cfg: Any) -> bool:
    """True if training computes in 16 bits throughout, under DeepSpeed or FSDP; see
    `precision.sample_in_training_precision`."""
    return cfg.deepspeed is not None and cfg.torch_dtype in (torch.bfloat16, torch.float16)


def training_precision(cfg: Any) -> torch.dtype | None:
    """Get the type that the Trainer's autocast computes in; None without autocast.

    Axolotl keeps embeddings and norms in float32 next to bfloat16 or float16 weights, so a forward
    pass without this autocast fails. The rule is the one in Axolotl's
    `TrainerBuilderBase._configure_precision_settings`.
    """
    if cfg.bf16 == "full" or is_wholly_narrow(cfg):
        return None
    if cfg.bf16 or cfg.bfloat16:
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else None
