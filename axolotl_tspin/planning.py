"""`axolotl t-spin plan`: what `run` would do and about what it would cost, without doing it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from axolotl.cli.config import load_cfg
from axolotl.loaders import load_tokenizer
from axolotl.prompt_strategies import load as load_strategy
from axolotl.utils.data.shared import load_dataset_with_config

from axolotl_tspin.fingerprints import weights_size
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.generation.store import Prompts, iterate_triplets
from axolotl_tspin.resolve import prepare_generation, read_yaml
from axolotl_tspin.run_directory import RunDirectory
from axolotl_tspin.tables import read_metadata

LOOKED_AT = 256
"""Rows whose lengths stand for all."""

BYTES_PER_TOKEN = 4 + 5
"""Of a stored response: its id and its text, uncompressed."""


class Lengths(NamedTuple):
    """Rows, and mean tokens; `measured` says whether responses were seen or are upper bounds."""

    rows: int
    prompt: float
    annotated: float
    response: float
    measured: bool


class IterationPlan(NamedTuple):
    """What is left of one iteration.

    Attributes:
        steps: of "generate" and "train" those left.
        responses: to sample.
        sampled_tokens: of these responses.
        prompt_tokens: that the engine reads for them.
        trained_tokens: in a pass over the triplets, prompts three times (a padded row each).
        passes: over the triplets (num_epochs).
        optimizer_steps: for one process.
        disk: bytes of responses and triplets, and of the model where it is known beforehand.
    """

    iteration: int
    steps: list[str]
    responses: int
    sampled_tokens: int
    prompt_tokens: int
    trained_tokens: int
    passes: float
    optimizer_steps: int
    disk: int


def plan_run(config_path: Path) -> tuple[Lengths, list[IterationPlan]]:
    """What is left of a run, as estimates from the lengths of its rows.

    Raises:
        TSpinError: bad configuration or data.
    """
    raw = read_yaml(config_path)
    adapter = bool(raw.adapter)
    plan = prepare_generation(raw)
    config, run = plan.config, plan.run
    cfg = load_cfg(raw)
    limit = config.generation.max_new_tokens
    lengths = _frozen_lengths(run, limit) if run.exists() else _source_lengths(cfg, limit)
    model = None if adapter else weights_size(plan.initial_policy, plan.revision)
    plans = []
    for number in range(config.iterations):
        step = run.step_of(number).step if run.exists() else "generate"
        if step == "done":
            continue
        steps = ["generate", "train"] if step == "generate" else ["train"]
        share = config.generation.fraction if number else 1.0
        done = _sampled(run, number)
        sampled = step != "generate" or run.iteration(number).triplets("train").exists()
        responses = 0 if sampled else max(math.ceil(lengths.rows * share) - done, 0)
        per_triplet = 3 * lengths.prompt + lengths.annotated + 2 * lengths.response
        batch = cfg.micro_batch_size * (cfg.gradient_accumulation_steps or 1)
        epochs = cfg.num_epochs or 1.0
        triplets = lengths.rows * (1 + min(number, config.history_window))
        steps_left = cfg.max_steps or math.ceil(math.ceil(triplets / batch) * epochs)
        tokens = int(responses * lengths.response)
        stored = int(lengths.rows * 2 * lengths.response * BYTES_PER_TOKEN)
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
                disk=stored + tokens * BYTES_PER_TOKEN + (model or 0),
            )
        )
    return lengths, plans


def _frozen_lengths(run: RunDirectory, limit: int) -> Lengths:
    """From the run's prompts, and the responses of its last complete triplets."""
    prompts = Prompts(run.prompts("train"))
    rows = prompts.read(0, ["prompt_ids", "annotated_ids"]).to_pylist()
    response, measured = float(limit), False
    triplets = sorted(run.path.glob("iteration_*/triplets/train.parquet"))
    if triplets:
        metadata = read_metadata(triplets[-1], verify=False)
        if metadata["sampled"]:
            response, measured = metadata["tokens"] / metadata["sampled"], True
        else:
            seen = [r["synthetic_ids"] for r in iterate_triplets(triplets[-1], ["synthetic_ids"])]
            response, measured = sum(map(len, seen)) / len(seen), True
    return Lengths(
        prompts.rows,
        sum(len(r["prompt_ids"]) for r in rows) / len(rows),
        sum(len(r["annotated_ids"]) for r in rows) / len(rows),
        response,
        measured,
    )


def _source_lengths(cfg: Any, limit: int) -> Lengths:
    """From the data sets, before a run has begun: their first rows through the strategies."""
    tokenizer = load_tokenizer(cfg)
    total, prompts, responses = 0, [], []
    for entry in cfg.datasets:
        data = load_dataset_with_config(entry, use_auth_token=bool(cfg.hf_use_auth_token))
        if isinstance(data, dict):
            data = data.get(entry.split or "train") or next(iter(data.values()))
        total += len(data)
        strategy = load_strategy(entry.type, tokenizer, cfg, entry)
        first = range(min(LOOKED_AT, len(data)))
        for triplet in strategy.encode(data.select(first).to_list(), list(first)):
            prompts.append(len(triplet.prompt))
            responses.append(len(triplet.annotated))
    return Lengths(
        total, sum(prompts) / len(prompts), sum(responses) / len(responses), float(limit), False
    )


def _sampled(run: RunDirectory, number: int) -> int:
    return sum(rows_done(run.iteration(number).responses(split))[0] for split in run.splits())
