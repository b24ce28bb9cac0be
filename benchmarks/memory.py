"""Run a million prompts through the generation step with an engine that answers at once.

    python benchmarks/memory.py [--rows 1000000]

Each stage runs in a separate process and reports its rows per second and its peak resident memory,
including the imports of torch and Axolotl.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.generation.engines.engine import Request, Response
from axolotl_tspin.generation.sampling import SplitSampling, sample_split
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.resolve.steps import GenerationPlan
from axolotl_tspin.run.directory import Due, Policy, RunDirectory
from axolotl_tspin.run.prompts import Prompts, freeze_prompts
from axolotl_tspin.run.triplets import check_triplets

POLICY = "0" * 16
TEXT = "A farmer has 17 sheep, sells 9 of them and buys 4 more. How many sheep has the farmer now?"


class NullEngine:
    """Answers each request with ids computed from its row."""

    name = "null"
    group_size = 64

    def sample(self, groups) -> Iterator[list[Response]]:
        for group in groups:
            yield [self._answer(request) for request in group]

    def _answer(self, request: Request) -> Response:
        ids = [(request.row * 31 + i) % 49000 + 3 for i in range(40 + request.row % 80)]
        return Response(request.row, ids, 2)


class NullTokenizer:
    eos_token_id = 2

    def decode(self, ids, skip_special_tokens) -> str:
        return TEXT


def annotated_rows(rows: int) -> Iterator[dict]:
    """Yield rows like the strategies': 40 to 120 tokens of prompt, 60 to 160 of response."""
    draw = np.random.default_rng(0)
    for _ in range(rows):
        prompt, response = draw.integers(40, 120), draw.integers(60, 160)
        ids = draw.integers(3, 49000, prompt + response).tolist()
        yield {
            "input_ids": ids,
            "labels": [-100] * prompt + ids[prompt:],
            "prompt_messages": "",
            "prompt": TEXT,
            "annotated": TEXT,
            "stop_ids": [2],
            "source_row": 0,
        }


def freeze(run: RunDirectory, rows: int) -> None:
    freeze_prompts(run.prompts("train"), annotated_rows(rows), rows)


def split_of(run: RunDirectory) -> SplitSampling:
    config = TSpinConfig(iterations=2, generation={"max_new_tokens": 128})
    policy = Policy("none")
    due = Due(0, "generate")
    plan = GenerationPlan(config, run, due, policy, policy, None, {}, False)
    cfg = SimpleNamespace(seed=42, sequence_len=512, micro_batch_size=8)
    return SplitSampling(plan, cfg, "train", POLICY)


def sample(run: RunDirectory, rows: int) -> None:
    made = sample_split(split_of(run), Shard(), lambda: (NullEngine(), NullTokenizer()))
    assert made == rows


def assemble(run: RunDirectory, rows: int) -> None:
    split = split_of(run)
    assert split.is_sampled()
    split.assemble()


def check(run: RunDirectory, rows: int) -> None:
    prompts = Prompts(run.prompts("train"))
    triplets = run.iteration(0).triplets("train")
    check_triplets(triplets, prompts, initial_policy=POLICY, start_policy=POLICY)


def measured(stage: Callable, path: Path, rows: int, results) -> None:
    started = time.monotonic()
    stage(RunDirectory(path), rows)
    seconds = time.monotonic() - started
    # ru_maxrss is in KiB on Linux.
    results.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    print("| stage | seconds | rows/s | peak resident memory, MiB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for stage in (freeze, sample, assemble, check):
            results = processes.SimpleQueue()
            process = processes.Process(
                target=measured, args=(stage, Path(folder), args.rows, results)
            )
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{stage.__name__} failed")
            seconds, peak = results.get()
            rate = args.rows / seconds
            print(f"| {stage.__name__} | {seconds:.0f} | {rate:,.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
