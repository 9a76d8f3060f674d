"""tools/data/collect.py: collected data is reproducible and is what the simulator gave, whatever happens
to the process; a bad flag or policy is told before anything is collected. (AntMaze:
test_collect_antmaze.py.)"""

import hashlib
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import collect
import common
import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
import train_behaviour
from test_get import run_tool

import dmg_iql

fork = multiprocessing.get_context("fork")


def make(tmp_path: Path, name: str, **flags: object) -> Path:
    """Collect a small dataset; returns its file."""
    path = tmp_path / f"{name}.hdf5"
    small = {"env_id": "hopper-medium-local", "size": 1500, "workers": 1, "out": path}
    collect.main(collect.Args(**(small | flags)))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the data -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "env_id",
    [
        "hopper-random-local",
        "hopper-medium-replay-local",
        "walker2d-medium-expert-local",
        "antmaze-umaze-diverse-local",
    ],
)
def test_same_file_for_any_number_of_workers(tmp_path: Path, env_id: str) -> None:
    """Two runs with one worker and one with two write the same bytes; another seed does not."""
    one, again = make(tmp_path, "one", env_id=env_id), make(tmp_path, "again", env_id=env_id)
    two, other = (
        make(tmp_path, "two", env_id=env_id, workers=2),
        make(tmp_path, "other", env_id=env_id, seed=1),
    )
    assert digest(one) == digest(again) == digest(two) != digest(other)
    with h5py.File(one) as file:
        assert file.attrs["env_id"] == env_id and file.attrs["size"] == 1500
        assert {len(file[key]) for key in file if key != "infos"} == {1500}


def test_rows_are_what_the_simulator_gives(iql: ModuleType, tmp_path: Path) -> None:
    """Playing a recorded episode's actions from its reset seed gives its observations, rewards and ends
    again; the next row is the next state, except after an end."""
    path = make(tmp_path, "medium")
    with h5py.File(path) as file:
        data = {key: file[key][:] for key in file}
    assert data["observations"].dtype == data["actions"].dtype == data["rewards"].dtype == np.float32
    seed = int(np.random.SeedSequence((0, 0, 0)).spawn(2)[0].generate_state(1)[0])
    env = gym.make("Hopper-v4")
    state, _ = env.reset(seed=seed)
    for i in range(1500):
        np.testing.assert_array_equal(data["observations"][i], state.astype(np.float32))
        state, reward, terminated, truncated, _ = env.step(data["actions"][i])
        assert data["rewards"][i] == np.float32(reward)
        assert data["terminals"][i] == terminated
        assert data["timeouts"][i] == (truncated and not terminated)
        if terminated or truncated:
            break
    assert i > 50
    assert data["timeouts"][-1] or data["terminals"][-1], (
        "the last episode, cut to fit, ends with a timeout"
    )
    job = iql.Args("hopper-medium-local", path, device="cpu")
    iql.resolve(job)
    buffer, *_ = iql.load_dataset(job, iql.make_env(job.env_id))
    assert len(buffer) == 1499 - data["timeouts"][:-1].sum()


def test_qualities_are_ordered() -> None:
    """The mean score of whole episodes: random near 0, medium about a third, expert well above."""
    scores = {}
    for quality in ("random", "medium", "expert"):
        _, returns = collect.collect(f"hopper-{quality}-local", 6000, 0, 2)
        scores[quality] = common.normalized_score("hopper-medium-local", returns).mean()
    assert -1 < scores["random"] < 5 and 20 < scores["medium"] < 45, scores
    assert scores["expert"] > scores["medium"] + 20, scores


def test_medium_expert_is_half_and_half(tmp_path: Path) -> None:
    """The first half equals the rows of medium, the second half those of expert's part."""
    with h5py.File(make(tmp_path, "both", env_id="hopper-medium-expert-local", size=3000)) as file:
        both = file["actions"][:]
    with h5py.File(make(tmp_path, "medium")) as file:
        medium = file["actions"][:]
    np.testing.assert_array_equal(both[:1500], medium)
    assert not np.array_equal(both[1500:], medium)


