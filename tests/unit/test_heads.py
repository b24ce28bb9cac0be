"""The ways through a head against all logits in float64: values, every gradient, and what they do
and hold."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.data import ROOT
from support.policies import COMMON, FAMILIES, VOCABULARY, make_family, tiny_llama
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import PhiConfig, PhiForCausalLM

from axolotl_tspin.training.heads import HEADS, MOST_LOGITS, chunked_head, plain_head
from axolotl_tspin.training.heads.base import chunk_count
from axolotl_tspin.training.heads.chunked import way_through
from axolotl_tspin.training.heads.frozen import frozen_logps
from axolotl_tspin.training.heads.in_place import fused_kernels
from axolotl_tspin.training.heads.linear import linear_logps
from axolotl_tspin.training.heads.recomputed import recomputed_logps
from axolotl_tspin.training.layouts import BatchIndices, indices_of, pad_triplets
from axolotl_tspin.triplets import TripletTokens

SIZE, WORDS = 6, 11
TRANSFORMS = [
    {},
    {"logit_scale": 0.3},
    {"logits_scaling": 3.0},
    {"final_logit_softcapping": 2.0},
]
WAYS = {"frozen": frozen_logps, "linear": linear_logps, "recomputed": recomputed_logps}


class Policy(nn.Module):
    """A head on hidden states (1, positions, size) that are there already."""

    def __init__(self, head: nn.Module, hidden: torch.Tensor, **config: float) -> None:
        super().__init__()
        self.head, self.hidden = head, hidden
        self.config = SimpleNamespace(vocab_size=WORDS, **config)
        self.config.get_text_config = lambda: self.config

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self) -> SimpleNamespace:
        return SimpleNamespace(logits=transformed(self.head(self.hidden), self.config))


def transformed(logits: torch.Tensor, config: SimpleNamespace) -> torch.Tensor:
    """As Cohere, Granite and Gemma2 do it."""
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def make_indices(lengths: list[int], positions: int, words: int = WORDS) -> BatchIndices:
    """Of responses at random positions; a position may predict several tokens."""
    total = sum(lengths)
    predicting, targets = torch.randint(positions, (total,)), torch.randint(words, (total,))
    none = torch.empty(0, dtype=torch.int64)
    return BatchIndices(predicting, targets, torch.tensor(lengths), none, none, none)


def make_policy(bias=False, dtype=torch.float64, positions=9, **config) -> Policy:
    head = nn.Linear(SIZE, WORDS, bias=bias, dtype=dtype)
    return Policy(head, torch.randn(1, positions, SIZE, dtype=dtype).requires_grad_(), **config)


def leaves_of(policy: Policy) -> list[torch.Tensor]:
    return [x for x in (policy.hidden, *policy.head.parameters()) if x.requires_grad]


def weighted(sums: torch.Tensor) -> torch.Tensor:
    """Any weights but equal ones."""
    return (sums * torch.linspace(-1, 1.5, len(sums), dtype=sums.dtype)).sum()


def reference(policy: Policy, indices: BatchIndices) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sums and gradients from all logits in float64, response after response."""
    leaves = leaves_of(policy)
    wide = {id(x): x.detach().double().requires_grad_(x.requires_grad) for x in leaves}

    def of(x):
        return wide.get(id(x), None if x is None else x.detach().double())

    logits = F.linear(of(policy.hidden)[0], of(policy.head.weight), of(policy.head.bias))
    logps = transformed(logits, policy.config).log_softmax(-1)[indices.predicting, indices.targets]
    sums = torch.stack([part.sum() for part in logps.split(indices.lengths.tolist())])
    gradients = torch.autograd.grad(weighted(sums), [wide[id(x)] for x in leaves])
    return sums.detach(), list(gradients)


def chunks_of(rows: int, words: int = WORDS):
    return mock.patch.dict(MOST_LOGITS, cpu=rows * words)


def run(policy, indices, head=chunked_head):
    sums = head(policy, policy, indices)
    return sums, list(torch.autograd.grad(weighted(sums), leaves_of(policy)))


def assert_exact(found, expected, tolerance=1e-10):
    """Gradients relative to the largest value of each."""
    torch.testing.assert_close(found[0].double(), expected[0], rtol=tolerance, atol=tolerance)
    for gradient, right in zip(found[1], expected[1], strict=True):
        scale = max(right.abs().max().item(), 1e-6)
        torch.testing.assert_close(gradient.double(), right, rtol=0, atol=tolerance * scale)


