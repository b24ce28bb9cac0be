"""Attention over shared-prefix rows from its definition, and flash attention's semantics in plain
PyTorch."""

import itertools

import torch
from torch import Tensor

from axolotl_tspin.triplets import TripletSpan


def visible(rows: tuple[tuple[TripletSpan, ...], ...], length: int, window: int | None) -> Tensor:
    """(rows, length, length) bool by the rule spelled out: a token sees itself, what comes before
    it in its own response, and its prompt up to there, within a window counted in positions. A
    padding token sees the padding before it."""
    seen = torch.zeros(len(rows), length, length, dtype=torch.bool)
    for row, spans in enumerate(rows):
        sequences = [list(range(spans[-1].end, length))]
        for span in spans:
            begin = span.start + span.prompt
            prompt = list(range(span.start, begin))
            sequences.append(prompt)
            for tokens in span.responses:
                sequences.append([*prompt, *range(begin, begin + tokens)])
                begin += tokens
        for sequence in sequences:
            for i, q in enumerate(sequence):
                for j, k in enumerate(sequence[: i + 1]):
                    seen[row, q, k] = window is None or i - j < window
    return seen


def dense(query, key, value, seen, *, scale=None, softcap=None, sinks=None) -> Tensor:
    """(rows, length, heads, value's size) by the textbook's formula over all pairs of tokens."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.exp() * seen[:, None]
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.exp()[None, :, None, None]
    return torch.einsum("bhqk,bhkd->bqhd", weights / total, value)


def segment_by_segment(
    query, key, value, cu_q, cu_k, most_q, most_k, *, scale, window, softcap=0.0, dropout=0.0
) -> Tensor:
    """Flash attention's documented semantics: the last query of a segment is at its last key, and
    sees `window[0]` keys to its left (−1: all) and none to its right."""
    assert window[1] == 0 and dropout == 0
    ends = [list(itertools.pairwise(cu.tolist())) for cu in (cu_q, cu_k)]
    assert most_q == max(b - a for a, b in ends[0]) and most_k == max(b - a for a, b in ends[1])
    assert (cu_q[-1], cu_k[-1]) == (len(query), len(key)) and len(key) == len(value)
    outputs = []
    for (q0, q1), (k0, k1) in zip(*ends, strict=True):
        distance = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
        seen = (distance >= 0) & ((distance <= window[0]) | (window[0] < 0))
        parts = (x.transpose(0, 1)[None] for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        outputs.append(dense(*parts, seen[None], scale=scale, softcap=softcap or None)[0])
    return torch.cat(outputs)


def like_torchs(*tensors, scale, window_size, enable_gqa):
    """`varlen_attn` by its documentation."""
    assert enable_gqa or tensors[0].shape[1] == tensors[1].shape[1]
    assert tensors[0].shape[-1] == tensors[1].shape[-1] == tensors[2].shape[-1]
    assert tensors[3].dtype == tensors[4].dtype == torch.int32
    return segment_by_segment(*tensors, scale=scale, window=window_size)


def like_flash_attns(*tensors, softmax_scale, causal, window_size, softcap, dropout_p):
    """`flash_attn_varlen_func` by its documentation."""
    assert causal
    return segment_by_segment(
        *tensors, scale=softmax_scale, window=window_size, softcap=softcap, dropout=dropout_p
    )
