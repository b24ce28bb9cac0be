"""Sampling by the `transformers` engine beside `model.generate(do_sample=True)`.

Both answer the same prompts, of unequal lengths, in one batch, every row to its limit. generate has
no seeds of rows. Waits are counted by torch's profiler, as the difference between two lengths. The
last table answers the longest prompts in the batch that the engine takes by itself.
"""

import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from kit import guarded, random_policy, target
from step import Peak, random_ids, seconds
from transformers import GenerationConfig

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.transformers_engine import (
    TransformersEngine,
    batch_size_for,
)

WITHIN = 0.85
"""Least share of generate's rate."""

COUNTED = (
    "aten::_local_scalar_dense",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
)
"""Events that the host waits in, or may wait in."""

Sample = Callable[[int], int]
"""Answers the prompts with so many tokens each; returns the tokens of all."""


class Sizes(NamedTuple):
    """Policy; rows, shortest and longest prompt, new tokens, repeats; the two lengths that are
    profiled; rows, tokens and new tokens of the longest prompts."""

    policy: str
    rows: int
    prompts: tuple[int, int]
    new: int
    repeats: int
    profiled: tuple[int, int]
    longest: tuple[int, int, int]


SIZES = {
    "full": Sizes("llama-0.5b", 64, (128, 256), 256, 3, (24, 72), (256, 2048, 8)),
    "dry": Sizes("tiny", 4, (4, 8), 8, 1, (4, 8), (4, 32, 4)),
}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    random.seed(0)
    model = random_policy(sizes.policy, device).eval()
    model.config.use_cache = True
    vocabulary = model.config.vocab_size
    prompts = [random_ids(random.randint(*sizes.prompts), vocabulary) for _ in range(sizes.rows)]
    ways: dict[str, Sample] = {
        "generate": lambda new: generated(model, prompts, new),
        "ours": lambda new: sampled(model, prompts, new),
    }
    rate = 0.0
    for way, sample in ways.items():
        case = {"table": "Rates", "way": way, "rows": sizes.rows, "new tokens": sizes.new}
        result = guarded(case, lambda: timed(sample, device, sizes))  # noqa: B023
        if way == "generate":
            rate = result.get("tokens/s", 0.0)
        elif rate:
            result["of generate"] = result.get("tokens/s", 0.0) / rate
            met = result["of generate"] >= WITHIN
            result |= target(device, f"at least {WITHIN:.0%} of generate", met)
        yield result
    for way, sample in ways.items():
        case = {"table": "Events a step, by the profiler", "way": way}
        yield guarded(case, lambda: events_per_step(sample, device, sizes))  # noqa: B023
    yield guarded(
        {"table": "The longest prompts"}, lambda: longest(model, device, sizes, vocabulary)
    )


def generated(model: Any, prompts: list[list[int]], new: int) -> int:
    """Answer by transformers alone, its own attention and a cache that it makes."""
    model.set_attn_implementation("sdpa")
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0, max_new_tokens=new
    )
    most = max(map(len, prompts))
    padded = [[0] * (most - len(ids)) + ids for ids in prompts]
    real = [[0] * (most - len(ids)) + [1] * len(ids) for ids in prompts]
    ids, mask = (torch.tensor(x, device=model.device) for x in (padded, real))
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=mask)
    return output[:, most:].cpu().numel()


def sampled(model: Any, prompts: list[list[int]], new: int) -> int:
    """Answer by the engine."""
    model.set_attn_implementation("sdpa")
    engine = TransformersEngine(
        model, pad_token_id=0, sampling=TSpinConfig().generation, batch_size=len(prompts)
    )
    never = (model.config.vocab_size,)
    group = [Request(row, ids, new, row, never) for row, ids in enumerate(prompts)]
    (answers,) = engine.sample([group])
    return sum(len(answer.ids) for answer in answers)


def timed(sample: Sample, device: str, sizes: Sizes) -> dict[str, Any]:
    tokens = sample(sizes.new)
    with Peak(device) as peak:
        times = [seconds(lambda: sample(sizes.new), device) for _ in range(sizes.repeats)]
    time = statistics.median(times)
    return {
        "tokens/s": tokens / time,
        "ms a step": 1000 * time / sizes.new,
        "tokens": tokens,
        "peak MiB": peak.above,
    }


def events_per_step(sample: Sample, device: str, sizes: Sizes) -> dict[str, Any]:
    short, long = sizes.profiled
    fewer, more = (counted(sample, device, new) for new in (short, long))
    names = [name for name in COUNTED if device == "cuda" or name.startswith("aten")]
    return {name: (more[name] - fewer[name]) / (long - short) for name in names}


def counted(sample: Sample, device: str, new: int) -> Counter[str]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        sample(new)
    return Counter({event.key: event.count for event in profile.key_averages()})


def longest(model: Any, device: str, sizes: Sizes, vocabulary: int) -> dict[str, Any]:
    rows, tokens, new = sizes.longest
    batch = min(batch_size_for(model, "auto", tokens + new), rows)
    prompts = [random_ids(tokens - number % 2, vocabulary) for number in range(batch)]
    with Peak(device) as peak:
        time = seconds(lambda: sampled(model, prompts, new), device)
    return {
        "rows": batch,
        "prompt tokens": tokens,
        "new tokens": new,
        "seconds": time,
        "peak MiB": peak.above,
        "peak MiB with weights": peak.total,
    }
