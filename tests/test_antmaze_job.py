"""dmg_iql.py on AntMaze: a whole small job in antmaze.py's simulator, on random data in D4RL's shapes."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import antmaze
import dmg_iql

ROOT = Path(dmg_iql.__file__).parent


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
def maze_job(maze_file: Path, tmp_path: Path) -> Callable:
    """A function that makes dmg_iql.Args of a short AntMaze job; keywords override."""

    def make(**changes: object) -> dmg_iql.Args:
        small = dict(env_id="antmaze-umaze-v2", dataset_path=maze_file, hidden_dim=8, batch_size=16, iterations=6)
        small |= dict(eval_every=6, eval_episodes=2, log_every=2, save_every=2, num_seeds=2, device="cpu", threads=1)
        return dmg_iql.Args(**(small | dict(exp_name="job", run_dir=tmp_path / "runs") | changes))

    return make


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's eval.csv."""
    with (folder / "eval.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_job(maze_job: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """States stay as they are, rewards become 0 and -1, an untrained ant stays in the maze for 700 steps with score 0;
    two worker processes, and a job that was cut short and resumed, give the same rows."""
    assert dmg_iql.train(maze_job()) == 0
    folder = tmp_path / "runs/antmaze-umaze-v2__job__s0-1"
    rows = evaluations(folder)
    assert [(row["iteration"], row["seed"], row["episode"]) for row in rows] == [
        ("6", seed, episode) for seed in "01" for episode in "01"
    ]
    for row in rows:
        assert (float(row["return"]), row["length"], float(row["score"]), row["success"]) == (0, "700", 0, "0")
    config = json.loads((folder / "config.json").read_text())
    assert (config["normalize_states"], config["antmaze_reward"]) == (False, True)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["state_mean"] == [0] * 29 and saved["state_scale"] == [1] * 29
    assert "last score 0.0 ± 0.0" in capsys.readouterr().out

    assert dmg_iql.train(maze_job(exp_name="workers", eval_workers=2)) == 0
    other = tmp_path / "runs/antmaze-umaze-v2__workers__s0-1"
    assert (other / "eval.csv").read_bytes() == (folder / "eval.csv").read_bytes()

    part = torch.save

    def dies(state: dict, path: Path) -> None:
        part(state, path)
        if state["iteration"] == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", dies)
        dmg_iql.train(maze_job(exp_name="cut"))
    assert dmg_iql.train(maze_job(exp_name="cut", resume=True)) == 0
    cut = tmp_path / "runs/antmaze-umaze-v2__cut__s0-1"
    assert (cut / "eval.csv").read_bytes() == (folder / "eval.csv").read_bytes()


def test_replay_table(maze_job: Callable, maze_file: Path) -> None:
    """The goal's reward 1 is 0 and any other -1 in the table; nothing follows the goal; states are the file's."""
    args = dmg_iql.resolve(maze_job())
    table, mean, scale = dmg_iql.replay_table(dmg_iql.load_transitions(maze_file, 29, 8, 700), args)
    with h5py.File(maze_file) as file:
        keep = ~file["timeouts"][:-1]
        rewards, states = file["rewards"][:-1][keep], file["observations"][:-1][keep]
    assert len(table) == 300 - 3 and not mean.any() and (scale == 1).all()
    assert torch.equal(table[:, :29], torch.as_tensor(states))
    assert table[:, 37].tolist() == [0 if reward == 1 else -1 for reward in rewards]
    assert table[:, 38].tolist() == [0 if reward == 1 else 1 for reward in rewards]


def test_success(maze_job: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode that reaches the goal has return 1, score 100 and success 1, ends there, and is not stepped on while
    the others go on. The goal is made as large as the maze for every second simulator."""
    dmg_iql.simulators.cache_clear()
    steps, true = {}, antmaze.AntMazeEnv.step

    def step(env: antmaze.AntMazeEnv, action: np.ndarray) -> tuple:
        number = steps.setdefault(env, [len(steps), 0])
        number[1] += 1
        monkeypatch.setattr(antmaze, "REACHED", 0.5 if number[0] % 2 else 1e3)
        return true(env, action)

    monkeypatch.setattr(antmaze.AntMazeEnv, "step", step)
    assert dmg_iql.train(maze_job()) == 0
    rows = evaluations(tmp_path / "runs/antmaze-umaze-v2__job__s0-1")
    found = [(float(row["return"]), row["length"], float(row["score"]), row["success"]) for row in rows]
    assert found == [(1, "1", 100, "1"), (0, "700", 0, "0")] * 2
    assert sorted(count for _, count in steps.values()) == [1, 1, 700, 700]
    dmg_iql.simulators.cache_clear()


@pytest.mark.parametrize("task", antmaze.TASKS)
def test_simulators(task: str) -> None:
    """Every id is evaluated in its own maze, with D4RL's time limit; the score is the success rate in percent."""
    env = dmg_iql.make_env(f"{task}-v2")
    maze, limit = antmaze.TASKS[task]
    assert env.spec.max_episode_steps == limit and env.spec.kwargs == {"maze": maze}
    assert (env.observation_space.shape, env.action_space.shape) == ((29,), (8,))
    assert dmg_iql.normalized_score(f"{task}-v2", np.array([0, 1, 1, 1])).mean() == 75


def test_script_without_the_simulator(maze_file: Path, tmp_path: Path) -> None:
    """The script alone, copied elsewhere, says what AntMaze needs, and leaves no run folder."""
    shutil.copy(ROOT / "dmg_iql.py", tmp_path)
    command = [sys.executable, "dmg_iql.py", "--env-id", "antmaze-umaze-v2", "--dataset-path", str(maze_file)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "runs").exists()
    assert done.stderr.startswith("error: antmaze-umaze-v2 needs") and "antmaze.py" in done.stderr


def test_without_the_d4rl_package(maze_job: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the robot's file the message says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "d4rl" else find(name, *rest))
    dmg_iql.simulators.cache_clear()
    with pytest.raises(SystemExit, match=r"^error: .*pip install --no-deps d4rl==1\.1"):
        dmg_iql.train(maze_job())
