"""Log-probabilities of responses from a causal language model's logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_INDEX = -100


def response_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the log-probabilities of each row's response tokens, and how many there are.

    The logits at position t predict the label at t + 1. Sums are accumulated in float32 (float64
    logits stay float64), row by row, so that no float32 copy of all logits exists at once.

    Args:
        logits: (rows, length, vocabulary), any floating type.
        labels: (rows, length), the token ids of the response and −100 elsewhere.

    Returns:
        The sums in nats, (rows,), 0 for a row without response tokens; the counts, (rows,), int64.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    targets = labels[:, 1:]
    is_response = targets != IGNORE_INDEX
    sums = []
    for row_logits, row_targets, row_mask in zip(logits[:, :-1], targets, is_response, strict=True):
        # A row without response tokens still takes part in the graph, as a sum over nothing.
        token_logps = -F.cross_entropy(
            row_logits[row_mask].to(dtype), row_targets[row_mask], reduction="none"
        )
        sums.append(token_logps.sum())
    return torch.stack(sums), is_response.sum(dim=1)


def triplet_logps(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One forward of the policy over a padded batch of triplets.

    Args:
        model: a causal language model whose output has `.logits`.
        batch: `input_ids`, `attention_mask` and `labels`, each (B, 3, length); along the second
            axis annotated, synthetic, proto-synthetic (`layouts.pad_triplets`).

    Returns:
        (B, 3) sums of response log-probabilities in nats, and (B, 3) response token counts.
    """
    shape = batch["input_ids"].shape[:2]
    outputs = model(
        input_ids=batch["input_ids"].flatten(0, 1),
        attention_mask=batch["attention_mask"].flatten(0, 1),
        use_cache=False,
    )
    logps, counts = response_logps(outputs.logits, batch["labels"].flatten(0, 1))
    return logps.view(shape), counts.view(shape)
