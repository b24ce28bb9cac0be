"""Parquet files that are written whole or not at all, and say when they were altered.

The footer holds JSON metadata, with the SHA-256 of all bytes before the footer and of the
metadata itself. No torch, no axolotl.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_tspin.errors import TSpinError

METADATA_KEY = b"t_spin"
READ_SIZE = 1 << 20


class DamagedTable(TSpinError):
    """A file that is torn, altered, or not one of ours."""


class TableWriter:
    """Writes a table group by group; `close` puts the file in place.

    Args:
        path: the file; until `close`, a temporary one stands beside it.
        schema: of every group.
        replace: False leaves an existing file as it is: the first writer wins.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, replace: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._replace = replace
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = _HashedFile(self._temporary)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leaves nothing behind where `close` was not reached."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=max(group.num_rows, 1))

    def close(self, metadata: Mapping[str, Any]) -> bool:
        """End the file and put it in place.

        Returns:
            Whether this writer's file is the one in place (always, with `replace`).
        """
        record = {"metadata": dict(metadata), "data": self._file.digest.hexdigest()}
        record["checksum"] = _record_checksum(record)
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(record)})
        self._writer.close()
        self._file.sync_and_close()
        if self._replace:
            os.replace(self._temporary, self._path)
            return True
        return _put_if_absent(self._temporary, self._path)


def write_table(
    path: Path, table: pa.Table, metadata: Mapping[str, Any], *, replace: bool = True
) -> bool:
    """Write a table of one group; see `TableWriter`."""
    with TableWriter(path, table.schema, replace=replace) as writer:
        writer.write(table)
        return writer.close(metadata)


def read_metadata(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """A file's metadata, after its checksums were verified.

    Args:
        verify: False leaves out the bytes before the footer (the metadata is always verified).

    Raises:
        DamagedTable: the file is missing, torn, altered, or not one of ours.
    """
    with _damage_named(path):
        with pq.ParquetFile(path) as file:
            record = json.loads(file.metadata.metadata[METADATA_KEY])
        if record["checksum"] != _record_checksum(record):
            raise ValueError("its metadata was altered")
        if verify and record["data"] != _data_checksum(path):
            raise ValueError("its data was altered")
        return record["metadata"]


def read_table(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """A whole table and its metadata; DamagedTable as for `read_metadata`."""
    metadata = read_metadata(path)
    # Through an open file, so that a folder's name such as `a=b` is not taken for a partition.
    with _damage_named(path), open(path, "rb") as file:
        return pq.read_table(file, columns=columns).replace_schema_metadata(), metadata


@contextmanager
def open_groups(path: Path) -> Iterator[pq.ParquetFile]:
    """The file for reading group by group (unverified: see `read_metadata`)."""
    with _damage_named(path):
        file = pq.ParquetFile(path)
    with file:
        yield file


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DamagedTable(f"{path} cannot be read ({error})") from error


class _HashedFile(io.RawIOBase):
    """A file for writing that keeps the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed with this object)
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _data_checksum(path: Path) -> str:
    """SHA-256 of the bytes before the footer, whose length stands before the last 4 bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        left = file.tell() - int.from_bytes(file.read(4), "little")
        file.seek(0)
        while left > 0:
            data = file.read(min(READ_SIZE, left))
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def _record_checksum(record: Mapping[str, Any]) -> str:
    text = json.dumps([record["metadata"], record["data"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _put_if_absent(temporary: Path, path: Path) -> bool:
    """Give the temporary file its name unless the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links; the block's lock is then the only guard.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True
