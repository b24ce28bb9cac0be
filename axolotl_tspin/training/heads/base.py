"""What all implementations of the head share (torch only)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from axolotl_tspin.training.layouts import BatchIndices

MOST_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits in one chunk, by type of device.

On the CPU they are 128 MiB of float32: more rows make its products no faster. A GPU needs thousands
of rows to be busy, and every chunk costs it some launches: 512 MiB in 16 bits, which are 2048 rows
of 2¹⁷ logits.
"""


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) log-probabilities in nats of targets (N,) under logits (N, vocabulary); float32, or
    float64 for float64 logits."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return -F.cross_entropy(logits.to(dtype), targets, reduction="none")


def response_sums(token_logps: Tensor, indices: BatchIndices) -> Tensor:
    """(D,) sums of the responses' log-probabilities (N,); 0 for an empty response."""
    # Not `index_add`, whose order on CUDA is not the same every time; `unsafe` spares the check of
    # the lengths' sum, for which the host would wait.
    return torch.segment_reduce(token_logps, "sum", lengths=indices.lengths, unsafe=True)


def chunk_count(positions: int, vocabulary: int, device: torch.device) -> int:
    """Count the chunks of at most `MOST_LOGITS` logits that positions need; at least 1."""
    most = MOST_LOGITS.get(device.type, MOST_LOGITS["cuda"])
    return max(-(-positions // max(most // vocabulary, 1)), 1)


def in_chunks(chunks: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of N rows into equal parts; some are empty if N is less than the chunks."""
    return zip(*(tensor.tensor_split(chunks) for tensor in tensors), strict=True)


def is_sharded(policy: nn.Module) -> bool:
    """True if ranks hold parts of a policy's weights (DeepSpeed's ZeRO-3, FSDP2). They must then
    run each module, and its backward, equally often."""
    # Between forwards FSDP2's parameters may be unsharded, but its modules can be recognised.
    return any(isinstance(module, FSDPModule) for module in policy.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in policy.parameters()
    )
