"""The paper's theory (Sections 3.1-3.4, proofs in Appendix B) on small MDPs, in plain NumPy. Nothing
here uses the training script: the file is the auditable version of the theorems, one section each, with
the paper's equation numbers.

A theorem is a function check_...(operator) that raises AssertionError where the operator breaks it. It
holds for T_DMG; the last section runs every check on wrong versions of T_DMG and says which theorem
notices which mistake. Hypotheses are measured, not taken for granted: where one fails, the check stops
with AssumptionError instead. Oracle generalisation (Assumption 1) means that Q outside the dataset gets
its true backup, from the true P and R; worst-case generalisation, that an adversary chooses Q there, as
long as it is K_Q-Lipschitz (Assumption 2).

Where the paper's text needs mending (each point is tested below):
 1. Theorem 1: the remainder O(‖θ' - θ‖²) needs Q_θ smooth in θ. Assumptions 4 to 8 ask for smoothness in
    a only.
 2. Theorem 3 is true, but its proof uses V^{π*_DMG} = V*_DMG, from an Eq. 35 that leaves λ out of the
    fixed point. With λ < 1 only V^{π*_DMG} >= V*_DMG holds, often strictly. That is enough for the
    theorem.
 3. Theorem 4: Lemma 7 says "any function f", but f has to be K_Q-Lipschitz, hence every iterate, not
    just the last.
 4. Theorem 5: the proof (Eq. 73) takes rewards that depend on the state alone. With R(s, a) the bound is
    false; a term K_R ε_a / (1 - γ) mends it. And C is no universal constant: it grows with |S| and with
    1 / (1 - γ)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest

Array = np.ndarray
STATES = 5  # of the random MDPs
TOL = 1e-9  # for rounding; every effect tested is larger by orders of magnitude


class AssumptionError(Exception):
    """A hypothesis of the theorem does not hold: the check says nothing. Not an AssertionError, so that
    no mutation passes for caught because of it."""


def assume(holds: bool, what: str) -> None:
    if not holds:
        raise AssumptionError(what)


# --- MDPs, supports and operators ---


@dataclass(frozen=True, eq=False)
class MDP:
    """A finite MDP with actions on a grid in [-1, 1], a dataset, and the two kinds of mildness, ε_a and
    λ. Every state is in the dataset D."""

    P: Array  # [S, A, S], P(s'|s, a)
    R: Array  # [S, A], in [0, R_max]
    actions: Array  # [A], ascending
    beta: Array  # [S, A], True where β̂(a|s) > 0
    epsilon: float
    gamma: float = 0.8
    lam: float = 0.25

    @cached_property
    def beta_tilde(self) -> Array:
        """True where β̃(a|s) > 0: the widest support that Definition 1 (Eq. 5) allows, all within ε_a of
        the dataset."""
        near = np.abs(self.actions[:, None] - self.actions) <= self.epsilon + 1e-12
        return self.beta @ near


Operator = Callable[[MDP, Array], Array]


def support_max(Q: Array, support: Array) -> Array:
    """max_{a ~ u(.|s)} Q(s, a), the maximum over the support of u."""
    return np.where(support, Q, -np.inf).max(axis=1)


def max_hat(mdp: MDP, Q: Array) -> Array:
    return support_max(Q, mdp.beta)


def max_tilde(mdp: MDP, Q: Array) -> Array:
    return support_max(Q, mdp.beta_tilde)


def backup(mdp: MDP, V: Array) -> Array:
    """R(s, a) + γ E_{s' ~ P(.|s, a)} V(s'), at every (s, a)."""
    return mdp.R + mdp.gamma * mdp.P @ V


def t_in(mdp: MDP, Q: Array) -> Array:
    """T_In, the in-sample operator, Eq. 7."""
    return backup(mdp, max_hat(mdp, Q))


def t_dmg(mdp: MDP, Q: Array) -> Array:
    """T_DMG, Eq. 6."""
    return backup(mdp, mdp.lam * max_tilde(mdp, Q) + (1 - mdp.lam) * max_hat(mdp, Q))


def greedy(Q: Array, support: Array) -> Array:
    """argmax_{a ~ u(.|s)} Q(s, a) as an index for each state, Eqs. 34, 36 and 71."""
    return np.where(support, Q, -np.inf).argmax(axis=1)


def evaluate(mdp: MDP, pi: Array) -> Array:
    """V^π in every state, exactly: (I - γ P_π) V = R_π."""
    s = np.arange(len(pi))
    return np.linalg.solve(np.eye(len(pi)) - mdp.gamma * mdp.P[s, pi], mdp.R[s, pi])


def fixed_point(operator: Operator, mdp: MDP) -> Array:
    Q = np.zeros_like(mdp.R)
    for _ in range(2000):
        Q, last = operator(mdp, Q), Q
        if np.abs(Q - last).max() < 1e-13:
            return Q
    raise AssertionError("Theorem 2: the iteration does not converge")


def lipschitz(f: Array, actions: Array) -> float:
    """The Lipschitz constant along the actions (axis 1) of f. On a line, neighbours suffice."""
    return np.abs(np.diff(np.moveaxis(f, 1, -1)) / np.diff(actions)).max()


def random_mdp(seed: int, actions: Array, epsilon: float, data: Array, rewards: str = "sa") -> MDP:
    """P(.|s, a) moves linearly in a from one random distribution to another; R is a sine in a, or a
    constant in each state with rewards="s". The dataset has two or three of the actions numbered in
    data, in each state."""
    rng = np.random.default_rng(seed)
    left, right = rng.dirichlet(np.ones(STATES), (2, STATES, 1))
    share = (1 + actions[:, None]) / 2
    frequency = rng.uniform(1, 4, (STATES, 1)) if rewards == "sa" else 0.0
    R = (1 + np.sin(frequency * actions + rng.uniform(0, 6, (STATES, 1)))) / 2
    beta = np.zeros(R.shape, bool)
    for s in range(STATES):
        beta[s, rng.choice(data, rng.integers(2, 4), replace=False)] = True
    return MDP((1 - share) * left + share * right, R, actions, beta, epsilon)


@cache
def grid_mdps() -> list[MDP]:
    """Ten random MDPs on a grid of 21 actions, where ε_a is two steps of the grid."""
    return [random_mdp(seed, np.linspace(-1, 1, 21), 0.2, np.arange(21)) for seed in range(10)]


def one_state(lam: float = 0.25) -> MDP:
    """One state, which is its own successor. Action 0 is in the dataset and pays 1, ε_a = 0.5 is in β̃
    alone and pays 2, and 1 is outside both and pays 8. γ = 0.5."""
    R, actions = np.array([[1, 2, 8.0]]), np.array([0, 0.5, 1])
    return MDP(np.ones((1, 3, 1)), R, actions, np.eye(1, 3) > 0, epsilon=0.5, gamma=0.5, lam=lam)


def choice(pay: float) -> MDP:
    """Sooner or later: from state 0, action -0.5 leads to state 1, which pays 1 once, and action 0.5 to
    state 2, which pays `pay` for ever; state 3 is the end. Worth γ and γ pay / (1 - γ), so a wrong
    discount takes the wrong turn."""
    epsilon = 0.002
    actions = np.array([-0.5, -0.5 + epsilon, 0.5 - epsilon, 0.5])
    P = np.zeros((4, 4, 4))
    P[0, :, 1], P[0, :, 2] = 0.5 - actions, 0.5 + actions
    P[1, :, 3] = P[2, :, 2] = P[3, :, 3] = 1
    R = np.repeat([[0.0], [1.0], [pay], [0.0]], 4, axis=1)
    beta = np.tile([True, False, False, True], (4, 1))
    beta[1, 3] = False  # at 1, and nowhere else, there are actions far from the dataset
    return MDP(P, R, actions, beta, epsilon)


# With 0.17, sooner is better and a missing discount chooses later; with 0.3, later is better and λ over
# the whole bracket chooses sooner
CHOICES = (0.17, 0.3)


def test_definition_1() -> None:
    """supp β̂ ⊆ supp β̃ and max_{a1 ~ β̃} min_{a2 ~ β̂} ‖a1 - a2‖ <= ε_a (Eq. 5); wider than β̂, not all
    of A."""
    beta = np.array([[True, False, False, False, False]])
    mdp = MDP(np.ones((1, 5, 1)), np.zeros((1, 5)), np.linspace(-1, 1, 5), beta, 0.5)
    assert mdp.beta_tilde.tolist() == [[True, True, False, False, False]]
    for mdp in grid_mdps():
        for beta, beta_tilde in zip(mdp.beta, mdp.beta_tilde):
            to_data = np.abs(mdp.actions[:, None] - mdp.actions[beta]).min(axis=1)
            assert (beta <= beta_tilde).all() and to_data[beta_tilde].max() <= mdp.epsilon + TOL
            assert beta.sum() < beta_tilde.sum() < len(mdp.actions)


# --- Theorem 1: one gradient step on (s, a), seen from (s, ã) ---

HIDDEN = 12


def network(theta: Array, s: int, a: float) -> tuple[float, Array]:
    """Q_θ(s, a) = w · tanh(W [onehot(s), a, 1]) and ∇_θ Q_θ(s, a), with θ = (W, w)."""
    W, w = theta[:-HIDDEN].reshape(HIDDEN, STATES + 2), theta[-HIDDEN:]
    x = np.concatenate([np.eye(STATES)[s], [a, 1]])
    h = np.tanh(W @ x)
    return w @ h, np.concatenate([np.outer(w * (1 - h**2), x).ravel(), h])


def order(errors: list[float]) -> float:
    """p where the errors fall like h^p as h is halved from one to the next; from the last two, nearest
    the limit."""
    return np.log2(errors[-2] / errors[-1])


def test_theorem_1() -> None:
    """Theorem 1 (Eqs. 4, 19): let θ' = θ + α (T_u Q_θ - Q_θ)(s, a) ∇Q_θ(s, a), Eq. 18. For small α and ã
    close to a, Q_θ'(s, ã) = Q_θ(s, ã) + C1 (T_u Q_θ(s, ã) - Q_θ(s, ã) + C2 ‖ã - a‖) + O(‖θ' - θ‖²), with
    C1 = α ∇Q_θ(s, ã) · ∇Q_θ(s, a) in [0, 1] if ‖ã - a‖ <= ‖∇Q_θ(s, a)‖ / K_g and α <= 1 / g_max²
    (Eq. 26), and |C2| <= K_Q + K_R + γ K_P |S| Q_max (Eq. 24). Tested with u = β̃, on a network: the two
    constants as ã comes close; that the remainder is of second order in ‖θ' - θ‖, no more and no less;
    and what the theorem is for, that the step on (s, a) acts on (s, ã) like a step on (s, ã) itself, up
    to α O(‖ã - a‖) + O(α²)."""
    s, a, distances = 2, 0.11, 0.25 * 0.5 ** np.arange(12)
    actions = np.unique(np.concatenate([np.linspace(-1, 1, 41), [a], a + distances]))
    here, there = np.searchsorted(actions, a), np.searchsorted(actions, a + distances)
    mdp = random_mdp(3, actions, 0.2, np.arange(len(actions)))
    theta = 0.7 * np.random.default_rng(5).normal(size=HIDDEN * (STATES + 3))
    outputs = [[network(theta, state, action) for action in actions] for state in range(STATES)]
    Q = np.array([[value for value, _ in row] for row in outputs])
    gradients = np.array([[gradient for _, gradient in row] for row in outputs])
    steps = 1e-6 * np.eye(len(theta))
    numeric = [(network(theta + e, s, a)[0] - network(theta - e, s, a)[0]) / 2e-6 for e in steps]
    assert np.allclose(gradients[s, here], numeric, atol=1e-8)
    delta = (backup(mdp, max_tilde(mdp, Q)) - Q)[s]  # T_u Q_θ - Q_θ, Eq. 3
    products = gradients[s] @ gradients[s].T
    length = np.sqrt(products[here, here])

    # the constants of Assumptions 4 to 8, measured
    K_Q, K_R, K_P = (lipschitz(f, actions) for f in (Q, mdp.R, mdp.P))
    K_g = (np.linalg.norm(np.diff(gradients, axis=1), axis=2) / np.diff(actions)).max()
    alpha_max = 1 / np.linalg.norm(gradients, axis=2).max() ** 2
    assert distances[0] <= length / K_g and abs(delta[here]) > 0.1
    assert (0 <= products[there, here]).all() and (alpha_max * products[there, here] <= 1).all()
    C2 = (delta[here] - delta[there]) / distances
    assert np.abs(C2).max() <= K_Q + K_R + mdp.gamma * K_P * STATES * np.abs(Q).max()
    # It tends to a limit, which is not zero
    assert abs(C2[-1]) > 0.1 and abs(C2[-1] / C2[-2] - 1) < 1e-3

    def change(j: int, alpha: float) -> float:
        """Q_θ'(s, ã) - Q_θ(s, ã) at ã = actions[j]."""
        return network(theta + alpha * delta[here] * gradients[s, here], s, actions[j])[0] - Q[s, j]

    far, alphas = there[0], alpha_max * 0.5 ** np.arange(8)
    slope = products[far, here] * (delta[far] + C2[0] * distances[0])
    remainder = [abs(change(far, alpha) - alpha * slope) for alpha in alphas]
    assert abs(order(remainder) - 2) < 0.02
    assert remainder[-1] / (alphas[-1] * delta[here] * length) ** 2 > 1e-3

    def unlike_own_step(j: int, alpha: float) -> float:
        """How far the change is from that of a step on (s, ã), to first order in α."""
        return abs(change(j, alpha) - alpha * products[j, j] * delta[j])

    assert abs(order([unlike_own_step(j, 1e-7) for j in there]) - 1) < 0.02
    assert abs(order([unlike_own_step(j, alpha_max * d) for j, d in zip(there, distances)]) - 2) < 0.02


