"""The loss of eq. 7 against a float64 reference written from the paper alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.training.loss import t_spin_loss

logp = st.floats(-60, 0)
BETAS = (0.0, 0.1, 1.0)


def reference_ell(a: float, loss: str) -> float:
    if loss == "exponential":
        return math.exp(-a)
    return math.log1p(math.exp(-a)) if a > 0 else -a + math.log1p(math.exp(a))


def reference_ell_slope(a: float, loss: str) -> float:
    """ℓ′: −exp(−a), or −σ(−a) as the paper gives it for the logistic loss."""
    if loss == "exponential":
        return -math.exp(-a)
    return -1 / (1 + math.exp(a)) if a < 700 else -math.exp(-a)


def reference(y: float, s: float, p: float, alpha: float, beta: float, loss: str):
    """The loss, and its gradient by theorem 1 with respect to the three log-probabilities."""
    u, v = alpha * (y - s), alpha * (s - p)
    value = reference_ell(u, loss) + beta * reference_ell(v, loss)
    du = alpha * reference_ell_slope(u, loss)
    dv = alpha * beta * reference_ell_slope(v, loss)
    return value, (du, -du + dv, -dv)


def ours(triples, alpha, beta, loss, dtype=torch.float64):
    logps = torch.tensor(triples, dtype=dtype, requires_grad=True)
    result = t_spin_loss(*logps.unbind(1), alpha=alpha, beta=beta, loss=loss)
    result.loss.sum().backward()
    return result, logps.grad


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@given(
    triples=st.lists(st.tuples(logp, logp, logp), min_size=1, max_size=5),
    alpha=st.floats(0.05, 2),
    beta=st.sampled_from(BETAS),
)
def test_value_and_gradient_are_those_of_the_paper(loss, triples, alpha, beta):
    result, gradient = ours(triples, alpha, beta, loss)
    for i, triple in enumerate(triples):
        value, slopes = reference(*triple, alpha, beta, loss)
        assert result.loss[i].item() == pytest.approx(value, rel=1e-9, abs=1e-30)
        assert gradient[i].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_logistic_loss_is_exact_at_extreme_log_probabilities(extreme, beta, dtype):
    triples = [(extreme, 0.0, -extreme), (0.0, extreme, 0.0), (-extreme, -extreme, extreme)]
    result, gradient = ours(triples, 1.0, beta, "logistic", dtype)
    for i, triple in enumerate(triples):
        value, slopes = reference(*triple, 1.0, beta, "logistic")
        assert result.loss[i].item() == pytest.approx(value, rel=1e-6)
        assert gradient[i].tolist() == pytest.approx(slopes, rel=1e-6)


def test_exponential_loss_overflows_to_inf_and_never_to_nan():
    result, gradient = ours([(-1e4, 0.0, 1e4)], 1.0, 0.0, "exponential", torch.float32)
    assert result.loss.item() == math.inf
    assert gradient.tolist() == [[-math.inf, math.inf, 0.0]]


def test_without_beta_the_historical_term_cannot_reach_the_gradient():
    result, gradient = ours([(-3.0, -2.0, 1e30)], 1.0, 0.0, "exponential")
    value, slopes = reference(-3.0, -2.0, -2.0, 1.0, 0.0, "exponential")
    assert result.loss.item() == pytest.approx(value)
    assert gradient[0].tolist() == pytest.approx(slopes)
    assert result.historical.item() == math.inf


def test_theorem_1_through_a_policy():
    """∇L = α·E[ℓ′(αu)·∇u + β·ℓ′(αv)·∇v], with the gradients of u and v taken one by one."""
    torch.manual_seed(0)
    features = torch.randn(4, 3, 6, dtype=torch.float64)
    weights = torch.randn(6, dtype=torch.float64, requires_grad=True)
    alpha, beta = 0.7, 0.3

    def logps():
        return -(features @ weights).square()

    t_spin_loss(*logps().unbind(1), alpha=alpha, beta=beta).loss.mean().backward()
    expected = torch.zeros_like(weights)
    for row in range(4):
        y, s, p = logps()[row]
        (grad_u,) = torch.autograd.grad(y - s, weights, retain_graph=True)
        (grad_v,) = torch.autograd.grad(s - p, weights)
        expected += alpha * reference_ell_slope(alpha * (y - s).item(), "logistic") * grad_u / 4
        expected += (
            alpha * beta * reference_ell_slope(alpha * (s - p).item(), "logistic") * grad_v / 4
        )
    torch.testing.assert_close(weights.grad, expected, rtol=1e-10, atol=1e-12)


def test_advantages_and_an_unknown_loss():
    result, _ = ours([(-1.0, -4.0, -6.5)], 0.5, 0.1, "logistic")
    assert result.current_advantage.tolist() == [3.0]
    assert result.historical_advantage.tolist() == [2.5]
    with pytest.raises(ValueError, match="logistic, exponential"):
        ours([(0.0, 0.0, 0.0)], 1.0, 0.1, "hinge")
