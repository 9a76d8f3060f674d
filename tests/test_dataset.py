"""What dmg_iql.load_dataset makes of a file: D4RL's transitions, own next states, normalisation, rewards
and actions, scores, downloads, and what it refuses. (The other scripts have the same text.) The d4rl
package is the oracle."""

import itertools
import math
import os
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from common import D4RL_IDS
from conftest import folder_of

import dmg_iql

HOPPER = 11, 3  # width of its states and of its actions
Rows = dict[str, np.ndarray]


class Spaces(gym.Env):
    """As much of a simulator as load_dataset looks at: the width of the states, and the bounds of the
    actions."""

    def __init__(self, state_dim: int, action_dim: int, low: object = -1.0, high: object = 1.0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (state_dim,), np.float64)
        bounds = [np.broadcast_to(np.float32(bound), action_dim) for bound in (low, high)]
        self.action_space = gym.spaces.Box(*bounds, dtype=np.float32)


def load(
    path: Path | None, env: gym.Env | None = None, **flags: object
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, dict]:
    """load_dataset for hopper-medium-local, with states as they are; flags override."""
    plain = dict(env_id="hopper-medium-local", normalize_states=False, antmaze_reward=False)
    args = dmg_iql.Args(dataset_path=path, device="cpu", **plain | flags)
    return dmg_iql.load_dataset(args, env or Spaces(*HOPPER))


def columns(buffer: torch.Tensor, state_dim: int, action_dim: int) -> Rows:
    """The columns of a buffer under d4rl's names."""
    s, a, r, not_done, s2 = np.split(buffer.numpy(), np.cumsum([state_dim, action_dim, 1, 1]), axis=1)
    terminals = not_done[:, 0] == 0
    assert (not_done[terminals] == 0).all() and (not_done[~terminals] == 1).all()
    return dict(observations=s, actions=a, rewards=r[:, 0], terminals=terminals, next_observations=s2)


def write(path: Path, rows: int = 6, attrs: dict[str, object] | None = None, **changes: object) -> Path:
    """Write a good Hopper file, but for the columns that are changed or, by None, left out."""
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs or {})
        for key, values in (data | changes).items():
            if values is not None:
                file[key] = values
    return path


