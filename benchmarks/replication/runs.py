"""Runs of the replication: iterations of the package's own generation step and Axolotl's own
training, in this process, each measured on held-out problems.

`axolotl t-spin run` starts a process for each step. Here Axolotl is imported once for hundreds of
short steps, and two of its start-up costs are paid once. The steps themselves are the same.
"""

import functools
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axolotl.utils.config
import datasets.arrow_dataset
import torch
import yaml
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_train
from evaluation import (
    MAX_NEW_TOKENS,
    MAX_NEW_TOKENS_RESTATED,
    TEST,
    VALIDATION,
    accuracy,
    annotated_logp,
    held_out,
)
from task import answers_restated, restated
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_tspin.generation.importing import import_run
from axolotl_tspin.generation.step import generate
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_metadata, read_table
from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import RESPONSES, TripletTokens

# `save_to_disk` spawns a process that imports everything again, which takes longer than a step.
FORK = datasets.arrow_dataset.mp.get_context("fork")
datasets.arrow_dataset.mp.get_context = lambda method=None: FORK

# The schema of a configuration with our plugin is the same in every step.
axolotl.utils.config.merge_input_args = functools.cache(axolotl.utils.config.merge_input_args)

# Axolotl collects garbage often; skip the objects that the imports made.
gc.freeze()

ROWS = 256
"""Number of annotated problems per seed (100 % of its data)."""

BATCH = 16
LOGGED = ("loss", "grad_norm", "loss/current", "loss/historical", "advantages/current")
TOKENS = ("prompt_ids", *(f"{name}_ids" for name in RESPONSES))


def write_data(
    folder: Path,
    rows: list[tuple[str, str]],
    responses: dict[str, dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "annotated.jsonl"
    with open(path, "w") as file:
        for prompt, solution in rows:
            turns = [("user", prompt), ("assistant", solution)]
            messages = [{"role": role, "content": content} for role, content in turns]
            row = {"messages": messages} | (responses[prompt] if responses else {})
            file.write(json.dumps(row) + "\n")
    return path


def axolotl_keys(model: Path, data: Path, out: Path, seed: int, learning_rate: float) -> dict:
    """Make the keys that all methods share: the paper's optimiser, schedule and one pass."""
    return {
        "base_model": str(model),
        # Also for SFT, which it does not change: Axolotl makes its arguments once per process.
        "plugins": ["axolotl_tspin.TSpinPlugin"],
        "datasets": [{"path": str(data), "ds_type": "json", "type": "chat_template"}],
        "output_dir": str(out),
        "dataset_prepared_path": str(out.parent / "prepared"),
        "sequence_len": 64,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": learning_rate,
        "optimizer": "rmsprop",
        "weight_decay": 0.0,
        "warmup_ratio": 0.1,
        "lr_scheduler": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": seed,
    }


def train(path: Path) -> None:
    """Run `axolotl train` in this process."""
    do_train(load_cfg(str(path)), TrainerCliArgs())


def measure(
    model: Any, tokenizer: Any, *, validation: bool = False, shifted: bool = False
) -> dict[str, float]:
    """Measure greedy accuracy and mean log π(y|x) of a policy on held-out problems. If annotations
    have shifted, the accuracy counts restated answers."""
    unseen = held_out(VALIDATION if validation else TEST)
    if shifted:
        return {"accuracy": accuracy(model, tokenizer, unseen, answers_restated)}
    return {
        "held_out_logp": annotated_logp(model, tokenizer, unseen[:200]),
        "accuracy": accuracy(model, tokenizer, unseen),
    }


def sft_run(
    folder: Path,
    base: Path,
    rows: list[tuple[str, str]],
    *,
    seed: int,
    iterations: int,
    learning_rate: float,
    validation: bool = False,
) -> Iterator[dict[str, Any]]:
    """Run Axolotl's own SFT, one pass over the annotations at a time, each from the last policy."""
    data = write_data(folder, rows)
    model, tokenizer = base, AutoTokenizer.from_pretrained(base)
    for number in range(iterations):
        out = folder / f"pass_{number}"
        started = time.process_time()
        if not (out / "model.safetensors").exists():
            keys = axolotl_keys(model, data, out, seed + number, learning_rate)
            path = folder / f"pass_{number}.yml"
            path.write_text(yaml.safe_dump(keys | {"eot_tokens": [tokenizer.eos_token]}))
            train(path)
        policy = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        figures = measure(policy, tokenizer, validation=validation)
        yield figures | {"iteration": number, "cpu_seconds": time.process_time() - started}
        model = out


def self_play_run(
    folder: Path,
    base: Path,
    rows: list[tuple[str, str]],
    *,
    seed: int,
    iterations: int,
    learning_rate: float,
    validation: bool = False,
    shifted: bool = False,
    responses: dict[str, dict[str, Any]] | None = None,
    generation: dict[str, Any] | None = None,
    **t_spin: Any,
) -> Iterator[dict[str, Any]]:
    """Run the real loop.

    Args:
        responses: both responses of each prompt that iteration 0 begins with (`axolotl t-spin
            import`) instead of sampling them.
        t_spin: the block's other keys.
    """
    data = write_data(folder, rows, responses)
    keys = axolotl_keys(base, data, folder / "run", seed, learning_rate)
    keys["rl"] = "t_spin"
    keys["datasets"][0]["type"] = "t_spin.chat_template"
    sampling = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 256} | (generation or {})
    keys["t_spin"] = {"iterations": iterations, "generation": sampling} | t_spin
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(keys))
    run, tokenizer = RunDirectory(folder / "run"), AutoTokenizer.from_pretrained(base)
    if responses and not run.exists():
        import_run(path)
    for number in range(iterations):
        started = time.process_time()
        if run.step_of(number).step != "done":
            generate(path)
            train(path)
        policy = AutoModelForCausalLM.from_pretrained(
            run.iteration(number).model, dtype=torch.float32
        )
        figures = triplet_figures(run, number, policy)
        figures |= measure(policy, tokenizer, validation=validation, shifted=shifted)
        yield figures | {"iteration": number, "cpu_seconds": time.process_time() - started}


