"""tools/data/describe.py: numbers of a file that were worked out by hand, faults of data that it has to
see, and the page of the local datasets."""

import hashlib
import json
from pathlib import Path
from types import ModuleType

import common
import describe
import gymnasium as gym
import h5py
import numpy as np
import pytest
from test_get import run_tool, write


def hand_made() -> dict[str, np.ndarray]:
    """Nine rows of a hopper: episodes of 4 rows (terminal), 3 (timeout), and the beginning of a
    third."""
    rows = np.arange(9.0)
    columns = {"observations": np.tile(rows[:, None], 11), "actions": np.zeros((9, 3)), "rewards": rows}
    return columns | {"terminals": rows == 3, "timeouts": rows == 6}


def line(text: str, name: str) -> str:
    """The line of a description that begins with a name."""
    (found,) = [line for line in text.splitlines() if line.split() and line.split()[0] == name]
    return " ".join(found.split()[1:])


def test_numbers_by_hand(tmp_path: Path) -> None:
    """Returns 0+1+2+3 and 4+5+6; one timeout and the last row are no transition; hopper's reference."""
    text = describe.text(write(tmp_path / "hand.hdf5", hand_made()), "hopper-medium-v2")
    assert text.splitlines()[0] == f"{tmp_path}/hand.hdf5: 9 rows, 0.0 MB, hopper-medium-v2"
    assert line(text, "transitions") == "7, s' is the next row; 11.111% of all rows terminal"
    assert line(text, "episodes") == "2 whole ones, by terminals and timeouts; 3 to 4 rows, median 4"
    assert line(text, "return") == "10.5 ± 4.5, from 6.0 to 15.0"
    score = 100 * (np.array([6, 15]) + 20.272305) / (3234.3 + 20.272305)
    assert line(text, "score").startswith(f"{score.mean():.1f} ± {score.std():.1f}, from {score[0]:.1f}")
    assert line(text, "reward") == "0 4 2.582 8"
    assert [row for row in text.splitlines() if row.startswith("  state 10")][0].split()[2:] == [
        "0", "4", "2.582", "8"
    ]  # fmt: skip


def test_rules(tmp_path: Path) -> None:
    """Which rows follow which, and where episodes end, by the columns that a file has."""
    columns = hand_made()
    following = {"next_observations": columns["observations"] + 1}
    plain = {name: values for name, values in columns.items() if name != "timeouts"}
    marks = {"truncations": columns["timeouts"]}
    for data, wanted, ends, rule in (
        (plain | following, 9, [3, 8], "terminals, and where next_observations is not the next row"),
        (plain | following | marks, 9, [3, 6], "terminals and truncations"),
        (columns | following, 7, [3, 6], "terminals and timeouts"),
    ):
        rows, s2, go_on = describe.transitions(data)
        assert len(rows) == wanted and (s2[:, 0] == rows + 1).all() and rows[~go_on].tolist() == [3]
        found, words = describe.episode_ends(data, "Hopper-v5")
        assert np.flatnonzero(found).tolist() == ends and words == rule
    found, words = describe.episode_ends(columns, "antmaze-umaze-v2")  # goes on after the goal
    assert np.flatnonzero(found).tolist() == [6] and words == "timeouts"
    text = describe.text(write(tmp_path / "plain.hdf5", plain), None)
    assert "transitions unknown: neither timeouts nor next_observations" in text


def test_odd_columns(tmp_path: Path) -> None:
    """NaN is counted; rows in no order are told; attributes are shown, reference scores used."""
    columns = hand_made() | {"rewards": np.array([np.nan, *np.ones(8)])}
    attrs = {"env_id": "Pendulum-v1", "ref_min_score": 1.0, "ref_max_score": 11.0}
    text = describe.text(write(tmp_path / "nan.hdf5", columns, attrs), None)
    assert line(text, "rewards") == "float64, 1 of its numbers are NaN or infinite"
    assert "(0 is a return of 1.0, 100 one of 11.0)" in text and "  env_id = Pendulum-v1" in text
    columns = {name: values for name, values in hand_made().items() if name != "timeouts"}
    columns["next_observations"] = columns["observations"][::-1]
    text = describe.text(write(tmp_path / "order.hdf5", columns), None)
    assert "episodes unknown: the rows are in no order" in text


def test_cut_episodes_of_local_datasets() -> None:
    """The last episode of each policy's share of the rows is cut to fit, and not counted."""
    columns = {"rewards": np.ones(12), "terminals": np.zeros(12), "timeouts": np.zeros(12)}
    columns["timeouts"][[1, 5, 8, 11]] = 1
    attrs = {"policies": json.dumps(["one", "two"])}
    returns, lengths, last = describe.whole_episodes(columns, attrs, "hopper-medium-local")
    assert returns.tolist() == lengths.tolist() == [2, 3] and last.tolist() == [1, 8]
    assert len(describe.whole_episodes(columns, {}, "hopper-medium-local")[0]) == 4


