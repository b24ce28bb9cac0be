"""Axolotl's trainer with the triplet loss under it."""

from collections.abc import Callable
from typing import Any, ClassVar

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger

from axolotl_tspin.training.trainer import LOG, TripletTrainer

get_logger(LOG.name)  # what TripletTrainer says passes Axolotl's log level


class TSpinTrainer(AxolotlTrainer, TripletTrainer):
    """AxolotlTrainer, in whose method resolution order TripletTrainer stands where Trainer stood.

    Optimizers, schedulers, samplers, checkpoints, token counts and logging stay Axolotl's; what
    they pass on to Trainer (compute_loss, prediction_step, log) reaches TripletTrainer first.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "t-spin"]
    reports_token_perplexity = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Axolotl 0.19 unsets it when the model's forward does not name num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self.write_model_card: Callable[[], None] | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Axolotl's model card, which `write_model_card` then replaces; a push to the hub takes
        what is there after this."""
        super().create_model_card(*args, **kwargs)
        if self.write_model_card is not None and self.is_world_process_zero():
            self.write_model_card()
