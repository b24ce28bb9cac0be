"""Axolotl's trainer with the triplet loss."""

from collections.abc import Callable
from typing import Any, ClassVar

from axolotl.core.trainers.base import AxolotlTrainer

from axolotl_tspin.logs import get_logger
from axolotl_tspin.training import layout_check, trainer
from axolotl_tspin.training.trainer import TripletTrainer

for log in (trainer.LOG, layout_check.LOG):
    get_logger(log.name)  # lets their messages pass Axolotl's log level


class TSpinTrainer(AxolotlTrainer, TripletTrainer):
    """AxolotlTrainer with TripletTrainer before Trainer in its method resolution order.

    Optimizers, schedulers, samplers, checkpoints, token counts and logging stay Axolotl's. Their
    calls to Trainer (compute_loss, prediction_step, log) reach TripletTrainer first.
    """

    tag_names: ClassVar[list[str]] = ["axolotl", "t-spin"]
    reports_token_perplexity = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Axolotl 0.19 unsets it if the model's forward has no parameter num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self.write_model_card: Callable[[], None] | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write Axolotl's model card, which `write_model_card` then replaces. A push to the hub
        uses the card that is there after this."""
        super().create_model_card(*args, **kwargs)
        if self.write_model_card is not None and self.is_world_process_zero():
            self.write_model_card()