def wandering(episodes: int, length: int) -> dict[str, np.ndarray]:
    """A swing that is pushed at random, from anywhere at each start."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(episodes):
        place, speed = rng.uniform(-3, 3, 2)
        for _ in range(length):
            push = rng.uniform(-1, 1)
            rows.append((place, speed, push))
            place, speed = place + 0.05 * speed, speed - 0.05 * place + 0.05 * push
            speed += 0.001 * rng.normal()
    rows = np.array(rows)
    n = len(rows)
    columns = {"observations": rows[:, :2], "actions": rows[:, 2:], "rewards": np.ones(n)}
    columns["terminals"] = np.zeros(n, bool)
    return columns | {"timeouts": np.arange(n) % length == length - 1}


def jumps(columns: dict[str, np.ndarray]) -> tuple[list[int], float]:
    """The rows after which the state jumps, and how much of it is explained."""
    rows, s2, _ = describe.transitions(columns)
    s, a = columns["observations"][rows], columns["actions"][rows]
    far, explained = describe.surprises(s, a, s2)
    return rows[far > describe.JUMP].tolist(), explained


def test_jumps() -> None:
    """None where the timeouts are right; where they are out of step by one (as D4RL's AntMaze had them),
    one for each, but from states that are cut at 10; rows in no order are explained by nothing."""
    columns = wandering(10, 300)
    found, explained = jumps(columns)
    assert not found and explained > 0.99
    found, _ = jumps(columns | {"timeouts": np.roll(columns["timeouts"], 1)})
    ends = set(range(299, 2700, 300))
    assert set(found) == ends
    s, a = columns["observations"][:-1].copy(), columns["actions"][:-1]
    s2 = columns["observations"][1:].copy()
    s[10, 1], s[20, 1], s2[[10, 20, 30]] = 10, 9.99, 50
    far, _ = describe.surprises(s, a, s2)
    assert far[10] == 0 and min(far[20], far[30]) > describe.JUMP
    order = np.random.default_rng(1).permutation(3000)
    shuffled = {name: values[order] for name, values in columns.items()}
    assert jumps(shuffled)[1] < 0.1


@pytest.mark.parametrize(
    "env_id", ["Hopper-v5", "walker2d-medium-v2", "HalfCheetah-v4", "antmaze-umaze-v2"]
)
def test_simulator_error(iql: ModuleType, env_id: str) -> None:
    """About 0 for the simulator's own steps, 1 for others; of another robot of the same shape, 1."""
    env = iql.make_env(env_id)
    rng, (state, _) = np.random.default_rng(0), env.reset(seed=0)
    steps = []
    for step in range(150):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        following, _, ended, _, _ = env.step(action)
        steps.append([state, action, following])
        state = env.reset(seed=step)[0] if ended else following
    s, a, s2 = (np.array(values, np.float32) for values in zip(*steps))
    assert describe.simulator_error(env_id, s, a, s2) < 1e-3
    assert describe.simulator_error(env_id, s, a, s2[rng.permutation(150)]) > 0.5
    other = {"HalfCheetah-v4": "Walker2d-v5", "walker2d-medium-v2": "halfcheetah-medium-v2"}.get(env_id)
    if other:
        assert describe.simulator_error(other, s, a, s2) > 0.5


def test_starts_anew(iql: ModuleType) -> None:
    """Other resets are such states, those after some steps are not; --describe counts jumps to them."""
    env = iql.make_env("Hopper-v5")
    env.action_space.seed(0)
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(500, 520)])
    later = np.stack([env.step(env.action_space.sample())[0] for _ in range(10)])
    assert describe.starts_anew("Hopper-v5", starts).all()
    assert not describe.starts_anew("Hopper-v5", later).any()


def test_simulator_that_cannot_tell() -> None:
    """Where a state is no position and velocity, nothing is said."""
    for env_id in ("Pendulum-v1", "InvertedDoublePendulum-v5", "Reacher-v5"):
        n = gym.make(env_id).observation_space.shape[0]
        assert (
            describe.simulator_error(env_id, np.zeros((5, n)), np.zeros((5, 1)), np.ones((5, n))) is None
        )


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets that are there, with their numbers; one of another size than usual is marked."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    attrs = {"policies": json.dumps(["hopper-medium.npz:0"])}
    path = write(tmp_path / "hopper_medium-local.hdf5", hand_made(), attrs)
    states = np.zeros((1402, 29))
    states[:701, 1] = np.linspace(0, 8.75, 701)
    states[:701, 0] = 0.75
    maze = {
        "observations": states,
        "timeouts": np.arange(1402) % 701 == 700,
        "infos/goal": states[::701].repeat(701, 0)[:, :2],
    }
    write(tmp_path / "antmaze_umaze-local.hdf5", maze | {"terminals": np.arange(1402) == 699})
    assert run_tool(describe, "--out", tmp_path / "new" / "page.md") is None
    page = (tmp_path / "new" / "page.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if "-local |" in row
    ]
    assert [row[0] for row in rows] == ["hopper-medium-local", "antmaze-umaze-local"]
    assert rows[0][1:5] == ["9 (a trial: not 1,000,000)", "2", "1", "10.5 ± 4.5"]
    assert rows[0][6] == "56.2" and rows[1][7] == "66.8"  # the paper's, of cloning
    assert rows[0][7] == f"`{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`"
    assert rows[1][2:7] == ["2", "2 (100 %)", "1 (50 %)", "24, 24 m", "1 of 2"]


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no dataset is named in one line, and no page is written."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    path = tmp_path / "hopper_medium-local.hdf5"
    for content in (b"none", b"\x89HDF\r\n\x1a\n and no more"):
        path.write_bytes(content)
        message = run_tool(describe, "--out", tmp_path / "page.md")
        assert message.startswith("error: ") and path.name in message and "\n" not in message
    write(path, hand_made())
    with h5py.File(path, "a") as file:
        del file["terminals"]
    assert "has no terminals; it has actions, observations, rewards, timeouts" in run_tool(describe)
    assert not (tmp_path / "page.md").exists()
    path.unlink()
    for out in (tmp_path, Path("/dev/null"), Path("/proc/nowhere/page.md")):
        assert run_tool(describe, "--out", out).startswith("error: ")
    assert common.data_folder() == tmp_path and not list(tmp_path.iterdir())
