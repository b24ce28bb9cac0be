"""A small real policy and tokenizer, made once a session: no download, no GPU."""

import functools
import os
from pathlib import Path

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from support.data import CHATML, SPECIAL, conversations
from support.policies import tiny_llama
from support.runs import own_environment, write_yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from axolotl_tspin.generation.step import generate
from axolotl_tspin.run import prompts as run_prompts
from axolotl_tspin.run.directory import RunDirectory


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _an_environment_of_its_own():
    """Axolotl sets variables of Accelerate (`torch_compile`), which later ranks would inherit."""
    with own_environment():
        yield


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


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four rows, so that a few rows are several blocks."""
    monkeypatch.setattr(run_prompts, "SMALLEST_BLOCK", 4)
    monkeypatch.setattr(run_prompts, "BLOCKS_AT_LEAST", 1000)


@pytest.fixture
def generated_run(make_yaml, tmp_path):
    """A generated run of 10 rows in batches of 4, and its YAML."""
    path = make_yaml(rows=10)
    outcome = generate(path)
    assert (outcome.iteration, outcome.due, outcome.generated) == (0, "train", 10)
    return path, RunDirectory(tmp_path / "out")
