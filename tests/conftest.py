"""A small real policy and tokenizer, made once a session: no download, no GPU."""

import functools
import json
import os
from pathlib import Path
from unittest import mock

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint

ROOT = Path(__file__).parent.parent
WORD_PROBLEMS = ROOT / "examples" / "data" / "word_problems.jsonl"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _an_environment_of_its_own():
    """Axolotl sets variables of Accelerate (`torch_compile`), which later ranks would inherit."""
    with mock.patch.dict(os.environ):
        yield


def conversations(rows: int) -> list[dict]:
    with open(WORD_PROBLEMS) as file:
        return [json.loads(line) for line, _ in zip(file, range(rows), strict=False)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the word problems, with a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (m["content"] for row in conversations(256) for m in row["messages"])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        chat_template=CHATML,
    )


def tiny_llama(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )


def pretend_trained(run: RunDirectory, number: int, base_model: Path | None = None) -> None:
    """Puts a trained policy in place of a training: another tiny Llama, or (with `base_model`) an
    adapter on that."""
    iteration = run.iteration(number)
    if base_model is None:
        tiny_llama(600, seed=number + 5).save_pretrained(iteration.model)
        policy = Policy(str(iteration.model))
    else:
        iteration.model.mkdir(parents=True)
        save_file({"lora_A": torch.ones(2, 2)}, iteration.model / "adapter_model.safetensors")
        (iteration.model / "adapter_config.json").write_text('{"r": 2}')
        policy = Policy(str(base_model), str(iteration.model))
    iteration.check_trained()
    fingerprint = policy_fingerprint(policy, run.fingerprints)
    iteration.mark_trained({"policy": fingerprint, "log_history": []})


@pytest.fixture(scope="session")
def policy_dir(tmp_path_factory, tokenizer) -> Path:
    """A tiny Llama with random weights, saved with its tokenizer as a user's model would be."""
    path = tmp_path_factory.mktemp("policy") / "tiny-llama"
    tiny_llama(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def make_yaml(tmp_path, policy_dir):
    """Writes a run's YAML: a t_spin run on the word problems, with the given keys on top."""
    return functools.partial(write_yaml, tmp_path, policy_dir)


def write_yaml(
    folder: Path, policy_dir: Path, rows: int = 12, name: str = "run.yml", **keys
) -> Path:
    cfg = {
        "base_model": str(policy_dir),
        "plugins": ["axolotl_tspin.TSpinPlugin"],
        "rl": "t_spin",
        "t_spin": {
            "iterations": 2,
            "generation": {"max_new_tokens": 12, "batch_size": 4},
        },
        "datasets": [
            {
                "path": str(WORD_PROBLEMS),
                "type": "t_spin.chat_template",
                "split": f"train[:{rows}]",
            }
        ],
        "output_dir": str(folder / "out"),
        "sequence_len": 192,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    cfg |= keys
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in cfg.items() if v is not None}))
    return path


def train_here(path: Path) -> None:
    """What `axolotl train` does, in this process."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    cfg = load_cfg(str(path))
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
