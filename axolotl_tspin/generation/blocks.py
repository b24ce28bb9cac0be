"""Blocks of rows: their locks, and their journals of responses until a block is complete.

A process holds a block's lock while it works on it. Responses go into the block's journal as soon
as the engine gives them, one checksummed line each, so a killed process loses none. When all are
there, they become the block's Parquet file and the journal is deleted.
"""

import contextlib
import errno
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import DamagedTable, read_metadata, write_table
from axolotl_tspin.run.triplets import RESPONSES_SCHEMA, read_responses

LOG = get_logger(__name__)


def block_path(folder: Path, number: int) -> Path:
    return folder / f"block_{number:06d}.parquet"


def claim_blocks(
    folder: Path,
    prompts: Prompts,
    needed: np.ndarray,
    made_with: Mapping[str, Any],
    shard: Shard,
) -> Iterator["Block"]:
    """Yield this shard's incomplete blocks, each locked as it is taken.

    Blocks that another process holds are skipped.

    Args:
        needed: (rows,) bool, the rows to sample.
        made_with: settings that all responses of the folder must have been made with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in _rows_needed(prompts, needed, prompts.blocks[shard.number :: shard.total]):
        path = block_path(folder, number)
        lock = filelock.FileLock(path.with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            LOG.info("T-SPIN: another process is sampling %s", path.name)
            continue
        if is_complete(path, rows, made_with):
            _end(path, lock)
        else:
            yield Block(path, rows, made_with, lock)


def is_complete(path: Path, rows: list[int], made_with: Mapping[str, Any]) -> bool:
    """True if a block's file holds the responses to these rows; a damaged file is put aside.

    Raises:
        TSpinError: its responses were made with other settings.
    """
    if not path.exists():
        return False
    try:
        table, metadata = read_responses(path)
    except DamagedTable as error:
        aside = path.with_name(path.name + ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process has put it aside
            path.replace(aside)
        LOG.warning("%s; it is now %s, and its rows are sampled again", error, aside.name)
        return False
    _check_made_with(path, metadata["made_with"], made_with)
    if table["row"].to_pylist() != rows:
        raise TSpinError(
            f"{path} holds other rows than the run needs of this block; move it away to sample "
            "them again"
        )
    return True


def all_complete(
    folder: Path, prompts: Prompts, needed: np.ndarray, made_with: Mapping[str, Any]
) -> bool:
    """True if all blocks are complete, also those of other shards; damaged ones are put aside.

    Raises:
        TSpinError: as for `is_complete`.
    """
    blocks = [(block_path(folder, n), rows) for n, rows in _rows_needed(prompts, needed)]
    if not all(path.exists() for path, _ in blocks):
        return False  # without reading any
    # Check all of them, so that one call finds every damaged one.
    return all([is_complete(path, rows, made_with) for path, rows in blocks])


class Block:
    """A block in progress: its lock is held, its journal open.

    Args:
        path: path of the finished block.
        rows: the rows to sample.
        made_with: as for `claim_blocks`.
    """

    def __init__(
        self, path: Path, rows: list[int], made_with: Mapping[str, Any], lock: filelock.BaseFileLock
    ) -> None:
        self.path = path
        self.rows = rows
        self._made_with = dict(made_with)
        self._lock = lock
        self.journal = path.with_suffix(".journal")
        self._responses, intact = read_journal(self.journal, made_with)
        self._file = open(  # noqa: SIM115 (open as long as the block is)
            self.journal, "r+b" if self.journal.exists() else "w+b"
        )
        self._file.seek(intact)
        self._file.truncate()
        if not intact:
            self._append({"made_with": self._made_with})

    @property
    def missing(self) -> list[int]:
        return [row for row in self.rows if row not in self._responses]

    def add(self, responses: list[dict[str, Any]]) -> int:
        """Write responses (under RESPONSES_SCHEMA) to the journal; return how many are new."""
        new = [r for r in responses if r["row"] not in self._responses]
        self._append(*({"response": response} for response in new))
        self._responses |= {r["row"]: r for r in new}
        return len(new)

    def publish(self, seconds: float) -> None:
        """Write the complete block and end the work on it.

        Args:
            seconds: seconds that this block's sampling took.
        """
        assert not self.missing
        table = pa.Table.from_pylist(
            [self._responses[row] for row in self.rows], schema=RESPONSES_SCHEMA
        )
        metadata = {
            "made_with": self._made_with,
            "rows": table.num_rows,
            "tokens": sum(table["tokens"].to_pylist()),
            "seconds": round(seconds, 3),
        }
        if not write_table(self.path, table, metadata, replace=False):
            LOG.warning("%s was completed by another process; its responses stay", self.path)
        self._file.close()
        _end(self.path, self._lock)

    def leave(self) -> None:
        """Stop the work on the block; the journal stays."""
        # `_append` has already raised for anything that a full disk did not take.
        with contextlib.suppress(OSError):
            self._file.close()
        # The lock's file stays: if it were deleted, two processes could hold locks of its name.
        self._lock.release()

    def _append(self, *records: dict[str, Any]) -> None:
        data = b"".join(_line(record) for record in records)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise TSpinError(
                    f"{self.journal}: the disk is full. All earlier responses are kept; make room "
                    "and run the same command again"
                ) from error
            raise


def read_journal(path: Path, made_with: Mapping[str, Any]) -> tuple[dict[int, dict[str, Any]], int]:
    """Read what a stopped process left: responses by row, and the length of the intact part.

    Raises:
        TSpinError: the responses were made with other settings.
    """
    responses: dict[int, dict[str, Any]] = {}
    intact = 0
    if not path.exists():
        return responses, intact
    with open(path, "rb") as file:
        for line in file:
            record = _record(line)
            if record is None or (intact == 0) != ("made_with" in record):
                LOG.warning("%s ends in a torn line; what follows is sampled again", path)
                break
            if "made_with" in record:
                _check_made_with(path, record["made_with"], made_with)
            else:
                responses[record["response"]["row"]] = record["response"]
            intact += len(line)
    return responses, intact


def rows_done(folder: Path) -> tuple[int, int]:
    """Count the rows that a folder of responses holds, and their tokens (journals included)."""
    rows = tokens = 0
    for path in sorted(folder.glob("block_*.parquet")):
        # A damaged block's rows are not done; `is_complete` deals with it.
        with contextlib.suppress(DamagedTable):
            metadata = read_metadata(path, verify=False)
            rows, tokens = rows + metadata["rows"], tokens + metadata["tokens"]
    for path in sorted(folder.glob("block_*.journal")):
        if not path.with_suffix(".parquet").exists():
            records = [_record(line) for line in path.read_bytes().splitlines(keepends=True)]
            responses = [r["response"] for r in records if r and "response" in r]
            rows += len(responses)
            tokens += sum(r["tokens"] for r in responses)
    return rows, tokens


def _rows_needed(
    prompts: Prompts, needed: np.ndarray, blocks: Iterable[int] | None = None
) -> Iterator[tuple[int, list[int]]]:
    """Yield the blocks (of all, by default) that have rows to sample, with these rows."""
    for number in prompts.blocks if blocks is None else blocks:
        rows = [row for row in prompts.rows_of(number) if needed[row]]
        if rows:
            yield number, rows


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """Read a journal's line; None if it is incomplete."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)


def _check_made_with(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise TSpinError(
                f"{path}: its responses were made with {key} = {theirs.get(key)!r}, and the run "
                f"now has {value!r}. Set it back to go on, or move the folder {path.parent} away "
                "to sample them again; nothing was changed"
            )


def _end(path: Path, lock: filelock.BaseFileLock) -> None:
    """Delete the working files of a complete block, and those that killed processes left."""
    path.with_suffix(".journal").unlink(missing_ok=True)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
