"""The three in-sample maxima: expectile (dmg_iql.py), Gumbel regression (dmg_xql.py) and sparse value learning
(dmg_sql.py). Each loss against its closed form in float64, values and gradients, also where it could overflow; and its
minimum, found by descent, against what theory says it is, computed by SciPy from the definition."""

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
    """β = 2, u = 1 and -2, so z = 0.5 and -1: e^z - z - 1 = 0.148721 and 0.367879; mean times e^-0.5 = 0.606531."""
    loss, _ = loss_and_gradient(dmg_xql, [1.0, -2.0], torch.float64, beta=2.0)
    assert loss == pytest.approx((0.148721 + 0.367879) / 2 * 0.606531, abs=1e-6)


def test_sparse_by_hand() -> None:
    """α = 2, u = 2 and -8, so t = 1.5 and -1: 1.5² - 1 = 1.25 and 0 + 4 = 4; gradients (1.5 - 1) / 2 and (0 - 1) / 2,
    halved by the mean."""
    loss, gradient = loss_and_gradient(dmg_sql, [2.0, -8.0], torch.float64, alpha=2.0)
    assert loss == pytest.approx(2.625) and gradient.tolist() == pytest.approx([0.125, -0.25])


@pytest.mark.parametrize("beta, clip", [(5.0, 7.0), (0.5, 5.0), (2.0, math.inf)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gumbel_closed_form(dtype: torch.dtype, beta: float, clip: float) -> None:
    """Value and gradient at moderate and extreme advantages: with m = max(max z, -1), (e^(z-m) - (z + 1) e^-m) / n, and
    (e^(z-m) - e^-m) / (β n) where z is below the clip, else 0. All finite."""
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
    """What the clip and the factor are for: exp(z) alone is infinite in float32 at an advantage of 1e4; and the factor
    changes the length of a step only, not its direction."""
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
    """Value max(t, 0)² - u / α and gradient (max(t, 0) - 1) / (α n), t = 1 + u / 2α, at extreme advantages too."""
    for us in (ADVANTAGES, [-1e4, -2e4], [1e4], [-2 * alpha]):
        t = np.maximum(1 + np.array(us) / (2 * alpha), 0)
        loss, gradient = loss_and_gradient(dmg_sql, us, dtype, alpha=alpha)
        exact = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(loss, (t**2 - np.array(us) / alpha).mean(), **exact)
        np.testing.assert_allclose(gradient, (t - 1) / alpha / len(us), **exact)


def test_sparse_is_the_printed_objective() -> None:
    """With V in the loss, as SQL prints it, E[1(t > 0) t² + V / α], the gradient in V is the same, and the value
    differs by E[Q] / α."""
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
    """Where no sample is active (V above all Q + 2α) V falls at the constant rate 1 / α, however far it is: it comes
    back, and nothing overflows."""
    for height in (10.0, 1e4):
        _, gradient = loss_and_gradient(dmg_sql, [-height, -height - 1], torch.float32, alpha=2.0)
        assert (-gradient).sum() == pytest.approx(1 / 2.0, rel=1e-6)  # dL/dV = -dL/du, so V falls


def sparse_maximum(q: np.ndarray, alpha: float) -> float:
    """The V with E[max(1 + (Q - V) / 2α, 0)] = 1."""
    excess = lambda v: np.maximum(1 + (q - v) / (2 * alpha), 0).mean() - 1
    return optimize.brentq(excess, q.min() - 1, q.max() + 2 * alpha * len(q))


THEORY = [  # script, flags, the minimum by theory
    *[(dmg_iql, dict(expectile=tau), lambda q, tau=tau: stats.expectile(q, tau)) for tau in (0.5, 0.7, 0.9)],
    *[
        (dmg_xql, dict(beta=beta), lambda q, b=beta: b * (special.logsumexp(q / b) - math.log(len(q))))
        for beta in (0.8, 2.0, 5.0)
    ],
    *[(dmg_sql, dict(alpha=alpha), lambda q, a=alpha: sparse_maximum(q, a)) for alpha in (0.3, 2.0, 5.0)],
]


@pytest.mark.parametrize("script, flags, theory", THEORY, ids=lambda value: getattr(value, "__name__", str(value)))
def test_converged_value(script: ModuleType, flags: dict, theory: object) -> None:
    """V of three states, trained on all of a small discrete set of actions (some of them more frequent), reaches what
    theory says, between the mean and the maximum of Q; XQL's as long as u / β is below the clip."""
    (parameter,) = flags.values()
    rate = 0.5 if script is dmg_iql else parameter**2  # about the inverse of the curvature
    for seed in range(3):
        rng = np.random.default_rng(seed)
        actions = np.repeat(np.arange(5), rng.integers(1, 4, 5))
        q = torch.as_tensor(2 * rng.normal(size=(3, 5))[:, actions])
        v = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
        args = script.Args(**flags)
        for _ in range(1500):
            loss = script.value_loss(q - v, args).sum()
            v.data -= rate * torch.autograd.grad(loss, v)[0]
        for state in range(3):
            values = q[state].numpy()
            assert v[state].item() == pytest.approx(theory(values), abs=1e-6)
            assert values.mean() - 1e-6 <= v[state].item() <= values.max() + 1e-6
            if script is dmg_xql:
                assert (values - v[state].item()).max() / parameter < args.gumbel_clip


LIMITS = [(dmg_iql, "expectile", (0.9, 0.99, 0.999)), (dmg_xql, "beta", (1.0, 0.3, 0.1)),
          (dmg_sql, "alpha", (1.0, 0.1, 0.01))]  # fmt: skip


@pytest.mark.parametrize("script, flag, values", LIMITS)
def test_limit_is_the_maximum(script: ModuleType, flag: str, values: tuple[float, ...]) -> None:
    """Each maximum's own parameter leads it to the largest Q in the data."""
    q = np.array([0.3, -1.0, 2.0, 1.5, 0.0])
    theory = {
        "expectile": stats.expectile,
        "beta": lambda q, b: b * (special.logsumexp(q / b) - math.log(len(q))),
        "alpha": sparse_maximum,
    }[flag]
    gaps = [abs(theory(q, value) - 2.0) for value in values]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.2
    for value in values:  # and the loss is least there
        at = lambda v, value=value: script.value_loss(torch.tensor(q - v)[None], script.Args(**{flag: value})).item()
        best = theory(q, value)
        if script is not dmg_xql:  # whose loss is comparable only under one factor
            assert at(best) < min(at(best - 1e-3), at(best + 1e-3))


def test_weights_of_sql() -> None:
    """Cloning weights: exp(3 * 0.1) by default, max(A, 0) with sparse_weights, both clipped at 3; with ν = inf the
    actor's loss is the weighted square alone."""
    adv = torch.tensor([[0.1, -1.0, 50.0]])
    pi, a, q = torch.ones(1, 3, 2), torch.zeros(1, 3, 2), torch.ones(1, 3)
    for sparse, weights in ((False, [math.exp(0.3), math.exp(-3), 3]), (True, [0.1, 0, 3])):
        args = dmg_sql.Args(temperature=3.0, weight_clip=3.0, sparse_weights=sparse)
        loss = dmg_sql.actor_loss(q, pi, a, adv, torch.tensor(0.0), torch.tensor(1.0), args)
        assert loss.item() == pytest.approx(np.mean(weights), rel=1e-6)
    assert not dmg_sql.Args().sparse_weights


@pytest.mark.parametrize("robot", ["hopper", "walker2d", "halfcheetah"])
def test_presets(robot: str) -> None:
    """Appendix C.1: β 5 on medium, medium-replay and medium-expert; α 2 on the first two, 5 on medium-expert."""
    for quality, alpha in (
        ("medium", 2.0),
        ("medium-replay", 2.0),
        ("medium-expert", 5.0),
        ("expert", 5.0),
        ("random", 2.0),
    ):
        assert dmg_sql.resolve(dmg_sql.Args(env_id=f"{robot}-{quality}-v2")).alpha == alpha
        assert dmg_xql.resolve(dmg_xql.Args(env_id=f"{robot}-{quality}-v2")).beta == 5.0
