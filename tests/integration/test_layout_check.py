"""The start-up check is a training step: what it must find, and what it must leave alone."""

import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from support.policies import COMMON, make_family, tiny_llama
from support.training import make_trainer, make_triplets

from axolotl_tspin.training.attention import interface
from axolotl_tspin.training.layout_check import halved, triplet_to_check
from axolotl_tspin.triplets import TripletTokens

TRIPLETS = make_triplets(8)


def checked(tmp_path, caplog, model, triplets=TRIPLETS, **kwargs):
    """A trainer after its check on its first batch, and what the check said."""
    trainer = make_trainer(tmp_path, triplets, 4, 1, model=model, logging_steps=1, **kwargs)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with caplog.at_level(logging.INFO), trainer.compute_loss_context_manager():
        trainer._in_checked_layout(trainer.model, trainer._prepare_inputs(batch))
    said = [r.getMessage() for r in caplog.records if "T-SPIN layout" in r.getMessage()]
    return trainer, said


def shares_a_row() -> bool:
    return getattr(interface._current, "plan", None) is not None


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.tensor(ctx.factor, dtype=gradient.dtype), None


def broken(change, modes=(True, False)):
    """A tiny policy whose body's output is changed, only in shared-prefix rows."""
    policy = tiny_llama(50)

    def body(module, args, output):
        if shares_a_row() and module.training in modes:
            output.last_hidden_state = change(output.last_hidden_state)
        return output

    policy.model.register_forward_hook(body)
    return policy


def raising(error):
    def change(hidden):
        raise error

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: WrongBackward.apply(h, 1.2), "in their norm"),
        (lambda h: WrongBackward.apply(h, [1.0, -1.0] * 16), "in their cosine"),
        (lambda h: 1.1 * h, "nats a token"),
        (lambda h: h * float("nan"), "nan nats"),
        (raising(AttributeError("a mask without a dtype")), "AttributeError: a mask without"),
        (raising(IndexError("out of range")), "IndexError"),
    ],
)
def test_what_differs_is_trained_in_padded_rows_with_the_lean_head(change, said, tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, broken(change))
    warning, agreed = messages[-2:]
    assert "not exact for this policy" in warning and said in warning
    assert "checked against padded rows" in agreed
    assert trainer.layout.choice[:2] == ("padded", "chunked")
    assert "not exact" in trainer.layout.choice.reason
    assert trainer.data_collator.layout == "padded"
    assert trainer.model.config._attn_implementation == "sdpa"


def test_what_is_wrong_in_training_mode_alone_is_found(tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, broken(lambda h: 1.5 * h, modes=(True,)))
    assert trainer.layout.choice.layout == "padded", messages


class Doubled(transformers.LlamaForCausalLM):
    """Scales its logits, and names no key for it in its configuration."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_head_that_differs_gets_plain_logits(tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, Doubled(tiny_llama(50).config))
    assert trainer.layout.choice[:2] == ("padded", "plain")
    assert [("not exact" in message) for message in messages[-2:]] == [True, True]


def exhausted(most_tokens):
    """A policy for which memory suffices for so many tokens."""
    policy = tiny_llama(50)

    def body(module, args, kwargs):
        if kwargs["input_ids"].numel() > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    policy.model.register_forward_pre_hook(body, with_kwargs=True)
    return policy


LONG = [TripletTokens([5] * 64, [6] * 40, [7] * 50, [8] * 60)] * 4


def test_out_of_memory_is_tried_again_with_less_of_the_triplet(tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, exhausted(150), triplets=LONG)
    assert trainer.layout.choice[:2] == ("shared_prefix", "chunked")
    assert "checked against padded rows" in messages[-1]


def test_out_of_memory_to_the_end_does_not_lead_to_what_needs_most(tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, exhausted(0))
    assert trainer.layout.choice[:2] == ("shared_prefix", "chunked")
    assert "was not checked" in messages[-1] and "out of memory" in messages[-1]


def test_half_a_triplet_is_its_beginnings():
    triplet = TripletTokens(list(range(40)), [1] * 3, list(range(20)), [])
    assert halved(triplet) == TripletTokens(list(range(20)), [1] * 3, list(range(10)), [])
    assert halved(TripletTokens([1], [2], [3], [4])) == TripletTokens([1], [2], [3], [4])


@pytest.mark.parametrize(
    "policy",
    [
        lambda: get_peft_model(
            tiny_llama(50), LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.4)
        ),
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**COMMON | {"attention_dropout": 0.5})
        ),
    ],
    ids=["of LoRA", "of attention"],
)
def test_dropout_is_no_difference(policy, tmp_path, caplog):
    trainer, messages = checked(tmp_path, caplog, policy())
    assert trainer.layout.choice.layout == "shared_prefix"
    assert "checked against padded rows" in messages[-1]
    trainer.train()


def test_the_check_leaves_no_trace(tmp_path, caplog):
    policy = tiny_llama(50)
    policy.gradient_checkpointing_enable({"use_reentrant": True})
    before = [p.clone() for p in policy.parameters()]
    functions = [layer._gradient_checkpointing_func for layer in policy.model.layers]
    trainer = make_trainer(tmp_path, TRIPLETS, 4, 1, model=policy)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    hooks = list(policy.model.embed_tokens._forward_hooks)
    state = torch.get_rng_state()
    trainer.layout.check(trainer.model, batch, torch.float32, log=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert [layer._gradient_checkpointing_func for layer in policy.model.layers] == functions
    assert policy.training and policy.config._attn_implementation == interface.STRUCTURED
    assert list(policy.model.embed_tokens._forward_hooks) == hooks


def test_a_policy_that_reads_its_mask_falls_back(tmp_path, caplog):
    """Doge makes a mask out of the mask that it gets."""
    torch.manual_seed(0)
    config = transformers.DogeConfig(**COMMON | {"vocab_size": 50, "keep_window_size": 64})
    config._attn_implementation = "sdpa"
    trainer, messages = checked(tmp_path, caplog, transformers.DogeForCausalLM(config))
    assert trainer.layout.choice[:2] == ("padded", "chunked"), messages


def test_attention_with_its_own_copy_of_the_configuration_shares_a_row(tmp_path, caplog):
    policy = tiny_llama(50)
    for layer in policy.model.layers:
        layer.self_attn.config = transformers.LlamaConfig.from_dict(policy.config.to_dict())
        layer.self_attn.config._attn_implementation = "sdpa"
    trainer, messages = checked(tmp_path, caplog, policy)
    assert trainer.layout.choice.layout == "shared_prefix", messages


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss", "DeepseekV3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_whole_bfloat16_agree_within_rounding(family, dtype, tmp_path, caplog):
    policy = make_family(family, torch.float32).to(dtype)
    trainer = make_trainer(tmp_path, TRIPLETS, 4, 1, model=policy, bf16=True, max_steps=1)
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert trainer.layout.choice.layout == "shared_prefix"
    (said,) = [r.getMessage() for r in caplog.records if "checked against" in r.getMessage()]
    # Had the check run in float32, its differences would be those of float32.
    assert float(said.split("gradients by ")[1].split()[0]) > 1e-6


def test_the_triplet_to_check_is_the_longest_affordable_one(monkeypatch):
    short, long = TripletTokens([1], [2], [3], [4]), TripletTokens([1] * 9, [2], [3] * 5, [4])
    assert triplet_to_check([short, long], 61) is long
    monkeypatch.setattr("axolotl_tspin.training.layout_check.MOST_PLAIN_LOGITS", 1000)
    assert triplet_to_check([long, short], 61) is short
