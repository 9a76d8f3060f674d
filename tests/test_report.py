"""tools/report.py and tools/runs.py on run folders made up here, whose numbers are known."""

import csv
import hashlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import matplotlib.colors
import numpy as np
import pytest
import report
import reproduce
import runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduce import EXPERIMENTS, Job, Setting
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

HOPPER, WALKER, MAZE = "hopper-medium-local", "walker2d-medium-local", "antmaze-umaze-local"
SHA256 = "d" * 64  # what these tests take for that of every D4RL file but one, which is not known
D4RL_SHA256 = runs.d4rl_sha256
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def no_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's datasets, nor what an earlier test had in a file."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "no-datasets"))
    unknown = "antmaze-large-diverse-v2"
    monkeypatch.setattr(runs, "d4rl_sha256", lambda env_id: None if env_id == unknown else SHA256)
    runs.read_dataset.cache_clear()


def write_events(folder: Path, number: int, logs: list, begin: float = 0, after: int = 0) -> None:
    """The events that a start of a script leaves: its begin in seconds, what it resumes `after`, and its
    logs, (seconds since the begin, iteration, {tag: value})."""
    folder.mkdir(exist_ok=True)
    events = [Event(wall_time=begin, file_version="brain.Event:2")]
    log = SessionLog(status=SessionLog.START)
    events.append(Event(wall_time=begin, step=after + 1, session_log=log))
    for seconds, iteration, values in logs:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=values[tag]) for tag in values])
        events.append(Event(wall_time=begin + seconds, step=iteration, summary=summary))
    with (folder / f"events.out.tfevents.{number}").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def make_run(
    parent: Path,
    env_id: str,
    setting: Setting,
    scores: list,
    first: int = 0,
    complete: bool = True,
    log: dict[int, dict[str, float]] | None = None,
    **config: object,
) -> Path:
    """A run folder with scores [evaluations, seeds], each of two episodes, one below and one above by 1;
    evaluations at iterations 1000, 2000, ..., of a fine-tuned run at 0, 1000, ...; it takes an hour, and
    seed k's mean Q is 100 + k. `log`: other values of its last log, by seed and tag."""
    scores = np.asarray(scores, float)
    seeds = range(first, first + scores.shape[1])
    at = 1000 * (np.arange(len(scores)) + (setting.script != "dmg_finetune"))
    folder = parent / f"{env_id}__{setting.name}__s{seeds[0]}-{seeds[-1]}"
    folder.mkdir(parents=True)
    length = int(at[-1]) + (0 if complete else 1000)
    flags = setting.flags | {"iterations": length, "eval_episodes": 2}
    about = dict(exp_name=setting.name, seed=first, num_seeds=len(seeds), rows=1_000_000, torch="2")
    about |= dict(
        dataset_path="/nowhere", dataset_sha256=None if "scratch" in flags else SHA256, threads=1
    )
    about |= dict(checkpoint=f"gone/{env_id}__{setting.offline.name}__s0-1") if setting.offline else {}
    settings = Job(env_id, setting, flags).settings | about | config
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [runs.HEADER]
    for (row, k), score in np.ndenumerate(scores):
        lines += [f"{at[row]},{seeds[k]},{e},0.0,1,{score + 2 * e - 1}" for e in (0, 1)]
    (folder / "eval.csv").write_text("\n".join([*lines, ""]))
    for seed in seeds:
        values = {"losses/value_loss": 1.0, "losses/q_values": 100.0 + seed, "charts/SPS": 50.0}
        write_events(folder / f"s{seed}", 0, [(3600, at[-1], values | (log or {}).get(seed, {}))])
    return folder


def make_data(path: Path, **columns: list) -> dict[str, str]:
    """A dataset file with these columns; returns what config.json says of it."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = np.array(values, np.float32)
    return {"dataset_path": str(path), "dataset_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read(folder: Path, env_id: str, setting: Setting, seeds: int) -> runs.Cell:
    """The cell of a setting, whose runs may have any length."""
    name = next(name for name in EXPERIMENTS if setting in EXPERIMENTS[name].settings)
    return report.read_cells(name, [env_id], seeds, folder)[env_id][setting.name]


def read_all(folder: Path, name: str, *env_ids: str, seeds: int = 2) -> report.Cells:
    """All cells of a table or figure, whose runs may have any length."""
    return report.read_cells(name, list(env_ids), seeds, folder)


def rows_of(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """The table of a report: {first column: {column: text}}."""
    lines = (folder / f"{name}.md").read_text().splitlines()
    table = [[text.strip() for text in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(table[0], row)) for row in table[2:]}


@pytest.fixture
def show(capsys: pytest.CaptureFixture) -> Callable:
    """A function that calls `report.py FOLDER...`: what it prints, its errors, its exit status."""

    def call(*folders: Path, **flags: object) -> tuple[str, str, int]:
        """The call."""
        status = report.main(report.Args(runs=folders, **flags))
        return *capsys.readouterr(), status

    return call


# ---- Numbers ------------------------------------------------------------------------------------------
def test_numbers(tmp_path: Path, show: Callable) -> None:
    """Seeds 10, 20, 40 at the end: mean 23.3, sample standard deviation 15.3; Q, hours of the events."""
    run = runs.read_run(make_run(tmp_path, HOPPER, reproduce.DMG, [[30, 20, 40], [10, 20, 40]]))
    np.testing.assert_allclose(run.curve, [[30, 20, 40], [10, 20, 40]])
    np.testing.assert_array_equal(run.q, [100, 101, 102])
    assert run.iterations.tolist() == [1000, 2000] and run.hours == [1] and run.complete
    out, errors, status = show(tmp_path)
    assert f"| {HOPPER} | DMG | 23.3 ± 15.3 | - | 1,000,000 | 3 × 2,000 |" in out
    assert not errors and status == 0


def test_seeds_of_several_runs_are_one_cell(tmp_path: Path) -> None:
    """s0-0 and s1-2 are three seeds. Four are wanted: it says so. One run of all three goes first."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[10]])
    make_run(tmp_path, HOPPER, reproduce.DMG, [[20, 40]], first=1, device="cuda", torch="3", threads=8)
    assert report.score(read(tmp_path, HOPPER, reproduce.DMG, 3)) == "23.3 ± 15.3"
    assert report.score(read(tmp_path, HOPPER, reproduce.DMG, 4)) == "23.3 ± 15.3 (3 of 4 seeds)"
    make_run(tmp_path, HOPPER, reproduce.DMG, [[1, 1, 1]])
    assert report.score(read(tmp_path, HOPPER, reproduce.DMG, 3)) == "1.0 ± 0.0"


