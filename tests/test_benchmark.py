"""tools/benchmark.py and the list of experiments: the right jobs, each run once, resumed, skipped, or reported."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import experiments
import pytest
import tyro
from experiments import EXPERIMENTS

import dmg_iql

ROOT = Path(dmg_iql.__file__).parent
SMALL = ["--seeds", "1", "--iterations", "20", "--eval-episodes", "1", "--eval-every", "20"]


@pytest.fixture(scope="module")
def small_data(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hopper-medium-local where the scripts look for it, without collecting."""
    path = tmp_path_factory.mktemp("datasets") / "hopper_medium-local.hdf5"
    path.symlink_to(hopper_file)
    return path


def call(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run tools/benchmark.py as a command."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/benchmark.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("name", "runs", "seeds"),
    [("table1", 15, 5), ("table2", 42, 5), ("table3", 36, 5), ("table4", 18, 5), ("table6", 21, 10), ("figure1", 15, 5),
     ("figure2", 15, 5), ("figure3", 3, 1), ("figure4", 15, 5), ("figure5", 6, 5), ("figure6", 18, 5)],
)  # fmt: skip
def test_dry_run_counts(name: str, runs: int, seeds: int, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The paper's datasets times the settings, for a million iterations: every command is printed, nothing is made."""
    assert benchmark.main(benchmark.Args(name=name, dry_run=True, run_dir=tmp_path / "runs")) == 0
    *commands, summary = capsys.readouterr().out.strip().splitlines()
    assert len(commands) == len(set(commands)) == runs
    assert summary.startswith(f"{runs} runs of {seeds} seeds ({runs * seeds} trainings), {runs} of them to be run")
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "python" and (ROOT / words[1]).is_file() and "--resume" in words
        million = "--online-steps" if words[1] == "dmg_finetune.py" else "--iterations"
        assert words[words.index(million) + 1] == "1000000" and words[words.index("--num-seeds") + 1] == str(seeds)
        assert words[words.index("--env-id") + 1].endswith("-v2") and "--eval-every" not in words
    assert not (tmp_path / "runs").exists()


def test_every_command_is_accepted_by_its_script() -> None:
    """The flags exist there and are in range: each script resolves them to just the values that the report expects."""
    for name, experiment in EXPERIMENTS.items():
        args = benchmark.Args(name=name, seeds=2, iterations=400, run_dir=Path("x"))
        for env_id in [*experiment.d4rl, *experiment.local]:
            for job in experiments.jobs(name, [env_id], 2, 400, 400):
                script = __import__(job.setting.script)
                if Path(script.__file__).stem != job.setting.script:
                    continue  # DMG_SCRIPT has put another one in its place
                resolved = script.resolve(script.command_line(benchmark.command(job, args)[2:]))
                for key, value in job.flags.items():
                    assert getattr(resolved, key) == value, (name, env_id, job.setting.name, key)
                assert resolved.exp_name == job.setting.name and resolved.seed == 0
                folder = f"{env_id}__{resolved.exp_name}__s0-1"
                assert folder == job.folder


def test_settings_are_table_1s() -> None:
    """The five rows of the paper's Table 1, and what they are as flags."""
    table = {s.name: (s.action, s.propagation, s.flags) for s in EXPERIMENTS["table1"].settings}
    inf = float("inf")
    assert table == {
        "in-sample-ablation": ("none", "none", {"lam": 0, "nu": inf}),
        "AWAC-like": ("none", "full", {"lam": 1, "nu": inf}),
        "TD3+BC-like": ("mild", "full", {"lam": 1, "nu": 0.4, "temperature": 0}),
        "TD3-like": ("full", "full", {"lam": 1, "nu": 0}),
        "DMG": ("mild", "mild", {}),
    }
    for key, settings in (("lam", experiments.LAMBDAS), ("nu", experiments.NUS)):
        (middle,) = [setting for setting in settings if setting.name == "DMG"]
        assert dmg_iql.preset("hopper-medium-v2")["nu"] == middle.flags["nu"] and middle.flags["lam"] == 0.25
        assert len({setting.flags[key] for setting in settings}) == len({s.name for s in settings}) == 5


def test_pool_runs_skips_resumes_and_goes_on(small_data: Path, tmp_path: Path) -> None:
    """A run of figure4 and its report; the same command again runs nothing; a folder with other settings is an error
    that names it, and its number does not get into the report."""
    environment = {"D4RL_DATASET_DIR": str(small_data.parent)}
    options = ["figure4", "--dataset", "local", *SMALL, "--only", "hopper-medium-local", "--workers", "2"]
    first = call(*options, cwd=tmp_path, **environment)
    assert first.returncode == 0, first.stderr
    assert "[1/1] hopper-medium-local__DMG__s0-0: complete" in first.stdout
    run = tmp_path / "runs/iterations-20/hopper-medium-local__DMG__s0-0"
    log = (tmp_path / f"runs/iterations-20/logs/{run.name}.log").read_text()
    assert log.rstrip().endswith("exit status 0") and "--iterations 20" in log
    assert "| hopper-medium-local | DMG |" in (tmp_path / "reports/iterations-20/figure4-local.md").read_text()
    when = (run / "checkpoint.pt").stat().st_mtime_ns
    again = call(*options, cwd=tmp_path, **environment)
    assert again.returncode == 0 and "1 runs, 0 of them to be run" in again.stdout
    assert (run / "checkpoint.pt").stat().st_mtime_ns == when
    for flag, value, words in (("--eval-every", "10", "eval_every 20, not 10"), ("--eval-episodes", "2", "1, not 2")):
        other = call(*options, flag, value, cwd=tmp_path, **environment)
        assert other.returncode == 1 and words in other.stderr and run.name in other.stderr
        assert "| DMG | other settings: eval_" in (tmp_path / "reports/iterations-20/figure4-local.md").read_text()


def test_pool_resumes_what_was_killed(small_data: Path, tmp_path: Path) -> None:
    """The pool and its run are killed after a checkpoint; --dry-run says "cut short"; the same command goes on from
    there and ends with the evaluations of a run that nothing stopped."""
    environment = {"D4RL_DATASET_DIR": str(small_data.parent)}
    options = ["figure4", "--dataset", "local", "--only", "hopper-medium-local", "--seeds", "1", "--iterations", "200"]
    options += ["--eval-episodes", "1"]
    words = [sys.executable, str(ROOT / "tools/benchmark.py"), *options]
    first = subprocess.Popen(words, cwd=tmp_path, env=os.environ | environment, start_new_session=True)
    run = tmp_path / "runs/iterations-200/hopper-medium-local__DMG__s0-0"
    until = time.monotonic() + 60
    while not (run / "checkpoint.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "done").exists()
    dry = call(*options, "--dry-run", cwd=tmp_path, **environment)
    assert "# cut short" in dry.stdout and "1 of them to be run" in dry.stdout
    assert call(*options, cwd=tmp_path, **environment).returncode == 0 and (run / "done").exists()
    log = (tmp_path / f"runs/iterations-200/logs/{run.name}.log").read_text()
    assert "| 0/200 [" not in log.rpartition("dmg_iql.py --env-id")[2], "it began again instead of going on"
    assert call(*options, "--run-dir", "whole", cwd=tmp_path, **environment).returncode == 0
    assert (run / "eval.csv").read_text() == (tmp_path / "whole" / run.name / "eval.csv").read_text()


def test_a_failed_job_does_not_stop_the_others(small_data: Path, tmp_path: Path) -> None:
    """A data file that is no HDF5: its run fails, with its message in the log; the report shows it as failed, and the
    other's number."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "hopper_medium-local.hdf5").symlink_to(small_data)
    (folder / "walker2d_medium-local.hdf5").write_text("no data")
    names = ["hopper-medium-local", "walker2d-medium-local"]
    ended = call("figure4", "--dataset", "local", *SMALL, "--only", *names, cwd=tmp_path, D4RL_DATASET_DIR=str(folder))
    assert ended.returncode == 1
    assert "walker2d-medium-local__DMG__s0-0: failed (1); see" in ended.stdout
    assert "hopper-medium-local__DMG__s0-0: complete" in ended.stdout
    log = (tmp_path / "runs/iterations-20/logs/walker2d-medium-local__DMG__s0-0.log").read_text()
    assert "not a whole HDF5 file" in log and "Traceback" not in log
    text = (tmp_path / "reports/iterations-20/figure4-local.md").read_text()
    assert "| walker2d-medium-local | DMG | failed (exit status 1) |" in text
    assert "| hopper-medium-local | DMG | failed" not in text


def test_a_device_per_worker(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers on GPUs 3 and 5 of six: jobs see the one or the other, and as many threads as asked for; by default
    all GPUs are used, and those of CUDA_VISIBLE_DEVICES under its names."""
    import torch

    seen = []

    def watch(words: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess:
        seen.append((env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], words[words.index("--threads") + 1]))
        time.sleep(0.1)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setenv("D4RL_DATASET_DIR", str(small_data.parent))
    monkeypatch.setattr(benchmark.subprocess, "run", watch)
    monkeypatch.setattr(benchmark.report, "write", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    options = dict(name="table1", dataset="local", only=("hopper-medium-local",), threads=2)
    options |= dict(run_dir=tmp_path / "runs", reports=tmp_path / "out")
    assert benchmark.main(benchmark.Args(**options, devices=(3, 5))) == 0
    assert {device for device, *_ in seen} == {"3", "5"} and {tuple(rest) for _, *rest in seen} == {("2", "2")}
    assert len(seen) == 5
    seen.clear()
    assert benchmark.main(benchmark.Args(**options)) == 0
    assert {device for device, *_ in seen} == {"0", "1", "2", "3", "4"}  # five jobs
    seen.clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert benchmark.main(benchmark.Args(**options)) == 0
    assert {device for device, *_ in seen} == {"4", "7"}
    with pytest.raises(SystemExit, match="--devices 2: this process sees 2"):
        benchmark.main(benchmark.Args(**options, devices=(2,)))


def test_no_data_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A dataset that cannot be had: its runs are not started, and the report says that they failed and the log why."""

    def nothing(env_id: str) -> Path:
        raise SystemExit(f"error: no download of {env_id}")

    monkeypatch.setattr(benchmark, "find_dataset", nothing)
    args = benchmark.Args(
        name="table3", only=("hopper-medium-v2",), run_dir=tmp_path / "runs", reports=tmp_path / "out"
    )
    assert benchmark.main(args) == 1
    printed = capsys.readouterr()
    assert "4 runs, 0 of them to be run" in printed.out and "no data, its runs are left out" in printed.err
    assert "| failed (exit status 1) → failed (exit status 1) |" in (tmp_path / "out/table3-d4rl.md").read_text()
    assert "no download of hopper-medium-v2" in (tmp_path / "runs/logs/hopper-medium-v2__DMG-XQL__s0-4.log").read_text()


def test_a_run_is_never_started_twice(small_data: Path, tmp_path: Path) -> None:
    """While one process has a run, another leaves it alone and says so."""
    environment = {"D4RL_DATASET_DIR": str(small_data.parent)}
    options = ["figure4", "--dataset", "local", "--only", "hopper-medium-local", "--seeds", "1"]
    options += ["--iterations", "5000", "--eval-episodes", "1", "--run-dir", "runs"]
    task = ["--task", "hopper-medium-local__DMG__s0-0"]
    words = [sys.executable, str(ROOT / "tools/benchmark.py"), *options, *task]
    first = subprocess.Popen(words, cwd=tmp_path, env=os.environ | environment, start_new_session=True)
    try:
        log = tmp_path / "runs/logs/hopper-medium-local__DMG__s0-0.log"
        until = time.monotonic() + 60
        while not (log.exists() and log.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        second = call(*options, cwd=tmp_path, **environment)
        assert second.returncode == 1 and "left out: another process runs it" in second.stdout
        first.kill()  # the job goes on without the process that started it, and still has the lock
        third = call(*options, *task, cwd=tmp_path, **environment)
        assert third.returncode == benchmark.LOCKED and "another process runs it" in third.stderr
        fourth = call(*options, "--slurm", cwd=tmp_path, **environment)
        assert "left out, it is running" in fourth.stdout and "nothing to submit" in fourth.stdout
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def fake_sbatch(folder: Path) -> dict[str, str]:
    """An sbatch on the PATH that keeps what it is sent."""
    folder.mkdir()
    script = (
        f'#!/bin/bash\ncat > "{folder}/sent"\nprintf "%s\\n" "$@" > "{folder}/options"\necho Submitted batch job 7\n'
    )
    (folder / "sbatch").write_text(script)
    (folder / "sbatch").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_slurm_array(small_data: Path, tmp_path: Path) -> None:
    """What is sent to sbatch: the options, an array of just the jobs that are not complete, and a task command that
    runs the right one of them. The paths have spaces in them."""
    environment = fake_sbatch(tmp_path / "the bin") | {"D4RL_DATASET_DIR": str(small_data.parent)}
    options = ["table3", "--dataset", "local", *SMALL, "--only", "hopper-medium-local", "--run-dir", "my runs"]
    name = "hopper-medium-local__{}__s0-0"
    assert call(*options, "--task", name.format("SQL-ablation"), cwd=tmp_path, **environment).returncode == 0
    assert (tmp_path / "my runs" / name.format("SQL-ablation") / "done").is_file()
    slurm = ["--slurm", "--partition", "long", "--time", "1:00:00", "--gpus", "1", "--array-limit", "2"]
    sent = call(*options, *slurm, "--sbatch", "account=lab", cwd=tmp_path, **environment)
    assert sent.returncode == 0 and "Submitted batch job 7: 3 of 4 runs" in sent.stdout
    lines = (tmp_path / "the bin/options").read_text().splitlines()
    for option in (
        "array=0-2%2",
        "partition=long",
        "time=1:00:00",
        "gpus=1",
        "account=lab",
        "requeue",
        "cpus-per-task=1",
    ):
        assert f"--{option}" in lines
    assert f"--output={tmp_path}/my runs/logs/slurm-%A_%a.out" in lines
    script = (tmp_path / "the bin/sent").read_text()
    environment |= {"SLURM_ARRAY_TASK_ID": "2"}  # of XQL-ablation, DMG-XQL, DMG-SQL
    assert subprocess.run(["bash"], input=script, text=True, env=os.environ | environment).returncode == 0
    assert (tmp_path / "my runs" / name.format("DMG-SQL") / "done").is_file()
    call(*options, "--slurm", cwd=tmp_path, **environment)
    lines = (tmp_path / "the bin/options").read_text().splitlines()
    assert "--array=0-1" in lines and not any("partition" in line for line in lines)
    timed = [
        "figure3",
        "--dataset",
        "local",
        "--run-dir",
        "timed",
        "--only",
        "halfcheetah-medium-replay-local",
        "--slurm",
    ]
    (tmp_path / "halfcheetah_medium_replay-local.hdf5").symlink_to(small_data)
    call(*timed, cwd=tmp_path, **(environment | {"D4RL_DATASET_DIR": str(tmp_path)}))
    assert "--array=0-2%1" in (tmp_path / "the bin/options").read_text(), "timed runs one after the other"


def test_status_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which a seed diverged (3) has ended well; SLURM is told of real failures, and of a kill's signal."""
    for status, wanted in ((0, 0), (3, 0), (1, 1), (benchmark.LOCKED, benchmark.LOCKED), (-9, 137)):
        monkeypatch.setattr(benchmark, "run", lambda job, args, status=status: status)
        args = benchmark.Args(name="figure4", only=("hopper-medium-v2",), task="hopper-medium-v2__DMG__s0-4")
        args.run_dir, args.reports = tmp_path / "runs", tmp_path / "out"
        assert benchmark.main(args) == wanted


def test_file_systems_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """There the run goes on, with a warning, instead of being left out for ever."""

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(benchmark.fcntl, "flock", none)
    with benchmark.locked(tmp_path / "lock") as lock:
        assert lock is not None
    assert "no locks on this file system" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2", "--only", "hopper-medum-v2"], "closest|hopper-medium-v2"),
        (["table2", "--seeds", "0"], "--seeds 0: it has to be 1 or more"),
        (["table2", "--iterations", "-1"], "--iterations -1"),
        (["figure3", "--workers", "2"], "one job at a time"),
        (["table2", "--rate", "0"], "--rate 0"),
        (["table2", "--task", "99"], "--task 99: it has to be one of halfcheetah-medium-v2__in-sample-ablation__s0-4"),
        (["table2", "--devices", "9"], "--devices 9: this process sees 0 GPU"),
        (["table2", "--run-dir", __file__], "folders that can be written"),
    ],
)
def test_refuses(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value out of range is an error with a message, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: ") as error:
        benchmark.main(tyro.cli(benchmark.Args, args=words))
    assert any(part in str(error.value) for part in message.split("|")) and not list(tmp_path.iterdir())


def test_slurm_without_slurm(small_data: Path, tmp_path: Path) -> None:
    """No sbatch on the PATH: a message, not a traceback."""
    options = ["figure4", "--dataset", "local", *SMALL, "--only", "hopper-medium-local", "--slurm"]
    ended = call(*options, cwd=tmp_path, PATH=str(tmp_path), D4RL_DATASET_DIR=str(small_data.parent))
    assert ended.returncode == 1 and "there is no sbatch here" in ended.stderr and "Traceback" not in ended.stderr
