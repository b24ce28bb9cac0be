"""The first fault in a data file that could not be loaded, for an error that names the place.

Files are read here only after loading has failed.
"""

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Kinds of files that are examined, by ending."""


def first_fault(path: Path, kind: str | None = None) -> str | None:
    """Find the first fault in a file: the line, and what is wrong there.

    Args:
        kind: "json", "csv" or "parquet", as `ds_type` says; by default the file's ending does.

    Returns:
        Words that follow the file's name; None if no fault is found.
    """
    kind = kind or KINDS.get(path.suffix)
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        if kind == "parquet":
            return _parquet_fault(path)
        if kind in ("json", "csv"):
            return _encoding_fault(path) or (_json_fault if kind == "json" else _csv_fault)(path)
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    return None


def _encoding_fault(path: Path) -> str | None:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"line {number}: byte {error.start + 1} of the line, 0x{line[error.start]:02x},"
                    " is not UTF-8"
                )
    return None


def _json_fault(path: Path) -> str | None:
    """Find the fault in rows by lines, or in one document of many lines."""
    lines = _lines(path)
    faults = ((number, _fault_of_row(line)) for number, line in lines)
    head = list(islice(faults, 2))
    if not head:
        return "the file has no rows"
    if all(fault for _, fault in head):
        return _fault_of_document(path)
    found = next(((n, fault) for n, fault in (*head, *faults) if fault), None)
    return f"line {found[0]}: {found[1]}" if found else None


def _fault_of_document(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: {_torn(error)}"
    rows = content if isinstance(content, list) else [content]
    faults = ((number, _fault_of_value(row)) for number, row in enumerate(rows))
    found = next(((n, fault) for n, fault in faults if fault), None)
    return f"row {found[0]}: {found[1]}" if found else None if rows else "the file has no rows"


def _fault_of_row(line: str) -> str | None:
    try:
        return _fault_of_value(json.loads(line, strict=False))
    except json.JSONDecodeError as error:
        return _torn(error)


def _torn(error: json.JSONDecodeError) -> str:
    return f"torn JSON at column {error.colno} ({error.msg.removesuffix(' starting at')})"


def _fault_of_value(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"found {json.dumps(value):.60}, expected an object with the columns as keys"
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        return f"a lone surrogate ({half}), which is half of a character"
    return None


def _csv_fault(path: Path) -> str | None:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        line, header, rows = 1, None, 0
        try:
            for fields in reader:
                if header is None:
                    header = len(fields)
                elif len(fields) > header:
                    return f"line {line}: {len(fields)} fields, but the header has {header}"
                else:
                    rows += bool(fields)
                line = reader.line_num + 1
        except csv.Error as error:
            return f"line {line}: a row that begins here is torn ({error})"
    return None if rows else "the file has no rows"


def _parquet_fault(path: Path) -> str | None:
    try:
        with pq.ParquetFile(path) as file:
            rows = 0
            for group in range(file.num_row_groups):
                file.read_row_group(group).validate(full=True)
                rows += file.metadata.row_group(group).num_rows
    except (pa.ArrowException, OSError) as error:
        return f"not a whole parquet file ({' '.join(str(error).split())[:200]})"
    return None if rows else "the file has no rows"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