def test_no_seed_counts_twice(tmp_path: Path) -> None:
    """Of runs that have a seed in common the one of more seeds counts, unless it has too many."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[90]])
    make_run(tmp_path, HOPPER, reproduce.DMG, [[20, 30]], first=1)
    make_run(tmp_path, HOPPER, reproduce.DMG, [[10, 20, 30, 40]])
    assert read(tmp_path, HOPPER, reproduce.DMG, 4).run.last.tolist() == [10, 20, 30, 40]
    assert read(tmp_path, HOPPER, reproduce.DMG, 3).run.last.tolist() == [90, 20, 30]
    assert report.score(read(tmp_path, HOPPER, reproduce.DMG, 2)) == "90.0 (1 of 2 seeds)"


def test_runs_that_differ_in_their_seeds_only_are_one_line(tmp_path: Path, show: Callable) -> None:
    """Seeds 10 and 30, trained one by one: 20.0 ± 14.1, on whatever machine. A seed that is there
    already, other data, another setting or name, and an unfinished run have a line of their own."""
    first = make_run(tmp_path / "a", HOPPER, reproduce.DMG, [[50], [10]])
    other = make_run(tmp_path / "b", HOPPER, reproduce.DMG, [[40], [30]], 1, torch="3", threads=2)
    out, _, _ = show(first, other)
    assert "| 20.0 ± 14.1 |" in out and out.count(f"| {HOPPER} |") == 1
    changes = ({}, {"dataset_sha256": "e"}, {"nu": 7.0}, {"exp_name": "other"}, {"complete": False})
    for number, change in enumerate(changes):
        other = make_run(
            tmp_path / str(number), HOPPER, reproduce.DMG, [[40], [30]], bool(change), **change
        )
        assert show(first, other)[0].count(f"| {HOPPER} |") == 2, change


def test_iqm() -> None:
    """The mean of the middle half: of 0, ..., 7 it is (2 + 3 + 4 + 5) / 4 = 3.5, of whatever datasets.
    Its interval: the bootstrap written out; a dataset is only ever resampled within itself."""
    low_dataset, high_dataset = np.array([0.0, 1, 2, 3]), np.array([4.0, 5, 6, 7])
    point, low, high = runs.iqm([low_dataset, high_dataset])
    assert point == 3.5
    rng, means = np.random.default_rng(1), []
    for _ in range(20_000):
        scores = sorted([*rng.choice(low_dataset, 4), *rng.choice(high_dataset, 4)])
        means.append(sum(scores[2:6]) / 4)
    wanted = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([low, high], wanted, atol=0.26)  # the means are multiples of a quarter
    assert np.isnan(runs.iqm([np.array([1.0]), high_dataset])[1])
    assert runs.iqm([np.ones(4), np.array([1.0, 1, 1, 1e6])])[0] == 1  # an outlier leaves it where it is


def test_a_resumed_run(tmp_path: Path) -> None:
    """Starts of 30 and 20 seconds: 50, without the hour between them. What was logged after the
    checkpoint at 2000 was made again, and does not count: not the NaN, nor the Q of 999."""
    log = {"losses/value_loss": 1.0, "losses/q_values": 5.0}
    lost = {"losses/value_loss": NAN, "losses/q_values": 999.0}
    folder = make_run(tmp_path, HOPPER, reproduce.DMG, [[1]])
    write_events(folder / "s0", 0, [(10, 1000, log), (20, 2000, log), (30, 3000, lost)])
    write_events(folder / "s0", 1, [(20, 2500, log | {"losses/q_values": 6.0})], begin=3600, after=2000)
    logged, hours = runs.read_events(folder / "s0")
    assert logged["losses/q_values"] == {1000: 5, 2000: 5, 2500: 6} and hours == pytest.approx(50 / 3600)
    run = runs.read_run(folder)
    assert run.q == [6] and not run.diverged.any()


def test_a_run_of_the_script(job: Callable, iql: object, show: Callable) -> None:
    """The files that dmg_iql.py leaves are read: its scores, its dataset, its last mean Q."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = job(iql, num_seeds=2)
    iql.train(args)
    (folder,) = args.run_dir.iterdir()
    with (folder / "eval.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["iteration"] == "40"]
    run = runs.read_run(folder)
    for k in (0, 1):
        scores = [float(row["score"]) for row in rows if row["seed"] == str(k)]
        assert run.last[k] == pytest.approx(np.mean(scores))
        events = EventAccumulator(str(folder / f"s{k}")).Reload()
        assert run.q[k] == pytest.approx(events.Scalars("losses/q_values")[-1].value)
    assert 0 < run.hours < 0.1 and run.complete and not run.diverged.any()
    out, errors, status = show(folder)
    assert f"| {HOPPER} | job | {report.show(run.last)} |" in out and "2 × 40 |" in out and status == 0
    assert f"{HOPPER}: {run.config['rows']:,} rows, where local datasets have 1,000,000" in out


# ---- Verdicts -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("log", "diverged"),
    [
        ({}, False),
        ({"losses/value_loss": NAN}, True),
        ({"losses/qf_loss": INF}, True),
        ({"losses/v_values": -INF}, True),
        ({"losses/actor_loss": NAN}, True),
        ({"eval/normalized_score": NAN}, True),
        ({"charts/SPS": INF}, False),
        ({"losses/q_values": 29_999.0}, False),
        ({"losses/q_values": -30_001.0}, True),  # 100 max|r| / (1 - γ) = 100 · 3 / 0.01
    ],
)
def test_verdict(tmp_path: Path, show: Callable, log: dict[str, float], diverged: bool) -> None:
    """A logged loss or value that is not finite, or a mean |Q| above the bound; marked in the table."""
    data = make_data(tmp_path / "data.hdf5", rewards=[1, -3, 2], terminals=[0, 0, 1], timeouts=[0, 0, 0])
    folder = make_run(tmp_path / "runs", HOPPER, reproduce.DMG, [[10, 20]], log={1: log}, **data)
    assert runs.read_run(folder).diverged.tolist() == [False, diverged]
    assert ("(× 1 of 2 seeds diverged)" in show(folder)[0]) == diverged


