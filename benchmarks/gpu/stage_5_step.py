"""A training step of each layout beside TRL's DPO step, as benchmarks/step.py measures them.

"of the floor" is the time that the distinct tokens' arithmetic takes at the measured rate of matrix
products, over the measured time. A DPO step computes pairs (y, y′), with a reference model in
memory or with its log-probabilities precomputed. The reference model is made for its own step.
"""

import importlib.util
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kit import guarded, random_policy, target, triplets_like_gsm8k, word_tokenizer
from step import (
    Peak,
    clean,
    dpo_step,
    floor_flops,
    matmul_rate,
    seconds,
    triplet_step,
    triplets_of_shape,
)

from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.triplets import TripletTokens

SHARED = Choice("shared_prefix", "chunked", "")
PADDED = Choice("padded", "chunked", "")
PACKED = "packed (auto)"
REFERENCE = "TRL DPO"


class Sizes(NamedTuple):
    """Policies; (prompt, response) tokens with the triplets of a step; triplets at GSM8K's lengths;
    repeats; least share of the floor by policy."""

    policies: tuple[str, ...]
    shapes: dict[tuple[int, int], int]
    like_gsm8k: int
    repeats: int
    floors: dict[str, float]


SIZES = {
    "full": Sizes(
        ("llama-1b", "llama-7b"),
        {(200, 400): 2, (512, 128): 2, (1024, 128): 2, (1024, 1024): 1},
        8,
        5,
        {"llama-7b": 0.55},
    ),
    "dry": Sizes(("tiny",), {(24, 8): 2}, 1, 1, {"tiny": 0.55}),
}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    for name in sizes.policies:
        random.seed(0)
        model = random_policy(name, device)
        vocabulary = model.config.vocab_size
        drawn = {
            f"{prompt}/{response}": triplets_of_shape(prompt, response, count, vocabulary)
            for (prompt, response), count in sizes.shapes.items()
        }
        drawn["like GSM8K"] = triplets_like_gsm8k(sizes.like_gsm8k, vocabulary)
        rate = matmul_rate(model)
        for shape, triplets in drawn.items():
            case = {
                "table": f"{name}; matrix products at {rate / 1e12:.3g} TFLOP/s",
                "prompt/response": shape,
                "triplets": len(triplets),
            }
            yield from compared(Policy(name, model, rate), case, triplets, device, sizes)
        del model
        clean()


class Policy(NamedTuple):
    """A policy, and the operations per second of a matrix product in its type."""

    name: str
    model: Any
    rate: float


def compared(
    policy: Policy, case: dict[str, Any], triplets: list[TripletTokens], device: str, sizes: Sizes
) -> Iterator[dict[str, Any]]:
    """Measure all methods; targets are judged once DPO's rate is known."""
    same = [t._replace(synthetic=t.proto_synthetic) for t in triplets]
    results = {}
    with tempfile.TemporaryDirectory() as folder:

        def ours(rows: list[TripletTokens], choice: Choice) -> Callable[[], dict[str, Any]]:
            def measure() -> dict[str, Any]:
                step = triplet_step(policy.model, rows, choice, None, folder)
                # Equal responses are computed once.
                distinct = [t if t[2] != t[3] else t._replace(proto_synthetic=[]) for t in rows]
                floor = floor_flops(policy.model, distinct) / policy.rate
                tokens = sum(map(len, (part for t in distinct for part in t)))
                return timed(step, len(rows), device, sizes, floor=floor, tokens=tokens)

            return measure

        def dpo(*, precomputed: bool) -> Callable[[], dict[str, Any]]:
            def measure() -> dict[str, Any]:
                reference = None if precomputed else random_policy(policy.name, device)
                tokenizer = word_tokenizer(policy.model.config.vocab_size)
                step = dpo_step(policy.model, triplets, reference, tokenizer, folder)
                return timed(step, len(triplets), device, sizes)

            return measure

        methods = {
            "padded": ours(triplets, PADDED),
            PACKED: ours(triplets, SHARED),
            "packed, y′ = y0": ours(same, SHARED),
            "TRL DPO, precomputed": dpo(precomputed=True),
            REFERENCE: dpo(precomputed=False),
        }
        for method, measure in methods.items():
            row = case | {"method": method}
            if "DPO" in method and importlib.util.find_spec("trl") is None:
                results[method] = row | {"skipped": "TRL is not installed"}
            else:
                results[method] = guarded(row, measure)
            policy.model.zero_grad(set_to_none=True)
            clean()
            if method != PACKED:
                yield results[method]
    yield results[PACKED] | targets(policy.name, results, device, sizes)


def timed(
    step: Callable[[], None],
    count: int,
    device: str,
    sizes: Sizes,
    *,
    floor: float | None = None,
    tokens: int | None = None,
) -> dict[str, Any]:
    step()  # with the check of the layout, and what the first use loads
    with Peak(device) as peak:
        step()
    time = statistics.median(seconds(step, device) for _ in range(sizes.repeats))
    found = {"triplets or pairs/s": count / time, "peak MiB": peak.above}
    found["peak MiB with weights"] = peak.total
    if floor is not None and tokens is not None:
        found |= {"distinct tokens/s": tokens / time, "of the floor": floor / time}
    return found


def targets(
    name: str, results: dict[str, dict[str, Any]], device: str, sizes: Sizes
) -> dict[str, Any]:
    """Judge the packed step; a figure that is missing misses its target."""
    rate = results[PACKED].get("triplets or pairs/s", 0.0)
    texts, met = [], True
    if "skipped" not in results[REFERENCE]:
        # Where DPO does not fit into memory, any step is faster.
        beside = results[REFERENCE].get("triplets or pairs/s", 0.0)
        texts.append("faster than DPO with its reference")
        met = met and rate > beside
    if name in sizes.floors:
        texts.append(f"at least {sizes.floors[name]:.0%} of the floor")
        met = met and results[PACKED].get("of the floor", 0.0) >= sizes.floors[name]
    return target(device, ", ".join(texts), met) if texts else {}
