"""Measure a training step in each layout and TRL's DPO step, on the same policy and data.

    python benchmarks/step.py MODEL --data GSM8K/train.jsonl > table.md

MODEL is a model folder, or a name in `RANDOM_LLAMAS` for a Llama of that shape with random weights.
A step is the Trainer's own `training_step`: forward and backward over one micro-batch (the
optimizer's step is the same for all). Methods take turns, so that a change of the machine's speed
affects all. Times are medians of `--repeats` rounds after a first one. In the first round memory is
measured: the peak during the step above the memory held before it.
"""

import argparse
import ctypes
import functools
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.triplets import TripletTokens, as_row

SHAPES = [(100, 150), (200, 400), (512, 128), (1024, 128), (1024, 1024)]
RANDOM_LLAMAS = {
    "llama-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "llama-0.5b": LlamaConfig(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "llama-1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    ),
    "llama-7b": LlamaConfig(vocab_size=32000),
}
Step = Callable[[], None]


def load(model: str, device: str) -> Any:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if model in RANDOM_LLAMAS:
        torch.manual_seed(0)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(RANDOM_LLAMAS[model], dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)


def random_ids(length: int, vocabulary: int) -> list[int]:
    return [random.randrange(3, vocabulary) for _ in range(length)]


def triplets_of_shape(prompt: int, response: int, count: int, vocabulary: int):
    return [
        TripletTokens(
            random_ids(prompt, vocabulary), *(random_ids(response, vocabulary) for _ in range(3))
        )
        for _ in range(count)
    ]


def triplets_like_gsm8k(data: Path, tokenizer, count: int, vocabulary: int):
    """Draw triplets with GSM8K's lengths; a triplet's three responses differ in length."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    lengths = [len(tokenizer(row["answer"])["input_ids"]) for row in rows]
    chosen = random.sample(range(len(rows)), count)
    return [
        TripletTokens(
            tokenizer(rows[i]["question"])["input_ids"],
            *(random_ids(n, vocabulary) for n in (lengths[i], *random.choices(lengths, k=2))),
        )
        for i in chosen
    ]


def arguments(kind: type, folder: str, device: str, **more: Any) -> Any:
    return kind(
        output_dir=folder,
        report_to=[],
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        **more,
    )


def triplet_step(
    model: Any, triplets: list[TripletTokens], choice: Choice, most: int | None, folder: str
) -> Step:
    """Make our trainer's step in one layout."""
    from axolotl_tspin.training.arguments import TSpinTrainingArguments
    from axolotl_tspin.training.collator import TripletCollator
    from axolotl_tspin.training.trainer import TripletTrainer

    rows = [as_row(triplet) for triplet in triplets]
    trainer = TripletTrainer(
        model=model,
        args=arguments(
            TSpinTrainingArguments,
            folder,
            model.device.type,
            gradient_checkpointing=False,
            t_spin_layout=choice.layout,
            t_spin_max_tokens_per_row=most,
        ),
        train_dataset=rows,
        data_collator=TripletCollator(SimpleNamespace(pad_token_id=0)),
    )
    trainer.layout.choice = choice  # no setting selects the padded layout with all logits
    count = torch.tensor(len(triplets), device=model.device)

    def step_on(rows: list[dict[str, Any]]) -> None:
        attention = "t_spin" if choice.layout == "shared_prefix" else "sdpa"
        model.set_attn_implementation(attention)
        model.zero_grad(set_to_none=True)
        trainer.training_step(model, trainer.data_collator(rows), count)
        if trainer.layout.choice[:2] != choice[:2]:
            raise RuntimeError(f"the check took another way: {trainer.layout.choice}")

    # The first step runs the trainer's check, with all logits of padded rows.
    step_on([as_row(TripletTokens(*(ids[:16] for ids in triplets[0])))])
    return lambda: step_on(rows)


