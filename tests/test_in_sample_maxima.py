"""The three in-sample maxima: expectile (dmg_iql.py), Gumbel regression (dmg_xql.py) and sparse value
learning (dmg_sql.py). Each loss against its closed form in float64, values and gradients, also where it
could overflow; and its minimum, found by descent, against what theory says it is, computed by SciPy from
the definition."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

import dmg_iql
import dmg_sql
import dmg_xql

ADVANTAGES = [-1e4, -37.5, -3.0, -1e-3, 0.0, 1e-3, 2.0, 30.0, 1e4]


def loss_and_gradient(
    script: ModuleType, u: list[float], dtype: torch.dtype, **flags: float
) -> tuple[float, np.ndarray]:
    """value_loss of one batch and its gradient with respect to u."""
    u = torch.tensor([u], dtype=dtype, requires_grad=True)
    loss = script.value_loss(u, script.Args(**flags))
    assert loss.shape == (1,)
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    return loss.item(), gradient[0].numpy()


def test_gumbel_by_hand() -> None:
    """β = 2, u = 1 and -2, so z = 0.5 and -1: e^z - z - 1 = 0.148721 and 0.367879; mean times e^-0.5 =
    0.606531."""
    loss, _ = loss_and_gradient(dmg_xql, [1.0, -2.0], torch.float64, beta=2.0)
    assert loss == pytest.approx((0.148721 + 0.367879) / 2 * 0.606531, abs=1e-6)


def test_sparse_by_hand() -> None:
    """α = 2, u = 2 and -8, so t = 1.5 and -1: 1.5² - 1 = 1.25 and 0 + 4 = 4; gradients (1.5 - 1) / 2 and
    (0 - 1) / 2, halved by the mean."""
    loss, gradient = loss_and_gradient(dmg_sql, [2.0, -8.0], torch.float64, alpha=2.0)
    assert loss == pytest.approx(2.625) and gradient.tolist() == pytest.approx([0.125, -0.25])


@pytest.mark.parametrize("beta, clip", [(5.0, 7.0), (0.5, 5.0), (2.0, math.inf)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gumbel_closed_form(dtype: torch.dtype, beta: float, clip: float) -> None:
    """Value and gradient at moderate and extreme advantages: with m = max(max z, -1), (e^(z-m) - (z + 1)
    e^-m) / n, and (e^(z-m) - e^-m) / (β n) where z is below the clip, else 0. All finite."""
    for us in (ADVANTAGES, [-1e4, -2e4], [-1e4], [1e4], [0.3, -0.2], [60.0, 59.0]):
        z = np.minimum(np.array(us) / beta, clip)
        m = max(z.max(), -1.0)
        value = (np.exp(z - m) - (z + 1) * np.exp(-m)).mean()
        slope = np.where(np.array(us) / beta < clip, np.exp(z - m) - np.exp(-m), 0) / beta / len(us)
        loss, gradient = loss_and_gradient(dmg_xql, us, dtype, beta=beta, gumbel_clip=clip)
        exact = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(loss, value, **exact)
        np.testing.assert_allclose(gradient, slope, **exact)
        assert np.isfinite(gradient).all() and math.isfinite(loss)


def test_gumbel_overflows_without_care() -> None:
    """What the clip and the factor are for: exp(z) alone is infinite in float32 at an advantage of 1e4;
    and the factor changes the length of a step only, not its direction."""
    u = torch.tensor([[1e4, 0.0]])
    assert torch.isinf((u / 5).exp()).any()
    assert math.isfinite(loss_and_gradient(dmg_xql, [1e4, 0.0], torch.float32, gumbel_clip=math.inf)[0])
    us, beta = np.array([1.0, -2.0, 3.0]), 2.0
    _, ours = loss_and_gradient(dmg_xql, list(us), torch.float64, beta=beta)
    plain = (np.exp(us / beta) - 1) / beta / 3
    np.testing.assert_allclose(ours / plain, np.exp(-1.5), rtol=1e-12)


@pytest.mark.parametrize("alpha", [2.0, 5.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sparse_closed_form(dtype: torch.dtype, alpha: float) -> None:
    """Value max(t, 0)² - u / α and gradient (max(t, 0) - 1) / (α n), t = 1 + u / 2α, at extreme
    advantages too."""
    for us in (ADVANTAGES, [-1e4, -2e4], [1e4], [-2 * alpha]):
        t = np.maximum(1 + np.array(us) / (2 * alpha), 0)
        loss, gradient = loss_and_gradient(dmg_sql, us, dtype, alpha=alpha)
        exact = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(loss, (t**2 - np.array(us) / alpha).mean(), **exact)
        np.testing.assert_allclose(gradient, (t - 1) / alpha / len(us), **exact)


def test_sparse_is_the_printed_objective() -> None:
    """With V in the loss, as SQL prints it, E[1(t > 0) t² + V / α], the gradient in V is the same, and
    the value differs by E[Q] / α."""
    q, alpha = torch.tensor([3.0, -9.0, 1.0], dtype=torch.float64), 2.0
    v = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t = 1 + (q - v) / (2 * alpha)
    printed = (torch.where(t > 0, t**2, 0) + v / alpha).mean()
    ours = dmg_sql.value_loss((q - v)[None], dmg_sql.Args(alpha=alpha)).sum()
    assert torch.autograd.grad(printed, v, retain_graph=True)[0].item() == pytest.approx(
        torch.autograd.grad(ours, v)[0].item(), rel=1e-12
    )
    assert (printed - ours).item() == pytest.approx((q.mean() / alpha).item(), rel=1e-12)


def test_sparse_returns_from_a_drift() -> None:
    """Where no sample is active (V above all Q + 2α) V falls at the constant rate 1 / α, however far it
    is: it comes back, and nothing overflows."""
    for height in (10.0, 1e4):
        _, gradient = loss_and_gradient(dmg_sql, [-height, -height - 1], torch.float32, alpha=2.0)
        assert (-gradient).sum() == pytest.approx(1 / 2.0, rel=1e-6)  # dL/dV = -dL/du, so V falls


def sparse_maximum(q: np.ndarray, alpha: float) -> float:
    """The V with E[max(1 + (Q - V) / 2α, 0)] = 1."""
    excess = lambda v: np.maximum(1 + (q - v) / (2 * alpha), 0).mean() - 1
    return optimize.brentq(excess, q.min() - 1, q.max() + 2 * alpha * len(q))


def gumbel_maximum(q: np.ndarray, beta: float) -> float:
    """β log E[exp(Q / β)]."""
    return beta * (special.logsumexp(q / beta) - math.log(len(q)))


# The V where each loss is least
THEORY = {dmg_iql: stats.expectile, dmg_xql: gumbel_maximum, dmg_sql: sparse_maximum}
FLAG = {dmg_iql: "expectile", dmg_xql: "beta", dmg_sql: "alpha"}
VALUES = [(dmg_iql, value) for value in (0.5, 0.7, 0.9)]
VALUES += [(dmg_xql, value) for value in (0.8, 2.0, 5.0)]
VALUES += [(dmg_sql, value) for value in (0.3, 2.0, 5.0)]


@pytest.mark.parametrize("script, value", VALUES)
def test_converged_value(script: ModuleType, value: float) -> None:
    """V of nine states, trained on 12 samples of five actions each, reaches what theory says, between
    the mean and the maximum of Q; XQL's as long as u / β is below the clip."""
    rate = 0.5 if script is dmg_iql else value**2  # about the inverse of the curvature
    rng = np.random.default_rng(0)
    samples = np.take_along_axis(2 * rng.normal(size=(9, 5)), rng.integers(5, size=(9, 12)), axis=1)
    q = torch.as_tensor(samples)
    v = torch.zeros(9, 1, dtype=torch.float64, requires_grad=True)
    args = script.Args(**{FLAG[script]: value})
    for _ in range(1500):
        loss = script.value_loss(q - v, args).sum()
        v.data -= rate * torch.autograd.grad(loss, v)[0]
    for state, converged in zip(samples, v.flatten().tolist(), strict=True):
        assert converged == pytest.approx(THEORY[script](state, value), abs=1e-6)
        assert state.mean() - 1e-6 <= converged <= state.max() + 1e-6
        if script is dmg_xql:
            assert (state - converged).max() / value < args.gumbel_clip


LIMITS = [(dmg_iql, (0.9, 0.99, 0.999)), (dmg_xql, (1.0, 0.3, 0.1)), (dmg_sql, (1.0, 0.1, 0.01))]


@pytest.mark.parametrize("script, values", LIMITS)
def test_limit_is_the_maximum(script: ModuleType, values: tuple[float, ...]) -> None:
    """Each maximum's own parameter leads it to the largest Q in the data."""
    q = np.array([0.3, -1.0, 2.0, 1.5, 0.0])
    gaps = [abs(THEORY[script](q, value) - 2.0) for value in values]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.2
    for value in values:  # and the loss is least there
        args, best, losses = script.Args(**{FLAG[script]: value}), THEORY[script](q, value), []
        for v in (best, best - 1e-3, best + 1e-3):
            factor = (
                math.exp((q.max() - v) / value) if script is dmg_xql else 1
            )  # the loss leaves it out
            losses.append(factor * script.value_loss(torch.tensor(q - v)[None], args).item())
        assert losses[0] < min(losses[1:])
