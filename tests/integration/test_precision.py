"""Policies are sampled from and scored in the precision of the training that follows."""

import pytest
import torch
import yaml
from axolotl.cli.config import load_cfg
from peft import PeftModel
from support.data import ROOT, WORD_PROBLEMS
from support.runs import write_yaml
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.loading import LoadedPolicy, load_policy, training_precision
from axolotl_tspin.resolve.steps import prepare_generation, prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.triplets import TripletTokens


def triplets_of(run: RunDirectory, number: int) -> list[TripletTokens]:
    rows = read_table(run.iteration(number).triplets("train"))[0].to_pylist()
    names = ("prompt_ids", "annotated_ids", "synthetic_ids", "proto_synthetic_ids")
    return [TripletTokens(*(row[name] for name in names)) for row in rows]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bf16": True}, torch.bfloat16),
        ({"bfloat16": True, "fp16": False}, torch.bfloat16),
        ({"bf16": False, "fp16": True}, torch.float16),
        ({"bf16": False, "fp16": False}, None),
    ],
)
def test_the_precision_is_what_axolotl_trains_in(make_yaml, keys, expected):
    from axolotl.core.builders import HFRLTrainerBuilder

    path = make_yaml(rows=4, **({"bf16": None, "fp16": None} | keys))
    raw = read_yaml(path)
    prepare_generation(raw)
    cfg = load_cfg(raw)
    assert training_precision(cfg) is expected
    arguments: dict = {}
    builder = HFRLTrainerBuilder.__new__(HFRLTrainerBuilder)
    builder.cfg = cfg
    builder._configure_precision_settings(arguments)
    trained = torch.bfloat16 if arguments.get("bf16") else None
    assert (torch.float16 if arguments["fp16"] else trained) is expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without a GPU")
def test_a_yaml_that_names_no_precision_runs_in_float32_on_a_cpu(make_yaml, tmp_path):
    path, run = make_yaml(rows=4, bf16=None, fp16=None), RunDirectory(tmp_path / "out")
    raw = read_yaml(path)
    prepare_generation(raw)
    policy = load_policy(load_cfg(raw))
    assert types_of(policy) == {torch.float32} and policy.precision is None
    assert generate(path).due == "train"
    assert len(triplets_of(run, 0)) == 4
    raw = read_yaml(path)
    prepare_training(raw)
    cfg = load_cfg(raw)
    assert cfg.torch_dtype is torch.float32 and training_precision(cfg) is None


def types_of(policy: LoadedPolicy) -> set[torch.dtype]:
    return {parameter.dtype for parameter in policy.model.parameters()}


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp_config"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_deepspeed_and_fsdp_train_in_16_bits_is_sampled_so(make_yaml, engine, precision):
    """Under them no weight and no activation is in float32, as without them (test_recipes.py)."""
    spread = {
        "deepspeed": {"deepspeed": str(ROOT / "examples" / "deepspeed" / "zero2.json")},
        "fsdp_config": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
    }[engine]
    precisions = {"bf16": False, "fp16": False} | {precision: True}
    wide, narrow = (
        make_yaml(**precisions, **keys, name=f"{len(keys)}.yml") for keys in ({}, spread)
    )
    loaded = []
    for path in (wide, narrow):
        raw = read_yaml(path)
        prepare_generation(raw)
        loaded.append(load_policy(load_cfg(raw)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    assert types_of(loaded[0]) == {dtype, torch.float32} and loaded[0].precision is dtype
    assert types_of(loaded[1]) == {dtype} and loaded[1].precision is None
    assert loaded[1].score([TripletTokens([5, 6], [7, 8], [9], [10, 11])]).isfinite().all()


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_the_base_model_is_sampled_as_it_is_trained_below_a_new_adapter(
    tmp_path, tokenizer, adapter
):
    policy_dir = tmp_path / "model"
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2
    )
    LlamaForCausalLM(shape).save_pretrained(policy_dir)  # wide enough for 4-bit blocks
    tokenizer.save_pretrained(policy_dir)
    keys = {"adapter": adapter, "lora_r": 2, "lora_alpha": 4, "lora_target_linear": True}
    quantised = adapter == "qlora"
    path = write_yaml(tmp_path, policy_dir, bf16=True, load_in_4bit=quantised, **keys)
    raw = read_yaml(path)
    prepare_generation(raw)
    policy = load_policy(load_cfg(raw))
    names = {type(module).__name__ for module in policy.model.modules()}
    assert ("Linear4bit" in names) == quantised
    assert not any("Lora" in name for name in names) and not isinstance(policy.model, PeftModel)
    assert policy.model.model.norm.weight.dtype is torch.bfloat16
    assert policy.model.model.embed_tokens.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("recipe", ["zephyr_tspin", "mistral_tspin"])
def test_a_recipe_for_all_weights_samples_as_it_is_shipped(recipe, tmp_path, tokenizer):
    """But for a tiny model of its architecture, local rows, few tokens and no TF32."""
    keys = yaml.safe_load((ROOT / "examples" / "yaml" / f"{recipe}.yml").read_text())
    torch.manual_seed(0)
    shape = MistralConfig(
        vocab_size=len(tokenizer) + 1,  # a pad token of the recipe
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
    )
    MistralForCausalLM(shape).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    keys["base_model"] = str(tmp_path / "model")
    keys["datasets"][0] |= {"path": str(WORD_PROBLEMS), "split": "train[:6]"}
    keys["t_spin"]["generation"]["max_new_tokens"] = 8
    keys["deepspeed"] = str(ROOT / keys["deepspeed"])
    keys["tf32"] = False  # a setting of the process, which later tests would inherit
    (tmp_path / "run.yml").write_text(yaml.safe_dump(keys))
    outcome = generate(tmp_path / "run.yml")
    assert (outcome.due, outcome.generated) == ("train", 6)
