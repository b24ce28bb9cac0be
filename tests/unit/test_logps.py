"""Response log-probabilities against a float64 reference that goes token by token."""

import math

import pytest
import torch
from support.policies import tiny_llama

from axolotl_tspin.training.heads import HEADS, token_logps
from axolotl_tspin.training.heads.in_place import in_place_logps
from axolotl_tspin.training.layouts import pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.triplets import TripletTokens


def reference_logp(logits: torch.Tensor, labels: list[int]) -> float:
    """Σ over response tokens of logit − log Σ exp(logit), one row, in Python floats."""
    total = 0.0
    for position in range(1, len(labels)):
        if labels[position] != -100:
            row = logits[position - 1].double().tolist()
            top = max(row)
            normaliser = top + math.log(sum(math.exp(x - top) for x in row))
            total += row[labels[position]] - normaliser
    return total


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("token_logps", [token_logps, in_place_logps])
def test_token_log_probabilities(token_logps, dtype, tolerance, scale):
    torch.manual_seed(0)
    logits = (torch.randn(4, 7) * scale).to(dtype)
    targets = torch.tensor([3, 0, 6, 2])
    logps = token_logps(logits, targets)
    assert logps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for row, target in enumerate(targets.tolist()):
        expected = reference_logp(torch.stack([logits[row]] * 2), [-100, target])
        assert logps[row].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("token_logps", [token_logps, in_place_logps])
@pytest.mark.parametrize("rows", [4, 150])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_is_the_indicator_less_the_softmax(token_logps, rows, scale):
    torch.manual_seed(1)
    leaf = torch.randn(rows, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (rows,))
    weights = torch.randn(rows, dtype=torch.float64)
    (token_logps(leaf * scale, targets) * weights).sum().backward()
    softmax = (leaf.detach() * scale).softmax(1)
    expected = torch.nn.functional.one_hot(targets, 7) - softmax
    torch.testing.assert_close(leaf.grad, expected * weights[:, None] * scale)


def test_logits_that_became_their_gradient_serve_no_second_pass():
    leaf = torch.randn(3, 7, requires_grad=True)
    logps = in_place_logps(leaf * 1.0, torch.tensor([1, 2, 3])).sum()
    logps.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        logps.backward()


@pytest.mark.parametrize("head", HEADS)
def test_a_policys_batch_equals_its_triplets_one_row_at_a_time(head):
    policy = tiny_llama(50).double().eval()
    triplets = [
        TripletTokens([1, 5, 6], [7, 8, 2], [9, 2], [10, 11, 12, 13]),
        TripletTokens([1, 20], [21], [], [22, 2]),  # one token, and none
    ]
    batch = pad_triplets(triplets, pad_token_id=0, pad_to_multiple_of=8)
    logps, counts = triplet_logps(policy, batch, head=head)
    assert counts.tolist() == [[3, 2, 4], [1, 0, 2]]
    for i, triplet in enumerate(triplets):
        for j, response in enumerate(triplet[1:]):
            ids = [*triplet.prompt, *response]
            labels = [-100] * len(triplet.prompt) + list(response)
            with torch.no_grad():
                logits = policy(torch.tensor([ids])).logits[0]
            assert logps[i, j].item() == pytest.approx(reference_logp(logits, labels), abs=1e-9)
