"""Saves checkpoints and is killed, or goes on from them.

torchrun --nproc_per_node 2 tests/resume_on_ranks.py OUT save
torchrun --nproc_per_node 1 tests/resume_on_ranks.py OUT resume
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch.distributed as dist
from rank_cases import CHECKPOINTED, make_trainer
from transformers import PrinterCallback, TrainerCallback


class EndInStep3(TrainerCallback):
    def __init__(self, kill: bool) -> None:
        self.kill = kill

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            control.should_training_stop = True


def main() -> None:
    out, what, *names = sys.argv[1:]
    for case in CHECKPOINTED:
        if names and case.name not in names:
            continue
        folder = Path(out) / case.name
        trainer = make_trainer(case, folder, save_strategy="steps", save_steps=2)
        trainer.remove_callback(PrinterCallback)
        if what == "save":
            trainer.add_callback(EndInStep3(kill=case == CHECKPOINTED[-1]))
            trainer.train()
        else:
            model = folder / f"model-{os.environ['WORLD_SIZE']}"
            outcome = {}
            try:
                trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
                trainer.save_model(str(model))
                outcome["losses"] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
            except Exception as error:
                if os.environ.get("DEBUG"): raise
                outcome["error"] = f"{type(error).__name__}: {error}"
            if trainer.is_world_process_zero():
                model.mkdir(exist_ok=True)
                (model / "outcome.json").write_text(json.dumps(outcome))
        if case.engine.startswith("zero") and hasattr(trainer.model_wrapped, "destroy"):
            trainer.model_wrapped.destroy()
    dist.destroy_process_group()


main()