def test_bound_on_q(tmp_path: Path, show: Callable) -> None:
    """It needs the run's dataset: not one that has changed since, which is said; the same one where
    datasets lie will do. AntMaze's rewards are at most 1 without any file."""
    columns = dict(rewards=[1, -3, 2], terminals=[0, 0, 1], timeouts=[0, 0, 0])
    data, log = make_data(tmp_path / "data.hdf5", **columns), {0: {"losses/q_values": 40_000.0}}
    folder = make_run(tmp_path / "a", HOPPER, reproduce.DMG, [[10]], log=log, **data)
    make_data(tmp_path / "data.hdf5", **columns, more=[1])
    digest = data["dataset_sha256"][:12]
    gone = f"{HOPPER}: no file with SHA-256 {digest} is here; its mean and the bound on Q are left out"
    out, _, status = show(folder)
    assert gone in out and "diverged)" not in out and status == 0
    (tmp_path / "no-datasets").mkdir()
    make_data(tmp_path / "no-datasets" / "hopper_medium-local.hdf5", **columns)
    runs.read_dataset.cache_clear()
    out, _, _ = show(folder)
    assert "× 1 of 1 seeds diverged" in out and gone not in out
    for q, diverged in ((9_999.0, False), (10_001.0, True)):
        log = {0: {"losses/q_values": q}}
        folder = make_run(tmp_path / str(q), MAZE, reproduce.DMG, [[10]], log=log)
        assert runs.read_run(folder).diverged == [diverged]
        assert (
            f"{MAZE}: no file with SHA-256 dddddddddddd is here; its mean is left out\n"
            in show(folder)[0]
        )


def test_one_seed_without_a_score(tmp_path: Path) -> None:
    """The others' mean is shown, with a mark; a sum and an IQM leave the dataset out, and say so."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[10, NAN, 30]])
    make_run(tmp_path, WALKER, reproduce.DMG, [[NAN, NAN, NAN]])
    make_run(
        tmp_path, "hopper-expert-local", reproduce.DMG, [[10, 20, 30]], log={2: {"losses/qf_loss": NAN}}
    )
    ids = (HOPPER, WALKER, "hopper-expert-local")
    cells = [read(tmp_path, env_id, reproduce.DMG, 3) for env_id in ids]
    assert report.score(cells[0]) == "20.0 ± 14.1 (× 1 of 3 seeds diverged, 1 without a score)"
    assert report.score(cells[1]) == "none (× 3 of 3 seeds diverged, 3 without a score)"
    assert report.score(cells[2]) == "20.0 ± 10.0 (× 1 of 3 seeds diverged)"
    assert report.total(cells) == "20.0 (2 without a score, 1 marked)"
    assert report.iqm_text(cells) == "20.0 [10.0, 30.0] (1 of 3 datasets)"
    assert report.total(cells[:2]) == "none (2 without a score)" and report.iqm_text(cells[:2]) == "none"


def test_a_run_without_events(tmp_path: Path, show: Callable) -> None:
    """Its scores are shown; that divergence shows in them only is said."""
    folder = make_run(tmp_path, HOPPER, reproduce.DMG, [[10]])
    (folder / "s0" / "events.out.tfevents.0").unlink()
    out, _, status = show(folder)
    assert f"{folder}: no TensorBoard events" in out and "| 10.0 |" in out and status == 0


# ---- Datasets -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("env_id", "columns", "wanted"),
    [
        # whole episodes have returns 3 and 7; the one that is cut, of 100, does not count
        (
            HOPPER,
            dict(rewards=[1, 2, 3, 4, 100], terminals=[0, 1, 0, 0, 0], timeouts=[0, 0, 0, 1, 0]),
            100 * (5 + 20.272305) / (3234.3 + 20.272305),
        ),
        # AntMaze: the share of trajectories that see the goal, however often: one of two
        (
            MAZE,
            dict(
                rewards=[0, 1, 1, 0, 0, 0, 1],
                terminals=[0, 1, 1, 0, 0, 0, 1],
                timeouts=[0, 0, 0, 1, 0, 1, 0],
            ),
            50,
        ),
        # own data: the return itself; transitions in any order have no episodes
        ("Pendulum-v1", dict(rewards=[[1], [2]], terminals=[[0], [0]], timeouts=[[0], [1]]), 3),
        ("Pendulum-v1", dict(rewards=[1, 2], terminals=[0, 1], next_observations=[0, 0]), NAN),
    ],
)
def test_mean_of_a_dataset(tmp_path: Path, env_id: str, columns: dict, wanted: float) -> None:
    """Mean score of a dataset's whole episodes."""
    data = make_data(tmp_path / "data.hdf5", **columns)
    mean, largest = runs.read_dataset(env_id, data["dataset_path"], data["dataset_sha256"])
    assert mean == pytest.approx(wanted, nan_ok=True) and largest == np.abs(columns["rewards"]).max()


def test_the_mean_is_of_the_runs_file(tmp_path: Path, show: Callable) -> None:
    """A file that was made anew since is not the run's: its mean is not shown, nor drawn."""
    columns = dict(rewards=[1, 2], terminals=[0, 1], timeouts=[0, 0])
    data = make_data(tmp_path / "data.hdf5", **columns)
    folder = make_run(tmp_path / "runs", HOPPER, reproduce.DMG, [[10], [20]], **data)
    assert "| 10.0 | 0.7 |" in show(folder)[0].replace("20.0", "10.0")
    (axis,) = report.draw([runs.read_run(folder)]).axes
    (line,) = dashed(axis)
    assert line.get_ydata()[0] == pytest.approx(100 * (3 + 20.272305) / (3234.3 + 20.272305))
    make_data(tmp_path / "data.hdf5", **columns, more=[1])
    runs.read_dataset.cache_clear()
    assert "| 20.0 | - |" in show(folder)[0]
    (axis,) = report.draw([runs.read_run(folder)]).axes
    assert not dashed(axis)


