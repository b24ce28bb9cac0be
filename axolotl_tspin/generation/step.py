"""The generation step, from the YAML to the complete triplets of the due iteration."""

import contextlib
import functools
import gc
import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import filelock
import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.loaders import load_tokenizer
from transformers import PreTrainedTokenizerBase

from axolotl_tspin import __version__
from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.generation.disk_space import check_disk_space
from axolotl_tspin.generation.engines.engine import Engine
from axolotl_tspin.generation.held_out import hold_out
from axolotl_tspin.generation.policy_verdict import judge_policy, refuse_collapsed_policy
from axolotl_tspin.generation.preflight import check_before_sampling
from axolotl_tspin.generation.reference import write_references
from axolotl_tspin.generation.sampling import SplitSampling, sample_split
from axolotl_tspin.generation.shards import Shard, this_shard
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.embeddings import refuse_new_embeddings
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.resolve.loading import load_policy
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.prompts import freeze_prompts
from axolotl_tspin.strategies.continuation import ResponseTokenizer
from axolotl_tspin.strategies.dropped import dropped_rows
from axolotl_tspin.training.collator import needed_pad_token_id

LOG = get_logger(__name__)


class Outcome(NamedTuple):
    """Result of a call of the generation step.

    `due` is "generate" while other processes still work; `assembled` is True if this call
    completed the triplets. After the last iteration, `iteration` is the one that would follow, and
    only held-out prompts were sampled.
    """

    run: RunDirectory
    iteration: int
    due: Literal["generate", "train", "done"]
    generated: int
    assembled: bool = False


def generate(config_path: str | Path, shard: Shard | None = None) -> Outcome:
    """Sample what the due iteration needs, write its triplets, and for methods with a reference
    their log-probabilities.

    A call that was stopped at any point is continued by the next one, with the same result as an
    uninterrupted call. Any number of processes may work on one run directory; the one that finds
    all blocks complete writes the triplets.

    Args:
        config_path: the YAML that `axolotl train` takes.
        shard: this process's share, instead of the YAML's or the environment's.

    Raises:
        TSpinError: bad configuration, data or run directory; nothing sampled is lost.
    """
    raw = read_yaml(config_path)
    use_ray, workers = bool(raw.use_ray) and shard is None, raw.ray_num_workers or 1
    # Each task decides dtypes on its own machine; Axolotl leaves them open on a Ray driver.
    raw["use_ray"] = use_ray
    plan = prepare_generation(raw)
    if plan.due.step != "generate":
        return Outcome(plan.run, plan.due.iteration, plan.due.step, 0)
    plan.run.check_writable()
    refuse_collapsed_policy(plan)
    check_before_sampling(plan, raw, shard)
    cfg = load_cfg(raw)
    with freeze_lock(plan.run):
        if plan.run.exists():
            # A process with another YAML may have begun it since `prepare_generation` looked.
            plan.run.check_identity(plan.identity)
        else:
            freeze(plan, cfg)
    check_disk_space(read_yaml(config_path), plan.run, plan.config, plan.due)
    if use_ray:
        from axolotl_tspin.generation.ray_tasks import run_on_ray

        generated = run_on_ray(_generate_shard, config_path, workers, plan.config.generation, cfg)
        due = plan.run.due(plan.config.iterations, plan.config.iteration)
        return Outcome(
            plan.run, plan.due.iteration, due.step, generated, assembled=due.step != "generate"
        )

    shard = shard or this_shard(plan.config.generation.shard)
    fingerprint = plan.check_policy()
    LOG.info(
        "T-SPIN: %s: sampling from %s (weights %s)%s",
        "the final policy" if plan.is_final else f"iteration {plan.due.iteration}",
        plan.policy,
        fingerprint,
        f", shard {shard}" if shard.total > 1 else "",
    )
    triplets = plan.run.iteration(plan.due.iteration).triplets
    splits = [
        SplitSampling(plan, cfg, split, fingerprint)
        for split in plan.splits
        if not triplets(split).exists()
    ]
    generated = 0
    with contextlib.ExitStack() as stack:
        load = functools.cache(lambda: load_engine(plan, cfg, stack))
        for split in splits:
            split.select(lambda: load_policy(cfg))
            generated += sample_split(split, shard, load)
            if split.name == "test" and split.is_sampled():
                split.assemble()
                judge_policy(plan)
    unfinished = [split for split in splits if not split.is_sampled()]
    if unfinished:
        done = sum(rows_done(split.folder)[0] for split in splits)
        wanted = sum(int(split.needed.sum()) for split in splits)
        LOG.info("T-SPIN: %s of %s rows sampled; other processes have the rest", done, wanted)
        return Outcome(plan.run, plan.due.iteration, "generate", generated)
    for split in splits:
        split.assemble()
    if "test" not in plan.run.splits():
        judge_policy(plan)
    if plan.is_final:
        return Outcome(plan.run, plan.due.iteration, "done", generated, assembled=bool(splits))
    gc.collect()  # frees the engine's memory for the scoring policy
    complete = write_references(plan, fingerprint, lambda: load_policy(cfg))
    return Outcome(
        plan.run,
        plan.due.iteration,
        "train" if complete else "generate",
        generated,
        assembled=bool(splits),
    )


