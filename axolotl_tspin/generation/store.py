"""Prompts, sampled responses and triplets on disk (parquet), each written atomically."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run_directory import digest, write_atomically

PROMPTS_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "prompt": pa.string(),
        "annotated": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "annotated_ids": pa.list_(pa.int32()),
        "end_id": pa.int32(),
    }
)
RESPONSES_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "text": pa.string(),
        "ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
    }
)
RESPONSE_COLUMNS = ("", "_ids", "_finish_reason")
"""What a response's text, ids and finish reason add to its name among a triplet's columns."""

METADATA_KEY = b"t_spin"


class Shard(NamedTuple):
    """A file of sampled responses, and what its metadata says of them."""

    path: Path
    table: pa.Table
    made_with: dict[str, Any]


class Responses(NamedTuple):
    """Responses to all prompts, under RESPONSES_SCHEMA in the order of rows, and their origin."""

    table: pa.Table
    made_with: dict[str, Any]
    source: Path


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write a table with JSON metadata, whole or not at all."""
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_table(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """A table and its metadata; raises pyarrow's or json's error where the file is damaged."""
    # Through an open file, so that a folder's name such as `a=b` is not taken for a partition.
    with open(path, "rb") as file:
        table = pq.read_table(file, columns=columns)
    return table, json.loads((table.schema.metadata or {})[METADATA_KEY])


def freeze_prompts(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the annotated rows that a whole run works on.

    Args:
        rows: as `TripletDataset` leaves them for generation.
    """
    columns: dict[str, list[Any]] = {name: [] for name in PROMPTS_SCHEMA.names}
    for number, row in enumerate(rows):
        prompt_length = sum(label == -100 for label in row["labels"])
        columns["row"].append(number)
        columns["prompt"].append(row["prompt"])
        columns["annotated"].append(row["annotated"])
        columns["prompt_ids"].append(row["input_ids"][:prompt_length])
        columns["annotated_ids"].append(row["input_ids"][prompt_length:])
        columns["end_id"].append(row["end_id"])
    fingerprint = digest([columns["prompt_ids"], columns["annotated_ids"]])
    write_table(
        path, pa.table(columns, schema=PROMPTS_SCHEMA), {"prompts_fingerprint": fingerprint}
    )


def read_prompts(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, str]:
    """The frozen prompts (all columns, or the named ones) and their fingerprint."""
    try:
        table, metadata = read_table(path, columns)
        fingerprint = metadata["prompts_fingerprint"]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise TSpinError(
            f"{path} cannot be read ({error}). Every response of the run answers to these prompts: "
            "restore the file, or begin a new run in another `output_dir`"
        ) from error
    return table, fingerprint


def read_shards(folder: Path, made_with: Mapping[str, Any]) -> tuple[list[Shard], list[Path]]:
    """The shards of a responses folder, and those among its files that are damaged.

    Args:
        made_with: what the shards must have been made with.

    Raises:
        TSpinError: a readable shard was made with something else, or two hold the same row.
    """
    shards: list[Shard] = []
    damaged: list[Path] = []
    seen: dict[int, Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, theirs = read_table(path)
            rows = table.select(RESPONSES_SCHEMA.names)["row"].to_pylist()
        except (OSError, pa.ArrowException, KeyError, ValueError):
            damaged.append(path)
            continue
        for key, value in made_with.items():
            if theirs.get(key) != value:
                raise TSpinError(
                    f"{path}: its responses were made with {key} = {theirs.get(key)!r}, and the "
                    f"run now has {value!r}. Set it back to go on, or move the folder {folder} "
                    "away to generate anew; nothing was changed"
                )
        for row in rows:
            if row in seen:
                raise TSpinError(f"{path}: row {row} is also in {seen[row]}; move one of them away")
            seen[row] = path
        shards.append(Shard(path, table, theirs))
    return shards, damaged


def sampled_responses(shards: list[Shard]) -> Responses:
    """An iteration's shards as one table, in the order of rows."""
    table = pa.concat_tables([shard.table for shard in shards]).sort_by("row")
    return Responses(table, shards[0].made_with, shards[0].path.parent)


def proto_synthetic_responses(triplets: Path) -> Responses:
    """The frozen anchor: the proto-synthetic responses in iteration 0's triplets."""
    columns = ["row", *(f"proto_synthetic{suffix}" for suffix in RESPONSE_COLUMNS)]
    try:
        table, metadata = read_table(triplets, columns)
        table = table.rename_columns(RESPONSES_SCHEMA.names)
        return Responses(table, metadata["proto_synthetic"], triplets)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise TSpinError(
            f"{triplets} cannot be read ({error}). It holds the proto-synthetic responses, which "
            "are never made anew: restore it from a copy, or move it and trained.json of iteration "
            "0 away, run `axolotl t-spin generate`, which puts it together again from "
            "iteration_0/responses, and put trained.json back"
        ) from error


def assemble_triplets(
    path: Path,
    prompts: pa.Table,
    fingerprint: str,
    synthetic: Responses,
    proto_synthetic: Responses,
) -> None:
    """Join prompts with both responses, row for row, and write the triplets.

    Raises:
        TSpinError: a response is missing or belongs to no prompt.
    """
    columns = {name: prompts[name] for name in prompts.column_names}
    metadata: dict[str, Any] = {"prompts_fingerprint": fingerprint}
    for name, responses in (("synthetic", synthetic), ("proto_synthetic", proto_synthetic)):
        theirs = responses.made_with.get("prompts_fingerprint")
        if (
            theirs != fingerprint
            or responses.table["row"].to_pylist() != prompts["row"].to_pylist()
        ):
            raise TSpinError(
                f"{responses.source}: its {responses.table.num_rows} {name} responses are not "
                f"those to the run's {prompts.num_rows} prompts; they belong to another data set"
            )
        for suffix, column in zip(RESPONSE_COLUMNS, RESPONSES_SCHEMA.names[1:], strict=True):
            columns[name + suffix] = responses.table[column]
        metadata[name] = responses.made_with
    write_table(path, pa.table(columns), metadata)


def check_triplets(path: Path, prompts: Path) -> None:
    """Refuse triplets that cannot be read or belong to other prompts than the run's.

    Raises:
        TSpinError: names the file, both numbers of rows, and what to do.
    """
    remedy = "move it away and run `axolotl t-spin generate` again: the responses are kept"
    try:
        triplets = pq.ParquetFile(path)
        metadata = json.loads(triplets.schema_arrow.metadata[METADATA_KEY])
        rows = triplets.metadata.num_rows
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise TSpinError(f"{path} cannot be read ({error}); {remedy}") from error
    frozen, fingerprint = read_prompts(prompts, columns=["row"])
    if metadata.get("prompts_fingerprint") != fingerprint or rows != frozen.num_rows:
        raise TSpinError(
            f"{path} ({rows} rows) does not belong to {prompts} ({frozen.num_rows} rows): it was "
            f"made for another data set; {remedy}"
        )
