"""Axolotl settings that T-SPIN refuses, with the reasons."""

from collections.abc import Mapping
from typing import Any

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError

ONE_BATCH = "a triplet's three responses must stay together in one batch"
OWN_LOSS = "T-SPIN brings its own loss"
OTHER_WEIGHTS = (
    "the trained weights would not be those that sampled the responses; make the change beforehand "
    "and start from that model"
)

NOISE = "its noise is scaled by the length of a row, and a row holds several responses here"

REFUSED = {
    "sample_packing": ONE_BATCH,
    "eval_sample_packing": ONE_BATCH,
    "batch_flattening": ONE_BATCH,
    "balance_labels": ONE_BATCH,
    "reward_model": "T-SPIN trains a policy, not a reward model",
    "process_reward_model": "T-SPIN trains a policy, not a reward model",
    "streaming": "every prompt needs its responses before training; a stream has no fixed rows",
    "pretraining_dataset": "T-SPIN needs prompts with annotated responses",
    "train_on_inputs": "the loss takes log-probabilities of responses given prompts",
    "skip_prepare_dataset": "the t_spin strategies do the tokenising that this would skip",
    "push_dataset_to_hub": "Axolotl keys that copy by configuration, so it would return the "
    "triplets of an earlier iteration",
    "trainer_cls": "T-SPIN brings its own trainer",
    "kd_trainer": "T-SPIN brings its own trainer",
    "diffusion": "T-SPIN needs the log-probabilities of an autoregressive policy",
    "diffusion_lm": "T-SPIN needs the log-probabilities of an autoregressive policy",
    "use_eaft": OWN_LOSS,
    "use_dft": OWN_LOSS,
    "label_smoothing_factor": OWN_LOSS,
    "processor_type": "multimodal data is not supported yet",
    "use_pose": "a response's positions go on from its prompt's",
    "neftune_noise_alpha": NOISE,
    "noisy_embedding_alpha": NOISE,
    "reinit_weights": "every iteration would start from random weights",
    "fix_untrained_tokens": OTHER_WEIGHTS,
    "qat": OTHER_WEIGHTS,
    "relora": "it merges adapters into the base model, but T-SPIN continues its adapter on the "
    "unchanged base model",
    "do_bench_eval": "it evaluates rows of one response; use `axolotl lm-eval` on the model",
    "do_causal_lm_eval": "it evaluates rows of one response; use `axolotl lm-eval` on the model",
    "eval_table_size": "it reads evaluation rows of one response",
    "generate_samples": "it reads rows of one response",
}

OTHER_METHODS = ("dpo_", "kto_", "cpo_", "orpo_", "simpo_", "ebft")
"""Beginnings of keys that other values of `rl` read."""

OTHER_METHODS_KEYS = ("rl_beta", "trl", "precompute_ref_log_probs", "advantage_estimator")

PARALLEL = {
    "context_parallel_size": "a response's log-probability is a sum over a whole row",
    "sequence_parallel_degree": "a response's log-probability is a sum over a whole row",
    "tensor_parallel_size": "the head is applied in chunks, which has not been tried on a sharded "
    "one; use ZeRO-3 or FSDP2",
}
"""Keys that are refused if they are more than 1."""

CHANGES_BASE = ("pissa", "olora", "loftq", "corda")
"""Initialisations of LoRA that change the base model's weights."""

WITHOUT_EFFECT = (
    "cut_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "liger_use_token_scaling",
    "chunked_cross_entropy",
    "flash_attn_cross_entropy",
)
"""Kernels of the cross-entropy loss, which the triplet loss does not use."""


SMALLEST_BFLOAT16_RATE = 6e-5
"""Smallest learning rate for bfloat16 weights: half the distance of bfloat16's neighbours at
0.02."""


def refuse_contradictions(cfg: Mapping[str, Any]) -> None:
    """Raise TSpinError for a key of the YAML that contradicts `rl: t_spin`."""
    for key, reason in REFUSED.items():
        if cfg.get(key):
            raise TSpinError(f"`{key}` does not go with `rl: t_spin`: {reason}. Remove it")
    for key, reason in PARALLEL.items():
        if (cfg.get(key) or 1) > 1:
            raise TSpinError(f"`{key}` does not go with `rl: t_spin` yet: {reason}. Remove it")
    for key, value in cfg.items():
        if value and (key.startswith(OTHER_METHODS) or key in OTHER_METHODS_KEYS):
            raise TSpinError(
                f"`{key}` is read by other values of `rl`; T-SPIN's settings are in the block "
                "`t_spin` (`alpha`, `beta`, …). Remove it"
            )
    _refuse_changed_base(cfg)
    if (cfg.get("accelerator_config") or {}).get("dispatch_batches"):
        raise TSpinError(
            "`accelerator_config.dispatch_batches` does not go with `rl: t_spin`: a batch holds "
            "more than tensors. Remove it"
        )


def without_effect(cfg: Mapping[str, Any]) -> list[str]:
    """List the keys of the YAML that change nothing in a t_spin run."""
    return [key for key in WITHOUT_EFFECT if cfg.get(key)]


def refuse_unmeasurable_gradients(cfg: Mapping[str, Any], config: TSpinConfig) -> None:
    """Refuse before anything is sampled; the trainer refuses what the YAML does not show."""
    for key in ("deepspeed", "fsdp", "fsdp_config", "fp16"):
        if config.gradient_norms and cfg.get(key):
            raise TSpinError(
                f"`t_spin.gradient_norms` does not go with `{key}`: gradients are measured on one "
                "GPU or under DDP, in float32 or bfloat16. Remove one of them"
            )


def _refuse_changed_base(cfg: Mapping[str, Any]) -> None:
    initialisation = str(cfg.get("peft_init_lora_weights") or "")
    loftq = (cfg.get("peft") or {}).get("loftq_config")
    if initialisation.lower().startswith(CHANGES_BASE) or loftq:
        key = "peft.loftq_config" if loftq else f"peft_init_lora_weights: {initialisation}"
        raise TSpinError(
            f"`{key}` does not go with `rl: t_spin`: it changes the base model, but T-SPIN "
            "continues its adapter on the unchanged base model. Remove it"
        )


def loses_small_steps(cfg: Mapping[str, Any]) -> bool:
    """True if the optimizer's steps are too small for bfloat16 weights.

    Axolotl loads a policy in bfloat16, and without DeepSpeed it optimizes these weights themselves.
    An ordinary weight of 0.02 then moves by 1.2e-4 or not at all.
    """
    other = cfg.get("fp16") or cfg.get("float16")
    default = False if other else "auto"  # Axolotl's
    bfloat16 = cfg.get("bf16", default) in (True, "auto", "full", "true") or cfg.get("bfloat16")
    # optimi's optimizers carry the rest over (Kahan); others can round at random.
    rest_is_kept = str(cfg.get("optimizer")).startswith("optimi_") or cfg.get("optim_args")
    exact = cfg.get("deepspeed") or cfg.get("adapter") or rest_is_kept
    rate = float(cfg.get("learning_rate") or 1.0)
    return bool(bfloat16 and not exact and rate < SMALLEST_BFLOAT16_RATE)
