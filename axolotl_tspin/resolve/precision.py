"""Precision of sampling: that of the training, which the YAML and the machine decide."""

import torch

from axolotl_tspin.resolve.yaml_file import RawConfig

PRECISION_KEYS = ("fp16", "float16", "bfloat16", "float32")


def name_the_precision_of_cpus(cfg: RawConfig) -> None:
    """Choose float32 where the YAML leaves the precision open and there is no GPU.

    Axolotl would choose float16, in which no CPU trains.
    """
    is_open = cfg.get("bf16", "auto") in ("auto", None) and not any(map(cfg.get, PRECISION_KEYS))
    # A Ray driver may have no GPU where its workers have.
    if is_open and not cfg.get("use_ray") and not torch.accelerator.is_available():
        cfg["bf16"] = cfg["fp16"] = False


def sample_in_training_precision(cfg: RawConfig, *, partitioned: bool) -> None:
    """Make `load_policy` load the policy to sample from as training will hold it.

    - DeepSpeed and FSDP compute in 16 bits throughout; without them Axolotl keeps embeddings and
      norms in float32. An empty `deepspeed` tells `load_policy`; Axolotl takes it for none.
    - Axolotl quantises and converts the base model below an adapter only if there is one. So a new
      one is loaded at iteration 0, which `load_policy` removes.

    Args:
        partitioned: True if training spreads the model over ranks, by DeepSpeed or FSDP.
    """
    if partitioned:
        cfg["deepspeed"] = {}
    if not cfg.get("lora_model_dir"):
        cfg["adapter"] = new_adapter(cfg.get("adapter"))


def new_adapter(adapter: str | None) -> str | None:
    """Get the kind of a new adapter that can be loaded and removed again; None for other kinds,
    which are not known to leave the policy as it is."""
    return adapter if adapter in ("lora", "qlora") else None
