"""Log-probabilities of an iteration's triplets under one policy, on disk.

A file has one row per triplet. Its metadata names the policy and the triplets. Files in
`diagnostics/` are under the policy that the iteration trained; selection by advantage, `compare`,
the report and `reward-check` read them. Files in `reference/` are under the policy that the
iteration starts from; the methods with a reference read them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import (
    DamagedTable,
    read_checksum,
    read_metadata,
    read_table,
    write_table,
)
from axolotl_tspin.triplets import RESPONSES

LOGPS = [f"{name}_logps" for name in RESPONSES]
LOGPS_SCHEMA = pa.schema({"row": pa.int64(), **{name: pa.float64() for name in LOGPS}})
"""Sums over a response, in nats."""


class Scores(NamedTuple):
    """(n,) row numbers, ascending, and (n, 3) log-probabilities in nats in the order of
    `RESPONSES`; `policy` is the fingerprint of the policy that scored them."""

    rows: np.ndarray
    logps: np.ndarray
    policy: str


def made_with(triplets: Path, policy: str) -> dict[str, str]:
    """Make the metadata of a file of log-probabilities.

    Args:
        triplets: the file whose triplets were scored.
        policy: fingerprint of the policy that scored them.
    """
    return {"policy": policy, "triplets": read_checksum(triplets)}


def logps_table(rows: Sequence[int] | np.ndarray, logps: np.ndarray) -> pa.Table:
    """Make a table under LOGPS_SCHEMA of (n,) row numbers and (n, 3) log-probabilities."""
    columns = dict(zip(LOGPS, logps.T, strict=True))
    return pa.table({"row": np.asarray(rows), **columns}, schema=LOGPS_SCHEMA)


def write_scores(path: Path, scores: Scores, triplets: Path) -> None:
    """Write scores with the policy and the triplets that they belong to."""
    order = np.argsort(scores.rows)
    table = logps_table(scores.rows[order], scores.logps[order])
    write_table(path, table, made_with(triplets, scores.policy))


def read_logps(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read a file's table under LOGPS_SCHEMA and its metadata; DamagedTable as for `read_table`."""
    table, metadata = read_table(path)
    if set(RESPONSES) <= set(table.column_names):  # references as earlier versions wrote them
        table = table.rename_columns(["row", *LOGPS])
    return table.select(LOGPS_SCHEMA.names).cast(LOGPS_SCHEMA), metadata


def read_scores(path: Path, triplets: Path, policy: str) -> Scores | None:
    """Read the scores in a file; None if it is missing, damaged, or of another policy or other
    triplets. The caller can compute them again."""
    try:
        table, metadata = read_logps(path)
        if metadata["policy"] != policy or not _is_of(metadata, triplets):
            return None
    except DamagedTable:
        return None
    return Scores(table["row"].to_numpy(), _array(table), policy)


def kept_scores(run: RunDirectory, number: int) -> Scores | None:
    """Read the stored scores of a trained iteration's triplets under the policy that it trained."""
    iteration = run.iteration(number)
    policy = iteration.training_record()["policy"]
    return read_scores(iteration.scores, iteration.triplets("train"), policy)


def reference_logps(run: RunDirectory, number: int) -> np.ndarray | None:
    """(rows, 3) log-probabilities of an iteration's triplets under the policy that it starts from
    (eq. 3, 9); None if they were not computed."""
    path = run.reference(number, run.iteration(number).triplets("train"))
    return all_logps(path) if path.exists() else None


def all_logps(path: Path) -> np.ndarray:
    """(rows, 3) log-probabilities in a file that has every row; DamagedTable as for
    `read_table`."""
    return _array(read_logps(path)[0])


def rows_to_score(rows: int, count: int | Literal["all"]) -> np.ndarray:
    """(≤ count,) row numbers, spread evenly over all rows and the same in every iteration."""
    if count == "all" or count >= rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, count).round().astype(np.int64)


def logps_of_rows(scores: Scores | None, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """(len(rows), 3) log-probabilities of these rows in this order; None if one of them was not
    scored."""
    if scores is None or not np.isin(rows, scores.rows).all():
        return None
    return scores.logps[np.searchsorted(scores.rows, rows)]


def check_reference(path: Path, triplets: Path, policy: str) -> None:
    """Refuse reference log-probabilities that are damaged, or of other triplets or another policy.

    Args:
        policy: fingerprint of the policy that the iteration starts from.

    Raises:
        TSpinError: names the file and what to do.
    """
    remedy = "move it away and run `axolotl t-spin generate` again, which recomputes it"
    try:
        theirs, ours = read_metadata(path), made_with(triplets, policy)
    except DamagedTable as error:
        raise TSpinError(f"{error}; {remedy}") from error
    if theirs["policy"] != policy:
        raise TSpinError(
            f"{path} holds log-probabilities under the policy {theirs['policy']}, and this "
            f"iteration starts from {policy}; {remedy}"
        )
    if theirs != ours:
        raise TSpinError(f"{path} was computed for other triplets than {triplets}; {remedy}")


def _array(table: pa.Table) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in LOGPS], axis=1)


def _is_of(metadata: dict[str, Any], triplets: Path) -> bool:
    """True if a file's log-probabilities are those of these triplets."""
    if "triplets" in metadata:
        return metadata["triplets"] == read_checksum(triplets)
    # Earlier versions wrote only the prompts' fingerprint.
    ours = read_metadata(triplets, verify=False)["prompts_fingerprint"]
    return metadata.get("prompts_fingerprint") == ours
