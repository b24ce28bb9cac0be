"""The policy's head, applied at the positions that predict response tokens (torch only).

Both implementations run one forward of the (wrapped) policy and return the same numbers: the sum of
each distinct response's log-probabilities. "chunked" never holds more than a chunk of logits.
"""

from axolotl_tspin.training.heads.base import MOST_LOGITS, is_sharded, token_logps
from axolotl_tspin.training.heads.chunked import chunked_head
from axolotl_tspin.training.heads.plain import plain_head

__all__ = ["HEADS", "MOST_LOGITS", "chunked_head", "is_sharded", "plain_head", "token_logps"]

HEADS = {"chunked": chunked_head, "plain": plain_head}
