"""tools/data/get.py: downloads against a local server that behaves in every bad way, and other data made
into files whose transitions are those of the episodes that they were made from, one by one."""

import csv
import functools
import hashlib
import http.server
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import common
import describe
import get
import gymnasium as gym
import h5py
import numpy as np
import pytest

NAME = "hopper_medium_replay-v2.hdf5"
ENV_ID = "hopper-medium-replay-v2"
HTML = b"<!doctype html><html><body>Please sign in</body></html>" * 40
fork = multiprocessing.get_context("fork")


def run_tool(tool: ModuleType, *flags: object) -> int | str | None:
    """A tool's command line in this process: what it exits with, a status or an error's line."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [tool.__file__, *map(str, flags)]
    try:
        common.run(tool.main, tool.Args)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)


# ---- D4RL's files -------------------------------------------------------------------------------------
class Host(http.server.ThreadingHTTPServer):
    """Mirror and server on one local port. `answers` says for /mirror and /server how each behaves in
    turn (the last for ever), `asked` what was asked for: (path, Range).

    Answers: file; whole (without heed to a Range); 403, 404, 503; HTML (with status 200); cut (the
    connection ends after half of what was asked for); stall (half, then nothing); short (half of the
    file, as if that were all); wrong (as many other bytes); closed (no answer)."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.stalled = content, [], threading.Event()
        self.answers = {"mirror": ["file"], "server": ["file"]}

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Host

    def log_message(self, *args: object) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        """Answers as the host was told to."""
        where = self.path.split("/")[1]
        self.server.asked.append((where, self.headers.get("Range")))
        answers, content = self.server.answers[where], self.server.content
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "closed":
            return
        if answer in ("403", "404", "503"):
            self.send_error(int(answer))
            return
        other = content[:64] + bytes(byte ^ 1 for byte in content[64:])
        content = {"HTML": HTML, "short": content[: len(content) // 2], "wrong": other}.get(
            answer, content
        )
        first = 0
        if "Range" in self.headers and answer != "whole":
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        content = content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer in ("cut", "stall") else content)
        if answer == "stall":
            self.wfile.flush()
            self.server.stalled.set()
            threading.Event().wait(60)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A local host that has one small file under a name of D4RL's; nobody waits between tries."""
    with h5py.File(tmp_path / "source.hdf5", "w") as file:
        file["rewards"] = np.random.default_rng(0).normal(size=40_000)
    content = (tmp_path / "source.hdf5").read_bytes()
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with Host(content) as host:
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        addresses = [f"http://127.0.0.1:{host.server_port}/{where}" for where in ("mirror", "server")]
        monkeypatch.setattr(get, "sources", lambda name: [f"{address}/{name}" for address in addresses])
        monkeypatch.setitem(get.FILES, NAME, known)
        monkeypatch.setattr(get.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "new" / "datasets"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield host
        host.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder into which datasets are downloaded; it does not exist yet."""
    return tmp_path / "new" / "datasets"


def files_in(folder: Path) -> list[str]:
    """All that is in a folder, at any depth."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_addresses() -> None:
    """The mirror at the revision of the scripts, then D4RL's server, in its two folders."""
    mirror, server = get.sources(NAME)
    assert mirror.endswith(
        f"/datasets/imone/D4RL/resolve/9ed58d8a76c12f4c1cb5db51fa71389e703d2ec5/{NAME}"
    )
    assert server == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/{NAME}"
    assert "/ant_maze_v2/Ant_maze_u" in get.sources(common.dataset_file("antmaze-umaze-v2").name)[1]


def test_all_files_are_known() -> None:
    """Size and SHA-256 of all 21, but for one whose size alone is known; their source is named."""
    names = [common.dataset_file(env_id).name for env_id in common.D4RL_IDS]
    assert len(names) == 21 and set(names) == set(get.FILES)
    assert all(10**7 < known["bytes"] < 10**9 for known in get.FILES.values())
    without = [name for name, known in get.FILES.items() if len(known.get("sha256") or "") != 64]
    assert without == ["Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"]
    path = common.ROOT / "tools/data/d4rl_files.json"
    assert "tensorflow_datasets/d4rl" in json.loads(path.read_text())["source"]


def test_download(host: Host, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The mirror's file lands under its name, nothing beside it; a second call asks nobody."""
    assert run_tool(get, ENV_ID) == 0
    assert files_in(folder) == [NAME] and (folder / NAME).read_bytes() == host.content
    assert run_tool(get, "hopper-*-replay-v2") == 0
    assert host.asked == [("mirror", None)]
    assert capsys.readouterr().out == f"{folder / NAME}: whole\n" * 2


@pytest.mark.parametrize("answer", ["403", "404", "503", "HTML", "short", "wrong", "closed"])
def test_download_falls_back(host: Host, folder: Path, answer: str) -> None:
    """Whatever is wrong with the mirror, D4RL's server is asked next, once, for the whole file."""
    host.answers["mirror"] = [answer]
    assert run_tool(get, ENV_ID) == 0
    assert files_in(folder) == [NAME] and (folder / NAME).read_bytes() == host.content
    assert host.asked[-1] == ("server", None) and [where for where, _ in host.asked].count("server") == 1
    assert len(host.asked) == (4 if answer in ("503", "closed") else 2)


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("403", "status 403"),
        ("404", "status 404"),
        ("503", "status 503"),
        ("HTML", "no HDF5 file, it begins with b'<!doctyp'"),
        ("short", "its file has 16"),
        ("wrong", "SHA-256"),
        ("closed", "closed connection"),
    ],
)
def test_download_fails(
    host: Host, folder: Path, capsys: pytest.CaptureFixture, answer: str, reason: str
) -> None:
    """With both sources failing, one line names each and what it did, and nothing is left."""
    host.answers = {"mirror": ["404"], "server": [answer]}
    assert run_tool(get, ENV_ID) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{folder / NAME}: no download of {NAME} (127.0.0.1" in line
    assert "status 404, Not Found" in line and reason in line and "kept" not in line
    assert files_in(folder) == []


@pytest.mark.parametrize("answer", ["cut", "stall"])
def test_download_goes_on(host: Host, folder: Path, answer: str) -> None:
    """After a connection that ended or a server that stopped sending, the rest is asked for, of the same
    source, and of the next one if that fails again and again."""
    host.answers = {"mirror": [answer], "server": ["file"]}
    begun = time.perf_counter()
    assert run_tool(get, ENV_ID, "--wait", "0.3") == 0
    assert files_in(folder) == [NAME] and (folder / NAME).read_bytes() == host.content
    places = [0]  # from which each answer begins: half of what is missing arrives
    for _ in range(3):
        places.append(places[-1] + (len(host.content) - places[-1]) // 2)
    wanted = [None, *(f"bytes={place}-" for place in places[1:])]
    assert host.asked == list(zip(["mirror"] * 3 + ["server"], wanted))
    assert time.perf_counter() - begun < 20


def test_download_without_ranges(host: Host, folder: Path) -> None:
    """A server that can only send whole files begins anew."""
    host.answers["mirror"] = ["cut", "whole"]
    assert run_tool(get, ENV_ID) == 0
    assert (folder / NAME).read_bytes() == host.content and len(host.asked) == 2


def test_failure_keeps_what_arrived(host: Host, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The message says so, --check too, and the next call asks for the rest."""
    host.answers = {"mirror": ["cut", "404"], "server": ["404"]}
    assert run_tool(get, ENV_ID) == 1
    half = len(host.content) // 2
    assert f"{half:,} bytes are kept" in capsys.readouterr().err
    assert files_in(folder) == [f".{NAME}.part"]
    assert run_tool(get, "--check") == 0
    assert (
        f".{NAME}.part: begun; the same download goes on from its {half:,} bytes"
        in capsys.readouterr().out
    )
    host.answers = {"mirror": ["file"], "server": ["file"]}
    assert run_tool(get, ENV_ID) == 0
    assert host.asked[-1] == ("mirror", f"bytes={half}-") and files_in(folder) == [NAME]
    assert (folder / NAME).read_bytes() == host.content


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(host: Host, folder: Path, number: int) -> None:
    """Never is there a file under the name. A kill leaves the part from which the next call goes on, and
    which is then gone; Ctrl-C and SIGTERM leave nothing."""
    host.answers["mirror"] = ["stall", "file"]
    process = fork.Process(target=run_tool, args=(get, ENV_ID))
    process.start()
    assert host.stalled.wait(60)
    part = folder / f".{NAME}.part"
    while not part.exists() or not part.stat().st_size:
        threading.Event().wait(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode is not None
    assert files_in(folder) == ([part.name] if number == signal.SIGKILL else [])
    assert run_tool(get, ENV_ID) == 0
    assert files_in(folder) == [NAME] and (folder / NAME).read_bytes() == host.content
    assert (host.asked[-1][1] is not None) == (number == signal.SIGKILL)


def test_two_downloads_at_once(host: Host, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The second is refused while the first goes on."""
    host.answers["mirror"] = ["stall", "file"]
    process = fork.Process(target=run_tool, args=(get, ENV_ID))
    process.start()
    assert host.stalled.wait(60)
    assert run_tool(get, ENV_ID) == 1
    assert "another process is downloading" in capsys.readouterr().err and len(host.asked) == 1
    process.kill()
    process.join()


def test_wrong_file_is_left_alone(host: Host, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """What is there under the name, truncated or another file, is named and stays; nobody is asked."""
    folder.mkdir(parents=True)
    for content, words in ((host.content[:-100], "truncated: 100 of"), (b"mine", "not D4RL's: no HDF5")):
        (folder / NAME).write_bytes(content)
        assert run_tool(get, ENV_ID) == 1
        error = capsys.readouterr().err
        assert words in error and "left as it is" in error and "elete" not in error
        assert (folder / NAME).read_bytes() == content
    assert not host.asked


def test_no_room(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file that does not fit on the disk is not begun."""
    monkeypatch.setattr(get.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    assert run_tool(get, ENV_ID) == 1
    assert "has no room for" in capsys.readouterr().err and not host.asked and files_in(folder) == []


def test_all_goes_on_after_a_failure(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several datasets, those that can be had are, and the status tells that one could not."""
    known = get.FILES[NAME]
    for env_id in common.D4RL_IDS:
        monkeypatch.setitem(get.FILES, common.dataset_file(env_id).name, known)
    host.answers = {"mirror": ["404", "file"], "server": ["404"]}
    assert run_tool(get, "all") == 1
    assert len(files_in(folder)) == 20


def test_check(host: Host, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Every file of a folder: whole, truncated and by how much, another file, unknown, damaged."""
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(host.content)
    assert run_tool(get, "--check") == 0 and capsys.readouterr().out == f"{folder / NAME}: whole\n"
    n, wrong = len(host.content), bytearray(host.content)
    wrong[-1] ^= 1
    get.FILES["maze.hdf5"] = {"bytes": n}
    try:
        for name, content in {
            "maze.hdf5": bytes(wrong),
            "cut.hdf5": host.content[: n // 2],
            "mine.hdf5": host.content,
            "notes.txt": b"none",
        }.items():
            (folder / name).write_bytes(content)
        with h5py.File(folder / "mine.hdf5", "a") as file:
            file.attrs["env_id"] = "Pendulum-v1"
        (folder / NAME).write_bytes(host.content[: n // 4])
        assert run_tool(get, "--check") == 1
        lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    finally:
        del get.FILES["maze.hdf5"]
    lines = {Path(name).name: words for name, words in lines.items()}
    assert lines.pop("cut.hdf5").startswith("unknown: no dataset (")
    missing = n - n // 4
    assert lines == {
        NAME: f"truncated: {missing:,} of {n:,} bytes are missing (75%)",
        "maze.hdf5": "whole by its size (its SHA-256 is not known)",
        "mine.hdf5": "unknown: not one of D4RL's files; 40,000 rows of Pendulum-v1",
        "notes.txt": "unknown: no HDF5 file",
    }
    (folder / NAME).write_bytes(bytes(wrong))
    assert get.judge(folder / NAME)[1].startswith("not D4RL's: SHA-256 ")
    (folder / NAME).write_bytes(host.content + b"more")
    assert get.judge(folder / NAME) == (False, f"not D4RL's: 4 bytes more than its {n:,}")


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "give ids to download, or one of"),
        (("--check", "--describe", "x.hdf5"), "give ids to download, or one of"),
        (("--check", "--env-id", "Hopper-v5"), "--env-id has no meaning here"),
        (("hopper-medium-v3",), "hopper-medium-v3: expected some of halfcheetah-random-v2"),
        (("hopper-medium-local",), "python tools/data/collect.py --env-id hopper-medium-local"),
        ((ENV_ID, "--wait", "nan"), "--wait nan"),
        (("--fix", "none.hdf5"), "there is no file none.hdf5"),
        (("--check",), "has no files"),
    ],
)
def test_misuse(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    """One line says what is wrong."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    message = run_tool(get, *flags)
    assert message.startswith("error: ") and words in message and "\n" not in message
    assert not folder.exists()


def test_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~user that does not exist is named, and no folder of that name is made."""
    monkeypatch.setenv("D4RL_DATASET_DIR", "~nosuchuser/x")
    assert "there is no such user" in run_tool(get, "--check")


# ---- Episodes, and the transitions that are in them ---------------------------------------------------
Episode = dict[str, np.ndarray]  # observations [n + 1, k], actions, rewards, terminations, truncations


def play(env_id: str, lengths: tuple[int, ...], seed: int = 0) -> list[Episode]:
    """Episodes of random actions, ended by the simulator, or cut after these numbers of steps."""
    env, rng, episodes = gym.make(env_id), np.random.default_rng(seed), []
    low, high = env.action_space.low, env.action_space.high
    for number, length in enumerate(lengths):
        state, _ = env.reset(seed=seed + number)
        rows = {key: [] for key in ("actions", "rewards", "terminations", "truncations")}
        states, ended = [state], False
        while not ended and len(rows["actions"]) < length:
            action = rng.uniform(low, high).astype(np.float32)
            state, reward, terminated, truncated, _ = env.step(action)
            states.append(state)
            ended = terminated or truncated
            for key, value in zip(rows, (action, reward, terminated, truncated)):
                rows[key].append(value)
        rows["truncations"][-1] = not rows["terminations"][-1]
        episode = {key: np.array(values) for key, values in rows.items()}
        episodes.append(episode | {"observations": np.array(states, np.float64)})
    return episodes


def rows_of(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """The episodes, one after the other, as columns."""
    columns = {key: np.concatenate([e[key] for e in episodes]) for key in ("actions", "rewards")}
    columns["terminals"] = np.concatenate([episode["terminations"] for episode in episodes])
    columns["timeouts"] = np.concatenate([episode["truncations"] for episode in episodes])
    columns["observations"] = np.concatenate([episode["observations"][:-1] for episode in episodes])
    return columns | {"next_observations": np.concatenate([e["observations"][1:] for e in episodes])}


def steps_of(episodes: list[Episode], cut: bool = True) -> list[tuple]:
    """The transitions (s, a, r, terminal, s'), step by step; without `cut`, but for the last ones of
    episodes that time ended, and for the very last one."""
    steps = []
    for episode in episodes:
        for i in range(len(episode["rewards"])):
            if cut or not episode["truncations"][i]:
                s, s2 = episode["observations"][i : i + 2].astype(np.float32)
                reward = np.float32(episode["rewards"][i])
                steps.append((s, episode["actions"][i], reward, episode["terminations"][i], s2))
    return steps


def load(iql: ModuleType, path: Path, env_id: str) -> list[np.ndarray]:
    """s, a, r, whether terminal, s' of a file, as dmg_iql.py reads it."""
    job = iql.Args(env_id=env_id, dataset_path=path, device="cpu", normalize_states=False)
    iql.resolve(job)
    env = iql.make_env(env_id)
    buffer, *_ = iql.load_dataset(job, env)
    k, action = env.observation_space.shape[0], env.action_space.shape[0]
    s, a, r, not_done, s2 = np.split(buffer.numpy(), np.cumsum([k, action, 1, 1]), axis=1)
    return [s, a, r[:, 0], not_done[:, 0] == 0, s2]


def same(loaded: list[np.ndarray], steps: list[tuple], scale: float = 1.0) -> bool:
    """Whether the loaded transitions are those, one by one; but s' of terminal ones, which plays no
    part. Actions are loaded in ±1; `scale` is their bound in the simulator."""
    assert len(loaded[0]) == len(steps) > 0, (len(loaded[0]), len(steps))
    for s, a, r, terminal, s2, step in zip(*loaded, steps):
        values = (s, a * scale, r, terminal, s2 if not terminal else step[4])
        if not all(np.allclose(value, wanted, atol=1e-6) for value, wanted in zip(values, step)):
            return False
    return True


@functools.cache
def made(env_id: str, *lengths: int) -> tuple[list[Episode], list[tuple]]:
    """Episodes and all their transitions."""
    episodes = play(env_id, lengths)
    return episodes, steps_of(episodes)


def write(path: Path, columns: dict[str, np.ndarray], attrs: dict[str, object] | None = None) -> Path:
    """An HDF5 file."""
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            file[key] = values
        file.attrs.update(attrs or {})
    return path


HOPPER = ("Hopper-v5", *[1000] * 12)  # ends by falling, every time
CUT = ("Hopper-v5", 9, 7, 1000, 8, 1000, 5, 9, 1000, 8)  # some cut by the logger
PENDULUM = ("Pendulum-v1", 200, 200, 200)  # ends by time, every time


# ---- Own files ----------------------------------------------------------------------------------------
def without(columns: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    """The other columns."""
    return {name: values for name, values in columns.items() if name not in names}


def leaking(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """next_observations as simulators that reset by themselves log them: the next episode's first
    state."""
    following = columns["next_observations"].copy()
    ends = np.flatnonzero(columns["timeouts"][:-1])
    following[ends] = columns["observations"][ends + 1]
    return columns | {"next_observations": following}


def renamed(columns: dict[str, np.ndarray], **names: str) -> dict[str, np.ndarray]:
    """The same columns under other names."""
    return {names.get(name, name): values for name, values in columns.items()}


ORDER = np.random.default_rng(5).permutation(600)
OWN = {  # what a file holds; the episodes it is made of; which transitions it should give; flags
    "float64": (lambda c: without(c, "next_observations"), CUT, "uncut", ()),
    "int8 flags": (
        lambda c: (
            without(c, "next_observations")
            | {"terminals": c["terminals"].astype(np.int8), "timeouts": c["timeouts"].astype(np.int8)}
        ),
        CUT,
        "uncut",
        (),
    ),
    "no timeouts": (lambda c: without(c, "next_observations", "timeouts"), PENDULUM, "uncut", ()),
    "no timeouts, ends by falling": (
        lambda c: without(c, "next_observations", "timeouts"),
        HOPPER,
        "but the last row",
        (),
    ),
    "own next states": (lambda c: without(c, "timeouts"), CUT, "all", ()),
    "own next states and timeouts": (lambda c: c, CUT, "all", ()),
    "next states after a reset": (leaking, CUT, "uncut but the last row", ()),
    "shuffled": (
        lambda c: {k: v[ORDER] for k, v in without(c, "timeouts").items()},
        PENDULUM,
        "shuffled",
        (),
    ),
    "shuffled, with timeouts": (lambda c: {k: v[ORDER] for k, v in c.items()}, PENDULUM, "shuffled", ()),
    "columns (n, 1)": (
        lambda c: {k: v.reshape(len(v), -1) for k, v in without(c, "next_observations").items()},
        CUT,
        "uncut",
        (),
    ),
    "extra keys": (
        lambda c: (
            without(c, "next_observations")
            | {"infos/goal": np.zeros(3), "name": b"mine", "x": c["actions"]}
        ),
        CUT,
        "uncut",
        (),
    ),
    "one episode": (
        lambda c: without(c, "next_observations", "timeouts"),
        ("Hopper-v5", 1000),
        "but the last row",
        (),
    ),
    "a mask of another name": (
        lambda c: renamed(without(c, "next_observations"), timeouts="cuts"),
        CUT,
        "uncut",
        ("--timeouts", "cuts"),
    ),
    "Gymnasium's names": (
        lambda c: renamed(
            without(c, "next_observations"), timeouts="truncations", terminals="terminations"
        ),
        CUT,
        "uncut",
        (),
    ),
    "integers": (
        lambda c: without(c, "next_observations") | {"rewards": np.arange(len(c["rewards"]))},
        CUT,
        "",
        (),
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_own_file(iql: ModuleType, tmp_path: Path, case: str) -> None:
    """Every odd file becomes one that dmg_iql.py reads as the right transitions; it stays as it is."""
    change, made_of, wanted, flags = OWN[case]
    episodes, steps = made(*made_of)
    path = write(tmp_path / "own.hdf5", change(rows_of(episodes)))
    before = path.read_bytes()
    assert run_tool(get, "--fix", path, "--env-id", made_of[0], *flags) is None
    assert path.read_bytes() == before and files_in(tmp_path) == ["own-fixed.hdf5", "own.hdf5"]
    if wanted.startswith("uncut"):
        steps = steps_of(episodes, cut=False)
    if wanted == "uncut but the last row":  # the file's last row has its own next state
        steps = steps + steps_of(episodes)[-1:]
    if wanted == "but the last row":
        steps = steps[:-1]
    if wanted == "shuffled":
        steps = [steps[i] for i in ORDER]
    if wanted == "":  # the rewards are others
        steps = [(s, a, np.float32(0), done, s2) for s, a, _, done, s2 in steps_of(episodes, cut=False)]
    loaded = load(iql, tmp_path / "own-fixed.hdf5", made_of[0])
    if wanted == "":
        assert loaded[2][:5].tolist() == [0, 1, 2, 3, 4]
        loaded[2] = 0 * loaded[2]
    assert same(loaded, steps, 2.0 if made_of == PENDULUM else 1.0)
    with h5py.File(tmp_path / "own-fixed.hdf5") as file:
        kinds = {name: file[name].dtype for name in file}
        assert file.attrs["env_id"] == made_of[0] and "own.hdf5" in file.attrs["source"]
    marks = ("terminals", "timeouts", "truncations")
    assert kinds == {name: np.dtype(bool if name in marks else np.float32) for name in kinds}


def test_transitions_are_compared() -> None:
    """The comparison of the tests above sees one wrong number in one transition, of any kind."""
    episodes, steps = made(*CUT)
    columns = rows_of(episodes)
    names = ("observations", "actions", "rewards", "terminals", "next_observations")
    loaded = [columns[name].astype(np.float32) for name in names]
    assert same(loaded, steps)
    for i in range(5):
        wrong = [values.copy() for values in loaded]
        wrong[i].flat[0] += 1
        assert not same(wrong, steps)


def test_own_file_gzip(iql: ModuleType, tmp_path: Path) -> None:
    """A compressed file reads as any other; --out says where to, and is not replaced unasked."""
    episodes, steps = made(*CUT)
    path, out = tmp_path / "own.hdf5", tmp_path / "there" / "it is.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in without(rows_of(episodes), "timeouts").items():
            file.create_dataset(key, data=values, compression="gzip", chunks=True, shuffle=True)
    flags = ("--fix", path, "--env-id", "Hopper-v5", "--out")
    assert run_tool(get, *flags, out) is None and same(load(iql, out, "Hopper-v5"), steps)
    before = out.read_bytes()
    assert "--overwrite" in run_tool(get, *flags, out) and out.read_bytes() == before
    assert run_tool(get, *flags, out, "--overwrite") is None
    for name in (tmp_path / "there", Path("/dev/null")):
        assert "is no plain file" in run_tool(get, *flags, name, "--overwrite")
    assert files_in(tmp_path) == ["own.hdf5", "there", "there/it is.hdf5"]


def holes(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A NaN in row 7, and an infinite number in row 9."""
    s = columns["observations"].copy()
    s[7, 2], s[9, 0] = np.nan, np.inf
    return columns | {"observations": s}


WRONG = {  # what a file holds; the episodes it is made of; flags; what the line says
    "NaN": (holes, HOPPER, (), "observations has NaN or infinite numbers in 2 rows, the first is 7"),
    "another robot": (
        lambda c: c,
        ("HalfCheetah-v5", 200, 200),
        ("--env-id", "Walker2d-v5"),
        "another robot",
    ),
    "another robot's shape": (
        lambda c: c,
        HOPPER,
        ("--env-id", "Walker2d-v5"),
        "has [11] in a row, the simulator [17]",
    ),
    "no simulator": (lambda c: c, HOPPER, ("--env-id", "Nonsense-v5"), "no simulator for Nonsense-v5"),
    "none named": (lambda c: c, HOPPER, (), "give --env-id"),
    "shuffled rows": (
        lambda c: {k: v[ORDER] for k, v in without(c, "next_observations", "timeouts").items()},
        PENDULUM,
        (),
        "only a next_observations column can say",
    ),
    "shuffled rows of a robot": (
        lambda c: {k: v[np.argsort(c["rewards"])] for k, v in without(c, "next_observations").items()},
        HOPPER,
        (),
        "only a next_observations column can say",
    ),
    "no time limit": (
        lambda c: without(c, "next_observations", "timeouts"),
        HOPPER,
        ("--env-id", "limitless:Limitless-v0"),
        "neither timeouts nor next_observations",
    ),
    "time limits of another length": (
        lambda c: without(c, "next_observations", "timeouts"),
        ("Hopper-v5", *[12] * 6, *[1000] * 30),
        (),
        "a timeouts column decides it",
    ),
    "actions outside": (
        lambda c: c | {"actions": 2 * c["actions"]},
        HOPPER,
        (),
        "np.clip does the same",
    ),
    "no terminals": (
        lambda c: renamed(c, terminals="dones"),
        HOPPER,
        (),
        "has no terminals; it has actions, dones",
    ),
    "terminals of 0.5": (
        lambda c: c | {"terminals": c["terminals"] / 2},
        HOPPER,
        (),
        "terminals should be 0 or 1",
    ),
    "another length": (
        lambda c: c | {"actions": c["actions"][1:]},
        HOPPER,
        (),
        "the same number of rows",
    ),
    "no such mask": (lambda c: c, HOPPER, ("--timeouts", "cuts"), "has no column cuts"),
    "text": (lambda c: c | {"rewards": np.array([b"1"] * len(c["rewards"]))}, HOPPER, (), "not numbers"),
    "empty": (lambda c: {k: v[:0] for k, v in c.items()}, HOPPER, (), "has no rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_own_file_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What cannot be known is refused with a line that names it, and nothing is written."""
    change, made_of, flags, words = WRONG[case]
    (tmp_path / "limitless.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Limitless-v0', 'gymnasium.envs.mujoco.hopper_v5:HopperEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "own.hdf5", change(rows_of(made(*made_of)[0])))
    if "--env-id" not in flags and case != "none named":
        flags = (*flags, "--env-id", made_of[0])
    message = run_tool(get, "--fix", path, *flags)
    assert message.startswith("error: ") and words in message and "\n" not in message, message
    assert [name for name in files_in(tmp_path) if name.endswith("hdf5")] == ["own.hdf5"]


def test_own_file_of_a_pendulum_trains(
    iql: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The file says which simulator it is from; its reference scores stay; the command that get.py
    prints trains, and the score is by them."""
    columns = without(rows_of(made(*PENDULUM)[0]), "next_observations")
    attrs = {"env_id": "Pendulum-v1", "ref_min_score": -1200.0, "ref_max_score": -200.0}
    path = write(tmp_path / "own.hdf5", columns, attrs)
    assert run_tool(get, "--fix", path) is None
    *_, command = capsys.readouterr().out.splitlines()
    assert command == f"python dmg_iql.py --env-id Pendulum-v1 --dataset-path {tmp_path}/own-fixed.hdf5"
    small = dict(hidden_dim=8, batch_size=16, iterations=10, eval_episodes=2, device="cpu")
    job = iql.Args("Pendulum-v1", tmp_path / "own-fixed.hdf5", run_dir=tmp_path / "runs", **small)
    iql.train(job)
    for row in evaluations(tmp_path / "runs"):
        assert float(row["score"]) == pytest.approx((float(row["return"]) + 1200) / 10)


def test_pendulum_of_the_page(iql: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/data.md's example, of 20 episodes, is a file as it should be; without its timeouts, --fix
    counts them, whether or not the pendulum's speed is cut at 8, which is no jump of the state."""
    page = (common.ROOT / "docs/data.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "h5py" in block]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("range(200)", "range(20)"), {})
    data, _ = describe.read(tmp_path / "pendulum.hdf5")
    assert (np.abs(data["observations"][:, 2]) == 8).any()
    wanted = load(iql, tmp_path / "pendulum.hdf5", "Pendulum-v1")
    assert len(wanted[0]) == 20 * 199
    assert "jumps       0 inside" in describe.text(tmp_path / "pendulum.hdf5", "Pendulum-v1")
    path = write(tmp_path / "own.hdf5", without(data, "timeouts"))
    assert run_tool(get, "--fix", path, "--env-id", "Pendulum-v1") is None
    fixed = load(iql, tmp_path / "own-fixed.hdf5", "Pendulum-v1")
    assert all(np.array_equal(*pair) for pair in zip(fixed, wanted))


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of the one eval.csv below a folder."""
    (path,) = folder.rglob("eval.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- Minari -------------------------------------------------------------------------------------------
WORLD = """
import gymnasium as gym
import numpy as np

class World(gym.Env):
    def __init__(self, size=1.0):
        self.size = size
        parts = {"place": gym.spaces.Box(-9, 9, (2, 1)), "goal": gym.spaces.Box(-9, 9, (1,))}
        self.observation_space = gym.spaces.Dict(parts)
        self.action_space = gym.spaces.Box(-3, 3, (2,))

    def observe(self):
        return {"place": self.place[:, None].astype(np.float32), "goal": np.float32([self.size])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action):
        self.place = self.place + 0.1 * action
        return self.observe(), float(self.place.sum()), bool(self.place.max() > 2), False, {}

gym.register("World-v0", "dictworld:World", max_episode_steps=20)
gym.register("Large-v0", "dictworld:World", max_episode_steps=20, kwargs={"size": 2.0})
"""


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Minari with a folder of its own, and a module with an environment whose observations are a
    Dict."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    (tmp_path / "dictworld.py").write_text(WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    pytest.importorskip("jax")  # Minari's collector needs it
    return pytest.importorskip("minari")


def record(minari: ModuleType, name: str, env: gym.Env, steps: int, **about: object) -> object:
    """A Minari dataset of random actions, by Minari's own collector; the last episode is cut short."""
    collector, ended = minari.DataCollector(env), True
    env.action_space.seed(1)
    for step in range(steps):
        if ended:
            collector.reset(seed=step)
        _, _, terminated, truncated, _ = collector.step(env.action_space.sample())
        ended = terminated or truncated
    dataset = collector.create_dataset(name, **about)
    collector.close()
    return dataset


def episodes_of(dataset: object) -> list[Episode]:
    """A Minari dataset's episodes; a Dict's parts in the order of their names."""
    episodes = []
    for data in dataset.iterate_episodes():
        states = data.observations
        if isinstance(states, dict):
            states = np.hstack([states[key].reshape(len(states[key]), -1) for key in sorted(states)])
        kept = {key: getattr(data, key) for key in ("actions", "rewards", "terminations", "truncations")}
        episodes.append(kept | {"observations": states})
    return episodes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "env_id, steps, bound",
    [("Pendulum-v1", 450, 2.0), ("Hopper-v5", 400, 1.0), ("dictworld:World-v0", 70, 3.0)],
)
def test_minari(
    iql: ModuleType,
    minari: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    env_id: str,
    steps: int,
    bound: float,
) -> None:
    """A dataset recorded by Minari converts to its episodes' transitions, one by one and all of them;
    the command that get.py prints trains on it, and the score of a return is Minari's."""
    name = f"test/{env_id.split(':')[-1].split('-')[0].lower()}/random-v0"
    dataset = record(minari, name, gym.make(env_id), steps, ref_min_score=-1500.0, ref_max_score=-100.0)
    episodes = episodes_of(dataset)
    assert len(episodes) > 2 and sum(len(episode["rewards"]) for episode in episodes) == steps
    assert run_tool(get, "--minari", name) is None
    path = tmp_path / "d4rl" / f"minari_{name.replace('/', '_')}.hdf5"
    *_, command = capsys.readouterr().out.splitlines()
    assert command == f"python dmg_iql.py --env-id {env_id} --dataset-path {path}"
    assert same(load(iql, path, env_id), steps_of(episodes), bound)
    with h5py.File(path) as file:
        assert "timeouts" not in file and file["truncations"][-1]
        assert (file["truncations"][:] | file["terminals"][:]).sum() == len(episodes)
        assert file.attrs["env_id"] == env_id and name in file.attrs["source"]
    small = dict(
        hidden_dim=8, batch_size=16, iterations=200, eval_every=100, eval_episodes=3, device="cpu"
    )
    iql.train(iql.Args(env_id, path, run_dir=tmp_path / "runs", **small))
    rows = evaluations(tmp_path / "runs")
    returns, scores = (np.array([float(row[key]) for row in rows]) for key in ("return", "score"))
    np.testing.assert_allclose(scores, 100 * minari.get_normalized_score(dataset, returns), rtol=1e-9)
    assert len(rows) == 6 and {int(row["iteration"]) for row in rows} == {100, 200}


@pytest.mark.filterwarnings("ignore")
def test_minari_settings(iql: ModuleType, minari: ModuleType, tmp_path: Path) -> None:
    """An environment with settings that its id does not say is refused; an id that says them is taken.
    The environment of evaluation counts, where there is one of its own."""
    dataset = record(minari, "large-v0", gym.make("dictworld:World-v0", size=2.0), 50)
    message = run_tool(get, "--minari", "large-v0")
    assert 'dictworld:World-v0 with {"size": 2.0}' in message and "--env-id module:Id" in message
    assert not (tmp_path / "d4rl").exists()
    assert run_tool(get, "--minari", "large-v0", "--env-id", "dictworld:Large-v0") is None
    path = tmp_path / "d4rl/minari_large-v0.hdf5"
    assert same(load(iql, path, "dictworld:Large-v0"), steps_of(episodes_of(dataset)), 3.0)
    with h5py.File(path) as file:
        assert "ref_min_score" not in file.attrs
    record(minari, "long-v0", gym.make("dictworld:World-v0", max_episode_steps=45), 50)
    assert '{"max_episode_steps": 45}' in run_tool(get, "--minari", "long-v0")
    env = gym.make("dictworld:World-v0", size=2.0)
    record(minari, "both-v0", env, 50, eval_env="Large-v0")
    assert run_tool(get, "--minari", "both-v0") is None


@pytest.mark.filterwarnings("ignore")
def test_minari_refused(minari: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another robot's id, actions that are no Box, no such dataset, no Minari: one line each."""
    record(minari, "pendulum-v0", gym.make("Pendulum-v1"), 50)
    record(minari, "cartpole-v0", gym.make("CartPole-v1"), 50)

    def download(name: str) -> None:
        raise ValueError(f"the server has no {name}")

    monkeypatch.setattr("minari.storage.local.hosting.download_dataset", download)
    for flags, words in (
        (("pendulum-v0", "--env-id", "Hopper-v5"), "minari_pendulum-v0.hdf5 for Hopper-v5"),
        (("cartpole-v0",), "no simulator for CartPole-v1"),
        (("cartpole-v0", "--env-id", "Pendulum-v1"), "actions should be Box, and are Discrete(2)"),
        (("nothing-v0",), "no Minari dataset nothing-v0: the server has no nothing-v0"),
    ):
        message = run_tool(get, "--minari", *flags)
        assert message.startswith("error: ") and words in message and "\n" not in message
    monkeypatch.setitem(sys.modules, "minari", None)
    assert "pip install minari" in run_tool(get, "--minari", "pendulum-v0")
    assert not (tmp_path / "d4rl").exists() or files_in(tmp_path / "d4rl") == []


@pytest.mark.filterwarnings("ignore")
def test_adroit(iql: ModuleType, minari: ModuleType, tmp_path: Path) -> None:
    """The worked example of docs/data.md: Adroit by way of gymnasium-robotics."""
    pytest.importorskip("gymnasium_robotics")
    importlib.import_module("gymnasium_robotics")
    dataset = record(minari, "door-v0", gym.make("AdroitHandDoor-v1"), 250)
    assert run_tool(get, "--minari", "door-v0") is None
    path = tmp_path / "d4rl/minari_door-v0.hdf5"
    env_id = "gymnasium_robotics:AdroitHandDoor-v1"
    assert same(load(iql, path, env_id), steps_of(episodes_of(dataset)))


def test_describe_says_what_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--describe prints, --picture draws."""
    columns = without(rows_of(made(*HOPPER)[0]), "next_observations")
    path = write(tmp_path / "own.hdf5", columns, {"env_id": "Hopper-v5"})
    assert run_tool(get, "--describe", path, "--picture", tmp_path / "own.png") is None
    assert "its own data" in capsys.readouterr().out
    assert (tmp_path / "own.png").read_bytes()[:4] == b"\x89PNG"
