"""One optimizer step on this rank's share of some triplets; rank 0 writes what came of it.

torchrun --nproc_per_node 2 tests/train_on_ranks.py OUT BATCH_SIZE ACCUMULATION TRIPLETS
"""

import json
import sys
from pathlib import Path

import torch
from test_trainer import make_trainer, make_triplets

out, batch_size, accumulation, triplets = Path(sys.argv[1]), *map(int, sys.argv[2:])
trainer = make_trainer(
    out,
    make_triplets(triplets),
    batch_size,
    accumulation,
    logging_steps=1,
    ddp_backend="gloo",
)
trainer.train()
evaluation = trainer.evaluate()
if trainer.is_world_process_zero():
    (out / "log.json").write_text(json.dumps([trainer.state.log_history[0], evaluation]))
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), out / "weights.pt")
