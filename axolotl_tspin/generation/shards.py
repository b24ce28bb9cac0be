"""Which share of the blocks a process samples, where many work on one run directory."""

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
    """The share of this process: `t_spin.generation.shard`, or torchrun's or SLURM's.

    SLURM counts only inside a job step (`srun`): a batch script itself also sees the number of
    tasks, but there is one of it.
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
