"""dmg_iql.py on AntMaze: a whole small job in antmaze.py's simulator, on random data in D4RL's
shapes."""

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import folder_of

import antmaze
import dmg_iql


@pytest.fixture(scope="module")
def maze_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows of random numbers in D4RL's AntMaze layout, some with reward 1, three episodes."""
    path, rng = tmp_path_factory.mktemp("maze") / "maze.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = (5 * rng.normal(size=(300, 29))).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (300, 8)).astype(np.float32)
        file["rewards"] = (rng.random(300) < 0.1).astype(np.float32)
        file["terminals"] = file["rewards"][:] == 1
        file["timeouts"] = np.arange(300) % 100 == 99
    return path


@pytest.fixture
def args(job: Callable, maze_file: Path, monkeypatch: pytest.MonkeyPatch) -> dmg_iql.Args:
    """A short AntMaze job of two seeds, evaluated once, in episodes of 60 steps instead of 700."""
    monkeypatch.setattr(gym.spec("antmaze-umaze-v2"), "max_episode_steps", 60)
    small = dict(num_seeds=2, hidden_dim=8, batch_size=16, iterations=6, eval_every=6, save_every=2)
    return replace(job(dmg_iql, **small), env_id="antmaze-umaze-v2", dataset_path=maze_file)


def evaluations(args: dmg_iql.Args) -> list[dict[str, str]]:
    """The rows of a run's eval.csv."""
    with (folder_of(args) / "eval.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_job(args: dmg_iql.Args, capsys: pytest.CaptureFixture) -> None:
    """States stay as they are, rewards become 0 and -1, an untrained ant stays in the maze until time is
    up, with score 0. A job that was cut short and resumed gives the same rows and networks."""
    dmg_iql.train(args)
    rows = evaluations(args)
    episodes = [(row["iteration"], row["seed"], row["episode"]) for row in rows]
    assert episodes == [("6", seed, episode) for seed in "01" for episode in "01"]
    for row in rows:
        assert (float(row["return"]), row["length"], float(row["score"])) == (0, "60", 0)
    config = json.loads((folder_of(args) / "config.json").read_text())
    assert (config["normalize_states"], config["antmaze_reward"], config["rows"]) == (False, True, 297)
    saved = torch.load(folder_of(args) / "checkpoint.pt", weights_only=True)
    assert saved["mean"] == [0] * 29 and saved["std"] == [1] * 29
    assert "antmaze-umaze-v2 at 6: score [0. 0.]" in capsys.readouterr().out

    cut, write_file = replace(args, exp_name="cut", resume=False), dmg_iql.write_file

    def dies(path: Path, data: bytes) -> None:
        write_file(path, data)
        if path.name == "checkpoint.pt":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dmg_iql, "write_file", dies)
        dmg_iql.train(cut)
    assert not (folder_of(cut) / "eval.csv").exists()
    dmg_iql.train(replace(cut, resume=True))
    assert evaluations(cut) == rows
    agent = torch.load(folder_of(cut) / "checkpoint.pt", weights_only=True)["agent"]
    assert all(torch.equal(value, agent[name]) for name, value in saved["agent"].items())


def test_buffer(args: dmg_iql.Args, maze_file: Path) -> None:
    """The goal's reward 1 is 0 and any other -1 in the buffer; nothing follows the goal; states are the
    file's."""
    dmg_iql.resolve(args)
    buffer, mean, std, _ = dmg_iql.load_dataset(args, dmg_iql.make_env(args.env_id))
    with h5py.File(maze_file) as file:
        keep = ~file["timeouts"][:-1]
        rewards, states = file["rewards"][:-1][keep], file["observations"][:-1][keep]
    assert len(buffer) == 300 - 3 and not mean.any() and (std == 1).all()
    assert torch.equal(buffer[:, :29], torch.as_tensor(states))
    assert buffer[:, 37].tolist() == [0 if reward == 1 else -1 for reward in rewards]
    assert buffer[:, 38].tolist() == [0 if reward == 1 else 1 for reward in rewards]


def test_success(args: dmg_iql.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode that reaches the goal has return 1 and score 100, ends there, and is not stepped on
    while the others go on. In every second simulator the goal is where the ant stands."""
    reset, true, made, steps = antmaze.AntMazeEnv.reset_model, antmaze.AntMazeEnv.step, [], {}

    def reset_model(env: antmaze.AntMazeEnv) -> np.ndarray:
        state = reset(env)
        if len(made) % 2 == 0:
            env.goal = state[:2].copy()
        made.append(env)
        return state

    def step(env: antmaze.AntMazeEnv, action: np.ndarray) -> tuple:
        steps[env] = steps.get(env, 0) + 1
        return true(env, action)

    monkeypatch.setattr(antmaze.AntMazeEnv, "reset_model", reset_model)
    monkeypatch.setattr(antmaze.AntMazeEnv, "step", step)
    dmg_iql.train(args)
    found = [(float(row["return"]), row["length"], float(row["score"])) for row in evaluations(args)]
    assert found == [(1, "1", 100), (0, "60", 0)] * 2
    assert [steps[env] for env in made] == [1, 60, 1, 60]


@pytest.mark.parametrize("task", antmaze.TASKS)
def test_simulators(task: str) -> None:
    """Every id, -v2 and -local, is evaluated in its own maze, with D4RL's time limit."""
    maze, limit = antmaze.TASKS[task]
    for env in (dmg_iql.make_env(f"{task}-v2"), dmg_iql.make_env(f"{task}-local")):
        assert env.spec.max_episode_steps == limit and env.spec.kwargs == {"maze": maze}
        assert (env.observation_space.shape, env.action_space.shape) == ((29,), (8,))


def test_without_the_simulator(args: dmg_iql.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that was copied elsewhere says what AntMaze needs, and leaves no run folder."""
    monkeypatch.setitem(sys.modules, "antmaze", None)
    with pytest.raises(SystemExit, match="^error: no simulator for antmaze-umaze-v2: .*antmaze"):
        dmg_iql.train(args)
    assert not args.run_dir.exists()


def test_without_the_d4rl_package(args: dmg_iql.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the robot's file the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install --no-deps d4rl==1\.1"):
        dmg_iql.train(args)
