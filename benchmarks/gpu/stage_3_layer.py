"""The attention of one layer, forward and backward, over rows of many triplets.

Compared are the backends of shared-prefix rows, and padded rows twice: with PyTorch's causal
attention, which needs no mask for padding on the right, and with the mask that transformers makes
of `attention_mask`. Only distinct tokens count.
"""

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from kit import guarded, milliseconds, shortened, triplets_like_gsm8k
from step import Peak, triplets_of_shape
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.interface import BACKENDS
from axolotl_tspin.training.layouts import indices_of, on_device, pack_triplets
from axolotl_tspin.triplets import TripletTokens

PLAIN = "padded, causal"


class Sizes(NamedTuple):
    """Tokens of a row, heads, key heads, size of a head, repeats, divisor of lengths, type."""

    row: int
    heads: int
    kv_heads: int
    size: int
    repeats: int
    shorter: int
    dtype: torch.dtype


SIZES = {
    "full": Sizes(16384, 32, 8, 128, 20, 1, torch.bfloat16),
    "dry": Sizes(256, 4, 2, 16, 2, 16, torch.float32),
}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    random.seed(0)
    many = sizes.row // 128
    drawn = {
        "like GSM8K": triplets_like_gsm8k(many, 99),
        "1792/256": triplets_of_shape(1792, 256, many, 99),
    }
    for name, triplets in drawn.items():
        row = filled(shortened(triplets, sizes.shorter), sizes.row)
        ways: dict[str, Callable[[], Measured]] = {
            PLAIN: lambda: padded(row, device, sizes, masked=False),  # noqa: B023
            "padded, masked": lambda: padded(row, device, sizes, masked=True),  # noqa: B023
        }
        for backend in BACKENDS:
            ways[backend] = lambda backend=backend: shared(backend, row, device, sizes)  # noqa: B023
        plain = float("nan")
        for way, prepare in ways.items():
            case = {"lengths": name, "triplets": len(row), "way": way}
            result = guarded(case, lambda: timed(prepare(), row, device, sizes))  # noqa: B023
            total = result.get("forward and backward, ms", float("nan"))
            plain = total if way == PLAIN else plain
            if "skipped" not in result:
                result["of padded, causal"] = plain / total
            yield result


class Measured(NamedTuple):
    """A layer: its forward, and what it reads; or why it cannot run."""

    forward: Callable[..., Tensor] | None
    inputs: list[Tensor]
    obstacle: str = ""


def filled(triplets: list[TripletTokens], most: int) -> list[TripletTokens]:
    """Take triplets while they fit into a row."""
    taken, tokens = [], 0
    for triplet in triplets:
        tokens += sum(map(len, triplet))
        if tokens > most:
            break
        taken.append(triplet)
    return taken


def inputs(rows: int, length: int, device: str, sizes: Sizes) -> list[Tensor]:
    return [
        torch.randn(
            (rows, heads, length, sizes.size),
            device=device,
            dtype=sizes.dtype,
            requires_grad=True,
        )
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    ]


def shared(backend: str, row: list[TripletTokens], device: str, sizes: Sizes) -> Measured:
    batch = on_device(pack_triplets(row, pad_token_id=0), device)
    indices = indices_of(batch)
    cumulative = (indices.cu_queries.int(), indices.cu_keys.int())
    mask = StructuredMask(batch["layout"].segments, *cumulative, window=None)
    tensors = inputs(*batch["input_ids"].shape, device, sizes)
    obstacle, attend = BACKENDS[backend]
    if reason := obstacle(tensors[0], tensors[2], Layer()):
        return Measured(None, [], reason)
    return Measured(lambda *x: attend(*x, mask, Layer()), tensors)


def padded(row: list[TripletTokens], device: str, sizes: Sizes, *, masked: bool) -> Measured:
    lengths = torch.tensor(
        [len(t.prompt) + len(response) for t in row for response in t[1:]], device=device
    )
    longest = int(lengths.max())
    tensors = inputs(len(lengths), longest, device, sizes)
    if not masked:
        return Measured(
            lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            ).transpose(1, 2),
            tensors,
        )
    position = torch.arange(longest, device=device)
    mask = (position[:, None] >= position) & (position < lengths[:, None, None, None])
    module = SimpleNamespace(
        num_key_value_groups=sizes.heads // sizes.kv_heads, is_causal=True, training=True
    )
    return Measured(lambda *x: sdpa_attention_forward(module, *x, mask)[0], tensors)


def timed(layer: Measured, row: list[TripletTokens], device: str, sizes: Sizes) -> dict[str, Any]:
    if layer.forward is None:
        return {"skipped": layer.obstacle}
    with torch.no_grad():
        upstream = torch.randn_like(layer.forward(*layer.inputs))

    def forward() -> Tensor:
        return layer.forward(*layer.inputs)

    def both() -> None:
        torch.autograd.grad(forward(), layer.inputs, upstream)

    both()  # what the first use loads does not count
    with Peak(device) as peak:
        both()
    total = milliseconds(both, device, sizes.repeats)
    tokens = sum(map(len, (part for t in row for part in t)))
    return {
        "forward, ms": milliseconds(forward, device, sizes.repeats),
        "forward and backward, ms": total,
        "distinct tokens/s": 1000 * tokens / total,
        "peak MiB": peak.above,
    }
