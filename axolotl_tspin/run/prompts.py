"""The frozen prompts of a run, cut into blocks of rows.

A run's rows are cut into blocks once, when its prompts are frozen. A block is a row group of
`prompts/train.parquet`, a row group of every iteration's triplets, and a file of sampled
responses. A step holds only a few blocks in memory, and one process at a time works on a block.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.files import digest
from axolotl_tspin.run.tables import DamagedTable, TableWriter, open_groups, read_metadata
from axolotl_tspin.triplets import parted

PROMPTS_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "source_row": pa.int64(),
        "prompt_hash": pa.string(),
        "messages": pa.string(),
        "prompt": pa.string(),
        "annotated": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "annotated_ids": pa.list_(pa.int32()),
        "stop_ids": pa.list_(pa.int32()),
    }
)
"""Columns of the frozen prompts. `source_row` is the row's number in its data set, of which a row
may give several; `stop_ids` are the tokens that end a response, the end of a plain turn first."""

SMALLEST_BLOCK, LARGEST_BLOCK, BLOCKS_AT_LEAST = 128, 1024, 8


class Prompts:
    """The frozen prompts of one split.

    Args:
        path: the file.

    Raises:
        TSpinError: the file is missing, incomplete or altered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            metadata = read_metadata(path)
        except DamagedTable as error:
            raise TSpinError(
                f"{error}. Every response of the run answers to these prompts: restore the file, "
                "or begin a new run in another `output_dir`"
            ) from error
        self.fingerprint: str = metadata["prompts_fingerprint"]
        self.rows: int = metadata["rows"]
        self.block_rows: int = metadata["block_rows"]

    @property
    def blocks(self) -> range:
        return range(-(-self.rows // self.block_rows))

    def block_of(self, row: int) -> int:
        return row // self.block_rows

    def rows_of(self, block: int) -> range:
        start = block * self.block_rows
        return range(start, min(start + self.block_rows, self.rows))

    def read(self, block: int, columns: Sequence[str] | None = None) -> pa.Table:
        with open_groups(self.path) as file:
            return file.read_row_group(block, columns=list(columns) if columns else None)

    def first_rows_with_same_prompt(self) -> np.ndarray:
        """(rows,) int64: for each row the first row with the same prompt."""
        with open_groups(self.path) as file:
            hashes = file.read(columns=["prompt_hash"])["prompt_hash"].to_numpy()
        _, first, inverse = np.unique(
            np.array([int(h, 16) for h in hashes], dtype=np.uint64),
            return_index=True,
            return_inverse=True,
        )
        return first[inverse]


def freeze_prompts(path: Path, rows: Iterable[Mapping[str, Any]], count: int) -> None:
    """Write the annotated rows that a whole run works on.

    Args:
        rows: rows as `TripletDataset` makes them for generation.
        count: number of rows.
    """
    block_rows = min(max(-(-count // BLOCKS_AT_LEAST), SMALLEST_BLOCK), LARGEST_BLOCK)
    fingerprint = hashlib.sha256()
    with TableWriter(path, PROMPTS_SCHEMA) as writer:
        block: list[dict[str, Any]] = []
        for number, row in enumerate(rows):
            prompt_ids, annotated_ids = parted(row)
            fingerprint.update(digest([prompt_ids, annotated_ids]).encode())
            block.append(
                {
                    "row": number,
                    "source_row": row["source_row"],
                    "prompt_hash": prompt_hash(prompt_ids),
                    "messages": row["prompt_messages"],
                    "prompt": row["prompt"],
                    "annotated": row["annotated"],
                    "prompt_ids": prompt_ids,
                    "annotated_ids": annotated_ids,
                    "stop_ids": row["stop_ids"],
                }
            )
            if len(block) == block_rows or number == count - 1:
                writer.write(pa.Table.from_pylist(block, schema=PROMPTS_SCHEMA))
                block = []
        writer.close(
            {
                "prompts_fingerprint": fingerprint.hexdigest()[:16],
                "rows": count,
                "block_rows": block_rows,
            }
        )


def prompt_hash(prompt_ids: Sequence[int]) -> str:
    """Hash a prompt's token ids."""
    return hashlib.sha256(np.asarray(prompt_ids, dtype=np.int32).tobytes()).hexdigest()[:16]


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read a prompt's messages as the data set had them; None for plain text."""
    return json.loads(row["messages"]) if row["messages"] else None
