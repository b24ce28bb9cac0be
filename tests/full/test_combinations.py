"""Axolotl's adapters, quantisation, optimizers and memory savers around the triplet loss.

Each is trained for a step by `axolotl.train.train` in this process: the loss (of quantised weights
nearly), and with all weights trained the gradient norm, are those of the policy by itself, and the
policy that is saved is another one.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from axolotl.cli.args import TrainerCliArgs
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.train import train
from safetensors.torch import load_file
from support.data import conversations, write_jsonl
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_tspin.generation.step import generate
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.training.layouts import pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import t_spin_loss
from axolotl_tspin.triplets import from_row

LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    # Axolotl's fused LoRA kernels are on by default and need a GPU.
    **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")},
}
QLORA = LORA | {"adapter": "qlora", "load_in_4bit": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory, tokenizer) -> Path:
    """Wide enough for blocks of 64 quantised weights."""
    path = tmp_path_factory.mktemp("policy") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, str]:
    """Rows with their responses, and where Axolotl keeps them once they are tokenised."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        row | {"synthetic": f"It is {i}.", "proto_synthetic": f"Perhaps {i}, or {2 * i}?"}
        for i, row in enumerate(conversations(4))
    ]
    return write_jsonl(folder / "rows.jsonl", rows), str(folder / "prepared")


@pytest.fixture
def trained(make_yaml, policy, prepared, tmp_path):
    """Trains one step on all four rows with the given keys; what `trained_by` gives."""
    data, cache = prepared

    def run(**keys):
        path = make_yaml(
            base_model=str(policy),
            datasets=[{"path": str(data), "type": "t_spin.chat_template"}],
            dataset_prepared_path=cache,
            micro_batch_size=4,
            gradient_accumulation_steps=1,
            **keys,
        )
        return trained_by(path)

    return run


def trained_by(path):
    """The first step's log, the trainer, and the folder of the trained policy."""
    cfg = load_cfg(str(path))
    meta = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    _, _, trainer = train(cfg=cfg, dataset_meta=meta)
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged, trainer, Path(cfg.output_dir)


def expected(policy, trainer) -> tuple[float, float]:
    """Loss and gradient norm of the policy on the trainer's rows, padded, with all logits."""
    model = LlamaForCausalLM.from_pretrained(policy, attn_implementation="sdpa")
    triplets = [from_row(row) for row in trainer.train_dataset]
    logps, _ = triplet_logps(model, pad_triplets(triplets, pad_token_id=0), head="plain")
    loss = t_spin_loss(*logps.unbind(1), alpha=1.0, beta=0.1).loss.mean()
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    return loss.item(), norms.norm().item()


FULL = {
    "plain": {},
    "rmsprop": {"optimizer": "rmsprop", "weight_decay": 0.0},
    "bnb_8bit": {"optimizer": "adamw_bnb_8bit"},
    "checkpointing": {"gradient_checkpointing": True},
    "unfrozen": {"unfrozen_parameters": ["^model.layers.1.*"]},
    "compile": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("name", FULL)
def test_all_weights(trained, policy, name):
    logged, trainer, folder = trained(**FULL[name])
    loss, norm = expected(policy, trainer)
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    if name != "unfrozen":
        assert float(logged["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    layout = "padded" if name == "compile" else "shared_prefix"
    assert trainer.layout.choice.layout == layout, trainer.layout.choice.reason
    before, after = load_file(policy / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = {key for key in before if not before[key].equal(after[key])}
    first_layer = {key for key in before if ".layers.0." in key}
    assert moved and bool(moved & first_layer) == (name != "unfrozen")


ADAPTERS = {
    "dora": LORA | {"peft_use_dora": True},
    "head_saved": LORA | {"lora_modules_to_save": ["lm_head", "embed_tokens"]},
    "head_targeted": LORA
    | {"lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]},
    "checkpointing": LORA | {"gradient_checkpointing": True},
    "8bit": LORA | {"load_in_8bit": True},
    "qlora": QLORA,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(trained, policy, name):
    logged, trainer, folder = trained(**ADAPTERS[name])
    loss, _ = expected(policy, trainer)
    # An adapter begins as nothing; quantisation alone moves the policy.
    assert logged["loss"] == pytest.approx(loss, rel={"8bit": 0.02, "qlora": 0.1}.get(name, 1e-5))
    choice = trainer.layout.choice
    assert (choice.layout, choice.head) == ("shared_prefix", "chunked"), choice.reason
    weights = load_file(folder / "adapter_model.safetensors")
    assert any(weight.any() for key, weight in weights.items() if "lora_B" in key)
    assert not (folder / "model.safetensors").exists()
    if name == "head_saved":
        assert any("lm_head" in key for key in weights)


def test_qlora_is_sampled_from_as_it_is_trained(make_yaml, policy, tmp_path):
    """generate → train → generate under bitsandbytes' 4 bits, the adapter continued."""
    path = make_yaml(rows=4, base_model=str(policy), **QLORA)
    run = RunDirectory(tmp_path / "out")
    generate(path)
    trained_by(path)
    assert run.step_of(0).step == "done"
    outcome = generate(path)
    assert (outcome.due, outcome.iteration, outcome.generated) == ("train", 1, 4)
    written = yaml.safe_load(path.read_text())
    assert written["base_model"] == str(policy)
    config = json.loads((run.iteration(0).model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(policy)
