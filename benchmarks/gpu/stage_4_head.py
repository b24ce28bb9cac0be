"""The head with its log-probabilities, forward and backward: plain, chunked, Liger's cross-entropy.

All get the same hidden states of a packed row. Differences are from the plain head: of a response's
mean log-probability in nats, and of the gradients relative to their largest value.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from kit import guarded, milliseconds, shortened, target, triplets_like_gsm8k
from step import Peak
from torch import Tensor, nn
from transformers import LlamaConfig

from axolotl_tspin.training.heads import HEADS
from axolotl_tspin.training.heads.base import response_sums
from axolotl_tspin.training.layouts import BatchIndices, indices_of, on_device, pack_triplets

LIGER = "Liger's cross-entropy"


class Sizes(NamedTuple):
    """Vocabularies, hidden size, triplets, repeats, divisor of lengths."""

    vocabularies: tuple[int, ...]
    hidden: int
    triplets: int
    repeats: int
    shorter: int


SIZES = {
    "full": Sizes((32000, 128256, 151936), 2048, 12, 10, 1),
    "dry": Sizes((512,), 32, 2, 2, 8),
}


class HeadOnly(nn.Module):
    """A policy that is a head: its inputs are the hidden states."""

    def __init__(self, vocabulary: int, hidden: int, device: str) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=vocabulary, hidden_size=hidden)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, hidden: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(hidden))


Head = Callable[[HeadOnly, Callable[[], Any], BatchIndices], Tensor]


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    for vocabulary in sizes.vocabularies:
        for trained in (False, True):
            yield from compared(vocabulary, trained, device, sizes)


def compared(vocabulary: int, trained: bool, device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    random.seed(0)
    torch.manual_seed(0)
    triplets = shortened(triplets_like_gsm8k(sizes.triplets, vocabulary), sizes.shorter)
    batch = on_device(pack_triplets(triplets, pad_token_id=0), device)
    policy = HeadOnly(vocabulary, sizes.hidden, device).requires_grad_(trained)
    hidden = torch.randn(*batch["input_ids"].shape, sizes.hidden, device=device)
    case = Case(policy, hidden.to(policy.lm_head.weight.dtype), indices_of(batch), device)
    ways: dict[str, Head] = {"plain": HEADS["plain"], "chunked": HEADS["chunked"], LIGER: liger}
    plain: dict[str, Any] = {}
    for way, head in ways.items():
        row = {"V": vocabulary, "head": "trained" if trained else "frozen", "way": way}
        row["positions"] = len(case.indices.targets)
        if way == LIGER and (reason := obstacle_to_liger(device)):
            yield row | {"skipped": reason}
            continue
        result = guarded(row, lambda: measured(case, head, sizes, plain))  # noqa: B023
        if way == "chunked" and "peak MiB" in result and plain:
            text, met = "less memory than plain", result["peak MiB"] < plain["peak MiB"]
            result |= target(device, text, met)
        yield result


class Case(NamedTuple):
    policy: HeadOnly
    hidden: Tensor
    indices: BatchIndices
    device: str


def measured(case: Case, head: Head, sizes: Sizes, plain: dict[str, Any]) -> dict[str, Any]:
    """Measure a way; `plain` gets the first one's outputs."""
    indices, device = case.indices, case.device
    hidden = case.hidden.clone().requires_grad_()
    leaves = [hidden, *(p for p in case.policy.parameters() if p.requires_grad)]
    upstream = torch.linspace(0.5, 1.0, len(indices.lengths), device=device)
    seen: list[Tensor] = []

    def step() -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            sums = head(case.policy, lambda: case.policy(hidden), indices)
        seen[:] = [sums.detach() / indices.lengths]
        return list(torch.autograd.grad((sums * upstream).sum(), leaves))

    outputs = step()  # what the first use loads does not count
    with Peak(device) as peak:
        step()
    outputs = [seen[0], *outputs]
    found: dict[str, Any] = {
        "ms": milliseconds(step, device, sizes.repeats),
        "peak MiB": peak.above,
    }
    if not plain:
        plain |= found | {"outputs": outputs}
        return found
    logps, *gradients = outputs
    expected, *others = plain["outputs"]
    found["log π, nats a token"] = (logps - expected).abs().max().item()
    for name, a, b in zip(("∂ hidden", "∂ weight"), gradients, others, strict=False):
        found[name] = ((a - b).abs().max() / b.abs().max()).item()
    return found


def obstacle_to_liger(device: str) -> str | None:
    if device != "cuda":
        return "its kernels need a GPU"
    return None if importlib.util.find_spec("liger_kernel") else "liger_kernel is not installed"


def liger(policy: HeadOnly, forward: Callable[[], Any], indices: BatchIndices) -> Tensor:
    """(D,) sums by Liger's cross-entropy over the logits of the predicting positions."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    logits = forward().logits.flatten(0, 1).index_select(0, indices.predicting)
    logps = -LigerCrossEntropyLoss(reduction="none")(logits, indices.targets).float()
    return response_sums(logps, indices)