def test_theorem_1_needs_smoothness_in_theta() -> None:
    """Q_θ(s, a) = θ + |θ|^1.5 meets Assumptions 4 to 8 on a bounded set of θ, being constant in a. At
    θ = 0 with R = 1, θ' = α, C1 = α and C2 = 0, so the remainder is ‖θ' - θ‖^1.5, which is not
    O(‖θ' - θ‖²)."""
    Q = lambda theta: theta + abs(theta) ** 1.5
    assert abs(order([Q(alpha) - Q(0) - alpha for alpha in 0.1 * 0.5 ** np.arange(8)]) - 1.5) < 1e-6


# --- Lemma 1 and Theorem 2: contraction ---


def check_contraction(operator: Operator, area: str = "beta_tilde") -> None:
    """Theorem 2: in the area β̃(a|s) > 0, ‖T_DMG f1 - T_DMG f2‖_∞ <= γ ‖f1 - f2‖_∞, so that from any Q
    the iterates converge to the one fixed point Q*_DMG, at the rate γ^k. Lemma 1 is the same for T_In
    with the area β̂(a|s) > 0. The modulus is γ, neither more nor less: T (f + c) = T f + γ c for a
    constant c."""
    rng = np.random.default_rng(0)
    for mdp in grid_mdps():
        inside = getattr(mdp, area)
        norm = lambda f, inside=inside: np.abs(f[inside]).max()
        for _ in range(50):
            f1, f2 = rng.normal(size=(2, *mdp.R.shape)) * 10 ** rng.uniform(-2, 2)
            one = np.zeros_like(f1)
            one[rng.integers(len(f1)), rng.integers(f1.shape[1])] = 100
            # apart at random, by a constant, at one (s, a), and only outside the area: this must not
            # reach the inside
            for g in (f2, f1 + 7, f1 + one, np.where(inside, f1, f2 + 100)):
                apart = norm(operator(mdp, f1) - operator(mdp, g))
                assert apart <= mdp.gamma * norm(f1 - g) + TOL, "Theorem 2: no γ-contraction"
            shift = operator(mdp, f1 + 7) - operator(mdp, f1)
            assert np.allclose(shift, mdp.gamma * 7), "Theorem 2: the modulus is not γ"
        fixed = fixed_point(operator, mdp)
        for Q in (np.full_like(mdp.R, 1000), np.full_like(mdp.R, -1000), rng.normal(size=mdp.R.shape)):
            first = norm(Q - fixed)
            for k in range(1, 151):
                Q = operator(mdp, Q)
                assert norm(Q - fixed) <= mdp.gamma**k * first + TOL, "Theorem 2: slower than γ^k"
            assert norm(Q - fixed) < 1e-8, "Theorem 2: another fixed point"


