"""Collator from rows of a tokenised triplet data set to a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.layouts import pack_triplets, pad_triplets
from axolotl_tspin.triplets import TripletTokens, from_row


def needed_pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Get the tokenizer's pad token; TSpinError if it has none."""
    if tokenizer.pad_token_id is None:
        raise TSpinError(
            "the tokenizer has no pad token; name one in the YAML: special_tokens: "
            "{pad_token: <a token of the vocabulary>}"
        )
    return tokenizer.pad_token_id


COLUMNS = ("input_ids", "labels", "synthetic_ids", "proto_synthetic_ids")
"""Columns of a row that `triplets.from_row` reads."""


@dataclass
class TripletCollator:
    """Collates rows of triplets; `padding` and `return_tensors` are Axolotl's and always the same.

    If rows have `reference_logps` (the three log-probabilities under the frozen policy, in nats),
    the batch has a (B, 3) float32 tensor of that name. If they have a number in `row`, it has a
    (B,) tensor `rows`.

    The trainer sets `layout` ("padded" or "shared_prefix") once it knows the policy, and with it
    `max_tokens_per_row` (None: all triplets of a batch in one row).

    Raises:
        TSpinError: the tokenizer has no pad token, or a row is not a triplet.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool = True
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    layout: str = "padded"
    max_tokens_per_row: int | None = None

    def __post_init__(self) -> None:
        needed_pad_token_id(self.tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        missing = [name for name in COLUMNS if name not in rows[0]]
        if missing:
            raise TSpinError(
                f"a row of the training data has no column {', '.join(missing)}; a row of triplets "
                f"has {', '.join(COLUMNS)}. With Axolotl, every data set of a t_spin run needs a "
                "`type: t_spin.<strategy>`; with your own Trainer, `TSpinTrainingArguments` keep "
                "these columns (`remove_unused_columns=False`)"
            )
        triplets = [from_row(row) for row in rows]
        batch = self._laid_out(triplets)
        if "reference_logps" in rows[0]:
            reference_logps = [row["reference_logps"] for row in rows]
            batch["reference_logps"] = torch.tensor(reference_logps, dtype=torch.float32)
        if "row" in rows[0]:
            batch["rows"] = torch.tensor([row["row"] for row in rows])
        return batch

    def _laid_out(self, triplets: list[TripletTokens]) -> dict[str, Any]:
        pad_token_id = self.tokenizer.pad_token_id
        if self.layout == "padded":
            multiple = self.pad_to_multiple_of or 1
            return pad_triplets(triplets, pad_token_id=pad_token_id, pad_to_multiple_of=multiple)
        # Rows of this layout need no padding to a multiple: no kernel of theirs has blocks.
        return pack_triplets(
            triplets, pad_token_id=pad_token_id, max_tokens_per_row=self.max_tokens_per_row
        )
