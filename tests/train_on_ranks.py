"""Trains the cases of a world size, or those named, one after another in one process group; rank 0
writes what came of each.

torchrun --nproc_per_node 2 tests/train_on_ranks.py OUT [CASE ...]
"""

import json
import os
import sys
import traceback
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from rank_cases import CASES, VOCABULARY, make_trainer
from transformers import PrinterCallback

from axolotl_tspin import heads

heads.MOST_LOGITS = 12 * VOCABULARY  # many chunks, and not as many on every rank


def train(case, out: Path) -> None:
    trainer = make_trainer(case, out)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    evaluation = trainer.evaluate()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        done = {
            "engine": type(trainer.model_wrapped).__name__,
            "layout": trainer.data_collator.layout,
            "head": trainer._choice.head,
            "log": trainer.state.log_history,
            "evaluation": evaluation,
        }
        out.mkdir(exist_ok=True)
        (out / "log.json").write_text(json.dumps(done))
        torch.save({name: weight.cpu() for name, weight in weights.items()}, out / "weights.pt")
    if case.engine.startswith("zero"):
        trainer.model_wrapped.destroy()


def main() -> None:
    out, *names = sys.argv[1:]
    for case in CASES[int(os.environ["WORLD_SIZE"])]:
        if names and case.name not in names:
            continue
        try:
            train(case, Path(out) / case.name)
        except Exception:
            # The others cannot go on without this rank: end all, and say which case it was.
            print(f"rank {os.environ['RANK']}, case {case.name}", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    dist.destroy_process_group()


main()
