"""Sampled responses and triplets on disk, in the blocks of the run's prompts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.prompts import PROMPTS_SCHEMA, Prompts
from axolotl_tspin.run.tables import (
    DamagedTable,
    TableWriter,
    open_groups,
    read_metadata,
    read_table,
)
from axolotl_tspin.triplets import TOKEN_COLUMNS, TripletTokens

PROVENANCE = {
    "finish_reason": pa.string(),
    "tokens": pa.int32(),
    "iteration": pa.int32(),
    "policy": pa.string(),
    "sampling": pa.string(),
    "engine": pa.string(),
}
"""Columns recorded for each response: why it ended, its length without an end-of-turn token, the
iteration it was sampled for, the policy's fingerprint, the sampling settings and the row's seed
(JSON), and the engine with its version."""

RESPONSES_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "prompt_hash": pa.string(),
        "text": pa.string(),
        "ids": pa.list_(pa.int32()),
        **PROVENANCE,
    }
)
SUFFIXES = {"text": "", "ids": "_ids", **{name: f"_{name}" for name in PROVENANCE}}
"""Suffixes of a response's fields: with the response's name they give a triplet's columns."""

TRIPLETS_SCHEMA = pa.schema(
    [
        *PROMPTS_SCHEMA,
        *(
            pa.field(name + suffix, RESPONSES_SCHEMA.field(field).type)
            for name in ("synthetic", "proto_synthetic")
            for field, suffix in SUFFIXES.items()
        ),
    ]
)


