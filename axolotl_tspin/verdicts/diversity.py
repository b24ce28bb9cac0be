"""Diversity of responses, as token ids (no torch, no axolotl)."""

from collections.abc import Iterable, Sequence

REPEATED_N = 4


def distinct_n(responses: Iterable[Sequence[int]], n: int) -> float:
    """Compute distinct n-grams over all n-grams of all responses together (Li et al., 2016); 0 if
    no response has n tokens. It falls with the number of responses: compare equal numbers."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for response in responses:
        grams = _grams(response, n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(responses: Iterable[Sequence[int]]) -> float:
    """Compute the share of a response's 4-grams that repeat an earlier one, as the mean over the
    responses that have any."""
    shares = []
    for response in responses:
        grams = _grams(response, REPEATED_N)
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
