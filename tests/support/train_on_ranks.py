"""Trains the cases of a world size, or those named, one after another in one process group; rank 0
writes what came of each.

torchrun --nproc_per_node 2 tests/support/train_on_ranks.py OUT [CASE ...]
"""

import json
import os
import sys
import traceback
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from transformers import PrinterCallback

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.attention import interface
from axolotl_tspin.training.heads import MOST_LOGITS
from support.rank_cases import CASES, VOCABULARY, make_policy, make_trainer
from support.training import numbered

MOST_LOGITS["cpu"] = 12 * VOCABULARY  # many chunks, and not as many on every rank


def break_shared_prefix(policy, fault: str) -> None:
    """Make a policy that cannot be trained in the shared layout, as its forward shows."""

    def body(module, args, output):
        if getattr(interface._current, "plan", None) is not None:
            if fault == "fails":
                raise NotImplementedError("this rank's kernel takes no such rows")
            output.last_hidden_state = 1.5 * output.last_hidden_state
        return output

    policy.model.register_forward_hook(body)


def refuses_uneven_ranks(case, out: Path) -> bool:
    try:
        make_trainer(case, out, accelerator_config={"even_batches": False})
    except TSpinError as error:
        return "even_batches" in str(error)
    return False


def train(case, out: Path) -> None:
    policy = make_policy(case, case.dtype)
    if case.fault and os.environ["RANK"] == "1":
        break_shared_prefix(policy, case.fault)
    trainer = make_trainer(case, out, policy)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    evaluation = trainer.evaluate()
    scores = trainer.score(numbered(case.triplets()))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        done = {
            "engine": type(trainer.model_wrapped).__name__,
            "layout": trainer.data_collator.layout,
            "head": trainer.layout.choice.head,
            "log": trainer.state.log_history,
            "evaluation": evaluation,
            "scores": scores,
        }
        out.mkdir(exist_ok=True)
        (out / "log.json").write_text(json.dumps(done))
        torch.save({name: weight.cpu() for name, weight in weights.items()}, out / "weights.pt")
    if case.engine.startswith("zero"):
        trainer.model_wrapped.destroy()


def main() -> None:
    out, *names = sys.argv[1:]
    world = int(os.environ["WORLD_SIZE"])
    if world > 1 and not names:
        assert refuses_uneven_ranks(CASES[world][0], Path(out))
    for case in CASES[world]:
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
