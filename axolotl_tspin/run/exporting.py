"""Export of an iteration's triplets as a plain data set (`axolotl t-spin export`)."""

import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.files import write_atomically
from axolotl_tspin.run.prompts import messages_of
from axolotl_tspin.run.triplets import PROVENANCE, iterate_triplets

Format = Literal["triplets", "trl", "spin"]
Row = dict[str, Any]
HUB = "hub:"
COLUMNS = ["messages", "prompt", "annotated", "synthetic", "proto_synthetic"]
GROUP = 1000
"""Rows held in memory at a time."""


def export(triplets: Path, target: str, style: Format) -> int:
    """Write an iteration's triplets; return the number of rows.

    Args:
        triplets: the iteration's file.
        target: `*.parquet`, `*.jsonl`, or `hub:<user>/<data set>`.
        style: "triplets" (prompt, annotated, synthetic, proto_synthetic, the generated ones'
            provenance, and messages, which are None for plain text), "trl" (TRL's preference
            format: prompt, chosen = annotated, rejected = synthetic), or "spin" (SPIN's: real,
            generated).

    Raises:
        TSpinError: the target is none of these, or the format or the file cannot hold the rows.
    """
    of_style = {"triplets": _triplet_rows, "trl": _trl_rows, "spin": _spin_rows}[style]

    def rows() -> Iterator[Row]:
        return of_style(triplets)

    if target.startswith(HUB):
        return _to_hub(rows, target.removeprefix(HUB))
    write = {".parquet": _write_parquet, ".jsonl": _write_jsonl}.get(Path(target).suffix)
    if write is None:
        raise TSpinError(f"`{target}` ends in neither .parquet nor .jsonl, nor begins with {HUB}")
    written: list[int] = []
    try:
        write_atomically(Path(target), lambda path: written.append(write(rows, path)))
    except OSError as error:
        raise TSpinError(f"{target} cannot be written ({error.strerror or error})") from error
    return written[0]


def _to_hub(rows: Callable[[], Iterator[Row]], name: str) -> int:
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.parquet")
        written = _write_parquet(rows, path)
        Dataset.from_parquet(str(path), cache_dir=folder).push_to_hub(name)
    return written


def _write_jsonl(rows: Callable[[], Iterator[Row]], path: Path) -> int:
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    return written


def _write_parquet(rows: Callable[[], Iterator[Row]], path: Path) -> int:
    """Write in two passes: a message late in the file can have keys that no earlier one has."""
    written = 0
    try:
        schema = pa.schema([])
        for group in _groups(rows()):
            found = pa.Table.from_pylist(group).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in _groups(rows()):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                written += len(group)
    except pa.ArrowException as error:
        raise TSpinError(
            f"a Parquet column holds values of one type, but these messages have keys with several "
            f"({' '.join(str(error).split())[:300]}). Export to *.jsonl"
        ) from error
    return written


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(islice(rows, GROUP)):
        yield group


def _triplet_rows(triplets: Path) -> Iterator[Row]:
    provenance = [
        f"{name}_{field}" for name in ("synthetic", "proto_synthetic") for field in PROVENANCE
    ]
    for row in iterate_triplets(triplets, [*COLUMNS, *provenance]):
        messages = _messages(row)
        del row["messages"]
        yield row | {"messages": messages}


def _trl_rows(triplets: Path) -> Iterator[Row]:
    """Yield messages where the data had messages, else plain text under the run's template."""
    first: bool | None = None
    for number, row in enumerate(iterate_triplets(triplets, COLUMNS)):
        messages = _messages(row)
        first = bool(messages) if first is None else first
        if bool(messages) != first:
            kinds = ("messages", "plain text") if first else ("plain text", "messages")
            raise TSpinError(
                f"{triplets}: row 0 was made of {kinds[0]}, row {number} of {kinds[1]}; a data set "
                "in TRL's format holds one kind. Export `--format triplets` or `spin`"
            )
        yield {
            "prompt": messages or row["prompt"],
            "chosen": [_assistant(row["annotated"])] if messages else row["annotated"],
            "rejected": [_assistant(row["synthetic"])] if messages else row["synthetic"],
        }


def _spin_rows(triplets: Path) -> Iterator[Row]:
    for row in iterate_triplets(triplets, COLUMNS):
        messages = _messages(row) or [{"role": "user", "content": row["prompt"]}]
        yield {
            "real": [*messages, _assistant(row["annotated"])],
            "generated": [*messages, _assistant(row["synthetic"])],
        }


def _messages(row: Row) -> list[dict[str, Any]] | None:
    """The prompt's messages; None where the data had plain text."""
    messages = messages_of(row)
    return list(map(_of_one_shape, messages)) if messages else None


def _of_one_shape(message: dict[str, Any]) -> dict[str, Any]:
    """Turn the arguments of tool calls into JSON text: a column of a data set has one type, but
    each tool has its own arguments. The strategies read JSON text too."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function") or call)
        if "arguments" in function:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function} if "function" in call else function)
    return message | {"tool_calls": calls}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
