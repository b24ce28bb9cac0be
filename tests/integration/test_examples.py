"""The examples are true: the data is what the script makes, every YAML is one that runs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model
from support.data import ROOT, WORD_PROBLEMS
from support.policies import tiny_llama
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from axolotl_tspin.generation.blocks import block_path
from axolotl_tspin.planning.memory import (
    estimate_memory,
    model_shape,
    parallel_setting,
)
from axolotl_tspin.planning.micro_batch import largest_micro_batch
from axolotl_tspin.plugin.plugin import _settings
from axolotl_tspin.resolve.refusals import loses_small_steps
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.prompts import Prompts, freeze_prompts, prompt_hash
from axolotl_tspin.run.tables import write_table
from axolotl_tspin.run.triplets import RESPONSES_SCHEMA, Sources, assemble_triplets
from axolotl_tspin.strategies.chat_encoding import ChatEncoder
from axolotl_tspin.strategies.text_template import PAPER_TEMPLATE
from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.verdicts.answers import is_right

YAMLS = sorted((ROOT / "examples" / "yaml").glob("*.yml"))


def maker_of(name: str) -> ModuleType:
    """The script that makes an example's data, as a module."""
    spec = importlib.util.spec_from_file_location("maker", ROOT / "scripts" / f"make_{name}.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def test_the_word_problems_are_what_the_script_makes_and_their_answers_are_right():
    maker = maker_of("word_problems")
    rows = [json.loads(line) for line in WORD_PROBLEMS.read_text().splitlines()]
    assert rows == maker.make_rows(256, 7)
    for row in rows:
        solution = row["messages"][-1]["content"].splitlines()
        assert solution[-1] == f"#### {row['answer']}"
        for line in solution[:-1]:
            left, right = line.rsplit("=", 1)
            words = left.split()
            operation = next(i for i, word in enumerate(words) if word in "+-*/")
            a, op, b = words[operation - 1 : operation + 2]
            result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            result["/"] = int(a) // int(b)
            assert int(right.split()[0]) == result[op]


def test_the_calendar_notes_are_what_the_script_makes_and_their_entries_say_what_the_notes_say():
    cfg = yaml.safe_load((ROOT / "examples/yaml/smollm2_quickstart.yml").read_text())
    lines = (ROOT / cfg["datasets"][0]["path"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == maker_of("calendar_notes").make_rows(48, 7)
    answer = re.compile(cfg["t_spin"]["answer"])
    for row in rows:
        note, entry = (message["content"] for message in row["messages"])
        when, event = entry.split(" | ")
        assert all(f" {word}" in note for word in (*when.split(), event))
        assert is_right(answer, entry, entry)
        assert not is_right(answer, entry, note) and not is_right(answer, entry, f"{entry}s")


def test_there_are_the_examples_that_the_readme_names():
    assert [path.name for path in YAMLS] == [
        "eval_paper.yml",
        "full_70b_nodes.yml",
        "lora_70b_8x80gb.yml",
        "mistral_tspin.yml",
        "qlora_7b_24gb.yml",
        "qwen3_reasoning.yml",
        "smollm2_quickstart.yml",
        "zephyr_tspin.yml",
    ]


RANKS = {
    "eval_paper": 8,
    "full_70b_nodes": 16,
    "lora_70b_8x80gb": 8,
    "mistral_tspin": 8,
    "qlora_7b_24gb": 1,
    "qwen3_reasoning": 1,
    "zephyr_tspin": 8,
}
"""That the examples are written for."""


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_an_example_resolves_and_passes_axolotls_validation(path, tmp_path):
    """With a run already begun, so that neither the data nor the model has to be fetched."""
    cfg = DictDefault(yaml.safe_load(path.read_text()))
    run = RunDirectory(tmp_path / "run")
    model = tmp_path / "model"
    tiny_llama(50).save_pretrained(model)
    cfg["tokenizer_config"], cfg["base_model"] = cfg["base_model"], str(model)
    fingerprint = policy_fingerprint(Policy(str(model)), run.fingerprints)
    run.begin({}, {}, initial_policy=fingerprint)
    row = {
        "prompt": "p",
        "annotated": "a",
        "input_ids": [1, 2],
        "labels": [-100, 2],
        "stop_ids": [2],
        "source_row": 0,
    }
    freeze_prompts(run.prompts("train"), [row | {"prompt_messages": ""}], 1)
    prompts = Prompts(run.prompts("train"))
    response = {
        "row": 0,
        "prompt_hash": prompt_hash([1]),
        "text": "b",
        "ids": [3],
        "finish_reason": "length",
        "tokens": 1,
        "iteration": 0,
        "policy": fingerprint,
        "sampling": "{}",
        "engine": "none",
    }
    block = block_path(run.iteration(0).responses("train"), 0)
    responses = pa.Table.from_pylist([response], schema=RESPONSES_SCHEMA)
    write_table(block, responses, {"seconds": 0.0})
    everything = np.ones(1, dtype=bool)
    sources = Sources(lambda number: block, everything, np.arange(1), None, None)
    assemble_triplets(run.iteration(0).triplets("train"), prompts, sources, {})
    cfg["output_dir"] = str(run.path)
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    assert not loses_small_steps(cfg)
    config, resolved = _settings(cfg)
    assert resolved.iteration == 0 and resolved.beta == 0.0
    assert cfg.optimizer == "rmsprop" and cfg.weight_decay == 0.0
    if path.stem != "smollm2_quickstart":
        assert cfg.warmup_ratio == 0.1
        assert (config.alpha, config.beta, config.iterations) == (1.0, 0.1, 5)
        assert cfg.sequence_len == (8192 if path.stem == "qwen3_reasoning" else 2048)
        ranks = RANKS[path.stem]
        assert cfg.micro_batch_size * cfg.gradient_accumulation_steps * ranks == 64


LLAMA_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QWEN3_4B = Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)


@pytest.mark.parametrize(
    ("name", "model", "most"),
    [
        ("zephyr_tspin", LLAMA_7B, 80),
        ("mistral_tspin", LLAMA_7B, 80),
        ("qlora_7b_24gb", LLAMA_7B, 24),
        ("lora_70b_8x80gb", LLAMA_70B, 80),
        ("full_70b_nodes", LLAMA_70B, 80),
        ("qwen3_reasoning", QWEN3_4B, 80),
    ],
)
def test_an_example_fits_the_gpus_that_it_is_for(name, model, most, monkeypatch):
    """By the estimate of `plan`, for triplets that fill `sequence_len`; 10% left for what it does
    not count."""
    monkeypatch.chdir(ROOT)
    cfg = DictDefault(yaml.safe_load((ROOT / "examples" / "yaml" / f"{name}.yml").read_text()))
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(model)
        if cfg.adapter:
            lora = LoraConfig(r=cfg.lora_r, target_modules="all-linear", task_type="CAUSAL_LM")
            policy = get_peft_model(policy, lora)
    shape = model_shape(policy)
    setting = parallel_setting(cfg, shape, RANKS[name])
    response = cfg.t_spin.generation.max_new_tokens
    longest = (cfg.sequence_len - response, response, response)
    choice = Choice("shared_prefix", "chunked", "")
    batch = largest_micro_batch(longest, choice, cfg.micro_batch_size)
    estimate = estimate_memory(shape, setting, batch)
    print(name, setting.name, {k: round(v / 2**30, 2) for k, v in estimate._asdict().items()})
    assert estimate.total < 0.9 * most * 1e9


SCRIPTS = pytest.mark.parametrize(
    "script", ["slurm/t_spin.sbatch", "torchrun/t_spin.sh"], ids=lambda script: script[:5]
)


def started(script, tmp_path, commands, config="run.yml") -> subprocess.CompletedProcess:
    """A script for several nodes, started on one, with these commands (name: body) in front."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in commands.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "NODES": "2",
        "NODE": "1",
        "HEAD": "node7",
        "GPUS_PER_NODE": "8",
    }
    return subprocess.run(
        ["bash", str(ROOT / "examples" / script), str(config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@SCRIPTS
def test_a_script_for_several_nodes_takes_a_run_to_its_end(script, tmp_path):
    """With commands that note how they were called and a run that each call takes one step on."""
    steps = ["0 generate", "0 train", "1 generate", "1 train", "1 done"]
    (tmp_path / "left").write_text("".join(f"{step}\n" for step in steps))
    advance = f'echo "$(basename "$0") $*" >> {tmp_path}/calls; sed -i 1d {tmp_path}/left'
    commands = {
        "python": f"""if [ "$1 $2 $3" = "-m axolotl_tspin status" ]; then
            read -r t step < {tmp_path}/left
            echo "[{{\\"iteration\\": $t, \\"step\\": \\"$step\\"}}]"
        else exec {sys.executable} "$@"; fi""",
        "axolotl": advance,
        "torchrun": advance,
        "srun": '"$@"',
        "scontrol": "echo node7",
    }
    done = started(script, tmp_path, commands)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4
    for generate, train in (calls[:2], calls[2:]):
        assert "generate" in generate and "run.yml" in generate
        assert train.startswith("axolotl train run.yml --launcher torchrun -- --nnodes 2")
        assert "--nproc_per_node 8" in train and "node7" in train


@SCRIPTS
def test_a_script_for_several_nodes_reads_the_real_status(script, make_yaml, tmp_path):
    """Of a run that is due for sampling: it starts that, and stops where it fails."""
    note = f'echo "$*" >> {tmp_path}/calls; exit 3'
    commands = {"torchrun": note, "srun": note, "scontrol": "echo node7"}
    done = started(script, tmp_path, commands, make_yaml())
    assert done.returncode == 3, done.stderr
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert "generate" in call


@SCRIPTS
def test_a_script_for_several_nodes_ends_as_a_failed_status(script, tmp_path):
    (tmp_path / "run.yml").write_text("rl: dpo\n")
    done = started(script, tmp_path, {"scontrol": "echo node7"}, tmp_path / "run.yml")
    assert done.returncode != 0
    assert "needs `rl: t_spin`" in done.stderr


def test_the_examples_chat_template_is_the_papers(tokenizer):
    for name in ("zephyr_tspin.yml", "mistral_tspin.yml"):
        cfg = yaml.safe_load((ROOT / "examples" / "yaml" / name).read_text())
        encoder = ChatEncoder(tokenizer, cfg["chat_template_jinja"])
        user = [{"role": "user", "content": "Say hello."}]
        expected = tokenizer.bos_token + PAPER_TEMPLATE.format(prompt="Say hello.")
        (row,) = encoder.triplets([encoder.text(user, [("Hello.", True)])])
        assert row.prompt_text == expected
        assert tokenizer.decode(row.annotated) == "Hello.<|im_end|>"
