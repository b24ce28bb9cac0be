"""Waits, masks and memory of sampling with transformers, counted on the CPU."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.policies import make_family, tiny_llama
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    TopPLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.engines import decoding, transformers_engine
from axolotl_tspin.generation.engines.decoding import (
    FiniteRows,
    RowSampler,
    RowStops,
    decoding_attention,
    use_decoding_attention,
)
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.transformers_engine import (
    TransformersEngine,
    batch_bytes,
    batch_size_for,
    fitting_rows,
)

ENDLESS = (99999,)
"""Stop tokens that no policy here can draw."""


class Watch(TorchDispatchMode):
    """Counts reads of single numbers, tensors from lists and copies between devices; keeps the
    shape of the largest mask."""

    def __init__(self):
        super().__init__()
        self.transfers, self.mask = 0, torch.Size()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            self.transfers += 1
        if isinstance(result, torch.Tensor):
            given = [x for x in args if isinstance(x, torch.Tensor) and x.ndim]
            self.transfers += any(x.device != result.device for x in given)
            if result.dtype == torch.bool and result.numel() > self.mask.numel():
                self.mask = result.shape
        return result


def answer(policy, prompts, limit, **sampling):
    engine = TransformersEngine(
        policy, pad_token_id=0, sampling=GenerationConfig(**sampling), batch_size=len(prompts)
    )
    return list(engine.sample([[Request(i, p, limit, i, ENDLESS) for i, p in enumerate(prompts)]]))


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=["plain", "nucleus"]
)
def test_a_token_costs_no_more_transfers_than_in_transformers_own_generation(monkeypatch, sampling):
    monkeypatch.setattr(transformers_engine, "SEGMENT", 1000)
    policy = tiny_llama(50).eval()
    use_decoding_attention(policy)
    prompts = [[0] * (i % 3) + [1] * (5 - i % 3) for i in range(6)]

    def ours(limit):
        answer(policy, [[t for t in prompt if t] for prompt in prompts], limit, **sampling)

    def plain(limit):
        ids = torch.tensor(prompts)
        policy.generation_config.eos_token_id = None
        policy.generate(
            ids,
            attention_mask=(ids != 0).long(),
            logits_processor=LogitsProcessorList([TopPLogitsWarper(0.9)] if sampling else []),
            do_sample=False,
            max_new_tokens=limit,
        )

    def transfers_of_twenty_tokens(generation):
        counts = []
        for limit in (10, 30):
            with Watch() as watch:
                generation(limit)
            counts.append(watch.transfers)
        return counts[1] - counts[0]

    assert 0 < transfers_of_twenty_tokens(ours) <= transfers_of_twenty_tokens(plain)


def test_new_tokens_are_read_once_for_the_whole_batch(monkeypatch):
    reads = []
    tolist = torch.Tensor.tolist

    def counted(tensor):
        reads.append(tensor.shape)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(transformers_engine, "SEGMENT", 4)
    answer(tiny_llama(50), [[1, 3 + i] for i in range(6)], 10)
    assert reads == [(6, 5), (6, 5), (6, 3)], "with a flag each: the row's logits were finite"


def drawn(device, steps=3):
    """Draw from four rows, then from two of them."""
    sampler = RowSampler(range(4), 2, 2 * steps, device)
    stops, finite = RowStops([[2], [3, 4], [2], [5]], device), FiniteRows(4, device)
    ids = torch.zeros(4, 2, dtype=torch.long, device=device)
    scores, staying = torch.randn(4, 600, device=device), torch.tensor([0, 2], device=device)

    def draw():
        nonlocal ids, scores
        for _ in range(steps):
            token = sampler(ids, finite(ids, scores)).argmax(dim=1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
            stops(ids, None)
        sampler.keep(staying)
        stops.keep(staying)
        finite.keep(staying)
        ids, scores = ids[staying], scores[staying]
        sampler(ids, finite(ids, scores))

    return draw


def test_drawing_and_stopping_touch_no_other_device():
    """Tensors without data: reading one fails, and so does mixing them with the CPU's."""
    draw = drawn(torch.device("meta"))
    with Watch() as watch:
        draw()
    assert watch.transfers == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits are only seen on a GPU")
