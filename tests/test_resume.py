"""Runs that stop and go on: kills, failures, damaged and foreign folders, two processes in one folder, a
full disk."""

import contextlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import folder_of
from jobs import (
    Crash,
    assert_same,
    backdate,
    command_of,
    crash,
    curves,
    every_file,
    flags_of,
    launcher,
    load,
    module_of,
    refused,
    run,
    scalars,
    small,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # torch's, of files that are no checkpoints


@pytest.fixture(scope="module")
def twin(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fixture job's job, run without a stop."""
    args = small("dmg_iql", hopper_file, tmp_path_factory.mktemp("twin") / "runs")
    run(args)
    return folder_of(args)


@pytest.fixture(scope="module")
def unfinished(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The same job after a failure, with 25 of 40 iterations made and 20 saved."""
    args = small("dmg_iql", hopper_file, tmp_path_factory.mktemp("unfinished") / "runs")
    crash(args, 25)
    return args


def copied(args: object, run_dir: Path) -> object:
    """Copy a job's run folder into another `run_dir`. Returns the job that resumes it there."""
    other = replace(args, run_dir=run_dir, resume=True)
    shutil.copytree(folder_of(args), folder_of(other))
    return other


def settings_of(folder: Path) -> dict[str, object]:
    """A run folder's config.json, but for --resume."""
    return json.loads((folder / "config.json").read_text()) | {"resume": None}


# ---- kills --------------------------------------------------------------------------------------------
KILLED = {
    "even": dict(num_seeds=2, iterations=1000, eval_every=150),
    "uneven": dict(seed=5, iterations=1000, eval_every=140, log_every=7, save_every=9, policy_delay=3),
}


@dataclass
class Kills:
    """A job that was killed ten times, its twin that was not, and the iteration saved at each kill."""

    folder: Path
    twin: Path
    statuses: list[int]
    iterations: list[int]


def replacements(path: Path) -> Iterator[int]:
    """How many times a file has been replaced, as seen from one `next` to the other."""
    count, before = 0, path.exists() and path.stat().st_mtime_ns
    while True:
        now = path.exists() and path.stat().st_mtime_ns
        count, before = count + (now != before), now
        yield count


@pytest.fixture(scope="module", params=KILLED)
def kills(
    request: pytest.FixtureRequest, hopper_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Kills:
    """SIGKILL, some random milliseconds after the process's start or after the first, second or third
    checkpoint that it writes. Each time the job is resumed."""
    rng, run_dir = random.Random(request.param), tmp_path_factory.mktemp("kills") / "runs"
    args = small("dmg_iql", hopper_file, run_dir, **KILLED[request.param])
    folder, other = folder_of(args), replace(args, exp_name="twin")
    checkpoint = folder / "checkpoint.pt"
    assert command_of(other).status == 0

    def kill(saves: int) -> int:
        """Run the job until its kill. Returns the status."""
        count, delay = replacements(checkpoint), rng.uniform(0, 0.03 if saves else 0.4)
        process = launcher().start(module_of(args), flags_of(replace(args, resume=True)))
        return process.wait(lambda: next(count) >= saves and not time.sleep(delay)).status

    statuses, iterations = [], []
    for number, saves in enumerate([0, 0, *rng.sample([0, 1, 1, 1, 2, 2, 2, 3], 8)]):
        statuses.append(kill(saves))
        iterations.append(load(folder)["iteration"] if checkpoint.exists() else 0)
        backdate(folder, number)
    statuses.append(command_of(replace(args, resume=True)).status)
    return Kills(folder, folder_of(other), statuses, iterations)


def test_ten_kills_change_nothing(kills: Kills) -> None:
    """Killed ten times and resumed, the job ends as if it had not been, bit for bit. (On a busy machine
    it may end before the last of the kills.)"""
    assert set(kills.statuses[:10]) <= {-signal.SIGKILL, 0} and kills.statuses[10] == 0
    assert kills.statuses.count(-signal.SIGKILL) >= 5
    assert kills.iterations == sorted(kills.iterations) and len(set(kills.iterations)) >= 4
    assert_same(kills.folder, kills.twin)
    assert not list(kills.folder.glob("*.tmp"))


def test_ten_kills_lose_no_point_of_tensorboard(kills: Kills) -> None:
    """TensorBoard shows the curves of the job that was not killed."""
    for path in kills.twin.glob("s*"):
        assert curves(kills.folder / path.name) == curves(path)


# ---- failures -----------------------------------------------------------------------------------------
def test_failures_change_nothing(
    iql: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that fails after n updates and is resumed ends as if it had not. n lies around boundaries of
    all kinds, with intervals that are no multiples of each other and blocks of 16 random numbers."""
    monkeypatch.setattr(iql, "BLOCK", 16)
    uneven = dict(num_seeds=2, policy_delay=2, log_every=7, save_every=10, eval_every=15, iterations=53)
    run(job(iql, exp_name="twin", **uneven))
    other = folder_of(job(iql, exp_name="twin", **uneven))
    for n in (0, 7, 10, 11, 15, 16, 17, 33, 52):
        crash(job(iql, exp_name=f"at{n}", **uneven), n)
        run(job(iql, exp_name=f"at{n}", resume=True, **uneven))
        assert_same(folder_of(job(iql, exp_name=f"at{n}", **uneven)), other)
    for n in (3, 13, 9, 12, 11, 1, 5):
        crash(job(iql, exp_name="often", resume=True, **uneven), n)
    run(job(iql, exp_name="often", resume=True, **uneven))
    assert_same(folder_of(job(iql, exp_name="often", **uneven)), other)


def test_checkpoint_before_the_first_actor_step(iql: ModuleType, job: Callable) -> None:
    """A checkpoint can be resumed from whose actor has not yet made a step."""
    late = dict(policy_delay=15)
    run(job(iql, exp_name="twin", **late))
    crash(job(iql, **late), 12)
    run(job(iql, resume=True, **late))
    assert_same(folder_of(job(iql)), folder_of(job(iql, exp_name="twin")))


def test_block_is_only_a_buffer(iql: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """No iteration is given the random numbers of another one, within a block, across two, or after a
    resume."""
    monkeypatch.setattr(iql, "BLOCK", 8)
    update, seen = iql.DMG.update, []

    def watched(
        self: torch.nn.Module, batch: Tensor, noise: Tensor, actor_step: bool
    ) -> dict[str, Tensor]:
        seen.extend(part.numpy().tobytes() for part in (*batch, *noise))
        return update(self, batch, noise, actor_step)

    monkeypatch.setattr(iql.DMG, "update", watched)
    crash(job(iql, num_seeds=2, iterations=20), 10)
    run(job(iql, num_seeds=2, iterations=20, resume=True))
    assert len(seen) == len(set(seen)) == 80


def test_resume_says_from_where(iql: ModuleType, job: Callable, twin: Path) -> None:
    """--resume starts from the beginning where there is no folder, an empty one, or one without a
    checkpoint, and says so; else it names the iteration."""
    folder_of(job(iql, exp_name="empty")).mkdir(parents=True)
    crash(job(iql, exp_name="early"), 9)
    crash(job(iql, exp_name="late"), 39)
    words = dict.fromkeys(("none", "empty", "early"), "new run")
    for name, said in (words | {"late": "resumed at iteration 30"}).items():
        args = job(iql, exp_name=name, resume=True)
        assert said in run(args)
        assert_same(folder_of(args), twin)


def test_events_are_on_disk_before_the_checkpoint(
    iql: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a checkpoint is written, TensorBoard's events up to it are in their file, however slowly, and
    were synced there."""
    write, write_file, seen, synced = RecordWriter.write, iql.write_file, [], []
    monkeypatch.setattr(RecordWriter, "write", lambda *inputs: time.sleep(0.005) or write(*inputs))

    def newest(tag: str) -> int:
        return max(scalars(folder_of(args) / "s0").get(tag, [0]))

    def watched(path: Path, data: bytes) -> None:
        if path.name == "checkpoint.pt":
            seen.append((synced.pop(), newest("losses/v_values"), newest("eval/episodic_return")))
        write_file(path, data)

    monkeypatch.setattr(os, "sync", lambda: synced.append(newest("losses/v_values")))
    monkeypatch.setattr(iql, "write_file", watched)
    args = job(iql)
    run(args)
    assert seen == [(10, 10, 0), (20, 20, 20), (30, 30, 20), (40, 40, 40)]


def test_resume_loses_no_point_of_tensorboard(iql: ModuleType, job: Callable) -> None:
    """A resumed run hides no point up to its checkpoint, and shows none of those behind it twice."""
    args, twin = (job(iql, exp_name=name, log_every=4) for name in ("job", "twin"))
    run(twin)
    crash(args, 29)
    backdate(folder_of(args), 1)
    run(replace(args, resume=True))
    assert curves(folder_of(args) / "s0") == curves(folder_of(twin) / "s0")


def test_stopped_before_done(
    iql: ModuleType, job: Callable, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was stopped between its last checkpoint and `done` is finished by --resume."""
    write = iql.write_file

    def failing(path: Path, data: bytes) -> None:
        if path.name == "done":
            raise Crash
        write(path, data)

    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(iql, "write_file", failing)
        run(job(iql))
    assert load(folder_of(job(iql)))["iteration"] == 40 and not (folder_of(job(iql)) / "done").exists()
    assert run(job(iql, resume=True)).splitlines()[-1].endswith((twin / "done").read_text())
    assert_same(folder_of(job(iql)), twin)


def test_only_the_checkpoint_counts(unfinished: object, tmp_path: Path, twin: Path) -> None:
    """Whatever a kill or a user leaves in the other files, half-written ones included, is replaced."""
    args = copied(unfinished, tmp_path / "runs")
    half = (folder_of(args) / "checkpoint.pt").read_bytes()[:9000]
    (folder_of(args) / "checkpoint.pt.tmp").write_bytes(half)
    for name in ("eval.csv", "eval.csv.tmp", "config.json", "done"):
        (folder_of(args) / name).write_bytes(b"\xff[null")
    run(args)
    assert_same(folder_of(args), twin)
    assert settings_of(folder_of(args)) == settings_of(twin) | {"run_dir": str(args.run_dir)}
    assert not list(folder_of(args).glob("*.tmp"))


def test_resume_with_other_machine_flags(
    iql: ModuleType, job: Callable, hopper_file: Path, tmp_path: Path, twin: Path
) -> None:
    """--save-every and the dataset's place may change on resuming, and change nothing."""
    crash(job(iql, save_every=30), 39)
    moved = Path(shutil.copy(hopper_file, tmp_path / "moved.hdf5"))
    crash(replace(job(iql, save_every=1, resume=True), dataset_path=moved), 5)
    run(job(iql, save_every=7, resume=True))
    assert_same(folder_of(job(iql)), twin)


# ---- folders that exist -------------------------------------------------------------------------------
def test_existing_folder_is_refused(iql: ModuleType, job: Callable) -> None:
    """Without --resume a folder that exists, finished or not, is refused. Nothing in it changes."""
    crash(job(iql), 25)
    for _ in range(2):
        before = every_file(folder_of(job(iql)))
        message = refused(job(iql))
        assert str(folder_of(job(iql))) in message and "--resume" in message and "--exp-name" in message
        assert every_file(folder_of(job(iql))) == before
        run(job(iql, resume=True))


def test_resume_of_a_finished_run(iql: ModuleType, job: Callable) -> None:
    """--resume of a finished run prints its scores and changes nothing but adds an event file with no
    point."""
    run(job(iql))
    folder = folder_of(job(iql))
    before, settings, shown = every_file(folder), settings_of(folder), scalars(folder / "s0")
    backdate(folder, 1)
    finished = command_of(job(iql, resume=True))
    assert finished.status == 0 and (folder / "done").read_text() in finished.out
    after = every_file(folder)
    old, new = ([data for name, data in files.items() if "events" in name] for files in (before, after))
    assert len(new) == 2 and new[0] == old[0] and scalars(folder / "s0") == shown
    assert settings_of(folder) == settings
    for name in ("checkpoint.pt", "eval.csv", "done", ".lock"):
        assert before[name] == after[name]
    assert "'lam': 0.25" in refused(job(iql, resume=True, lam=0.5))


DAMAGED = {  # ways to spoil a file
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pickled object": lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("executed")))),
    "a saved object": lambda path: torch.save({"config": Payload(path.with_name("executed"))}, path),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "an empty dict": lambda path: torch.save({}, path),
}
SPOILT = {  # ways to spoil a checkpoint's dict
    "fewer units": lambda saved: cut(saved["agent"], "critic.layers.0.weight", -1),
    "fewer seeds": lambda saved: cut(saved["agent"], "value.layers.0.weight", 0),
    "a transposed layer": lambda saved: swap(saved["agent"], "actor.layers.0.weight"),
    "a layer less": lambda saved: saved["agent"].pop("actor_target.layers.2.weight"),
    "a layer more": lambda saved: saved["agent"].update({"actor.layers.3.weight": torch.ones(1)}),
    "settings that are a list": lambda saved: saved.update(config=[1]),
    "networks that are a number": lambda saved: saved.update(agent=3),
    "fewer parameters": lambda saved: saved["optimisers"]["value"]["param_groups"][0].update(params=[0]),
}
for iteration in ("20", -5, 3.5, 10**9, None):
    SPOILT[f"iteration {iteration!r}"] = lambda saved, n=iteration: saved.update(iteration=n)
for key in ("config", "agent", "optimisers", "iteration", "evals", "summary"):
    SPOILT[f"no {key}"] = lambda saved, key=key: saved.pop(key)
for key in ("actor", "critic", "value", "schedule"):
    SPOILT[f"no optimiser of {key}"] = lambda saved, key=key: saved["optimisers"].pop(key)


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def cut(tensors: dict[str, Tensor], name: str, dim: int) -> None:
    """Leave out the last part of a tensor."""
    tensors[name] = tensors[name].narrow(dim, 0, tensors[name].shape[dim] - 1)


def swap(tensors: dict[str, Tensor], name: str) -> None:
    """Give a tensor another shape of as many numbers."""
    tensors[name] = tensors[name].mT.contiguous()


@pytest.mark.parametrize("damage", [*DAMAGED, *SPOILT])
def test_bad_checkpoint(unfinished: object, tmp_path: Path, damage: str) -> None:
    """A damaged or foreign checkpoint is refused in one line that names it and what to do. Nothing in it
    is executed, and nothing in the folder changes."""
    args = copied(unfinished, tmp_path / "runs")
    path = folder_of(args) / "checkpoint.pt"
    if damage in DAMAGED:
        DAMAGED[damage](path)
    else:
        saved = load(path.parent)
        SPOILT[damage](saved)
        torch.save(saved, path)
    before = every_file(path.parent)
    message = refused(args)
    assert str(path) in message and "--exp-name" in message
    assert every_file(path.parent) == before


OTHERS = dict(
    lam=0.5, hidden_dim=8, iterations=70, env_id="hopper-expert-local", nu=math.inf, eval_every=7
)


@pytest.mark.parametrize("flag", OTHERS)
def test_checkpoint_of_other_settings(unfinished: object, tmp_path: Path, flag: str) -> None:
    """A run is not resumed with another setting. The line says which, and nothing changes."""
    args = copied(unfinished, tmp_path / "runs")
    other = replace(args, **{flag: OTHERS[flag]})
    if flag == "env_id":
        folder_of(args).rename(folder_of(other))
    before = every_file(folder_of(other))
    message = refused(other)
    assert str(folder_of(other) / "checkpoint.pt") in message
    assert repr(flag) in message and repr(settings_of(folder_of(other))[flag]) in message
    assert every_file(folder_of(other)) == before


FREE = dict(dataset_path="/none", run_dir="/none", resume=True, device="cuda:7", cudagraphs=True)
FREE |= dict(threads=7, save_every=7, torch="1.0")


def test_what_may_change(unfinished: object, tmp_path: Path, twin: Path) -> None:
    """A run is resumed on another machine, from another place. Any other setting counts, as do the
    script and the data."""
    saved = load(folder_of(unfinished))
    assert saved["config"].keys() >= {"script", "dataset_sha256", "rows", "seed", "gamma", *FREE}
    for key in saved["config"].keys() - FREE:
        args = copied(unfinished, tmp_path / key)
        other = saved | {"config": saved["config"] | {key: "other"}}
        torch.save(other, folder_of(args) / "checkpoint.pt")
        assert f"{key!r}: 'other'" in refused(args)
    args = copied(unfinished, tmp_path / "free")
    torch.save(saved | {"config": saved["config"] | FREE}, folder_of(args) / "checkpoint.pt")
    printed = run(args)
    assert_same(folder_of(args), twin)
    # It says what was different, since digits may be, too.
    (line,) = [line for line in printed.splitlines() if line.startswith("resumed at iteration")]
    for key in FREE.keys() - {"resume"}:
        assert f"{key!r}: {FREE[key]!r}" in line
    again = run(args)
    assert f"resumed at iteration {args.iterations:,} (before: same)" in again


def test_flipped_byte(unfinished: object, tmp_path: Path) -> None:
    """A byte of a tensor that has changed on the disk is noticed, and the file is kept."""
    args = copied(unfinished, tmp_path / "runs")
    path = folder_of(args) / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    weight = load(folder_of(args))["agent"]["actor.layers.1.weight"].numpy().tobytes()
    data[data.index(weight) + len(weight) // 2] ^= 1
    path.write_bytes(data)
    assert f"cannot resume from {path}" in (message := refused(args)) and "it is damaged" in message
    assert path.read_bytes() == data


def test_checkpoint_of_other_data(unfinished: object, tmp_path: Path, hopper_file: Path) -> None:
    """Nor with other data, even of as many rows."""
    args = copied(unfinished, tmp_path / "runs")
    other = Path(shutil.copy(hopper_file, tmp_path / "other.hdf5"))
    with pytest.importorskip("h5py").File(other, "r+") as file:
        file["rewards"][0] = 7.0
    before = every_file(folder_of(args))
    assert "dataset_sha256" in refused(replace(args, dataset_path=other))
    assert every_file(folder_of(args)) == before


def test_two_processes(iql: ModuleType, job: Callable) -> None:
    """The second process in a folder is refused with one line, and the first one is not disturbed."""
    settings = dict(iterations=120, eval_every=50)
    run(job(iql, exp_name="twin", **settings))
    args = job(iql, **settings)
    first = launcher().start(iql, flags_of(args))
    while not (folder_of(args) / "checkpoint.pt").exists():
        assert not first.poll()
    os.kill(first.pid, signal.SIGSTOP)  # so that it does not end meanwhile
    try:
        second = command_of(replace(args, resume=True))
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0 and second.status == 1
    (line,) = second.err.splitlines()
    assert line.startswith("error: ") and str(folder_of(args) / ".lock") in line
    assert_same(folder_of(args), folder_of(job(iql, exp_name="twin")))
    assert curves(folder_of(args) / "s0") == curves(folder_of(job(iql, exp_name="twin")) / "s0")


# ---- files that are replaced --------------------------------------------------------------------------
def test_order_of_calls(iql: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file outlives a power cut: all bytes are written under another name, then come fsync, rename
    and, for the name, another fsync."""
    path, calls, fsync, rename = tmp_path / "x", [], os.fsync, os.replace
    path.write_bytes(b"old")

    def synced(file: object) -> None:
        number = os.fstat(file if isinstance(file, int) else file.fileno()).st_ino
        (name,) = [p.name for p in (*tmp_path.iterdir(), tmp_path) if p.stat().st_ino == number]
        calls.append(("fsync", name, path.read_bytes(), (tmp_path / "x.tmp").exists()))
        fsync(file)

    def renamed(source: Path, target: Path, **options: object) -> None:
        calls.append(("rename", Path(source).name, Path(source).read_bytes(), Path(target).name))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    iql.write_file(path, b"new")
    first, second, third = calls
    assert first == ("fsync", "x.tmp", b"old", True)
    assert second == ("rename", "x.tmp", b"new", "x")
    assert third[0] == "fsync" and third[2:] == (b"new", False)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write(
    iql: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Where writing fails, the old file stays."""
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def failing(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="No space"):
        iql.write_file(path, b"new")
    assert path.read_bytes() == b"old"


def check_full(finished: object, folder: Path, word: str) -> None:
    """The job ended in one line about the disk; the old checkpoint is there."""
    assert finished.status == 1 and "Traceback" not in finished.err
    assert finished.err.splitlines()[-1].startswith("error: ") and word in finished.err.splitlines()[-1]
    assert load(folder)["iteration"] > 0


def test_full_disk(iql: ModuleType, job: Callable, tmp_path: Path, twin: Path) -> None:
    """On a full disk the job ends in one line, and goes on when there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        args = job(iql, run_dir=disk / "runs")
        check_full(command_of(args), folder_of(args), "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        run(replace(args, resume=True))
        assert_same(folder_of(args), twin)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_too_large(unfinished: object, tmp_path: Path, twin: Path) -> None:
    """The same where the system allows no file of a checkpoint's size."""
    args = copied(unfinished, tmp_path / "runs")
    finished = launcher().start(module_of(args), flags_of(args), file_size=40_000).wait()
    check_full(finished, folder_of(args), "File too large")
    run(args)
    assert_same(folder_of(args), twin)
