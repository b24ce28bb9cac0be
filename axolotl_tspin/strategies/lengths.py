"""`sequence_len` for triplets: it bounds the prompt plus each response."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from axolotl_tspin.errors import TSpinError

ExcessLength = Literal["truncate", "drop", "raise"]


class Fitted(NamedTuple):
    """Responses that fit, the number that were cut, and the reason if the row is dropped."""

    responses: list[list[int]]
    cut: int = 0
    dropped: str | None = None


def fit_row(
    prompt: Sequence[int],
    responses: Sequence[list[int]],
    *,
    sequence_len: int,
    excess_length: ExcessLength,
    where: str,
) -> Fitted:
    """Make a prompt and its responses fit into `sequence_len` tokens each.

    Args:
        excess_length: Axolotl's `excess_length_strategy`: "truncate" cuts a long response (which
            then has no end-of-turn token), "drop" drops the row, "raise" refuses it. A prompt that
            leaves no room for a response drops the row under the first two.
        where: names the row in the error.

    Raises:
        TSpinError: a row is too long under "raise".
    """
    room = sequence_len - len(prompt)
    longest = max(len(response) for response in responses)
    if excess_length == "raise" and (room < 1 or longest > room):
        raise TSpinError(
            f"{where}: prompt ({len(prompt)} tokens) and response ({longest}) are longer than "
            f"`sequence_len: {sequence_len}`; raise it, or set `excess_length_strategy` to "
            "truncate or drop"
        )
    dropped = None
    if room < 1:
        dropped = "the prompt leaves no room for a response"
    elif longest > room and excess_length == "drop":
        dropped = "prompt and response are longer than sequence_len"
    if dropped:
        return Fitted([[] for _ in responses], dropped=dropped)
    return Fitted(
        [response[:room] for response in responses], cut=sum(len(r) > room for r in responses)
    )