def way_of(policy: Policy) -> str:
    with policy.head.register_forward_pre_hook(lambda *_: None):
        way = way_through(policy.head, lambda x: x, policy.hidden, sharded=False)
    return next(name for name, function in WAYS.items() if function is way.func)


lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    lengths,
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(TRANSFORMS),
    st.sampled_from(
        [
            ("linear", True, True, True),
            ("linear", True, True, False),
            ("linear", True, False, True),
            ("linear", False, True, True),
            ("frozen", True, False, False),
        ]
    ),
)
def test_any_responses_and_chunks_are_exact(lengths, rows, bias, transform, case):
    way, *trained = case
    torch.manual_seed(sum(lengths))
    policy = make_policy(bias or trained[1:] == [False, True], **transform)
    for leaf, is_trained in zip((policy.hidden, *policy.head.parameters()), trained, strict=False):
        leaf.requires_grad_(is_trained)
    indices = make_indices(lengths, 9)
    with chunks_of(rows):
        assert way_of(policy) == way
        found = run(policy, indices)
    expected = reference(policy, indices)
    assert_exact(found, expected)
    assert_exact(run(policy, indices, plain_head), expected)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("rows", [4, 100], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.bfloat16, False, 3e-2),
        (torch.float32, True, 3e-2),
        (torch.float64, True, 1e-10),
    ],
    ids=["float32", "bfloat16", "float32 under autocast", "float64 under autocast"],
)
def test_every_precision(trained, rows, dtype, autocast, tolerance):
    torch.manual_seed(3)
    policy = make_policy(bias=True, dtype=dtype)
    policy.head.requires_grad_(trained)
    indices = make_indices([5, 0, 7, 3], 9)
    with chunks_of(rows), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sums = chunked_head(policy, policy, indices)
    gradients = torch.autograd.grad(weighted(sums), leaves_of(policy))
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    assert all(gradient.dtype == dtype for gradient in gradients)
    assert_exact((sums, gradients), reference(policy, indices), tolerance)


