"""Evaluation: episodes played side by side are those of a plain loop over Gymnasium's environment."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import folder_of
from jobs import load, rows_of, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # -v4 robots are old versions


def agent_of(module: ModuleType, state_dim: int, action_dim: int, seeds: int = 2) -> torch.nn.Module:
    """Networks with first weights three times as large, so that actions are not all near 0."""
    args = module.Args(env_id="hopper-medium-local", num_seeds=seeds, hidden_dim=16, device="cpu")
    module.resolve(args)
    agent = module.DMG(args, state_dim, action_dim)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter *= 3
    return agent


def act(weights: dict[str, torch.Tensor], k: int, s: np.ndarray) -> np.ndarray:
    """The action of policy k at one state, in numpy, from a state dict of the actor."""
    for i in range(3):
        weight, bias = (weights[f"layers.{i}.{name}"][k].double().numpy() for name in ("weight", "bias"))
        s = s @ weight + bias[0]
        s = np.tanh(s) if i == 2 else np.maximum(s, 0)
    return s


def play(env: gym.Env, policy: Callable, seed: int) -> tuple[float, int]:
    """Return and length of one episode in a plain loop."""
    s, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over:
        s, reward, terminated, truncated, _ = env.step(policy(s))
        total, length, over = total + reward, length + 1, terminated or truncated
    return total, length


def envs_of(module: ModuleType, env_id: str, number: int) -> list[gym.Env]:
    """Simulators, as train makes them."""
    return [module.make_env(env_id) for _ in range(number)]


def test_rollout_equals_a_plain_loop(iql: ModuleType, float64: None) -> None:
    """Returns and lengths are those of a loop over gymnasium's Hopper-v4 with the same policies from the
    same resets, states normalised; twice, since simulators are used again."""
    agent, mean, std = agent_of(iql, 11, 3), np.linspace(-0.2, 0.5, 11), np.linspace(0.5, 2.0, 11)
    resets = np.array([[3, 5, 2**63 + 11], [8, 2**64 - 1, 3]], dtype=np.uint64)
    envs = envs_of(iql, "hopper-medium-v2", 6)
    first = iql.rollout(agent, envs, resets, mean, std)
    np.testing.assert_array_equal(iql.rollout(agent, envs, resets, mean, std), first)
    assert len(set(first[0].flat)) == 6, "six different episodes"
    env, weights = gym.make("Hopper-v4"), agent.actor.state_dict()
    for k, e in np.ndindex(2, 3):
        policy = lambda s, k=k: act(weights, k, (s - mean) / std)
        total, length = play(env, policy, int(resets[k, e]))
        assert first[1, k, e] == length
        assert first[0, k, e] == pytest.approx(total, rel=1e-9)


def test_time_limit(iql: ModuleType, float64: None) -> None:
    """An episode that does not terminate has 1,000 steps, and a plain loop's return."""
    agent = agent_of(iql, 17, 6, seeds=1)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        agent.actor.layers[2].bias += 0.1
    envs = envs_of(iql, "halfcheetah-medium-v2", 1)
    returns, lengths = iql.rollout(agent, envs, np.array([[4]], np.uint64), np.zeros(17), np.ones(17))
    action = np.full(6, np.tanh(0.1))
    total, length = play(gym.make("HalfCheetah-v4"), lambda s: action, 4)
    assert lengths.item() == length == 1000
    assert returns.item() == pytest.approx(total, rel=1e-9)


