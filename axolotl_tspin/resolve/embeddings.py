"""Refusal of tokens that the initial policy has no embeddings for."""

import math
from typing import Any

from axolotl.loaders import load_tokenizer
from axolotl.loaders.utils import load_model_config

from axolotl_tspin.errors import TSpinError


def refuse_new_embeddings(cfg: Any) -> None:
    """Refuse a tokenizer with more entries than the model's embeddings have rows.

    Axolotl would add the rows that lack (`ModelLoader._resize_token_embeddings`). Their values are
    random in each process that loads the model.

    Args:
        cfg: a validated configuration that loads the initial policy.

    Raises:
        TSpinError: there are too few rows; it says how to add them once.
    """
    entries = len(load_tokenizer(cfg))
    needed = math.ceil(entries / 32) * 32 if cfg.resize_token_embeddings_to_32x else entries
    rows = getattr(load_model_config(cfg).get_text_config(), "vocab_size", None)
    if rows is None or needed <= rows:
        return
    rounded = (
        f", and `resize_token_embeddings_to_32x` rounds up to {needed}" if needed > entries else ""
    )
    target = f"{cfg.base_model.rstrip('/').rpartition('/')[2]}-resized"
    raise TSpinError(
        f"the tokenizer has {entries} entries with this YAML (`tokens`, `special_tokens`, …)"
        f"{rounded}, but the embeddings of {cfg.base_model} have {rows} "
        "rows. Axolotl would fill up the others at random whenever it loads the model, so the "
        "policy that samples would not be the one that trains. Add them once, and use the result "
        f"as `base_model: ./{target}` with the rest of the YAML as it is:\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'    model = AutoModelForCausalLM.from_pretrained("{cfg.base_model}", dtype="auto")\n'
        f"    model.resize_token_embeddings({needed})\n"
        f'    model.save_pretrained("{target}")\n'
        f'    AutoTokenizer.from_pretrained("{cfg.tokenizer_config or cfg.base_model}")'
        f'.save_pretrained("{target}")'
    )
