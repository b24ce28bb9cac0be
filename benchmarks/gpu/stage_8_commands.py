"""The README's YAML through the real commands: two iterations, then the report.

The model has SmolLM2-135M's shape, random weights and a tokenizer made here; the data are the
repository's word problems. On the CPU a plugin of the tests keeps Axolotl from asking for a GPU.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from step import RANDOM_LLAMAS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from axolotl_tspin.config import TSpinConfig

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WORD_PROBLEMS = REPOSITORY / "examples" / "data" / "word_problems.jsonl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CPU_KEYS = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
CHECK = re.compile(r"T-SPIN layout: (.*)")


class Sizes(NamedTuple):
    """The model's configuration; rows, tokens of a response, triplets of an optimizer step."""

    config: LlamaConfig
    rows: int
    new_tokens: int
    accumulation: int


SIZES = {
    "full": Sizes(RANDOM_LLAMAS["llama-135m"], 128, 128, 16),
    "dry": Sizes(
        # Wide enough for 4-bit blocks.
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=600,
        ),
        *(4, 4, 2),
    ),
}


def run(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    if importlib.util.find_spec("axolotl") is None:
        yield {"skipped": "Axolotl is not installed"}
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = made_tokenizer(sizes.config.vocab_size)
        save_model(folder / "model", tokenizer, sizes.config)
        keys = shortened_yaml(device, sizes)
        (folder / "run.yml").write_text(yaml.safe_dump(keys, sort_keys=False))
        for command in ("run", "report"):
            started = time.monotonic()
            output = axolotl(folder, "t-spin", command, "run.yml")
            said = list(dict.fromkeys(CHECK.findall(output)))
            yield {
                "table": "Commands",
                "command": f"axolotl t-spin {command} run.yml",
                "seconds": time.monotonic() - started,
                "said of the layout": "; ".join(said),
                "failed": any("not exact" in text for text in said),
            }
        yield from iterations(folder / keys["output_dir"], TSpinConfig(**keys["t_spin"]))
        pages = [page.name for page in folder.rglob("report.html")]
        yield {"table": "Pages", "page": " ".join(pages), "failed": not pages}


def shortened_yaml(device: str, sizes: Sizes) -> dict[str, Any]:
    """The README's YAML with another model and data, and less of everything."""
    text = (REPOSITORY / "README.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    keys = yaml.safe_load(block)
    keys["base_model"] = "model"
    keys["t_spin"]["iterations"] = 2
    keys["t_spin"]["on_warning"] = "continue"  # random weights end no turn
    keys["t_spin"]["generation"]["max_new_tokens"] = sizes.new_tokens
    keys["datasets"][0] |= {"path": str(WORD_PROBLEMS), "split": f"train[:{sizes.rows}]"}
    keys["gradient_accumulation_steps"] = sizes.accumulation
    keys["logging_steps"] = 1
    if device == "cpu":
        keys["plugins"].append("support.plugin_for_cpu_ranks.CPUPlugin")
        keys |= CPU_KEYS
    return keys


def made_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the word problems. Its vocabulary is filled with words that no text has,
    since random weights sample all of it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train(
        [str(WORD_PROBLEMS)],
        trainers.BpeTrainer(
            vocab_size=min(vocabulary, 2000),
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made = json.loads(bpe.to_str())
    words = made["model"]["vocab"]
    words |= {f"filler{number}": number for number in range(len(words), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)),
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHATML,
    )


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, config: LlamaConfig) -> None:
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**config.to_dict() | ends)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def axolotl(folder: Path, *arguments: str) -> str:
    """Run a command of this Python's Axolotl, and return what it printed."""
    binaries = Path(sys.executable).parent
    known = filter(None, [os.environ.get("PYTHONPATH")])
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), *known])
    done = subprocess.run(
        [str(binaries / "axolotl"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": paths,
            "AXOLOTL_DO_NOT_TRACK": "1",
        },
    )
    print(done.stdout)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"axolotl {' '.join(arguments)} ended with {done.returncode}:\n{tail}")
    return done.stdout


def iterations(output: Path, config: TSpinConfig) -> Iterator[dict[str, Any]]:
    from axolotl_tspin.diagnostics.status import run_status
    from axolotl_tspin.run.directory import RunDirectory

    run = RunDirectory(output)
    for number, status in enumerate(run_status(run, config)):
        record = json.loads(run.iteration(number).trained_marker.read_text())
        losses = [entry["loss"] for entry in record["log_history"] if "loss" in entry]
        rate = status.tokens / status.generation_seconds if status.generation_seconds else None
        yield {
            "table": "Iterations",
            "iteration": number,
            "step": status.step,
            "sampled tokens": status.tokens,
            "sampled tokens/s": rate,
            "training, seconds": status.training_seconds,
            "optimizer steps": len(losses),
            "first loss": losses[0],
            "last loss": losses[-1],
            "failed": status.step != "done",
        }
