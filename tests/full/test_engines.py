"""What every engine keeps to, with the real engines: transformers, vLLM and a server of vLLM's.

The latter two run where AXOLOTL_TSPIN_VLLM names the bin folder of an environment that has vLLM
(scripts/vllm_environment.sh makes one for the CPU).
"""

import contextlib
import json
import os
import socket
import subprocess
from types import SimpleNamespace

import httpx
import pytest
import tenacity
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.data import WORD_PROBLEMS
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.engines import vllm_engine
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.server_engine import ServerEngine
from axolotl_tspin.generation.engines.transformers_engine import TransformersEngine
from axolotl_tspin.generation.engines.vllm_engine import load_vllm
from axolotl_tspin.run.directory import Policy
from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import TripletTokens

VLLM = os.environ.get("AXOLOTL_TSPIN_VLLM")
needs_vllm = pytest.mark.skipif(
    VLLM is None, reason="AXOLOTL_TSPIN_VLLM names no environment with vLLM"
)
BACKENDS = [
    "transformers",
    pytest.param("vllm", marks=[needs_vllm, pytest.mark.e2e]),
    pytest.param("server", marks=[needs_vllm, pytest.mark.e2e]),
]
LENGTH = 160


@pytest.fixture(scope="module")
def policy(tmp_path_factory, tokenizer) -> Policy:
    """A small random Llama of a shape that vLLM's CPU kernels take (heads of 32)."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LENGTH,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    folder = tmp_path_factory.mktemp("engines") / "policy"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(str(folder))


@pytest.fixture(scope="module")
def adapted(policy, tmp_path_factory) -> Policy:
    """The same Llama under a LoRA adapter that changes what it says."""
    torch.manual_seed(4)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(policy.base_model), lora)
    folder = tmp_path_factory.mktemp("engines") / "adapter"
    model.save_pretrained(folder)
    return Policy(policy.base_model, str(folder))


@pytest.fixture(scope="module")
def requests(tokenizer) -> list[Request]:
    """48 prompts of different lengths and limits; token 2 ends a response, and so does 7."""
    rows = [json.loads(line) for line in WORD_PROBLEMS.read_text().splitlines()[:48]]
    prompts = [tokenizer(row["messages"][0]["content"])["input_ids"][:60] for row in rows]
    return [
        Request(row, [1, *prompt], 5 + row % 20, 1000 + row, (2, 7))
        for row, prompt in enumerate(prompts)
    ]


@contextlib.contextmanager
def engine_of(backend: str, policy: Policy, temperature: float):
    with contextlib.ExitStack() as stack:
        if backend == "transformers":
            engine = TransformersEngine(
                load(policy),
                pad_token_id=0,
                sampling=GenerationConfig(temperature=temperature),
                batch_size=16,
            )
        elif backend == "vllm":
            config = GenerationConfig(
                backend="vllm", temperature=temperature, python=f"{VLLM}/python"
            )
            engine = load_vllm(policy, config, axolotl_cfg())
        else:
            engine = ServerEngine(
                GenerationConfig(
                    backend="server",
                    temperature=temperature,
                    servers=[f"http://127.0.0.1:{stack.enter_context(vllm_server(policy))}/v1"],
                ),
                policy=policy,
                strangers=[],
                tokenize=lambda prompt_ids, text: list(text),
            )
        stack.callback(engine.close)
        yield engine


def load(policy: Policy):
    model = AutoModelForCausalLM.from_pretrained(policy.base_model, dtype=torch.float32)
    return PeftModel.from_pretrained(model, policy.adapter_dir) if policy.adapter_dir else model


def axolotl_cfg() -> SimpleNamespace:
    """The keys of Axolotl's configuration that `load_vllm` reads."""
    block = SimpleNamespace(
        dtype=None,
        to_dict=lambda: {"enforce_eager": True, "max_model_len": LENGTH},
    )
    return SimpleNamespace(
        vllm=block,
        bf16=False,
        fp16=False,
        trust_remote_code=False,
        load_in_8bit=False,
        load_in_4bit=False,
        revision_of_model=None,
        base_model="",
        sequence_len=LENGTH,
    )


