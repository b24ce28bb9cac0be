"""The shipped YAMLs, what a test on a CPU has in place of some of their keys, and their runs."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table
from support.commands import BIN, ENVIRONMENT, record
from support.data import CHATML, ROOT, WORD_PROBLEMS
from support.plugin_for_recipes import RECORDS
from support.ranks import TESTS
from support.templates import templates

CANNOT_HOLD = {
    "base_model": "7B or 70B parameters; a tiny random model of the architecture stands in",
    "datasets.path": "UltraChat comes from the hub; the word problems stand in",
    "datasets.split": "of UltraChat; three steps' rows stand in",
    "gradient_accumulation_steps": "as many triplets a step take too long; 2 stand in",
    "logging_steps": "three steps are not ten; each is logged",
    "t_spin.generation.max_new_tokens": "8 are enough",
    "t_spin.on_warning": "a random model ends nothing within 8 tokens, and would not be trained",
    "t_spin.generation.backend": "vLLM needs a GPU; `transformers` stands in",
    "lora_mlp_kernel": "Axolotl switches Triton's kernels on by itself; they need a GPU",
    "lora_qkv_kernel": "likewise",
    "lora_o_kernel": "likewise",
}
"""Keys that differ from what is shipped, with the reasons. support/plugin_for_recipes.py does
what no key says: training on CPUs, and no TF32 there."""

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
}
MISTRAL = MistralConfig(
    **SMALL, num_attention_heads=8, num_key_value_heads=2, head_dim=16, sliding_window=48
)
LLAMA_70B = LlamaConfig(
    **SMALL,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
    max_position_embeddings=131072,
)
QWEN3 = Qwen3Config(
    **SMALL, num_attention_heads=8, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
)
SMOLLM2 = LlamaConfig(
    **SMALL | {"hidden_size": 144},
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


class Recipe(NamedTuple):
    """A YAML of examples/yaml, and what a test needs to know beside it.

    Attributes:
        shape: the stand-in for its model.
        lacks_pad: a token that the model's tokenizer has, but not as its pad token.
        ranks: processes that train.
        sampling_ranks: processes that sample.
        deepspeed: the file that the YAML's comment offers in place of its own.
        chat_template: the tokenizer's.
    """

    name: str
    shape: PretrainedConfig
    lacks_pad: str = ""
    ranks: int = 2
    sampling_ranks: int = 1
    deepspeed: str = ""
    chat_template: str = CHATML

    @property
    def id(self) -> str:
        return "-".join([self.name, *[Path(self.deepspeed).stem] * bool(self.deepspeed)])


PAD_70B = "<|finetune_right_pad_id|>"
OFFLOAD = "examples/deepspeed/zero3_bf16_offload.json"
SMALLER = (
    Recipe("eval_paper", MISTRAL),
    Recipe("mistral_tspin", MISTRAL, "<unk>", sampling_ranks=2),
    Recipe("qlora_7b_24gb", MISTRAL, ranks=1),
    Recipe("qwen3_reasoning", QWEN3, ranks=1, chat_template=templates()["trl/qwen3"]),
    Recipe("smollm2_quickstart", SMOLLM2, ranks=1),
    Recipe("zephyr_tspin", MISTRAL),
)
OF_70B = (
    Recipe("full_70b_nodes", LLAMA_70B, PAD_70B, sampling_ranks=2),
    Recipe("full_70b_nodes", LLAMA_70B, PAD_70B, deepspeed=OFFLOAD),
    Recipe("lora_70b_8x80gb", LLAMA_70B, PAD_70B),
)


def stand_ins(recipe: Recipe, keys: dict[str, Any]) -> dict[str, Any]:
    """What CANNOT_HOLD names, by the same names."""
    instead: dict[str, Any] = {"base_model": "model"}
    if not Path(ROOT / keys["datasets"][0]["path"]).exists():  # else it is small as it is
        instead |= {
            "datasets.path": str(WORD_PROBLEMS),
            "datasets.split": f"train[:{3 * keys['micro_batch_size'] * 2 * recipe.ranks}]",
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
        }
    instead["t_spin.generation.max_new_tokens"] = 8
    instead["t_spin.on_warning"] = "continue"
    if keys["t_spin"]["generation"].get("backend") == "vllm":
        instead["t_spin.generation.backend"] = "transformers"
    if keys.get("adapter"):
        instead |= dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    return instead


def write_recipe(recipe: Recipe, folder: Path) -> dict[str, Any]:
    keys = yaml.safe_load((ROOT / "examples" / "yaml" / f"{recipe.name}.yml").read_text())
    for name, value in stand_ins(recipe, keys).items():
        assert name in CANNOT_HOLD
        *blocks, key = name.split(".")
        inside: Any = keys
        for block in blocks:
            inside = inside[block]
            inside = inside[0] if isinstance(inside, list) else inside
        inside[key] = value
    if recipe.deepspeed:
        keys["deepspeed"] = recipe.deepspeed
    keys["plugins"] = [*keys["plugins"], "support.plugin_for_recipes.RecipePlugin"]
    (folder / "run.yml").write_text(yaml.safe_dump(keys, sort_keys=False))
    return keys


def write_model(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=recipe.chat_template,
        **{} if recipe.lacks_pad else {"pad_token": "<|endoftext|>"},
    )
    tokenizer.add_tokens([recipe.lacks_pad] * bool(recipe.lacks_pad), special_tokens=True)
    config = type(recipe.shape)(
        **recipe.shape.to_dict()
        | {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    torch.manual_seed(0)
    # As all of these models are published.
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Step(NamedTuple):
    """The output of a step, and what its processes recorded (support/plugin_for_recipes.py)."""

    output: str
    records: list[dict[str, Any]]


def step(folder: Path, *command: str) -> Step:
    records = folder / f"records-{len(list(folder.glob('records-*')))}"
    records.mkdir()
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=ENVIRONMENT
        | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            RECORDS: str(records),
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return Step(done.stdout, [json.loads(file.read_text()) for file in records.iterdir()])


def generate_train_generate(
    recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Run a recipe in an empty folder until iteration 1 has its triplets, and check all of it."""
    if recipe.ranks > 1 and torch.version.cuda is not None and not torch.cuda.is_available():
        pytest.skip("Axolotl asks a CUDA build of torch about its devices, which needs a driver")
    (folder / "examples").symlink_to(ROOT / "examples")
    write_model(recipe, folder / "model", tokenizer)
    keys = write_recipe(recipe, folder)
    run, iterations = RunDirectory(folder / keys["output_dir"]), keys["t_spin"]["iterations"]
    generate, train = commands(recipe)

    sampled = step(folder, *generate)
    assert tuple(run.due(iterations, None)) == (0, "train")
    trained = step(folder, *train)
    assert tuple(run.due(iterations, None)) == (1, "generate")
    check_training(recipe, keys, sampled, trained)
    check_policy(recipe, keys, folder, run)
    step(folder, *generate)
    assert tuple(run.due(iterations, None)) == (1, "train")

    first, second = (read_table(run.iteration(t).triplets("train"))[0] for t in (0, 1))
    assert second["proto_synthetic_ids"] == first["synthetic_ids"]
    policy = record(run, 0)["policy"]
    assert set(second["synthetic_policy"].to_pylist()) == {policy} != {run.initial_policy()}
    prompt = tokenizer.decode(first["prompt_ids"][0].as_py())
    assert ("### Instruction: " in prompt) == ("chat_template_jinja" in keys), prompt