@pytest.fixture(scope="session")
def d4rl(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The d4rl package: without mujoco_py, which it does not need here, and without a folder in the home
    directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mujoco_py", None)
        patch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
        patch.setenv("D4RL_DATASET_DIR", str(tmp_path_factory.mktemp("d4rl")))
        import d4rl
        import d4rl.offline_env
    return d4rl


# ---- Files with timeouts: d4rl.qlearning_dataset is the oracle ----------------------------------------
def oracle(d4rl: ModuleType, path: Path, state_dim: int, action_dim: int) -> Rows:
    """What d4rl makes of a file, by its own get_dataset and qlearning_dataset."""
    env = d4rl.offline_env.OfflineEnv()
    env.observation_space = SimpleNamespace(shape=(state_dim,))
    env.action_space = SimpleNamespace(shape=(action_dim,))
    env._max_episode_steps = 1000  # has to be there, and does not count in a file with timeouts
    return d4rl.qlearning_dataset(env, env.get_dataset(h5path=str(path)))


def compare(d4rl: ModuleType, path: Path, state_dim: int, action_dim: int) -> None:
    """Assert that the buffer is d4rl's transitions, bit for bit, and that a file without any is
    refused."""
    theirs = oracle(d4rl, path, state_dim, action_dim)
    if len(theirs["rewards"]) == 0:
        with pytest.raises(SystemExit, match="^error: .* no transition"):
            load(path, Spaces(state_dim, action_dim))
        return
    buffer, *_ = load(path, Spaces(state_dim, action_dim))
    assert buffer.dtype == torch.float32
    ours = columns(buffer, state_dim, action_dim)
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_array_equal(ours[key], values, err_msg=key, strict=True)


def random_file(path: Path, rng: np.random.Generator) -> tuple[int, int]:
    """Write a small random file of D4RL's layout in any dtypes and shapes that D4RL reads: float32 and
    float64, int8, uint8 and bool, (n,) and (n, 1), gzip, more columns than are used. Returns the widths
    of states and actions."""
    rows = int(rng.choice([2, 3, 4, 7, 12, 40]))
    state_dim, action_dim = int(rng.integers(1, 4)), int(rng.integers(1, 3))

    def flags(chance: float) -> np.ndarray:
        """Terminals or timeouts: random ones, the first and the last row often among them."""
        values = rng.random(rows) < chance
        values[0] |= rng.random() < 0.2
        values[-1] |= rng.random() < 0.3
        values = values.astype(rng.choice([np.uint8, np.int8, bool, np.float32, np.float64]))
        return values[:, None] if rng.random() < 0.3 else values

    real = rng.choice([np.float32, np.float64])
    rewards = rng.normal(size=rows).astype(real) if rng.random() < 0.8 else rng.integers(-3, 3, rows)
    data = {
        "observations": rng.normal(size=(rows, state_dim)).astype(real),
        "actions": rng.uniform(-1, 1, (rows, action_dim)).astype(rng.choice([np.float32, np.float64])),
        "rewards": rewards[:, None] if rng.random() < 0.3 else rewards,
        "terminals": flags(rng.choice([0.0, 0.1, 0.3, 0.7])),
        "timeouts": flags(rng.choice([0.0, 0.1, 0.4])),  # on terminal rows, too
    }
    if (
        rng.random() < 0.5
    ):  # as in D4RL's own files; where there are timeouts, next_observations do not count
        data |= {"infos/qpos": np.ones((rows, 2)), "metadata/algorithm": "SAC"}
        data["next_observations"] = np.full((rows, state_dim), 7.0)
    with h5py.File(path, "w") as file:
        for key in rng.permutation(sorted(data)):
            zipped = {"compression": "gzip"} if np.ndim(data[key]) and rng.random() < 0.5 else {}
            file.create_dataset(key, data=data[key], **zipped)
    return state_dim, action_dim


@pytest.mark.parametrize("seed", range(120))
def test_random_files(d4rl: ModuleType, tmp_path: Path, seed: int) -> None:
    """Random small files become exactly d4rl's transitions."""
    path = tmp_path / "random.hdf5"
    compare(d4rl, path, *random_file(path, np.random.default_rng(seed)))


@pytest.mark.parametrize("rows", [2, 3])
def test_every_pattern_of_ends(d4rl: ModuleType, tmp_path: Path, rows: int) -> None:
    """Timeouts alone end an episode without a transition, on a terminal row as on any other."""
    path = tmp_path / "pattern.hdf5"
    data = dict(
        observations=np.arange(2.0 * rows).reshape(rows, 2), actions=np.linspace(-1, 1, rows)[:, None]
    )
    data["rewards"] = np.arange(200.0, 200 + rows)
    for terminals, timeouts in itertools.product(
        itertools.product([False, True], repeat=rows), repeat=2
    ):
        write(path, **data, terminals=np.array(terminals), timeouts=np.array(timeouts))
        compare(d4rl, path, 2, 1)


# ---- Files without timeouts: their own next states ----------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_own_next_observations(d4rl: ModuleType, tmp_path: Path, seed: int) -> None:
    """d4rl's transitions, shuffled and written as a file, are read as they are, every row, in the file's
    order."""
    rng = np.random.default_rng(seed)
    shape = random_file(tmp_path / "first.hdf5", rng)
    theirs = oracle(d4rl, tmp_path / "first.hdf5", *shape)
    order = rng.permutation(len(theirs["rewards"]))
    theirs = {key: values[order] for key, values in theirs.items()}
    other = dict(
        rewards=theirs["rewards"][:, None].astype(np.float64),
        terminals=theirs["terminals"].astype(np.int8),
    )
    write(tmp_path / "shuffled.hdf5", timeouts=None, **theirs | other)
    buffer, *_ = load(tmp_path / "shuffled.hdf5", Spaces(*shape))
    for key, values in columns(buffer, *shape).items():
        np.testing.assert_array_equal(values, theirs[key], err_msg=key, strict=True)
    assert len(buffer) == len(order) > 0


def test_one_transition(tmp_path: Path) -> None:
    """One row with its own next state is a transition, and one terminal row is as well."""
    path = write(
        tmp_path / "one.hdf5",
        rows=1,
        timeouts=None,
        next_observations=np.full((1, 11), 2),
        terminals=[1],
    )
    buffer, *_ = load(path)
    assert buffer[0, 14:].tolist() == [buffer[0, 14].item(), 0.0, *11 * [2.0]]


# ---- The buffer ---------------------------------------------------------------------------------------
TABLE = {  # three transitions of a robot with two numbers for a state and one motor
    "observations": np.array([[0, 10], [2, 10], [4, 10]], np.float32),
    "actions": np.array([[0.5], [-0.5], [1.0]], np.float32),
    "rewards": np.array([1.0, 0.0, 2.5], np.float32),
    "next_observations": np.array([[2, 11], [4, 9], [8, 10]], np.float32),
    "terminals": np.array([False, True, False]),
    "timeouts": None,
}


def test_columns(tmp_path: Path) -> None:
    """A row is s | a | r | 1 - terminal | s', in the order of the file, with the states as they were."""
    buffer, mean, std, attrs = load(
        write(tmp_path / "table.hdf5", attrs={"note": "mine"}, **TABLE), Spaces(2, 1)
    )
    rows = [[0, 10, 0.5, 1.0, 1, 2, 11], [2, 10, -0.5, 0.0, 0, 4, 9], [4, 10, 1.0, 2.5, 1, 8, 10]]
    assert torch.equal(buffer, torch.tensor(rows)) and buffer.dtype == torch.float32
    assert buffer.device.type == "cpu" and buffer.is_contiguous() and attrs["note"] == "mine"
    assert mean.tolist() == [0, 0] and std.tolist() == [1, 1]


def test_normalisation(float64: None, tmp_path: Path) -> None:
    """s and s' are normalised by mean and population standard deviation + 0.001 of s alone; the rest
    stays. The buffer has torch's default dtype."""
    path = write(tmp_path / "table.hdf5", **TABLE)
    buffer, mean, std, _ = load(path, Spaces(2, 1), normalize_states=True)
    scales = [
        math.sqrt(8 / 3) + 1e-3,
        1e-3,
    ]  # 0, 2, 4: mean 2, variance (4 + 0 + 4) / 3; 10, 10, 10: mean 10, 0
    assert (
        mean.tolist() == [2, 10]
        and buffer.dtype == torch.float64
        and mean.dtype == std.dtype == np.float64
    )
    np.testing.assert_allclose(std, scales, rtol=1e-15)
    np.testing.assert_allclose(buffer[:, :2], np.array([[-2, 0], [0, 0], [2, 0]]) / scales, rtol=1e-15)
    np.testing.assert_allclose(buffer[:, 5:], np.array([[0, 1], [2, -1], [6, 0]]) / scales, rtol=1e-15)
    assert torch.equal(buffer[:, 2:5], load(path, Spaces(2, 1))[0][:, 2:5])


def test_normalisation_in_float64(float64: None, tmp_path: Path) -> None:
    """Mean and standard deviation are taken in float64: float32 would be off where states are far from
    0."""
    states = (5000 + np.random.default_rng(0).normal(size=(3000, 1))).astype(np.float32)
    data = dict(observations=states, actions=np.zeros((3000, 1)))
    path = write(tmp_path / "far.hdf5", rows=3000, timeouts=None, next_observations=states, **data)
    buffer, mean, std, _ = load(path, Spaces(1, 1), normalize_states=True)
    exact = states[:, 0].tolist()
    np.testing.assert_allclose(mean, statistics.fmean(exact), rtol=1e-13)
    np.testing.assert_allclose(std, statistics.pstdev(exact) + 1e-3, rtol=1e-10)
    np.testing.assert_array_equal(buffer[:, :1], (states.astype(np.float64) - mean) / std)
    assert abs(states.mean(dtype=np.float32) - mean[0]) > 1e-9  # what float32 would have given


def test_antmaze_reward(tmp_path: Path) -> None:
    """AntMaze's reward becomes 0 at the goal, where it was 1, and -1 elsewhere."""
    path = write(tmp_path / "maze.hdf5", rewards=np.array([1, 0, 0.5, -1, 2, 1]), timeouts=None,
                 next_observations=np.zeros((6, 11)))  # fmt: skip
    assert load(path, antmaze_reward=True)[0][:, 14].tolist() == [0, -1, -1, -1, -1, 0]
    assert load(path)[0][:, 14].tolist() == [1, 0, 0.5, -1, 2, 1]


def test_actions_of_other_bounds(tmp_path: Path) -> None:
    """Actions are scaled from the simulator's bounds to [-1, 1]: Pendulum-v1's ±2, and each of others by
    itself."""
    actions = np.array([[-2.0], [0.5], [2.0]])
    path = write(tmp_path / "pendulum.hdf5", rows=3, observations=np.zeros((3, 3)), actions=actions)
    buffer, *_ = load(path, dmg_iql.make_env("Pendulum-v1"), env_id="Pendulum-v1")
    assert buffer[:, 3].tolist() == [-1.0, 0.25]
    path = write(tmp_path / "odd.hdf5", rows=3, actions=[[-1, 0, 5], [1, 10, 5.5], [3, 2.5, 6]])
    buffer, *_ = load(path, Spaces(11, 3, low=[-1, 0, 5], high=[3, 10, 6]))
    assert buffer[:, 11:14].tolist() == [[-1, -1, -1], [0, 1, 0]]


# ---- Scores -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("env_id", D4RL_IDS)
def test_reference_returns(d4rl: ModuleType, env_id: str) -> None:
    """The returns that score 0 and 100 are d4rl's, for every dataset of the paper."""
    _, low, high = dmg_iql.ROBOTS[env_id.split("-")[0]]
    assert (low, high) == (d4rl.infos.REF_MIN_SCORE[env_id], d4rl.infos.REF_MAX_SCORE[env_id])


def scores(args: dmg_iql.Args) -> tuple[np.ndarray, np.ndarray]:
    """Run a job. Returns its episodes' returns and scores."""
    dmg_iql.train(args)
    table = np.genfromtxt(folder_of(args) / "eval.csv", delimiter=",", skip_header=1)
    return table[:, 3], table[:, 5]


def test_scores_of_a_job(d4rl: ModuleType, job: Callable) -> None:
    """eval.csv has d4rl's score of each return."""
    returns, found = scores(job(dmg_iql, iterations=1))
    wanted = [100 * d4rl.get_normalized_score("hopper-medium-v2", value) for value in returns]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert len(found) == 2 and len(set(found)) == 2


@pytest.mark.parametrize(
    "attrs, low, high", [({}, 0, 100), (dict(ref_min_score=-1600, ref_max_score=-150), -1600, -150)]
)
def test_scores_of_own_data(job: Callable, tmp_path: Path, attrs: dict, low: float, high: float) -> None:
    """The score of a simulator that D4RL has not is the return, or what the file's attributes say is 0
    and 100."""
    rows = dict(observations=np.zeros((6, 3)), actions=np.zeros((6, 1)))
    path = write(tmp_path / "pendulum.hdf5", attrs=attrs, **rows)
    returns, found = scores(replace(job(dmg_iql, iterations=1), env_id="Pendulum-v1", dataset_path=path))
    np.testing.assert_allclose(found, 100 * (returns - low) / (high - low), rtol=1e-12)
    assert len(found) == 2 and returns.max() < 0


# ---- The file, and its download -----------------------------------------------------------------------
@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is asked of the hub, which has every file; datasets lie in tmp_path / "datasets"."""
    asked = []

    def download(repository: str, name: str, *, repo_type: str, revision: str, local_dir: str) -> None:
        asked.append((repository, name, repo_type, revision, Path(local_dir)))
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        write(Path(local_dir, name))

    monkeypatch.setattr(dmg_iql, "hf_hub_download", download)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "datasets"))
    return asked


@pytest.mark.parametrize("env_id", D4RL_IDS)
def test_download(d4rl: ModuleType, tmp_path: Path, hub: list[tuple], env_id: str) -> None:
    """D4RL's file name at a pinned revision is asked for, once; what is there is used."""
    name = os.path.basename(d4rl.infos.DATASET_URLS[env_id])
    args = dmg_iql.Args(env_id=env_id, device="cpu")
    for _ in range(2):
        buffer, *_ = dmg_iql.load_dataset(args, Spaces(*HOPPER))
        assert len(buffer) == 5 and args.dataset_path == tmp_path / "datasets" / name
    assert hub == [("imone/D4RL", name, "dataset", dmg_iql.REVISION, tmp_path / "datasets")]
    assert re.fullmatch("[0-9a-f]{40}", dmg_iql.REVISION)  # a commit, not a branch that may move


def test_default_folder(tmp_path: Path, hub: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without D4RL_DATASET_DIR, datasets are in D4RL's folder, ~/.d4rl/datasets; ~ is known in the
    variable as well."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("D4RL_DATASET_DIR")
    load(None, env_id="hopper-medium-v2")
    monkeypatch.setenv("D4RL_DATASET_DIR", "~/other")
    load(None, env_id="hopper-medium-v2")
    assert [place for *_, place in hub] == [tmp_path / "home/.d4rl/datasets", tmp_path / "home/other"]


def test_no_download(tmp_path: Path, hub: list[tuple]) -> None:
    """Neither data made here nor a file given by --dataset-path is asked for, whether it is there or
    not. The one that is given counts, whatever lies in the folder."""
    (tmp_path / "datasets").mkdir()
    write(tmp_path / "datasets/hopper_medium-v2.hdf5", rows=20)
    for env_id, path in (("hopper-medium-local", None), ("hopper-medium-v2", tmp_path / "given.hdf5")):
        wanted = path or tmp_path / "datasets/hopper_medium-local.hdf5"
        assert str(wanted) in refusal(path, "No such file", env_id=env_id)
        write(wanted, rows=10)
        assert len(load(path, env_id=env_id)[0]) == 9
    assert not hub


def test_failed_download(hub: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which file was not to be had, why, and which command tries more; Ctrl-C goes
    through."""

    def fail(*args: object, **kwargs: object) -> None:
        raise errors.pop(0)

    errors = [ConnectionError("no route\n\nto the  host"), KeyboardInterrupt()]
    monkeypatch.setattr(dmg_iql, "hf_hub_download", fail)
    with pytest.raises(SystemExit) as error:
        load(None, env_id="walker2d-medium-replay-v2")
    told = "python tools/data/get.py walker2d-medium-replay-v2 tries more"
    assert (
        str(error.value)
        == f"error: no download of walker2d_medium_replay-v2.hdf5 ({told}): no route to the host"
    )
    with pytest.raises(KeyboardInterrupt):
        load(None, env_id="walker2d-medium-replay-v2")


# ---- What is refused ----------------------------------------------------------------------------------
def refusal(path: Path | None, wanted: str, **flags: object) -> str:
    """The one line that refuses a file: which, for what, what to run, and why."""
    with pytest.raises(SystemExit) as error:
        load(path, **flags)
    line = str(error.value)
    env_id = flags.get("env_id", "hopper-medium-local")
    assert line.startswith("error: ") and "\n" not in line and len(line) < 700
    assert f" for {env_id} (see docs/data.md): " in line
    assert path is None or str(path) in line
    assert re.search(wanted, line), line
    return line


def spoilt(key: str, value: float, shape: tuple[int, ...]) -> Callable[[Path], Path]:
    """Makes a file with one bad number in the middle of a column."""
    values = np.zeros(shape)
    values.flat[values.size // 2] = value
    return lambda path: write(path, **{key: values})


def cut(path: Path) -> None:
    """A file of which the second half is missing, as after a download that was broken off."""
    content = write(path, rows=50).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damaged(path: Path) -> None:
    """A file of the right length in which compressed numbers have been overwritten."""
    write(path, rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", data=np.arange(6.0), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["rewards"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)


SHAPES = {
    "observations": (6, 11),
    "actions": (6, 3),
    "rewards": (6,),
    "terminals": (6,),
    "timeouts": (6,),
}
LATER = {"timeouts": None}  # next_observations count only in a file without
WIDTHS = r"\[11, 3, 1, 1, %s\]"


def bad(**changes: object) -> Callable[[Path], Path]:
    """Makes a file with other columns."""
    return lambda path: write(path, **changes)


BAD = {  # what is wrong: the file, the reason that is given
    "cut in half": (cut, "truncated file"),
    "no HDF5": (lambda path: path.write_bytes(b"<!DOCTYPE html>" * 100), "file signature not found"),
    "no byte": (lambda path: path.write_bytes(b""), "truncated|signature"),
    "damaged numbers": (damaged, "inflate|read data"),
    "a folder": (lambda path: path.mkdir(), "directory"),
    "not there": (lambda path: None, "No such file"),
    "no columns": (lambda path: h5py.File(path, "w").close(), "observations"),
    "scalar": (bad(rewards=1.0), "scalar"),
    "text": (bad(rewards=[b"a"] * 6), "float"),
    "group": (bad(rewards=None, **{"rewards/first": 1}), "group"),
    "width of states": (bad(observations=np.zeros((6, 17))), WIDTHS % 1),
    "width of actions": (bad(actions=np.zeros((6, 6))), WIDTHS % 1),
    "width of rewards": (bad(rewards=np.zeros((6, 2))), WIDTHS % 1),
    "width of next states": (bad(**LATER, next_observations=np.zeros((6, 1))), WIDTHS % 11),
    "states without width": (bad(observations=np.zeros(6)), WIDTHS % 1),
    "three axes": (bad(observations=np.zeros((6, 11, 2))), "dimension"),
    "transposed": (bad(observations=np.zeros((11, 6)), actions=np.zeros((3, 6))), WIDTHS % 1),
    "infinite for float32": (spoilt("observations", 1e300, (6, 11)), "NaN or infinite"),
    "NaN, next states": (bad(**LATER, next_observations=np.full((6, 11), np.nan)), "NaN or infinite"),
    "no row": (bad(rows=0), "no transition"),
    "no row, next states": (bad(**LATER, rows=0, next_observations=np.zeros((0, 11))), "no transition"),
    "one row": (bad(rows=1), "no transition"),
    "timeouts only": (bad(timeouts=np.ones(6)), "no transition"),
    "actions out of bounds": (bad(actions=np.full((6, 3), 1.001)), r"actions outside Box\(-1"),
    "another robot's": (bad(attrs={"env_id": "walker2d-medium-v2"}), "it is for walker2d-medium-v2"),
}  # fmt: skip
for key, shape in SHAPES.items():  # without timeouts, next_observations are needed
    BAD[f"no {key}"] = bad(**{key: None}), "next_observations" if key == "timeouts" else key
    BAD[f"fewer {key}"] = bad(**{key: np.zeros((5, *shape[1:]))}), "size 5"
    for value in (math.nan, math.inf):
        BAD[f"{value} in {key}"] = spoilt(key, value, shape), "NaN or infinite"


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path: Path, case: str) -> None:
    """A bad file ends in one line that names it, and is left alone."""
    make, wanted = BAD[case]
    path = tmp_path / "bad.hdf5"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    refusal(path, wanted)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_not_refused(tmp_path: Path) -> None:
    """The file that the bad ones differ from in one point each is fine; so are actions at the bounds,
    rounded up, and a file that says that it is of the same robot, whatever the case and the version."""
    for changes in (
        {},
        LATER | dict(next_observations=np.zeros((6, 11))),
        dict(attrs={"env_id": "Hopper-v5"}),
        dict(actions=np.full((6, 3), 1 + 1e-6)),
    ):
        assert len(load(write(tmp_path / "good.hdf5", **changes))[0]) in (5, 6)


def test_rows_of_a_robot_of_the_same_widths(tmp_path: Path) -> None:
    """HalfCheetah and Walker2d have the same widths; the attribute of a file tells them apart."""
    cheetah = dict(
        observations=np.zeros((6, 17)),
        actions=np.zeros((6, 6)),
        attrs={"env_id": "halfcheetah-medium-local"},
    )
    path, env = write(tmp_path / "cheetah.hdf5", **cheetah), dmg_iql.make_env("walker2d-medium-local")
    refusal(path, "it is for halfcheetah-medium-local$", env=env, env_id="walker2d-medium-local")
    assert len(load(path, env, env_id="halfcheetah-medium-local")[0]) == 5


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    """A file without read permission is named as that."""
    path = write(tmp_path / "secret.hdf5")
    path.chmod(0)
    refusal(path, "Permission denied")


def test_locked(tmp_path: Path) -> None:
    """A file that someone writes to, or on a file system without locks, is read all the same."""
    fcntl = pytest.importorskip("fcntl")
    path = write(tmp_path / "locked.hdf5")
    with path.open("rb+") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as HDF5 does while a file is open for writing
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)
        assert len(load(path)[0]) == 5


def test_no_run_folder(job: Callable, tmp_path: Path) -> None:
    """A job on a bad file leaves no run folder."""
    args = replace(job(dmg_iql), dataset_path=tmp_path / "none.hdf5")
    with pytest.raises(SystemExit, match="^error: .*none.hdf5 for hopper-medium-local"):
        dmg_iql.train(args)
    assert not args.run_dir.exists()
