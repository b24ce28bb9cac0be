"""Policies are sampled from and scored in the precision of the training that follows."""

import pytest
import torch
import yaml
from axolotl.cli.config import load_cfg
from support.data import ROOT, WORD_PROBLEMS
from transformers import MistralConfig, MistralForCausalLM

from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.loading import training_precision
from axolotl_tspin.resolve.steps import prepare_generation
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


def test_a_yaml_that_names_no_precision_samples(make_yaml, tmp_path):
    path = make_yaml(rows=4, bf16=None, fp16=None)
    assert generate(path).due == "train"
    assert len(triplets_of(RunDirectory(tmp_path / "out"), 0)) == 4


@pytest.mark.parametrize("recipe", ["zephyr_tspin", "mistral_tspin"])
def test_a_recipe_for_all_weights_samples_as_it_is_shipped(recipe, tmp_path, tokenizer):
    """But for a tiny model of its architecture, local rows, few tokens and no TF32."""
    keys = yaml.safe_load((ROOT / "examples" / "yaml" / f"{recipe}.yml").read_text())
    torch.manual_seed(0)
    shape = MistralConfig(
        vocab_size=len(tokenizer),
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