def test_drawing_and_stopping_do_not_wait_for_the_gpu():
    draw = drawn(torch.device("cuda"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_mask_is_repeated_for_grouped_heads(monkeypatch):
    """Four query heads on two key heads; the last of three parts of 16 tokens sees all 48."""
    monkeypatch.setattr(transformers_engine, "CPU_PREFILL", 1)
    with Watch() as watch:
        answer(tiny_llama(50), [[1] * (48 - i) for i in range(6)], 2)
    assert watch.mask == (6, 1, 16, 48)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_grouped_heads_is_transformers_own(length, masked):
    """New tokens under a mask of padding and causes, four query heads to a key head."""
    torch.manual_seed(0)
    query = torch.randn(3, length, 8, 4).transpose(1, 2)
    key, value = torch.randn(3, 2, 9, 4), torch.randn(3, 2, 9, 4)
    mask = torch.ones(3, 1, length, 9, dtype=torch.bool).tril(9 - length)
    mask[0, ..., :4] = False
    module = torch.nn.Module()
    module.num_key_value_groups = 4
    arguments = (module, query, key, value, mask if masked else None)
    ours, _ = decoding_attention(*arguments, scaling=0.3)
    expected, _ = sdpa_attention_forward(*arguments, scaling=0.3)
    torch.testing.assert_close(ours, expected)


def peak_bytes(path, call):
    """Most bytes that tensors of a call hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    profiled.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def counted_and_held(monkeypatch, path, policy, rows, prompt, limit, part, **sampling):
    """Bytes by the arithmetic, and by a run that reads as many tokens at a time as it says, with
    less room in the cache so that a few tokens fill it."""
    monkeypatch.setattr(decoding, "ROOM", 16)
    monkeypatch.setattr(transformers_engine, "ROOM", 16)
    monkeypatch.setattr(transformers_engine, "CPU_PREFILL", part)
    monkeypatch.setattr(transformers_engine, "CUDA_PREFILL", part)
    prompts = [[1] * (prompt - i % 2) for i in range(rows)]
    answer(policy, prompts, 1)  # what is made once is not counted
    held = peak_bytes(path, lambda: answer(policy, prompts, limit, **sampling))
    return batch_bytes(policy.config, policy.dtype.itemsize, rows, prompt + limit), held


SHAPES = {
    "cache that grows": ({"num_hidden_layers": 16}, (16, 20, 18, 256), {}, 1.3),
    "cache of prompts": ({"num_hidden_layers": 8}, (16, 60, 3, 256), {}, 1.4),
    "tokens drawn": (
        {"vocab_size": 20000},
        (32, 4, 3, 4096),
        {"temperature": 0.7, "top_p": 0.9},
        1.25,
    ),
    "masks": ({}, (4, 500, 3, 1024), {}, 2.0),
    "MLP": ({"intermediate_size": 1024}, (16, 120, 3, 1024), {}, 1.5),
    "queries": ({"num_attention_heads": 32, "head_dim": 8}, (16, 120, 3, 1920), {}, 1.75),
}
"""What a batch mostly holds: sizes, (rows, tokens of prompt and response, part), settings, and the
most that may be counted for a byte."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_holds_what_is_counted_for_it(monkeypatch, tmp_path, name, dtype):
    sizes, shape, sampling, most = SHAPES[name]
    plain = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": sizes.get("num_attention_heads", 4),
    }
    policy = LlamaForCausalLM(LlamaConfig(**plain | sizes)).to(dtype)
    counted, held = counted_and_held(monkeypatch, tmp_path / "t", policy, *shape, **sampling)
    assert held <= counted <= most * held


@pytest.mark.parametrize(
    "family", ["Gemma3", "Mistral, window inside the row", "GPT2", "Mixtral", "Qwen3Moe"]
)
def test_no_family_holds_more_than_is_counted(monkeypatch, tmp_path, family):
    policy = make_family(family, torch.float32)
    if family == "GPT2":
        del policy.config.intermediate_size  # it is four times as wide as hidden states
    counted, held = counted_and_held(monkeypatch, tmp_path / "t", policy, 16, 100, 3, 512)
    assert held <= counted


def test_a_latent_cache_is_counted_as_what_it_is(monkeypatch, tmp_path):
    """It is small, and expanded to keys and values for one layer at a time."""
    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=16,
        num_key_value_heads=16,
        kv_lora_rank=16,
        q_lora_rank=None,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    )
    policy = DeepseekV3ForCausalLM(config)
    counted, held = counted_and_held(monkeypatch, tmp_path / "t", policy, 16, 40, 20, 256)
    assert held <= counted <= 1.5 * held


def test_automatic_batches_follow_from_shape_and_whole_memory(monkeypatch):
    """A 0.5B model of 24 layers with two key heads, in bfloat16, on devices of 8 to 80 GiB."""
    config = LlamaConfig(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    )
    weights = 10**9
    rows = {size: fitting_rows(config, 2, 4096, size << 30, weights) for size in (1, 8, 24, 80)}
    for size, fitting in rows.items():
        half = ((size << 30) - weights) / 2
        assert fitting == 1 or batch_bytes(config, 2, fitting, 4096) <= half
        assert fitting == 256 or batch_bytes(config, 2, 2 * fitting, 4096) > half
    assert list(rows.values()) == sorted(rows.values())
    assert rows[1] == 1
    assert rows[80] == 256

    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 << 30)
    )
    weight = torch.nn.Parameter(torch.empty(weights // 2, dtype=torch.bfloat16, device="meta"))
    model = SimpleNamespace(
        device=torch.device("cuda"),
        dtype=weight.dtype,
        config=config,
        parameters=lambda: iter([weight]),
    )
    assert batch_size_for(model, "auto", 4096) == rows[24]
    # Autocast keeps a copy of a float32 weight in half its bytes.
    half = torch.nn.Parameter(torch.empty(10, device="meta"))
    model.parameters = lambda: iter([half])
    assert transformers_engine.weight_bytes(model) == 60