def read_responses(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read a block's responses and their metadata; DamagedTable as for `read_table`."""
    table, metadata = read_table(path)
    if table.schema != RESPONSES_SCHEMA:
        raise DamagedTable(f"{path} cannot be read (its columns are not those of responses)")
    return table, metadata


class Sources(NamedTuple):
    """Sources of an iteration's triplets.

    Attributes:
        responses: gives the path of a block's sampled responses.
        sampled: (rows,) bool, the rows that were to be sampled in this iteration.
        first: (rows,) int64, for each row the row whose response it shares (mostly itself).
        previous: the last iteration's triplets, for rows that were not selected.
        initial: iteration 0's triplets, which hold the anchor; None at iteration 0.
    """

    responses: Callable[[int], Path]
    sampled: np.ndarray
    first: np.ndarray
    previous: Path | None
    initial: Path | None


def assemble_triplets(
    path: Path, prompts: Prompts, sources: Sources, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Join prompts with both responses, block by block, and write the triplets.

    Args:
        record: further metadata of the file.

    Returns:
        The metadata: counts of rows, of those sampled, kept from the iteration before, or copied
        from a row with the same prompt; tokens sampled, seconds of sampling, finish reasons.

    Raises:
        DamagedTable: a file of responses, or of earlier triplets, is damaged.
    """
    shared = _shared_responses(prompts, sources)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seconds = 0.0
    with ExitStack() as stack:
        previous, initial = (
            stack.enter_context(open_groups(_verified(p))) if p else None
            for p in (sources.previous, sources.initial)
        )
        writer = stack.enter_context(TableWriter(path, TRIPLETS_SCHEMA))
        for block in prompts.blocks:
            table = prompts.read(block)
            rows = prompts.rows_of(block)
            responses: dict[int, dict[str, Any]] = {}
            if _to_sample(prompts, sources, block):
                sampled, metadata = read_responses(sources.responses(block))
                responses = {r["row"]: r for r in sampled.to_pylist()}
                seconds += metadata["seconds"]
                counts["sampled"] += len(responses)
                counts["tokens"] += sum(r["tokens"] for r in responses.values())
                reasons.update(r["finish_reason"] for r in responses.values())
            kept = _responses_of(previous, block, "synthetic") if previous else None
            synthetic = []
            for index, row in enumerate(rows):
                first = int(sources.first[row])
                if not sources.sampled[row]:
                    assert kept is not None
                    synthetic.append(kept[index])
                    counts["kept"] += 1
                elif first == row:
                    synthetic.append(responses[row])
                else:
                    synthetic.append({**shared[first], "row": row})
                    counts["copied"] += 1
            columns = {name: table[name] for name in table.column_names}
            columns |= _renamed(synthetic, "synthetic")
            anchor = _responses_of(initial, block, "proto_synthetic") if initial else synthetic
            columns |= _renamed(anchor, "proto_synthetic")
            writer.write(pa.table(columns, schema=TRIPLETS_SCHEMA))
        metadata = {
            **record,
            "prompts_fingerprint": prompts.fingerprint,
            "rows": prompts.rows,
            "block_rows": prompts.block_rows,
            "sampled": counts["sampled"],
            "kept": counts["kept"],
            "copied": counts["copied"],
            "tokens": counts["tokens"],
            "seconds": round(seconds, 1),
            "finish_reasons": dict(reasons),
        }
        writer.close(metadata)
    return metadata


def needed_rows(prompts: Prompts, sampled: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(rows,) bool: the rows that an engine must sample, as rows may share a response."""
    needed = np.zeros(prompts.rows, dtype=bool)
    needed[first[sampled]] = True
    return needed


def iterate_triplets(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Verify a triplets file's checksums and yield its rows, one at a time."""
    with open_groups(_verified(path)) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=list(columns)).to_pylist()


def triplets_of_rows(path: Path, rows: Sequence[int] | np.ndarray) -> list[TripletTokens]:
    """Verify a file's checksums and read the triplets of these rows, in the file's order."""
    wanted = set(np.asarray(rows).tolist())
    found = (
        TripletTokens(*(row[name] for name in TOKEN_COLUMNS))
        for row in iterate_triplets(path, ["row", *TOKEN_COLUMNS])
        if row["row"] in wanted
    )
    # Nothing is read beyond the last of them.
    return list(islice(found, len(wanted)))


def triplets_of_block(path: Path, block: int) -> list[TripletTokens]:
    """Read the triplets of a block (unverified: see `read_metadata`)."""
    with open_groups(path) as file:
        rows = file.read_row_group(block, columns=list(TOKEN_COLUMNS)).to_pylist()
    return [TripletTokens(*(row[name] for name in TOKEN_COLUMNS)) for row in rows]


def check_triplets(
    path: Path,
    prompts: Prompts,
    *,
    initial_policy: str,
    start_policy: str,
    earlier_policies: Sequence[str] = (),
    allow_foreign: bool = False,
) -> list[str]:
    """Refuse triplets that are damaged, or not made from this run's prompts and policies.

    Args:
        initial_policy, start_policy: fingerprints of θ0 and of the policy that the iteration
            starts from.
        earlier_policies: fingerprints of the run's other policies, whose responses a selection may
            have kept.
        allow_foreign: accept responses of other policies (other prompts are never accepted).

    Returns:
        Descriptions of what `allow_foreign` let pass.

    Raises:
        TSpinError: names the file, the rows, and what to do.
    """
    remedy = "move it away and run `axolotl t-spin generate` again: the responses are kept"
    try:
        metadata = read_metadata(path)
    except DamagedTable as error:
        raise TSpinError(f"{error}; {remedy}") from error
    if metadata["prompts_fingerprint"] != prompts.fingerprint or metadata["rows"] != prompts.rows:
        raise TSpinError(
            f"{path} ({metadata['rows']} rows) does not belong to {prompts.path} ({prompts.rows} "
            f"rows): it was made for another data set; {remedy}"
        )
    allowed = {
        "synthetic": {start_policy, *(earlier_policies if metadata.get("kept") else ())},
        "proto_synthetic": {initial_policy},
    }
    foreign: dict[tuple[str, str], list[int]] = {}
    columns = ["prompt_hash", *(f"{name}_policy" for name in allowed)]
    with open_groups(path) as file:
        for block in prompts.blocks:
            theirs = file.read_row_group(block, columns=columns).to_pydict()
            ours = prompts.read(block, ["prompt_hash"])["prompt_hash"].to_pylist()
            for row, a, b in zip(prompts.rows_of(block), theirs["prompt_hash"], ours, strict=True):
                if a != b:
                    raise TSpinError(
                        f"{path}: row {row} answers another prompt than row {row} of "
                        f"{prompts.path}; {remedy}"
                    )
            for name, policies in allowed.items():
                for row, policy in zip(
                    prompts.rows_of(block), theirs[f"{name}_policy"], strict=True
                ):
                    if policy not in policies:
                        foreign.setdefault((name, policy), []).append(row)
    findings = [
        f"{len(rows)} {name} responses (rows {_some(rows)}) were sampled by the policy {policy}, "
        f"not by {' or '.join(sorted(allowed[name]))}, the policy that this iteration "
        + ("anchors to" if name == "proto_synthetic" else "starts from")
        for (name, policy), rows in foreign.items()
    ]
    if findings and not allow_foreign:
        raise TSpinError(
            f"{path}: {'; '.join(findings)}. Were the weights changed in their folder, or was the "
            "file copied from another run? Put the policy back, or sample the responses again, "
            "or train on them nevertheless with `t_spin.allow_foreign: true`, which is recorded"
        )
    return findings


def _verified(path: Path) -> Path:
    read_metadata(path)
    return path


def _to_sample(prompts: Prompts, sources: Sources, block: int) -> bool:
    rows = np.asarray(prompts.rows_of(block))
    return bool(needed_rows(prompts, sources.sampled, sources.first)[rows].any())


def _shared_responses(prompts: Prompts, sources: Sources) -> dict[int, dict[str, Any]]:
    """Read the responses that other rows share, in the same block or in another."""
    wanted = {
        int(first)
        for row, first in enumerate(sources.first)
        if first != row and sources.sampled[row]
    }
    shared: dict[int, dict[str, Any]] = {}
    for block in sorted({prompts.block_of(row) for row in wanted}):
        table, _ = read_responses(sources.responses(block))
        shared |= {r["row"]: r for r in table.to_pylist() if r["row"] in wanted}
    return shared


def _responses_of(file: Any, block: int, name: str) -> list[dict[str, Any]]:
    """Read one of the two responses in a block of triplets, under RESPONSES_SCHEMA's names."""
    columns = {name + suffix: field for field, suffix in SUFFIXES.items()}
    table = file.read_row_group(block, columns=list(columns))
    return [{columns[k]: v for k, v in row.items()} for row in table.to_pylist()]


def _renamed(responses: list[dict[str, Any]], name: str) -> dict[str, pa.Array]:
    return {
        name + suffix: pa.array(
            [response[field] for response in responses], type=RESPONSES_SCHEMA.field(field).type
        )
        for field, suffix in SUFFIXES.items()
    }


def _some(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"{shown}, … {rows[-1]}" if len(rows) > 5 else shown
