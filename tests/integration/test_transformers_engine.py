"""transformers' generation with a real (tiny) policy: what is sampled is the policy's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import make_family as make_policy
from support.policies import tiny_llama
from transformers import DynamicCache

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines import transformers_engine
from axolotl_tspin.generation.engines.decoding import FiniteRows, RowSampler, give_room
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.transformers_engine import TransformersEngine, batch_size_for


def sampled(policy, prompts, limit=9, batch_size=4096, **sampling):
    """Responses to prompts, in their order, from one batch or several."""
    engine = TransformersEngine(
        policy, pad_token_id=0, sampling=GenerationConfig(**sampling), batch_size=batch_size
    )
    limits = limit if isinstance(limit, list) else [limit] * len(prompts)
    requests = [Request(i, p, limits[i], i, (2,)) for i, p in enumerate(prompts)]
    size = engine.group_size
    groups = [requests[i : i + size] for i in range(0, len(requests), size)]
    responses = [response for batch in engine.sample(groups) for response in batch]
    assert [response.row for response in responses] == list(range(len(prompts)))
    return responses


def test_greedy_sampling_follows_the_argmax_whatever_else_is_in_the_batch():
    policy = tiny_llama(50).double()
    prompts = [[1, 7, 8, 9], [1, 30], [1, 12, 13]]
    together = sampled(policy, prompts, temperature=0)
    for prompt, response in zip(prompts, together, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(9):
                ids.append(policy(torch.tensor([ids])).logits[0, -1].argmax().item())
        expected = ids[len(prompt) :]
        ended = 2 in expected
        assert response.ids == expected[: expected.index(2)] if ended else expected
        assert response.finish_reason == ("stop" if ended else "length")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}])
def test_a_policy_whose_logits_are_not_finite_is_refused(value, sampling):
    """By one row's prompt, or in all rows."""
    policy = tiny_llama(50)
    prompts = [[1, 30], [1, 12, 13], [1, 7, 8]]
    embedding = policy.model.embed_tokens.weight
    with torch.no_grad():
        embedding[49] = value
    untouched = sampled(policy, prompts, limit=1, **sampling)
    assert [len(response.ids) for response in untouched] == [1, 1, 1]
    with pytest.raises(TSpinError, match=r"logits that are not finite at the prompt of row 1"):
        sampled(policy, [[1, 30], [1, 49, 13], [1, 7, 8]], **sampling)
    policy.name_or_path = "some/policy"
    with torch.no_grad():
        policy.lm_head.weight[5] = value
    with pytest.raises(TSpinError, match=r"^the policy some/policy gives .* row 0, so it is not"):
        sampled(policy, prompts, **sampling)


def test_logits_that_exclude_tokens_are_fine():
    """Models whose heads give −inf to tokens that they never say."""
    rows = FiniteRows(3, torch.device("cpu"))
    scores = torch.zeros(3, 7)
    scores[0, 2] = scores[2] = -math.inf
    assert rows(torch.zeros(3, 1), scores) is scores
    assert rows.finite.tolist() == [True, True, False]
    rows(torch.zeros(3, 1), torch.zeros(3, 7))
    assert rows.finite.tolist() == [True, True, False], "it is remembered"


def test_rows_that_end_leave_the_batch_and_nothing_changes(monkeypatch):
    """Segments of one token, of three, and one for all: the same responses."""
    policy = tiny_llama(12).double()
    prompts = [[1, a, b] for a in range(3, 12) for b in range(3, 12)]
    limits = [4 + i % 20 for i in range(len(prompts))]
    widths: list[int] = []
    forward = policy.forward

    def counted(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy, "forward", counted)
    outcomes = []
    for segment in (1, 3, 1000):
        monkeypatch.setattr(transformers_engine, "SEGMENT", segment)
        outcomes.append(sampled(policy, prompts, limit=limits, temperature=0))
        if segment == 1:
            assert min(widths) < len(prompts) == max(widths)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert {r.finish_reason for r in outcomes[0]} == {"stop", "length"}
    assert all(len(r.ids) <= limit for r, limit in zip(outcomes[0], limits, strict=True))


