"""Trains cases in which the last rank alone gets a loss or a weight that is not finite; every rank
writes the error that ended each.

torchrun --nproc_per_node 2 tests/support/stop_on_ranks.py OUT [ENGINE ...]
"""

import math
import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch.distributed as dist
from transformers import TrainerCallback

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.finite import shard_of
from support.rank_cases import Case, make_trainer


class InStep3(TrainerCallback):
    """Plants a value on one rank: in the step's loss, or in the weights after it."""

    def __init__(self, trainer, what: str) -> None:
        self.trainer, self.what = trainer, what
        self.compute_loss = trainer.compute_loss

    def on_step_begin(self, args, state, control, **kwargs):
        if self.what == "loss" and state.global_step == 2:
            self.trainer.compute_loss = lambda *a, **k: self.compute_loss(*a, **k) * math.nan

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.what == "weights" and state.global_step == 3:
            shards = [shard_of(p) for p in self.trainer.model.parameters() if p.requires_grad]
            next(shard for shard in shards if shard.numel()).data.view(-1)[-1] = math.nan


def train(engine: str, what: str, out: Path) -> str:
    case = Case(engine, lora=("q_proj", "down_proj") if engine.endswith("lora") else ())
    case = case._replace(engine=engine.removesuffix("-lora"))
    saves = {"save_strategy": "steps", "save_steps": 3 if what == "weights" else 2}
    trainer = make_trainer(case, out, logging_steps=100, **saves)
    if what != "nothing" and dist.get_rank() == dist.get_world_size() - 1:
        trainer.add_callback(InStep3(trainer, what))
    try:
        trainer.train()
    except TSpinError as error:
        return str(error)
    finally:
        if case.engine.startswith("zero"):
            trainer.model_wrapped.destroy()
    return f"trained {trainer.state.global_step} steps"


def main() -> None:
    out, *engines = sys.argv[1:]
    for engine in engines:
        for what in ("loss", "weights", "nothing"):
            folder = Path(out) / f"{engine}-{what}"
            ended = train(engine, what, folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"rank-{dist.get_rank()}.txt").write_text(ended)
    dist.destroy_process_group()


main()
