"""The pair of kernels in Triton, for logits of 16 or 32 bits on CUDA (torch and triton only).

They compute in float32 whatever the logits' type, and hold no second copy of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axolotl_tspin.training.heads.kernels import Kernels

LAUNCH = {"BLOCK": 4096, "num_warps": 8}
"""Logits of a row that a program processes at a time, and warps that share them."""


@triton.jit
def _forward_kernel(logits, targets, logps, normalisers, stride, vocabulary, BLOCK: tl.constexpr):
    """A program for each row, in one pass over it."""
    row = tl.program_id(0).to(tl.int64)  # rows × vocabulary may exceed 2³¹
    start = logits + row * stride
    # Not −∞, of which exp(−∞ − −∞) would be nan.
    largest = -3.4028234663852886e38
    total = 0.0
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        values = tl.load(start + columns, mask=columns < vocabulary, other=-float("inf"))
        values = values.to(tl.float32)
        larger = tl.maximum(largest, tl.max(values, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(values - larger), 0)
        largest = larger
    normaliser = largest + tl.log(total)
    target = tl.load(targets + row)
    tl.store(logps + row, tl.load(start + target).to(tl.float32) - normaliser)
    tl.store(normalisers + row, normaliser)


@triton.jit
def _backward_kernel(
    logits, targets, normalisers, gradient, stride, vocabulary, BLOCK: tl.constexpr
):
    """A program for each block of each row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + columns
    inside = columns < vocabulary
    values = tl.load(place, mask=inside, other=-float("inf")).to(tl.float32)
    indicator = tl.where(columns == tl.load(targets + row), 1.0, 0.0)
    softmax = tl.exp(values - tl.load(normalisers + row))
    changed = (indicator - softmax) * tl.load(gradient + row)
    tl.store(place, changed.to(logits.dtype.element_ty), mask=inside)


def _forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits.shape
    logps = torch.empty(rows, dtype=torch.float32, device=logits.device)
    normalisers = torch.empty_like(logps)
    if rows:
        with torch.cuda.device_of(logits):
            _forward_kernel[(rows,)](
                logits,
                targets.contiguous(),
                logps,
                normalisers,
                logits.stride(0),
                vocabulary,
                **LAUNCH,
            )
    return logps, normalisers


def _backward(logits: Tensor, targets: Tensor, normalisers: Tensor, gradient: Tensor) -> None:
    rows, vocabulary = logits.shape
    if rows:
        with torch.cuda.device_of(logits):
            _backward_kernel[(rows, triton.cdiv(vocabulary, LAUNCH["BLOCK"]))](
                logits,
                targets.contiguous(),
                normalisers,
                gradient.contiguous(),
                logits.stride(0),
                vocabulary,
                **LAUNCH,
            )


KERNELS = Kernels(_forward, _backward)
