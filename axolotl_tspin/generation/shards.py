"""Shares of the blocks, for processes that sample together in one run directory."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Shard(NamedTuple):
    """Share `number` (from 0) of `total`."""

    number: int = 0
    total: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def this_shard(setting: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Find this process's share: `t_spin.generation.shard`, or torchrun's or SLURM's.

    SLURM's counts only inside a job step (`srun`). A batch script also sees the number of tasks,
    but it is a single process.
    """
    if setting:
        number, total = setting.split("/")
        return Shard(int(number), int(total))
    for rank, world, needed in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),
    ):
        if all(name in environment for name in (rank, world, needed)):
            return Shard(int(environment[rank]), int(environment[world]))
    return Shard()