@pytest.mark.parametrize(
    "robot, rows", [("hopper", 12_000), ("walker2d", 16_000), ("halfcheetah", 12_000)]
)
def test_script_evaluates_a_stored_policy_as_collect_does(
    iql: ModuleType, robot: str, rows: int
) -> None:
    """The simulator is what it should be: the stored medium policy, sampled as it was when its data was
    collected but rolled out by the script's own evaluation, scores what collect.py reports, within the
    error of the two samples; another policy does not."""
    env_id = f"{robot}-medium-local"
    _, returns = collect.collect(env_id, rows, 0, 2)
    layers = collect.load_policy(f"{robot}-medium.npz:0")
    weights = [(torch.tensor(weight), torch.tensor(bias)) for weight, bias in layers]
    generator = torch.Generator().manual_seed(0)

    def sampled(s: torch.Tensor) -> torch.Tensor:
        for weight, bias in weights[:-1]:
            s = torch.relu(s @ weight + bias)
        mean, log_std = (s @ weights[-1][0] + weights[-1][1]).chunk(2, -1)
        return (mean + log_std.clamp(-20, 2).exp() * torch.randn(mean.shape, generator=generator)).tanh()

    def play(actor: Callable, episodes: int) -> np.ndarray:
        resets = np.random.SeedSequence(5).generate_state(episodes, np.uint64)[None]
        envs = [iql.make_env(env_id) for _ in range(episodes)]
        agent = SimpleNamespace(actor=actor, lam=torch.zeros(()))
        (played,), (lengths,) = iql.rollout(agent, envs, resets, np.zeros(dims), np.ones(dims))
        assert lengths.max() <= 1000
        return common.normalized_score(env_id, played)

    dims = len(layers[0][0])
    ours, theirs = play(sampled, max(len(returns), 12)), common.normalized_score(env_id, returns)
    error = math.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 3.5 * error, (ours.mean(), theirs.mean(), error)
    assert error < 5 and ours.mean() > 20
    assert abs(play(lambda s: -sampled(s), 3).mean() - theirs.mean()) > 3.5 * error


@pytest.mark.parametrize("env_id", common.LOCAL_IDS)
def test_every_local_id_has_its_policies(iql: ModuleType, env_id: str) -> None:
    """All 21 ids can be collected: their policies are stored and fit the robot; one action of each lies
    in [-1, 1]."""
    env, rng = iql.make_env(env_id), np.random.default_rng(0)
    names = collect.parts(env_id)
    assert len(names) == (2 if "medium-expert" in env_id else len(names)) and len(common.LOCAL_IDS) == 21
    for name in names:
        state = np.zeros(27) if env_id.startswith("antmaze-") else env.observation_space.sample() * 0
        action = collect.act(collect.load_policy(name), state, env.action_space.shape[0], rng)
        assert action.shape == env.action_space.shape and np.abs(action).max() <= 1


def test_policies_are_small_and_described() -> None:
    """Every behaviour file is under 1 MB and has a JSON beside it with its command, steps and score."""
    for path in collect.BEHAVIOURS.glob("*.npz"):
        robot, quality = path.stem.split("-", 1)
        about = json.loads((collect.BEHAVIOURS / f"{robot}.json").read_text())
        assert path.stat().st_size < 1e6 and "tools/data/train_behaviour.py" in about["made_by"]
        assert len(about[quality]) == len(np.load(path)["w0"])
        assert {"steps", "score", "sd"} <= about[quality][0].keys()


