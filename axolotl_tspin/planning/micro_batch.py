"""Size of the largest micro-batch that a training can meet."""

from typing import NamedTuple

from axolotl_tspin.training.layout_choice import Choice


class MicroBatch(NamedTuple):
    """The largest micro-batch.

    Attributes:
        tokens: number of tokens, padding included.
        keys: number of keys of all segments: a shared prompt's count once for itself and once for
            each response, as attention copies them.
        predicting: number of response tokens.
        head: the way to apply the head (`heads.HEADS`).
    """

    tokens: int
    keys: int
    predicting: int
    head: str


def largest_micro_batch(
    longest: tuple[int, int, int], choice: Choice, micro_batch_size: int
) -> MicroBatch:
    """Size a micro-batch of triplets that are all as long as the longest, without equal responses.

    Args:
        longest: token counts of prompt, annotated response, sampled response.
    """
    prompt, annotated, response = longest
    predicting = annotated + 2 * response
    tokens, keys = prompt + predicting, 4 * prompt + predicting
    if choice.layout == "padded":
        tokens = keys = 3 * (prompt + max(annotated, response))
    tokens, keys, predicting = (micro_batch_size * n for n in (tokens, keys, predicting))
    return MicroBatch(tokens, keys, predicting, choice.head)
