"""The generation step's shards as Ray tasks (`use_ray: true`, Axolotl's key)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.logs import get_logger

LOG = get_logger(__name__)


def run_on_ray(
    sample_shard: Callable[[str, Shard], int],
    config_path: str | Path,
    workers: int,
    config: GenerationConfig,
    cfg: Any,
) -> int:
    """Sample with `workers` tasks (Axolotl's `ray_num_workers`), one shard each.

    Ray places the tasks; all nodes must see the run directory.

    Args:
        sample_shard: does a shard's work, given the YAML, and returns its number of responses.
        cfg: Axolotl's validated configuration; a task asks for `resources_per_worker`.

    Returns:
        The number of responses.
    """
    if not ray.is_initialized():
        ray.init()
    resources = dict(cfg.resources_per_worker or {})
    gpus = resources.pop("GPU", 0)
    if config.backend == "vllm" and gpus:
        block = cfg.vllm or {}
        gpus = (block.get("tensor_parallel_size") or 1) * (block.get("data_parallel_size") or 1)
    options = {
        "num_gpus": 0 if config.backend == "server" else gpus,
        "num_cpus": resources.pop("CPU", 1),
        "resources": resources,
        # The user starts a second attempt; what a task sampled is kept.
        "max_retries": 0,
    }
    LOG.info("T-SPIN: %s Ray tasks sample", workers)
    task = ray.remote(**options)(_in_folder)
    return sum(
        ray.get(
            [
                task.remote(
                    sample_shard,
                    str(Path(config_path).resolve()),
                    Shard(number, workers),
                    os.getcwd(),
                )
                for number in range(workers)
            ]
        )
    )


def _in_folder(
    sample_shard: Callable[[str, Shard], int], config_path: str, shard: Shard, folder: str
) -> int:
    """Run one task in the driver's folder, so that relative paths in the YAML stay valid."""
    os.chdir(folder)
    return sample_shard(config_path, shard)
