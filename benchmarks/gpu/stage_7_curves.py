"""The same training in both layouts, step by step; and the planned memory beside the peak.

Curves: one start, one order of triplets, AdamW, weights in float32 under autocast. Memory: all
triplets have the lengths that `axolotl t-spin plan` reckons with, weights in bfloat16, AdamW.
"""

import random
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from kit import (
    guarded,
    random_policy,
    shortened,
    target,
    triplets_like_gsm8k,
)
from step import Peak, triplets_of_shape
from training_run import train

from axolotl_tspin.planning.memory import (
    estimate_memory,
    model_shape,
    parallel_setting,
)
from axolotl_tspin.planning.micro_batch import largest_micro_batch
from axolotl_tspin.training.layout_choice import Choice

APART = 0.01
"""Most that the curves may lie apart in the mean, of the first loss."""


class Sizes(NamedTuple):
    """Policy, steps, triplets of a step and learning rate of the curves, and the divisor of
    lengths; policies, tokens of prompt and response, and triplets of a step for the memory."""

    policy: str
    steps: int
    micro_batch: int
    learning_rate: float
    shorter: int
    planned: tuple[str, ...]
    lengths: tuple[int, int]
    planned_batch: int


SIZES = {
    "full": Sizes("llama-135m", 100, 4, 1e-5, 1, ("llama-135m", "llama-1b"), (512, 256), 4),
    "dry": Sizes("tiny", 8, 2, 1e-3, 8, ("tiny",), (32, 16), 2),
}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    curves: dict[str, list[float]] = {}
    for layout in ("padded", "auto"):
        case = {"table": f"Curves of {sizes.policy}", "layout": layout}
        result = guarded(case, lambda: curve(layout, device, sizes))  # noqa: B023
        curves[layout] = result.get("losses", [])
        yield result
    if all(curves.values()):
        yield {"table": "Distance of the curves", **distance(*curves.values(), device)}
    for policy in sizes.planned:
        for layout in ("padded", "shared_prefix"):
            case = {"table": "Planned memory", "policy": policy, "layout": layout}
            yield guarded(case, lambda: planned(policy, layout, device, sizes))  # noqa: B023


def curve(layout: str, device: str, sizes: Sizes) -> dict[str, Any]:
    random.seed(0)
    model = random_policy(sizes.policy, device).float()
    few = sizes.micro_batch * max(sizes.steps // 4, 1)
    triplets = shortened(triplets_like_gsm8k(few, model.config.vocab_size), sizes.shorter)
    training = train(
        model,
        triplets,
        layout,
        device,
        sizes.steps,
        learning_rate=sizes.learning_rate,
        per_device_train_batch_size=sizes.micro_batch,
    )
    return {
        "taken": training.layout,
        "seconds a step": statistics.median(training.times),
        "graphs compiled after the first step": training.graphs,
        "losses": training.losses,
        "check": training.check,
    }


def distance(padded: list[float], shared: list[float], device: str) -> dict[str, Any]:
    apart = [abs(a - b) for a, b in zip(padded, shared, strict=True)]
    share = statistics.fmean(apart) / padded[0]
    return {
        "steps": len(apart),
        "first loss": padded[0],
        "last loss": padded[-1],
        "mean distance": statistics.fmean(apart),
        "largest": max(apart),
        **target(device, f"mean at most {APART:.0%} of the first loss", share <= APART),
    }


def planned(policy: str, layout: str, device: str, sizes: Sizes) -> dict[str, Any]:
    random.seed(0)
    prompt, response = sizes.lengths
    choice = Choice(layout, "chunked", "")
    with Peak(device) as peak:
        model = random_policy(policy, device)
        shape = model_shape(model)
        triplets = triplets_of_shape(
            prompt, response, 3 * sizes.planned_batch, model.config.vocab_size
        )
        train(
            model,
            triplets,
            layout,
            device,
            3,
            learning_rate=1e-6,
            per_device_train_batch_size=sizes.planned_batch,
        )
    # Axolotl keeps all weights in one type with this key, as they are here.
    cfg = {"optimizer": "adamw_torch", "cut_cross_entropy": True}
    cfg["bf16"] = model.dtype == torch.bfloat16
    batch = largest_micro_batch((prompt, response, response), choice, sizes.planned_batch)
    estimate = estimate_memory(shape, parallel_setting(cfg, shape, ranks=1), batch)
    mib = {name: size / 2**20 for name, size in estimate._asdict().items()}
    total = mib.pop("total")
    return {
        **{f"{name}, MiB": size for name, size in mib.items()},
        "planned, MiB": total,
        "peak, MiB": peak.total,
        "difference": f"{total / peak.total - 1:+.0%}" if device == "cuda" else "not measured",
    }
