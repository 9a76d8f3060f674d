"""The data side of dmg_iql.py: D4RL's transitions, scores and file names, the replay table, bad files, downloads.

The installed d4rl package is the oracle for what D4RL does; the downloads are served by a fake host on 127.0.0.1.
"""

import functools
import hashlib
import http.server
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import urlsplit

import h5py
import huggingface_hub
import numpy as np
import pytest
import torch

import dmg_iql

ROOT = Path(dmg_iql.__file__).parent
D4RL_IDS = [
    f"{robot}-{quality}-v2"
    for robot in ("hopper", "walker2d", "halfcheetah")
    for quality in ("random", "medium", "medium-replay", "medium-expert", "expert")
]
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
MAZE_IDS = [f"antmaze-{maze}-v2" for maze in MAZES]


@pytest.fixture(scope="session")
def d4rl(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The d4rl package: without mujoco_py, which it does not need here, and without a folder in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mujoco_py", None)
        patch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
        patch.setenv("D4RL_DATASET_DIR", str(tmp_path_factory.mktemp("d4rl")))
        import d4rl
        import d4rl.offline_env
    return d4rl


# ---- transitions: d4rl.qlearning_dataset is the oracle ---------------------------------------------------------------
def oracle(d4rl: ModuleType, path: Path, state_dim: int, action_dim: int, time_limit: int) -> dict[str, np.ndarray]:
    """What d4rl makes of a file, by its own get_dataset and qlearning_dataset."""
    env = d4rl.offline_env.OfflineEnv()
    env.observation_space, env.action_space = SimpleNamespace(shape=(state_dim,)), SimpleNamespace(shape=(action_dim,))
    env._max_episode_steps = time_limit
    return d4rl.qlearning_dataset(env, env.get_dataset(h5path=str(path)))


def compare(d4rl: ModuleType, path: Path, state_dim: int, action_dim: int, time_limit: int) -> int:
    """Asserts that load_transitions gives what d4rl gives, bit for bit, or refuses a file that d4rl makes nothing of.
    Returns the number of transitions."""
    theirs = oracle(d4rl, path, state_dim, action_dim, time_limit)
    number = len(theirs["rewards"])
    if number == 0:
        with pytest.raises(SystemExit, match="^error: .* no transition"):
            dmg_iql.load_transitions(path, state_dim, action_dim, time_limit)
        return 0
    ours = dmg_iql.load_transitions(path, state_dim, action_dim, time_limit)
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        assert values.dtype == (bool if key == "terminals" else np.float32)
        assert ours[key].dtype == values.dtype, key
        np.testing.assert_array_equal(ours[key], values, err_msg=key, strict=True)
    return number


def random_file(path: Path, rng: np.random.Generator) -> tuple[int, int, int]:
    """Writes a small random file in D4RL's layout. Returns its state and action dimensions and a time limit."""
    rows, state_dim, action_dim = (
        int(rng.choice([2, 3, 4, 7, 12, 40])),
        int(rng.integers(1, 4)),
        int(rng.integers(1, 3)),
    )
    time_limit = int(rng.choice([1, 2, 5, max(rows - 1, 1), rows, rows + 1, 1000]))

    def flags(chance: float) -> np.ndarray:
        """Terminals or timeouts: random ones, the first and the last row often among them."""
        values = rng.random(rows) < chance
        values[0] |= rng.random() < 0.2
        values[-1] |= rng.random() < 0.3
        values = values.astype(rng.choice([np.uint8, bool, np.float32, np.float64]))
        return values[:, None] if rng.random() < 0.3 else values

    real = rng.choice([np.float32, np.float64])
    rewards = rng.normal(size=rows).astype(real) if rng.random() < 0.8 else rng.integers(-3, 3, rows)
    data = {
        "observations": rng.normal(size=(rows, state_dim)).astype(real),
        "actions": rng.uniform(-1, 1, (rows, action_dim)).astype(rng.choice([np.float32, np.float64])),
        "rewards": rewards[:, None] if rng.random() < 0.3 else rewards,
        "terminals": flags(rng.choice([0.0, 0.1, 0.3, 0.7])),
    }
    if rng.random() < 0.4:
        data["timeouts"] = flags(rng.choice([0.0, 0.1, 0.4]))  # on terminal rows, too
    if rng.random() < 0.5:  # D4RL's own files hold more than is used
        data |= {"infos/qpos": np.ones((rows, 2)), "metadata/algorithm": "SAC"}
        data["next_observations"] = np.full((rows, state_dim), 7.0)
    with h5py.File(path, "w") as file:
        for key in rng.permutation(sorted(data)):
            zipped = {"compression": "gzip"} if np.ndim(data[key]) and rng.random() < 0.5 else {}
            file.create_dataset(key, data=data[key], **zipped)
    return state_dim, action_dim, time_limit


@pytest.mark.parametrize("seed", range(240))
def test_transitions_random_files(d4rl: ModuleType, tmp_path: Path, seed: int) -> None:
    """Random small files of every dtype and shape that D4RL reads become exactly d4rl's transitions."""
    path = tmp_path / "random.hdf5"
    compare(d4rl, path, *random_file(path, np.random.default_rng(seed)))


def pattern_file(path: Path, rows: int, *keys: str) -> h5py.File:
    """A file with recognisable rows and all-zero flags under the given keys, open for changes."""
    file = h5py.File(path, "w")
    file["observations"], file["actions"] = (
        np.arange(2.0 * rows).reshape(rows, 2),
        np.arange(100.0, 100 + rows)[:, None],
    )
    file["rewards"] = np.arange(200.0, 200 + rows)
    for key in keys:
        file[key] = np.zeros(rows, bool)
    file.flush()
    return file


@pytest.mark.parametrize("time_limit", [1, 2, 3, 5, 6, 7, 8, 100])
def test_transitions_every_terminal_pattern(d4rl: ModuleType, tmp_path: Path, time_limit: int) -> None:
    """Without timeouts, episodes are counted as d4rl counts them, wherever the terminals of up to seven rows are."""
    total = 0
    for rows in (2, 3, 7):
        for pattern in itertools.product([False, True], repeat=rows):
            with pattern_file(tmp_path / "pattern.hdf5", rows, "terminals") as file:
                file["terminals"][:] = pattern
            total += compare(d4rl, tmp_path / "pattern.hdf5", 2, 1, time_limit)
    assert (total > 0) == (time_limit > 1)  # at a limit of one step, d4rl drops every row


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_transitions_every_terminal_and_timeout_pattern(d4rl: ModuleType, tmp_path: Path, rows: int) -> None:
    """With timeouts, these alone end an episode without a transition, on a terminal row as on any other."""
    for terminals, timeouts in itertools.product(itertools.product([False, True], repeat=rows), repeat=2):
        with pattern_file(tmp_path / "pattern.hdf5", rows, "terminals", "timeouts") as file:
            file["terminals"][:], file["timeouts"][:] = terminals, timeouts
        compare(d4rl, tmp_path / "pattern.hdf5", 2, 1, 2)  # were the limit of 2 counted as well, it would show


@pytest.mark.parametrize("seed", range(4))
def test_transitions_long_file(d4rl: ModuleType, tmp_path: Path, seed: int) -> None:
    """A file of many episodes at Gym's limit of 1000 steps, counted: some end early, some right at the limit."""
    rng, ends = np.random.default_rng(seed), []
    while sum(ends) < 8000:
        ends.append(int(rng.choice([rng.integers(1, 999), 999, 1000, 1001])))
    with pattern_file(tmp_path / "long.hdf5", sum(ends), "terminals") as file:
        terminals = np.zeros(sum(ends), bool)
        terminals[np.cumsum(ends) - 1] = rng.random(len(ends)) < 0.7
        file["terminals"][:] = terminals
    number = compare(d4rl, tmp_path / "long.hdf5", 2, 1, 1000)
    assert 0 < number < sum(ends) - 1


# ---- dataset ids: scores and file names ------------------------------------------------------------------------------
def test_ids() -> None:
    """The ids are the paper's fifteen D4RL Gym and six AntMaze datasets, and one to be made locally beside each."""
    local = [env_id.replace("-v2", "-local") for env_id in D4RL_IDS + MAZE_IDS]
    assert sorted(dmg_iql.ENV_IDS) == sorted(D4RL_IDS + MAZE_IDS + local)


@pytest.mark.parametrize("env_id", D4RL_IDS + MAZE_IDS)
def test_reference_scores(d4rl: ModuleType, env_id: str) -> None:
    """Scores are d4rl's, for D4RL's datasets and for those made locally."""
    returns = np.array([-500.0, 0.0, 1.5, 3234.3, 12135.0])
    low, high = d4rl.infos.REF_MIN_SCORE[env_id], d4rl.infos.REF_MAX_SCORE[env_id]
    for name in (env_id, env_id.replace("-v2", "-local")):
        scores = dmg_iql.normalized_score(name, returns)
        np.testing.assert_allclose(scores, 100 * (returns - low) / (high - low), rtol=1e-13)
        np.testing.assert_allclose(scores, 100 * d4rl.get_normalized_score(env_id, returns), rtol=1e-13)
        np.testing.assert_allclose(dmg_iql.normalized_score(name, np.array([low, high])), [0, 100], atol=1e-12)


@pytest.mark.parametrize("env_id", D4RL_IDS + MAZE_IDS)
def test_file_names(d4rl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str) -> None:
    """A dataset is looked for, and asked for, under D4RL's file name and address, and a local one under its own."""
    asked = []

    def mirror(*args: object, **kwargs: object) -> None:
        asked.append((*args, kwargs["repo_type"], kwargs["revision"]))
        raise OSError("no network in this test")

    def server(url: str, *args: object) -> None:
        asked.append(url)
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", mirror)
    monkeypatch.setattr(torch.hub, "download_url_to_file", server)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    url = d4rl.infos.DATASET_URLS[env_id]
    name = os.path.basename(url)

    with pytest.raises(SystemExit):
        dmg_iql.find_dataset(env_id)
    if env_id != "antmaze-large-diverse-v2":  # which the mirror lacks
        assert asked.pop(0) == (dmg_iql.MIRROR, name, "dataset", dmg_iql.REVISION)
    assert re.fullmatch("[0-9a-f]{40}", dmg_iql.REVISION)  # a commit, not a branch that may move
    assert len(asked) == 1 and urlsplit(asked[0])[1:] == urlsplit(url)[1:]  # all but http or https
    assert asked[0].startswith(dmg_iql.SERVER)

    h5py.File(tmp_path / name, "w").close()
    if env_id in MAZE_IDS:
        monkeypatch.setattr(dmg_iql, "ANTMAZE", {task: (file, None) for task, (file, _) in dmg_iql.ANTMAZE.items()})
        monkeypatch.setattr(dmg_iql, "SHA256", {})
    assert dmg_iql.find_dataset(env_id) == tmp_path / name
    assert len(asked) == 1  # the file that was there is not asked for
    local = tmp_path / (env_id.removesuffix("-v2").replace("-", "_") + "-local.hdf5")
    with pytest.raises(SystemExit):
        dmg_iql.find_dataset(env_id.replace("-v2", "-local"))
    local.touch()
    assert dmg_iql.find_dataset(env_id.replace("-v2", "-local")) == local
    assert len(asked) == 1  # nor is local data


# ---- replay table ----------------------------------------------------------------------------------------------------
DATA = {
    "observations": np.array([[0, 10], [2, 10], [4, 10]], np.float32),
    "actions": np.array([[0.5], [-0.5], [1.0]], np.float32),
    "rewards": np.array([1.0, 0.0, 2.5], np.float32),
    "next_observations": np.array([[2, 11], [4, 9], [8, 10]], np.float32),
    "terminals": np.array([False, True, False]),
}


def table_of(data: dict[str, np.ndarray], states: bool, antmaze: bool) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """The replay table on the CPU, with or without normalised states and AntMaze's reward."""
    return dmg_iql.replay_table(data, dmg_iql.Args(normalize_states=states, antmaze_reward=antmaze, device="cpu"))


@pytest.fixture
def double() -> Iterator[None]:
    """float64 as torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_table_columns() -> None:
    """A row is s | a | r | 1 - terminal | s', in the order of the data, with the states as they were."""
    table, mean, scale = table_of(DATA, states=False, antmaze=False)
    rows = [[0, 10, 0.5, 1.0, 1, 2, 11], [2, 10, -0.5, 0.0, 0, 4, 9], [4, 10, 1.0, 2.5, 1, 8, 10]]
    assert torch.equal(table, torch.tensor(rows)) and table.dtype == torch.float32
    assert table.device.type == "cpu" and table.is_contiguous()
    assert mean.tolist() == [0, 0] and scale.tolist() == [1, 1]


def test_table_normalisation(double: None) -> None:
    """s and s' are normalised by mean and population standard deviation + 0.001 of s alone; nothing else changes."""
    table, mean, scale = table_of(DATA, states=True, antmaze=False)
    scales = [math.sqrt(8 / 3) + 1e-3, 1e-3]  # 0, 2, 4: mean 2, variance (4 + 0 + 4) / 3; 10, 10, 10: mean 10, 0
    assert mean.tolist() == [2, 10] and mean.dtype == scale.dtype == np.float64
    np.testing.assert_allclose(scale, scales, rtol=1e-15)
    np.testing.assert_allclose(table[:, :2], np.array([[-2, 0], [0, 0], [2, 0]]) / scales, rtol=1e-15)
    np.testing.assert_allclose(table[:, 5:], np.array([[0, 1], [2, -1], [6, 0]]) / scales, rtol=1e-15)
    assert torch.equal(table[:, 2:5], table_of(DATA, states=False, antmaze=False)[0][:, 2:5])


def test_table_statistics_are_exact(double: None) -> None:
    """Mean and standard deviation are taken in float64: float32 would be off where states are far from 0."""
    states = (5000 + np.random.default_rng(0).normal(size=(3000, 1))).astype(np.float32)
    rows = {key: np.repeat(values[:1], len(states), 0) for key, values in DATA.items()}
    table, mean, scale = table_of(rows | {"observations": states, "next_observations": states}, True, False)
    exact = [float(x) for x in states[:, 0]]
    np.testing.assert_allclose(mean, statistics.fmean(exact), rtol=1e-13)
    np.testing.assert_allclose(scale, statistics.pstdev(exact) + 1e-3, rtol=1e-10)
    np.testing.assert_array_equal(table[:, :1], (states.astype(np.float64) - mean) / scale)
    assert abs(states.mean(dtype=np.float32) - mean[0]) > 1e-9  # what float32 would have given


def test_table_dtype(double: None) -> None:
    """The table has torch's default dtype, whichever that is."""
    assert table_of(DATA, states=True, antmaze=False)[0].dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    assert table_of(DATA, states=True, antmaze=False)[0].dtype == torch.float32


def test_table_antmaze_reward() -> None:
    """AntMaze's reward becomes 0 at the goal, where it was 1, and -1 elsewhere."""
    rows = {key: np.repeat(values[:1], 5, 0) for key, values in DATA.items()}
    table = table_of(rows | {"rewards": np.array([1, 0, 0.5, -1, 2], np.float32)}, states=False, antmaze=True)[0]
    assert table[:, 3].tolist() == [0, -1, -1, -1, -1]


def test_table_normalized_rewards() -> None:
    """Three trajectories: [1, 2] to a terminal, [3, 4] to a gap (s' is not the next s), [-1] to the end. Returns 3, 7
    and -1, so the factor is 1000 / (7 - -1) = 125; without the flag nothing is scaled; equal returns are refused."""
    states = np.array([[0.0], [1], [5], [6], [9]], np.float32)
    rows = {"observations": states, "next_observations": np.array([[1.0], [5], [6], [7], [10]], np.float32)}
    rows |= {"actions": np.zeros((5, 1), np.float32), "terminals": np.array([False, True, False, False, False])}
    rows["rewards"] = np.array([1, 2, 3, 4, -1], np.float32)
    args = dict(normalize_states=False, antmaze_reward=False, device="cpu")
    scaled, _, _ = dmg_iql.replay_table(rows, dmg_iql.Args(normalize_rewards=True, **args))
    assert scaled[:, 2].tolist() == [125, 250, 375, 500, -125]
    assert dmg_iql.replay_table(rows, dmg_iql.Args(**args))[0][:, 2].tolist() == [1, 2, 3, 4, -1]
    maze = dmg_iql.Args(**args | {"antmaze_reward": True, "normalize_rewards": True})  # 0 -1 | -1 -1 | -1
    assert dmg_iql.replay_table(rows, maze)[0][:, 2].tolist() == [0, -1000, -1000, -1000, -1000]
    with pytest.raises(SystemExit, match="^error: --normalize-rewards.*leave"):
        dmg_iql.replay_table(rows | {"rewards": np.zeros(5)}, dmg_iql.Args(normalize_rewards=True, **args))


# ---- bad data --------------------------------------------------------------------------------------------------------
HOPPER = (11, 3, 1000)  # state and action dimensions, time limit
HTML = b"<!DOCTYPE html><html><body>Log in to this network first</body></html>" * 20


def write(path: Path, rows: int = 6, **changes: object) -> None:
    """Writes a good Hopper file, but for the keys that are changed or, by None, left out."""
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }
    with h5py.File(path, "w") as file:
        for key, values in (data | changes).items():
            if values is not None:
                file[key] = values


