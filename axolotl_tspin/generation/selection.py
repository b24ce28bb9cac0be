"""Which prompts get a new synthetic response (`t_spin.generation.select`).

The others keep the response, with its provenance, that they had in the iteration before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.store import Prompts
from axolotl_tspin.run_directory import digest
from axolotl_tspin.tables import DamagedTable, open_groups, read_table, write_table

SELECTION_SCHEMA = pa.schema({"row": pa.int64(), "selected": pa.bool_(), "advantage": pa.float64()})


def read_selection(path: Path, prompts: Prompts) -> np.ndarray | None:
    """(rows,) bool: what was selected before; None where nothing was or the file is damaged."""
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
            iteration starts from, in nats, for "advantage". Where u is largest, the triplet has
            least left to teach.
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


def current_advantages(
    score: Callable[[list[Any], int], Any], triplets: Path, prompts: Prompts, batch_size: int
) -> np.ndarray:
    """(rows,) u = log π(y|x) − log π(y′|x) of an iteration's triplets, in nats: one forward pass.

    Args:
        score: `LoadedPolicy.score` of the policy.
        batch_size: triplets in one forward.
    """
    from axolotl_tspin.layouts import TripletTokens

    columns = ["prompt_ids", "annotated_ids", "synthetic_ids"]
    advantages = np.empty(prompts.rows)
    with open_groups(triplets) as file:
        for block in prompts.blocks:
            rows = file.read_row_group(block, columns=columns).to_pylist()
            # y0 plays no part in u: y′ in its place costs nothing where equals are shared.
            tokens = [
                TripletTokens(
                    r["prompt_ids"], r["annotated_ids"], r["synthetic_ids"], r["synthetic_ids"]
                )
                for r in rows
            ]
            logps = score(tokens, batch_size).numpy()
            advantages[np.asarray(prompts.rows_of(block))] = logps[:, 0] - logps[:, 1]
    return advantages