def dpo_step(
    model: Any, triplets: list[TripletTokens], reference: Any, tokenizer: Any, folder: str
) -> Step:
    """Make TRL's DPO step on (x, y, y′); `reference` None: log-probabilities are precomputed."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    texts = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments(
            DPOConfig,
            folder,
            model.device.type,
            precompute_ref_log_probs=reference is None,
            max_length=None,  # TRL would cut rows at 1024 tokens
            gradient_checkpointing=False,  # `--gradient-checkpointing` turns it on for all
        ),
        train_dataset=texts,
        processing_class=tokenizer,
    )
    rows = [
        {"prompt_ids": list(t.prompt), "chosen_ids": t.annotated, "rejected_ids": t.synthetic}
        for t in triplets
    ]
    trainer.current_gradient_accumulation_steps = 1  # set by the loop that is not run here
    if reference is None:
        rows = [row | {"ref_chosen_logps": -50.0, "ref_rejected_logps": -60.0} for row in rows]

    def step() -> None:
        model.set_attn_implementation("sdpa")
        model.zero_grad(set_to_none=True)
        trainer.training_step(model, trainer.data_collator(rows), None)

    return step


def clean() -> None:
    """Return the memory of what nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Peak:
    """Context that measures the peak memory in it, in MiB: `above` what was held before, and
    `total`. On the CPU these are resident pages; `total` is then the same as `above`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.above = self.total = 0.0

    def __enter__(self) -> "Peak":
        clean()
        if self._device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self._before = status_kib("VmRSS") / 2**10
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device == "cuda":
            self.total = torch.cuda.max_memory_allocated() / 2**20
            self.above = self.total - self._before
        else:
            self.above = self.total = status_kib("VmHWM") / 2**10 - self._before


def peak_memory(step: Step, device: str) -> float:
    """Measure the step's peak memory in MiB above the memory held before it."""
    with Peak(device) as peak:
        step()
    return peak.above


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def seconds(step: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def product_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Measure operations per second of a product of two square matrices; the median of 10."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(13)]
    return 2 * size**3 / statistics.median(times[3:])


def matmul_rate(model: Any) -> float:
    """Measure operations per second of a large matrix product in the policy's type."""
    device = model.device.type
    return product_rate(device, model.dtype, 8192 if device == "cuda" else 2048)


def floor_flops(model: Any, triplets: list[TripletTokens]) -> float:
    """Count the operations of forward and backward over the distinct tokens: matrices, causal
    attention, and the head at response positions."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    embedding = 0 if config.tie_word_embeddings else head
    body = sum(p.numel() for p in model.parameters()) - head - embedding
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * size
    flops = 0
    for t in triplets:
        responses = list(map(len, t[1:]))
        flops += 2 * body * (len(t.prompt) + sum(responses)) + 2 * head * sum(responses)
        seen = len(t.prompt) ** 2 / 2 + sum(n * len(t.prompt) + n * n / 2 for n in responses)
        flops += 4 * width * seen
    return 3 * flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl, for its lengths")
    parser.add_argument("--tokenizer", help="default: the model's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--triplets", type=int, default=2, help="in a micro-batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", help="such as 100/150; default all")
    parser.add_argument("--methods", nargs="*", help='such as "packed (auto)"; default all')
    parser.add_argument("--gradient-checkpointing", action="store_true")
    args = parser.parse_args()
    random.seed(0)
    model = load(args.model, args.device)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    reference = load(args.model, args.device)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    vocabulary = model.config.vocab_size
    rate = matmul_rate(model)
    print(f"Matrix products: {rate / 1e9:.0f} GFLOP/s. {args.triplets} triplets a step.\n")
    print(
        "| prompt/response | method | triplets/s | tokens/s | ratio | peak MiB | of the floor |\n"
        "| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    shapes = {f"{p}/{r}": triplets_of_shape(p, r, args.triplets, vocabulary) for p, r in SHAPES}
    if args.data:
        shapes["GSM8K"] = triplets_like_gsm8k(args.data, tokenizer, 4 * args.triplets, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        for shape, triplets in shapes.items():
            if args.shapes and shape not in args.shapes:
                continue
            same = [t._replace(synthetic=t.proto_synthetic) for t in triplets]
            ours = {
                "padded, all logits": (triplets, Choice("padded", "plain", ""), None),
                "padded": (triplets, Choice("padded", "chunked", ""), None),
                "shared_prefix": (triplets, Choice("shared_prefix", "chunked", ""), 1),
                "packed (auto)": (triplets, Choice("shared_prefix", "chunked", ""), None),
                "packed, y′ = y0": (same, Choice("shared_prefix", "chunked", ""), None),
            }
            if len(triplets) == 1:
                del ours["shared_prefix"]  # the same as packed
            makers: dict[str, Callable[[], Step]] = {
                name: functools.partial(triplet_step, model, rows, choice, most, folder)
                for name, (rows, choice, most) in ours.items()
            }
            for name, ref_model in (("TRL DPO", reference), ("TRL DPO, precomputed", None)):
                makers[name] = functools.partial(
                    dpo_step, model, triplets, ref_model, tokenizer, folder
                )
            wanted = args.methods or makers
            steps = {name: make() for name, make in makers.items() if name in wanted}
            memory = {name: peak_memory(step, args.device) for name, step in steps.items()}
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(args.repeats):
                for name, step in steps.items():
                    times[name].append(seconds(step, args.device))
            print(f"{shape}: {times}", file=sys.stderr, flush=True)
            report(shape, model, triplets, times, memory, rate)


def report(shape, model, triplets, times, memory, rate) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        rows = triplets
        if "y0" in name:
            # The shared response is one of two.
            rows = [t._replace(proto_synthetic=[]) for t in triplets]
        tokens = sum(len(t.prompt) + sum(map(len, t[1:])) for t in rows)
        # A pair has fewer tokens than a triplet.
        floor = speed = ""
        if "DPO" not in name:
            floor = f"{floor_flops(model, rows) / rate / median:.0%}"
            speed = f"{tokens / median:.0f}"
        print(
            f"| {shape} | {name} | {len(triplets) / median:.3f} | {speed} | "
            f"{medians['padded, all logits'] / median:.2f} | {memory[name]:.0f} | {floor} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