# ---- what goes wrong ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "flags, words",
    [
        ({"env_id": "hopper-medium-v2"}, "expected one of"),
        ({"size": 10}, "--size 10: expected 1000 to 1000000000"),
        ({"size": 10**12}, "--size 1000000000000: expected"),
        ({"seed": -1}, "--seed -1: expected 0 to 18446744073709551615"),
        ({"seed": 2**64}, "--seed 18446744073709551616: expected"),
        ({"workers": 1001}, "--workers 1001: expected 0 to 1000"),
        ({"out": Path("/proc/nowhere/x.hdf5")}, "/proc/nowhere"),
        ({"out": "folder"}, "is no plain file"),
        ({"out": Path("/dev/null")}, "is no plain file"),
        ({"out": "link"}, "is no plain file"),
        ({"out": "dangling"}, "is no plain file"),
        ({"out": "file/x.hdf5"}, "file"),
        ({"out": "file"}, "is already there; --overwrite"),
    ],
)
def test_refused_before_the_collecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict, words: str
) -> None:
    """What would fail at the end fails at once, in one line; folders, devices and links stay what they
    are, --overwrite or not."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(collect, "collect", lambda *args: pytest.fail("collects"))
    flags = {"size": 1000, "out": "new", "overwrite": flags.get("out") != "file"} | flags
    flags["out"] = tmp_path / flags["out"]
    words_of = [
        f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if name != "overwrite"
    ]
    message = run_tool(collect, *words_of, *["--overwrite"] * flags["overwrite"])
    assert message.startswith("error: ") and words in message and "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink() and not Path("/dev/null").is_file()


def test_overwrite(tmp_path: Path) -> None:
    """An existing file is replaced only with --overwrite."""
    path = tmp_path / "there.hdf5"
    path.write_text("mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        make(tmp_path, "there")
    assert path.read_text() == "mine"
    make(tmp_path, "there", overwrite=True)
    assert h5py.is_hdf5(path)


def damaged(path: Path, kind: str) -> None:
    """Damage a behaviour file."""
    content = bytearray(path.read_bytes())
    arrays = {**np.load(path)}
    if kind == "missing":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "a flipped bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "NaN":
        arrays["w1"][0, 3, 4] = np.nan
        np.savez(path, **arrays)
    elif kind == "layers that do not fit":
        np.savez(path, **arrays | {"b1": arrays["b1"][:, :7]})
    elif kind == "another robot's":
        shutil.copy(collect.BEHAVIOURS / "walker2d-medium.npz", path)
    else:
        np.savez(path, nothing=np.zeros(3))


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "cut short",
        "a flipped bit",
        "NaN",
        "layers that do not fit",
        "another robot's",
        "no policy",
    ],
)
def test_damaged_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A policy file that is damaged is named in one line, and nothing is collected or written."""
    shutil.copytree(collect.BEHAVIOURS, tmp_path / "policies")
    damaged(tmp_path / "policies/hopper-medium.npz", kind)
    monkeypatch.setattr(collect, "BEHAVIOURS", tmp_path / "policies")
    monkeypatch.setattr(collect, "collect", lambda *args: pytest.fail("collects"))
    message = run_tool(collect, "--env-id", "hopper-medium-local", "--out", tmp_path / "new.hdf5")
    assert message.startswith("error: ") and "hopper-medium.npz" in message and "\n" not in message
    assert {"missing": "is missing", "another robot's": "does not have"}.get(
        kind, "is damaged"
    ) in message
    assert not (tmp_path / "new.hdf5").exists()


def test_cores_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without os.sched_getaffinity, as on macOS, all cores work."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    asked, real = [], collect.collect
    monkeypatch.setattr(collect, "collect", lambda *args: asked.append(args[3]) or real(*args[:3], 1))
    make(tmp_path, "mac", workers=0, size=1000)
    assert asked == [os.cpu_count()]


