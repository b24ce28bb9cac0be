"""Selection of the prompts that get a new synthetic response (`t_spin.generation.select`).

The others keep their response of the iteration before, with its provenance.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.loading import Score
from axolotl_tspin.run.files import digest
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import DamagedTable, read_table, write_table
from axolotl_tspin.run.triplets import triplets_of_block

SELECTION_SCHEMA = pa.schema({"row": pa.int64(), "selected": pa.bool_(), "advantage": pa.float64()})


def read_selection(path: Path, prompts: Prompts) -> np.ndarray | None:
    """(rows,) bool: the stored selection; None if there is none or the file is damaged."""
    try:
        table, metadata = read_table(path)
    except DamagedTable:
        return None
    if metadata["prompts_fingerprint"] != prompts.fingerprint:
        raise TSpinError(f"{path} belongs to other prompts than {prompts.path}; move it away")
    return table["selected"].to_numpy()


def select_rows(
    path: Path,
    prompts: Prompts,
    config: GenerationConfig,
    *,
    seed: int,
    iteration: int,
    advantages: np.ndarray | None,
) -> np.ndarray:
    """(rows,) bool: the rows to sample, kept in `path`.

    Args:
        config: `select` is "fraction" or "advantage".
        advantages: (rows,) current advantages u of the last triplets under the policy that the
            iteration starts from, in nats, for "advantage". A triplet with a large u has little
            left to teach.
    """
    count = max(1, round(config.fraction * prompts.rows))
    if advantages is None:
        generator = np.random.default_rng(int(digest([seed, iteration, path.stem]), 16))
        chosen = generator.permutation(prompts.rows)[:count]
    else:
        chosen = np.argsort(-advantages, kind="stable")[:count]
    selected = np.zeros(prompts.rows, dtype=bool)
    selected[chosen] = True
    table = pa.table(
        {
            "row": np.arange(prompts.rows),
            "selected": selected,
            "advantage": np.full(prompts.rows, np.nan) if advantages is None else advantages,
        },
        schema=SELECTION_SCHEMA,
    )
    metadata = {"prompts_fingerprint": prompts.fingerprint, "select": config.select}
    write_table(path, table, metadata)
    return selected


def current_advantages(score: Score, triplets: Path, prompts: Prompts) -> np.ndarray:
    """(rows,) u = log π(y|x) − log π(y′|x) of an iteration's triplets, in nats."""
    advantages = np.empty(prompts.rows)
    for block in prompts.blocks:
        logps = score(triplets_of_block(triplets, block)).numpy()
        advantages[np.asarray(prompts.rows_of(block))] = logps[:, 0] - logps[:, 1]
    return advantages
