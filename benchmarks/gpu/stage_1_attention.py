"""Every backend of structured attention that this machine has, beside dense float64 mathematics.

The rows have triplets of unequal lengths, an empty response and padding. An error is the largest
difference over the largest value, of the output and of the three gradients. For each the table also
has the error beside attention whose first query has the first key's position (top-left): a kernel
with that alignment is exact there, and far from it where it should be exact. A dry run has no
kernels: the tests' plain ones, which follow the kernels' documentation, stand in.
"""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kit import guarded
from step import random_ids
from torch import Tensor

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.flash import attend_flash
from axolotl_tspin.training.attention.interface import BACKENDS
from axolotl_tspin.training.attention.varlen import attend_varlen
from axolotl_tspin.training.layouts import indices_of, on_device, pack_triplets
from axolotl_tspin.triplets import TripletTokens

REPOSITORY = Path(__file__).resolve().parent.parent.parent

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest error that rounding explains."""


class Case(NamedTuple):
    """A layer: query and key heads, sizes of a head and of a value, window, soft cap, sinks."""

    name: str
    heads: int = 8
    kv_heads: int = 2
    size: int = 64
    value_size: int = 64
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


CASES = (
    Case("equal heads", kv_heads=8),
    Case("grouped heads", size=128, value_size=128),
    Case("9 heads over 3", heads=9, kv_heads=3),
    Case("window", window=24),
    Case("narrow values", size=96),
    Case("size 256", heads=4, size=256, value_size=256),
    Case("soft cap", softcap=5.0),
    Case("soft cap and window", softcap=5.0, window=24),
    Case("sinks", sinks=True),
)


class Sizes(NamedTuple):
    """Tokens of the triplets' parts, most tokens of a row, and types."""

    lengths: tuple[tuple[int, int, int, int], ...]
    row: int
    dtypes: tuple[torch.dtype, ...]


SIZES = {
    "full": Sizes(
        ((700, 130, 257, 64), (33, 512, 1, 100), (1, 1, 64, 3), (1000, 0, 200, 31)),
        2048,
        (torch.bfloat16, torch.float16, torch.float32),
    ),
    "dry": Sizes(((37, 12, 5, 40), (1, 1, 33, 3), (60, 0, 9, 17)), 120, (torch.float32,)),
}


Backend = Callable[..., Tensor]


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    random.seed(0)
    stand_ins = plain_kernels() if device == "cpu" else {}
    triplets = [TripletTokens(*(random_ids(n, 99) for n in part)) for part in sizes.lengths]
    batch = pack_triplets(triplets, pad_token_id=0, max_tokens_per_row=sizes.row)
    batch = on_device(batch, device)
    for dtype in sizes.dtypes:
        for case in CASES:
            for backend in BACKENDS:
                row = {"backend": backend, "type": str(dtype).removeprefix("torch.")}
                if backend in stand_ins:
                    row["backend"] = f"{backend}, stand-in kernel"
                row["case"] = case.name
                yield guarded(
                    row,
                    lambda: measured(backend, stand_ins.get(backend), case, dtype, batch),  # noqa: B023
                )


def plain_kernels() -> dict[str, Backend]:
    """The backends with the tests' kernels."""
    sys.path.append(str(REPOSITORY / "tests"))
    from support.attention import like_flash_attns, like_torchs

    return {
        "varlen": partial(attend_varlen, kernel=like_torchs),
        "flash": partial(attend_flash, kernel=like_flash_attns),
    }


def obstacle_to_stand_in(backend: str, case: Case) -> str | None:
    if case.sinks or (case.softcap is not None and backend == "varlen"):
        return "it knows no soft caps or sinks" if backend == "varlen" else "it knows no sinks"
    return None


