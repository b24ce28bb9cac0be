"""Agreement of a training's ranks before they have a process group: all go on, or none."""

import itertools
import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta

from axolotl_tspin.errors import TSpinError

PATIENCE = timedelta(minutes=30)
"""Longest wait for a rank that hashes a large model's weights."""

_steps = itertools.count()


def rank() -> int:
    """This process's rank over all nodes; 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def in_step(work: Callable[[], str]) -> None:
    """Run the work on rank 0, then on the others; if one fails, all fail.

    This holds under torchrun and `accelerate launch`. Other launchers give processes no way to
    communicate before the process group exists, so there each rank does its work alone.

    Args:
        work: returns the value that all ranks have to agree on.

    Raises:
        TSpinError: the work failed here or on another rank, or a rank's result differs from rank
            0's, which happens on nodes that do not share the run directory.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        work()
        return
    import torch.distributed as dist

    agent, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"t_spin/{next(_steps)}", agent)

    def report(of_rank: int) -> dict[str, str]:
        return json.loads(store.get(str(of_rank)))

    first: dict[str, str] = {}
    if rank() > 0:
        first = report(0)
        if "error" in first:
            raise TSpinError(f"rank 0 on {first['host']}: {first['error']}")
    mine = {"host": socket.gethostname()}
    try:
        mine["result"] = work()
        if rank() > 0 and mine["result"] != first["result"]:
            raise TSpinError(f"found {mine['result']}, but rank 0 found {first['result']}")
    except Exception as error:
        mine["error"] = str(error) or type(error).__name__
        if rank() > 0 and isinstance(error, TSpinError):
            mine["error"] += (
                f". Rank 0 on {first['host']} went on. `output_dir` must hold the same on every "
                "node; put it on a file system that they share"
            )
            raise TSpinError(f"rank {rank()} on {mine['host']}: {mine['error']}") from error
        raise
    finally:
        store.set(str(rank()), json.dumps(mine))
    for other in range(size):
        theirs = report(other)
        if "error" in theirs:
            raise TSpinError(f"rank {other} on {theirs['host']}: {theirs['error']}")