def test_d4rl_local_and_own_are_never_in_one_table(tmp_path: Path, show: Callable) -> None:
    """Three tables. A file that is not D4RL's makes a -v2 run its own; where D4RL's is not known, that
    is said; training from scratch has no file."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[1, 2]], rows=20_000)
    make_run(tmp_path, "hopper-medium-v2", reproduce.DMG, [[3, 4]])
    make_run(tmp_path, "walker2d-medium-v2", reproduce.DMG, [[5, 6]], dataset_sha256="e" * 64)
    make_run(tmp_path, "antmaze-large-diverse-v2", reproduce.DMG, [[7, 8]])
    make_run(tmp_path, "Pendulum-v1", reproduce.DMG, [[9, 10]])
    make_run(tmp_path, "antmaze-umaze-v2", reproduce.FINETUNED[0], [[0, 0], [1, 2]])
    out, _, status = show(tmp_path, figure=tmp_path / "curves.png")
    tables = out.split("Score:")[0].strip().split("**")[1:]
    lines = [part.strip().splitlines()[2:] for part in tables[1::2]]
    ids = [[line.split("|")[1].strip() for line in part] for part in lines]
    assert tables[::2] == ["D4RL", "Data collected here, not D4RL's", "Other tasks and files"]
    assert ids == [
        ["antmaze-large-diverse-v2", "antmaze-umaze-v2", "hopper-medium-v2"],
        [HOPPER],
        ["Pendulum-v1", "walker2d-medium-v2"],
    ]
    assert f"- {HOPPER}: 20,000 rows, where local datasets have 1,000,000" in out and status == 0
    assert "- walker2d-medium-v2: the file with SHA-256 eeeeeeeeeeee is not D4RL's" in out
    assert (
        "- antmaze-large-diverse-v2: not checked" in out and "- hopper-medium-v2: not checked" not in out
    )


def test_another_file_is_never_beside_the_papers_numbers(tmp_path: Path) -> None:
    """Under a -v2 id: its cell says why it has no number."""
    make_run(tmp_path, "hopper-medium-v2", reproduce.DMG, [[30, 50]], dataset_sha256="e" * 64)
    report.write("table2", "d4rl", ["hopper-medium-v2"], 2, tmp_path, tmp_path / "out")
    row = rows_of(tmp_path / "out", "table2-d4rl")["hopper-medium-v2"]
    assert row["DMG (ours)"] == "not D4RL's file" and row["DMG (paper)"] == "100.6 ± 1.9"


def test_runs_of_different_files_are_named(tmp_path: Path, show: Callable) -> None:
    """Two settings on one id, each with a file of its own."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[1]])
    make_run(tmp_path, HOPPER, reproduce.ABLATION, [[1]], dataset_sha256="e" * 64)
    assert f"- {HOPPER}: the runs have different files (dddddddddddd, eeeeeeeeeeee)" in show(tmp_path)[0]


@pytest.mark.parametrize(("rows", "named"), [(1_000_000, False), (995_000, False), (989_000, True)])
def test_size_of_local_data(tmp_path: Path, show: Callable, rows: int, named: bool) -> None:
    """Time limits take some rows of 1,000,000 away, never one in a hundred."""
    folder = make_run(tmp_path, HOPPER, reproduce.DMG, [[1]], rows=rows)
    out, _, _ = show(folder)
    assert f"| {rows:,} |" in out and ("where local datasets have" in out) == named


def test_sha256_of_d4rl() -> None:
    """tools/data/d4rl_files.json knows D4RL's files by the names that they have here: all but one."""
    found = {env_id: D4RL_SHA256(env_id) for env_id in report.common.D4RL_IDS}
    assert found["hopper-medium-v2"].startswith("5bdf1bc4a713")
    assert found["antmaze-umaze-v2"].startswith("5ef15257771c")
    assert [env_id for env_id in found if not found[env_id]] == ["antmaze-medium-play-v2"]


