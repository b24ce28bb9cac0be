"""Description of a batch of triplets, in the terms that every layout shares."""

from dataclasses import dataclass

from axolotl_tspin.triplets import TripletSpan


@dataclass(frozen=True)
class BatchLayout:
    """Contents of a batch of B triplets, as Python numbers (no transfer from the device needed).

    Attributes:
        lengths: token counts of the D distinct responses, in the order of `targets`.
        responses: (B, 3) index of each triplet's responses among the distinct ones. In the padded
            layout D = 3·B; in the shared-prefix layout, equal responses of a triplet count once.
        rows: the triplets of each row of a shared-prefix batch; None in a padded one.
        repeated: number of last triplets that only fill the batch, so that all ranks have equally
            many. They do not count, as another rank has them too.
    """

    lengths: tuple[int, ...]
    responses: tuple[tuple[int, int, int], ...]
    rows: tuple[tuple[TripletSpan, ...], ...] | None = None
    repeated: int = 0

    @property
    def counted(self) -> int:
        """Number of triplets that count in the loss: all but the repeated ones."""
        return len(self.responses) - self.repeated
