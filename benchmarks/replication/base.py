"""Train the policy that every run starts from.

    python benchmarks/replication/base.py WORK

It is a small Llama, trained from scratch on fresh problems until it solves a part of the unseen
ones. The script writes WORK/base (model and tokenizer) and `results/base.jsonl`.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from evaluation import TEST, VALIDATION, accuracy, annotated_logp, held_out
from task import ANSWER, BEGIN, END, character_tokenizer, problem
from transformers import LlamaConfig, LlamaForCausalLM

RESULTS = Path(__file__).parent / "results"
BATCH, LEARNING_RATE, WARMUP = 64, 3e-3, 50
CHECK_EVERY, STOP_AT = 25, 0.4
"""Training ends at the first check with this share of the validation problems solved."""


def small_llama(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )


def batch_of(tokenizer: Any, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    texts = [f"{BEGIN}{prompt}{ANSWER}{solution}{END}" for prompt, solution in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for row, (prompt, _) in enumerate(rows):
        labels[row, : len(prompt) + 2] = -100
    labels[batch["attention_mask"] == 0] = -100
    return {"input_ids": batch["input_ids"], "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = character_tokenizer()
    model = small_llama(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / WARMUP))
    generator, unseen = random.Random(0), held_out(VALIDATION)
    kept = frozenset(prompt for kind in (TEST, VALIDATION) for prompt, _ in held_out(kind))
    started, step, solved = time.process_time(), 0, 0.0
    while solved < STOP_AT:
        drawn = (problem(generator) for _ in range(BATCH))
        batch = batch_of(tokenizer, [row for row in drawn if row[0] not in kept])
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        # Use a copy: sampling changes a model's attention.
        if step % CHECK_EVERY == 0 and loss < 0.2:
            solved = accuracy(copy.deepcopy(model), tokenizer, unseen)
            print(f"step {step}: loss {loss.item():.3f}, solved {solved:.3f}", flush=True)
    model.save_pretrained(args.work / "base")
    tokenizer.save_pretrained(args.work / "base")
    record = {
        "parameters": model.num_parameters(),
        "steps": step,
        "problems": step * BATCH,
        "validation_accuracy": solved,
        "held_out_logp": annotated_logp(model, tokenizer, held_out(TEST)[:200]),
        "accuracy": accuracy(model, tokenizer, held_out(TEST)),
        "cpu_seconds": round(time.process_time() - started),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "base.jsonl").write_text(json.dumps(record) + "\n")
    print(record)


if __name__ == "__main__":
    main()