def check_fixed_point(operator: Operator) -> None:
    """Q*_DMG by hand. With one_state's rewards 1 and 2, let m = Q*(0), hence Q*(ε_a) = m + 1, and
    m = 1 + γ [λ (m + 1) + (1 - λ) m], that is m = (1 + γ λ) / (1 - γ)."""
    for lam in (0, 0.25, 1):
        mdp = one_state(lam)
        m = (1 + mdp.gamma * lam) / (1 - mdp.gamma)
        assert np.allclose(fixed_point(operator, mdp)[0, :2], [m, m + 1]), "Theorem 2: wrong fixed point"


def test_lemma_1() -> None:
    check_contraction(t_in, area="beta")


def test_theorem_2() -> None:
    check_contraction(t_dmg)
    check_fixed_point(t_dmg)


def test_theorem_2_needs_the_mild_generalization_area() -> None:
    """In the in-sample area alone T_DMG is no contraction, because it reads Q outside: hence
    Assumption 1."""
    with pytest.raises(AssertionError, match="no γ-contraction"):
        check_contraction(t_dmg, area="beta")


# --- Theorem 3: oracle generalisation ---


def check_oracle_performance(operator: Operator) -> int:
    """Theorem 3 (Eq. 8): under Assumption 1, V^{π*_DMG}(s) >= V^{π*_In}(s) for all s in D. Returns in
    how many states the inequality is strict.

    A proof without Eq. 35. Let Ṽ(s) = max_β̃ Q*_DMG(s, .), V̂(s) = max_β̂ Q*_DMG(s, .) <= Ṽ(s), and
    π = π*_DMG. Then Ṽ(s) = R(s, π(s)) + γ E[λ Ṽ(s') + (1 - λ) V̂(s')] <= R(s, π(s)) + γ E[Ṽ(s')], hence
    Ṽ <= V^π by iterating this. By Eq. 50, Ṽ >= V̂ >= max_β̂ Q*_In = V^{π*_In}."""
    values = []
    for mdp in [*map(choice, CHOICES), one_state(), *grid_mdps()]:
        Q_dmg, Q_in = fixed_point(operator, mdp), fixed_point(t_in, mdp)
        V_dmg = evaluate(mdp, greedy(Q_dmg, mdp.beta_tilde))
        V_in = evaluate(mdp, greedy(Q_in, mdp.beta))
        assert np.allclose(V_in, max_hat(mdp, Q_in)), "Q*_In is not the value of its policy"
        assert (V_dmg >= V_in - TOL).all(), "Theorem 3: worse than the in-sample optimal policy"
        values.append((V_dmg, max_tilde(mdp, Q_dmg), V_in))
    for V_dmg, V_tilde, V_in in values:  # the steps of the proof
        assert (V_dmg >= V_tilde - TOL).all(), "Theorem 3: Q*_DMG promises more than its policy delivers"
        assert (V_tilde >= V_in - TOL).all(), "Theorem 3, Eq. 50: Q*_DMG below Q*_In"
    return sum(int((V_dmg > V_in + 1e-3).sum()) for V_dmg, _, V_in in values)


