"""Train a few SFT steps on GSM8K, last layers only, so that responses have the data's form and end.

    python benchmarks/sft.py MODEL OUT --data GSM8K/train.jsonl [--rows 96] [--skip 256]

`--skip` leaves out the rows that `benchmarks/generation.py` asks.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS, BATCH = 6, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--skip", type=int, default=256)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.requires_grad_(False)
    model.model.layers[-LAYERS:].requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    lines = itertools.islice(args.data.read_text().splitlines(), args.skip, args.skip + args.rows)
    rows = [json.loads(line) for line in lines]
    for first in range(0, len(rows), BATCH):
        batch = [encoded(tokenizer, row) for row in rows[first : first + BATCH]]
        longest = max(len(ids) for ids, _ in batch)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in batch])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"{first + len(batch)} rows: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def encoded(tokenizer, row: dict) -> tuple[list[int], list[int]]:
    """Encode a row as token ids and labels, −100 on the prompt."""
    messages = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    prompt = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    return whole, [-100] * len(prompt) + whole[len(prompt) :]


if __name__ == "__main__":
    main()
