"""Axolotl's folders of prepared rows: whole or absent."""

import shutil
from pathlib import Path

import filelock
import pyarrow as pa
from axolotl.utils.data.lock import LOCK_FILE_NAME
from datasets import load_from_disk

from axolotl_tspin.logs import get_logger

LOG = get_logger(__name__)


def clear_half_prepared(prepared_path: str) -> None:
    """Delete incomplete prepared rows that a killed process left.

    Axolotl considers any folder with a file in it complete. Its writer holds a lock. We take that
    lock, so nothing is deleted under a live process.

    Args:
        prepared_path: Axolotl's `dataset_prepared_path`, with a folder below it for each hash of
            data sets.
    """
    folder = Path(prepared_path)
    if not folder.is_dir():
        return
    with filelock.FileLock(folder / LOCK_FILE_NAME):
        for rows in [path for path in folder.iterdir() if path.is_dir()]:
            try:
                load_from_disk(str(rows))
            # A missing file, truncated JSON (a ValueError), or truncated rows.
            except (OSError, ValueError, pa.ArrowException) as error:
                LOG.warning(
                    "T-SPIN: the prepared rows in %s are incomplete, probably from a killed "
                    "process (%s); they are prepared again",
                    rows,
                    " ".join(str(error).split())[:200],
                )
                shutil.rmtree(rows)
