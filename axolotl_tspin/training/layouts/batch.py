"""What a batch of triplets holds, in the terms that every layout shares."""

from dataclasses import dataclass

from axolotl_tspin.triplets import TripletSpan


@dataclass(frozen=True)
class BatchLayout:
    """What a batch of B triplets holds, as Python numbers (no transfer from the device needed).

    Attributes:
        lengths: token counts of the D distinct responses, in the order of `targets`.
        responses: (B, 3) index of each triplet's responses among the distinct ones. In the padded
            layout D = 3·B; in the shared one equal responses of a triplet are one.
        rows: the triplets of each row of a shared-prefix batch; None in a padded one.
        repeated: how many of the last triplets only fill the batch, so that all ranks have as
            many. They count nowhere: another rank has them too.
    """

    lengths: tuple[int, ...]
    responses: tuple[tuple[int, int, int], ...]
    rows: tuple[tuple[TripletSpan, ...], ...] | None = None
    repeated: int = 0

    @property
    def counted(self) -> int:
        """How many triplets count in the loss: all but the repeated ones."""
        return len(self.responses) - self.repeated