def test_theorem_3() -> None:
    states = sum(len(mdp.R) for mdp in grid_mdps())
    assert check_oracle_performance(t_dmg) > states / 2  # no mere equality


def test_theorem_3_policy_is_better_than_its_q() -> None:
    """Eq. 35 and the first line of Theorem 3's proof, V^{π*_DMG} = V*_DMG, are false for λ < 1. In
    one_state with γ = 0.5 and λ = 0.25, π*_DMG earns 2 / (1 - γ) = 4 for ever;
    max_β̃ Q*_DMG = m + 1 = 3.25; π*_In earns 2."""
    mdp = one_state()
    Q = fixed_point(t_dmg, mdp)
    assert np.allclose(max_tilde(mdp, Q), 3.25)
    assert np.allclose(evaluate(mdp, greedy(Q, mdp.beta_tilde)), 4)
    assert np.allclose(evaluate(mdp, greedy(fixed_point(t_in, mdp), mdp.beta)), 2)
    full = one_state(lam=1)  # there Eq. 35 holds
    assert np.allclose(max_tilde(full, fixed_point(t_dmg, full)), 4)


# --- Theorem 4: limited over-estimation ---


def generalise(mdp: MDP, Q: Array, K_Q: float, weight: Array) -> Array:
    """Worst-case generalisation: keep Q on the dataset and put any K_Q-Lipschitz function (Assumption 2)
    elsewhere. weight 1, for each state, takes the highest there is, min_{a ~ β̂} Q(s, a) + K_Q ‖ã - a‖;
    0 takes the lowest."""
    cone = K_Q * np.abs(mdp.actions[:, None] - mdp.actions)
    data = mdp.beta[:, None, :]
    highest = np.where(data, Q[:, None, :] + cone, np.inf).min(axis=2)
    lowest = np.where(data, Q[:, None, :] - cone, -np.inf).max(axis=2)
    # highest is below Q somewhere on the dataset if, and only if, Q is not K_Q-Lipschitz there
    kept = np.allclose(highest[mdp.beta], Q[mdp.beta], rtol=0, atol=TOL)
    assume(kept, "Assumption 2 fails on the dataset")
    out = weight[:, None] * highest + (1 - weight[:, None]) * lowest
    assume(lipschitz(out, mdp.actions) <= K_Q * (1 + 1e-6), "Assumption 2")
    return out


