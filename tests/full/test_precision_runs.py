"""A run in bf16 and in fp16, all weights and LoRA: it samples, selects, scores and compares."""

import pytest
import torch
from axolotl.cli.config import load_cfg
from peft import LoraConfig, get_peft_model
from support.policies import tiny_llama
from support.runs import pretend_trained
from transformers.models.llama.modeling_llama import LlamaAttention

from axolotl_tspin.diagnostics.comparison import compare
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.loading import load_policy
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.logps import LOGPS
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.triplets import TripletTokens

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

LORA = {"adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_target_modules": ["q_proj"]}


@pytest.fixture(autouse=True)
def _attention_as_it_was():
    """Axolotl's LoRA kernels patch the class, after which no model without an adapter runs."""
    before = dict(vars(LlamaAttention))
    yield
    for name in vars(LlamaAttention).keys() - before.keys():
        delattr(LlamaAttention, name)
    LlamaAttention.forward = before["forward"]


@pytest.fixture(params=["all weights", "lora"])
def keys(request) -> dict:
    return LORA if request.param == "lora" else {}


def greedy(make_yaml, precision: str, **keys):
    """A run whose second iteration has its reference and its selection scored."""
    generation = {"max_new_tokens": 12, "temperature": 0.0, "select": "advantage", "fraction": 0.5}
    t_spin = {"iterations": 2, "method": "t_spin_ref", "generation": generation}
    other = "fp16" if precision == "bf16" else "bf16"
    return make_yaml(rows=6, t_spin=t_spin, **{precision: True, other: False}, **keys)


def put_adapter(run: RunDirectory, base_model, number: int) -> None:
    """A LoRA adapter in place of iteration `number`'s training."""
    torch.manual_seed(number)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    iteration = run.iteration(number)
    get_peft_model(tiny_llama(600), config).save_pretrained(iteration.model)
    iteration.check_trained()
    policy = Policy(str(base_model), str(iteration.model))
    fingerprint = policy_fingerprint(policy, run.fingerprints)
    iteration.mark_trained({"policy": fingerprint, "log_history": []})


def triplets_of(run: RunDirectory, number: int) -> list[TripletTokens]:
    rows = read_table(run.iteration(number).triplets("train"))[0].to_pylist()
    names = ("prompt_ids", "annotated_ids", "synthetic_ids", "proto_synthetic_ids")
    return [TripletTokens(*(row[name] for name in names)) for row in rows]


def token_logps(policy, precision: torch.dtype | None, ids: list[int]) -> torch.Tensor:
    """(len(ids) − 1, vocabulary) log π of what may follow, in a plain forward."""
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision is not None):
        return policy(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def plain_logps(policy, precision: torch.dtype | None, triplet: TripletTokens) -> list[float]:
    prompt, *responses = triplet
    sums = []
    for response in responses:
        logps = token_logps(policy, precision, prompt + response)[len(prompt) - 1 :]
        sums.append(logps.gather(1, torch.tensor(response)[:, None]).sum().item())
    return sums


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_samples_selects_and_scores(make_yaml, tmp_path, policy_dir, precision, keys):
    path, run = greedy(make_yaml, precision, **keys), RunDirectory(tmp_path / "out")
    dtype = PRECISIONS[precision]
    raw = read_yaml(path)
    prepare_generation(raw)
    policy = load_policy(load_cfg(raw))
    assert policy.precision is dtype

    assert generate(path).due == "train"
    triplets = triplets_of(run, 0)
    # Greedy samples are the largest logits of the plain forward in this precision, to its rounding.
    for triplet in triplets:
        prompt, response = triplet.prompt, triplet.synthetic
        logps = token_logps(policy.model, dtype, prompt + response)[len(prompt) - 1 :]
        chosen = logps.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert (logps.max(dim=1).values - chosen).max() < 0.1

    # The loaded policy scores as the plain forward does, and not as one in float32.
    ours = policy.score(triplets)
    plain = torch.tensor([plain_logps(policy.model, dtype, t) for t in triplets])
    exact = torch.tensor([plain_logps(policy.model.float(), None, t) for t in triplets])
    assert (ours - exact).abs().max() > 1e-3
    assert (ours - exact).abs().max() < 0.02 * exact.abs().max()
    assert (ours - plain).abs().max() < 0.02 * exact.abs().max()

    put = put_adapter if keys else lambda run, base, number: pretend_trained(run, number)
    put(run, policy_dir, 0)
    assert generate(path).generated == 3
    put(run, policy_dir, 1)
    comparisons = compare(path)
    assert [c.policy for c in comparisons] == ["before", "after"] * 2

    # The iteration's reference and `compare` come from one policy, loaded in one way.
    ((_, reference),) = RunDirectory(tmp_path / "out", reference_window=0).references(1)
    columns = read_table(reference)[0].to_pydict()
    means = [sum(columns[n]) / 6 for n in LOGPS]
    assert comparisons[2].logps == pytest.approx(means, abs=1e-6)
