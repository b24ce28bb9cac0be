"""A training by the real trainer, and what its check of the layout logged."""

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, set_seed

from axolotl_tspin.training.arguments import TSpinTrainingArguments
from axolotl_tspin.training.collator import TripletCollator
from axolotl_tspin.training.trainer import TripletTrainer
from axolotl_tspin.triplets import TripletTokens, as_row


class Training(NamedTuple):
    """What a training gave.

    Attributes:
        losses: of every step.
        times: seconds of every step but the first, whose check takes time.
        layout: taken after the trainer's own check.
        check: what the trainer logged about it.
        graphs: compiled after the first step.
    """

    losses: list[float]
    times: list[float]
    layout: str
    check: str
    graphs: int


def train(
    model: Any, triplets: list[TripletTokens], layout: str, device: str, steps: int, **arguments
) -> Training:
    """Train a policy on triplets with the real trainer, in bfloat16 on a GPU."""
    set_seed(42)
    with tempfile.TemporaryDirectory() as folder, _checks() as messages:
        trainer = TripletTrainer(
            model=model,
            args=TSpinTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=device == "cpu",
                bf16=device == "cuda",
                dataloader_pin_memory=device == "cuda",
                t_spin_alpha=0.02,  # keeps the loss away from 0
                t_spin_layout=layout,
                **arguments,
            ),
            train_dataset=[as_row(t) for t in triplets],
            data_collator=TripletCollator(SimpleNamespace(pad_token_id=0)),
        )
        clock = _Clock(device)
        trainer.add_callback(clock)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    times = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    taken = trainer.layout.choice.layout
    return Training(losses, times, taken, "; ".join(messages), compiled_graphs() - clock.graphs)


class _Clock(TrainerCallback):
    def __init__(self, device: str) -> None:
        self._device = device
        self.ends: list[float] = []
        self.graphs = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
        if not self.ends:
            self.graphs = compiled_graphs()
        self.ends.append(time.perf_counter())


@contextlib.contextmanager
def _checks() -> Iterator[list[str]]:
    """Collect what the check of the layout logs."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage().removeprefix("T-SPIN layout: "))

    logger, handler = logging.getLogger("axolotl_tspin.training.layout_check"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