def worst_case(
    operator: Operator,
    mdp: MDP,
    K_Q: float,
    start: float,
    steps: int,
    weight: Callable[[int], Array] = np.ones,
) -> Iterator[tuple[int, Array, Array, Array]]:
    """The iterations of Theorem 4 from a constant Q^0: k, Q^k_In, Q̂^k_DMG, and the generalised
    Q̂^{k-1}_DMG that the latter read. T̂_DMG is defined on the dataset alone, so the adversary has the
    rest, anew at each k."""
    Q_in = Q_hat = np.where(mdp.beta, start, np.nan)
    for k in range(1, steps + 1):
        read = generalise(mdp, Q_hat, K_Q, weight(len(Q_hat)))
        Q_in = t_in(mdp, Q_in)
        Q_hat = np.where(mdp.beta, operator(mdp, read), np.nan)
        yield k, Q_in, Q_hat, read


def overestimation_bound(mdp: MDP, K_Q: float, k: int) -> float:
    """λ ε_a K_Q γ / (1 - γ) (1 - γ^k), Eq. 9."""
    return mdp.lam * mdp.epsilon * K_Q * mdp.gamma / (1 - mdp.gamma) * (1 - mdp.gamma**k)


def check_limited_overestimation(operator: Operator, roughness: float = 1.0) -> tuple[float, float]:
    """Theorem 4 (Eq. 9): under Assumption 2, for all (s, a) in D and all k,

    Q^k_In(s, a) <= Q̂^k_DMG(s, a) <= Q^k_In(s, a) + λ ε_a K_Q γ / (1 - γ) (1 - γ^k).

    Both iterations start from the same Q^0 on D. Lemma 7 applies K_Q to each function that T̂_DMG reads,
    so it is the generalised Q̂^0 ... Q̂^{k-1} that have to be K_Q-Lipschitz. With roughness r they are
    only r K_Q-Lipschitz.

    Under the highest generalisation, returns the largest part of the bound that is reached, and in which
    share of the states the maximum over β̃ is in β̃ \\ β̂."""
    K_Q, rng, reached, outside = 4.0, np.random.default_rng(1), [], []
    for mdp in grid_mdps():
        for weight in (np.ones, np.zeros, rng.random):
            for k, Q_in, Q_hat, read in worst_case(operator, mdp, K_Q * roughness, 5, 25, weight):
                over, bound = (Q_hat - Q_in)[mdp.beta], overestimation_bound(mdp, K_Q, k)
                assert over.min() >= -TOL, "Theorem 4: under-estimation"
                assert over.max() <= bound + TOL, "Theorem 4: over-estimation beyond the bound"
                if weight is np.zeros:  # β̃ has nothing above the dataset's maximum to offer
                    assert over.max() <= TOL, "Theorem 4: over-estimation from nothing"
                if weight is np.ones:
                    reached.append(over.max() / bound)
                    best = greedy(read, mdp.beta_tilde)
                    outside.append(1 - mdp.beta[np.arange(len(best)), best].mean())
    return max(reached), float(np.mean(outside))


