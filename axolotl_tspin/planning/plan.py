"""`axolotl t-spin plan`: the work that `run` would do, and its approximate cost."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from axolotl.cli.config import load_cfg
from axolotl.loaders import load_tokenizer
from axolotl.loaders.adapter import load_lora
from axolotl.loaders.utils import load_model_config
from axolotl.prompt_strategies import load as load_strategy
from axolotl.utils.dict import DictDefault
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.status import run_status
from axolotl_tspin.errors import BadRow
from axolotl_tspin.generation.disk_space import response_tokens, responses_left, stored_bytes
from axolotl_tspin.planning.memory import (
    MemoryEstimate,
    ModelShape,
    ParallelSetting,
    estimate_memory,
    model_shape,
    parallel_setting,
)
from axolotl_tspin.planning.micro_batch import MicroBatch, largest_micro_batch
from axolotl_tspin.resolve.data_sets import load_data
from axolotl_tspin.resolve.steps import PARTITIONING_KEYS, prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.fingerprints import weights_size
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.settings import changed_settings
from axolotl_tspin.training.layout_choice import Choice, choose_layout

LOOKED_AT = 256
"""Number of rows whose lengths represent all."""


class Lengths(NamedTuple):
    """Number of rows, and mean tokens of the training split.

    Attributes:
        test_rows: rows that also need responses; they are assumed to be as long.
        measured: True if responses were seen; False if their lengths are upper bounds.
        longest: tokens of prompt, annotated and longest sampled response of the row with the most
            tokens.
    """

    rows: int
    test_rows: int
    prompt: float
    annotated: float
    response: float
    measured: bool
    longest: tuple[int, int, int]


class IterationPlan(NamedTuple):
    """Remaining work of one iteration.

    Attributes:
        steps: those of "generate" and "train" that are left.
        responses: number of responses to sample, in both splits.
        sampled_tokens: number of tokens of these responses.
        prompt_tokens: number of prompt tokens that the engine reads for them.
        trained_tokens: number of tokens in a pass over the triplets, prompts three times (a padded
            row each).
        passes: number of passes over the triplets (num_epochs).
        optimizer_steps: number of steps of all ranks together.
        sampling_seconds: seconds of one sampling process, at the rate of the trained iterations;
            None if there are none.
        training_seconds: seconds that the last trained iteration took.
        disk: bytes of responses and triplets, and of the model if its size is known beforehand.
    """

    iteration: int
    steps: list[str]
    responses: int
    sampled_tokens: int
    prompt_tokens: int
    trained_tokens: int
    passes: float
    optimizer_steps: int
    sampling_seconds: float | None
    training_seconds: float | None
    disk: int


class MemoryPlan(NamedTuple):
    """The memory of one rank, and the inputs of the estimate."""

    shape: ModelShape
    setting: ParallelSetting
    choice: Choice
    batch: MicroBatch
    estimate: MemoryEstimate


class RunPlan(NamedTuple):
    """Remaining work of a run, iteration by iteration, and the memory that training needs.

    Attributes:
        changes: settings of the due step that have changed; see `changed_settings`.
    """

    lengths: Lengths
    iterations: list[IterationPlan]
    memory: MemoryPlan
    changes: str


def plan_run(config_path: Path, ranks: int) -> RunPlan:
    """Estimate what is left of a run from the lengths of its rows.

    Args:
        ranks: processes that train, in data parallel.

    Raises:
        TSpinError: bad configuration or data.
    """
    raw = read_yaml(config_path)
    adapter = raw.adapter
    partitioning = {key: raw[key] for key in PARTITIONING_KEYS if raw.get(key)}
    plan = prepare_generation(raw)
    config, run = plan.config, plan.run
    changes = changed_settings(run, plan.due, raw) if run.exists() else ""
    cfg = load_cfg(raw)
    cfg.update(partitioning)  # removed for a step that samples, but training's memory needs them
    limit, row = config.generation.max_new_tokens, cfg.sequence_len
    if run.exists():
        lengths = _frozen_lengths(run, config, row)
    else:
        lengths = _source_lengths(cfg, limit, with_test=plan.with_test)
    model = None if adapter else weights_size(plan.initial_policy, plan.revision)
    sampling_rate, training_seconds = _measured_rates(run, config)
    plans = []
    for number in range(config.iterations):
        step = run.step_of(number).step if run.exists() else "generate"
        if step == "done":
            continue
        steps = ["generate", "train"] if step == "generate" else ["train"]
        by_split = {"train": lengths.rows, "test": lengths.test_rows}
        responses = responses_left(run, number, by_split, config) if step == "generate" else 0
        per_triplet = 3 * lengths.prompt + lengths.annotated + 2 * lengths.response
        batch = cfg.micro_batch_size * (cfg.gradient_accumulation_steps or 1) * ranks
        epochs = cfg.num_epochs or 1.0
        triplets = lengths.rows * (1 + min(number, config.history_window))
        steps_left = cfg.max_steps or math.ceil(math.ceil(triplets / batch) * epochs)
        tokens = int(responses * lengths.response)
        stored = stored_bytes(sum(by_split.values()), lengths.response, tokens)
        plans.append(
            IterationPlan(
                iteration=number,
                steps=steps,
                responses=responses,
                sampled_tokens=tokens,
                prompt_tokens=int(responses * lengths.prompt),
                trained_tokens=int(triplets * per_triplet),
                passes=epochs,
                optimizer_steps=steps_left,
                sampling_seconds=tokens / sampling_rate if sampling_rate else None,
                training_seconds=training_seconds,
                disk=stored + (model or 0),
            )
        )
    training = DictDefault(cfg.to_dict() | {"adapter": adapter})
    return RunPlan(lengths, plans, _memory(training, config, lengths, ranks), changes)


def _memory(cfg: DictDefault, config: TSpinConfig, lengths: Lengths, ranks: int) -> MemoryPlan:
    model = _policy_without_weights(cfg)
    choice = choose_layout(model, config.layout, compiled=bool(cfg.torch_compile))
    shape = model_shape(model)
    setting = parallel_setting(cfg, shape, ranks)
    batch = largest_micro_batch(lengths.longest, choice, cfg.micro_batch_size)
    return MemoryPlan(shape, setting, choice, batch, estimate_memory(shape, setting, batch))


def _policy_without_weights(cfg: DictDefault) -> Any:
    """Build the policy that Axolotl would train, on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_model_config(cfg), trust_remote_code=bool(cfg.trust_remote_code)
        )
        if not cfg.adapter:
            return model
        _, lora = load_lora(model, cfg, config_only=True)
        return get_peft_model(model, lora)


