"""What a run will need, checked before anything is sampled."""

from collections.abc import Mapping
from typing import Any

from axolotl_tspin.generation.disk_space import check_disk_space
from axolotl_tspin.generation.shards import Shard, this_shard
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.resolve.preflight.engines import check_vllm, tell_unreachable_servers
from axolotl_tspin.resolve.preflight.hub import check_hub
from axolotl_tspin.resolve.preflight.trackers import check_trackers
from axolotl_tspin.resolve.yaml_file import RawConfig, inspect_run
from axolotl_tspin.run.settings import changed_settings

LOG = get_logger(__name__)


def check_before_sampling(
    plan: GenerationPlan, cfg: Mapping[str, Any], shard: Shard | None = None
) -> None:
    """Check what sampling and the training after it need, and tell which settings have changed.

    Args:
        cfg: the YAML, resolved for the plan's step.
        shard: the share that Ray gave to this process, if it did.

    Raises:
        TSpinError: a step could not be done here; the message says what lacks and what to type.
    """
    if _is_to_sample(plan) and not cfg.get("use_ray"):  # Ray's driver does not sample
        check_vllm(plan.config.generation)
        tell_unreachable_servers(plan.config.generation)
    # Other shards may be on machines that only sample.
    if shard is not None or this_shard(plan.config.generation.shard).number != 0:
        return
    if not plan.is_final:
        check_trackers(cfg)
        check_hub(cfg)
    if plan.run.exists() and (changes := changed_settings(plan.run, plan.due, cfg)):
        LOG.warning("T-SPIN: changed %s", changes)


def check_before_run(cfg: RawConfig) -> None:
    """Check what the steps of a run need, before its first: a training can be due, and evaluations
    come before either.

    Args:
        cfg: the YAML as the user wrote it.

    Raises:
        TSpinError: as for sampling, or not even the trained model would fit on the disk.
    """
    config, run = inspect_run(cfg)
    due = run.due(config.iterations, config.iteration)
    if due.step == "done":
        return
    check_trackers(cfg)
    check_hub(cfg)
    goes_on = config.iteration is None and due.iteration + 1 < config.iterations
    if (due.step == "generate" or goes_on) and not cfg.get("use_ray"):
        check_vllm(config.generation)
    if due.step == "train":  # else the sampling looks itself, once the prompts are frozen
        check_disk_space(cfg, run, config, due)


def _is_to_sample(plan: GenerationPlan) -> bool:
    """False if only log-probabilities of complete triplets are left to compute."""
    triplets = plan.run.iteration(plan.due.iteration).triplets
    splits = ["test"] if plan.is_final else plan.run.splits()
    return not plan.run.exists() or not all(triplets(split).exists() for split in splits)
