"""Log-probabilities of an iteration's triplets under the frozen policy that it starts from.

Methods with a reference (SPIN, eq. 3; T-SPIN_ref, eq. 9) read them as columns, so that their
training holds one model, as T-SPIN's does. They are computed once, in the generation step, block
by block: a process takes the blocks that no other one holds, and what a killed one left is kept.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import torch
from axolotl.utils.logging import get_logger

from axolotl_tspin.generation.blocks import block_path
from axolotl_tspin.generation.store import REFERENCE_SCHEMA, Prompts, reference_made_with
from axolotl_tspin.layouts import RESPONSES, TripletTokens
from axolotl_tspin.loading import LoadedPolicy
from axolotl_tspin.resolve import GenerationPlan
from axolotl_tspin.tables import (
    DamagedTable,
    TableWriter,
    open_groups,
    read_metadata,
    read_table,
    write_table,
)

LOG = get_logger(__name__)

TOKEN_COLUMNS = ["prompt_ids", *(f"{name}_ids" for name in RESPONSES)]

Score = Callable[[list[TripletTokens]], torch.Tensor]
"""(B, 3) log-probabilities of B triplets, in nats."""


def write_references(
    plan: GenerationPlan, cfg: Any, fingerprint: str, load: Callable[[], LoadedPolicy]
) -> bool:
    """Compute what the due iteration lacks; whether all is there now (else another process has
    blocks in work).

    Args:
        fingerprint: of the policy.
        load: loads it, called where something is to be computed.
    """
    loaded = functools.cache(load)

    def score(triplets: list[TripletTokens]) -> torch.Tensor:
        return loaded().score(triplets, cfg.micro_batch_size)

    complete = True
    for triplets, path in plan.run.references(plan.due.iteration):
        prompts = Prompts(plan.run.prompts(triplets.stem))
        complete &= write_reference(path, triplets, prompts, fingerprint, score)
    return complete


def write_reference(
    path: Path, triplets: Path, prompts: Prompts, fingerprint: str, score: Score
) -> bool:
    """The log-probabilities of one file of triplets; whether they are all in `path` now.

    Args:
        prompts: the ones that the triplets answer.
        fingerprint: of the policy that scores.

    Raises:
        DamagedTable: the triplets are missing or were altered.
    """
    made_with = reference_made_with(triplets, fingerprint)
    if _is_intact(path, made_with):
        return True
    if path.exists():
        LOG.warning("%s is damaged, or of other triplets or another policy: made anew", path)
        path.unlink()
    read_metadata(triplets)
    started, scored = time.monotonic(), 0
    parts = [block_path(path.with_suffix(""), block) for block in prompts.blocks]
    for block, part in zip(prompts.blocks, parts, strict=True):
        with contextlib.suppress(filelock.Timeout):
            part.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(part.with_suffix(".lock"), timeout=0):
                if path.exists():
                    return True
                if not _is_intact(part, made_with):
                    table = _scored(triplets, prompts, block, score)
                    write_table(part, table, made_with)
                    scored += table.num_rows
    if all(_is_intact(part, made_with) for part in parts):
        with TableWriter(path, REFERENCE_SCHEMA) as writer:
            for part in parts:
                writer.write(read_table(part)[0])
            writer.close(made_with)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    LOG.info(
        "T-SPIN: %s triplets of %s scored under %s in %.0f s",
        scored,
        triplets,
        fingerprint,
        time.monotonic() - started,
    )
    return path.exists()


def _is_intact(path: Path, made_with: Mapping[str, Any]) -> bool:
    try:
        return path.exists() and read_metadata(path) == made_with
    except DamagedTable:
        return False


def _scored(triplets: Path, prompts: Prompts, block: int, score: Score) -> pa.Table:
    with open_groups(triplets) as file:
        rows = file.read_row_group(block, columns=TOKEN_COLUMNS).to_pylist()
    logps = score([TripletTokens(*(row[name] for name in TOKEN_COLUMNS)) for row in rows])
    columns = dict(zip(RESPONSES, logps.T.numpy(), strict=True))
    return pa.table({"row": prompts.rows_of(block), **columns}, schema=REFERENCE_SCHEMA)