def test_few_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A dataset with no whole episode is made without a warning; so is what it says of AntMaze."""
    make(tmp_path, "replay", env_id="halfcheetah-medium-replay-local", size=1000)
    assert "0 whole episodes, each policy's share is shorter than one" in capsys.readouterr().out
    columns = {"observations": np.zeros((1000, 29)), "terminals": np.zeros(1000, bool)}
    columns |= {"timeouts": np.arange(1000) == 999, "infos/goal": np.zeros((1000, 2))}
    facts = collect.maze_facts("antmaze-large-play-local", columns)
    assert len(facts.pop("paths")) == 0 and set(facts.values()) == {0}


def child(log: Path, limit: int | None, *flags: object) -> None:
    """Run collect.py in a process group of its own, with what it prints in a file; `limit`: no file may
    become larger than so many bytes."""
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    status = run_tool(collect, *flags)
    print(f"\n{status}", flush=True)
    os._exit(bool(status))


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for a condition."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        threading.Event().wait(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_in_the_middle(tmp_path: Path, number: int) -> None:
    """Killed, terminated or interrupted while it collects: its workers end too, nothing is left in the
    folder; Ctrl-C, which goes to the workers as well, ends in one line."""
    (tmp_path / "data").mkdir()
    flags = ("--env-id", "hopper-medium-local", "--size", "1000000", "--workers", "2")
    arguments = (tmp_path / "log", None, *flags, "--out", tmp_path / "data/new.hdf5")
    process = fork.Process(target=child, args=arguments)
    (tmp_path / "log").touch()
    process.start()
    try:
        assert until(
            lambda: "/1000000" in (tmp_path / "log").read_text() and len(workers_of(process.pid)) == 2
        )
        workers = workers_of(process.pid)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.join(60)
        assert process.exitcode is not None and until(lambda: all(map(ended, workers)))
    finally:
        process.kill()
    assert not list((tmp_path / "data").iterdir())
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    if number == signal.SIGINT:
        assert log.splitlines()[-1] == "interrupted"


def test_full_disk(tmp_path: Path) -> None:
    """A file that cannot be written to its end is no file: one line, status 1, nothing left."""
    (tmp_path / "data").mkdir()
    flags = ("--size", "1500", "--workers", "1", "--out", tmp_path / "data/new.hdf5")
    process = fork.Process(target=child, args=(tmp_path / "log", 40_000, *flags))
    process.start()
    process.join(120)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 1 and "error: [Errno 27] File too large" in log.splitlines()[-1], log
    assert "Traceback" not in log and not list((tmp_path / "data").iterdir())


# ---- the training of the policies ---------------------------------------------------------------------
def test_actor_is_exported_as_it_acts() -> None:
    """The stored arrays, run by collect.act without noise, give stable-baselines3's own deterministic
    action."""
    from stable_baselines3 import SAC

    env = gym.make("Hopper-v4")
    nets = {"net_arch": {"pi": [64, 64], "qf": [8]}}
    model = SAC("MlpPolicy", env, seed=3, buffer_size=10, policy_kwargs=nets)
    arrays = train_behaviour.actor_arrays(model)
    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(3)]

    class Silent:
        def standard_normal(self, size: int, dtype: type) -> np.ndarray:
            return np.zeros(size, dtype)

    for state in np.random.default_rng(0).normal(size=(20, 11)):
        theirs, _ = model.predict(state.astype(np.float32), deterministic=True)
        np.testing.assert_allclose(collect.act(layers, state, 3, Silent()), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--robot", "cat"), "--robot cat: expected one of hopper"),
        (("--steps", "0"), "--steps 0: expected 1"),
        (("--snapshot-every", "-3"), "--snapshot-every -3: expected 1"),
        (("--episodes", "0"), "--episodes 0: expected 1"),
        (("--seed", str(2**32)), "--seed 4294967296: expected 0 to 4294967295"),
        ((), "cannot continue from"),
    ],
)
def test_train_behaviour_refuses(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    """One line for a bad flag and for a learner that was damaged, which stays."""
    (tmp_path / "hopper").mkdir()
    (tmp_path / "hopper/learner.zip").write_text("none")
    message = run_tool(train_behaviour, "--folder", tmp_path, *flags)
    assert message.startswith("error: ") and words in message and "\n" not in message
    assert (tmp_path / "hopper/learner.zip").read_text() == "none"
    assert len(list(tmp_path.rglob("*"))) == 2


def test_stored_policies_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What train_behaviour.py stores is what collect.py loads."""
    monkeypatch.setattr(collect, "BEHAVIOURS", tmp_path)
    rng = np.random.default_rng(0)
    shapes = {"w0": (11, 5), "b0": (5,), "w1": (5, 6), "b1": (6,)}
    actors = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(2)]
    train_behaviour.store("hopper", "medium", actors)
    assert collect.parts("hopper-medium-local") == ["hopper-medium.npz:0", "hopper-medium.npz:1"]
    for i, actor in enumerate(actors):
        layers = collect.load_policy(f"hopper-medium.npz:{i}")
        for k, (weight, bias) in enumerate(layers):
            np.testing.assert_array_equal(weight, actor[f"w{k}"])
            np.testing.assert_array_equal(bias, actor[f"b{k}"])
    assert [path.name for path in tmp_path.iterdir()] == ["hopper-medium.npz"]
    assert dmg_iql.ROBOTS["hopper"][0] == train_behaviour.ROBOTS["hopper"]
