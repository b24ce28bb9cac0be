"""Every backend of structured attention against its definition, gradients included."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import dense, like_flash_attns, like_torchs, visible
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.flash import attend_flash, obstacle_to_flash
from axolotl_tspin.training.attention.gathered import flattened, gathered
from axolotl_tspin.training.attention.interface import backend_of
from axolotl_tspin.training.attention.per_part import attend_per_part
from axolotl_tspin.training.attention.varlen import (
    attend_varlen,
    computed_type,
    obstacle_to_varlen,
    varlen_attn,
)
from axolotl_tspin.training.layouts import indices_of, pack_triplets
from axolotl_tspin.triplets import TripletTokens

BACKENDS = {
    "per part": attend_per_part,
    "varlen": functools.partial(attend_varlen, kernel=like_torchs),
    "flash": functools.partial(attend_flash, kernel=like_flash_attns),
}

tokens = st.lists(st.integers(3, 9), max_size=9)
prompts = st.lists(st.integers(3, 9), min_size=1, max_size=9)
batches = st.builds(
    functools.partial(pack_triplets, pad_token_id=0),
    st.lists(st.builds(TripletTokens, prompts, tokens, tokens, tokens), min_size=1, max_size=4),
    max_tokens_per_row=st.sampled_from([None, 1, 30]),
    pad_to_multiple_of=st.sampled_from([1, 8]),
)
windows = st.sampled_from([None, 1, 4, 100])


def mask_of(batch, window=None):
    indices = indices_of(batch)
    cumulative = indices.cu_queries.int(), indices.cu_keys.int()
    return StructuredMask(batch["layout"].segments, *cumulative, window)


def tensors(batch, *, heads=4, kv_heads=2, size=8, value_size=8, dtype=torch.float64):
    torch.manual_seed(0)
    rows, length = batch["input_ids"].shape
    shapes = ((heads, size), (kv_heads, size), (kv_heads, value_size))
    return [torch.randn(rows, h, length, d, dtype=dtype, requires_grad=True) for h, d in shapes]


def assert_is_the_definition(attend, batch, window, layer, **shape):
    inputs = tensors(batch, **shape)
    wanted_for = [*inputs, *([] if layer.sinks is None else [layer.sinks])]
    rows, length = batch["layout"].rows, batch["input_ids"].shape[1]
    expected = dense(
        *inputs,
        visible(rows, length, window),
        scale=layer.scale,
        softcap=layer.softcap,
        sinks=layer.sinks,
    )
    got = attend(*inputs, mask_of(batch, window), layer)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), wanted_for) for x in (got, expected)]
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_the_definition(backend):
    @settings(max_examples=60, deadline=None)
    @given(batches, windows, st.sampled_from([None, 0.3]), st.sampled_from([1, 2, 4]))
    def check(batch, window, scale, kv_heads):
        attend = BACKENDS[backend]
        assert_is_the_definition(attend, batch, window, Layer(scale), kv_heads=kv_heads)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value_size", [3, 12])
def test_values_may_have_another_size(backend, value_size):
    """As in multi-head latent attention."""
    triplets = [TripletTokens([1] * 5, [2] * 3, [], [4] * 6), TripletTokens([1], [], [], [])]
    batch = pack_triplets(triplets, pad_token_id=0)
    assert_is_the_definition(BACKENDS[backend], batch, None, Layer(), value_size=value_size)


@settings(max_examples=30, deadline=None)
@given(batches, windows, st.sampled_from([None, 2.0]), st.booleans())
def test_soft_caps_and_sinks_part_by_part(batch, window, softcap, sunk):
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if sunk else None
    layer = Layer(0.5, 0.0, softcap, sinks)
    assert_is_the_definition(attend_per_part, batch, window, layer)


@settings(max_examples=30, deadline=None)
@given(batches, windows)
def test_soft_caps_by_flash(batch, window):
    assert_is_the_definition(BACKENDS["flash"], batch, window, Layer(0.5, 0.0, 2.0))


class Counted(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self):
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


MANY = [TripletTokens([1] * 6, [2] * 4, [3] * 5, [4] * 3)] * 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backward_writes_whole_rows_for_a_part(backend):
    batch = pack_triplets(MANY, pad_token_id=0, max_tokens_per_row=40)
    inputs = tensors(batch)
    output = BACKENDS[backend](*inputs, mask_of(batch), Layer())
    if backend != "per part":  # what is not the kernel's
        inputs = inputs[1:]
        output = torch.cat([gathered(flattened(x), batch["layout"].segments) for x in inputs])
    with Counted() as counted:
        torch.autograd.grad(output.sum(), inputs)
    assert counted.calls.get("split_backward", 0) == 0
    assert not {"slice_backward", "select_backward", "index_put", "index_add"} & set(counted.calls)


def test_a_prompts_gradient_adds_up_in_float32():
    batch = pack_triplets([TripletTokens([1], [2], [3], [4])], pad_token_id=0)
    copies = torch.ones(7, 1, 1, dtype=torch.bfloat16)
    # x, then x with y, x with y′, x with y0: 256 + 1 rounds to 256 in bfloat16, three times.
    copies[[0, 1, 3, 5]] = torch.tensor([256.0, 1, 1, 1], dtype=torch.bfloat16)[:, None, None]
    keys = torch.zeros(4, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(gathered(keys, batch["layout"].segments), keys, copies)
    assert gradient.flatten().tolist() == [260, 1, 1, 1]  # 259 rounds to 260
    assert sum([torch.tensor(1.0).bfloat16()] * 3, copies[0, 0, 0]) == 256


@pytest.mark.skipif(varlen_attn is None, reason="torch has no variable-length attention")
@pytest.mark.parametrize("window", [None, 4])
def test_the_call_fits_torchs_own_function(window):
    """With tensors that have no data: shapes and types are computed, forward and backward."""
    batch = pack_triplets(MANY, pad_token_id=0)
    real, inputs = mask_of(batch, window), tensors(batch)
    inputs = [x.detach().to("meta", torch.bfloat16).requires_grad_() for x in inputs]
    cu = real.cu_queries.to("meta")
    output = attend_varlen(*inputs, StructuredMask(real.segments, cu, cu, window), Layer())
    assert output.shape == (*batch["input_ids"].shape, 4, 8)
    assert output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


def test_on_the_cpu_and_for_what_no_kernel_knows_it_is_done_part_by_part():
    query = torch.zeros(1, 4, 3, 8, dtype=torch.bfloat16)
    assert backend_of(query, query, Layer()) == "per part"
    wide = torch.zeros(1, 4, 3, 264, dtype=torch.bfloat16)
    sinks = torch.zeros(4)
    for obstacle in (obstacle_to_varlen, obstacle_to_flash):
        assert "Ampere" in obstacle(query, query, Layer())
        assert "float32" in obstacle(query.float(), query, Layer())
        assert "larger than 256" in obstacle(query, wide, Layer())
        assert "sinks" in obstacle(query, query, Layer(sinks=sinks))
    assert "soft caps" in obstacle_to_varlen(query, query, Layer(softcap=1.0))
    assert "dropout" in obstacle_to_varlen(query, query, Layer(dropout=0.1))
    assert "Ampere" in obstacle_to_flash(query, query, Layer(dropout=0.1, softcap=1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_the_fastest_that_knows_the_layer():
    query = torch.zeros(1, 4, 3, 8, dtype=torch.bfloat16, device="cuda")
    large = torch.zeros(1, 4, 3, 264, dtype=torch.bfloat16, device="cuda")
    assert backend_of(query, query, Layer()) == "varlen"
    assert backend_of(query.float(), query, Layer()) == "per part"
    assert backend_of(large, large, Layer()) == "per part"
    assert backend_of(query, query, Layer(softcap=2.0)) in ("flash", "per part")
    assert backend_of(query, query, Layer(sinks=query[0, :, 0, 0])) == "per part"


def test_float32_queries_under_autocast_are_computed_in_its_type():
    query = torch.zeros(1, 1, 1, 8)
    assert computed_type(query) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert computed_type(query) == torch.bfloat16
        batch = pack_triplets(MANY[:1], pad_token_id=0)
        q, k, v = tensors(batch, dtype=torch.float32)
        output = BACKENDS["varlen"](q, k, v.bfloat16(), mask_of(batch), Layer())
    assert output.dtype == torch.bfloat16
