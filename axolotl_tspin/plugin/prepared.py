"""Axolotl's folders of prepared rows: whole or absent."""

import shutil
from pathlib import Path

import filelock
import pyarrow as pa
from axolotl.utils.data.lock import LOCK_FILE_NAME
from axolotl.utils.logging import get_logger
from datasets import load_from_disk

LOG = get_logger(__name__)


def clear_half_prepared(prepared_path: str) -> None:
    """Delete what a killed process left of prepared rows.

    Axolotl takes any folder that has a file in it for whole. Its writer holds a lock, which we
    take, so that nothing is deleted under a live process.

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
            # A missing file, JSON that was cut (a ValueError), rows that were cut.
            except (OSError, ValueError, pa.ArrowException) as error:
                LOG.warning(
                    "T-SPIN: the prepared rows in %s are incomplete, as a killed process leaves "
                    "them (%s); they are prepared again",
                    rows,
                    " ".join(str(error).split())[:200],
                )
                shutil.rmtree(rows)
