"""What every backend of structured attention gets and gives.

A backend is a function `attend(query, key, value, mask, layer)`:

- `query`: (rows, heads, length, size). `key` and `value` may have fewer heads, and `value` another
  size.
- It returns (rows, length, heads, value's size). What padding gets does not matter.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from axolotl_tspin.training.layouts.segments import Segments


@dataclass(frozen=True)
class StructuredMask:
    """Stand-in for the mask that layers get.

    Attributes:
        segments: the plan of the batch's rows.
        cu_queries, cu_keys: (segments + 1,) int32, on the device: `Segments.cumulative`.
        window: positions that a token of this layer sees, itself included; None sees all.
    """

    segments: Segments
    cu_queries: Tensor
    cu_keys: Tensor
    window: int | None


class Layer(NamedTuple):
    """What a layer asks of its attention, beside the mask.

    Attributes:
        scale: factor of the scores; None is 1 / √size.
        dropout: share of the weights that are dropped, 0 outside training.
        softcap: scores s become c·tanh(s/c); None leaves them.
        sinks: (heads,) score of a key without a value, which every query sees; None for none.
    """

    scale: float | None = None
    dropout: float = 0.0
    softcap: float | None = None
    sinks: Tensor | None = None
