"""The triplets of a run directory, whose rows are token ids already (internal type)."""

from typing import Any

from axolotl_tspin.strategies.columns import triplet_dataset
from axolotl_tspin.strategies.encoding import Triplet
from axolotl_tspin.strategies.tokenize import TripletDataset

COLUMNS = ["prompt_ids", "annotated_ids", "synthetic_ids", "proto_synthetic_ids"]


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Called by Axolotl for the triplets that the plugin points it at."""

    def encode(rows: list[dict[str, Any]], indices: list[int]) -> list[Triplet]:
        return [
            Triplet(
                row["prompt"],
                None,
                row["prompt_ids"],
                row["annotated"],
                row["end_id"],
                row["annotated_ids"],
                row["synthetic_ids"],
                row["proto_synthetic_ids"],
            )
            for row in rows
        ]

    return triplet_dataset(encode, cfg, ds_cfg.get("path"), COLUMNS)
