"""The memory estimate: published figures, autograd's own count, and what each setting changes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.data import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.planning.memory import (
    ModelShape,
    activation_bytes,
    estimate_memory,
    head_gradient_bytes,
    logit_bytes,
    model_shape,
    parallel_setting,
    state_bytes,
)
from axolotl_tspin.planning.micro_batch import MicroBatch, largest_micro_batch
from axolotl_tspin.training.attention import STRUCTURED, use_attention
from axolotl_tspin.training.heads import MOST_LOGITS
from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.training.layouts import pack_triplets, pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.triplets import TripletTokens

CONFIG = LlamaConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
SHAPE = ModelShape(10_000, 10_000, 8_000, 8_000, 1_000, 8, 16, 32, 60, 16, 8)
BATCH = MicroBatch(100, 100, 60, "chunked")


def test_the_shape_is_the_models():
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
        shape = model_shape(model)
        everything = sum(p.numel() for p in model.parameters())
        assert shape.parameters == shape.trained == everything
        assert everything - shape.in_layers == 2 * 500 * 64 + 64  # embeddings, head, last norm
        assert shape.largest_layer * 6 == shape.in_layers == shape.trained_in_layers
        assert (shape.layers, shape.hidden, shape.intermediate) == (6, 64, 160)
        assert (shape.query_width, shape.kv_width, shape.vocabulary) == (64, 32, 500)
        lora = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapted = model_shape(get_peft_model(model, lora))
    assert adapted.trained == adapted.trained_in_layers == 6 * 3 * (64 + 64)
    assert adapted.parameters == everything + adapted.trained


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_is_as_its_paper_says(stage, gigabytes):
    """Figure 1 of arXiv 1910.02054: 7.5B parameters on 64 GPUs, Adam in mixed precision."""
    shape = SHAPE._replace(
        parameters=int(7.5e9),
        trained=int(7.5e9),
        in_layers=int(7.5e9),
        trained_in_layers=int(7.5e9),
    )
    cfg = {
        "bf16": True,
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "optimizer": "adamw_torch",
    }
    estimate = estimate_memory(shape, parallel_setting(cfg, shape, 64), BATCH)
    held = estimate.weights + estimate.gradients + estimate.optimizer
    assert held / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("layout", "sizes", "tolerance"),
    [
        ("padded", (3 * 3 * 64, 3 * 3 * 64, 3 * 3 * 24), 0.05),
        # A CPU's attention keeps the responses' keys where they lie and each part's output as well.
        ("shared_prefix", (3 * 112, 3 * (40 + 3 * 64), 3 * 3 * 24), 0.08),
    ],
)
def test_activations_are_what_autograd_keeps(layout, sizes, tolerance):
    model = LlamaForCausalLM(CONFIG).train()
    use_attention(model, STRUCTURED if layout == "shared_prefix" else "sdpa")
    lay_out = pack_triplets if layout == "shared_prefix" else pad_triplets
    triplets = [TripletTokens([3] * 40, [4] * 24, [5] * 24, [6] * 24) for _ in range(3)]
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps, _ = triplet_logps(model, lay_out(triplets, pad_token_id=0))
    found = sum(storage.nbytes() for storage in kept.values()) + kept_by_the_head(logps)
    shape = model_shape(model)
    batch = largest_micro_batch((40, 24, 24), Choice(layout, "chunked", ""), 3)
    assert batch == (*sizes, "chunked")
    setting = parallel_setting({}, shape, 1)
    guess = activation_bytes(shape, setting, batch) + logit_bytes(shape, setting, batch)
    assert guess == pytest.approx(found, rel=tolerance)


def kept_by_the_head(logps):
    """Bytes of the logits' derivatives, which hooks on saved tensors do not see."""
    nodes, found = [logps.grad_fn], []
    while not found:
        node = nodes.pop()
        nodes += [before for before, _ in node.next_functions if before is not None]
        found = [node.kept] if hasattr(node, "kept") else []
    return found[0].nbytes


