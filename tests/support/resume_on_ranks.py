"""Saves checkpoints after the second step and ends in the third, the last case by SIGKILL; or goes
on from the checkpoints that so many ranks saved.

torchrun --nproc_per_node 2 tests/support/resume_on_ranks.py OUT save
torchrun --nproc_per_node 1 tests/support/resume_on_ranks.py OUT resume 2
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch.distributed as dist
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from transformers import TrainerCallback

from axolotl_tspin.errors import TSpinError
from support.rank_cases import CHECKPOINTED, deepspeed_config, make_trainer


class EndInStep3(TrainerCallback):
    def __init__(self, kill: bool) -> None:
        self.kill = kill

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            control.should_training_stop = True


def refuses_partial_checkpoints(out: str) -> bool:
    """FSDP2 with an adapter and whole state dicts; before anything is trained."""
    case = next(c for c in CHECKPOINTED if c.engine == "fsdp2" and c.lora)
    trainer = make_trainer(case, out, save_strategy="steps", save_steps=2)
    trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        trainer.train()
    except TSpinError as error:
        return "SHARDED_STATE_DICT" in str(error)
    return False


def save(out: str) -> None:
    assert refuses_partial_checkpoints(out)
    for case in CHECKPOINTED:
        trainer = make_trainer(case, Path(out) / case.name, save_strategy="steps", save_steps=2)
        trainer.add_callback(EndInStep3(kill=case == CHECKPOINTED[-1]))
        trainer.train()
        if case.engine.startswith("zero"):
            trainer.model_wrapped.destroy()


def resume(out: str, saved_by: int) -> None:
    world = int(os.environ["WORLD_SIZE"])
    for case in CHECKPOINTED:
        folder = Path(out) / case.name
        model = folder / f"model-{world}"
        zero = case.engine.startswith("zero")
        changed = {}
        if case.engine == "zero2" and world != saved_by:
            config = deepspeed_config(case.engine, case.accumulation)
            changed["deepspeed"] = config | {"checkpoint": {"load_universal": True}}
        trainer = make_trainer(case, folder, **changed)
        try:
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        except ZeRORuntimeException as error:
            model.mkdir(exist_ok=True)
            (model / "refused.txt").write_text(str(error))
            continue
        if case.engine == "fsdp2":  # as Axolotl does for the policy at the end
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(model))
        if trainer.is_world_process_zero():
            log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            (model / "losses.json").write_text(json.dumps(log))
        if zero:
            trainer.model_wrapped.destroy()


match sys.argv[1:]:
    case [out, "save"]:
        save(out)
    case [out, "resume", saved_by]:
        resume(out, int(saved_by))
dist.destroy_process_group()