def commands(recipe: Recipe) -> tuple[list[str], list[str]]:
    """To sample and to train, as the YAMLs' comments say."""
    generate = ["axolotl", "t-spin", "generate", "run.yml"]
    if recipe.sampling_ranks > 1:
        script = str(ROOT / "scripts" / "generate.py")
        generate = ["torchrun", "--nproc_per_node", str(recipe.sampling_ranks), script, "run.yml"]
    train = ["axolotl", "train", "run.yml", "--launcher"]
    if recipe.ranks == 1:
        return generate, [*train, "python"]
    return generate, [*train, "torchrun", "--", "--nproc_per_node", str(recipe.ranks)]


def check_training(recipe: Recipe, keys: dict[str, Any], sampled: Step, trained: Step) -> None:
    """The training did what the YAML says, in the precision that it sampled in."""
    assert "T-SPIN layout: shared_prefix" in trained.output
    assert "T-SPIN layout: checked against padded rows" in trained.output
    assert "not exact" not in trained.output
    expected = {
        "deepspeed": "deepspeed" in keys,
        "zero_stage": 0,
        "ranks": recipe.ranks,
        "precision": "bf16" if keys["bf16"] else "no",
        "optimizer": keys["optimizer"],
        "schedule": keys["lr_scheduler"],
        "checkpointing": keys.get("gradient_checkpointing", False),
        "layout": "shared_prefix",
        "four_bit": keys.get("load_in_4bit", False),
    }
    if "deepspeed" in keys:
        deepspeed = json.loads((ROOT / keys["deepspeed"]).read_text())
        expected["zero_stage"] = deepspeed["zero_optimization"]["stage"]
    computed = "torch.bfloat16" if keys["bf16"] else "torch.float32"
    of_ranks = [found for found in trained.records if "training" in found]
    assert len(of_ranks) == recipe.ranks
    for found in of_ranks:
        assert found["training"] == expected, found["training"]
        assert found["activations"]
    if recipe.deepspeed == OFFLOAD:
        return  # its activations are float32 on CPU ranks; why is not known, nor whether on GPUs
    samplers = [found for found in sampled.records if found["activations"]]
    assert samplers
    for found in samplers:
        assert found["activations"] == of_ranks[0]["activations"], found
    for name, types in of_ranks[0]["activations"].items():
        assert types == [computed], (name, types)


def check_policy(recipe: Recipe, keys: dict[str, Any], folder: Path, run: RunDirectory) -> None:
    """Every figure is finite, and the policy has changed; its weights have the right type."""
    history = record(run, 0)["log_history"]
    assert sum("loss" in entry for entry in history) >= 3
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    assert "rewards/annotated" in history[0]
    model = run.iteration(0).model
    adapter = keys.get("adapter")
    weights = load_file(model / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    # PEFT saves an adapter in float32; for the file with offload see `check_training`.
    narrow = keys["bf16"] and not adapter and recipe.deepspeed != OFFLOAD
    before = load_file(folder / "model" / "model.safetensors")
    changed = 0
    for name, weight in weights.items():
        assert weight.dtype == (torch.bfloat16 if narrow else torch.float32), name
        assert weight.isfinite().all(), name
        old = torch.zeros(()) if adapter else before[name].to(weight.dtype)
        if not adapter or "lora_B" in name:
            changed += int((weight != old).sum())
    assert changed > 0