@pytest.mark.parametrize(
    ("cfg", "predicting", "head", "logits", "gradient"),
    [
        # One chunk: the product, and (weights in float32) a copy of the weight and the cast.
        ({}, 60, "chunked", 4, 4),
        ({"bf16": True, "cut_cross_entropy": True}, 60, "chunked", 2, 2),
        ({"bf16": True}, 60, "chunked", 2, 2 + 2 + 4),
        # Several: the sum in float32, and a product in bfloat16.
        ({}, 150, "chunked", 4, 4),
        ({"bf16": True, "cut_cross_entropy": True}, 150, "chunked", 2, 4 + 2),
        ({"bf16": True}, 150, "chunked", 2, 2 + 4 + 2),
        ({"bf16": True, "fsdp_config": {"offload_params": False}}, 150, "chunked", 2, 2 + 2),
        ({}, 150, "plain", None, 4),
    ],
)
def test_the_heads_bytes(cfg, predicting, head, logits, gradient, monkeypatch):
    monkeypatch.setitem(MOST_LOGITS, "cuda", 100 * SHAPE.vocabulary)
    setting = parallel_setting(cfg, SHAPE, 4)
    batch = MicroBatch(200, 200, predicting, head)
    if logits is None:
        expected = 60 * (200 * 4 + 150 * 12)
    else:
        expected = logits * (min(predicting, 100) * 60 + 2 * predicting * 16)
    assert logit_bytes(SHAPE, setting, batch) == expected
    assert head_gradient_bytes(SHAPE, setting, batch) == gradient * 60 * 16
    frozen = SHAPE._replace(trained=100, trained_in_layers=100)
    assert head_gradient_bytes(frozen, setting, batch) == 0


def test_a_packed_micro_batch_has_each_prompt_once():
    packed = largest_micro_batch((40, 24, 30), Choice("shared_prefix", "chunked", ""), 2)
    tokens, keys = 2 * (40 + 24 + 2 * 30), 2 * (4 * 40 + 24 + 2 * 30)
    assert packed == (tokens, keys, 2 * (24 + 2 * 30), "chunked")


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        ("adamw_torch_fused", 8),
        ("rmsprop", 4),
        ("sgd", 0),
        ("paged_adamw_8bit", 2 * (1 + 4 / 256)),
        ("unheard_of", 8),
    ],
)
def test_optimizer_states(optimizer, size):
    assert state_bytes(optimizer, 4) == size


def estimated(cfg, ranks=1, shape=SHAPE):
    return estimate_memory(shape, parallel_setting(cfg, shape, ranks), BATCH)


def test_what_each_setting_changes():
    plain = estimated({"bf16": True, "adapter": None, "cut_cross_entropy": True})
    assert (plain.weights, plain.gradients, plain.optimizer) == (20_000, 20_000, 40_000)
    ddp = estimated({"bf16": True, "cut_cross_entropy": True}, ranks=4)
    assert ddp.buffers == 20_000 and ddp.total == plain.total + 20_000
    sharded = estimated({"bf16": True, "fsdp_config": {"offload_params": False}}, ranks=4)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (5_000, 5_000, 10_000)
    checkpointed = estimated({"bf16": True, "gradient_checkpointing": True})
    assert checkpointed.activations < plain.activations / 4
    offloaded = estimated({"deepspeed": str(ROOT / "examples/deepspeed/zero3_bf16_offload.json")})
    assert offloaded.weights == offloaded.optimizer == 0
    accumulated = estimated({"gradient_accumulation_steps": 2})
    assert accumulated.total > estimated({}).total

    frozen = SHAPE._replace(trained=100, trained_in_layers=100)
    lora = estimated({"bf16": True, "adapter": "lora"}, shape=frozen)
    qlora = estimated({"bf16": True, "adapter": "qlora", "load_in_4bit": True}, shape=frozen)
    assert lora.weights == 20_000 + 100 * 2, "PEFT keeps a trained adapter in float32"
    assert qlora.weights == int(7_900 * (0.5 + (1 + 4 / 256) / 64) + 100 * 4 + 2_000 * 2)


def test_a_deepspeed_file_that_is_none_is_named(tmp_path):
    with pytest.raises(TSpinError, match=r"`deepspeed: .*absent\.json` cannot be read"):
        estimated({"deepspeed": str(tmp_path / "absent.json")})
