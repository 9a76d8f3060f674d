"""Whole jobs of dmg_iql.py (or of another script, see conftest.py): run folder, logs, checkpoints, kills, bad flags,
several seeds, evaluation, CUDA graphs."""

import contextlib
import csv
import functools
import gc
import io
import json
import math
import os
import pickle
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import OTHER, PRESET, SCRIPT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

import dmg_iql

ROOT = Path(dmg_iql.__file__).resolve().parent
ENV_ID = "hopper-medium-local"
EVAL = "phase,iteration,env_steps,seed,episode,return,length,score,success".split(",")
METRICS = "iteration,seed,value_loss,qf_loss,actor_loss,q_values,v_values,lam,nu,wall_seconds,diverged".split(",")
NETS = ("actor", "critic", "value", "actor_target", "critic_target")
TAGS = {f"losses/{name}" for name in METRICS[2:7]} | {"charts/SPS"}
TAGS |= {f"eval/{name}" for name in ("normalized_score", "episodic_return", "episodic_length")}
Job = Callable[..., dmg_iql.Args]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


# ---- helpers ---------------------------------------------------------------------------------------------------------
def write_dataset(path: Path, rewards: np.ndarray | None = None, rows: int = 2000) -> Path:
    """Random numbers as Hopper data in D4RL's layout: an episode ends every 50 rows, every second by time limit."""
    rng = np.random.default_rng(0)
    ends = np.arange(rows) % 100
    data = {
        "observations": rng.normal(size=(rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.uniform(-1, 1, rows).astype(np.float32) if rewards is None else rewards.astype(np.float32),
        "terminals": ends == 49,
        "timeouts": ends == 99,
    }
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            file[key] = values
    return path


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Let gc.collect(), which closes the files of failed jobs, look past all that the imports made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that every job here trains on."""
    return write_dataset(tmp_path_factory.mktemp("data") / "hopper.hdf5")


def small(dataset: Path, run_dir: Path, **changes: object) -> dmg_iql.Args:
    """A job of a fraction of a second."""
    job = dict(env_id=ENV_ID, exp_name="job", run_dir=run_dir, dataset_path=dataset, hidden_dim=16, batch_size=32)
    job |= dict(iterations=60, eval_every=20, eval_episodes=2, log_every=10, save_every=10, device="cpu", threads=1)
    return dmg_iql.Args(**job | changes)


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> Job:
    """Makes jobs whose run folders lie in this test's own folder."""
    return lambda **changes: small(dataset, tmp_path / "runs", **changes)


def folder_of(args: dmg_iql.Args) -> Path:
    """The run folder of a job that has an exp_name."""
    return args.run_dir / f"{args.env_id}__{args.exp_name}__s{args.seed}-{args.seed + args.num_seeds - 1}"


def flags_of(args: dmg_iql.Args) -> list[str]:
    """A job's command line: the flags that differ from their defaults."""
    given = {f.name: getattr(args, f.name) for f in fields(args) if getattr(args, f.name) != f.default}
    words = []
    for key, value in given.items():
        flag = key.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


@pytest.fixture(autouse=True)
def boards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list]:
    """The TensorBoard writers of jobs run in this process, closed behind each test. Also restores torch's globals, and
    works in the test's own folder: MuJoCo may write a log file to the working folder."""
    monkeypatch.chdir(tmp_path)
    made, threads, dtype = [], torch.get_num_threads(), torch.get_default_dtype()

    class Writer(dmg_iql.SummaryWriter):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(dmg_iql, "SummaryWriter", Writer)
    yield made
    for writer in made:
        writer.close()
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    gc.collect()


def run(args: dmg_iql.Args) -> tuple[int, str]:
    """Train in this process. Returns the exit status and what was printed."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            status = dmg_iql.train(args)
    finally:
        gc.collect()  # closes the files of a job that failed
    return status, out.getvalue()


def refused(args: dmg_iql.Args) -> str:
    """Train, which has to end in a SystemExit with one clear line. Returns the line."""
    with pytest.raises(SystemExit) as error:
        run(args)
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


class Crash(Exception):
    """What `crash` raises inside a job."""


def crash(args: dmg_iql.Args, updates: int) -> None:
    """Train, and fail instead of update number `updates` + 1. Open files get flushed, as they are after Ctrl-C."""
    update, calls = dmg_iql.DMG.update, iter(range(updates))

    def failing(self: dmg_iql.DMG, *inputs: object) -> dict[str, Tensor]:
        if next(calls, None) is None:
            raise Crash
        return update(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dmg_iql.DMG, "update", failing)
        with contextlib.suppress(Crash):
            run(args)
            pytest.fail(f"the job ended before {updates} updates")
    gc.collect()


def load(folder: Path) -> dict:
    """A run folder's checkpoint."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def flat(value: object, name: str = "") -> dict[str, object]:
    """Nested dicts and lists as one dict, tensors as their type, shape and bytes."""
    if isinstance(value, Tensor):
        return {name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: part for k, v in items for key, part in flat(v, f"{name}/{k}").items()}
    return {name: repr(value)}


def outcome(folder: Path) -> dict[str, object]:
    """All that a job leaves behind but wall-clock times: checkpoint, every row of both tables, and the summary."""
    saved = load(folder)
    del saved["wall_seconds"]
    saved["csv_bytes"] = saved["csv_bytes"][0]  # metrics.csv holds times, so its size is not fixed
    found = flat(saved, "checkpoint")
    found["eval.csv"] = (folder / "eval.csv").read_bytes()
    lines = (folder / "metrics.csv").read_bytes().decode().split("\r\n")
    clock = METRICS.index("wall_seconds")
    for number, line in enumerate(lines):
        words = line.split(",")
        found[f"metrics.csv/{number}"] = words[:clock] + words[clock + 1 :]
    found["done"] = (folder / "done").read_text() if (folder / "done").exists() else None
    return found


def assert_same(folder: Path, other: Path) -> None:
    """Both jobs ended alike, bit for bit."""
    a, b = outcome(folder), outcome(other)
    assert [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)] == []


