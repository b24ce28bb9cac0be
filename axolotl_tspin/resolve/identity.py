"""The identity of a run: what its YAML says that decides what its files mean."""

from typing import Any

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.resolve.yaml_file import RawConfig, plain
from axolotl_tspin.run.public_names import data_without_credentials

IDENTITY_KEYS = (
    "base_model",
    "revision_of_model",
    "adapter",
    "lora_model_dir",
    "tokenizer_config",
    "special_tokens",
    "tokens",
    "added_tokens_overrides",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
    "default_system_message",
    "eot_tokens",
    "sequence_len",
    "excess_length_strategy",
    "datasets",
    "test_datasets",
    "val_set_size",
)
"""Keys that decide what a run's prompts, responses and policies mean."""


def identity_of(cfg: RawConfig, config: TSpinConfig) -> dict[str, Any]:
    """Get a YAML's part of the identity, without the data's digests.

    Args:
        cfg: the YAML as the user wrote it, before any translation.
    """
    identity = {key: plain(cfg.get(key)) for key in IDENTITY_KEYS}
    identity["t_spin.held_out"] = config.held_out
    for key in ("datasets", "test_datasets"):
        identity[key] = data_without_credentials(identity[key])
    return identity
