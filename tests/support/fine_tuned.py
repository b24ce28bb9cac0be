"""A tiny policy that was fine-tuned on a few sums: it answers, and ends its turns."""

from pathlib import Path

import torch

from support.data import write_jsonl
from support.policies import tiny_llama

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Add {a} and {b}."},
            {"role": "assistant", "content": f"#### {a + b}"},
        ]
    }
    for a in range(8)
    for b in range(6)
]
STEPS = 150


def sums(folder: Path) -> dict:
    """The data, as an entry of `datasets`."""
    path = write_jsonl(folder / "sums.jsonl", ROWS)
    return {"path": str(path), "type": "t_spin.chat_template", "split": "train"}


def fine_tune(path: Path, tokenizer, steps: int = STEPS) -> Path:
    """Saves a policy that was fine-tuned for this many steps."""
    model = tiny_llama(len(tokenizer), seed=1)
    texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in ROWS]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