def every_file(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder: tag -> step -> value."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}


def tables_as_scalars(folder: Path, seed: int) -> dict[str, dict[int, float]]:
    """What TensorBoard ought to show of a seed, from the CSV files (charts/SPS apart)."""
    wanted: dict[str, dict[int, float]] = {}
    for row in rows_of(folder / "metrics.csv"):
        if int(row["seed"]) == seed:
            for name in METRICS[2:7]:
                if row[name]:
                    wanted.setdefault(f"losses/{name}", {})[int(row["iteration"])] = float(row[name])
    evals = [row for row in rows_of(folder / "eval.csv") if int(row["seed"]) == seed]
    pairs = ("normalized_score", "score"), ("episodic_return", "return"), ("episodic_length", "length")
    for tag, column in pairs:
        for t in {int(row["iteration"]) for row in evals}:
            values = [float(row[column]) for row in evals if int(row["iteration"]) == t]
            wanted.setdefault(f"eval/{tag}", {})[t] = sum(values) / len(values)
    return wanted


def backdate(folder: Path, second: int) -> None:
    """Rename the latest event files, events.out.tfevents.SECONDS..., in whose names' order TensorBoard reads them: two
    runs here may begin within a second."""
    for file in folder.glob("s*/events*"):
        words = file.name.split(".")
        if int(words[3]) > 1000:
            file.rename(file.with_name(".".join([*words[:3], f"{second:010d}", *words[4:]])))


def check_boards(folder: Path, seed: int) -> None:
    """TensorBoard's curves of a seed have every point of the CSV files, with the same values."""
    shown, wanted = scalars(folder / f"s{seed}"), tables_as_scalars(folder, seed)
    assert set(shown) == TAGS
    assert set(shown["charts/SPS"]) == set(wanted["losses/qf_loss"])
    for tag, curve in wanted.items():
        assert sorted(shown[tag]) == sorted(curve), tag
        assert [shown[tag][t] for t in sorted(curve)] == pytest.approx([curve[t] for t in sorted(curve)], rel=1e-6), tag


LAUNCHER = """
import gc, importlib, json, os, runpy, signal, sys, traceback
sys.path.insert(0, sys.argv[1])
dmg_iql = importlib.import_module(sys.argv[2])
dmg_iql.make_env("hopper-medium-local")  # all imports that a job does late
dmg_iql.DMG(dmg_iql.resolve(dmg_iql.Args(device="cpu", hidden_dim=1)), 11, 3)
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in (1, "out"), (2, "err"):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = [dmg_iql.__file__, *job["flags"]]
        status = 0
        try:
            runpy.run_path(dmg_iql.__file__, run_name="__main__")
        except SystemExit as end:  # as the interpreter does, which then spends a second on tidying up
            status = end.code or 0
            if isinstance(status, str):
                status = print(status, file=sys.stderr) or 1
        except BaseException:
            status = traceback.print_exc() or 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Finished:
    """How a process ended: its exit status (minus the signal's number, if one killed it) and what it printed."""

    status: int
    out: str
    err: str


class Launcher:
    """Runs the real command line, each time in a process of its own. They are forked from one that has done the
    imports, which take longer than the jobs here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = [sys.executable, "-c", LAUNCHER, str(ROOT), SCRIPT]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdin=-1, stdout=-1, bufsize=0, cwd=folder, env=env)

    def __call__(
        self, flags: list[str], moment: Callable[[], bool] | None = None, number: int = signal.SIGKILL
    ) -> Finished:
        """Run dmg_iql.py with these flags; once `moment` is true, send it the signal."""
        out, err = self.folder / "out", self.folder / "err"
        self.process.stdin.write(json.dumps({"flags": flags, "out": str(out), "err": str(err)}).encode() + b"\n")
        pid, deadline = int(self.process.stdout.readline()), time.monotonic() + 100
        while not select.select([self.process.stdout], [], [], 0.0005)[0]:
            if time.monotonic() > deadline or (moment and moment()):
                os.kill(pid, number if moment else signal.SIGKILL)
                moment = None
        return Finished(int(self.process.stdout.readline()), out.read_text(), err.read_text())


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """The command line."""
    launcher = Launcher(tmp_path_factory.mktemp("cli"))
    yield launcher
    launcher.process.stdin.close()
    launcher.process.wait(timeout=30)
    launcher.process.stdout.close()


def script(*flags: str, cwd: Path) -> subprocess.Popen:
    """`python dmg_iql.py ...`, with no launcher between."""
    words = [sys.executable, dmg_iql.__file__, *flags]
    return subprocess.Popen(words, stdout=-1, stderr=-1, text=True, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"})


# ---- 1. a whole job --------------------------------------------------------------------------------------------------
@dataclass
class Whole:
    """A job that has ended, and what it printed."""

    args: dmg_iql.Args
    folder: Path
    finished: Finished


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory, cli: Launcher) -> Whole:
    """Seeds 3 and 4, whose last iteration, 50, is no multiple of any interval."""
    run_dir = tmp_path_factory.mktemp("whole") / "runs"
    args = small(dataset, run_dir, seed=3, num_seeds=2, iterations=50, log_every=15, save_every=40, lam=0.5)
    return Whole(args, folder_of(args), cli(flags_of(args)))


def test_whole_job_ends_well_and_leaves_these_files(whole: Whole) -> None:
    """Exit status 0, the folder's name, and its files; no temporary file stays."""
    assert whole.finished.status == 0 and "Traceback" not in whole.finished.err
    assert [p.name for p in whole.args.run_dir.iterdir()] == [f"{ENV_ID}__job__s3-4"]
    names = {p.name for p in whole.folder.iterdir()}
    assert names == {"config.json", "eval.csv", "metrics.csv", "checkpoint.pt", "done", "s3", "s4"}


def test_whole_job_by_plain_python(job: Job, tmp_path: Path) -> None:
    """The same through `python dmg_iql.py`: it ends with status 0 and every event is on disk."""
    args = job(iterations=37, lam=0.0)
    process = script(*flags_of(args), cwd=tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == (folder_of(args) / "done").read_text()
    check_boards(folder_of(args), 0)


def test_config_json(whole: Whole, dataset: Path) -> None:
    """config.json, also printed first, has every flag with its resolved value, the versions and the data's hash."""
    config = json.loads((whole.folder / "config.json").read_text())
    assert {f.name for f in fields(dmg_iql.Args)} <= set(config)
    for key, value in (PRESET | dict(nu=0.1, temperature=3.0, weight_clip=3.0, normalize_states=True)).items():
        assert config[key] == value, f"{key}: the preset"
    for key, value in dict(lam=0.5, seed=3, num_seeds=2, iterations=50, eval_every=20, device="cpu").items():
        assert config[key] == value, f"{key}: given"
    assert config["torch"].startswith("2.") and config["gymnasium"] and config["mujoco"]
    sums = subprocess.run(["sha256sum", dataset], capture_output=True, text=True, check=True).stdout
    assert config["dataset_sha256"] == sums.split()[0]
    assert whole.finished.out.startswith((whole.folder / "config.json").read_text())


def test_eval_csv(whole: Whole) -> None:
    """eval.csv: a row per evaluation, seed and episode; the last iteration is evaluated too; scores are D4RL's."""
    text = (whole.folder / "eval.csv").read_text()
    assert text.splitlines()[0] == ",".join(EVAL)
    rows = rows_of(whole.folder / "eval.csv")
    keys = [(int(row["iteration"]), int(row["seed"]), int(row["episode"])) for row in rows]
    assert keys == [(t, seed, e) for t in (20, 40, 50) for seed in (3, 4) for e in (0, 1)]
    for row in rows:
        assert (row["phase"], row["env_steps"], row["success"]) == ("offline", "0", "")
        assert 1 <= int(row["length"]) <= 1000
        score = 100 * (float(row["return"]) + 20.272305) / (3234.3 + 20.272305)
        assert float(row["score"]) == pytest.approx(score, rel=1e-9)


def test_metrics_csv(whole: Whole) -> None:
    """metrics.csv: a row per seed at every log_every-th iteration and at the last, with finite numbers; no actor loss
    where the iteration made no actor step."""
    assert (whole.folder / "metrics.csv").read_text().splitlines()[0] == ",".join(METRICS)
    rows = rows_of(whole.folder / "metrics.csv")
    assert [(int(row["iteration"]), int(row["seed"])) for row in rows] == [
        (t, s) for t in (15, 30, 45, 50) for s in (3, 4)
    ]
    for row in rows:
        assert (float(row["lam"]), float(row["nu"]), row["diverged"]) == (0.5, 0.1, "0")
        assert all(
            math.isfinite(float(row[key])) for key in ("value_loss", "qf_loss", "q_values", "v_values", "wall_seconds")
        )
        assert bool(row["actor_loss"]) == (int(row["iteration"]) % 2 == 0)
    clock = [float(row["wall_seconds"]) for row in rows]
    assert clock == sorted(clock) and clock[0] > 0


def test_metrics_are_those_of_the_update(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has the very losses, and the mean q and v, of that iteration's update."""
    update, seen = dmg_iql.DMG.update, []

    def watched(self: dmg_iql.DMG, *inputs: object) -> dict[str, Tensor]:
        log = update(self, *inputs)
        seen.append({name: value.clone() for name, value in log.items()})
        return log

    monkeypatch.setattr(dmg_iql.DMG, "update", watched)
    args = job(num_seeds=2, iterations=25)
    run(args)
    for row in rows_of(folder_of(args) / "metrics.csv"):
        log, k = seen[int(row["iteration"]) - 1], int(row["seed"])
        wanted = {name: log[name][k].item() for name in log if name.endswith("loss")}
        wanted |= {"q_values": log["q"][k].mean().item(), "v_values": log["v"][k].mean().item()}
        assert {name: float(row[name]) for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_checkpoint_holds_what_a_policy_needs(whole: Whole, dataset: Path) -> None:
    """checkpoint.pt loads without running code and has settings, iteration, the states' mean and scale, networks and
    optimisers, with one network per seed (two for critics)."""
    saved = load(whole.folder)
    assert saved["iteration"] == 50 and saved["config"]["lam"] == 0.5 and saved["config"]["env_id"] == ENV_ID
    with h5py.File(dataset) as file:
        kept = ~file["timeouts"][:-1]
        s = file["observations"][:-1][kept].astype(np.float64)
    np.testing.assert_allclose(saved["state_mean"], s.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(saved["state_scale"], s.std(0) + 1e-3, rtol=1e-6)
    assert set(saved["nets"]) == set(NETS) and set(saved["optimisers"]) == {"actor", "critic", "value"}
    for name, params in saved["nets"].items():
        assert len(params) == 6 and all(torch.isfinite(param).all() for param in params)
        assert {len(param) for param in params} == {4 if "critic" in name else 2}
    for name, (steps, *moments) in saved["optimisers"].items():
        assert steps == (25 if name == "actor" else 50)
        assert [m.shape for m in moments] == 2 * [param.shape for param in saved["nets"][name]]
        assert all((m != 0).any() for m in moments) and all((m >= 0).all() for m in moments[6:])


def test_tensorboard(whole: Whole) -> None:
    """Each seed has its own TensorBoard folder, with all nine curves; their points are those of the CSV files."""
    for seed in (3, 4):
        check_boards(whole.folder, seed)


def check_summary(folder: Path, summary: str) -> None:
    """The summary's last and best scores, and their spread over seeds, follow from eval.csv."""
    scores: dict[int, dict[int, list[float]]] = {}
    for row in rows_of(folder / "eval.csv"):
        scores.setdefault(int(row["iteration"]), {}).setdefault(int(row["seed"]), []).append(float(row["score"]))
    curve = {t: [sum(x) / len(x) for x in seeds.values()] for t, seeds in scores.items()}
    mean = {t: sum(x) / len(x) for t, x in curve.items()}
    last, best = max(curve), max(mean, key=mean.get)
    for label, t in ("last", last), ("best", best):
        found = re.search(rf"{label} score (-?[\d.]+)(?: ± ([\d.]+))? \(iteration ([\d,]+)", summary)
        assert found, summary
        assert (found[1], int(found[3].replace(",", ""))) == (f"{mean[t]:.1f}", t)
        if (n := len(curve[t])) > 1:
            spread = math.sqrt(sum((x - mean[t]) ** 2 for x in curve[t]) / (n - 1))
            assert found[2] == f"{spread:.1f}"
        else:
            assert found[2] in (None, "0.0")


def test_last_line_has_the_last_and_the_best_score(whole: Whole) -> None:
    """The last printed line says which score is the last one's and which the best, and equals a recomputation."""
    line = whole.finished.out.splitlines()[-1]
    assert line == (whole.folder / "done").read_text()
    check_summary(whole.folder, line)


def test_summary_where_the_best_is_not_the_last(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with scores that rise and fall, so that last and best differ, and with one seed."""
    heights = iter([1.0, 5.0, 3.0, 2.0, 7.0, 4.0])

    def played(env_id: str, actor: list, mean: object, scale: object, resets: np.ndarray) -> np.ndarray:
        returns = 100 * next(heights) + 10 * np.arange(resets.size).reshape(resets.shape)
        return np.stack([returns, np.full(resets.shape, 9)])

    monkeypatch.setattr(dmg_iql, "rollout", played)
    for num_seeds in (3, 1):
        args = job(num_seeds=num_seeds, eval_episodes=3, exp_name=f"seeds{num_seeds}")
        _, out = run(args)
        check_summary(folder_of(args), out.splitlines()[-1])
    assert "iteration 40" in out.splitlines()[-1]


def test_done_is_written_last(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job trains, evaluates or saves there is no `done`; then there is."""
    args, seen = job(), []

    def watched(name: str, real: Callable) -> Callable:
        def call(*inputs: object) -> object:
            assert not (folder_of(args) / "done").exists()
            seen.append(name)
            return real(*inputs)

        return call

    for owner, name in (dmg_iql.DMG, "update"), (dmg_iql, "rollout"), (torch, "save"):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    run(args)
    assert set(seen) == {"update", "rollout", "save"} and (folder_of(args) / "done").is_file()


# ---- 2. the run folder's name ----------------------------------------------------------------------------------------
def test_default_exp_name_lists_changed_flags(job: Job) -> None:
    """Without --exp-name the folder is named after the script and the changed flags, and after nothing else."""
    args = job(exp_name=None, lam=0.0, nu=math.inf, seed=7, iterations=2, eval_every=2)
    run(args)
    (folder,) = args.run_dir.iterdir()
    env_id, exp_name, seeds = folder.name.split("__")
    assert (env_id, seeds) == (ENV_ID, "s7-7")
    words = exp_name.split("-")
    assert words[0] == SCRIPT
    assert {re.sub(r"[\d.]+$|inf$", "", word) for word in words[1:]} == {
        "lam", "nu", "hiddendim", "batchsize", "iterations", "evalevery", "evalepisodes"
    }  # fmt: skip
    assert re.search(r"-lam0(\.0)?-nuinf-", exp_name)
    assert dmg_iql.resolve(dmg_iql.Args(env_id=ENV_ID)).exp_name == SCRIPT


def test_every_training_flag_names_another_folder() -> None:
    """Whichever training flag is changed, the job gets a folder of its own."""
    changes = dict(OTHER, lam=0.5, nu=0.2, temperature=2.0, weight_clip=2.0, gamma=0.9, polyak=0.01,
                   learning_rate=1e-3, batch_size=8, hidden_dim=8, policy_noise=0.1, noise_clip=0.1)  # fmt: skip
    changes |= dict(policy_delay=3, iterations=7, eval_every=3, eval_episodes=3)
    changes |= dict(normalize_states=False, antmaze_reward=True, normalize_rewards=True, std_offset=0.01)
    elsewhere = "env_id exp_name run_dir dataset_path seed num_seeds log_every save_every resume overwrite device"
    elsewhere = {*elsewhere.split(), "cudagraphs", "threads", "eval_workers"}
    assert set(changes) | elsewhere == {f.name for f in fields(dmg_iql.Args)}
    names = {dmg_iql.resolve(dmg_iql.Args(env_id=ENV_ID, **{key: value})).exp_name for key, value in changes.items()}
    assert len(names) == len(changes) and SCRIPT not in names


# ---- 3. folders that exist -------------------------------------------------------------------------------------------
def test_existing_folder_is_not_touched(job: Job) -> None:
    """An unfinished folder is refused naming --resume, a finished one naming --overwrite; neither is changed."""
    crash(job(), 25)
    before = every_file(folder_of(job()))
    assert "--resume" in refused(job()) and every_file(folder_of(job())) == before
    run(job(resume=True))
    before = every_file(folder_of(job()))
    message = refused(job())
    assert "--overwrite" in message and "--resume" not in message
    assert every_file(folder_of(job())) == before


def test_overwrite_starts_again(job: Job) -> None:
    """--overwrite deletes whatever lay there and gives the very job that a fresh folder gives; without a folder too."""
    run(job(exp_name="fresh", overwrite=True))
    crash(job(lam=0.75), 35)
    (folder_of(job()) / "s0" / "old").write_text("left behind")
    run(job(overwrite=True))
    assert not (folder_of(job()) / "s0" / "old").exists()
    assert_same(folder_of(job()), folder_of(job(exp_name="fresh")))
    run(job(overwrite=True))
    assert_same(folder_of(job()), folder_of(job(exp_name="fresh")))


def test_overwrite_deletes_nothing_where_the_job_cannot_start(job: Job, tmp_path: Path) -> None:
    """--overwrite with a missing dataset or a bad flag leaves the old folder alone."""
    run(job(iterations=20))
    before = every_file(folder_of(job()))
    refused(job(overwrite=True, dataset_path=tmp_path / "none.hdf5"))
    refused(job(overwrite=True, lam=2.0))
    assert every_file(folder_of(job())) == before


def test_resume_of_a_finished_job(job: Job, cli: Launcher) -> None:
    """--resume on a finished folder ends with 0, prints the summary and changes nothing."""
    run(job())
    before = every_file(folder_of(job()))
    status, out = run(job(resume=True))
    assert status == 0 and (folder_of(job()) / "done").read_text() in out
    assert cli(flags_of(job(resume=True))).status == 0
    assert every_file(folder_of(job())) == before


def test_finished_folder_of_another_job(job: Job) -> None:
    """--resume does not take a finished job for one with other settings, but names them; --overwrite goes before
    --resume."""
    run(job())
    before = every_file(folder_of(job()))
    message = refused(job(resume=True, lam=0.5))
    assert "lam" in message and "--overwrite" in message and str(folder_of(job())) in message
    assert every_file(folder_of(job())) == before
    run(job(resume=True, overwrite=True, lam=0.5))
    assert json.loads((folder_of(job()) / "config.json").read_text())["lam"] == 0.5
    assert load(folder_of(job()))["config"]["lam"] == 0.5


def test_resume_without_a_checkpoint(job: Job) -> None:
    """--resume starts from the beginning where there is no folder, an empty one, or one killed before a checkpoint."""
    run(job(exp_name="fresh"))
    run(job(exp_name="none", resume=True))
    folder_of(job(exp_name="empty")).mkdir()
    run(job(exp_name="empty", resume=True))
    crash(job(exp_name="early"), 9)
    assert not (folder_of(job(exp_name="early")) / "checkpoint.pt").exists()
    run(job(exp_name="early", resume=True))
    for name in ("none", "empty", "early"):
        assert_same(folder_of(job(exp_name=name)), folder_of(job(exp_name="fresh")))


# ---- 4. kill and resume ----------------------------------------------------------------------------------------------
@dataclass
class Killed:
    """A job killed ten times, its twin that never was, and the iteration of the checkpoint found after each kill."""

    folder: Path
    twin: Path
    statuses: list[int]
    iterations: list[int]


@pytest.fixture(scope="module")
def killed(dataset: Path, tmp_path_factory: pytest.TempPathFactory, cli: Launcher) -> Killed:
    """SIGKILL at start-up, with the folder just made, with the tables just made, and at seven random places of the
    training; at every second of those within milliseconds of the CSV files' flush, which is when a checkpoint is
    written, else some milliseconds behind. Each time the job is resumed."""
    run_dir, rng = tmp_path_factory.mktemp("kills") / "runs", random.Random(1)
    args = small(dataset, run_dir, iterations=400, num_seeds=2)
    folder, twin = folder_of(args), folder_of(replace(args, exp_name="twin"))
    assert cli(flags_of(replace(args, exp_name="twin"))).status == 0

    def logged(rows: int) -> bool:
        return (folder / "metrics.csv").exists() and (folder / "metrics.csv").read_bytes().count(b"\n") > rows

    moments = [(lambda: True, 0.03), (folder.exists, 0.0), ((folder / "eval.csv").exists, 0.0)]
    for k, iteration in enumerate(sorted(rng.sample(range(20, 330, 10), 7))):
        moments.append((lambda rows=2 * iteration // 10: logged(rows - 1), rng.uniform(0.001, 0.02) if k % 2 else 0.0))
    statuses, iterations = [], []
    for number, (reached, delay) in enumerate(moments):
        moment = functools.partial(lambda reached, delay: reached() and not time.sleep(delay), reached, delay)
        statuses.append(cli(flags_of(replace(args, resume=True)), moment).status)
        iterations.append(load(folder)["iteration"] if (folder / "checkpoint.pt").exists() else 0)
        backdate(folder, number)
    statuses.append(cli(flags_of(replace(args, resume=True))).status)
    return Killed(folder, twin, statuses, iterations)


def test_ten_kills_change_nothing(killed: Killed) -> None:
    """Killed ten times and resumed, the job ends as if it had not been: all tensors and both tables, bit for bit."""
    assert killed.statuses == [-signal.SIGKILL] * 10 + [0]
    assert killed.iterations == sorted(killed.iterations) and killed.iterations[:2] == [0, 0]
    assert len(set(killed.iterations)) >= 5 and killed.iterations[-1] >= 200, "the kills are not spread out"
    assert_same(killed.folder, killed.twin)


def test_ten_kills_lose_no_point_of_tensorboard(killed: Killed) -> None:
    """TensorBoard's curves have every point of the CSV files after ten kills too."""
    for seed in (0, 1):
        check_boards(killed.folder, seed)


def test_resume_loses_no_point_of_tensorboard(job: Job, boards: list) -> None:
    """Where the events were on disk when the job failed, resuming hides none of them, the checkpoint's own iteration
    included, and shows none twice."""
    crash(job(), 25)
    for board in boards:
        board.close()
    backdate(folder_of(job()), 1)
    run(job(resume=True))
    for board in boards:
        board.close()
    check_boards(folder_of(job()), 0)


def test_events_are_on_disk_before_the_checkpoint(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a checkpoint is written, TensorBoard's events up to it are in their file, however slow that was."""
    write, save, files = RecordWriter.write, torch.save, []
    monkeypatch.setattr(RecordWriter, "write", lambda *inputs: time.sleep(0.005) or write(*inputs))

    def saving(saved: dict, target: Path) -> None:
        files.append((saved["iteration"], scalars(folder_of(job()) / "s0")))
        save(saved, target)

    monkeypatch.setattr(torch, "save", saving)
    run(job())
    assert [iteration for iteration, _ in files] == [10, 20, 30, 40, 50, 60]
    for iteration, shown in files:
        assert max(shown["charts/SPS"]) == max(shown["losses/v_values"]) == iteration
        assert iteration % 20 or max(shown["eval/episodic_length"]) == iteration


def test_failures_change_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that fails after n updates and is resumed ends as if it had not, for n around every boundary: odd ones, log
    and save intervals that are no multiples of each other or of the actor's, and blocks of 16 random numbers."""
    monkeypatch.setattr(dmg_iql, "BLOCK", 16)
    uneven = dict(num_seeds=2, policy_delay=2, log_every=7, save_every=10, eval_every=15, iterations=53)
    run(job(exp_name="twin", **uneven))
    for n in (0, 7, 10, 11, 15, 16, 17, 33, 41, 52):
        crash(job(exp_name=f"at{n}", **uneven), n)
        run(job(exp_name=f"at{n}", resume=True, **uneven))
        assert_same(folder_of(job(exp_name=f"at{n}", **uneven)), folder_of(job(exp_name="twin", **uneven)))
    for n in (3, 13, 9, 12, 11, 1, 5):
        crash(job(exp_name="often", resume=True, **uneven), n)
    run(job(exp_name="often", resume=True, **uneven))
    assert_same(folder_of(job(exp_name="often", **uneven)), folder_of(job(exp_name="twin", **uneven)))


def test_checkpoint_before_the_first_actor_step(job: Job) -> None:
    """A checkpoint can be resumed from whose actor has not yet made a step."""
    late = dict(policy_delay=15)
    run(job(exp_name="twin", **late))
    crash(job(**late), 12)
    run(job(resume=True, **late))
    assert_same(folder_of(job()), folder_of(job(exp_name="twin")))


def test_block_is_only_a_buffer_of_one_stream(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """No iteration is given the random numbers of another one, within a block or across two."""
    monkeypatch.setattr(dmg_iql, "BLOCK", 8)
    update, seen = dmg_iql.DMG.update, []

    def watched(self: dmg_iql.DMG, batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        seen.extend(part.numpy().tobytes() for part in (*batch, *noise))
        return update(self, batch, noise, actor_step)

    monkeypatch.setattr(dmg_iql.DMG, "update", watched)
    run(job(num_seeds=2, iterations=20))
    assert len(seen) == len(set(seen)) == 80


def test_killed_between_last_checkpoint_and_done(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was killed after its last checkpoint but before `done` is finished by --resume."""
    run(job(exp_name="twin"))
    real = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "done":
            raise Crash
        real(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(os, "replace", failing)
        run(job())
    gc.collect()
    assert load(folder_of(job()))["iteration"] == 60 and not (folder_of(job()) / "done").exists()
    status, out = run(job(resume=True))
    assert status == 0 and out.splitlines()[-1] == (folder_of(job(exp_name="twin")) / "done").read_text()
    assert_same(folder_of(job()), folder_of(job(exp_name="twin")))


def test_half_a_row_is_cut_off(job: Job) -> None:
    """What a kill left in the tables behind the checkpoint, half a row included, is made again."""
    run(job(exp_name="twin"))
    crash(job(), 25)
    for name in ("eval.csv", "metrics.csv"):
        with (folder_of(job()) / name).open("ab") as file:
            file.write(b"30,0,0.12")
    run(job(resume=True))
    assert_same(folder_of(job()), folder_of(job(exp_name="twin")))


def test_lost_rows_are_noticed(job: Job) -> None:
    """Where rows that the checkpoint counts on are gone, the job says so, and does not go on."""
    for name in ("eval.csv", "metrics.csv"):
        crash(job(exp_name=name), 45)
        path = folder_of(job(exp_name=name)) / name
        before = load(path.parent)["iteration"]
        path.write_bytes(path.read_bytes()[:100])
        message = refused(job(exp_name=name, resume=True))
        assert name in message and "--overwrite" in message
        path.unlink()
        assert name in refused(job(exp_name=name, resume=True))
        assert load(path.parent)["iteration"] == before


def test_resume_with_other_machine_flags(job: Job, dataset: Path, tmp_path: Path) -> None:
    """save_every and the dataset's place may change on resuming, and change nothing; nor does failing again at once,
    with rows behind the first checkpoint that the second one has not yet."""
    run(job(exp_name="twin"))
    crash(job(save_every=30), 49)  # leaves rows of iteration 40 behind the checkpoint of iteration 30
    moved = Path(shutil.copy(dataset, tmp_path / "moved.hdf5"))
    crash(job(save_every=1, resume=True, dataset_path=moved), 5)
    run(job(save_every=7, resume=True))
    assert_same(folder_of(job()), folder_of(job(exp_name="twin")))


def test_interrupt(dataset: Path, tmp_path: Path, cli: Launcher) -> None:
    """Ctrl-C ends a job with a line that names --resume, no traceback and a status other than 0; it can be resumed."""
    args = small(dataset, tmp_path, iterations=300)
    stopped = cli(flags_of(args), (folder_of(args) / "checkpoint.pt").exists, signal.SIGINT)
    assert stopped.status > 0 and "Traceback" not in stopped.err and "--resume" in stopped.err.splitlines()[-1]
    assert cli(flags_of(replace(args, resume=True))).status == 0
    assert cli(flags_of(replace(args, exp_name="twin"))).status == 0
    assert_same(folder_of(args), folder_of(replace(args, exp_name="twin")))


# ---- 5. a kill while a checkpoint is written -------------------------------------------------------------------------
@pytest.mark.parametrize("save", [1, 2, 4])
def test_half_a_checkpoint(job: Job, monkeypatch: pytest.MonkeyPatch, save: int) -> None:
    """Stopped in the middle of the n-th save, the job still has the checkpoint before it, and resumes from that."""
    run(job(exp_name="twin"))
    real, saves = torch.save, iter(range(1, 9))

    def half(saved: object, target: Path) -> None:
        real(saved, target)
        if next(saves) == save:
            Path(target).write_bytes(Path(target).read_bytes()[: Path(target).stat().st_size // 2])
            raise Crash

    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(torch, "save", half)
        run(job())
        pytest.fail("the job ended")
    gc.collect()
    if save == 1:
        assert not (folder_of(job()) / "checkpoint.pt").exists()
    else:
        assert load(folder_of(job()))["iteration"] == 10 * (save - 1)
    run(job(resume=True))
    assert_same(folder_of(job()), folder_of(job(exp_name="twin")))


# ---- 6. bad checkpoints ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unfinished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dmg_iql.Args:
    """A job that failed after 45 of 60 iterations."""
    args = small(dataset, tmp_path_factory.mktemp("unfinished") / "runs", num_seeds=2)
    crash(args, 45)
    return args


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def edited(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A way to spoil a checkpoint: load it, change it, save it again."""

    def spoil(path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        change(saved)
        torch.save(saved, path)

    return spoil


def reshaped(params: list[Tensor]) -> None:
    """Give a net's first layer another shape of as many numbers."""
    params[0] = params[0].transpose(1, 2).contiguous()


def widened(state: list[Tensor]) -> None:
    """Give an optimiser's first moment of the first layer one unit more."""
    state[1] = torch.cat((state[1], state[1][:, :1]), 1)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "a pickled object": lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("executed")))),
    "a saved object": lambda path: torch.save({"config": Payload(path.with_name("executed"))}, path),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "an empty dict": lambda path: torch.save({}, path),
    "fewer units": edited(lambda saved: saved["nets"]["critic"].__setitem__(0, saved["nets"]["critic"][0][:, :-1])),
    "fewer seeds": edited(lambda saved: saved["nets"]["value"].__setitem__(0, saved["nets"]["value"][0][:1])),
    "transposed layer": edited(lambda saved: reshaped(saved["nets"]["actor"])),
    "a layer less": edited(lambda saved: saved["nets"]["actor_target"].pop()),
    "wider moment": edited(lambda saved: widened(saved["optimisers"]["critic"])),
    "a moment less": edited(lambda saved: saved["optimisers"]["value"].pop()),
}
for entry in ("config", "iteration", "wall_seconds", "diverged", "csv_bytes", "nets", "optimisers"):
    DAMAGES[f"no {entry}"] = edited(lambda saved, entry=entry: saved.pop(entry))
for entry in NETS:
    DAMAGES[f"no {entry}"] = edited(lambda saved, entry=entry: saved["nets"].pop(entry))
for entry in ("actor", "critic", "value"):
    DAMAGES[f"no optimiser of {entry}"] = edited(lambda saved, entry=entry: saved["optimisers"].pop(entry))
for entry, other in dict(script="other", checkpoint_format=0, hidden_dim=17, num_seeds=3, seed=1, lam=0.5).items():
    DAMAGES[f"{entry} {other}"] = edited(lambda saved, entry=entry, other=other: saved["config"].update({entry: other}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_checkpoint(unfinished: dmg_iql.Args, tmp_path: Path, damage: str) -> None:
    """A damaged or foreign checkpoint is refused with one line that names the file and what to do. It executes nothing,
    and nothing in the folder changes."""
    args = replace(unfinished, run_dir=tmp_path / "runs", resume=True)
    shutil.copytree(folder_of(unfinished), folder_of(args))
    DAMAGES[damage](folder_of(args) / "checkpoint.pt")
    before = every_file(folder_of(args))
    message = refused(args)
    assert str(folder_of(args) / "checkpoint.pt") in message and "--overwrite" in message
    assert every_file(folder_of(args)) == before


OTHERS = dict(lam=0.5, hidden_dim=8, iterations=70, env_id="hopper-expert-local", policy_delay=1, nu=math.inf)


@pytest.mark.parametrize("change", [{key: value} for key, value in OTHERS.items()] + [{"rewards": 0.5}], ids=str)
def test_checkpoint_of_another_job(unfinished: dmg_iql.Args, tmp_path: Path, change: dict) -> None:
    """A job is not resumed with another setting, another task or other data. The line says which; nothing changes."""
    if "rewards" in change:
        other = write_dataset(tmp_path / "other.hdf5", rewards=np.full(2000, change["rewards"]))
        args = replace(unfinished, run_dir=tmp_path / "runs", resume=True, dataset_path=other)
    else:
        args = replace(unfinished, run_dir=tmp_path / "runs", resume=True, **change)
    shutil.copytree(folder_of(unfinished), folder_of(args))
    before = every_file(folder_of(args))
    message = refused(args)
    assert str(folder_of(args) / "checkpoint.pt") in message and "--overwrite" in message
    (flag,) = change
    assert ("dataset" if flag == "rewards" else flag) in message
    assert every_file(folder_of(args)) == before


# ---- 7. bad flags ----------------------------------------------------------------------------------------------------
def check_refusal(finished: Finished, run_dir: Path, *words: str) -> None:
    """One clear line on stderr, a status other than 0, no traceback, and no run folder."""
    assert finished.status > 0 and "Traceback" not in finished.err + finished.out
    lines = finished.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), finished.err
    assert all(word in lines[0] for word in words), lines[0]
    assert not run_dir.exists() or run_dir.is_file()


OWN_BAD_FLAGS = {
    "dmg_iql": "expectile 0|expectile 1",
    "dmg_xql": "beta 0|gumbel-clip 0",
    "dmg_sql": "alpha 0|alpha nan",
}
BAD_FLAGS = f"""lam 1.5|lam nan|lam -0.1|nu -1|nu nan|{OWN_BAD_FLAGS[SCRIPT]}|num-seeds 0|iterations 0|gamma 1|
gamma nan|polyak 0|polyak 1.01|batch-size 0|learning-rate 0|learning-rate nan|device tpu|seed -1|eval-every 0|
policy-noise -1|temperature inf|dataset-path /none/none.hdf5""".replace("\n", "").split("|")


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_bad_flag(dataset: Path, tmp_path: Path, cli: Launcher, flag: str) -> None:
    """The command line refuses a bad flag before it makes a folder, and names the flag (of a file, the file)."""
    name, value = flag.split()
    flags = flags_of(small(dataset, tmp_path / "runs"))
    finished = cli([*flags, f"--{name}", value])
    check_refusal(finished, tmp_path / "runs", value if name == "dataset-path" else f"--{name} {value}".rstrip("0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(dataset: Path, tmp_path: Path, cli: Launcher) -> None:
    """--device cuda without a GPU is refused; --device auto and --cudagraphs then mean the CPU."""
    flags = flags_of(small(dataset, tmp_path / "runs"))
    check_refusal(cli([*flags, "--device", "cuda"]), tmp_path / "runs", "--device cuda", "GPU")
    args = dmg_iql.resolve(dmg_iql.Args(cudagraphs=True))
    assert args.device == "cpu" and not args.cudagraphs


def test_bad_flags_by_plain_python(tmp_path: Path) -> None:
    """The same through `python dmg_iql.py`. An unknown id gets the ids it may have meant."""
    cases = (["--env-id", "hopper-medum-v2"], ["hopper-medium-v2"]), (["--lam", "1.5"], ["--lam 1.5", "[0, 1]"])
    cases = *cases, (["--num-seeds", "0"], ["--num-seeds 0", "1 or more"])
    running = [script(*flags, "--run-dir", str(tmp_path / "runs"), cwd=tmp_path) for flags, _ in cases]
    for process, (_, words) in zip(running, cases):
        out, err = process.communicate(timeout=100)
        check_refusal(Finished(process.returncode, out, err), tmp_path / "runs", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("env_id", ["walker-medium-v2", "halfcheetah-medium-expert-v0", "hopper-medium", "xyz", ""])
def test_unknown_id(tmp_path: Path, cli: Launcher, env_id: str) -> None:
    """An unknown id is answered with close ones, or, where none is close, with all."""
    finished = cli(["--env-id", env_id, "--run-dir", str(tmp_path / "runs")])
    offered = (
        dmg_iql.ENV_IDS if env_id in ("xyz", "") else [f"{env_id.split('-')[0].replace('walker', 'walker2d')}-medium"]
    )
    offered = [name.replace("walker2d2d", "walker2d") for name in offered]
    check_refusal(finished, tmp_path / "runs", "--env-id", *offered)


def test_unwritable_run_folder(dataset: Path, tmp_path: Path, cli: Launcher) -> None:
    """Where the run folder cannot be made, because its parent is a file, the job says so and leaves the file alone."""
    (tmp_path / "runs").write_text("a file")
    finished = cli(flags_of(small(dataset, tmp_path / "runs")))
    check_refusal(finished, tmp_path / "runs", str(tmp_path / "runs"), "--run-dir")
    assert (tmp_path / "runs").read_text() == "a file"


def test_name_too_long(dataset: Path, tmp_path: Path, cli: Launcher) -> None:
    """A run folder's name that no file system takes, which --exp-name or many changed flags can make, is one clear
    line too."""
    (tmp_path / "runs").mkdir()
    finished = cli(flags_of(small(dataset, tmp_path / "runs", exp_name="x" * 300)))
    assert finished.status > 0 and "Traceback" not in finished.err
    assert finished.err.strip().splitlines()[-1].startswith("error: ") and "--run-dir" in finished.err


TINY, INF, NAN = 1e-300, math.inf, math.nan
COUNT = ([1, 2], [0, -1])
BOUNDS: dict[str, tuple[list, list]] = {  # values to be accepted, values to be refused
    "lam": ([0, 0.25, 1], [-TINY, 1 + 1e-9, INF, NAN]),
    "gamma": ([0, 0.99, 1 - 1e-9], [-TINY, 1, 2, NAN]),
    "polyak": ([TINY, 0.005, 1], [0, -1, 1 + 1e-9, NAN]),
    "expectile": ([TINY, 0.7, 1 - 1e-9], [0, 1, -1, 2, NAN]),
    "beta": ([TINY, 5, 1e300], [0, -1, INF, NAN]),
    "gumbel_clip": ([TINY, 7, INF], [0, -1e-9, NAN]),
    "alpha": ([TINY, 2, 1e300], [0, -1, INF, NAN]),
    "learning_rate": ([TINY, 3e-4], [0, -1e-9, NAN]),
    "weight_clip": ([TINY, 3, INF], [0, -1e-9, NAN]),
    "nu": ([0, 0.1, 10, INF], [-TINY, -1, -INF, NAN]),
    "seed": ([0, 7, 10**9], [-1]),
    "threads": ([0, 1, 2], [-1]),
    "eval_workers": ([0, 1, 2], [-1]),
    "temperature": ([0, 3, 1e300], [-TINY, INF, NAN]),
    "policy_noise": ([0, 0.2, 1e300], [-TINY, INF, NAN]),
    "noise_clip": ([0, 0.5, 1e300], [-TINY, INF, NAN]),
    "std_offset": ([TINY, 1e-3, 1e300], [0, -TINY, INF, NAN]),
    "device": (["auto", "cpu"], ["tpu", "", "CPU", "cuda:0"]),
} | dict.fromkeys("num_seeds batch_size hidden_dim policy_delay iterations".split(), COUNT)
BOUNDS |= dict.fromkeys("eval_every eval_episodes log_every save_every".split(), COUNT)
BOUNDS = {flag: values for flag, values in BOUNDS.items() if flag in {f.name for f in fields(dmg_iql.Args)}}


def test_every_number_is_checked() -> None:
    """Every flag that is a number, and the device, is in CHECKS, and in the table above."""
    checked = {flag for flags in dmg_iql.CHECKS for flag in flags.split()}
    numbers = {f.name for f in fields(dmg_iql.Args) if any(kind in str(f.type) for kind in ("int", "float"))}
    assert checked == set(BOUNDS) == numbers | {"device"}


@pytest.mark.parametrize("flag", BOUNDS)
def test_bounds(job: Job, flag: str) -> None:
    """Each flag takes the values at its bounds that it should, and no value past them; a refusal names flag and value
    and makes no folder."""
    good, bad = BOUNDS[flag]
    for value in good:
        resolved = getattr(dmg_iql.resolve(job(**{flag: value})), flag)
        assert resolved == value or (flag in ("threads", "eval_workers", "device") and value in (0, "auto"))
    for value in bad:
        message = refused(job(**{flag: value}))
        assert f"--{flag.replace('_', '-')} {value}" in message
        assert not job().run_dir.exists()


EXTREMES = [dict(lam=0.0, gamma=0.0, temperature=0.0), dict(lam=1.0, nu=0.0, policy_noise=0.0, noise_clip=0.0),
            dict(nu=math.inf, weight_clip=math.inf), dict(batch_size=1, hidden_dim=1, policy_delay=1, polyak=1.0),
            dict(policy_delay=100, log_every=1, save_every=100, eval_every=100, eval_episodes=1, iterations=1),
            dict(temperature=1e30), dict(normalize_states=False, antmaze_reward=True),
            dict(normalize_rewards=True)]  # fmt: skip


@pytest.mark.parametrize("changes", EXTREMES, ids=str)
def test_extreme_values_train(job: Job, changes: dict) -> None:
    """The extreme values that the checks allow train too, and to finite numbers."""
    args = job(**{"iterations": 20, **changes})
    assert run(args)[0] == 0
    assert all(torch.isfinite(param).all() for params in load(folder_of(args))["nets"].values() for param in params)


# ---- 8. several seeds ------------------------------------------------------------------------------------------------
def test_a_seed_alone_is_the_same_as_among_others(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, seed k trained alone ends where it ends beside two others: networks and tables to 1e-9, evaluated
    from the same resets; and the seeds differ from one another."""
    torch.set_default_dtype(torch.float64)
    real, resets = dmg_iql.rollout, []

    def watched(*inputs: object) -> np.ndarray:
        resets.append(inputs[-1])
        return real(*inputs)

    monkeypatch.setattr(dmg_iql, "rollout", watched)
    trio = job(num_seeds=3, seed=5, iterations=40, exp_name="trio")
    run(trio)
    together, (first, second) = load(folder_of(trio)), resets
    assert len({*first.flat, *second.flat}) == first.size + second.size, "every episode starts from a reset of its own"
    for k, seed in enumerate((5, 6, 7)):
        resets.clear()
        alone = job(seed=seed, iterations=40, exp_name="alone")
        run(alone)
        assert all(np.array_equal(x, y[k : k + 1]) for x, y in zip(resets, (first, second)))
        for name, params in load(folder_of(alone))["nets"].items():
            for one, many in zip(params, together["nets"][name]):
                copies = len(many) // 3
                torch.testing.assert_close(many[k * copies : (k + 1) * copies], one, rtol=0, atol=1e-9)
                assert (many[:copies] - many[copies : 2 * copies]).abs().max() > 1e-3
        for table, skip in ("eval.csv", ()), ("metrics.csv", ("wall_seconds",)):
            others = [row for row in rows_of(folder_of(trio) / table) if int(row["seed"]) == seed]
            for row, other in zip(rows_of(folder_of(alone) / table), others, strict=True):
                for key in row.keys() - {*skip, "phase"}:
                    assert float(row[key] or 0) == pytest.approx(float(other[key] or 0), rel=1e-6, abs=1e-9), key


def test_evaluating_and_logging_do_not_change_training(job: Job) -> None:
    """However often, and however long, one evaluates, logs or saves: the networks end bit-equal, and the last rows of
    metrics.csv are equal too."""
    ways = dict(eval_every=1000), dict(eval_every=5), dict(eval_episodes=5), dict(log_every=1), dict(save_every=60)
    nets, rows = [], []
    for number, way in enumerate(ways):
        args = job(exp_name=f"way{number}", num_seeds=2, **way)
        run(args)
        nets.append(flat(load(folder_of(args))["nets"]))
        rows.append([{**row, "wall_seconds": ""} for row in rows_of(folder_of(args) / "metrics.csv")[-2:]])
    assert all(net == nets[0] for net in nets) and all(row == rows[0] for row in rows)


# ---- 9. divergence ---------------------------------------------------------------------------------------------------
def poisoned(seed: int, updates: int) -> Callable[..., dict[str, Tensor]]:
    """DMG.update whose critics of one seed become NaN after so many updates."""
    update, calls = dmg_iql.DMG.update, [0]

    def spoilt(self: dmg_iql.DMG, *inputs: object) -> dict[str, Tensor]:
        log = update(self, *inputs)
        calls[0] += 1
        if calls[0] == updates:
            self.critic[0].data[2 * seed : 2 * seed + 2] = math.nan
        return log

    return spoilt


def test_a_diverged_seed_is_marked_and_harms_no_other(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three seeds turns NaN after iteration 25: it is marked from the next row on, and in the summary; its
    policy's returns are NaN; the status is 3, also of --resume; all other numbers are those of a run without it."""
    healthy, ill = job(num_seeds=3, exp_name="healthy"), job(num_seeds=3, exp_name="ill")
    run(healthy)
    with monkeypatch.context() as patch:
        patch.setattr(dmg_iql.DMG, "update", poisoned(1, 25))
        status, out = run(ill)
    assert status == 3 and (folder_of(ill) / "done").read_text() == out.splitlines()[-1]
    assert re.search(r"diverged.*\[1\]", out.splitlines()[-1]) and "diverged" not in (
        (folder_of(healthy) / "done").read_text()
    )
    assert load(folder_of(ill))["diverged"] == [False, True, False]
    marks = {(int(r["iteration"]), int(r["seed"])): int(r["diverged"]) for r in rows_of(folder_of(ill) / "metrics.csv")}
    assert marks == {(t, k): int(k == 1 and t > 25) for t in range(10, 61, 10) for k in range(3)}
    for table in ("metrics.csv", "eval.csv"):
        pairs = zip(rows_of(folder_of(ill) / table), rows_of(folder_of(healthy) / table), strict=True)
        for row, well in pairs:
            if row["seed"] != "1" or int(row["iteration"]) <= 20:
                assert {**row, "wall_seconds": ""} == {**well, "wall_seconds": ""}
            elif table == "eval.csv":
                assert (row["return"], row["length"], row["score"]) == ("nan", "0", "nan")
    nets, others = load(folder_of(ill))["nets"], load(folder_of(healthy))["nets"]
    for name in NETS:
        for param, well in zip(nets[name], others[name]):
            copies = len(param) // 3
            assert torch.equal(param[:copies], well[:copies]) and torch.equal(param[-copies:], well[-copies:])
            if (
                name != "value" or SCRIPT == "dmg_iql"
            ):  # the others' V step has a clamp, through which NaN does not come
                assert param[copies : 2 * copies].isnan().any()
    status, out = run(replace(ill, resume=True))
    assert status == 3 and "diverged" in out


def test_best_score_ignores_evaluations_with_nan(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best score is that of an evaluation in which every seed had one, not NaN; the last is what it is."""
    monkeypatch.setattr(dmg_iql.DMG, "update", poisoned(0, 25))
    status, out = run(job())
    found = re.search(r"last score (\S+).* best score (\S+)( ± \S+)? \(iteration 20", out.splitlines()[-1])
    assert status == 3 and found and found[1] == "nan" and math.isfinite(float(found[2]))


def fixed_log(q: list[float], v: float = 0.0) -> Callable[..., dict[str, Tensor]]:
    """DMG.update that trains nothing and reports these q, over and over, and this v."""

    def update(self: dmg_iql.DMG, batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        seeds, size = batch.shape[:2]
        values = torch.tensor(q).repeat(2 * size // len(q)).expand(seeds, -1).reshape(seeds, 2, size)
        zero = torch.zeros(seeds)
        return {"value_loss": zero, "qf_loss": zero, "q": values, "v": torch.full((seeds, size), v)}

    return update


CASES = [([400.0], 0.0, False), ([400.01], 0.0, True), ([-400.0], 0.0, False), ([-400.01], 0.0, True),
         ([700.0, -99.0], 0.0, False), ([700.0, -101.0], 0.0, True), ([INF], 0.0, True), ([0.0, NAN], 0.0, True),
         ([1.0], NAN, True), ([1.0], -INF, True), ([1.0], 1e30, False)]  # fmt: skip


@pytest.mark.parametrize("q, v, diverged", CASES)
def test_bound_of_divergence(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, q: list[float], v: float, diverged: bool
) -> None:
    """A seed is marked if its mean |Q| passes 100 max|r| / (1 - γ), here 400, or a value is not finite; not at 400."""
    rewards = np.full(2000, 0.5)
    rewards[3] = -2.0
    data = write_dataset(tmp_path / "data.hdf5", rewards=rewards)
    monkeypatch.setattr(dmg_iql.DMG, "update", fixed_log(q, v))
    args = job(dataset_path=data, gamma=0.5, iterations=1)
    assert run(args)[0] == (3 if diverged else 0)
    assert [row["diverged"] for row in rows_of(folder_of(args) / "metrics.csv")] == [str(int(diverged))]


def test_no_bound_without_rewards(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where all rewards are 0, only values that are not finite count as diverged."""
    data = write_dataset(tmp_path / "data.hdf5", rewards=np.zeros(2000))
    for q, status in (1e30, 0), (NAN, 3):
        monkeypatch.setattr(dmg_iql.DMG, "update", fixed_log([q]))
        assert run(job(dataset_path=data, iterations=1, exp_name=str(q)))[0] == status


def test_a_real_divergence(job: Job) -> None:
    """A learning rate of 1000 drives Q past the bound: status 3, and the job still ends."""
    args = job(learning_rate=1e3, num_seeds=2, log_every=1)
    assert run(args)[0] == 3
    assert "[0, 1]" in (folder_of(args) / "done").read_text()


def test_diverged_once_is_diverged_for_good(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed whose Q comes back keeps its mark, also over a failure and a resumption."""
    monkeypatch.setattr(dmg_iql.DMG, "update", fixed_log([1e9]))
    crash(job(), 10)
    monkeypatch.setattr(dmg_iql.DMG, "update", fixed_log([1.0]))
    crash(job(resume=True), 15)
    assert run(job(resume=True))[0] == 3
    assert {row["diverged"] for row in rows_of(folder_of(job()) / "metrics.csv")} == {"1"}


# ---- 10. evaluation --------------------------------------------------------------------------------------------------
def random_actor(seeds: int, sizes: tuple[int, ...], scale: float = 1.0) -> list[np.ndarray]:
    """Weights and biases of policies, laid out as the agent's are: [seeds, out, in] and [seeds, out, 1] by turns."""
    rng, params = np.random.default_rng(3), []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        params += [rng.normal(size=(seeds, fan_out, columns)) * scale / math.sqrt(fan_in) for columns in (fan_in, 1)]
    return params


def plain_policy(actor: list[np.ndarray], k: int, s: np.ndarray) -> np.ndarray:
    """Policy k at one state, in numpy."""
    for layer in (0, 2, 4):
        s = actor[layer][k] @ s + actor[layer + 1][k][:, 0]
        s = np.tanh(s) if layer == 4 else np.maximum(s, 0)
    return s


@pytest.fixture
def fresh_simulators() -> Iterator[None]:
    """No environment is kept from another test, nor for one."""
    dmg_iql.simulators.cache_clear()
    yield
    dmg_iql.simulators.cache_clear()


def test_rollout_equals_a_plain_loop(fresh_simulators: None) -> None:
    """Returns and lengths are those of a loop over gymnasium.make("Hopper-v4"), of the same policies from the same
    resets, with states normalised; twice, since the simulators are used again."""
    actor, mean, scale = random_actor(2, (11, 16, 16, 3)), np.linspace(-0.2, 0.5, 11), np.linspace(0.5, 2.0, 11)
    resets = np.array([[3, 5, 2**63 + 11], [8, 2**64 - 1, 3]], dtype=np.uint64)
    first = dmg_iql.rollout(ENV_ID, actor, mean, scale, resets)
    again = dmg_iql.rollout(ENV_ID, actor, mean, scale, resets)
    np.testing.assert_array_equal(first, again)
    env = gym.make("Hopper-v4")
    for k, e in np.ndindex(2, 3):
        s, _ = env.reset(seed=int(resets[k, e]))
        total, length, ended = 0.0, 0, False
        while not ended:
            s, reward, terminated, truncated, _ = env.step(plain_policy(actor, k, (s - mean) / scale))
            total, length, ended = total + reward, length + 1, terminated or truncated
        assert first[1, k, e] == length
        assert first[0, k, e] == pytest.approx(total, rel=1e-6)
    assert len(set(first[0].flat)) == 6, "six different episodes"


def test_rollout_plays_to_the_time_limit(fresh_simulators: None) -> None:
    """An episode that never terminates has 1000 steps; its return is a plain loop's."""
    actor = [param * 0 for param in random_actor(1, (17, 8, 8, 6))]
    actor[5] += 0.1
    played = dmg_iql.rollout("halfcheetah-medium-v2", actor, np.zeros(17), np.ones(17), np.array([[4]], np.uint64))
    env = gym.make("HalfCheetah-v4")
    env.reset(seed=4)
    action = torch.tensor([0.1], dtype=torch.float64).tanh().numpy().repeat(6)
    assert played[1].item() == 1000
    assert played[0].item() == pytest.approx(sum(env.step(action)[1] for _ in range(1000)), rel=1e-9)


class Counting:
    """An environment whose episode from reset seed n has n steps of reward n. Odd n end by time limit, even ones by
    termination. It must not be stepped on past the end, nor without a reset."""

    observation_space = gym.spaces.Box(-1, 1, (11,))
    action_space = gym.spaces.Box(-1, 1, (3,))

    def __init__(self) -> None:
        self.left = self.number = self.resets = self.steps = 0

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.left = self.number = seed
        self.resets += 1
        return np.full(11, seed / 10), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.left > 0, "an ended episode was stepped on"
        assert action.shape == (3,) and self.action_space.contains(action.astype(np.float32))
        self.left -= 1
        self.steps += 1
        ended, even = self.left == 0, self.number % 2 == 0
        return np.full(11, self.left / 10), float(self.number), ended and even, ended and not even, {}


def test_ended_episodes_are_not_stepped_on(fresh_simulators: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of different lengths, side by side: each is reset once, stepped on until its end, and never after."""
    made: list[Counting] = []
    monkeypatch.setattr(dmg_iql, "make_env", lambda env_id: made.append(Counting()) or made[-1])
    resets = np.array([[1, 7, 2], [4, 1, 9]], dtype=np.uint64)
    played = dmg_iql.rollout(ENV_ID, random_actor(2, (11, 4, 4, 3)), np.zeros(11), np.ones(11), resets)
    np.testing.assert_array_equal(played, [resets.astype(float) ** 2, resets])
    assert sum(env.steps for env in made) == resets.sum() and sum(env.resets for env in made) == resets.size


def test_nan_policy(fresh_simulators: None) -> None:
    """A policy that is NaN has NaN returns and plays no step; the one beside it is not disturbed."""
    actor = random_actor(2, (11, 16, 16, 3))
    resets = np.array([[3, 5], [8, 9]], dtype=np.uint64)
    well = dmg_iql.rollout(ENV_ID, actor, np.zeros(11), np.ones(11), resets)
    actor[2][0] = math.nan
    ill = dmg_iql.rollout(ENV_ID, actor, np.zeros(11), np.ones(11), resets)
    assert np.isnan(ill[0, 0]).all() and (ill[1, 0] == 0).all()
    np.testing.assert_array_equal(ill[:, 1], well[:, 1])


def test_worker_processes_play_the_same_episodes(job: Job) -> None:
    """Evaluation in two processes gives the rows of evaluation in one."""
    run(job(exp_name="one", num_seeds=2, iterations=20, eval_episodes=3))
    run(job(exp_name="two", num_seeds=2, iterations=20, eval_episodes=3, eval_workers=2))
    one, two = (rows_of(folder_of(job(exp_name=name, num_seeds=2)) / "eval.csv") for name in ("one", "two"))
    assert len(one) == 6
    for row, other in zip(one, two, strict=True):
        assert [row[key] for key in ("iteration", "seed", "episode", "length")] == [
            other[key] for key in ("iteration", "seed", "episode", "length")
        ]
        assert float(row["return"]) == pytest.approx(float(other["return"]), rel=1e-4)


# ---- 11. CUDA graphs -------------------------------------------------------------------------------------------------
def state_of(agent: dmg_iql.DMG) -> list[Tensor]:
    """Every tensor that an update may change."""
    nets = [param.data for name in NETS for param in getattr(agent, name)]
    return nets + [tensor for optimiser in agent.optimisers.values() for tensor in optimiser.state]


class FakeGraph:
    """A CUDA graph on the CPU. What is run inside its capture computes nothing: all state is put back, and the results
    are NaN. A replay runs it again on the same input tensors, and writes into the same result tensors."""

    capturing: "FakeGraph | None" = None
    replays = 0
    eager = staticmethod(dmg_iql.DMG.update)

    @staticmethod
    @contextlib.contextmanager
    def capture(graph: "FakeGraph", *_: object, **__: object) -> Iterator[None]:
        FakeGraph.capturing = graph
        yield
        FakeGraph.capturing = None

    @staticmethod
    def update(agent: dmg_iql.DMG, *inputs: object) -> dict[str, Tensor]:
        if not FakeGraph.capturing:
            return FakeGraph.eager(agent, *inputs)
        before = [tensor.clone() for tensor in state_of(agent)]
        log = FakeGraph.eager(agent, *inputs)
        torch._foreach_copy_(state_of(agent), before)
        for value in log.values():
            value.fill_(math.nan)
        FakeGraph.capturing.call = agent, inputs, dict(log)
        return log

    def replay(self) -> None:
        agent, inputs, log = self.call
        for name, value in FakeGraph.eager(agent, *inputs).items():
            log[name].copy_(value)
        FakeGraph.replays += 1


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs that work without a GPU, for agents of this test."""
    monkeypatch.setattr(dmg_iql.DMG, "update", FakeGraph.update)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeGraph.capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(FakeGraph, "replays", 0)


@pytest.mark.parametrize("policy_delay", [1, 2, 3])
def test_captured_update_equals_eager(job: Job, fake_graphs: None, policy_delay: int) -> None:
    """100 updates through `captured` give the results of 100 eager ones, one by one, and bit-equal networks and
    optimisers: nothing is left out, done twice, or done on old inputs."""
    args = dmg_iql.resolve(job(num_seeds=2, policy_delay=policy_delay))
    eager, graphed = dmg_iql.DMG(args, 11, 3), dmg_iql.DMG(args, 11, 3)
    update, generator = dmg_iql.captured(graphed.update), torch.Generator().manual_seed(0)
    for t in range(100):
        batch = torch.randn(2, 32, 11 + 3 + 1 + 1 + 11, generator=generator)
        noise, actor_step = torch.randn(2, 32, 3, generator=generator), (t + 1) % policy_delay == 0
        for agent in (eager, graphed):
            agent.set_actor_rate(t // policy_delay)
        wanted, log = FakeGraph.eager(eager, batch, noise, actor_step), update(batch, noise, actor_step)
        assert log.keys() == wanted.keys() and all(torch.equal(log[name], wanted[name]) for name in wanted)
    assert FakeGraph.replays >= 80
    assert all(torch.equal(x, y) for x, y in zip(state_of(eager), state_of(graphed), strict=True))


@pytest.mark.parametrize("policy_delay", [2, 15])
def test_captured_job_equals_eager(
    job: Job, fake_graphs: None, monkeypatch: pytest.MonkeyPatch, policy_delay: int
) -> None:
    """A whole job through `captured`, failed and resumed once, ends as an eager one does, tables included; also where
    the first actor step comes late."""
    settings = dict(num_seeds=2, iterations=100, policy_delay=policy_delay, save_every=35)
    run(job(exp_name="eager", **settings))
    real = dmg_iql.resolve

    def with_graphs(args: dmg_iql.Args) -> dmg_iql.Args:
        args = real(args)
        args.cudagraphs = True
        return args

    monkeypatch.setattr(dmg_iql, "resolve", with_graphs)
    run(job(**settings))
    assert FakeGraph.replays >= 60
    assert_same(folder_of(job(**settings)), folder_of(job(exp_name="eager", **settings)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy_delay", [2, 15])
def test_captured_job_equals_eager_on_a_gpu(job: Job, policy_delay: int) -> None:
    """On a GPU, 100 iterations through CUDA graphs and 100 eager ones end within 1e-4 of each other."""
    settings = dict(device="cuda", num_seeds=2, iterations=100, policy_delay=policy_delay, eval_workers=1)
    nets = []
    for graphs in (False, True):
        args = job(exp_name=f"graphs{graphs}", cudagraphs=graphs, **settings)
        assert run(args)[0] == 0
        nets.append(torch.load(folder_of(args) / "checkpoint.pt", weights_only=True, map_location="cpu")["nets"])
    for name in NETS:
        for x, y in zip(nets[0][name], nets[1][name]):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


# ---- 12. importing ---------------------------------------------------------------------------------------------------
def test_import_has_no_side_effects(tmp_path: Path) -> None:
    """Importing the script reads no flags, prints nothing and writes nothing to the working or home folder."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir(), home.mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", f"import {SCRIPT}", "--nonsense", "--lam", "7"]
    done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(work.iterdir()) == list(home.iterdir()) == []


# ---- 13. memory ------------------------------------------------------------------------------------------------------
FAULTS = """
import resource, torch
import {script} as dmg_iql
torch.set_num_threads(1)
dmg_iql.keep_memory()
agent = dmg_iql.DMG(dmg_iql.resolve(dmg_iql.Args(env_id="hopper-medium-local", num_seeds=5)), 11, 3)
batch, noise = torch.zeros(5, 256, 27), torch.zeros(5, 256, 3)
for i in range(30):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    agent.update(batch, noise, actor_step=i % 2 == 1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory speaks to glibc's malloc")
def test_freed_memory_is_kept() -> None:
    """The kernel's count of pages that an update of five seeds asks it for: some thousands by default."""
    code = FAULTS.format(script=SCRIPT)
    words, root = [sys.executable, "-c", code], Path(__file__).parent.parent
    done = subprocess.run(words, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert int(done.stdout) < 100, done.stderr