@contextlib.contextmanager
def vllm_server(policy: Policy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(f"{VLLM}/vllm", "serve", policy.base_model),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", str(LENGTH), "--enforce-eager"),
        *("--generation-config", "vllm", "--no-enable-chunked-prefill"),
    ]
    if policy.adapter_dir:
        command += ["--enable-lora", "--lora-modules", f"policy={policy.adapter_dir}"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def answers(engine, requests):
    groups = [
        requests[i : i + engine.group_size] for i in range(0, len(requests), engine.group_size)
    ]
    responses = [response for some in engine.sample(iter(groups)) for response in some]
    assert sorted(r.row for r in responses) == sorted(r.row for r in requests), "each row once"
    return {response.row: response for response in responses}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_keeps_the_protocol(backend, policy, requests):
    with engine_of(backend, policy, temperature=1.0) as engine:
        sampled = answers(engine, requests)
        again = answers(engine, requests)
        reasons = set()
        for request in requests:
            response = sampled[request.row]
            reasons.add(response.finish_reason)
            assert response.finish_reason in ("stop", "length")
            assert not set(response.ids) & set(request.stop_ids), "the end is no part of it"
            if response.finish_reason == "length":
                assert len(response.ids) == request.max_new_tokens
            else:
                assert len(response.ids) < request.max_new_tokens
        assert reasons == {"stop", "length"}
        assert again == sampled, "seeds decide"
        assert len({tuple(r.ids[:2]) for r in sampled.values()}) > 20, "and differ"
        assert engine.name.split()[0] in ("transformers", "vllm", "server")


@needs_vllm
@pytest.mark.parametrize("which", ["policy", "adapted"])
def test_greedy_responses_are_the_same_with_every_engine(which, requests, request):
    wanted = request.getfixturevalue(which)
    greedy = {}
    for backend in ("transformers", "vllm", "server"):
        with engine_of(backend, wanted, temperature=0.0) as engine:
            greedy[backend] = answers(engine, requests)
    if which == "adapted":
        with engine_of("transformers", Policy(wanted.base_model), temperature=0.0) as engine:
            assert answers(engine, requests) != greedy["transformers"], "the adapter says otherwise"
    for backend in ("vllm", "server"):
        same = sum(greedy[backend][row] == greedy["transformers"][row] for row in range(48))
        assert same >= 0.95 * 48, f"{same} of 48 with {backend}"


@needs_vllm
def test_training_gives_a_response_the_log_probability_that_the_engine_reports(
    policy, requests, monkeypatch
):
    """vLLM's own report, from the offline worker and from the server, against `score_triplets`."""
    reported: dict[str, dict[int, tuple[list[int], float]]] = {"vllm": {}, "server": {}}
    plain = vllm_engine.sampling_params
    monkeypatch.setattr(vllm_engine, "sampling_params", lambda c: plain(c) | {"logprobs": 0})
    with engine_of("vllm", policy, temperature=1.0) as engine:
        receive = engine._next

        def remember():
            answer = receive()
            if "logps" in answer:
                reported["vllm"][answer["row"]] = (answer["ids"], sum(answer["logps"]))
            return answer

        monkeypatch.setattr(engine, "_next", remember)
        answers(engine, requests)
    with vllm_server(policy) as port, httpx.Client(timeout=60) as client:
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        for request in requests:
            body = {
                "model": policy.base_model,
                "prompt": request.prompt_ids,
                "max_tokens": request.max_new_tokens,
                "stop_token_ids": list(request.stop_ids),
                "seed": request.seed,
                "logprobs": 0,
                "return_token_ids": True,
            }
            answer = client.post(f"http://127.0.0.1:{port}/v1/completions", json=body).json()
            [choice] = answer["choices"]
            total = sum(choice["logprobs"]["token_logprobs"])
            reported["server"][request.row] = (choice["token_ids"], total)
    model = load(policy)
    for responses in reported.values():
        assert len(responses) == len(requests)
        triplets = [
            TripletTokens(r.prompt_ids, *[responses[r.row][0] or [2]] * 3) for r in requests
        ]
        ours = score_triplets(model, triplets, pad_token_id=0, batch_size=8)[:, 1]
        theirs = torch.tensor([responses[r.row][1] for r in requests], dtype=torch.float64)
        # float32 sums of up to 24 log-probabilities of about −5.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def wait_for(url: str) -> None:
    tenacity.retry(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(180))(
        lambda: httpx.get(url).raise_for_status()
    )()