def check_overestimation_is_attained(operator: Operator) -> None:
    """Theorem 4 cannot be improved. In one_state the highest generalisation is Q̂(ε_a) = Q̂(0) + K_Q
    ε_a, so that x_k := Q̂^k_DMG(0) - Q^k_In(0) = γ (x_{k-1} + λ K_Q ε_a): the bound itself, at each
    k."""
    mdp, K_Q = one_state(), 3.0
    for k, Q_in, Q_hat, _ in worst_case(operator, mdp, K_Q, 5, 30):
        bound = overestimation_bound(mdp, K_Q, k)
        attained = np.isclose(Q_hat[0, 0] - Q_in[0, 0], bound, rtol=TOL)
        assert attained, "Theorem 4: the bound is not attained"


def test_theorem_4() -> None:
    reached, outside = check_limited_overestimation(t_dmg)
    assert 0.9 < reached <= 1 + TOL and outside > 0.9
    check_overestimation_is_attained(t_dmg)


def test_theorem_4_needs_lipschitz_iterates() -> None:
    with pytest.raises(AssertionError, match="Theorem 4: over-estimation beyond the bound"):
        check_limited_overestimation(t_dmg, roughness=2.0)


# --- Theorem 5: performance under worst-case generalisation ---


def worst_case_policy(operator: Operator, mdp: MDP, K_Q: float) -> Array:
    """π̂_DMG(s) = argmax_{a ~ β̃} Q̂_DMG(s, a), Eq. 71, under the highest generalisation."""
    *_, (_, _, Q_hat, _) = worst_case(operator, mdp, K_Q, start=0, steps=120)
    return greedy(generalise(mdp, Q_hat, K_Q, np.ones(len(Q_hat))), mdp.beta_tilde)


def largest_epsilon(mdp: MDP, K_Q: float) -> float:
    """What "sufficiently small ε_a" means, Eq. 77: (1 - γ) ε_{Q*_In} / (K_Q (1 - γ + λ γ)), where
    ε_{Q*_In} is the smallest gap (Eq. 75) from the best action in D to one that is not. Equally good
    actions leave no gap and do no harm: each of them is a π*_In(s), with the same J."""
    Q = fixed_point(t_in, mdp)
    gap = max_hat(mdp, Q)[:, None] - Q
    smallest = gap[mdp.beta & (gap > TOL)].min(initial=np.inf)
    return (1 - mdp.gamma) * smallest / (K_Q * (1 - mdp.gamma + mdp.lam * mdp.gamma))


def performance_bound(mdp: MDP) -> float:
    """The most that π̂_DMG may lose, (C K_P R_max + K_R) ε_a / (1 - γ), see
    check_performance_lower_bound."""
    K_P, K_R = lipschitz(mdp.P, mdp.actions), lipschitz(mdp.R, mdp.actions)
    C = mdp.gamma * len(mdp.R) / (2 * (1 - mdp.gamma))
    return (C * K_P * mdp.R.max() + K_R) * mdp.epsilon / (1 - mdp.gamma)


@cache
def performance_mdps() -> dict[str, list[tuple[MDP, float]]]:
    """MDPs with K_Q: choice, and random ones with R(s) or R(s, a). In the random ones ε_a = 0.01, K_Q is
    half as large again as that of Q*_In, the actions come in threes, x - ε_a, x, x + ε_a, and only x may
    be in the dataset. Those whose gaps are too small for Eq. 77 are left out."""
    actions = np.sort(np.concatenate([np.linspace(-0.9, 0.9, 4) + e for e in (-0.01, 0, 0.01)]))
    cases = {"choice": [(choice(pay), 4.0) for pay in CHOICES]}
    for rewards in ("s", "sa"):
        mdps = [random_mdp(seed, actions, 0.01, np.arange(1, 12, 3), rewards) for seed in range(20)]
        pairs = [(mdp, 1.5 * lipschitz(fixed_point(t_in, mdp), actions)) for mdp in mdps]
        cases[rewards] = [(mdp, K_Q) for mdp, K_Q in pairs if mdp.epsilon < largest_epsilon(mdp, K_Q)]
    return cases


