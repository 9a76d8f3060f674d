"""tools/data/collect.py on AntMaze, and the training of its ant: what is recorded is what the simulator
did, led as D4RL leads and relabelled as D4RL relabels. (Its maps and paths are held against d4rl's own
in test_antmaze.py.)"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import collect
import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
import torch
import train_behaviour
from scipy.spatial.transform import Rotation

import antmaze
import dmg_iql

sys.path.append(str(Path(dmg_iql.__file__).parent / "tools" / "antmaze"))
import draw

CENTRES = {
    "umaze": (0.75, 8.75),
    "medium": (20.75, 20.75),
    "large": (32.75, 24.75),
}  # of evaluation's goals, by hand


@pytest.fixture(scope="module")
def umaze(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """1,500 rows of antmaze-umaze-local: two whole episodes of 701 rows and the beginning of a third."""
    path = tmp_path_factory.mktemp("umaze") / "umaze.hdf5"
    collect.main(collect.Args(env_id="antmaze-umaze-local", size=1500, workers=1, out=path))
    with h5py.File(path) as file:
        assert file.attrs["simulator"] == "antmaze-umaze-v2" and file.attrs["size"] == 1500
        return {
            key: file[key][:]
            for key in ("observations", "actions", "rewards", "terminals", "timeouts", "infos/goal")
        }


# ---- the ant ------------------------------------------------------------------------------------------
def turned(state: np.ndarray, angle: float) -> np.ndarray:
    """The same ant, all of it turned by `angle` about the z axis through the origin; by SciPy."""
    turn = Rotation.from_euler("z", angle)
    quaternion = (turn * Rotation.from_quat(state[3:7], scalar_first=True)).as_quat(scalar_first=True)
    return np.concatenate(
        [turn.apply(state[:3]), quaternion, state[7:15], turn.apply(state[15:18]), state[18:]]
    )


@pytest.mark.parametrize("angle", [0.3, 2.0, -3.0, np.pi / 2])
def test_facing_sees_no_direction(angle: float) -> None:
    """A turned ant that is to go in the turned direction sees the same; in the old direction it does
    not."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        state = rng.normal(size=29)
        state[3:7] /= np.linalg.norm(state[3:7])
        seen = collect.facing(state, 0.7)
        assert seen.shape == (27,)
        np.testing.assert_allclose(collect.facing(turned(state, angle), 0.7 + angle), seen, atol=1e-12)
        assert np.abs(collect.facing(turned(state, angle), 0.7) - seen).max() > 0.01


def test_facing_is_what_the_simulator_keeps() -> None:
    """On a plane, an ant and the same ant turned by 90 degrees, moved by the same torques, look the
    same."""
    ants = [antmaze.AntMazeEnv(["SG"]) for _ in range(2)]
    first, _ = ants[0].reset(seed=1)
    ants[1].reset(seed=1)
    start = turned(first, np.pi / 2)
    mujoco.mj_resetData(ants[1].model, ants[1].data)
    ants[1].set_state(start[:15], start[15:])
    rng = np.random.default_rng(2)
    for _ in range(30):
        action = rng.uniform(-1, 1, 8)
        one, two = (ant.step(action)[0] for ant in ants)
        np.testing.assert_allclose(
            collect.facing(one, 0.2), collect.facing(two, 0.2 + np.pi / 2), atol=1e-5
        )
        np.testing.assert_allclose((two[0], two[1]), (-one[1], one[0]), atol=1e-5)
    assert np.linalg.norm(one[:2] - first[:2]) > 0.1


def test_ant_walks_where_it_is_told() -> None:
    """The stored policy covers 8 m in 100 steps in any direction, in the mean of four (noise as when
    collecting)."""
    env, policy = antmaze.AntMazeEnv(["SG"]), collect.load_policy("ant-walk.npz:0")
    progress = []
    for i, angle in enumerate((0.0, 1.5, 3.0, -2.0)):
        rng = np.random.default_rng(i)
        state, _ = env.reset(seed=i)
        start = state[:2]
        for _ in range(100):
            action = collect.act(
                policy, collect.facing(state, angle), 8, rng
            ) + 0.2 * rng.standard_normal(8)
            state, *_ = env.step(action)
        progress.append((state[:2] - start) @ (np.cos(angle), np.sin(angle)))
    assert np.mean(progress) > 8 and min(progress) > 2, progress


