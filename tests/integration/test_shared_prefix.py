"""Shared-prefix rows against three padded rows and all logits: values and every gradient, over
model families, shapes, heads and wrappers; and the fall-back where they cannot agree."""

import logging

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.policies import COMMON, FAMILIES, VOCABULARY, tiny_llama
from support.policies import make_family as make_policy
from support.training import make_trainer, make_triplets
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training import attention, heads
from axolotl_tspin.training.attention import (
    STRUCTURED,
    StructuredMask,
    block_mask,
    structured_attention_forward,
    visibility,
)
from axolotl_tspin.training.layout_check import triplet_to_check
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
    monkeypatch.setattr(heads, "MOST_LOGITS", 7 * VOCABULARY)  # several chunks
    if family == "Gemma2" and dtype == torch.float64:
        pytest.skip("transformers' eager attention gives nan there with padding in float64")
    policy = make_policy(family, dtype)
    assert choose_layout(policy, "auto").layout == "shared_prefix"
    triplets = random_triplets(4)
    plain = logps_and_gradients(policy, pad_triplets(triplets, pad_token_id=0), "plain")
    policy.set_attn_implementation(STRUCTURED)
    tolerance = 1e-9 if family == "GPT2" and dtype == torch.float64 else 1e-4
    for most, multiple in ((None, 1), (40, 8)):
        batch = pack_triplets(
            triplets, pad_token_id=0, max_tokens_per_row=most, pad_to_multiple_of=multiple
        )
        assert_same(logps_and_gradients(policy, batch, "chunked"), plain, tolerance)
    # Outside structured batches it is ordinary attention, padding included.
    padded = pad_triplets(triplets, pad_token_id=0, pad_to_multiple_of=8)
    if FAMILIES[family][0] != "Gemma2":
        assert_same(logps_and_gradients(policy, padded, "chunked"), plain, tolerance)


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
    fast_policy.set_attn_implementation(STRUCTURED)

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
    policy.set_attn_implementation(STRUCTURED)
    plain = logps_and_gradients(policy, batch, "chunked")
    policy.gradient_checkpointing_enable({"use_reentrant": reentrant})
    policy.enable_input_require_grads()
    policy.train()
    assert_same(logps_and_gradients(policy, batch, "chunked"), plain, 1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "down_proj"]])
def test_lora_with_and_without_the_head_is_exact(targets, monkeypatch):
    monkeypatch.setattr(heads, "MOST_LOGITS", 7 * VOCABULARY)
    torch.manual_seed(2)
    policy = get_peft_model(
        tiny_llama(VOCABULARY).double(),
        LoraConfig(r=4, target_modules=targets, init_lora_weights=False, lora_dropout=0.0),
    ).double()
    triplets = random_triplets(3)
    plain = logps_and_gradients(policy, pad_triplets(triplets, pad_token_id=0), "plain")
    assert all("lora" in name for name in plain[2])
    policy.get_base_model().set_attn_implementation(STRUCTURED)
    batch = pack_triplets(triplets, pad_token_id=0)
    assert_same(logps_and_gradients(policy, batch, "chunked"), plain, 1e-5)


def test_the_chunked_head_never_sees_more_than_its_chunk(monkeypatch):
    monkeypatch.setattr(heads, "MOST_LOGITS", 5 * VOCABULARY)
    policy = tiny_llama(VOCABULARY)
    sizes = []
    policy.lm_head.register_forward_hook(lambda m, args, out: sizes.append(out.numel()))
    policy.set_attn_implementation(STRUCTURED)
    batch = pack_triplets(random_triplets(6), pad_token_id=0)
    triplet_logps(policy, batch)[0].sum().backward()
    assert len(batch["targets"]) > 25
    assert max(sizes) <= 5 * VOCABULARY


def test_both_visibilities_are_the_rule_spelled_out():
    """A token sees itself, what comes before it in its own response, and its prompt up to there;
    within a window counted in positions."""
    batch = pack_triplets(
        random_triplets(5, seed=4), pad_token_id=0, max_tokens_per_row=60, pad_to_multiple_of=16
    )
    rows, length = batch["layout"].rows, batch["input_ids"].shape[1]
    assert len(rows) > 1
    index = torch.arange(length)
    for window in (None, 4):
        visible = visibility(rows, length, window, "cpu")
        for row, spans in enumerate(rows):
            expected = torch.eye(length, dtype=torch.bool)
            for span in spans:
                begin = span.start + span.prompt
                prompt = list(range(span.start, begin))
                own = []
                for tokens in span.responses:
                    own.append(list(range(begin, begin + tokens)))
                    begin += tokens
                for sequence in [prompt, *([*prompt, *response] for response in own)]:
                    for i, q in enumerate(sequence):
                        for j, k in enumerate(sequence[: i + 1]):
                            expected[q, k] = window is None or i - j < window
            got = visible(torch.tensor(row), torch.tensor(0), index[:, None], index[None])
            assert torch.equal(got, expected)
        # Structured attention against FlexAttention's own dense arithmetic under that rule.
        torch.manual_seed(0)
        query, key, value = (torch.randn(len(rows), 4, length, 8).double() for _ in range(3))
        ours, _ = structured_attention_forward(
            torch.nn.Module(), query, key, value, StructuredMask(rows, window)
        )
        flex = flex_attention(
            query, key, value, block_mask=block_mask(rows, length, window, torch.device("cpu"))
        ).transpose(1, 2)
        for row, spans in enumerate(rows):
            end = spans[-1].end
            torch.testing.assert_close(ours[row, :end], flex[row, :end])
            assert ours[row, end:].eq(0).all()


@pytest.mark.parametrize("window", [None, 150])
def test_a_block_mask_is_the_librarys_without_its_dense_mask(window, monkeypatch):
    monkeypatch.setattr(attention, "MASK_QUERIES", 2 * attention.BLOCK)
    triplets = [
        TripletTokens(*([1] * length for length in lengths))
        for lengths in [(300, 40, 290, 1), (20, 180, 10, 200), (170, 1, 2, 3)]
    ]
    batch = pack_triplets(triplets, pad_token_id=0, max_tokens_per_row=900)
    rows, length = batch["layout"].rows, batch["input_ids"].shape[1]
    assert len(rows) == 2 and length % attention.BLOCK
    ours = block_mask(rows, length, window, torch.device("cpu"))
    visible = visibility(rows, length, window, "cpu")
    theirs = create_block_mask(visible, len(rows), None, length, length, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("kv", "full_kv", "q", "full_q"):
        numbers = getattr(ours, f"{name}_num_blocks")
        used = torch.arange(numbers.shape[-1]) < numbers[..., None]
        indices = (getattr(mask, f"{name}_indices")[used] for mask in (ours, theirs))
        assert torch.equal(*indices), name
    assert ours.full_kv_num_blocks.sum() > 0 or window
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE


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


def test_the_triplet_to_check_is_the_longest_affordable_one(monkeypatch):
    short, long = TripletTokens([1], [2], [3], [4]), TripletTokens([1] * 9, [2], [3] * 5, [4])
    assert triplet_to_check([short, long], VOCABULARY) is long
    monkeypatch.setattr("axolotl_tspin.training.layout_check.MOST_PLAIN_LOGITS", 1000)
    assert triplet_to_check([long, short], VOCABULARY) is short
