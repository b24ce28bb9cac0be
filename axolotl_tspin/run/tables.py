"""Parquet files that are written whole or not at all, and that reveal any later change.

The footer holds JSON metadata, with the SHA-256 of all bytes before the footer and of the footer
itself (with zeros in place of that digest). No torch, no axolotl.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.files import temporary_beside

METADATA_KEY = b"t_spin"
CHECKSUM = b'"checksum": "'
"""Text in the footer right before its digest, which is the last value in the JSON."""

UNSIGNED = b"0" * 64
READ_SIZE = 1 << 20


class DamagedTable(TSpinError):
    """A file that is incomplete, altered, or not one of ours."""


class TableWriter:
    """Writes a table group by group; `close` puts the file in place.

    Args:
        path: the file; until `close`, the data is in a temporary file next to it.
        schema: schema of every group.
        replace: False leaves an existing file unchanged: the first writer wins.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, replace: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._replace = replace
        self._temporary = temporary_beside(path)
        self._file = _HashedFile(self._temporary)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave nothing behind if `close` was not reached."""
        try:
            # On a full disk, closing fails too. Unclosed, the writer would try again when it is
            # deleted.
            with suppress(OSError, ValueError, pa.ArrowException):
                self._writer.close()
            with suppress(OSError):
                self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=max(group.num_rows, 1))

    def close(self, metadata: Mapping[str, Any]) -> bool:
        """Finish the file and put it in place.

        Returns:
            True if this writer's file is the one in place (always, with `replace`).
        """
        record = {
            "metadata": dict(metadata),
            "data": self._file.digest.hexdigest(),
            "checksum": UNSIGNED.decode(),
        }
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(record)})
        footer_start = self._file.tell()
        self._writer.close()
        self._file.sign(footer_start)
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
    """Verify a file's checksums and read its metadata.

    Args:
        verify: False skips the bytes before the footer (the footer is always verified).

    Raises:
        DamagedTable: the file is missing, incomplete, altered, or not one of ours.
    """
    with _damage_named(path):
        record, footer_start = _read_record(path)
        if verify and record["data"] != _data_checksum(path, footer_start):
            raise ValueError("its data was altered")
        return record["metadata"]


def read_checksum(path: Path) -> str:
    """Read the SHA-256 of a file's data from its (verified) footer; DamagedTable as for
    `read_metadata`."""
    with _damage_named(path):
        return _read_record(path)[0]["data"]


def read_table(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Read a whole table and its metadata; DamagedTable as for `read_metadata`."""
    metadata = read_metadata(path)
    # Given a path, pyarrow would read a folder's name such as `a=b` as a partition.
    with _damage_named(path), open(path, "rb") as file:
        return pq.read_table(file, columns=columns).replace_schema_metadata(), metadata


@contextmanager
def open_groups(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file to read it group by group (unverified: see `read_metadata`)."""
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
    """A file for writing that keeps the SHA-256 of the written data."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")  # noqa: SIM115 (closed with this object)
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def sign(self, footer_start: int) -> None:
        """Put the footer's digest into it."""
        self._file.seek(footer_start)
        footer = self._file.read()
        place = _checksum_place(footer)
        self._file.seek(footer_start + place)
        self._file.write(_footer_checksum(footer, place))

    def sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _read_record(path: Path) -> tuple[dict[str, Any], int]:
    """Read the footer's record, and the position where the footer begins."""
    # Check it before anything else reads it: an altered footer may hold anything.
    footer_start = _check_footer(path)
    with pq.ParquetFile(path) as file:
        return json.loads(file.metadata.metadata[METADATA_KEY]), footer_start


def _check_footer(path: Path) -> int:
    """Find where a file's footer begins; ValueError if the footer was altered."""
    with open(path, "rb") as file:
        # The footer's length is right before the last 4 bytes.
        end = file.seek(-8, os.SEEK_END)
        start = end - int.from_bytes(file.read(4), "little")
        file.seek(start)
        footer = file.read()
    place = _checksum_place(footer)
    if footer[place : place + len(UNSIGNED)] != _footer_checksum(footer, place):
        raise ValueError("its footer was altered")
    return start


def _checksum_place(footer: bytes) -> int:
    """Find the digest's place in the footer; ValueError if there is none."""
    return footer.rindex(CHECKSUM) + len(CHECKSUM)


def _footer_checksum(footer: bytes, place: int) -> bytes:
    unsigned = footer[:place] + UNSIGNED + footer[place + len(UNSIGNED) :]
    return hashlib.sha256(unsigned).hexdigest().encode()


def _data_checksum(path: Path, size: int) -> str:
    """Compute the SHA-256 of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (data := file.read(min(READ_SIZE, size))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def _put_if_absent(temporary: Path, path: Path) -> bool:
    """Give the temporary file its name unless the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # The file system has no hard links. The block's lock is then the only guard.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True
