"""Layouts of triplets as tensors (torch and transformers only).

Every layout makes a batch with the same keys:

- `input_ids`, `labels`: (rows, length), the labels −100 outside responses.
- `attention_mask` or `position_ids`: (rows, length), for the policy.
- `indices`: (M,), the batch's `BatchIndices` in one tensor.
- `layout`: a `BatchLayout`.

The collator adds `reference_logps` (B, 3) if the rows have them.
"""

from typing import Any

from torch import Tensor

from axolotl_tspin.training.layouts.batch import BatchIndices, BatchLayout
from axolotl_tspin.training.layouts.padded import pad_triplets, unpad_triplets
from axolotl_tspin.training.layouts.shared_prefix import pack_triplets, unpack_triplets
from axolotl_tspin.triplets import TripletTokens

__all__ = [
    "BatchIndices",
    "BatchLayout",
    "indices_of",
    "on_device",
    "pack_triplets",
    "pad_triplets",
    "triplets_of",
]


def indices_of(batch: dict[str, Any]) -> BatchIndices:
    """Get a batch's indices, on its device."""
    return batch["layout"].indices(batch["indices"])


def on_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Copy a batch with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def triplets_of(batch: dict[str, Any]) -> list[TripletTokens]:
    """Read the triplets back from a batch of any layout."""
    return unpad_triplets(batch) if batch["layout"].rows is None else unpack_triplets(batch)