def shifting_run(
    folder: Path,
    base: Path,
    rows: list[tuple[str, str]],
    *,
    then: str,
    seed: int,
    iterations: int,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Run half of the iterations on `rows`; in the other half, annotations restate the answer.

    Args:
        then: "new anchor": a new run from the last policy, which samples y0 again; "old anchor":
            the same with the y0 of the first run; "mixed": a new anchor, and half of the old
            annotations added to the new ones.
    """
    before, half = folder.parent / "before", iterations // 2
    common = {"seed": seed, "iterations": half, **settings}
    for _ in self_play_run(before, base, rows, **common):
        pass
    policy = RunDirectory(before / "run").iteration(half - 1).model
    shifted = [(prompt, restated(solution)) for prompt, solution in rows]
    common["generation"] = {"max_new_tokens": MAX_NEW_TOKENS_RESTATED}
    if then == "old anchor":
        # The run with a new anchor sampled these y′ from the same policy.
        new = folder.parent / "then=new anchor" / "run"
        synthetic = responses_of(RunDirectory(new), "synthetic")
        anchor = responses_of(RunDirectory(before / "run"), "proto_synthetic")
        common["responses"] = {prompt: synthetic[prompt] | anchor[prompt] for prompt, _ in rows}
        common |= {"allow_foreign": True, "historical_at_iteration_0": True}
    mixed = rows[: len(rows) // 2] if then == "mixed" else []
    for record in self_play_run(folder, policy, [*shifted, *mixed], shifted=True, **common):
        yield record | {"iteration": half + record["iteration"]}


def responses_of(run: RunDirectory, name: str) -> dict[str, dict[str, Any]]:
    """Read the columns of a response in iteration 0's triplets, by prompt, as in a data set."""
    rows = read_table(run.iteration(0).triplets("train"))[0].to_pylist()
    return {
        json.loads(row["messages"])[-1]["content"]: {
            # The character tokenizer's decoding puts spaces between characters.
            name: row[name].replace(" ", ""),
            f"{name}_finish_reason": row[f"{name}_finish_reason"],
        }
        for row in rows
    }


def triplet_figures(run: RunDirectory, number: int, policy: Any) -> dict[str, Any]:
    """Compute figures of an iteration's triplets under its trained policy, and of its steps."""
    triplets = run.iteration(number).triplets("train")
    rows = read_table(triplets)[0].to_pylist()
    tokens = [TripletTokens(*(row[name] for name in TOKENS)) for row in rows]
    logps = score_triplets(policy, tokens, pad_token_id=0, batch_size=128)
    y, s, p = logps.unbind(1)
    told_apart = torch.tensor([t.annotated != t.synthetic for t in tokens])
    reference = run.reference(number, triplets)
    margin = y - s
    if reference.exists():
        columns = read_table(reference)[0].to_pydict()
        frozen = [torch.tensor(columns[name]) for name in RESPONSES]
        margin = (y - frozen[0]) - (s - frozen[1])
    history = run.iteration(number).training_record()["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    return {
        "logp_annotated": y.mean().item(),
        "logp_synthetic": s.mean().item(),
        "logp_proto_synthetic": p.mean().item(),
        "gap": (y - s).mean().item(),
        "gap_positive": ((y > s) & told_apart).sum().item() / max(told_apart.sum().item(), 1),
        # Share of the triplets with y ≠ y′ whose reward has the opposite order of the likelihood.
        "opposite_order": ((margin * (y - s) < 0) & told_apart).sum().item()
        / max(told_apart.sum().item(), 1),
        "synthetic_is_annotated": 1 - told_apart.double().mean().item(),
        "sampled_tokens": read_metadata(triplets)["tokens"],
        "steps": {name: [round(e[name], 5) for e in steps if name in e] for name in LOGGED},
    }
