"""Compares the Triton kernels of the head with float64, run on the CPU by Triton's interpreter.

TRITON_INTERPRET=1 python tests/support/triton_head.py

Prints JSON: name of a case → its largest errors.
"""

import json
from unittest import mock

import torch
from torch import Tensor

from axolotl_tspin.training.heads import fused, in_place
from axolotl_tspin.training.heads.base import token_logps
from axolotl_tspin.training.heads.frozen import frozen_logps
from axolotl_tspin.training.heads.linear import linear_logps

BLOCK = fused.LAUNCH["BLOCK"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def largest(error: Tensor) -> float:
    return error.abs().max().item() if error.numel() else 0.0


def errors(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Of the values relative to theirs or to 1, of the gradient relative to a row's factor."""
    factors = torch.linspace(-1.5, 2.0, len(logits), dtype=torch.float64)
    exact = logits.double().requires_grad_()
    expected = token_logps(exact, targets)
    (expected_gradient,) = torch.autograd.grad((expected * factors).sum(), exact)

    padded = torch.zeros(len(logits), logits.shape[1] + 5, dtype=logits.dtype)
    padded[:, :-5] = logits
    leaf = padded.requires_grad_()
    strided = (leaf * 1)[:, :-5]  # rows that are no neighbours, and that nothing else uses
    before = strided.data_ptr()
    logps = in_place.in_place_logps(strided, targets)
    (gradient,) = torch.autograd.grad((logps * factors.float()).sum(), strided)
    assert gradient.data_ptr() == before and gradient.dtype == logits.dtype
    assert logps.dtype == torch.float32

    finite = expected.isfinite()
    assert torch.equal(logps.isfinite(), finite) and torch.equal(logps[~finite], expected[~finite])
    difference = (logps.double() - expected)[finite] / expected[finite].abs().clamp(min=1)
    return {
        "value": largest(difference.detach()),
        "gradient": largest((gradient.double() - expected_gradient) / factors[:, None]),
    }


def cases() -> dict[str, dict[str, float]]:
    found = {}
    for name, dtype in DTYPES.items():
        for vocabulary in (1, 7, BLOCK - 1, BLOCK, 2 * BLOCK + 513):
            for rows in (0, 1, 5):
                logits = torch.randn(rows, vocabulary).to(dtype)
                targets = torch.randint(0, vocabulary, (rows,))
                found[f"{name}, {rows} rows of {vocabulary}"] = errors(logits, targets)
        logits = torch.randn(6, 2 * BLOCK + 3).to(dtype)
        targets = torch.randint(0, logits.shape[1], (6,))
        found[f"{name}, huge"] = errors(logits * 1e4, targets)
        logits[:, ::2] = -float("inf")
        logits[1, : BLOCK + 1] = -float("inf")  # a whole block without a finite one
        logits[2] = -float("inf")
        logits[2, 9] = -1e4  # a single one
        targets = torch.tensor([1, BLOCK + 2, 9, 0, 2 * BLOCK + 1, 5])
        found[f"{name}, some −∞"] = errors(logits, targets)
    return found


def errors_of_ways(dtype: torch.dtype, softcap: float | None) -> dict[str, float]:
    """Of the ways through a head with a bias, in several chunks, relative to the largest value."""
    head = torch.nn.Linear(16, BLOCK + 9, dtype=dtype)
    hidden = torch.randn(7, 16, dtype=dtype)
    targets = torch.randint(0, BLOCK + 9, (7,))
    factors = torch.linspace(-1.5, 2.0, 7)

    def to_logits(outputs: Tensor) -> Tensor:
        return outputs if softcap is None else softcap * torch.tanh(outputs / softcap)

    def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
        return in_place.in_place_logps(to_logits(head(hidden)), targets)

    wide = [x.detach().double().requires_grad_() for x in (hidden, head.weight, head.bias)]
    exact = token_logps(to_logits(torch.nn.functional.linear(*wide)), targets)
    expected = torch.autograd.grad((exact * factors).sum(), wide)
    found = {}
    leaf = hidden.clone().requires_grad_()
    for name, leaves, logps in (
        ("frozen", [leaf], frozen_logps(chunk_logps, leaf, targets, 3)),
        ("linear", [leaf, *head.parameters()], linear_logps(head, to_logits, leaf, targets, 3)),
    ):
        found[name] = largest((logps - exact) / exact.abs().max())
        gradients = torch.autograd.grad((logps * factors).sum(), leaves)
        for part, gradient, right in zip(("h", "W", "b"), gradients, expected, strict=False):
            found[f"{name} {part}"] = largest((gradient - right) / right.abs().max())
    return found


def main() -> None:
    torch.manual_seed(0)
    found = cases()
    for name, dtype in DTYPES.items():
        for softcap in (None, 2.0):
            found[f"{name}, ways, soft cap {softcap}"] = errors_of_ways(dtype, softcap)
    print(json.dumps(found))


# The interpreter's tensors are on the CPU.
with mock.patch.object(in_place, "fused_kernels", return_value=fused.KERNELS):
    main()
