"""Measure rows per second of the data set strategies: conversations to token ids.

    python benchmarks/encoding.py MODEL --data GSM8K/train.jsonl [--rows 50000] [--processes 2]

The data's question and answer pairs are encoded as conversations, repeated up to `--rows`, with the
functions that Axolotl calls (`t_spin.chat_template`, `wrap_dataset`). For comparison, the tokenizer
alone encodes the same texts in batches of 1000 rows.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import AutoTokenizer

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.strategies import chat_template


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder, for its tokenizer and template")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    problems = itertools.cycle(json.loads(line) for line in args.data.read_text().splitlines())
    conversations = Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": problem["question"]},
                    {"role": "assistant", "content": problem["answer"]},
                ]
            }
            for problem in itertools.islice(problems, args.rows)
        ]
    )
    resolved = ResolvedRun(task="generate", initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved).model_dump(exclude_none=True)
    cfg = DictDefault({"base_model": args.model, "sequence_len": 2048, "t_spin": t_spin})
    strategy = chat_template.load(tokenizer, cfg, DictDefault({"path": str(args.data)}))
    started = time.monotonic()
    encoded = strategy.wrap_dataset(conversations, process_count=args.processes)
    seconds = time.monotonic() - started
    tokens = sum(map(len, encoded["input_ids"]))
    rate = args.rows / seconds
    print(f"{args.rows} rows, {tokens} tokens: {seconds:.1f} s, {rate:.0f} rows/s")

    texts = [m["content"] for messages in conversations["messages"] for m in messages]
    started = time.monotonic()
    for first in range(0, len(texts), 2000):
        tokenizer(texts[first : first + 2000], add_special_tokens=False)
    seconds = time.monotonic() - started
    print(f"the tokenizer alone, one process: {seconds:.1f} s, {args.rows / seconds:.0f} rows/s")


if __name__ == "__main__":
    main()