def test_plane_pays_for_speed_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward by hand from the simulator's own places; another direction after `left` steps; a fall, the
    500th step and an unstable simulation end an episode."""
    env = train_behaviour.Plane()
    env.reset(seed=3)
    env.angle, env.left = 1.0, 3
    for step in range(1, 4):
        place = env.ant.data.qpos[:2].copy()
        action = np.full(8, 0.5)
        seen, reward, terminated, truncated, _ = env.step(action)
        moved = (env.ant.data.qpos[:2] - place) / 0.1
        assert reward == pytest.approx(
            moved[0] * np.cos(1.0) + moved[1] * np.sin(1.0) + 0.5 - 0.1 * 0.25
        )
        assert seen.shape == (27,) and not (terminated or truncated) and (env.angle == 1.0) == (step < 3)
    env.steps = 499
    assert env.step(np.zeros(8))[3]
    qpos = env.ant.data.qpos.copy()
    qpos[2:7] = 0.3, 0, 1, 0, 0  # on its back
    env.ant.set_state(qpos, np.zeros(14))
    assert env.step(np.zeros(8))[2]

    def unstable(action: np.ndarray) -> None:
        raise RuntimeError

    monkeypatch.setattr(env.ant, "step", unstable)
    assert env.step(np.zeros(8))[1:4] == (0.0, True, False)


def test_noise_of_the_motors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The motors get the action, and where there is noise normal noise of that standard deviation,
    clipped to 1."""
    env = train_behaviour.Plane()
    env.reset(seed=4)
    given = []
    real = env.ant.step
    monkeypatch.setattr(env.ant, "step", lambda motors: given.append(motors) or real(motors))
    action = np.full(8, 0.1)
    env.step(action)
    env.noise = 0.3
    for _ in range(100):
        env.step(action)
    np.testing.assert_array_equal(given[0], action)
    noise = np.array(given[1:]) - action
    assert abs(noise.mean()) < 0.03 and 0.27 < noise.std() < 0.33 and np.abs(given).max() <= 1