def _generate_shard(config_path: str, shard: Shard) -> int:
    return generate(config_path, shard).generated


def freeze_lock(run: RunDirectory) -> filelock.FileLock:
    """Make the lock that a process holds while it begins a run."""
    return filelock.FileLock(run.path / ".freeze.lock")


def freeze(plan: GenerationPlan, cfg: Any) -> None:
    """Encode the annotated data through Axolotl's pipeline and store it for the whole run.

    The caller must hold the `freeze_lock` and have found no run.

    Raises:
        TSpinError: bad rows, or tokens that the initial policy has no embeddings for.
    """
    refuse_new_embeddings(cfg)
    plan.run.clear_unbegun()
    cfg.val_set_size = 0
    cfg.test_datasets = cfg.test_datasets if plan.with_test else None
    # Axolotl leaves it open on a Ray driver, but needs it to count steps, which nothing uses here.
    cfg.batch_size = cfg.batch_size or 1
    # A killed process may have left half a data set there, which Axolotl would read as complete.
    shutil.rmtree(cfg.dataset_prepared_path, ignore_errors=True)
    with dropped_rows() as dropped:
        data = load_datasets(cfg=cfg)
    train, test = data.train_dataset, data.eval_dataset
    if test is None:
        train, test = hold_out(train, plan.held_out, plan.val_set_size, cfg.seed or 42)
    for split, rows in (("train", train), ("test", test)):
        if rows is not None:
            freeze_prompts(plan.run.prompts(split), rows, len(rows))
    begin_run(plan, dropped)
    shutil.rmtree(cfg.dataset_prepared_path, ignore_errors=True)


def begin_run(plan: GenerationPlan, dropped: Mapping[str, int]) -> None:
    """Write the run's manifest, once its prompts are frozen.

    Args:
        dropped: number of the data sets' rows that were left out, by kind.
    """
    versions = {
        name: importlib.metadata.version(name)
        for name in ("axolotl", "datasets", "torch", "transformers", "trl")
    }
    plan.run.begin(
        plan.identity,
        {"axolotl-tspin": __version__, **versions},
        initial_policy=policy_fingerprint(
            plan.initial_policy, plan.run.fingerprints, plan.revision
        ),
        dropped=dropped,
    )


def load_engine(
    plan: GenerationPlan, cfg: Any, stack: contextlib.ExitStack
) -> tuple[Engine, PreTrainedTokenizerBase]:
    """Load the engine that the YAML names, with the policy; it is closed with the stack."""
    config: GenerationConfig = plan.config.generation
    # A selection may have loaded the policy. Free its memory: the engine may run in another
    # process.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    engine: Engine
    if config.backend == "transformers":
        from axolotl_tspin.generation.engines.transformers_engine import (
            TransformersEngine,
            batch_size_for,
        )

        policy = load_policy(cfg)
        tokenizer = policy.tokenizer
        engine = TransformersEngine(
            policy.model,
            pad_token_id=needed_pad_token_id(tokenizer),
            sampling=config,
            batch_size=batch_size_for(policy.model, config.batch_size, cfg.sequence_len),
            precision=policy.precision,
        )
    elif config.backend == "vllm":
        from axolotl_tspin.generation.engines.vllm_engine import load_vllm

        tokenizer = load_tokenizer(cfg)
        engine = load_vllm(plan.policy, config, cfg)
    else:
        from axolotl_tspin.generation.engines.server_engine import ServerEngine

        tokenizer = load_tokenizer(cfg)
        engine = ServerEngine(
            config,
            policy=plan.policy,
            strangers=[
                plan.run.iteration(t).model
                for t in range(plan.config.iterations)
                if t != plan.due.iteration - 1
            ],
            tokenize=ResponseTokenizer(tokenizer).behind,
        )
    stack.callback(engine.close)
    return engine, tokenizer
