"""The generation step: from the YAML to the complete triplets of the due iteration."""

import importlib.metadata
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute
import yaml
from axolotl.cli.config import load_cfg
from axolotl.cli.utils.load import load_model_and_tokenizer
from axolotl.common.datasets import load_datasets
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from transformers import PreTrainedTokenizerBase

from axolotl_tspin import __version__
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engine import Engine, TransformersEngine
from axolotl_tspin.generation.progress import Progress
from axolotl_tspin.generation.store import (
    RESPONSES_SCHEMA,
    assemble_triplets,
    freeze_prompts,
    proto_synthetic_responses,
    read_prompts,
    read_shards,
    sampled_responses,
    write_table,
)
from axolotl_tspin.resolve import RL_TYPE, GenerationPlan, prepare_generation
from axolotl_tspin.run_directory import RunDirectory, digest

LOG = get_logger(__name__)

SECONDS_BETWEEN_SHARDS = 30.0
"""How much sampling a stopped run loses at most, beside the batch in flight."""


class Outcome(NamedTuple):
    """What a call of the generation step came to."""

    run: RunDirectory
    iteration: int
    due: Literal["train", "done"]
    generated: int


class Batch(NamedTuple):
    """Rows that are sampled together; the number seeds the sampling."""

    number: int
    rows: list[int]


def generate(config_path: str | Path) -> Outcome:
    """Sample what the due iteration needs and write its triplets.

    Stopped at any point, a second call goes on where the first one was and gives what an
    uninterrupted call would have given.

    Args:
        config_path: the YAML that `axolotl train` takes.

    Raises:
        TSpinError: bad configuration, data or run directory; nothing already made is lost.
    """
    raw = DictDefault(yaml.safe_load(Path(config_path).read_text()))
    if raw.rl != RL_TYPE:
        raise TSpinError(f"{config_path}: `rl: {raw.rl}`; the generation step needs `rl: t_spin`")
    plan = prepare_generation(raw)
    if plan.due.step != "generate":
        return Outcome(plan.run, plan.due.iteration, plan.due.step, 0)
    plan.run.check_writable()
    cfg = load_cfg(raw)
    if not plan.run.exists():
        _freeze(plan, cfg)

    LOG.info("T-SPIN iteration %s: sampling from %s", plan.due.iteration, plan.policy)
    generated = 0
    for split in plan.run.splits():
        prompts, fingerprint = read_prompts(plan.run.prompts(split))
        sampling = _sampling(plan, cfg, split, fingerprint)
        folder = plan.run.iteration(plan.due.iteration).responses(split)
        batches, done = _pending(folder, prompts, sampling)
        if batches:
            generated += _sample(plan, cfg, folder, prompts, batches, done, sampling)
        _write_triplets(plan.run, plan.due.iteration, split, prompts, sampling)
    return Outcome(plan.run, plan.due.iteration, "train", generated)


def _write_triplets(
    run: RunDirectory, number: int, split: str, prompts: pa.Table, sampling: Mapping[str, Any]
) -> None:
    """Join the iteration's responses with those of iteration 0, the frozen anchor."""
    synthetic = sampled_responses(read_shards(run.iteration(number).responses(split), sampling)[0])
    proto_synthetic = (
        synthetic if number == 0 else proto_synthetic_responses(run.iteration(0).triplets(split))
    )
    assemble_triplets(
        run.iteration(number).triplets(split),
        prompts,
        sampling["prompts_fingerprint"],
        synthetic,
        proto_synthetic,
    )


def _freeze(plan: GenerationPlan, cfg: Any) -> None:
    """Encode the annotated data through Axolotl's pipeline and keep it for the whole run."""
    cfg.val_set_size = 0
    cfg.test_datasets = cfg.test_datasets if plan.with_test else None
    data = load_datasets(cfg=cfg)
    for split, rows in (("train", data.train_dataset), ("test", data.eval_dataset)):
        if rows is not None:
            freeze_prompts(plan.run.prompts(split), rows)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("axolotl", "datasets", "torch", "transformers", "trl")
    }
    plan.run.begin(plan.identity, {"axolotl-tspin": __version__, **versions})
    shutil.rmtree(cfg.dataset_prepared_path, ignore_errors=True)