def test_training_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` of the ant, stopped after 200 steps, goes on to 400 with its replay buffer; its motors are
    noisy from the 300th."""
    heard, real = [], train_behaviour.Plane.step
    monkeypatch.setattr(train_behaviour, "NOISY_FROM", 300)
    monkeypatch.setattr(
        train_behaviour.Plane, "step", lambda env, action: heard.append(env.noise) or real(env, action)
    )
    flags = {"robot": "ant", "snapshot_every": 100, "folder": tmp_path, "seed": 1}
    train_behaviour.train(train_behaviour.Args(steps=200, **flags))
    train_behaviour.train(train_behaviour.Args(steps=400, **flags))
    assert heard == [0.0] * 300 + [0.3] * 100
    assert "continuing ant at step 200" in capsys.readouterr().out
    assert len(list(tmp_path.glob("ant/snapshot_*.npz"))) == 4
    lines = (tmp_path / "ant/progress.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["100", "200", "300", "400"]
    arrays = np.load(tmp_path / "ant/snapshot_0000400.npz")
    assert arrays["w0"].shape == (27, 128) and arrays["w2"].shape == (128, 16)


# ---- the data -----------------------------------------------------------------------------------------
def test_rows_are_what_the_simulator_gives(umaze: dict[str, np.ndarray]) -> None:
    """From its reset seed, a recorded episode's actions give its observations again, in an ant maze of
    its own."""
    seed = int(np.random.SeedSequence((0, 0, 0)).spawn(2)[0].generate_state(1)[0])
    env = antmaze.AntMazeEnv("umaze")
    state, info = env.reset(seed=seed)
    np.testing.assert_array_equal(umaze["infos/goal"][0], info["goal"].astype(np.float32))
    for i in range(701):
        np.testing.assert_array_equal(umaze["observations"][i], state.astype(np.float32))
        state, *_ = env.step(umaze["actions"][i])
    assert np.abs(umaze["observations"][701, :2]).max() < 0.2, (
        "and then comes the next episode, at the start"
    )
    assert np.abs(umaze["actions"]).max() <= 1 and umaze["actions"].dtype == np.float32


def test_reward_and_end(umaze: dict[str, np.ndarray]) -> None:
    """Reward and terminal: whether the *next* row is within 0.5 m of the evaluation goal; rows go on
    after them; every 701st row is a time limit, and so is the last."""
    distance = np.linalg.norm(umaze["observations"][1:, :2] - CENTRES["umaze"], axis=1)
    wanted = np.append(distance <= 0.5, False) & ~umaze["timeouts"]
    np.testing.assert_array_equal(umaze["terminals"], wanted)
    np.testing.assert_array_equal(umaze["rewards"], wanted.astype(np.float32))
    assert 20 < wanted[:701].sum() < 600 and np.flatnonzero(wanted)[0] < 600
    assert np.flatnonzero(umaze["timeouts"]).tolist() == [700, 1401, 1499]


def test_transitions(umaze: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The scripts read the file: no transition across episodes, terminals kept, every next state the
    next row."""
    with h5py.File(tmp_path / "umaze.hdf5", "w") as file:
        for key, values in umaze.items():
            file[key] = values
    args = dmg_iql.Args("antmaze-umaze-local", tmp_path / "umaze.hdf5", device="cpu")
    dmg_iql.resolve(args)
    buffer, *_ = dmg_iql.load_dataset(args, dmg_iql.make_env(args.env_id))
    assert len(buffer) == 1500 - 3 and (buffer[:, 38] == 0).sum() == umaze["terminals"].sum()
    assert (buffer[:, 39:41] - buffer[:, :2]).norm(dim=1).max() < 1, "metres"


@pytest.mark.parametrize(
    "task, starts, goals",
    [
        ("umaze", {(0, 0)}, {(0, 2)}),
        ("umaze-diverse", 6, 7),
        ("medium-play", 23, {(5, 1), (0, 4), (4, 5)}),
        ("medium-diverse", 23, 26),
        ("large-play", 39, {(5, 0), (4, 2), (9, 2), (1, 4), (3, 6), (5, 6), (8, 6)}),
        ("large-diverse", 39, 46),
    ],
)
def test_starts_and_goals(task: str, starts: set | int, goals: set | int) -> None:
    """Cells of 600 resets: the start's, or any free one but D4RL's goals; D4RL's goals, or any free
    cell."""
    env = collect.make_maze(f"antmaze-{task}-local")
    seen = set(), set()
    for seed in range(600):
        state, info = env.reset(seed=seed)
        for cells, place in zip(seen, (state[:2], info["goal"])):
            cells.add(tuple(np.rint(place / 4).astype(int).tolist()))
    for cells, wanted in zip(seen, (starts, goals)):
        assert len(cells) == wanted if isinstance(wanted, int) else cells == wanted, (cells, wanted)


@pytest.mark.parametrize("maze", CENTRES)
def test_evaluation_goal(maze: str) -> None:
    """The goal that counts is the mean of what evaluation draws."""
    task = {"umaze": "umaze", "medium": "medium-play", "large": "large-diverse"}[maze]
    np.testing.assert_allclose(collect.evaluation_goal(f"antmaze-{task}-local"), CENTRES[maze])
    env = antmaze.AntMazeEnv(maze)
    drawn = np.array([env.reset(seed=seed)[1]["goal"] for seed in range(500)])
    np.testing.assert_allclose(drawn.mean(0), CENTRES[maze], atol=0.05)


def test_waypoints_by_hand() -> None:
    """In umaze: right along the first row to the centre of its last cell and past it, down the same way;
    left along the last row, where the cell's edge on the way down the axis is its centre; from the cell
    before the goal's to the goal itself; inside a wall, to the best cell beside it."""
    env = collect.make_maze("antmaze-umaze-local")
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def next_to(x: float, y: float) -> np.ndarray:
        return collect.waypoint(env, np.array([x, y]), rng)

    for place, corner in (
        ((0, 0), (4, 0)),
        ((3.9, -0.5), (4, 0)),
        ((4, 0), (8, 0)),
        ((7.9, 1.9), (8, 0)),
        ((8.1, 1.9), (8, 4)),
        ((8.1, 3.9), (8, 4)),
        ((8, 4), (8, 8)),
        ((8.1, 7.9), (8, 8)),
        ((8.1, 8), (4, 8)),
        ((7.9, 4.1), (4, 8)),  # counted to the wall in the middle
    ):
        offset = np.array([next_to(*place) - corner for _ in range(200)])
        assert offset.min() >= 0 and offset.max() <= 1 and np.abs(offset.mean(0) - 0.5).max() < 0.1
    np.testing.assert_array_equal(next_to(7.9, 8.1), env.goal)
    np.testing.assert_array_equal(next_to(0.3, 8.2), env.goal)
    np.testing.assert_array_equal(next_to(0.3, 7.8), env.goal)


def test_unstable_simulation_ends_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row whose next state is not known ends the episode as a time limit does."""
    env, real, calls = collect.make_maze("antmaze-umaze-local"), antmaze.AntMazeEnv.step, []

    def step(action: np.ndarray) -> tuple:
        calls.append(action)
        if len(calls) == 20:
            raise RuntimeError
        return real(env, action)

    monkeypatch.setattr(env, "step", step)
    episode = collect.play(("antmaze-umaze-local", "ant-walk.npz:0", 0, 0, 0))
    assert {len(values) for values in episode.values()} == {20}
    assert episode["timeouts"].tolist() == [False] * 19 + [True] and not episode["terminals"].any()


def test_picture(umaze: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """draw.py draws a dataset and a run of it, with all trajectories up to the goal or whole; a run of
    another dataset beside it, or flags out of range, are refused."""
    with h5py.File(tmp_path / "antmaze_umaze-local.hdf5", "w") as file:
        for key, values in umaze.items():
            file[key] = values
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(gym.spec("antmaze-umaze-v2"), "max_episode_steps", 60)
    job = dict(iterations=1, eval_episodes=1, hidden_dim=4, batch_size=4, device="cpu", run_dir=tmp_path)
    dmg_iql.train(dmg_iql.Args(env_id="antmaze-umaze-local", exp_name="none", num_seeds=2, **job))
    run = tmp_path / "antmaze-umaze-local__none__s0-1"
    drawn, real = [], draw.draw
    monkeypatch.setattr(draw, "draw", lambda panels, *rest: drawn.extend(panels) or real(panels, *rest))
    draw.main(draw.Args([run], tmp_path / "maze.png", trajectories=3, episodes=2))
    assert (tmp_path / "maze.png").read_bytes()[:4] == b"\x89PNG"
    (_, data), (title, episodes) = drawn
    for (places, success), begin in zip(data, (0, 701, 1402)):
        first = begin + np.flatnonzero(umaze["terminals"][begin : begin + 701])[0] if success else 1498
        np.testing.assert_array_equal(places, umaze["observations"][begin : first + 2, :2])
    assert [success for _, success in data] == [True, True, False] and title == "none: 0 of 2 reach it"
    assert [len(places) for places, *_ in episodes] == [61, 61] and not episodes[0][1]
    assert not np.array_equal(episodes[0][0], episodes[1][0])
    (tmp_path / "hopper").mkdir()
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["config"]["env_id"] = "hopper-medium-local"
    torch.save(saved, tmp_path / "hopper/checkpoint.pt")
    for flags, words in (
        (dict(runs=[run, tmp_path / "hopper"]), "one AntMaze dataset"),
        (dict(runs=[run], episodes=0), "--episodes 0: expected 1"),
        (dict(runs=[run], out=tmp_path / "maze.jpg"), "--out"),
    ):
        with pytest.raises(ValueError, match=words):
            draw.main(draw.Args(**flags))


def test_facts_by_hand() -> None:
    """Three trajectories of 701 rows and a cut one in umaze: the first reaches its own place and the
    goal, the second its own place only, the third, from elsewhere, the goal only."""
    rows = 3 * 701 + 10
    data = {
        "observations": np.zeros((rows, 29)),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }
    data["infos/goal"] = np.full((rows, 2), (0.9, 8.9))
    data["timeouts"][[700, 1401, 2102, rows - 1]] = True
    data["observations"][300:400, :2] = 0.9, 8.9
    data["terminals"][300:400] = True
    data["infos/goal"][701:1402] = 4, 0.3
    data["observations"][1000, :2] = 4, 0
    data["observations"][1402:2103, :2] = 8, 8
    data["terminals"][1500] = True
    data["terminals"][rows - 5] = True
    facts = collect.maze_facts("antmaze-umaze-local", data)
    assert facts.pop("paths").tolist() == [24, 8]
    assert facts == {"trajectories": 3, "reached": 2, "seen": 2, "begun": 2, "begun_seen": 1}


def test_default_size_and_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A dataset has 1,000,000 rows, as D4RL's have; the last line says how often the ant got there."""
    asked: list[int] = []
    real: Callable = collect.collect

    def small(env_id: str, size: int, seed: int, workers: int) -> tuple:
        asked.append(size)
        return real(env_id, 1402, seed, 1)

    monkeypatch.setattr(collect, "collect", small)
    for task in ("antmaze-umaze", "hopper-medium"):
        collect.main(collect.Args(env_id=f"{task}-local", out=tmp_path / f"{task}.hdf5"))
    text = capsys.readouterr().out
    assert "2 whole episodes, 2 reach the place they are sent to and 2 see the evaluation goal" in text
    assert asked == [1_000_000, 1_000_000]


def test_without_the_d4rl_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the robot's file there is one line that says what to install, and nothing is written."""
    collect.make_env.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install --no-deps d4rl==1\.1"):
        collect.main(collect.Args(env_id="antmaze-umaze-local", workers=1, out=tmp_path / "x.hdf5"))
    assert not list(tmp_path.iterdir())
