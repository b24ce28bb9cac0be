"""The triplets of a run directory, whose rows are token ids already (internal type)."""

from pathlib import Path
from typing import Any

from axolotl_tspin.errors import BadRow
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import all_logps
from axolotl_tspin.strategies.columns import settings, triplet_dataset
from axolotl_tspin.strategies.encoding import Triplet
from axolotl_tspin.strategies.tokenize import TripletDataset
from axolotl_tspin.triplets import TOKEN_COLUMNS

COLUMNS = ["row", *TOKEN_COLUMNS]


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for the triplets that the plugin points it at. For a
    method with a reference, rows get their log-probabilities under the frozen policy."""
    references = _references(cfg, Path(ds_cfg.path))

    def encode(
        rows: list[dict[str, Any]], indices: list[int]
    ) -> list[tuple[int, Triplet | BadRow]]:
        return [
            (
                index,
                Triplet(
                    row["prompt"],
                    None,
                    row["prompt_ids"],
                    row["stop_ids"],
                    row["annotated_ids"],
                    row["synthetic_ids"],
                    row["proto_synthetic_ids"],
                    references[row["row"]] if references else None,
                ),
            )
            for index, row in zip(indices, rows, strict=True)
        ]

    return triplet_dataset(encode, cfg, ds_cfg.path, COLUMNS)


def _references(cfg: Any, triplets: Path) -> list[list[float]] | None:
    """Read the log-probabilities by row; None for methods without a reference."""
    config = settings(cfg)
    if not config.has_reference:
        return None
    assert config.resolved is not None and config.resolved.iteration is not None
    run = RunDirectory(config.resolved.run_dir)
    return all_logps(run.reference(config.resolved.iteration, triplets)).tolist()