class Counting(gym.Env):
    """An environment whose episode from reset seed n has n steps of reward n. Odd n end by time limit,
    even ones by termination. It must not be stepped on past the end."""

    observation_space = gym.spaces.Box(-1, 1, (11,))
    action_space = gym.spaces.Box(-1, 1, (3,))
    left = number = resets = 0

    def reset(self, *, seed: int, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.left = self.number = seed
        self.resets += 1
        return np.full(11, seed / 10), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.left > 0, "an ended episode was stepped on"
        assert self.action_space.contains(np.float32(action))
        self.left -= 1
        over, even = self.left == 0, self.number % 2 == 0
        return np.full(11, self.left / 10), float(self.number), over and even, over and not even, {}


def test_ended_episodes_are_not_stepped_on(iql: ModuleType) -> None:
    """Episodes of different lengths, side by side: each is reset once and stepped on until its end."""
    envs, resets = [Counting() for _ in range(6)], np.array([[1, 7, 2], [4, 1, 9]], dtype=np.uint64)
    played = iql.rollout(agent_of(iql, 11, 3), envs, resets, np.zeros(11), np.ones(11))
    np.testing.assert_array_equal(played, [resets.astype(float) ** 2, resets])
    assert [(env.resets, env.left) for env in envs] == 6 * [(1, 0)]


def test_nan_policy(iql: ModuleType) -> None:
    """A policy that is NaN has NaN returns and plays no step. The one beside it is not disturbed."""
    agent, resets = agent_of(iql, 11, 3), np.array([[3, 5], [8, 9]], dtype=np.uint64)
    envs, rest = envs_of(iql, "hopper-medium-v2", 4), (resets, np.zeros(11), np.ones(11))
    well = iql.rollout(agent, envs, *rest)
    with torch.no_grad():
        agent.actor.layers[1].weight[0] = torch.nan
    ill = iql.rollout(agent, envs, *rest)
    assert np.isnan(ill[0, 0]).all() and (ill[1, 0] == 0).all()
    np.testing.assert_array_equal(ill[:, 1], well[:, 1])


def write_data(path: Path, state_dim: int, bound: float) -> Path:
    """Random transitions of a small environment, with actions [n, 1] that reach ±bound."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(300, state_dim)).astype(np.float32)
        file["next_observations"] = rng.normal(size=(300, state_dim)).astype(np.float32)
        file["actions"] = np.clip(rng.normal(size=(300, 1)), -1, 1).astype(np.float32) * bound
        file["rewards"] = rng.normal(size=300).astype(np.float32)
        file["terminals"] = np.zeros(300, bool)
    return path


def check_own(args: object, plain: gym.Env, flatten: Callable, bound: float) -> None:
    """Train, and compare eval.csv's last row with a plain loop over the environment itself."""
    run(args)
    saved, (*_, row) = load(folder_of(args)), rows_of(folder_of(args) / "eval.csv")
    weights = {name.removeprefix("actor."): tensor for name, tensor in saved["agent"].items()}
    mean, std = np.array(saved["mean"]), np.array(saved["std"])
    seed = np.random.SeedSequence((0, 2, args.iterations)).generate_state(2, np.uint64)[1]
    policy = lambda s: bound * act(weights, 0, (flatten(s) - mean) / std).astype(np.float32)
    total, length = play(plain, policy, int(seed))
    assert int(row["length"]) == length
    assert float(row["return"]) == float(row["score"]) == pytest.approx(total, rel=1e-4)


def test_pendulum(iql: ModuleType, job: Callable, tmp_path: Path) -> None:
    """One's own data for an id of Gymnasium: Pendulum, whose actions in ±2 are ±1 to the networks."""
    data = write_data(tmp_path / "pendulum.hdf5", 3, 2.0)
    args = job(iql, exp_name="own")
    args.env_id, args.dataset_path = "Pendulum-v1", data
    check_own(args, gym.make("Pendulum-v1"), lambda s: s, 2.0)
    buffer, *_ = iql.load_dataset(args, iql.make_env("Pendulum-v1"))
    with h5py.File(data) as file:
        np.testing.assert_allclose(buffer[:, 3:4], file["actions"][:] / 2, atol=1e-6)


class Place(gym.Env):
    """A point on a line with Dict observations; an episode has 5 steps."""

    observation_space = gym.spaces.Dict(
        {"x": gym.spaces.Box(-9, 9, (1,)), "goal": gym.spaces.Box(-9, 9, (2,))}
    )
    action_space = gym.spaces.Box(0, 3, (1,))

    def observe(self) -> dict[str, np.ndarray]:
        return {"x": np.float32([self.x]), "goal": np.float32([1, 2])}

    def reset(self, *, seed: int, options: dict | None = None) -> tuple[dict, dict]:
        self.x, self.steps = seed % 7 / 7, 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.x, self.steps = self.x + 0.1 * (float(action[0]) - 1.5), self.steps + 1
        return self.observe(), self.x, False, self.steps == 5, {}


def test_dict_observations(iql: ModuleType, job: Callable, tmp_path: Path) -> None:
    """Dict observations become one vector, in the order of names; actions in [0, 3] are rescaled."""
    gym.register("Place-v0", lambda: Place())
    try:
        args = job(iql, exp_name="own")
        args.env_id, args.dataset_path = "Place-v0", write_data(tmp_path / "place.hdf5", 3, 1.0)
        with h5py.File(args.dataset_path, "r+") as file:
            file["actions"][:] = 1.5 * (file["actions"][:] + 1)
        plain = gym.wrappers.TransformAction(Place(), lambda a: a + 1.5, Place.action_space)
        check_own(args, plain, lambda s: np.concatenate([s["goal"], s["x"]]), 1.5)
    finally:
        del gym.registry["Place-v0"]
