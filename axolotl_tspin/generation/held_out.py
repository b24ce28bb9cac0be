"""Rows of the annotated data that a run never trains on."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.prompts import prompt_hash
from axolotl_tspin.triplets import parted

LOG = get_logger(__name__)

SHARE, MOST, FEWEST_ROWS = 0.05, 256, 640
"""By default this share is held out, at most so many rows, and none of fewer rows than this."""


def hold_out(
    rows: Dataset, held_out: int | str, val_set_size: float | None, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Part the annotated rows into those to train on and those held out, if any.

    Args:
        held_out, val_set_size: as for `rows_to_hold_out`.

    Raises:
        TSpinError: nothing would be left to train on.
    """
    wanted = rows_to_hold_out(held_out, val_set_size, len(rows))
    key = "val_set_size" if val_set_size else "t_spin.held_out"
    if not wanted:
        return rows, None
    if wanted >= len(rows):
        raise TSpinError(
            f"`{key}` holds out {wanted} of the data sets' {len(rows)} rows, and nothing is left "
            "to train on; lower it, or set it to 0"
        )
    prompts = [prompt_hash(parted(row)[0]) for row in rows]
    chosen = held_out_rows(prompts, rows["source_row"], wanted, seed)
    if not chosen.any():
        LOG.warning(
            "T-SPIN: `%s`: no %s rows can be held out, because more share a prompt or a "
            "conversation; verdicts will be about the rows trained on",
            key,
            wanted,
        )
        return rows, None
    LOG.info("T-SPIN: %s of %s rows are held out", int(chosen.sum()), len(rows))
    return rows.select(np.flatnonzero(~chosen)), rows.select(np.flatnonzero(chosen))


def rows_to_hold_out(held_out: int | str, val_set_size: float | None, rows: int) -> int:
    """Compute how many of a data set's rows are wanted.

    Args:
        held_out: the key `t_spin.held_out`.
        val_set_size: Axolotl's key: a share below 1, or a number; where given, it decides.
    """
    if val_set_size:
        return round(val_set_size * rows) if val_set_size < 1 else int(val_set_size)
    if held_out != "auto":
        return int(held_out)
    return min(round(SHARE * rows), MOST) if rows >= FEWEST_ROWS else 0


def held_out_rows(
    prompts: Sequence[str], source_rows: Sequence[int], wanted: int, seed: int
) -> np.ndarray:
    """(rows,) bool: the rows to hold out, `wanted` or a few less; drawn at random.

    Rows with the same prompt stay together, and so do rows of one conversation, since a later
    turn's prompt contains an earlier turn's response.

    Args:
        prompts: a hash of each row's prompt.
        source_rows: the number, in its data set, of the conversation that each row comes from.
    """
    _, by_prompt = np.unique(np.asarray(prompts), return_inverse=True)
    _, by_source = np.unique(np.asarray(source_rows), return_inverse=True)
    rows = len(by_prompt)
    # A graph of rows, prompts and conversations: what hangs together is held out together.
    ends = np.concatenate([rows + by_prompt, rows + rows + by_source])
    edges = coo_array(
        (np.ones(2 * rows), (np.tile(np.arange(rows), 2), ends)), shape=(3 * rows, 3 * rows)
    )
    _, group = connected_components(edges, directed=False)
    group = group[:rows]
    sizes = np.bincount(group)
    chosen, taken = [], 0
    for candidate in np.random.default_rng(seed).permutation(np.unique(group)):
        if taken + sizes[candidate] <= wanted:
            chosen.append(candidate)
            taken += int(sizes[candidate])
    return np.isin(group, chosen)