def test_a_batch_gives_the_same_whenever_it_is_asked():
    policy = tiny_llama(50)
    prompts = [[1, i] for i in range(3, 15)]
    assert sampled(policy, prompts, batch_size=4) == sampled(policy, prompts, batch_size=4)
    assert batch_size_for(policy, 7, 100) == 7
    assert batch_size_for(policy, "auto", 100) == transformers_engine.CPU_BATCH


def test_the_checkpoints_own_generation_config_adds_nothing():
    policy = tiny_llama(50)
    plain = sampled(policy, [[1, 7]] * 64, limit=1)
    policy.generation_config.top_k = 1
    policy.generation_config.repetition_penalty = 9.0
    assert sampled(policy, [[1, 7]] * 64, limit=1) == plain
    assert len({tuple(r.ids) for r in plain}) > 3


def test_samples_follow_the_policys_distribution():
    """Frequencies of first tokens against softmax(logits), at temperature 1 and 0.5."""
    policy = tiny_llama(12)
    with torch.no_grad():
        logits = policy(torch.tensor([[1, 7]])).logits[0, -1].double()
    n = 4000
    for temperature in (1.0, 0.5):
        responses = sampled(policy, [[1, 7]] * n, limit=1, temperature=temperature)
        counts = torch.zeros(12)
        for response in responses:
            counts[response.ids[0] if response.ids else 2] += 1
        expected = (logits / temperature).softmax(0)
        error = (counts / n - expected).abs()
        assert (error < 5 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()


def test_nothing_is_sampled_from_outside_the_nucleus():
    policy = tiny_llama(12)
    with torch.no_grad():
        probabilities = policy(torch.tensor([[1, 7]])).logits[0, -1].softmax(0)
    ordered, tokens = probabilities.sort(descending=True)
    nucleus = set(tokens[: int((ordered.cumsum(0) < 0.6).sum()) + 1].tolist())
    responses = sampled(policy, [[1, 7]] * 2000, limit=1, top_p=0.6)
    assert {r.ids[0] if r.ids else 2 for r in responses} == nucleus
    assert len(nucleus) < 12


def test_a_row_draws_by_its_own_seed_whatever_else_is_in_the_batch():
    """Long prompts, so that they are read in parts; responses long enough to outlive others."""
    policy = tiny_llama(50).double()
    prompts = [[1, *(3 + (i * j) % 40 for j in range(150 + i))] for i in range(1, 20)]
    limits = [5 + 3 * i for i in range(len(prompts))]
    together = sampled(policy, prompts, limit=limits)
    assert together == sampled(policy, prompts, limit=limits, batch_size=1)
    assert {r.finish_reason for r in together} == {"stop", "length"}


def test_rows_of_one_batch_end_at_their_own_tokens_alone(monkeypatch):
    """As rows of two data sets do; rows that leave, and the caches' segments, change nothing."""
    policy = tiny_llama(12).double()
    requests = [
        Request(row, [1, 3 + row % 9, 3 + row // 9], 20, row, (2,) if row % 2 else (5, 7))
        for row in range(30)
    ]

    def answered(batch_size):
        engine = TransformersEngine(
            policy, pad_token_id=0, sampling=GenerationConfig(), batch_size=batch_size
        )
        groups = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
        return [response for some in engine.sample(groups) for response in some]

    alone = answered(1)
    for segment in (1, 4, 1000):
        monkeypatch.setattr(transformers_engine, "SEGMENT", segment)
        assert answered(30) == alone
    stopped = [r for r in alone if r.finish_reason == "stop"]
    assert {r.row % 2 for r in stopped} == {0, 1}
    assert any({5, 7} & set(r.ids) for r in alone if r.row % 2), "an end of the others is none"
    assert any(2 in r.ids for r in alone if not r.row % 2)


@pytest.mark.parametrize("longer", [0, 1])
def test_prompts_read_in_parts_are_continued_as_those_read_at_once(monkeypatch, longer):
    """Each prompt longer than the one before, or all alike, without padding."""
    policy = tiny_llama(50).double()
    prompts = [[1, *(3 + (i + j) % 40 for j in range(35 - longer * (5 - i)))] for i in range(6)]
    lengths: list[int] = []
    forward = policy.forward

    def counted(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy, "forward", counted)
    whole = sampled(policy, prompts, limit=30)
    assert lengths[0] == 36
    lengths.clear()
    monkeypatch.setattr(transformers_engine, "CPU_PREFILL", 1)
    assert sampled(policy, prompts, limit=30) == whole
    assert lengths[:4] == [16, 16, 4, 1]


STEPS = st.one_of(st.integers(1, 100), st.sets(st.integers(0, 4)))


@settings(deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8), st.integers(0, 200), st.booleans())
def test_a_cache_with_room_holds_what_transformers_own_holds(steps, tokens, filled):
    """Growing by any number of tokens, some of five rows leaving in between; given room when empty
    or when filled."""
    torch.manual_seed(0)
    config = tiny_llama(12).config
    own, roomy = DynamicCache(config=config), DynamicCache(config=config)
    if not filled:
        give_room(roomy, tokens)
    rows = 5
    for step in steps:
        if isinstance(step, int):
            keys, values = torch.randn(2, rows, 2, step, 3)
            for layer in range(config.num_hidden_layers):
                expected = own.update(keys + layer, values, layer)
                got = roomy.update(keys + layer, values, layer)
                assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            assert roomy.get_seq_length() == own.get_seq_length()
            give_room(roomy, tokens)
            continue
        staying = [row for row in range(rows) if row not in step]
        if staying and own.get_seq_length():
            rows = len(staying)
            for cache in (own, roomy):
                cache.batch_select_indices(torch.tensor(staying))


@given(st.integers(1, 700), st.integers(0, 2**31), st.floats(0.1, 30))
def test_a_token_is_where_the_cumulative_distribution_passes_the_uniform_number(size, seed, scale):
    """Over vocabularies of one part and of several, with tokens that cannot be drawn."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(4, size, generator=generator)
    scores[torch.rand(4, size, generator=generator) < 0.4] = float("-inf")
    scores[:, seed % size] = 0.0
    seeds = [seed + row for row in range(4)]
    drawn = RowSampler(seeds, 2, 3, torch.device("cpu"))(
        torch.zeros(4, 3, dtype=torch.int64), scores
    ).argmax(dim=1)
    for row, token in enumerate(drawn.tolist()):
        probabilities = scores[row].double().softmax(0)
        assert probabilities[token] > 0
        uniform = torch.rand(
            3, generator=torch.Generator().manual_seed(seeds[row]), dtype=torch.float64
        )[1].item()
        below = probabilities[:token].sum().item()
        assert below - 1e-5 <= uniform <= below + probabilities[token].item() + 1e-5


@pytest.mark.parametrize("family", ["Gemma3", "GPT2", "Qwen3", "Mistral, window inside the row"])
@pytest.mark.parametrize("prefill", [2048, 1])
def test_families_with_windows_and_without_groups_are_decoded_as_their_logits_say(
    monkeypatch, family, prefill
):
    """Prompts read at once, and in parts of 16 tokens."""
    monkeypatch.setattr(transformers_engine, "CPU_PREFILL", prefill)
    policy = make_policy(family)
    prompts = [[1, *range(3, 3 + n)] for n in (40, 7, 21)]
    for prompt, response in zip(prompts, sampled(policy, prompts, temperature=0), strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for token in response.ids:
                assert policy(torch.tensor([ids])).logits[0, -1].argmax().item() == token
                ids.append(token)
        assert response.ids


def test_decoded_tokens_are_told_while_a_batch_is_in_work(monkeypatch):
    monkeypatch.setattr(transformers_engine, "SEGMENT", 4)
    engine = TransformersEngine(
        tiny_llama(50), pad_token_id=0, sampling=GenerationConfig(), batch_size=3
    )
    told: list[int] = []
    engine.on_tokens = told.append
    requests = [Request(row, [5, 6 + row], 10, row, (-5,)) for row in range(3)]
    batches = engine.sample([requests])
    assert told == [], "nothing is decoded yet"
    responses = next(batches)
    assert told == [12, 12, 6]
    assert sum(told) == sum(len(response.ids) for response in responses)
