"""Train 100 steps from one start, in padded rows and in the layout that `auto` takes.

    python benchmarks/loss_curves.py MODEL RUN/iteration_1/triplets/train.parquet --out loss_curves

Both use real triplets of a run, the real trainer and the same order of data. The script writes
OUT.json (every step's loss) and OUT.png, and prints the distance of the curves.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import torch
from transformers import AutoModelForCausalLM, TrainingArguments, set_seed

from axolotl_tspin.run.tables import read_table
from axolotl_tspin.training.arguments import TSpinTrainingArgs
from axolotl_tspin.training.collator import TripletCollator
from axolotl_tspin.training.trainer import TripletTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass
class Arguments(TSpinTrainingArgs, TrainingArguments):
    pass


def losses(model: str, rows: list[dict], layout: str, steps: int) -> list[float]:
    """Train, and return every step's loss."""
    set_seed(42)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TripletTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=Arguments(
                output_dir=folder,
                per_device_train_batch_size=1,
                max_steps=steps,
                learning_rate=2e-6,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                use_cpu=not torch.cuda.is_available(),
                t_spin_alpha=0.02,  # keeps the loss away from 0
                t_spin_layout=layout,
            ),
            train_dataset=rows,
            data_collator=TripletCollator(SimpleNamespace(pad_token_id=0)),
        )
        trainer.train()
        print(layout, "trained in", trainer.data_collator.layout)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("triplets", type=Path, help="triplets of a later iteration than the first")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("loss_curves"))
    args = parser.parse_args()
    rows = [
        {
            "input_ids": [*row["prompt_ids"], *row["annotated_ids"]],
            "labels": [-100] * len(row["prompt_ids"]) + row["annotated_ids"],
            "synthetic_ids": row["synthetic_ids"],
            "proto_synthetic_ids": row["proto_synthetic_ids"],
        }
        for row in read_table(args.triplets)[0].to_pylist()
    ]
    curves = {name: losses(args.model, rows, name, args.steps) for name in ("padded", "auto")}
    args.out.with_suffix(".json").write_text(json.dumps(curves))
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(curves["padded"], linewidth=3, alpha=0.4, label="padded")
    axes.plot(curves["auto"], linewidth=1, color="black", label="auto (shared_prefix)")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(args.out.with_suffix(".png"), dpi=120)
    apart = [abs(a - b) for a, b in zip(*curves.values(), strict=True)]
    print(f"{len(apart)} steps, loss {curves['auto'][0]:.4f} … {curves['auto'][-1]:.4f}: apart by")
    print(f"{max(apart):.2e} at most, {sum(apart) / len(apart):.2e} on average")


if __name__ == "__main__":
    main()