def test_the_weights_gradient_is_added_up_in_float32():
    """In bfloat16 the many small terms after a large one would be lost."""
    torch.manual_seed(0)
    policy = make_policy(dtype=torch.bfloat16, positions=1)
    indices = make_indices([1] + [1] * 600, 1)._replace(targets=torch.full((601,), 2))
    with chunks_of(1):
        sums = chunked_head(policy, policy, indices)
        sums.backward(torch.tensor([1.0] * 600 + [300.0]))
    wide = make_policy(positions=1)
    wide.head.load_state_dict(policy.head.state_dict())
    wide.hidden = policy.hidden.detach().double()
    chunked_head(wide, wide, indices).backward(torch.tensor([1.0] * 600 + [300.0]).double())
    expected = wide.head.weight.grad
    error = (policy.head.weight.grad.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-2


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_products_have_the_forward_passs_type_whatever_the_backward_passs(trained):
    torch.manual_seed(3)
    policy = make_policy(dtype=torch.float32)
    policy.head.requires_grad_(trained)
    indices = make_indices([5, 7], 9)
    with chunks_of(4):
        sums = chunked_head(policy, policy, indices)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(weighted(sums), leaves_of(policy))
    assert_exact((sums, gradients), reference(policy, indices), 1e-5)


class Counter(TorchDispatchMode):
    """Counts products that make or read so many logits; and elements of the largest tensor made."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        self.logits, self.products, self.largest = logits, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in (out, *args) if isinstance(x, torch.Tensor)]
        if function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            self.products += self.logits in sizes
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(
    ("trained", "chunks", "products"),
    [(False, 1, 2), (False, 4, 8), (True, 1, 3), (True, 4, 15)],
)
def test_products_and_the_largest_tensor(trained, chunks, products):
    words, rows = 500, 20
    policy = make_policy(dtype=torch.float32, positions=90)
    policy.head = nn.Linear(SIZE, words, bias=False).requires_grad_(trained)
    policy.config.vocab_size = words
    indices = make_indices([rows // 2] * chunks * 2, 90, words)
    with chunks_of(rows, words), Counter(rows * words) as counter:
        weighted(chunked_head(policy, policy, indices)).backward()
    assert counter.products == products
    assert counter.largest == rows * words


def test_a_frozen_head_is_called_once_a_chunk():
    policy = make_policy()
    policy.head.requires_grad_(False)
    rows: list[int] = []
    policy.head.register_forward_hook(lambda module, args, out: rows.append(out.shape[-2]))
    with chunks_of(5):
        run(policy, make_indices([7, 12], 9))
    assert rows == [5, 5, 5, 4, 1]  # the last one stands for all logits


def test_logits_are_not_moved_with_the_activations():
    """As with `activation_offloading`."""
    sizes: list[int] = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    for trained in (True, False):
        policy = make_policy()
        policy.head.requires_grad_(trained)
        with chunks_of(50), saved_tensors_hooks(pack, lambda tensor: tensor):
            run(policy, make_indices([20, 20], 9))
    assert sizes and max(sizes) < 40 * WORDS


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("rows", [4, 100], ids=["several chunks", "one chunk"])
def test_a_second_backward_pass_gives_the_same(trained, rows):
    policy = make_policy(bias=True)
    policy.head.requires_grad_(trained)
    with chunks_of(rows):
        loss = weighted(chunked_head(policy, policy, make_indices([5, 7], 9)))
    first = torch.autograd.grad(loss, leaves_of(policy), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, leaves_of(policy)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_hidden_states_from_a_checkpoint(reentrant, trained):
    policy = make_policy()
    policy.head.requires_grad_(trained)
    indices = make_indices([5, 7], 9)
    expected = reference(policy, indices)
    leaf = policy.hidden
    policy.hidden = checkpoint(lambda x: 1 * x, leaf, use_reentrant=reentrant)
    with chunks_of(4):
        weighted(chunked_head(policy, policy, indices)).backward()
    gradients = [leaf.grad, *([policy.head.weight.grad] if trained else [])]
    assert_exact((expected[0], gradients), expected)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_without_gradients_there_are_only_values(trained):
    policy = make_policy()
    policy.head.requires_grad_(trained)
    indices = make_indices([5, 0, 7], 9)
    expected, _ = reference(policy, indices)
    with chunks_of(4), torch.no_grad(), Counter(4 * WORDS) as counter:
        sums = chunked_head(policy, policy, indices)
    assert not sums.requires_grad and counter.products == 3
    torch.testing.assert_close(sums, expected)
    policy.requires_grad_(False)
    policy.hidden = policy.hidden.detach()
    with chunks_of(4):
        sums = chunked_head(policy, policy, indices)
    assert not sums.requires_grad
    torch.testing.assert_close(sums, expected)


class Doubled(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def doubling_hook(head):
    head.register_forward_hook(lambda module, args, out: 2 * out)


def doubling_forward(head):
    plain = head.forward
    head.forward = lambda hidden: 2 * plain(hidden)


def doubling_class(head):
    head.__class__ = Doubled


def doubled_gradient(head):
    head.register_full_backward_hook(lambda module, given, out: (given[0] * 2,))


@pytest.mark.parametrize(
    "change", [doubling_class, doubling_hook, doubling_forward, doubled_gradient]
)
def test_a_trained_head_that_does_more_is_called(change):
    torch.manual_seed(0)
    policy = make_policy()
    change(policy.head)
    indices = make_indices([5, 0, 7], 9)
    expected = run(policy, indices, plain_head)
    with chunks_of(4):
        assert way_of(policy) == "recomputed"
        assert_exact(run(policy, indices), (expected[0].detach(), expected[1]))


def test_a_tied_head_adds_to_the_embedding():
    torch.manual_seed(0)
    embedding = nn.Embedding(WORDS, SIZE, dtype=torch.float64)
    ids = torch.randint(WORDS, (1, 9))
    head = nn.Linear(SIZE, WORDS, bias=False)
    head.weight = embedding.weight
    indices = make_indices([5, 0, 7], 9)
    gradients = []
    for way in HEADS.values():
        policy = Policy(head, embedding(ids).sin())
        with chunks_of(4):
            weighted(way(policy, policy, indices)).backward()
        gradients.append(embedding.weight.grad)
        embedding.weight.grad = None
    torch.testing.assert_close(*gradients)


def make_phi() -> nn.Module:
    torch.manual_seed(0)
    policy = PhiForCausalLM(PhiConfig(**COMMON | {"attn_implementation": "sdpa"})).eval()
    assert policy.lm_head.bias is not None
    nn.init.normal_(policy.lm_head.bias)
    return policy.double()


def lora(*targets: str, **settings) -> nn.Module:
    config = LoraConfig(
        r=4, target_modules=targets, init_lora_weights=False, lora_dropout=0.0, **settings
    )
    return get_peft_model(tiny_llama(VOCABULARY).double().eval(), config).double()


POLICIES = {
    **{
        family: lambda family=family: make_family(family, torch.float32)
        for family in FAMILIES
        if family.startswith(("Llama", "Gemma", "GPT2", "Cohere", "Granite"))
    },
    "Phi, bias": make_phi,
    "LoRA": lambda: lora("q_proj"),
    "LoRA on the head": lambda: lora("q_proj", "lm_head"),
    "LoRA, head trained in full": lambda: lora("q_proj", modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_of_transformers_and_adapters(name):
    policy = POLICIES[name]()
    triplets = [
        TripletTokens([1, 5, 6], [7, 8, 2, 9], [9, 2], [10, 11, 12, 13, 14]),
        TripletTokens([1, 20], [21], [], [22, 2]),
    ]
    batch = pad_triplets(triplets, pad_token_id=0)
    indices = indices_of(batch)

    def forward():
        return policy(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )

    found = []
    for head in (chunked_head, plain_head):
        policy.zero_grad()
        with chunks_of(5, VOCABULARY):
            sums = head(policy, forward, indices)
        weighted(sums).backward()
        found.append((sums.detach(), [p.grad for p in policy.parameters() if p.grad is not None]))
    tolerance = 1e-9 if name == "Phi, bias" else 1e-4
    torch.testing.assert_close(*(sums for sums, _ in found), rtol=tolerance, atol=tolerance)
    largest = max(gradient.abs().max().item() for gradient in found[1][1])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_head(bits):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    size, words = 64, 128
    plain = nn.Linear(size, words, bias=False, dtype=torch.bfloat16)
    if bits == 8:
        head = bnb.nn.Linear8bitLt(size, words, bias=False, has_fp16_weights=False)
    else:
        head = bnb.nn.Linear4bit(
            size, words, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
    head.load_state_dict(plain.state_dict())
    hidden = torch.randn(1, 30, size, dtype=torch.bfloat16)
    try:
        head = head.to("cpu").requires_grad_(False)
        head(hidden[:, :1])
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"bitsandbytes has no {bits}-bit product on this CPU: {error}")
    indices = make_indices([9, 0, 12], 30, words)
    found = []
    for way in (chunked_head, plain_head):
        policy = Policy(head, hidden.clone().requires_grad_())
        policy.config.vocab_size = words
        if way is chunked_head:
            assert way_of(policy) == "frozen"
        with chunks_of(6, words):
            found.append(run(policy, indices, way))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-2, atol=1e-2)
    scale = found[1][1][0].abs().max().item()
    torch.testing.assert_close(found[0][1][0], found[1][1][0], rtol=0, atol=3e-2 * scale)


@pytest.mark.parametrize(
    ("positions", "kind", "chunks"),
    [(0, "cpu", 1), (262, "cpu", 2), (261, "cpu", 1), (2092, "cuda", 1), (2094, "cuda", 2)],
)
def test_chunks_are_sized_for_the_device(positions, kind, chunks):
    assert chunk_count(positions, 128_256, torch.device(kind)) == chunks


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture(scope="module")
def errors_under_the_interpreter() -> dict[str, dict[str, float]]:
    """Triton decides when it is imported whether it interprets: hence another process."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }
    script = ROOT / "tests/support/triton_head.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_triton_kernels_are_exact(dtype, errors_under_the_interpreter):
    rounding = torch.finfo(getattr(torch, dtype)).eps
    cases = {k: v for k, v in errors_under_the_interpreter.items() if k.startswith(dtype)}
    assert len(cases) > 15
    for name, errors in cases.items():
        for what, error in errors.items():
            limit = 2e-7 if what == "value" else max(2 * rounding, 3e-6)
            assert error <= limit, (name, what)


@needs_triton
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_triton_kernels_compile_for_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from axolotl_tspin.training.heads import fused

    columns = {"logits": f"*{name}", "targets": "*i64", "logps": "*fp32", "normalisers": "*fp32"}
    columns |= {"gradient": "*fp32", "stride": "i64", "vocabulary": "i32", "BLOCK": "constexpr"}
    for kernel in (fused._forward_kernel, fused._backward_kernel):
        signature = {argument: columns[argument] for argument in kernel.arg_names}
        source = ASTSource(kernel, signature, {"BLOCK": fused.LAUNCH["BLOCK"]})
        options = {"num_warps": fused.LAUNCH["num_warps"]}
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assert compiled.asm["cubin"]


@needs_triton
def test_triton_takes_what_is_on_cuda():
    from axolotl_tspin.training.heads import fused

    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert fused_kernels(torch.empty(2, 5, dtype=dtype, device="cuda")) is fused.KERNELS
        assert fused_kernels(torch.empty(2, 5, dtype=torch.float64, device="cuda")) is None
        assert fused_kernels(torch.empty(5, 2, device="cuda").T) is None
    assert fused_kernels(torch.empty(2, 5)) is None