def _measured_rates(run: RunDirectory, config: TSpinConfig) -> tuple[float | None, float | None]:
    """Read tokens per second of one sampling process, and seconds of the last training."""
    if not run.exists():
        return None, None
    done = [row for row in run_status(run, config) if row.step == "done"]
    seconds = sum(row.generation_seconds or 0.0 for row in done)
    rate = sum(row.tokens for row in done) / seconds if seconds else None
    return rate, done[-1].training_seconds if done else None


def _longest(rows: Iterable[tuple[int, int]], limit: int, row: int) -> tuple[int, int, int]:
    """Find the (prompt, annotated) row with the most tokens if its responses are at their limit."""
    triplets = ((prompt, annotated, min(limit, row - prompt)) for prompt, annotated in rows)
    return max(triplets, key=lambda tokens: tokens[0] + tokens[1] + 2 * tokens[2])


def _frozen_lengths(run: RunDirectory, config: TSpinConfig, row: int) -> Lengths:
    """Measure the run's prompts, and the responses of its last complete triplets."""
    prompts = Prompts(run.prompts("train"))
    rows = prompts.read(0, ["prompt_ids", "annotated_ids"]).to_pylist()
    response, measured = response_tokens(run, config)
    pairs = [(len(r["prompt_ids"]), len(r["annotated_ids"])) for r in rows]
    return Lengths(
        prompts.rows,
        Prompts(run.prompts("test")).rows if "test" in run.splits() else 0,
        sum(prompt for prompt, _ in pairs) / len(pairs),
        sum(annotated for _, annotated in pairs) / len(pairs),
        response,
        measured,
        _longest(pairs, config.generation.max_new_tokens, row),
    )


def _source_lengths(cfg: Any, limit: int, *, with_test: bool) -> Lengths:
    """Measure the data sets before a run has begun, by encoding their first rows. Rows that cannot
    be trained on are left out, and a row may give several.

    Raises:
        BadRow: none of the first rows can be trained on.
    """
    tokenizer = load_tokenizer(cfg)
    total, pairs = 0, []
    for entry in cfg.datasets:
        data = _load_split(cfg, entry, "datasets", "train")
        strategy = load_strategy(entry.type, tokenizer, cfg, entry)
        first = range(min(LOOKED_AT, len(data)))
        encoded = [row for _, row in strategy.encode(data.select(first).to_list(), list(first))]
        good = [(len(r.prompt), len(r.annotated)) for r in encoded if not isinstance(r, BadRow)]
        if not good:
            raise next(row for row in encoded if isinstance(row, BadRow))
        total += round(len(data) * len(good) / len(first))
        pairs += good
    return Lengths(
        total,
        sum(len(_load_split(cfg, entry, "test_datasets", "test")) for entry in cfg.test_datasets)
        if with_test
        else 0,
        sum(prompt for prompt, _ in pairs) / len(pairs),
        sum(annotated for _, annotated in pairs) / len(pairs),
        float(limit),
        False,
        _longest(pairs, limit, cfg.sequence_len),
    )


def _load_split(cfg: Any, entry: Any, key: str, default: str) -> Any:
    data = load_data(cfg, entry, f"`{key}`")
    if isinstance(data, dict):
        data = data.get(entry.split or default) or next(iter(data.values()))
    return data