def measured(
    backend: str,
    stand_in: Backend | None,
    case: Case,
    dtype: torch.dtype,
    batch: dict[str, Any],
) -> dict[str, Any]:
    """Compare a backend with both alignments."""
    torch.manual_seed(0)
    (rows, length), device = batch["input_ids"].shape, batch["input_ids"].device

    def normal(heads: int, size: int) -> Tensor:
        return torch.randn(rows, heads, length, size, device=device).to(dtype)

    query, key = normal(case.heads, case.size), normal(case.kv_heads, case.size)
    value = normal(case.kv_heads, case.value_size)
    gradient = normal(case.heads, case.value_size).transpose(1, 2)
    sinks = torch.randn(case.heads, device=device).to(dtype) if case.sinks else None
    layer = Layer(softcap=case.softcap, sinks=sinks)
    obstacle, attend = BACKENDS[backend]
    reason = obstacle_to_stand_in(backend, case) if stand_in else obstacle(query, value, layer)
    if reason:
        return {"skipped": reason}
    attend = stand_in or attend
    indices = indices_of(batch)
    cumulative = (indices.cu_queries.int(), indices.cu_keys.int())
    mask = StructuredMask(batch["layout"].segments, *cumulative, case.window)
    positions, places = batch["position_ids"], places_of(batch)
    real = places.triplet >= 0

    def side(attention: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
        """Output and gradients by queries, keys and values, without padding."""
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        output = attention(*leaves)
        upstream = gradient.to(output.dtype) * real[:, :, None, None]
        gradients = torch.autograd.grad(output, leaves, upstream)
        return [output[real], *(g.transpose(1, 2)[real] for g in gradients)]

    def exact(top_left: bool) -> list[Tensor]:
        seen = visible(places, positions, case.window, top_left=top_left)
        doubled = (x.double() for x in (query, key, value))
        return side(lambda *x: dense(*x, seen, layer), *doubled)

    found, expected = side(lambda *x: attend(*x, mask, layer), query, key, value), exact(False)
    distances = [(a.double() - b).abs().max().item() for a, b in zip(found, expected, strict=True)]
    errors = relative(found, expected)
    agrees = all(error <= TOLERANCE[dtype] for error in errors)
    return {
        **dict(zip(("output", "∂q", "∂k", "∂v"), errors, strict=True)),
        "largest difference": max(distances),
        "tolerance": TOLERANCE[dtype],
        "top-left": max(relative(found, exact(True))),
        "agrees": agrees,
        "failed": not agrees,
    }


def relative(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Largest differences over the largest values."""
    return [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, expected, strict=True)
    ]


class Places(NamedTuple):
    """(rows, length) of every token: its triplet (−1 for padding), its part of that (0 is the
    prompt), and the tokens of the prompt before it, 0 in a prompt."""

    triplet: Tensor
    part: Tensor
    before: Tensor


def places_of(batch: dict[str, Any]) -> Places:
    """Read the places from the triplets' spans, not from the plan that the backends get."""
    places = Places(*(torch.zeros_like(batch["input_ids"]) for _ in Places._fields))
    places.triplet.fill_(-1)
    for row, spans in enumerate(batch["layout"].rows):
        for number, span in enumerate(spans):
            places.triplet[row, span.start : span.end] = number
            begin = span.start + span.prompt
            for part, tokens in enumerate(span.responses, start=1):
                places.part[row, begin : begin + tokens] = part
                places.before[row, begin : begin + tokens] = span.prompt
                begin += tokens
    return places


def visible(places: Places, positions: Tensor, window: int | None, *, top_left: bool) -> Tensor:
    """(rows, 1, length, length) bool, True where a query sees a key."""

    def pairs(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :, None], x[:, None, :]

    triplet, keys_triplet = pairs(places.triplet)
    part, keys_part = pairs(places.part)
    queries = positions - places.before if top_left else positions
    distance = queries[:, :, None] - positions[:, None, :]
    seen = (triplet == keys_triplet) & ((part == keys_part) | (keys_part == 0)) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    return seen[:, None]


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, layer: Layer) -> Tensor:
    """(rows, length, heads, value's size) attention with every score written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if layer.sinks is not None:
        sinks = layer.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = scores.softmax(dim=3)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2)
