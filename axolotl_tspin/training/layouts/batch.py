"""Description of a batch of triplets, in the terms that every layout shares (torch only)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from axolotl_tspin.training.layouts.segments import Segments
from axolotl_tspin.triplets import TripletSpan


class BatchIndices(NamedTuple):
    """What a batch's forward needs on the device, int64.

    Attributes:
        predicting: (N,) the positions, counted through all rows, whose logits predict a response
            token.
        targets: (N,) those tokens, response after response.
        lengths: (D,) token counts of the distinct responses.
        responses: (3·B,) each triplet's responses among the distinct ones.
        cu_queries, cu_keys: (segments + 1,) `Segments.cumulative`; empty in the padded layout.
    """

    predicting: Tensor
    targets: Tensor
    lengths: Tensor
    responses: Tensor
    cu_queries: Tensor
    cu_keys: Tensor


@dataclass(frozen=True)
class BatchLayout:
    """Contents of a batch of B triplets, as Python numbers (no transfer from the device needed).

    Attributes:
        lengths: token counts of the D distinct responses, in the order of the targets.
        responses: (B, 3) index of each triplet's responses among the distinct ones. In the padded
            layout D = 3·B; in the shared-prefix layout, equal responses of a triplet count once.
        rows: the triplets of each row of a shared-prefix batch; None in a padded one.
        segments: which tokens of those rows see each other; None in a padded batch.
        repeated: number of last triplets that only fill the batch, so that all ranks have equally
            many. They do not count, as another rank has them too.
    """

    lengths: tuple[int, ...]
    responses: tuple[tuple[int, int, int], ...]
    rows: tuple[tuple[TripletSpan, ...], ...] | None = None
    segments: Segments | None = None
    repeated: int = 0

    @property
    def counted(self) -> int:
        """Number of triplets that count in the loss: all but the repeated ones."""
        return len(self.responses) - self.repeated

    def joined(self, predicting: Sequence[int], targets: Sequence[int]) -> Tensor:
        """Join the batch's `BatchIndices` in one tensor, which goes to the device as one copy."""
        cumulative = self.segments.cumulative() if self.segments else ()
        parts = (predicting, targets, self.lengths, *self.responses, *cumulative)
        return torch.tensor([*itertools.chain(*parts)], dtype=torch.int64)

    def indices(self, joined: Tensor) -> BatchIndices:
        """Take the views of what `joined` joined."""
        targets = sum(self.lengths)
        ends = 1 + len(self.segments.lengths) if self.segments else 0
        sizes = (targets, targets, len(self.lengths), 3 * len(self.responses), ends, ends)
        return BatchIndices(*joined.split(sizes))
