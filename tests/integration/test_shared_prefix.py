"""Shared-prefix rows against three padded rows and all logits: values and every gradient, over
model families, shapes, heads and wrappers; and the fall-back where they cannot agree."""

import functools
import logging

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.attention import like_flash_attns, like_torchs
from support.policies import COMMON, FAMILIES, VOCABULARY, tiny_llama
from support.policies import make_family as make_policy
from support.training import make_trainer, make_triplets
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.attention import STRUCTURED, interface, use_attention
from axolotl_tspin.training.attention.flash import attend_flash
from axolotl_tspin.training.attention.varlen import attend_varlen
from axolotl_tspin.training.heads import MOST_LOGITS
from axolotl_tspin.training.layout_choice import choose_layout
from axolotl_tspin.training.layouts import pack_triplets, pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.triplets import TripletTokens


def random_triplets(count: int, seed: int = 0, longest: int = 12) -> list[TripletTokens]:
    """Triplets of random lengths; in every other one the synthetic is the proto-synthetic."""
    generator = torch.Generator().manual_seed(seed)

    def ids(least):
        length = int(torch.randint(least, longest, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    triplets = [TripletTokens(ids(1), ids(0), ids(1), ids(1)) for _ in range(count)]
    return [t if i % 2 else t._replace(synthetic=t.proto_synthetic) for i, t in enumerate(triplets)]


def logps_and_gradients(policy, batch, head):
    policy.zero_grad()
    logps, counts = triplet_logps(policy, batch, head=head)
    # Any weights but the loss's, which may saturate and leave no gradient to compare.
    weights = torch.linspace(-1, 1.5, logps.numel(), dtype=logps.dtype).view_as(logps)
    (logps * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return logps.detach(), counts, gradients


def assert_same(fast, plain, tolerance):
    torch.testing.assert_close(fast[0], plain[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(fast[1], plain[1])
    assert fast[2].keys() == plain[2].keys()
    scales = {name: gradient.abs().max().item() for name, gradient in plain[2].items()}
    for name, gradient in plain[2].items():
        # Where a gradient cancels out, what is left is rounding of its terms.
        scale = max(scales[name], 1e-2 * max(scales.values()))
        torch.testing.assert_close(
            fast[2][name],
            gradient,
            rtol=0,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_exact_in_every_layout(family, dtype, monkeypatch):
    monkeypatch.setitem(MOST_LOGITS, "cpu", 7 * VOCABULARY)  # several chunks
    if family == "Gemma2" and dtype == torch.float64:
        pytest.skip("transformers' eager attention gives nan there with padding in float64")
    policy = make_policy(family, dtype)
    assert choose_layout(policy, "auto").layout == "shared_prefix"
    triplets = random_triplets(4)
    plain = logps_and_gradients(policy, pad_triplets(triplets, pad_token_id=0), "plain")
    use_attention(policy, STRUCTURED)
    tolerance = 1e-9 if family == "GPT2" and dtype == torch.float64 else 1e-4
    for most, multiple in ((None, 1), (40, 8)):
        batch = pack_triplets(
            triplets, pad_token_id=0, max_tokens_per_row=most, pad_to_multiple_of=multiple
        )
        assert_same(logps_and_gradients(policy, batch, "chunked"), plain, tolerance)
    # Outside structured batches it is ordinary attention, padding included.
    padded = pad_triplets(triplets, pad_token_id=0, pad_to_multiple_of=8)
    assert_same(logps_and_gradients(policy, padded, "chunked"), plain, tolerance)


KERNELS = {
    "varlen": functools.partial(attend_varlen, kernel=like_torchs),
    "flash": functools.partial(attend_flash, kernel=like_flash_attns),
}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "GptOss"])
def test_families_are_exact_with_every_kernel(family, backend, monkeypatch):
    """On a GPU a kernel takes all segments at once. Here plain PyTorch has its semantics."""
    if (family, backend) == ("Gemma2", "varlen"):
        pytest.skip("this kernel has no soft cap: such layers never get it")
    policy = make_policy(family, torch.float32)
    triplets = [*random_triplets(3), TripletTokens([5, 6], [7], [], [8, 9])]
    plain = logps_and_gradients(policy, pad_triplets(triplets, pad_token_id=0), "plain")
    taken = (lambda query, value, layer: None, KERNELS[backend])
    monkeypatch.setattr(interface, "BACKENDS", {backend: taken})
    use_attention(policy, STRUCTURED)
    batch = pack_triplets(triplets, pad_token_id=0, max_tokens_per_row=40)
    assert_same(logps_and_gradients(policy, batch, "chunked"), plain, 1e-4)


tokens = st.lists(st.integers(3, VOCABULARY - 1), max_size=14)
prompts = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=14)
triplets_of_any_shape = st.lists(
    st.one_of(
        st.builds(TripletTokens, prompts, tokens, tokens, tokens),
        st.builds(lambda x, y, s: TripletTokens(x, y, s, s), prompts, tokens, tokens),
    ),
    min_size=1,
    max_size=4,
)


# GPT2 is in float64 throughout; the others' norms are in float32.
@pytest.mark.parametrize(
    ("family", "tolerance"), [("GPT2", 1e-9), ("Mistral, window inside the row", 1e-4)]
)
def test_any_shape_is_exact(family, tolerance):
    plain_policy, fast_policy = make_policy(family), make_policy(family)
    use_attention(fast_policy, STRUCTURED)

    @settings(max_examples=40, deadline=None)
    @given(triplets_of_any_shape, st.sampled_from([None, 1, 30]), st.sampled_from([1, 16]))
    def check(triplets, most, multiple):
        plain = logps_and_gradients(plain_policy, pad_triplets(triplets, pad_token_id=0), "plain")
        batch = pack_triplets(
            triplets, pad_token_id=0, max_tokens_per_row=most, pad_to_multiple_of=multiple
        )
        assert_same(logps_and_gradients(fast_policy, batch, "chunked"), plain, tolerance)

    check()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    policy = tiny_llama(VOCABULARY)
    batch = pack_triplets(random_triplets(3), pad_token_id=0)
    use_attention(policy, STRUCTURED)
    plain = logps_and_gradients(policy, batch, "chunked")
    policy.gradient_checkpointing_enable({"use_reentrant": reentrant})
    policy.enable_input_require_grads()
    policy.train()
    assert_same(logps_and_gradients(policy, batch, "chunked"), plain, 1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "down_proj"]])
def test_lora_with_and_without_the_head_is_exact(targets, monkeypatch):
    monkeypatch.setitem(MOST_LOGITS, "cpu", 7 * VOCABULARY)
    torch.manual_seed(2)
    policy = get_peft_model(
        tiny_llama(VOCABULARY).double(),
        LoraConfig(r=4, target_modules=targets, init_lora_weights=False, lora_dropout=0.0),
    ).double()
    triplets = random_triplets(3)
    plain = logps_and_gradients(policy, pad_triplets(triplets, pad_token_id=0), "plain")
    assert all("lora" in name for name in plain[2])
    use_attention(policy.get_base_model(), STRUCTURED)
    batch = pack_triplets(triplets, pad_token_id=0)
    assert_same(logps_and_gradients(policy, batch, "chunked"), plain, 1e-5)


class LargestLogits(TorchDispatchMode):
    """Finds the most logits that one operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.shape[-1:] == (VOCABULARY,):
            self.numel = max(self.numel, output.numel())
        return output


@pytest.mark.parametrize("trained", [True, False])
def test_the_chunked_head_never_makes_more_than_its_chunk(trained, monkeypatch):
    policy = tiny_llama(VOCABULARY)
    policy.lm_head.requires_grad_(trained)
    use_attention(policy, STRUCTURED)
    batch = pack_triplets(random_triplets(6), pad_token_id=0)
    targets = sum(batch["layout"].lengths)
    assert targets > 60
    for rows in (targets, 37):
        monkeypatch.setitem(MOST_LOGITS, "cpu", rows * VOCABULARY)
        with LargestLogits() as largest:
            triplet_logps(policy, batch)[0].sum().backward()
        assert rows // 2 * VOCABULARY < largest.numel <= rows * VOCABULARY


HYBRIDS = {
    "Jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "Qwen3Next": {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4},
    "Mamba": {"state_size": 4},
    "Llama4Text": {"attention_chunk_size": 16, "num_local_experts": 2},
    "Bloom": {},
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_models_that_cannot_share_a_row_get_padded_ones(name):
    config = getattr(transformers, f"{name}Config")(**COMMON | HYBRIDS[name])
    class_name = "Llama4ForCausalLM" if name == "Llama4Text" else f"{name}ForCausalLM"
    policy = getattr(transformers, class_name)(config)
    choice = choose_layout(policy, "auto")
    assert choice.layout == "padded"
    assert choice.head == "chunked"
    assert class_name in choice.reason
    with pytest.raises(TSpinError, match="`auto` or `padded`"):
        choose_layout(policy, "shared_prefix")


def test_what_the_user_asks_for_is_taken():
    policy = tiny_llama(VOCABULARY)
    assert choose_layout(policy, "padded").layout == "padded"
    assert choose_layout(policy, "shared_prefix").layout == "shared_prefix"
    assert choose_layout(policy, "auto", compiled=True)[:2] == ("padded", "plain")


class IgnoresPositions(transformers.LlamaForCausalLM):
    """As a remote-code model might: its forward counts positions by itself."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def test_a_policy_that_fails_the_check_is_trained_in_padded_rows(tmp_path, caplog):
    triplets = make_triplets(8)

    def trainer_of(model_class, layout):
        llama = tiny_llama(50)
        model = model_class(llama.config)
        model.load_state_dict(llama.state_dict())
        return make_trainer(
            tmp_path, triplets, 2, 2, model=model.double(), t_spin_layout=layout, logging_steps=1
        )

    plain = trainer_of(transformers.LlamaForCausalLM, "padded")
    plain.train()
    with caplog.at_level(logging.INFO):
        fallen = trainer_of(IgnoresPositions, "auto")
        assert fallen.data_collator.layout == "shared_prefix"
        fallen.train()
    assert "not exact for this policy" in caplog.text
    assert fallen.data_collator.layout == "padded"
    assert fallen.model.config._attn_implementation == "sdpa"
    for (name, a), b in zip(plain.model.named_parameters(), fallen.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
