"""Whole policies: does the shared prefix pass the trainer's own check, and what does it save?

Each policy trains in padded rows and in shared-prefix rows, from the same weights on the same
triplets. The optimizer is SGD, whose state does not hide the memory of the step.
"""

import random
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from kit import guarded, random_policy, shortened, triplets_like_gsm8k
from step import RANDOM_LLAMAS, Peak
from training_run import train

MICRO_BATCH = 4


class Sizes(NamedTuple):
    """Policies, steps, and what the triplets' lengths are divided by."""

    policies: tuple[str, ...]
    steps: int
    shorter: int


SIZES = {"full": Sizes(tuple(RANDOM_LLAMAS), 20, 1), "dry": Sizes(("tiny",), 3, 8)}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    for policy in sizes.policies:
        rates: dict[str, float] = {}
        for layout in ("padded", "auto"):
            result = guarded(
                {"policy": policy, "layout": layout},
                lambda: measured(policy, layout, device, sizes),  # noqa: B023
            )
            rates[layout] = result.get("triplets/s", float("nan"))
            if layout == "auto":
                result["of padded"] = rates["auto"] / rates["padded"]
            yield result


def measured(policy: str, layout: str, device: str, sizes: Sizes) -> dict[str, Any]:
    random.seed(0)
    model = random_policy(policy, device)
    triplets = triplets_like_gsm8k(sizes.steps * MICRO_BATCH, model.config.vocab_size)
    with Peak(device) as peak:
        training = train(
            model,
            shortened(triplets, sizes.shorter),
            layout,
            device,
            sizes.steps,
            optim="sgd",
            learning_rate=1e-3,
            per_device_train_batch_size=MICRO_BATCH,
        )
    passed = layout == "padded" or training.check.startswith("checked")
    return {
        "taken": training.layout,
        "steps": len(training.losses),
        "first loss": training.losses[0],
        "last loss": training.losses[-1],
        "triplets/s": MICRO_BATCH / statistics.median(training.times),
        "peak MiB": peak.total,
        "graphs compiled after the first step": training.graphs,
        "check": training.check,
        "failed": not passed,
    }
