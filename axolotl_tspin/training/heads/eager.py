"""PyTorch's own operations as the pair of kernels, for float32 and float64 (torch only)."""

import torch
from torch import Tensor

from axolotl_tspin.training.heads.kernels import Kernels

LEAN_ROWS = 64
"""Rows that the CPU processes at a time, so that they fit into its cache."""


def _forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    normalisers = torch.cat([part.logsumexp(1) for part in _parts(logits)])
    return logits.gather(1, targets[:, None])[:, 0] - normalisers, normalisers


def _backward(logits: Tensor, targets: Tensor, normalisers: Tensor, gradient: Tensor) -> None:
    rows = (targets[:, None], normalisers[:, None], gradient[:, None])
    for part, *of_part in zip(_parts(logits), *map(_parts, rows), strict=True):
        part_targets, part_normalisers, part_gradient = of_part
        part.sub_(part_normalisers).exp_().mul_(-part_gradient)
        part.scatter_add_(1, part_targets, part_gradient)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(LEAN_ROWS) if rows.device.type == "cpu" else (rows,)


KERNELS = Kernels(_forward, _backward)
