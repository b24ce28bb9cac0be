"""Measure tokens per second of each engine in the generation step and on its own.

    python benchmarks/generation.py MODEL --data GSM8K/train.jsonl --vllm-bin ENV/bin

Both sides answer the same prompts with the same limits, in turns, in one run. Engines are loaded
before, so start-up does not count. Our side includes journals, blocks and checksums. transformers
is compared with SPIN's way: fixed batches in the data's order, padded to the longest, each
generated until its last row ends. Both run in this process, so processor time is measured, which
other work on the machine does not lengthen. vLLM and the server are timed by the clock. MODEL
should end its responses as an SFT model does; `benchmarks/sft.py` makes one.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import tenacity
import torch
from axolotl.utils.dict import DictDefault
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.generation.engines.server_engine import ServerEngine
from axolotl_tspin.generation.engines.transformers_engine import TransformersEngine, batch_size_for
from axolotl_tspin.generation.engines.vllm_engine import load_vllm
from axolotl_tspin.generation.sampling import SplitSampling, sample_split
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.resolve.steps import GenerationPlan
from axolotl_tspin.run.directory import Due, Policy, RunDirectory
from axolotl_tspin.run.prompts import freeze_prompts

LENGTH = 512
CONCURRENCY = 32
END = 2  # <|im_end|>

Clock = Callable[[], float]
Measure = Callable[[], tuple[int, float]]
"""A function for one pass over the prompts; it returns tokens and seconds."""


def prompts_of(data: Path, rows: int, tokenizer) -> list[list[int]]:
    questions = [json.loads(line)["question"] for line in data.read_text().splitlines()[:rows]]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]


def through_the_step(
    engine, tokenizer, prompts: list[list[int]], limit: int, clock: Clock
) -> Measure:
    """Measure a generation step over the prompts, in a new run directory each time."""

    def measure() -> tuple[int, float]:
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(folder)
            rows = [
                {
                    "input_ids": [*prompt, END],
                    "labels": [-100] * len(prompt) + [END],
                    "prompt_messages": "",
                    "prompt": "",
                    "annotated": "",
                    "stop_ids": [END],
                    "source_row": 0,
                }
                for prompt in prompts
            ]
            freeze_prompts(run.prompts("train"), rows, len(rows))
            config = TSpinConfig(iterations=1, generation={"max_new_tokens": limit})
            policy = Policy("")
            due = Due(0, "generate")
            plan = GenerationPlan(config, run, due, policy, policy, None, {}, False)
            cfg = SimpleNamespace(seed=42, sequence_len=LENGTH, micro_batch_size=1)
            split = SplitSampling(plan, cfg, "train", "")
            started = clock()
            sample_split(split, Shard(), lambda: (engine, tokenizer))
            seconds = clock() - started
            return rows_done(split.folder)[1], seconds

    return measure


def spin_way(model, prompts: list[list[int]], limit: int, batch_size: int) -> Measure:
    """Measure transformers' generate as SPIN's generate.py calls it (its batch size is 16)."""

    @torch.no_grad()
    def measure() -> tuple[int, float]:
        tokens = 0
        started = time.process_time()
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            longest = max(map(len, batch))
            ids = torch.tensor([[END] * (longest - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=limit,
                eos_token_id=END,
                pad_token_id=END,
            )
            for row in output[:, longest:].tolist():
                tokens += row.index(END) if END in row else len(row)
        return tokens, time.process_time() - started

    return measure


@contextlib.contextmanager
def bare_vllm(python: Path, settings: dict) -> Iterator[Measure]:
    script = Path(__file__).with_name("bare_vllm.py")
    process = subprocess.Popen(
        [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def tell(line: str) -> None:
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def measure() -> tuple[int, float]:
        tell("")
        tokens, seconds = json.loads(process.stdout.readline())
        return tokens, seconds

    tell(json.dumps(settings))
    assert process.stdout.readline() == "ready\n", "vLLM did not start"
    try:
        yield measure
    finally:
        process.stdin.close()
        process.wait()


@contextlib.contextmanager
def vllm_server(binary: Path, model: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(binary, "serve", model, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", str(LENGTH), "--enforce-eager"),
        *("--generation-config", "vllm", "--no-enable-chunked-prefill"),
        "--disable-uvicorn-access-log",
    ]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait = tenacity.retry(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(300))
        wait(lambda: httpx.get(f"{url}/models").raise_for_status())()
        yield url
    finally:
        process.terminate()
        process.wait()


def bare_client(url: str, model: str, prompts: list[list[int]], limit: int) -> Measure:
    """Measure a client with one thread per request in flight."""

    def measure() -> tuple[int, float]:
        with httpx.Client(timeout=600) as client, ThreadPoolExecutor(CONCURRENCY) as pool:

            def ask(numbered: tuple[int, list[int]]) -> int:
                row, prompt = numbered
                body = {
                    "model": model,
                    "prompt": prompt,
                    "max_tokens": limit,
                    "temperature": 1.0,
                    "seed": row,
                    "stop_token_ids": [END],
                }
                answer = client.post(f"{url}/completions", json=body).raise_for_status().json()
                # The token that ends a response is not counted.
                ended = answer["choices"][0]["finish_reason"] == "stop"
                return answer["usage"]["completion_tokens"] - ended

            started = time.monotonic()
            tokens = sum(pool.map(ask, enumerate(prompts)))
            return tokens, time.monotonic() - started

    return measure


def compare(name: str, ours: Measure, bare: dict[str, Measure], repeats: int) -> None:
    """Measure in turns, so that a change of the machine's speed affects both sides."""
    rates: dict[str, list[float]] = {"ours": [], **{way: [] for way in bare}}
    for _ in range(repeats):
        for way, measure in {"ours": ours, **bare}.items():
            tokens, seconds = measure()
            rates[way].append(tokens / seconds)
            print(f"{name} {way}: {tokens} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)
    own = statistics.median(rates.pop("ours"))
    for way, measured in rates.items():
        median = statistics.median(measured)
        ratios = own / median
        print(f"| {name} | {own:.1f} | {way} | {median:.1f} | {ratios:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder (SmolLM2-135M-Instruct)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vllm-bin", type=Path, help="leaves vLLM and the server out if missing")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--spin-batches", type=int, nargs="*", default=[16, 64], help="SPIN's own is 16"
    )
    args = parser.parse_args()
    model = str(Path(args.model).resolve())
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts, limit = prompts_of(args.data, args.rows, tokenizer), args.max_new_tokens
    print(
        "| engine | ours, tokens/s | against | tokens/s | ratio |\n| --- | --- | --- | --- | --- |"
    )

    with torch.inference_mode():
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        sampling = TSpinConfig().generation
        engine = TransformersEngine(
            policy,
            pad_token_id=END,
            sampling=sampling,
            batch_size=batch_size_for(policy, "auto", LENGTH),
        )
        ours = through_the_step(engine, tokenizer, prompts, limit, time.process_time)
        bare = {
            f"SPIN's way, batches of {size}": spin_way(policy, prompts, limit, size)
            for size in args.spin_batches
        }
        compare("transformers", ours, bare, args.repeats)
    del policy, engine, ours, bare
    if args.vllm_bin is None:
        return

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    cfg = DictDefault({"vllm": {"enforce_eager": True}, "sequence_len": LENGTH})
    config = TSpinConfig(
        generation={"backend": "vllm", "python": str(args.vllm_bin / "python")}
    ).generation
    with contextlib.ExitStack() as stack:
        vllm = load_vllm(Policy(model), config, cfg)
        stack.callback(vllm.close)
        llm = {
            "model": model,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": LENGTH,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "enable_chunked_prefill": False,
        }
        settings = {
            "llm": llm,
            "prompts": prompts,
            "max_new_tokens": limit,
            "stop_ids": [END],
            "seeded": True,
        }
        bare = stack.enter_context(bare_vllm(args.vllm_bin / "python", settings))
        ours = through_the_step(vllm, tokenizer, prompts, limit, time.monotonic)
        compare("vllm", ours, {"LLM.generate": bare}, args.repeats)
    with vllm_server(args.vllm_bin / "vllm", model) as url:
        config = TSpinConfig(
            generation={"backend": "server", "servers": [url], "concurrency": CONCURRENCY}
        ).generation
        server = ServerEngine(config, policy=Policy(model), strangers=[], tokenize=list)
        ours = through_the_step(server, tokenizer, prompts, limit, time.monotonic)
        bare = bare_client(url, model, prompts, limit)
        compare("server", ours, {"a bare client": bare}, args.repeats)
        server.close()


if __name__ == "__main__":
    main()