def check_performance_lower_bound(operator: Operator) -> dict[str, tuple[float, float]]:
    """Theorem 5 (Eq. 10): under Assumptions 2 and 3 and for ε_a as small as Eq. 77 asks, with rewards
    R(s), J(π̂_DMG) >= J(π*) - C K_P R_max ε_a / (1 - γ) - ε_D. As ε_D = J(π*) - J(π*_In), J(π*) cancels:
    the claim is about J(π*_In) - J(π̂_DMG). It is checked from each initial state, so for all d_0. The
    paper leaves C open.

    C = γ |S| / (2 (1 - γ)). By Eqs. 75 to 77, ‖π̂_DMG(s) - π*_In(s)‖ <= ε_a for all s. By Assumption 3
    their next-state distributions differ by at most x := |S| K_P ε_a / 2 in total variation. Run both
    policies from s_0, coupled so that they part with probability at most x a step. At time t they are in
    the same state, and so earn the same, with probability at least (1 - x)^t >= 1 - t x; otherwise one
    earns at most R_max more. The sum of the losses is at most Σ_t γ^t t x R_max = γ x R_max /
    (1 - γ)² = C K_P R_max ε_a / (1 - γ).

    With rewards R(s, a) that are K_R-Lipschitz (Assumption 8), they earn the same up to K_R ε_a while
    together, which adds K_R ε_a / (1 - γ). Returns, for each kind of MDP, the largest loss and the
    largest part of the optimum that the bound gives up."""
    found = {}
    for kind, cases in performance_mdps().items():
        loss, given_up = [], []
        for mdp, K_Q in cases:
            assume(mdp.epsilon < largest_epsilon(mdp, K_Q), "Eq. 77")
            Q_in, pi = fixed_point(t_in, mdp), worst_case_policy(operator, mdp, K_Q)
            V_in, V_hat = evaluate(mdp, greedy(Q_in, mdp.beta)), evaluate(mdp, pi)
            bound = performance_bound(mdp)
            assert (V_hat >= V_in - bound - TOL).all(), "Theorem 5: performance below the bound"
            best = mdp.beta & (Q_in >= max_hat(mdp, Q_in)[:, None] - TOL)
            apart = np.where(best, np.abs(mdp.actions[pi][:, None] - mdp.actions), np.inf).min(axis=1)
            assert apart.max() <= mdp.epsilon + TOL, "Theorem 5: π̂_DMG not within ε_a of π*_In"
            loss.append((V_in - V_hat).max())
            given_up.append(bound / V_in.max())
        found[kind] = max(loss), max(given_up)
    return found


def test_theorem_5() -> None:
    cases = performance_mdps()
    assert len(cases["s"]) > 10 and len(cases["sa"]) > 10
    # no K_R with R(s), where the bound is thus the paper's
    assert all(lipschitz(mdp.R, mdp.actions) == 0 for mdp, _ in cases["choice"] + cases["s"])
    assert all(lipschitz(mdp.R, mdp.actions) > 0.1 for mdp, _ in cases["sa"])
    for mdp, K_Q in cases["s"] + cases["sa"]:
        policy = worst_case_policy(t_dmg, mdp, K_Q)
        assert not mdp.beta[np.arange(STATES), policy].any()  # never in the dataset
    for loss, given_up in check_performance_lower_bound(t_dmg).values():
        # The generalisation does harm, and the bound is far from trivial
        assert loss > 5e-4 and given_up < 0.1


