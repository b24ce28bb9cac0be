"""Disk space that a run's iterations take, against what is free."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import Due, Policy, RunDirectory
from axolotl_tspin.run.fingerprints import weights_size
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import DamagedTable, read_metadata
from axolotl_tspin.run.triplets import iterate_triplets

LOG = get_logger(__name__)

BYTES_PER_TOKEN = 4 + 5
"""Bytes per token of a stored response: its id and its text, uncompressed."""


class DiskNeed(NamedTuple):
    """Bytes on disk, without checkpoints.

    Attributes:
        step: what the due step will take at least.
        rest: what the run's rest can take, if sampled responses do not compress.
    """

    step: int
    rest: int


def check_disk_space(
    cfg: Mapping[str, Any], run: RunDirectory, config: TSpinConfig, due: Due
) -> None:
    """Warn if less is free than the rest of a run that has begun can take.

    Args:
        cfg: the YAML as the user wrote it.

    Raises:
        TSpinError: not even the due step fits.
    """
    # An adapter's size is not known beforehand.
    initial = None if cfg.get("adapter") else Policy(cfg["base_model"])
    model = weights_size(initial, cfg.get("revision_of_model")) if initial else None
    try:
        need = disk_need(run, config, due, model or 0)
    except DamagedTable:
        return  # the step that needs the file says what to do
    compare_with_free(run.path, need, due)


def compare_with_free(folder: Path, need: DiskNeed, due: Due) -> None:
    """Compare a need with what is free on a folder's file system; see `check_disk_space`."""
    free = shutil.disk_usage(folder).free
    if need.step > free:
        raise TSpinError(
            f"`output_dir: {folder}` has {_size(free)} free on its disk, and the step "
            f"'{due.step}' of iteration {due.iteration} takes at least {_size(need.step)}: free "
            "some space, and run the same command again"
        )
    if need.rest > free:
        LOG.warning(
            "T-SPIN: `output_dir: %s` has %s free on its disk, and the run's rest can take %s, "
            "without checkpoints. Free some space, or keep fewer models with "
            "`t_spin.keep_models`; `axolotl t-spin plan` has each iteration's share",
            folder,
            _size(free),
            _size(need.rest),
        )


def disk_need(run: RunDirectory, config: TSpinConfig, due: Due, model: int) -> DiskNeed:
    """Estimate what a run that has begun still takes.

    Args:
        model: bytes of a trained model; 0 if that is not known.
    """
    rows = {split: Prompts(run.prompts(split)).rows for split in run.splits()}
    response, _ = response_tokens(run, config)
    numbers = range(config.iterations) if config.iteration is None else [config.iteration]
    left = [number for number in numbers if run.step_of(number).step != "done"]
    rest = 0
    for number in left:
        responses = responses_left(run, number, rows, config)
        rest += stored_bytes(sum(rows.values()), response, int(responses * response))
    rest += model * _models_at_once(run, config, len(left))
    return DiskNeed(model if due.step == "train" else _triplets_at_least(run, config, due), rest)


def stored_bytes(rows: int, response: float, sampled_tokens: int) -> int:
    """Bytes of an iteration's triplets, which hold two responses a row, and of what is sampled.

    Args:
        response: mean tokens of a response.
    """
    return int(rows * 2 * response * BYTES_PER_TOKEN) + sampled_tokens * BYTES_PER_TOKEN


def response_tokens(run: RunDirectory, config: TSpinConfig) -> tuple[float, bool]:
    """Mean tokens of a response in the last complete triplets, and True; before there are any, the
    limit, and False."""
    paths = [run.iteration(number).triplets("train") for number in range(config.iterations)]
    paths = [path for path in paths if path.exists()]
    if not paths:
        return float(config.generation.max_new_tokens), False
    metadata = read_metadata(paths[-1], verify=False)
    if metadata["sampled"]:
        return metadata["tokens"] / metadata["sampled"], True
    seen = [row["synthetic_ids"] for row in iterate_triplets(paths[-1], ["synthetic_ids"])]
    return sum(map(len, seen)) / len(seen), True


def responses_left(
    run: RunDirectory, number: int, rows: dict[str, int], config: TSpinConfig
) -> int:
    """Count the responses still to sample, in the splits whose triplets are not complete.

    Args:
        rows: number of rows, by split.
    """
    iteration, left = run.iteration(number), 0
    share = config.generation.fraction if number else 1.0
    for split, count in rows.items():
        if not iteration.triplets(split).exists():
            done, _ = rows_done(iteration.responses(split))
            left += max(math.ceil(count * share) - done, 0)
    return left


def _models_at_once(run: RunDirectory, config: TSpinConfig, left: int) -> int:
    """Count the models that come to those already here, at most. `keep_models` deletes one only
    once a later one is complete."""
    if config.keep_models == "all":
        return left
    kept = 1 if config.keep_models == "last" else config.keep_models
    here = sum(run.iteration(number).model.exists() for number in range(config.iterations))
    return min(left, max(kept + 1 - here, 1))


def _triplets_at_least(run: RunDirectory, config: TSpinConfig, due: Due) -> int:
    """Bytes of the due iteration's triplets: as many as the last ones have, and at the first
    iteration those of the prompts, which are part of them."""
    total = 0
    # After the last iteration, only held-out prompts are sampled.
    for split in run.splits() if due.iteration < config.iterations else ["test"]:
        if not run.iteration(due.iteration).triplets(split).exists():
            before = run.iteration(due.iteration - 1).triplets(split)
            total += (before if before.exists() else run.prompts(split)).stat().st_size
    return total


def _size(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 1e7 else f"{amount / 1e3:.1f} kB"
