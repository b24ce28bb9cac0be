"""An iteration's triplets under the policy that it trained (`diagnostics/train.parquet`).

The trainer scores them when the training ends (`TripletTrainer.score`), where policy, ranks and
layout are at hand; selection by advantage, `compare`, the report and `reward-check` read them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from axolotl_tspin.layouts import IGNORE_INDEX, RESPONSES
from axolotl_tspin.tables import DamagedTable, open_groups, read_metadata, read_table, write_table

LOGPS = [f"{name}_logps" for name in RESPONSES]
SCORES_SCHEMA = pa.schema({"row": pa.int64(), **{name: pa.float64() for name in LOGPS}})


class Scores(NamedTuple):
    """(n,) row numbers, ascending, and (n, 3) log-probabilities in nats in the order of
    `RESPONSES`; `policy` is the fingerprint of the policy that they are under."""

    rows: np.ndarray
    logps: np.ndarray
    policy: str


def rows_to_score(rows: int, count: int | Literal["all"]) -> np.ndarray:
    """(≤ count,) row numbers, spread evenly over all rows: the same in every iteration."""
    if count == "all" or count >= rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, count).round().astype(np.int64)


def triplets_to_score(path: Path, rows: np.ndarray) -> Dataset:
    """Rows of a triplets file as the collator takes them, with their numbers in `row`."""
    read_metadata(path)
    wanted = set(rows.tolist())
    columns = ["row", "prompt_ids", *(f"{name}_ids" for name in RESPONSES)]
    parts: dict[str, list] = {
        name: [] for name in ("row", "input_ids", "labels", "synthetic_ids", "proto_synthetic_ids")
    }
    with open_groups(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=columns).to_pylist():
                if row["row"] not in wanted:
                    continue
                prompt, annotated = row["prompt_ids"], row["annotated_ids"]
                parts["row"].append(row["row"])
                parts["input_ids"].append(prompt + annotated)
                parts["labels"].append([IGNORE_INDEX] * len(prompt) + annotated)
                parts["synthetic_ids"].append(row["synthetic_ids"])
                parts["proto_synthetic_ids"].append(row["proto_synthetic_ids"])
    return Dataset.from_dict(parts)


def write_scores(path: Path, scores: Scores, *, prompts_fingerprint: str) -> None:
    """Keep scores, checksummed, with the policy and the prompts that they belong to."""
    order = np.argsort(scores.rows)
    columns = dict(zip(LOGPS, scores.logps[order].T, strict=True))
    table = pa.table({"row": scores.rows[order], **columns}, schema=SCORES_SCHEMA)
    write_table(path, table, {"policy": scores.policy, "prompts_fingerprint": prompts_fingerprint})


def read_scores(path: Path, *, policy: str, prompts_fingerprint: str) -> Scores | None:
    """The scores in a file; None where it is missing, damaged, or of another policy or other
    prompts: they can be computed again."""
    try:
        table, metadata = read_table(path)
    except DamagedTable:
        return None
    if (metadata["policy"], metadata["prompts_fingerprint"]) != (policy, prompts_fingerprint):
        return None
    logps = np.stack([table[name].to_numpy() for name in LOGPS], axis=1)
    return Scores(table["row"].to_numpy(), logps, policy)


def logps_of_rows(scores: Scores | None, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """(len(rows), 3) of these rows in this order; None where one of them was not scored."""
    if scores is None or not np.isin(rows, scores.rows).all():
        return None
    return scores.logps[np.searchsorted(scores.rows, rows)]