# ---- Folders that are no runs, or not the wanted ones -------------------------------------------------
ODD = {
    "a list": ("config.json", "[]", "config.json does not hold a run's settings"),
    "null": ("config.json", "null", "config.json does not hold a run's settings"),
    "a number": ("config.json", "3", "config.json does not hold a run's settings"),
    "cut": ("config.json", '{"env_id": "hop', "config.json is damaged: Unterminated string"),
    "no id": ("config.json", '{"seed": 0}', "config.json says env_id = null"),
    "bytes": ("config.json", b"\xff\xfe\x00", "config.json is damaged: "),
    "no seeds": ("config.json", {"num_seeds": 0}, "config.json says num_seeds = 0"),
    "huge seed": ("config.json", {"seed": 10**30}, "large"),
    "episodes": ("config.json", {"eval_episodes": "ten"}, 'config.json says eval_episodes = "ten"'),
    "gamma": ("config.json", {"gamma": None}, "config.json says gamma = null"),
    "garbage": ("eval.csv", "garbage\n", "eval.csv does not begin with iteration,seed"),
    "binary": ("eval.csv", b"\x80\x81", "eval.csv does not begin with iteration,seed"),
    "bytes in a row": (
        "eval.csv",
        f"{runs.HEADER}\n1000,0,0,1,1,".encode() + b"\x80\n1000,0,1,1,1,2\n",
        "eval.csv is damaged",
    ),
    "empty": ("eval.csv", "", "eval.csv does not begin with iteration,seed"),
    "header": ("eval.csv", f"{runs.HEADER}\n", "no evaluation yet"),
    "words": ("eval.csv", f"{runs.HEADER}\n1000,0,0,1,1,x\n1000,0,1,1,1,2\n", "eval.csv is damaged"),
    "columns": ("eval.csv", f"{runs.HEADER}\n1000,0,0,1,1\n1000,0,1,1,1\n", "eval.csv is damaged"),
    "seeds": ("eval.csv", f"{runs.HEADER}\n1000,7,0,1,1,2\n1000,7,1,1,1,2\n", "eval.csv is damaged"),
    "order": (
        "eval.csv",
        runs.HEADER + "".join(f"\n{i},0,{e},1,1,2" for i in (2000, 1000) for e in (0, 1)) + "\n",
        "eval.csv is damaged",
    ),
    "a folder": ("eval.csv", None, "Is a directory"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_folders(tmp_path: Path, show: Callable, case: str) -> None:
    """Each is named in one line, beside the good run; the exit status is 1 if the user named it."""
    name, content, words = ODD[case]
    good = make_run(tmp_path, WALKER, reproduce.DMG, [[10]])
    odd = make_run(tmp_path, HOPPER, reproduce.DMG, [[10]])
    path = odd / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for folders, wanted in (([tmp_path], 0), ([odd, good], 1)):
        out, errors, status = show(*folders)
        assert "| 10.0 |" in out and out.count("| DMG |") == 1 and status == wanted
        assert errors.startswith(f"{odd}: ") and words in errors and errors.count("\n") == 1
    cell = read(tmp_path, HOPPER, reproduce.DMG, 1)
    assert (cell.run, cell.note) == (None, "cannot be read")


def test_folders_without_runs(tmp_path: Path, show: Callable) -> None:
    """An empty folder, one that is not there, and a file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("empty", "gone", "file"):
        out, errors, status = show(tmp_path / name, figure=tmp_path / "curve.png")
        assert errors == f"{tmp_path / name}: no run folder, it has no config.json\n" and status == 1
        assert not out and not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("data", ["gone", "no HDF5", "another", "a folder"])
def test_odd_datasets(tmp_path: Path, show: Callable, data: str) -> None:
    """The run is shown, without its dataset's mean; the dataset is named once."""
    path = tmp_path / "data.hdf5"
    about = make_data(path, rewards=[1, 2], terminals=[0, 1], timeouts=[0, 0])
    path.unlink()
    if data == "no HDF5":
        path.write_bytes(b"no")
        about["dataset_sha256"] = hashlib.sha256(b"no").hexdigest()
    elif data == "another":
        make_data(path, rewards=[1])
    elif data == "a folder":
        path.mkdir()
    for setting in (reproduce.DMG, reproduce.ABLATION):
        make_run(tmp_path / "runs", HOPPER, setting, [[10]], **about)
    out, errors, status = show(tmp_path / "runs")
    assert out.count("| 10.0 | - |") == 2 and out.count("no file with SHA-256") == 1
    assert not errors and status == 0


def test_a_run_that_is_going_on(tmp_path: Path, show: Callable) -> None:
    """A cut line (0. of 0.5 is no 0) and a cut evaluation are left out; it says how far it is."""
    run = make_run(
        tmp_path / "iterations-5000", HOPPER, reproduce.DMG, [[10, 20], [30, 50]], complete=False
    )
    whole = (run / "eval.csv").read_text()
    for cut in (1, 5, len(whole.splitlines()[-1]) + 2, 60):
        (run / "eval.csv").write_text(whole[:-cut])
        events = run / "s0" / "events.out.tfevents.0"
        events.write_bytes(events.read_bytes()[:-1])
        out, _, status = show(tmp_path)
        assert "15.0 ± 7.1" in out and "| 2 × 1,000 of 3,000 |" in out and status == 0
    assert (
        report.score(read(tmp_path / "iterations-5000", HOPPER, reproduce.DMG, 2))
        == "cut short at 1,000"
    )


def test_missing(tmp_path: Path) -> None:
    """A setting without a folder."""
    assert report.score(read(tmp_path, HOPPER, reproduce.DMG, 2)) == "missing"


@pytest.mark.parametrize(
    "config", [{"iterations": 1001}, {"dataset_sha256": "e" * 64}, {"log_every": 8}]
)
def test_runs_that_do_not_go_together(tmp_path: Path, config: dict) -> None:
    """Two runs of a cell that differ in what changes results: no number, and the cell says why."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[10]])
    other = make_run(tmp_path, HOPPER, reproduce.DMG, [[20]], first=1, **config)
    (key,) = config
    if key == "iterations":  # and it has run them
        text = (other / "eval.csv").read_text()
        (other / "eval.csv").write_text(text.replace("1000,", "1001,"))
    cell = read(tmp_path, HOPPER, reproduce.DMG, 2)
    assert not cell.run and key in cell.note and "s0-0" in cell.note and "s1-1" in cell.note


@pytest.mark.parametrize("config", [{"lam": 0.5}, {"batch_size": 8}, {"expectile": 0.9}])
@pytest.mark.parametrize(
    "setting", [reproduce.ABLATION, reproduce.DMG], ids=lambda setting: setting.name
)
def test_wrong_label_does_not_count(tmp_path: Path, setting: Setting, config: dict) -> None:
    """A run named like a setting that had other values is not taken for it, and the cell says so."""
    make_run(tmp_path, HOPPER, setting, [[10]], **config)
    (key, value), cell = next(iter(config.items())), read(tmp_path, HOPPER, setting, 1)
    assert not cell.run and cell.note.startswith(f"other settings: {key} {value}, not ")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({}, "15.0 ± 7.1"), ({"eval_every": 7}, "other settings: eval_every 7, not 1000")],
)
def test_runs_of_another_length_do_not_count(tmp_path: Path, config: dict, wanted: str) -> None:
    """Where the jobs are known, a run of other lengths is none of the table's."""
    flags = dict(num_seeds=2, iterations=2000, eval_every=1000, eval_episodes=2)
    job = Job(HOPPER, reproduce.DMG, flags)
    make_run(tmp_path, HOPPER, reproduce.DMG, [[0, 0], [10, 20]], **({"eval_every": 1000} | config))
    assert report.score(report.read_cells("figure4", [job], 2, tmp_path)[HOPPER]["DMG"]) == wanted


# ---- Tables -------------------------------------------------------------------------------------------
def test_table1(tmp_path: Path) -> None:
    """A column per method, under what it is; on D4RL beside the paper's of what it imitates."""
    env_id = "hopper-medium-v2"
    make_run(tmp_path, env_id, reproduce.TD3BC, [[30, 50]])
    report.write("table1", "d4rl", [env_id], 2, tmp_path, tmp_path / "out")
    rows, name = rows_of(tmp_path / "out", "table1-d4rl"), "TD3+BC-like"
    about = ("action generalisation", "generalisation propagation", "flags")
    assert [rows[key][name] for key in about] == ["mild", "full", "--lam 1 --nu 0.4 --temperature 0"]
    assert rows[env_id][name] == "40.0 ± 14.1" and rows[env_id]["TD3BC (paper)"] == "59.3"
    assert rows["locomotion total (1)"][name] == "40.0"
    assert rows["IQM [95 % interval]"][name].startswith("40.0 [")
    assert rows[env_id]["TD3-like"] == "missing" and "TD3 (paper)" not in rows[env_id]
    for setting in EXPERIMENTS["table1"].settings:
        method = {"in-sample-ablation": "IQL", "TD3+BC-like": "TD3BC"}.get(setting.name, setting.name)
        printed = report.PAPER["table1_settings"][method.removesuffix("-like")]
        assert {"action": setting.action, "propagation": setting.propagation} == printed


def test_table1_of_some_settings(tmp_path: Path) -> None:
    """Of jobs of two settings: their columns only."""
    listed = [Job(HOPPER, setting, {"num_seeds": 2}) for setting in (reproduce.DMG, reproduce.ABLATION)]
    report.write("table1", "local", listed, 2, tmp_path, tmp_path / "out")
    row = rows_of(tmp_path / "out", "table1-local")[HOPPER]
    assert list(row) == ["dataset", "DMG", "in-sample-ablation", *report.ABOUT]


def test_table2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rows, totals of means and what is missing; local results without the paper's, D4RL's with them."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[30, 50]])
    make_run(tmp_path, WALKER, reproduce.DMG, [[10, 10]], log={1: {"losses/qf_loss": INF}}, rows=999_936)
    make_run(tmp_path, HOPPER, reproduce.ABLATION, [[20, 20]])
    report.write("table2", "local", [HOPPER, WALKER], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-local")
    assert "paper" not in "".join(rows[HOPPER])
    assert [*rows[HOPPER].values()] == [
        HOPPER,
        "20.0 ± 0.0",
        "40.0 ± 14.1",
        "-",
        "1,000,000",
        "2 × 1,000",
    ]
    marked = "10.0 ± 0.0 (× 1 of 2 seeds diverged)"
    assert [*rows[WALKER].values()] == [WALKER, "missing", marked, "-", "999,936", "2 × 1,000"]
    totals = rows["locomotion total (2)"]
    assert totals["in-sample ablation (ours)"] == "20.0 (1 missing)"
    assert totals["DMG (ours)"] == "50.0 (1 marked)"
    iqm = rows["IQM [95 % interval]"]["in-sample ablation (ours)"]
    assert iqm == "20.0 [20.0, 20.0] (1 of 2 datasets)"
    with (tmp_path / "out/table2-local.csv").open() as file:
        seeds = list(csv.DictReader(file))
    numbers = [
        (row["dataset"], row["setting"], row["seed"], row["last"], row["diverged"]) for row in seeds
    ]
    assert (HOPPER, "DMG", "1", "50.0", "0") in numbers and (WALKER, "DMG", "1", "10.0", "1") in numbers
    text = (tmp_path / "out/table2-local.md").read_text()
    assert "not** D4RL" in text and "torch 2" in text and f"{HOPPER} {'d' * 12}" in text
    assert text.split("\n\n")[1] in capsys.readouterr().out


def test_table2_beside_the_paper(tmp_path: Path) -> None:
    """The paper's numbers, and its totals: as printed for all datasets, else added up."""
    ids = ["hopper-medium-v2", "hopper-expert-v2"]
    make_run(tmp_path, ids[0], reproduce.DMG, [[30, 50]])
    report.write("table2", "d4rl", ids, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-d4rl")
    assert rows[ids[0]]["DMG (paper)"] == "100.6 ± 1.9" and rows[ids[0]]["IQL (paper)"] == "66.2"
    assert rows[ids[0]]["DMG (ours)"] == "40.0 ± 14.1"
    assert rows["locomotion total (2)"]["DMG (paper)"] == "212.1"  # 100.6 + 111.5
    report.write("table2", "d4rl", EXPERIMENTS["table2"].d4rl, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-d4rl")
    totals = rows["locomotion total (15)"]
    assert totals["DMG (paper)"] == "1182.8" and totals["DMG (ours)"] == "40.0 (14 missing)"
    assert rows["antmaze total (6)"]["IQL (paper)"] == "392.4" and len(rows) == 21 + 3


def test_table3(tmp_path: Path) -> None:
    """ablation → DMG for both backbones; the paper's printed totals where all nine datasets are."""
    for setting, score in zip(reproduce.BACKBONES, (10, 20, 30, 40)):
        make_run(tmp_path, HOPPER, setting, [[score, score + 2]])
    report.write("table3", "local", [HOPPER], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table3-local")
    assert rows[HOPPER]["XQL ablation → DMG (ours)"] == "11.0 ± 1.4 → 21.0 ± 1.4"
    assert rows["locomotion total (1)"]["SQL ablation → DMG (ours)"] == "31.0 → 41.0"
    report.write("table3", "d4rl", EXPERIMENTS["table3"].d4rl, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table3-d4rl")
    assert rows["locomotion total (9)"]["XQL → DMG (paper)"] == "725.3 → 792.7"
    assert rows["locomotion total (9)"]["SQL → DMG (paper)"] == "747.5 → 804.2"
    assert rows["hopper-medium-v2"]["XQL → DMG (paper)"] == "71.1 → 90.1"
    assert rows["hopper-medium-v2"]["XQL ablation → DMG (ours)"] == "missing → missing"


def test_table4(tmp_path: Path) -> None:
    """offline → online pairs, totals of both, regret over the evaluations after the first; the length of
    the offline run, where that is still there."""
    scratch, ablation, dmg = EXPERIMENTS["table4"].settings
    make_run(tmp_path, HOPPER, reproduce.DMG, [[0, 0]] * 5)
    (tmp_path / f"{HOPPER}__DMG__s0-1").rename(tmp_path / "offline")
    make_run(tmp_path, HOPPER, dmg, [[20, 30], [60, 60], [80, 90]], checkpoint=str(tmp_path / "offline"))
    make_run(tmp_path, HOPPER, ablation, [[10, 10], [20, 20], [10, 10]])
    make_run(tmp_path, HOPPER, scratch, [[0, 0], [1, 3]])
    make_run(tmp_path, WALKER, dmg, [[2, 2], [3, 3], [4, 4]])
    report.write("table4", "local", [HOPPER, WALKER], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table4-local")
    names = [f"{setting.name} (ours)" for setting in (scratch, ablation, dmg)]
    wanted = ["2.0 ± 1.4", "10.0 ± 0.0 → 10.0 ± 0.0", "25.0 ± 7.1 → 85.0 ± 7.1"]
    assert [rows[HOPPER][name] for name in names] == wanted
    assert rows[HOPPER]["regret of ours"] == "98.0, 85.0, 27.5"  # DMG: 100 - mean(60, 60, 80, 90)
    assert rows[HOPPER]["seeds × iterations"] == "2 × 1,000, 2 × ? + 2,000, 2 × 5,000 + 2,000"
    totals = [rows["locomotion total (2)"][name] for name in names]
    assert totals == ["2.0 (1 missing)", "10.0 → 10.0 (1 missing)", "27.0 → 89.0"]
    # the middle half of 4, 4, 80, 90 is 4, 80; resampling the seeds of a dataset makes it 4, 80 or 4, 90
    assert rows["IQM [95 % interval]"][names[2]] == "42.0 [42.0, 47.0]"
    assert (
        f"SHA-256: {HOPPER} {'d' * 12}, {HOPPER} none, "
        in (tmp_path / "out/table4-local.md").read_text()
    )
    report.write("table4", "d4rl", EXPERIMENTS["table4"].d4rl, 2, tmp_path, tmp_path / "out")
    row = rows_of(tmp_path / "out", "table4-d4rl")["antmaze total (6)"]
    printed = [row[f"{method} (paper)"] for method in ("TD3", "IQL", "DMG")]
    assert printed == ["0.0", "392.4 → 490.4", "439.4 → 556.4"]


def test_table6(tmp_path: Path) -> None:
    """Ten seeds, 1 to 10: 5.5 ± 2.2, since t is 2.262 for 9 degrees of freedom, the standard deviation
    3.0277. The paper's table is an image, so not available."""
    assert f"{2.262 * 3.0277 / math.sqrt(10):.1f}" == "2.2"
    make_run(tmp_path, "hopper-medium-v2", reproduce.DMG, [range(1, 11)])
    report.write("table6", "d4rl", ["hopper-medium-v2"], 10, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table6-d4rl")
    wanted = ["100.6 ± 1.9", "not available", "5.5 ± 2.2", "5.5 ± 3.0", "-", "1,000,000", "10 × 1,000"]
    assert [*rows["hopper-medium-v2"].values()][1:] == wanted
    assert rows["locomotion total (1)"]["mean, SD (ours)"] == "5.5"
    assert rows["IQM [95 % interval]"]["mean, SD (ours)"].startswith("5.5 [")


def test_figure3_hours(tmp_path: Path) -> None:
    """An hour for 2,000 iterations is 500 for a million; the paper's 1.7 stands beside D4RL's only."""
    for kind in ("local", "v2"):
        env_id = f"halfcheetah-medium-replay-{kind}"
        make_run(tmp_path, env_id, EXPERIMENTS["figure3"].settings[0], [[1], [2]])
    for kind in ("local", "d4rl"):
        report.write(
            "figure3", kind, getattr(EXPERIMENTS["figure3"], kind), 1, tmp_path, tmp_path / "out"
        )
        text = (tmp_path / f"out/figure3-{kind}.md").read_text()
        assert "| 500.00 |" in text and ("| 1.7 |" in text) == (kind == "d4rl")


# ---- Figures ------------------------------------------------------------------------------------------
def dashed(axis: Axes) -> list:
    """The dashed lines of a panel."""
    return [line for line in axis.lines if line.get_linestyle() == "--"]


def crosses(axis: Axes) -> list[tuple[float, float]]:
    """Where a panel marks diverged seeds; the height is NaN on the lower edge."""
    found = []
    for line in axis.lines:
        if line.get_marker() == "X":
            edge = line.get_transform() == axis.get_xaxis_transform()
            found.append((line.get_xdata()[0], NAN if edge else line.get_ydata()[0]))
    return found


def colours_of(figure: Figure) -> dict[str, str]:
    """The colours of a figure's curves."""
    lines = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "o"]
    return {line.get_label(): matplotlib.colors.to_hex(line.get_color()).upper() for line in lines}


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure3", "figure4", "figure6"])
def test_figures(tmp_path: Path, name: str) -> None:
    """PNG and SVG of every figure, also with settings missing; the same SVG for the same runs."""
    ids, settings = EXPERIMENTS[name].local[:1], EXPERIMENTS[name].settings
    for setting in settings[:-1] if len(settings) > 1 else settings:
        make_run(tmp_path, ids[0], setting, [[5, 15], [10, 20]], log={0: {"losses/qf_loss": NAN}})
    texts = []
    for out in (tmp_path / "a", tmp_path / "b"):
        report.write(name, "local", ids, 2, tmp_path, out)
        assert (out / f"{name}-local.png").read_bytes()[:4] == b"\x89PNG"
        texts.append((out / f"{name}-local.svg").read_text())
    assert texts[0] == texts[1] and "<svg" in texts[0]
    text = (tmp_path / "a" / f"{name}-local.md").read_text()
    assert f"{name}-local.png" in text and "× 1 of 2 seeds diverged" in text


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_grids_mark_diverged_seeds(tmp_path: Path, name: str) -> None:
    """One × in each of the two panels for each diverged seed, at its score and its Q, beside the line of
    means; on the lower edge where it has no score, and then the line is the mean of the others."""
    settings, key = EXPERIMENTS[name].settings, {"figure1": "lam", "figure2": "nu"}[name]
    *_, before, last = settings
    for setting in settings:
        log = {1: {"losses/qf_loss": NAN}} if setting is before else {}
        make_run(tmp_path, HOPPER, setting, [[10, NAN if setting is last else 30]], log=log)
    scores, learned = report.FIGURES[name](read_all(tmp_path, name, HOPPER), name).axes
    grid = [setting.flags[key] for setting in settings]
    np.testing.assert_allclose(scores.lines[0].get_xdata(), grid)
    np.testing.assert_allclose(scores.lines[0].get_ydata(), [20, 20, 20, 20, 10])
    np.testing.assert_allclose(learned.lines[0].get_ydata(), [100.5, 100.5, 100.5, 100, 100])
    np.testing.assert_array_equal(crosses(scores), [(grid[3], 30), (grid[4], NAN)])
    assert crosses(learned) == [(grid[3], 101), (grid[4], 101)]


@pytest.mark.parametrize("name", ["figure4", "figure6"])
def test_curves(tmp_path: Path, name: str) -> None:
    """The means over seeds against iterations, or against online steps from the end of the offline phase
    on; a diverged seed's × at its last score, and on the lower edge if it never had one."""
    setting = EXPERIMENTS[name].settings[-1]
    make_run(tmp_path, HOPPER, setting, [[1, 3], [5, NAN], [10, NAN]])
    make_run(tmp_path, WALKER, setting, [[1, NAN], [5, NAN], [10, NAN]])
    hopper, walker = report.draw_curves(read_all(tmp_path, name, HOPPER, WALKER), name).axes
    line = hopper.lines[0]
    np.testing.assert_allclose(
        line.get_xdata(), [1000, 2000, 3000] if name == "figure4" else [0, 1000, 2000]
    )
    np.testing.assert_allclose(line.get_ydata(), [2, 5, 10])
    assert crosses(hopper) == [(line.get_xdata()[0], 3)]
    np.testing.assert_array_equal(crosses(walker), [(line.get_xdata()[0], NAN)])


def test_one_colour_per_method(tmp_path: Path) -> None:
    """In every figure, whatever stands beside it; no two methods of a figure share one. The quickstart
    is DMG; names that are not known get colours of their own."""
    every = {setting.name: setting for name in EXPERIMENTS for setting in EXPERIMENTS[name].settings}
    methods = [setting for name, setting in every.items() if not name.startswith(("DMG-lam", "DMG-nu"))]
    for setting in methods:
        make_run(tmp_path, HOPPER, setting, [[1, 2], [3, 4]])
    for name in ("quickstart", "mine"):
        make_run(tmp_path, HOPPER, Setting(name, "dmg_iql", {}), [[1, 2], [3, 4]])
    found, _ = runs.read_runs([tmp_path])
    colours = colours_of(report.draw(found))
    assert colours["DMG"] == colours["quickstart"] == colours["DMG-finetuned"] == "#0072B2"
    for name, own in colours_of(
        report.draw_curves(read_all(tmp_path, "figure6", HOPPER), "figure6")
    ).items():
        assert colours[name] == own
    for name in ("table1", "table3", "figure6"):
        names = [setting.name for setting in EXPERIMENTS[name].settings]
        assert len({colours[name] for name in names}) == len(names)
    assert colours["mine"] not in report.COLOURS.values()


def test_figures_are_readable(tmp_path: Path) -> None:
    """At 830 pixels, a README's width, letters are 11 pixels high or more; the legend is outside the
    panels, which have most of the room; curves of several datasets stand in a row."""
    names = ("hopper", "walker2d", "halfcheetah")
    for name, setting in itertools.product(names, EXPERIMENTS["table1"].settings):
        make_run(tmp_path, f"{name}-medium-local", setting, [[10, 20], [30, 40]])
    found, _ = runs.read_runs([tmp_path])
    for several in (found, [run for run in found if "hopper" in run.config["env_id"]]):
        figure = report.draw(several)
        figure.savefig(tmp_path / "figure.png")
        width = figure.get_size_inches()[0]
        assert figure.axes[0].xaxis.label.get_fontsize() / 72 / width * max(830, width * 100) >= 11
        legend = figure.legends[0].get_window_extent()
        assert len(figure.legends[0].get_texts()) == 5
        boxes = [axis.get_window_extent() for axis in figure.axes]
        assert not any(box.overlaps(legend) for box in boxes)
        assert sum(box.width for box in boxes) > 0.6 * figure.bbox.width
        assert len({box.y0 for box in boxes}) == 1 and boxes[0].height > 0.4 * figure.bbox.height


def test_own_files_and_fine_tuning_have_panels_of_their_own(tmp_path: Path) -> None:
    """Two -v2 runs of different files, and an online one: three panels."""
    env_id = "hopper-medium-v2"
    make_run(tmp_path / "a", env_id, reproduce.DMG, [[1], [2]])
    make_run(tmp_path / "b", env_id, reproduce.DMG, [[1], [2]], dataset_sha256="e" * 64)
    make_run(tmp_path, env_id, reproduce.FINETUNED[2], [[1], [2]])
    found, _ = runs.read_runs([tmp_path])
    titles = {axis.get_title() for axis in report.draw(found).axes}
    assert titles == {env_id, f"{env_id}, own file", f"{env_id}, online"}


# ---- The command line ---------------------------------------------------------------------------------
def test_refusals(tmp_path: Path) -> None:
    """What goes only with or without --name, and values that are not possible; nothing is written."""
    make_run(tmp_path, HOPPER, reproduce.DMG, [[1]])
    for flags, words in (
        (dict(name="table2", only=("hopper-v9",)), "--only hopper-v9: table2 of d4rl has halfcheetah"),
        (dict(name="table2", seeds=0), "--seeds 0: expected 1 or more"),
        (dict(name="table2", figure=Path("x.png")), "--figure goes without --name"),
        (dict(name="table2", runs=(tmp_path / "no",)), "the one folder that holds the run folders"),
        (dict(only=(HOPPER,)), "--only and --seeds go with --name"),
        (dict(seeds=2), "--only and --seeds go with --name"),
        (dict(figure=tmp_path / "curve.xyz"), "xyz"),
    ):
        args = report.Args(**({"runs": (tmp_path,), "reports": tmp_path / "out"} | flags))
        with pytest.raises(ValueError, match=words):
            report.main(args)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*curve*"))


def test_mistakes_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A picture or a report into what is no folder: the exit status says so, and nothing is written."""
    folder = make_run(tmp_path / "runs", HOPPER, reproduce.DMG, [[1]])
    (tmp_path / "file").write_text("")
    for words in (
        f"{folder} --figure {tmp_path}/file/curve.png",
        f"{tmp_path}/runs --name figure4 --dataset local --only {HOPPER} --reports {tmp_path}/file",
        f"{tmp_path}/runs --name figure4 --dataset local --only {WALKER}-v3",
    ):
        monkeypatch.setattr(sys, "argv", ["report.py", *words.split()])
        monkeypatch.setattr(report.common.signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit, match=r"^error: [^\n]*$"):
            report.common.run(report.main, report.Args)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "file"}


def test_command_line(tmp_path: Path, show: Callable) -> None:
    """Without folders it says how it is used; with --name it writes four files."""
    usage = subprocess.run(
        [sys.executable, report.__file__], capture_output=True, text=True, cwd=tmp_path
    )
    assert usage.returncode == 2 and "python tools/report.py runs " in usage.stdout and not usage.stderr
    make_run(tmp_path, HOPPER, reproduce.DMG, [[1]])
    flags = dict(name="figure4", dataset="local", only=(HOPPER,), seeds=1, reports=tmp_path / "reports")
    out, _, status = show(tmp_path, **flags)
    assert status == 0 and f"| {HOPPER} | DMG | 1.0 |" in out
    files = {path.name for path in (tmp_path / "reports").iterdir()}
    assert files == {f"figure4-local.{suffix}" for suffix in ("md", "csv", "png", "svg")}
