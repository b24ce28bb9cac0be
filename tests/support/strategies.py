"""Data sets through the public strategies, as Axolotl calls them."""

import importlib
from typing import Any

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.resolve.data_sets import translate_entry
from axolotl_tspin.triplets import parted


def read_entry(
    tokenizer: PreTrainedTokenizerBase,
    entry: dict[str, Any],
    rows: list[dict[str, Any]],
    task: str = "generate",
    **cfg: Any,
) -> Dataset:
    """Read rows as an entry of `datasets` in a YAML says.

    Args:
        entry: the keys as a user writes them; they are translated in place.
        task: "generate" for prompts with annotated responses, "train" for whole triplets.
        cfg: top-level keys of the YAML.
    """
    translate_entry(entry, "datasets[0]")
    resolved = ResolvedRun(task=task, initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved).model_dump(exclude_none=True)
    keys = DictDefault({"base_model": "p", "sequence_len": 1024, "t_spin": t_spin} | cfg)
    strategy = importlib.import_module(entry["type"]).load(tokenizer, keys, DictDefault(entry))
    return strategy.wrap_dataset(Dataset.from_list(rows), process_count=1)


def prompt_and_response(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[str, str]:
    """Decode a row's prompt and its annotated response."""
    prompt, response = parted(row)
    return tokenizer.decode(prompt), tokenizer.decode(response)
