"""Log-probabilities of an iteration's triplets under the frozen policy that it starts from.

Methods with a reference (SPIN, eq. 3; T-SPIN_ref, eq. 9) read them as columns, so their training
holds only one model, as T-SPIN's does. They are computed once, in the generation step, block by
block. A process takes the blocks that no other process holds; finished blocks of a killed process
are kept.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from axolotl_tspin.generation.blocks import block_path
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.resolve.loading import LoadedPolicy, Score
from axolotl_tspin.run.logps import LOGPS_SCHEMA, logps_table, made_with, read_logps
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import (
    DamagedTable,
    TableWriter,
    read_metadata,
    write_table,
)
from axolotl_tspin.run.triplets import triplets_of_block
from axolotl_tspin.triplets import TripletTokens

LOG = get_logger(__name__)


def write_references(
    plan: GenerationPlan, fingerprint: str, load: Callable[[], LoadedPolicy]
) -> bool:
    """Compute the reference log-probabilities that the due iteration lacks.

    Args:
        fingerprint: fingerprint of the policy.
        load: loads the policy; called only if something has to be computed.

    Returns:
        True if all are there now; False if another process has blocks in progress.
    """
    loaded = functools.cache(load)

    def score(triplets: Sequence[TripletTokens]) -> torch.Tensor:
        return loaded().score(triplets)

    complete = True
    for triplets, path in plan.run.references(plan.due.iteration):
        prompts = Prompts(plan.run.prompts(triplets.stem))
        complete &= write_reference(path, triplets, prompts, fingerprint, score)
    return complete


def write_reference(
    path: Path, triplets: Path, prompts: Prompts, fingerprint: str, score: Score
) -> bool:
    """Compute the log-probabilities of one file of triplets.

    Args:
        prompts: the prompts of the triplets.
        fingerprint: fingerprint of the policy that scores.

    Returns:
        True if they are all in `path` now.

    Raises:
        DamagedTable: the triplets are missing or were altered.
    """
    metadata = made_with(triplets, fingerprint)
    if _is_intact(path, metadata):
        return True
    if path.exists():
        LOG.warning("%s is damaged, or of other triplets or another policy: recomputed", path)
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
                if not _is_intact(part, metadata):
                    rows = prompts.rows_of(block)
                    logps = score(triplets_of_block(triplets, block)).numpy()
                    write_table(part, logps_table(rows, logps), metadata)
                    scored += len(rows)
    if all(_is_intact(part, metadata) for part in parts):
        with TableWriter(path, LOGPS_SCHEMA) as writer:
            for part in parts:
                writer.write(read_logps(part)[0])
            writer.close(metadata)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    LOG.info(
        "T-SPIN: %s triplets of %s scored under %s in %.0f s",
        scored,
        triplets,
        fingerprint,
        time.monotonic() - started,
    )
    return path.exists()


def _is_intact(path: Path, metadata: Mapping[str, Any]) -> bool:
    try:
        return path.exists() and read_metadata(path) == metadata
    except DamagedTable:
        return False