def spoilt(key: str, value: float, shape: tuple[int, ...]) -> Callable[[Path], None]:
    """Makes a file with one bad number in the middle of a key."""
    values = np.zeros(shape)
    values.flat[values.size // 2] = value
    return lambda path: write(path, **{key: values})


def whole(path: Path) -> bytes:
    """The bytes of a good file, written to a path."""
    write(path, rows=50)
    return path.read_bytes()


def damage_header(path: Path) -> None:
    """A file of the right length in which the header of one key has been overwritten."""
    write(path)
    with h5py.File(path) as file:
        start = h5py.h5o.get_info(file["rewards"].id).addr
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


def damage_chunk(path: Path) -> None:
    """A file of the right length in which compressed numbers have been overwritten."""
    write(path, rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", data=np.arange(6.0), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["rewards"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)


FLOATS = {"observations": (6, 11), "actions": (6, 3), "rewards": (6,)}
ADVICE = "delete it|get or make it again|collect.py|--dataset-path|--env-id|use another|Put it"
BAD = [  # what is wrong, the file, what the message has to say
    ("cut in half", lambda path: path.write_bytes(whole(path)[: len(whole(path)) // 2]), "not a whole HDF5 file"),
    ("last byte gone", lambda path: path.write_bytes(whole(path)[:-1]), "not a whole HDF5 file"),
    ("HTML page", lambda path: path.write_bytes(HTML), "not a whole HDF5 file"),
    ("no byte", lambda path: path.write_bytes(b""), "not a whole HDF5 file"),
    ("compressed numbers damaged", damage_chunk, "not a whole HDF5 file"),
    ("header damaged", damage_header, "error"),
    (
        "scalar",
        lambda path: write(path, rewards=1.0),
        "error",
    ),
    (
        "text",
        lambda path: write(path, rewards=[b"a"] * 6),
        "rewards",
    ),
    ("group", lambda path: write(path, rewards=None, **{"rewards/first": 1}), "error"),
    ("no key at all", lambda path: h5py.File(path, "w").close(), "observations, actions, rewards"),
    *[
        (f"no {key}", lambda path, key=key: write(path, **{key: None}), f"has no {key}")
        for key in ("observations", "actions", "rewards", "terminals")
    ],
    ("state dimension", lambda path: write(path, observations=np.zeros((6, 17))), "observations.*17.*11"),
    ("state without dimension", lambda path: write(path, observations=np.zeros(6)), "observations"),
    ("action dimension", lambda path: write(path, actions=np.zeros((6, 6))), r"actions.*\(6, 6\).*3"),
    ("reward dimension", lambda path: write(path, rewards=np.zeros((6, 2))), r"rewards.*\(6, 2\)"),
    ("fewer observations", lambda path: write(path, observations=np.zeros((5, 11))), "shape.*6.*5"),
    *[
        (f"fewer {key}", lambda path, key=key, shape=shape: write(path, **{key: np.zeros(shape)}), key)
        for key, shape in {"actions": (5, 3), "rewards": 5, "terminals": 5, "timeouts": 5}.items()
    ],
    *[
        (f"{value} in {key}", spoilt(key, value, shape), f"{key} holds .*(NaN|finite)")
        for key, shape in (FLOATS | {"terminals": (6,), "timeouts": (6,)}).items()
        for value in (math.nan, math.inf, -math.inf)
    ],
    *[(f"too large for float32 in {key}", spoilt(key, 1e300, shape), key) for key, shape in FLOATS.items()],
    ("0 rows", lambda path: write(path, rows=0), "no transition"),
    (
        "0 rows, no timeouts",
        lambda path: write(path, rows=0, timeouts=None),
        "no transition",
    ),
    ("1 row", lambda path: write(path, rows=1), "no transition"),
    ("1 row, no timeouts", lambda path: write(path, rows=1, timeouts=None), "no transition"),
    ("all rows timeouts", lambda path: write(path, timeouts=np.ones(6, bool)), "no transition"),
]


CASES = [pytest.param(make, wanted, id=name) for name, make, wanted in BAD]


def refusal(make: Callable[[Path], object], path: Path) -> str:
    """What load_transitions says when it refuses a bad file."""
    make(path)
    with pytest.raises(SystemExit) as error:
        dmg_iql.load_transitions(path, *HOPPER)
    assert str(error.value).startswith("error: ") and str(path) in str(error.value)
    return str(error.value)


def test_good_file(tmp_path: Path) -> None:
    """The file that the bad ones differ from in one point each is fine."""
    for changes in ({}, {"timeouts": None}):
        write(tmp_path / "good.hdf5", **changes)
        assert len(dmg_iql.load_transitions(tmp_path / "good.hdf5", *HOPPER)["rewards"]) == 5


@pytest.mark.parametrize("make, wanted", CASES)
def test_bad_file(tmp_path: Path, make: Callable[[Path], object], wanted: str) -> None:
    """A bad file ends the program with a message that names the file, says what is wrong with it and what to do."""
    message = refusal(make, tmp_path / "bad.hdf5")
    assert re.search(wanted, message) and re.search(ADVICE, message), message


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A --dataset-path that is not there, a folder, and local data that was not made yet end with a message."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    for env_id, path in [
        ("hopper-medium-v2", tmp_path / "nowhere.hdf5"),
        ("hopper-medium-local", tmp_path / "nowhere.hdf5"),
        ("hopper-medium-local", tmp_path),
        ("hopper-medium-local", None),
    ]:
        with pytest.raises(SystemExit) as error:
            dmg_iql.find_dataset(env_id, path)
        message = str(error.value)
        assert message.startswith("error: ") and "does not exist" in message
        assert str(path or tmp_path / "hopper_medium-local.hdf5") in message
        assert "tools/collect.py --env-id hopper-medium-local" in message


def test_bad_file_keeps_the_old_run(tmp_path: Path) -> None:
    """--overwrite deletes the old run only once the data has been read."""
    old = tmp_path / "runs" / "hopper-medium-local__name__s0-0" / "eval.csv"
    old.parent.mkdir(parents=True)
    old.write_text("results")
    (tmp_path / "bad.hdf5").write_bytes(HTML)
    args = {"exp_name": "name", "run_dir": tmp_path / "runs", "overwrite": True, "device": "cpu", "threads": 1}
    with pytest.raises(SystemExit, match="^error: .*bad.hdf5"):
        dmg_iql.train(dmg_iql.Args(env_id="hopper-medium-local", dataset_path=tmp_path / "bad.hdf5", **args))
    assert old.read_text() == "results"


@pytest.mark.parametrize(
    "make, wanted",
    [
        (None, "does not exist.*tools/collect.py"),
        (lambda path: path.write_bytes(whole(path)[:5000]), "not a whole HDF5 file"),
        (lambda path: write(path, observations=np.zeros((6, 17))), "observations"),
    ],
    ids=["missing", "cut", "of another robot"],
)
def test_command_with_bad_file(tmp_path: Path, make: Callable[[Path], object] | None, wanted: str) -> None:
    """The command itself fails on bad data, by that message alone, and leaves no run folder."""
    path = tmp_path / "bad.hdf5"
    if make:
        make(path)
    command = [sys.executable, dmg_iql.__file__, "--env-id", "hopper-medium-local", "--device", "cpu"]
    command += ["--dataset-path", str(path), "--run-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and re.search(f"^error: {path}.*{wanted}", done.stderr, re.M)
    assert not (tmp_path / "runs").exists()


# ---- downloads -------------------------------------------------------------------------------------------------------
NAME = "hopper_medium_replay-v2.hdf5"
MIRRORED = f"/datasets/{dmg_iql.MIRROR}/resolve/{dmg_iql.REVISION}/{NAME}"
SERVED = f"/gym_mujoco_v2/{NAME}"
MAZE = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
MAZE_MIRRORED, MAZE_SERVED = MIRRORED.replace(NAME, MAZE), f"/ant_maze_v2/{MAZE}"


class Host(http.server.ThreadingHTTPServer):
    """Both sources on one local port. `answers` says how each behaves, `asked` what was asked for.

    Answers: file, missing (404), cut (the connection ends half-way, then nothing more), closed (no answer at all),
    busy (503), half (half the file, as if that were all), HTML (a page, with status 200), empty.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.answers = files, dict.fromkeys(files, "file")
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Host

    def log_message(self, *args: object) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        """Answers as the host was told to."""
        self.server.asked.append((self.command, self.path))
        answer, content = self.server.answers.get(self.path, "missing"), self.server.files.get(self.path, b"")
        if answer == "closed" or (answer == "cut" and "Range" in self.headers):
            return
        content = {"half": content[: len(content) // 2], "HTML": HTML, "empty": b""}.get(answer, content)
        status = {"missing": 404, "busy": 503}.get(answer, 200)
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", dmg_iql.REVISION)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(content) if status == 200 else 0))
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(content[: len(content) // 2] if answer == "cut" else content)

    do_HEAD = do_GET


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A local host that stands for both sources; the Hugging Face client asks it, and does not wait between tries."""
    files = {}
    for path, rows in (
        (MIRRORED, 40),
        (SERVED, 41),
        (MAZE_MIRRORED, 42),
        (MAZE_SERVED, 43),
    ):  # the number tells where a file came from
        write(tmp_path / "source.hdf5", rows=rows)
        files[path] = (tmp_path / "source.hdf5").read_bytes()
    with Host(files) as host:
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        download = functools.partial(
            huggingface_hub.hf_hub_download, endpoint=host.url, cache_dir=tmp_path / "hub", token=False
        )
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(dmg_iql, "SERVER", host.url)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "new" / "datasets"))
        yield host
        host.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder into which datasets are downloaded; it does not exist yet."""
    return tmp_path / "new" / "datasets"


def content_of(folder: Path) -> list[str]:
    """All that is in a folder, at any depth."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_download_from_mirror(host: Host, folder: Path) -> None:
    """The mirror's pinned revision lands under its final name, nothing beside it; D4RL's server is not asked."""
    path = dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert path == folder / NAME and content_of(folder) == [NAME]
    assert path.read_bytes() == host.files[MIRRORED]
    assert set(host.asked) == {("HEAD", MIRRORED), ("GET", MIRRORED)}
    assert len(dmg_iql.load_transitions(path, *HOPPER)["rewards"]) == 39
    before = len(host.asked)
    assert dmg_iql.find_dataset("hopper-medium-replay-v2") == path and len(host.asked) == before  # once is enough


@pytest.mark.parametrize("answer", ["missing", "cut", "closed", "busy", "half", "HTML", "empty"])
def test_download_falls_back(host: Host, folder: Path, answer: str) -> None:
    """Whatever is wrong with the mirror, D4RL's server is asked next."""
    host.answers[MIRRORED] = answer
    path = dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert path == folder / NAME and content_of(folder) == [NAME]
    assert path.read_bytes() == host.files[SERVED]
    assert host.asked[0] == ("HEAD", MIRRORED) and host.asked[-1] == ("GET", SERVED)
    assert [path for _, path in host.asked].count(SERVED) == 1


@pytest.mark.parametrize("answer", ["missing", "cut", "closed", "busy", "half", "HTML", "empty"])
def test_download_fails(host: Host, folder: Path, answer: str) -> None:
    """With both sources failing, the message tells all ways out, and no half or wrong file stays behind."""
    host.answers.update({MIRRORED: "missing", SERVED: answer})
    with pytest.raises(SystemExit) as error:
        dmg_iql.find_dataset("hopper-medium-replay-v2")
    message = str(error.value)
    assert re.match(f"error: .*{NAME}", message)
    assert re.search(rf"^  {dmg_iql.MIRROR}: \w+: .+", message, re.M)  # each source and why it failed
    assert re.search(rf"^  {re.escape(dmg_iql.SERVER)}/gym_mujoco_v2: \w+", message, re.M)
    assert str(folder / NAME) in message and dmg_iql.REVISION[:7] in message
    assert f"{dmg_iql.SERVER}{SERVED}" in message
    assert "python tools/collect.py --env-id hopper-medium-replay-local" in message
    assert content_of(folder) == []
    assert ("GET", SERVED) in host.asked


@pytest.fixture
def maze_size(host: Host, monkeypatch: pytest.MonkeyPatch) -> int:
    """As if D4RL's file of antmaze-umaze-v2 were the one that the local host's "server" has, by size and SHA-256."""
    content = host.files[MAZE_SERVED]
    monkeypatch.setitem(dmg_iql.ANTMAZE, "antmaze-umaze", (dmg_iql.ANTMAZE["antmaze-umaze"][0], len(content)))
    monkeypatch.setitem(dmg_iql.SHA256, "antmaze-umaze-v2", hashlib.sha256(content).hexdigest())
    return len(content)


def test_known_sizes() -> None:
    """The sizes of D4RL's AntMaze files and the SHA-256 of one, as FACTS about the published files give them."""
    sizes = {task: size for task, (_, size) in dmg_iql.ANTMAZE.items()}
    assert list(sizes) == [env_id.removesuffix("-v2") for env_id in MAZE_IDS]
    assert list(sizes.values()) == [232532949, 230854272, 231110764, 231095166, 230880653, None]
    known = {"antmaze-umaze-v2": "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130"}
    assert known == dmg_iql.SHA256


@pytest.mark.parametrize("wrong", ["size", "SHA-256"])
def test_download_of_another_file(host: Host, folder: Path, maze_size: int, wrong: str) -> None:
    """A whole file that is not D4RL's, by its size or its SHA-256, is not taken; the next source is asked."""
    if wrong == "SHA-256":  # as many bytes, the last one another
        *rest, last = host.files[MAZE_SERVED]
        host.files[MAZE_MIRRORED] = bytes([*rest, last ^ 1])
    path = dmg_iql.find_dataset("antmaze-umaze-v2")
    assert path == folder / MAZE and content_of(folder) == [MAZE]
    assert path.read_bytes() == host.files[MAZE_SERVED]
    assert ("GET", MAZE_MIRRORED) in host.asked
    host.files[MAZE_SERVED] = host.files[MAZE_MIRRORED]
    path.unlink()
    with pytest.raises(SystemExit, match=f"error: no download of {MAZE}(.|\n)*D4RL's file has"):
        dmg_iql.find_dataset("antmaze-umaze-v2")
    assert content_of(folder) == []


def test_truncated_file_in_place(host: Host, folder: Path, maze_size: int) -> None:
    """D4RL's users' most common fault, half a file left by an earlier download, is named with the way out; nothing is
    asked for and nothing deleted. A file given by --dataset-path need not be D4RL's."""
    folder.mkdir(parents=True)
    for name, env_id, half in ((MAZE, "antmaze-umaze-v2", MAZE_SERVED), (NAME, "hopper-medium-replay-v2", SERVED)):
        (folder / name).write_bytes(host.files[half][: len(host.files[half]) // 2])
        with pytest.raises(
            SystemExit, match=f"^error: .*{name} is not whole .*; delete it, and it is downloaded again"
        ):
            dmg_iql.find_dataset(env_id)
        assert (folder / name).is_file()
    write(folder / "mine.hdf5")
    assert dmg_iql.find_dataset("antmaze-umaze-v2", folder / "mine.hdf5") == folder / "mine.hdf5"
    assert host.asked == []


def test_only_the_server_has_large_diverse(host: Host, folder: Path) -> None:
    """antmaze-large-diverse-v2's file is asked for on D4RL's server alone, the only source in the message."""
    with pytest.raises(SystemExit) as error:
        dmg_iql.find_dataset("antmaze-large-diverse-v2")
    name = MAZE.replace("u-maze", "hardest-maze").replace("False", "True")
    assert host.asked == [("GET", f"/ant_maze_v2/{name}")]
    assert f"{host.url}/ant_maze_v2/{name}" in str(error.value) and content_of(folder) == []
    assert "Hugging Face" not in str(error.value)
    assert re.findall(r"^  (\S+): ", str(error.value), re.M) == [f"{host.url}/ant_maze_v2"]


def test_download_without_network(host: Host, folder: Path) -> None:
    """Where nothing answers at all, the message is the same."""
    host.shutdown()
    host.server_close()
    with pytest.raises(SystemExit, match=f"^error: .*{NAME}(.|\n)*tools/collect.py"):
        dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert content_of(folder) == []


def test_download_interrupted(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a download at once, and leaves nothing behind."""

    def interrupted(url: str, path: str) -> None:
        Path(path + ".partial").write_bytes(b"half of it")
        raise KeyboardInterrupt

    host.answers[MIRRORED] = "missing"
    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert content_of(folder) == []


def test_download_nowhere_to_put_it(host: Host, folder: Path) -> None:
    """A dataset folder that cannot be made ends with the same message, and nothing is asked for."""
    folder.parent.write_bytes(b"a file where a folder should be")
    with pytest.raises(SystemExit, match=f"^error: .*{NAME}(.|\n)*tools/collect.py"):
        dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert host.asked == []


def test_given_file_wins(host: Host, folder: Path, tmp_path: Path) -> None:
    """--dataset-path comes before the dataset folder, and neither needs a request; without either, one is made."""
    given = tmp_path / "given.hdf5"
    with pytest.raises(SystemExit, match="^error: .*given.hdf5 does not exist"):
        dmg_iql.find_dataset("hopper-medium-replay-v2", given)
    folder.mkdir(parents=True)
    write(folder / NAME)
    there = (folder / NAME).read_bytes()
    assert dmg_iql.find_dataset("hopper-medium-replay-v2") == folder / NAME
    with pytest.raises(SystemExit, match="^error: .*given.hdf5 does not exist"):
        dmg_iql.find_dataset("hopper-medium-replay-v2", given)  # no silent use of another file
    given.write_bytes(b"given")
    assert dmg_iql.find_dataset("hopper-medium-replay-v2", given) == given
    assert host.asked == []
    assert (folder / NAME).read_bytes() == there


def test_default_folder(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without D4RL_DATASET_DIR, datasets are in D4RL's folder, ~/.d4rl/datasets."""
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = dmg_iql.find_dataset("hopper-medium-replay-v2")
    assert path == tmp_path / "home" / ".d4rl" / "datasets" / NAME and path.is_file()


def test_download_in_a_process_of_its_own(host: Host, folder: Path, tmp_path: Path) -> None:
    """With the Hugging Face client untouched, told of the local host by its environment, the mirror serves the file."""
    script = f"import dmg_iql; dmg_iql.SERVER = {dmg_iql.SERVER!r}\n"
    script += "print(dmg_iql.find_dataset('hopper-medium-replay-v2'))"
    settings = {"HF_ENDPOINT": host.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    settings |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / NAME) and content_of(folder) == [NAME]
    assert (folder / NAME).read_bytes() == host.files[MIRRORED]
    assert set(host.asked) == {("HEAD", MIRRORED), ("GET", MIRRORED)}