def _sampling(plan: GenerationPlan, cfg: Any, split: str, fingerprint: str) -> dict[str, Any]:
    """What a split's responses are made with; a stopped step goes on only under the same."""
    number = plan.due.iteration
    return {
        "prompts_fingerprint": fingerprint,
        "iteration": number,
        "split": split,
        "policy": "initial" if number == 0 else f"iteration_{number - 1}",
        "seed": cfg.seed if cfg.seed is not None else 42,
        "sequence_len": cfg.sequence_len,
        **plan.config.generation.model_dump(),
    }


def _pending(
    folder: Path, prompts: pa.Table, sampling: Mapping[str, Any]
) -> tuple[list[Batch], set[int]]:
    """The batches that still have rows to sample, and the rows that are done.

    Batches are fixed by the prompts and the batch size alone: the longest prompts first, so that
    memory runs out at once or not at all.
    """
    shards, damaged = read_shards(folder, sampling)
    for path in damaged:
        aside = path.with_name(path.name + ".damaged")
        path.rename(aside)
        LOG.warning("%s cannot be read; it is now %s, and its rows are made again", path, aside)
    done = {row for shard in shards for row in shard.table["row"].to_pylist()}
    lengths = pa.compute.list_value_length(prompts["prompt_ids"]).to_pylist()
    order = sorted(range(prompts.num_rows), key=lambda row: (-lengths[row], row))
    size = sampling["batch_size"]
    batches = [
        Batch(start // size, order[start : start + size]) for start in range(0, len(order), size)
    ]
    return [batch for batch in batches if not done.issuperset(batch.rows)], done


def _sample(
    plan: GenerationPlan,
    cfg: Any,
    folder: Path,
    prompts: pa.Table,
    batches: Sequence[Batch],
    done: set[int],
    sampling: Mapping[str, Any],
) -> int:
    """Sample the pending batches, shard by shard; how many responses that were."""
    engine, tokenizer = _load_engine(plan, cfg)
    made_with = {**sampling, "engine_version": engine.version}
    prompt_ids, end_ids = prompts["prompt_ids"].to_pylist(), prompts["end_id"].to_pylist()
    unwritten: list[dict[str, Any]] = []
    first = batches[0].number
    written_at = time.monotonic()
    with Progress(total=prompts.num_rows, done=len(done)) as progress:
        for batch in batches:
            responses = engine.sample(
                [prompt_ids[row] for row in batch.rows],
                max_new_tokens=[
                    min(sampling["max_new_tokens"], cfg.sequence_len - len(prompt_ids[row]))
                    for row in batch.rows
                ],
                stop_token_ids=sorted(
                    {tokenizer.eos_token_id, *(end_ids[row] for row in batch.rows)} - {None}
                ),
                seed=_seed(sampling, batch),
            )
            for row, response in zip(batch.rows, responses, strict=True):
                if row not in done:
                    ended = response.finish_reason == "stop"
                    unwritten.append(
                        {
                            "row": row,
                            "text": tokenizer.decode(response.ids, skip_special_tokens=True),
                            "ids": response.ids + ([end_ids[row]] if ended else []),
                            "finish_reason": response.finish_reason,
                        }
                    )
            progress.advance(len(batch.rows), sum(len(r.ids) for r in responses))
            due = time.monotonic() - written_at > SECONDS_BETWEEN_SHARDS
            if due or batch is batches[-1]:
                write_table(
                    folder / f"{first:06d}-{batch.number:06d}.parquet",
                    pa.Table.from_pylist(unwritten, schema=RESPONSES_SCHEMA),
                    made_with,
                )
                unwritten, first, written_at = [], batch.number + 1, time.monotonic()
    return prompts.num_rows - len(done)


def _seed(sampling: Mapping[str, Any], batch: Batch) -> int:
    """A batch's sampling seed, from the run's seed, the iteration, the split and the batch."""
    return int(
        digest([sampling["seed"], sampling["iteration"], sampling["split"], batch.number]), 16
    ) % (2**63)


def _load_engine(plan: GenerationPlan, cfg: Any) -> tuple[Engine, PreTrainedTokenizerBase]:
    """The policy, loaded as Axolotl would load it for inference."""
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    if tokenizer.pad_token_id is None:
        raise TSpinError(
            "the tokenizer has no pad token; name one in the YAML: special_tokens: "
            "{pad_token: <a token of the vocabulary>}"
        )
    engine = TransformersEngine(
        model, pad_token_id=tokenizer.pad_token_id, sampling=plan.config.generation
    )
    return engine, tokenizer