@pytest.mark.parametrize("half", [1, 4])
@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_theorem_5_is_nearly_attained(gamma: float, half: int) -> None:
    """C cannot do without |S| and 1 / (1 - γ). Let n good states pay 1 and n bad ones 0, and let each
    action a >= 0 in a good state lead to each bad state with probability K_P a, for good. Action 0 is in
    D and loses nothing; π̂_DMG takes ε_a, leaves with probability x = n K_P ε_a a step, and loses γ x /
    ((1 - γ) (1 - γ + γ x)): the bound times (1 - γ) / (1 - γ + γ x), which tends to 1 as ε_a tends to
    0."""
    K_P, epsilon, n = 0.2, 1e-3 * (1 - gamma), half
    actions = np.array([0, epsilon])
    P = np.zeros((2 * n, 2, 2 * n))
    P[:n, :, :n], P[:n, :, n:] = (1 / n - K_P * actions)[:, None], (K_P * actions)[:, None]
    P[n:, :, n:] = 1 / n
    R = np.repeat([[1.0], [0.0]], n, axis=0) + 0 * actions
    mdp = MDP(P, R, actions, np.tile([True, False], (2 * n, 1)), epsilon, gamma)
    pi = worst_case_policy(t_dmg, mdp, K_Q=1.0)
    assert (pi == 1).all() and np.isclose(lipschitz(P, actions), K_P)
    loss, x = 1 / (1 - gamma) - evaluate(mdp, pi)[0], n * K_P * epsilon
    assert np.isclose(loss, gamma * x / ((1 - gamma) * (1 - gamma + gamma * x)), rtol=1e-6)
    assert 0.99 * performance_bound(mdp) < loss < performance_bound(mdp)


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.005])
def test_theorem_5_fails_for_rewards_of_actions(epsilon: float) -> None:
    """A gap in the paper's proof. One state, so K_P = 0 and Eq. 10 reads J(π̂_DMG) >= J(π*_In), whatever
    C. Action 0 is in D and pays 1; ε_a is in β̃ and pays 1 - K_R ε_a; D has one action, so Eq. 77 asks
    nothing of ε_a. A Lipschitz Q̂ that is higher at ε_a, if ever so little, makes π̂_DMG take it and
    lose K_R ε_a / (1 - γ). Eq. 73 misses this as it writes the reward as r(s). The bound with K_R is
    attained; without a K_R, the loss need not even shrink with ε_a."""
    K_R = 0.8
    for R, loss in (([1, 1 - K_R * epsilon], K_R * epsilon / 0.2), ([1, 0.5], 0.5 / 0.2)):
        mdp = MDP(np.ones((1, 2, 1)), np.array([R]), np.array([0, epsilon]), np.eye(1, 2) > 0, epsilon)
        J_in = evaluate(mdp, greedy(fixed_point(t_in, mdp), mdp.beta))[0]
        J_hat = evaluate(mdp, worst_case_policy(t_dmg, mdp, K_Q=0.01))[0]
        assert lipschitz(mdp.P, mdp.actions) == 0 and largest_epsilon(mdp, K_Q=0.01) == np.inf
        assert np.isclose(J_in - J_hat, loss) and loss > 0  # Eq. 10 allows 0
        assert np.isclose(performance_bound(mdp), loss)


# --- Mutations: which theorem notices which mistake in T_DMG ---

MUTATIONS: dict[str, Operator] = {
    "lambda-over-the-bracket": lambda m, Q: backup(
        m, m.lam * (max_tilde(m, Q) + (1 - m.lam) * max_hat(m, Q))
    ),
    "lambda-exchanged": lambda m, Q: backup(m, (1 - m.lam) * max_tilde(m, Q) + m.lam * max_hat(m, Q)),
    "generalised-max-over-beta": t_in,
    "in-sample-max-over-beta-tilde": lambda m, Q: backup(m, max_tilde(m, Q)),
    "generalised-max-over-all-actions": lambda m, Q: backup(
        m, m.lam * Q.max(axis=1) + (1 - m.lam) * max_hat(m, Q)
    ),
    # λ / γ takes the discount off, as backup puts it on
    "no-discount-on-generalised-term": lambda m, Q: backup(
        m, m.lam / m.gamma * max_tilde(m, Q) + (1 - m.lam) * max_hat(m, Q)
    ),
    "no-discount-on-in-sample-term": lambda m, Q: backup(
        m, m.lam * max_tilde(m, Q) + (1 - m.lam) / m.gamma * max_hat(m, Q)
    ),
}
# T_DMG with another λ in [0, 1]. Theorems 2, 3 and (for small enough ε_a) 5 hold for each λ, so they
# cannot notice; Theorem 4 notices a larger λ, and that its bound is attained, any other.
OTHER_LAMBDA = {"lambda-exchanged", "generalised-max-over-beta", "in-sample-max-over-beta-tilde"}
UNNOTICED_BY: dict[Callable, set[str]] = {
    check_contraction: OTHER_LAMBDA,
    check_fixed_point: set(),
    check_oracle_performance: OTHER_LAMBDA,
    check_limited_overestimation: {"generalised-max-over-beta"},
    check_overestimation_is_attained: set(),
    check_performance_lower_bound: OTHER_LAMBDA,
}


name = lambda value: value if isinstance(value, str) else value.__name__
CAUGHT = [
    (check, m) for check, unnoticed in UNNOTICED_BY.items() for m in MUTATIONS if m not in unnoticed
]
IN_SCOPE = [(check, m) for check, unnoticed in UNNOTICED_BY.items() for m in MUTATIONS if m in unnoticed]


@pytest.mark.parametrize("check, mutation", CAUGHT, ids=name)
def test_mutation_is_caught(check: Callable, mutation: str) -> None:
    """By a theorem's own statement, not by a hypothesis, which would be an AssumptionError."""
    with pytest.raises(AssertionError, match="^Theorem"):
        check(MUTATIONS[mutation])


@pytest.mark.parametrize("check, mutation", IN_SCOPE, ids=name)
def test_mutation_is_in_the_theorems_scope(check: Callable, mutation: str) -> None:
    """The theorem holds for this operator too, so the check has to pass."""
    check(MUTATIONS[mutation])
