"""tools/reproduce.py and benchmark.sh: the right jobs, each run once, resumed, skipped, or reported."""

import contextlib
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import reproduce
import torch
import tyro
from filelock import FileLock
from reproduce import EXPERIMENTS, Args, Job

ROOT = Path(reproduce.__file__).parent.parent
HOPPER = "hopper-medium-local"
SMALL = ["--dataset", "local", "--only", HOPPER, "--seeds", "1", "--iterations", "20"]
SMALL += ["--eval-every", "20", "--eval-episodes", "1"]


def make(*words: str) -> Args:
    """Args of a command line, resolved."""
    args = tyro.cli(Args, args=words)
    reproduce.resolve(args)
    return args


def jobs(*words: str) -> list[Job]:
    """The jobs that a command line means, without --only."""
    args = make(*words)
    this = EXPERIMENTS[args.name]
    env_ids = this.d4rl if args.dataset == "d4rl" else this.local
    return [reproduce.make_job(env_id, setting, args) for env_id in env_ids for setting in this.settings]


@pytest.fixture(scope="module")
def data(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hopper-medium-local where the scripts look for it."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "hopper_medium-local.hdf5").symlink_to(hopper_file)
    return folder


def train(words: list[str], stdout: object, **_: object) -> subprocess.CompletedProcess:
    """What subprocess.run does with a script's command line, in this process."""
    script = importlib.import_module(Path(words[1]).stem)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        try:
            script.train(tyro.cli(script.Args, args=words[2:]))
        except (SystemExit, OSError) as error:
            print(error)
            return subprocess.CompletedProcess(words, 1)
    return subprocess.CompletedProcess(words, 0)


class OneByOne(ThreadPoolExecutor):
    """A pool that runs what it is given at once, since `train` redirects the output of all threads."""

    def submit(self, function: Callable, job: Job) -> Future:
        future = Future()
        future.set_result(function(job))
        return future


@pytest.fixture
def call(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command line of tools/reproduce.py, and the scripts that it starts, in this process and in
    tmp_path: its exit status. `call.ran` lists the scripts' commands, `call.reported` what report.write
    was given."""
    ran, reported = [], []

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess:
        ran.append(words)
        return train(words, **options)

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
        return reproduce.main(tyro.cli(Args, args=words))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(data))
    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "ThreadPoolExecutor", OneByOne)
    monkeypatch.setitem(
        sys.modules, "report", SimpleNamespace(write=lambda *words: reported.append(words))
    )
    main.ran, main.reported = ran, reported
    return main


# ---- The list of jobs ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "count", "commands", "seeds"),
    [("table1", 15, 15, 5), ("table2", 42, 42, 5), ("table3", 36, 36, 5), ("table4", 18, 30, 5),
     ("table6", 21, 21, 10), ("figure1", 15, 15, 5), ("figure2", 15, 15, 5), ("figure3", 3, 3, 1),
     ("figure4", 15, 15, 5), ("figure5", 6, 6, 5), ("figure6", 18, 30, 5)],
)  # fmt: skip
def test_dry_run(
    name: str, count: int, commands: int, seeds: int, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The paper's datasets times the settings, for a million iterations: every command is printed once,
    the offline one of a fine-tuned run before it, and nothing is made."""
    folders = ["--run-dir", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports")]
    assert reproduce.main(tyro.cli(Args, args=[name, "--dry-run", *folders])) == 0
    *lines, summary, _ = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(set(lines)) == commands
    assert summary.startswith(f"{count} jobs of {seeds} seeds, {count} of them to be run")
    made = set()
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "python" and (ROOT / words[1]).is_file() and words[-1] == "--resume"
        flags = dict(zip(words[2:], words[3:]))
        assert flags["--iterations"] == "1000000" and flags["--num-seeds"] == str(seeds)
        assert flags["--env-id"].endswith("-v2") and "--eval-every" not in words
        if words[1] == "dmg_finetune.py":
            assert ("--checkpoint" in words) == ("--scratch" not in words)
            assert flags.get("--checkpoint") in made | {None}
            assert flags.get("--warmup-steps") == ("25000" if "--scratch" in words else None)
        made.add(f"{tmp_path}/runs/{flags['--env-id']}__{flags['--exp-name']}__s0-{seeds - 1}")
    assert list(tmp_path.iterdir()) == []


def test_every_command_means_its_jobs_settings() -> None:
    """Each script accepts its commands, and resolves them to what the job says that config.json
    holds."""
    checked = {}
    for name in EXPERIMENTS:
        for kind in ("d4rl", "local"):
            for job in jobs(name, "--dataset", kind, "--seeds", "2", "--iterations", "500"):
                for part in job.parts:
                    place = part.env_id.split("-")[0] == "antmaze"  # presets differ
                    checked[part.setting.name, place, "expert" in part.env_id, kind] = part
    assert len(checked) > 60
    for part in checked.values():
        script = importlib.import_module(part.setting.script)
        args = tyro.cli(script.Args, args=[*part.command(make("table1"))[2:], "--device", "cpu"])
        script.resolve(args)
        config = json.loads(json.dumps(vars(args) | {"script": part.setting.script}, default=str))
        wanted = part.settings
        assert {key: config[key] for key in wanted} == wanted
        free = script.MAY_CHANGE - {"torch"} | {"resume", "exp_name"} | set(config) & {"checkpoint"}
        assert set(config) - set(wanted) == free
        assert (
            config["exp_name"] == part.setting.name and config["seed"] == 0 and config["num_seeds"] == 2
        )
        assert part.folder == f"{part.env_id}__{part.setting.name}__s0-1"


def test_settings_are_table_1s() -> None:
    """The five rows of the paper's Table 1 and what they are as flags, those that a partial run needs
    first."""
    rows = [(s.name, s.action, s.propagation, s.flags) for s in EXPERIMENTS["table1"].settings]
    inf = float("inf")
    assert rows == [
        ("DMG", "mild", "mild", {}),
        ("in-sample-ablation", "none", "none", {"lam": 0, "nu": inf}),
        ("TD3+BC-like", "mild", "full", {"lam": 1, "nu": 0.4, "temperature": 0}),
        ("AWAC-like", "none", "full", {"lam": 1, "nu": inf}),
        ("TD3-like", "full", "full", {"lam": 1, "nu": 0}),
    ]


def test_grids_share_the_runs_of_dmg() -> None:
    """Figures 1 and 2 have five values each, and their run called DMG has Table 1's settings."""
    (table,) = (job for job in jobs("table1") if job.folder == "hopper-medium-v2__DMG__s0-4")
    for name, flag in (("figure1", "lam"), ("figure2", "nu")):
        ours = [job for job in jobs(name) if job.env_id == "hopper-medium-v2"]
        assert len({job.settings[flag] for job in ours}) == len({job.folder for job in ours}) == 5
        (shared,) = (job for job in ours if job.folder == table.folder)
        assert shared.settings == table.settings


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], dict(eval_every=20_000, eval_episodes=10)),
        (["--iterations", "2000000"], dict(eval_every=20_000)),
        (["--iterations", "250000"], dict(eval_every=10_000)),
        (["--iterations", "20"], dict(eval_every=1)),
        (["--eval-every", "5", "--eval-episodes", "3"], dict(eval_every=5, eval_episodes=3)),
    ],
)
def test_evaluations(words: list[str], settings: dict) -> None:
    """The paper's protocol for a million iterations and more, else 25 evaluations; regular
    checkpoints."""
    job = jobs("table1", *words)[0]
    assert job.settings | settings == job.settings
    assert job.flags["save_every"] == min(10_000, job.flags["iterations"] // 10)


# ---- Running them -------------------------------------------------------------------------------------
def test_fine_tuning_follows_its_offline_run(
    call: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """table4 trains offline, then online from that run's folder, and reports the online jobs. The same
    command again runs nothing; the offline run is table1's."""
    words = ["table4", *SMALL, "--online-steps", "40", "--settings", "DMG-finetuned", "TD3-scratch"]
    assert call(*words) == 0
    assert [Path(ran[1]).name for ran in call.ran] == [
        "dmg_iql.py",
        "dmg_finetune.py",
        "dmg_finetune.py",
    ]
    runs = tmp_path / "runs/iterations-20"
    offline, online = (json.loads((runs / f"{HOPPER}__{name}__s0-0/config.json").read_text())
                       for name in ("DMG", "DMG-finetuned"))  # fmt: skip
    assert (offline["iterations"], online["iterations"]) == (20, 40)
    assert online["checkpoint"] == f"runs/iterations-20/{HOPPER}__DMG__s0-0"
    log = (runs / "logs" / f"{HOPPER}__TD3-scratch__s0-0.log").read_text()
    assert (
        "dmg_finetune.py --env-id" in log
        and "--warmup-steps 1 " in log
        and log.endswith("exit status 0\n")
    )
    name, dataset, listed, seeds, run_dir, out = call.reported[0]
    assert (name, dataset, seeds, str(run_dir), str(out)) == (
        "table4", "local", 1, "runs/iterations-20", "reports/iterations-20"
    )  # fmt: skip
    assert [job.setting.name for job in listed] == ["DMG-finetuned", "TD3-scratch"]
    assert call(*words) == 0 and call("table1", *SMALL, "--settings", "DMG") == 0
    assert len(call.ran) == 3 and "1 jobs, 0 of them to be run" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run of figure4 with SMALL."""
    (job,) = (job for job in jobs("figure4", *SMALL) if job.env_id == HOPPER)
    args = make("figure4", *SMALL, "--run-dir", str(tmp_path_factory.mktemp("runs")))
    words = [*job.command(args), "--dataset-path", str(data / "hopper_medium-local.hdf5")]
    with open(os.devnull, "w") as stdout:
        assert train(words, stdout).returncode == 0
    return args.run_dir / job.folder


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    """A function that changes entries of a run folder's config.json or checkpoint.pt."""

    def change(folder: Path) -> None:
        if name == "config.json":
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
        else:
            torch.save(torch.load(folder / name, weights_only=True) | changes, folder / name)

    return change


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        (lambda folder: None, "complete"),
        (lambda folder: shutil.rmtree(folder), "missing"),
        (lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()], "missing"),
        (lambda folder: (folder / "done").unlink(), "cut short"),
        (edit("checkpoint.pt", iteration=10), "cut short"),
        (lambda folder: [(folder / name).unlink() for name in ("done", "checkpoint.pt")], "cut short"),
        (lambda folder: (folder / "checkpoint.pt").unlink(), "damaged: FileNotFoundError"),
        (lambda folder: os.truncate(folder / "checkpoint.pt", 1000), "damaged: "),
        (lambda folder: (folder / "config.json").unlink(), "damaged: FileNotFoundError"),
        (
            lambda folder: [
                (folder / "done").unlink(),
                (folder / ".lock").unlink(),
                (folder / ".lock").mkdir(),
            ],
            "damaged: IsADirectoryError",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "damaged: AttributeError"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "damaged: UnicodeDecodeError"),
        (edit("checkpoint.pt", iteration="20"), "damaged: ValueError: checkpoint.pt is of iteration 20"),
        (edit("checkpoint.pt", iteration=-5), "damaged: ValueError: checkpoint.pt is of iteration -5"),
        (edit("checkpoint.pt", config=None), "damaged: AttributeError"),
        (
            edit("config.json", lam=0.5, gamma=0.9),
            "other settings: lam 0.5, not 0.25; gamma 0.9, not 0.99",
        ),
        (edit("checkpoint.pt", config={}), "other settings: script None, not dmg_iql"),
        (edit("config.json", threads=9, device="cuda", dataset_path="x"), "complete"),
    ],
)
def test_state(damage: Callable[[Path], None], state: str, finished: Path, tmp_path: Path) -> None:
    """What a run folder is taken for."""
    shutil.copytree(finished, tmp_path / finished.name)
    damage(tmp_path / finished.name)
    (job,) = (job for job in jobs("figure4", *SMALL) if job.env_id == HOPPER)
    assert job.state(tmp_path).startswith(state)


def test_what_is_damaged_is_named_and_the_others_go_on(
    call: Callable, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A damaged folder, one of other settings, and one that another process uses: each is named and
    left as it is, the rest is run and the report written. --slurm names them too."""
    names = ["DMG", "in-sample-ablation", "TD3-like"]
    folders = [finished.name.replace("DMG", name) for name in names]
    damaged, _, used = (Path(shutil.copytree(finished, tmp_path / "runs" / name)) for name in folders)
    (damaged / "config.json").write_text("null")
    edit("config.json", lam=1.0, nu=0.0)(used)
    edit("checkpoint.pt", iteration=10, config=json.loads((used / "config.json").read_text()))(used)
    words = ["table1", *SMALL, "--run-dir", "runs", "--settings", *names, "AWAC-like"]
    with FileLock(used / ".lock"):
        assert call(*words) == 1
        printed = capsys.readouterr()
        assert len(call.ran) == len(call.reported) == 1
        assert "AWAC-like" in printed.out and printed.out.count(": complete (") == 1
        for folder, why in zip(
            folders, ("damaged: ", "other settings: lam ", "another process runs it")
        ):
            assert f"runs/{folder} is left as it is: {why}" in printed.err
        assert call(*words, "--slurm") == 1
        assert capsys.readouterr().err.count("is left as it is") == 3


def test_a_failed_job_does_not_stop_the_others(
    call: Callable,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A file that is no HDF5: its run fails, with the reason in the log; the other is complete."""
    (tmp_path / "hopper_medium-local.hdf5").symlink_to(data / "hopper_medium-local.hdf5")
    (tmp_path / "walker2d_medium-local.hdf5").write_text("no data")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert call("figure4", *SMALL, "--only", "walker2d-medium-local", HOPPER) == 1
    printed = capsys.readouterr()
    words = "/2] walker2d-medium-local__DMG__s0-0: failed (1); see runs/iterations-20/logs/"
    assert words in printed.err  # as the first or the second: they end in any order
    assert f"{HOPPER}__DMG__s0-0: complete" in printed.out
    log = (tmp_path / "runs/iterations-20/logs/walker2d-medium-local__DMG__s0-0.log").read_text()
    assert "walker2d_medium-local.hdf5 for " in log and "Traceback" not in log


def test_datasets_are_collected_or_downloaded_once(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A -local dataset is collected at its default size, a -v2 one downloaded by the script. Where that
    fails, the jobs that need it are left out with the reason, and TD3 from scratch is not."""
    folder = tmp_path / "datasets"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    commands, downloads = [], []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(words)
        ok = "walker2d-medium-local" not in words
        if ok and words[1].endswith("collect.py"):
            (folder / f"{words[-1].replace('-local', '').replace('-', '_')}-local.hdf5").touch()
        return subprocess.CompletedProcess(words, 0 if ok else 1, "10 rows\nerror: no space left\n")

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    words = ["table4", "--dataset", "local", "--only", HOPPER, "walker2d-medium-local"]
    assert call(*words, "--iterations", "20") == 1
    collected = [c[2:] for c in commands if c[1].endswith("collect.py")]
    assert collected == [["--env-id", HOPPER], ["--env-id", "walker2d-medium-local"]]
    trained = [c[3:6:2] for c in commands if not c[1].endswith("collect.py")]
    offline = [[HOPPER, name] for name in ("in-sample-ablation", "DMG")]
    online = [[HOPPER, f"{name}-finetuned"] for _, name in offline]
    scratch = [[env_id, "TD3-scratch"] for env_id in (HOPPER, "walker2d-medium-local")]
    assert trained == [scratch[0], offline[0], online[0], offline[1], online[1], scratch[1]]
    left_out = "walker2d-medium-local__DMG-finetuned__s0-4: left out, no data: error: no space left\n"
    assert left_out in capsys.readouterr().err

    def load(args: object, env: object) -> None:
        downloads.append(args.env_id)
        if args.env_id.startswith("hopper"):
            raise SystemExit("error: no download of hopper_medium-v2.hdf5")
        (folder / "walker2d_medium-v2.hdf5").touch()

    monkeypatch.setattr(reproduce.dmg_iql, "load_dataset", load)
    words = [
        "table1",
        "--only",
        "hopper-medium-v2",
        "walker2d-medium-v2",
        "--settings",
        "DMG",
        "TD3-like",
    ]
    commands.clear()
    assert call(*words) == 1
    assert downloads == ["hopper-medium-v2", "walker2d-medium-v2"] and len(commands) == 2
    assert capsys.readouterr().err.count("left out, no data: error: no download of hopper") == 2


def test_a_gpu_per_worker(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job sees one GPU, named as CUDA_VISIBLE_DEVICES does, and as many threads as asked for.
    --workers can put several jobs on one."""
    seen = []

    def watch(words: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess:
        threads = words[words.index("--threads") + 1]
        seen.append((env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], threads))
        time.sleep(0.05)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(reproduce.subprocess, "run", watch)
    monkeypatch.setattr(reproduce, "ThreadPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert call("table1", *SMALL, "--threads", "2") == 0
    assert sorted(seen) == [(str(k), "2", "2") for k in range(5)]
    seen.clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    assert call("table1", *SMALL, "--workers", "2") == 0
    assert {device for device, *_ in seen} == {"GPU-7"} and len(seen) == 5


def test_a_killed_command_is_resumed(
    call: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command and its job are killed after a checkpoint. The same command goes on from there, ends
    with the evaluations of a run that nothing stopped, and writes the report."""
    words = ["figure4", *SMALL, "--iterations", "150", "--eval-every", "50"]
    command = [sys.executable, str(ROOT / "tools/reproduce.py"), *words]
    run = tmp_path / f"runs/iterations-150/{HOPPER}__DMG__s0-0"
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until = time.monotonic() + 300
        while not (run / "checkpoint.pt").exists() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with FileLock(run / ".lock", timeout=60):  # until the job, its child, is dead, too
        pass
    (job,) = (job for job in jobs(*words) if job.env_id == HOPPER)
    assert job.state(run.parent) == "cut short"
    monkeypatch.delitem(sys.modules, "report")  # for the real one
    assert call(*words) == 0 and job.state(run.parent) == "complete"
    assert HOPPER in (tmp_path / "reports/iterations-150/figure4-local.md").read_text()
    assert "resumed at iteration" in (run.parent / f"logs/{run.name}.log").read_text()
    with open(os.devnull, "w") as stdout:
        train(job.command(make("figure4", "--run-dir", "whole")), stdout)
    assert (run / "eval.csv").read_text() == (tmp_path / "whole" / run.name / "eval.csv").read_text()


# ---- SLURM --------------------------------------------------------------------------------------------
def test_slurm_array(call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to sbatch: the options, an array of just the jobs that are not complete, and a
    command that runs the right one of them in a task. The paths have spaces in them."""
    sent, python = [], tmp_path / "a python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$@"\n')
    python.chmod(0o755)

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess:
        if words[0] != "sbatch":
            return train(words, **options)
        sent.append((words[1:], options["input"]))
        return subprocess.CompletedProcess(words, 0, "Submitted batch job 7\n", "")

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(sys, "executable", str(python))
    words = ["table3", *SMALL, "--run-dir", "my runs"]
    assert call(*words, "--task", f"{HOPPER}__SQL-ablation__s0-0") == 0
    more = ["--partition", "long", "--time", "1:00:00", "--gpus", "1", "--sbatch", "account=lab"]
    assert call(*words, "--slurm", "--array-limit", "2", *more) == 0
    options, script = sent.pop()
    assert set(options) == {
        "--array=0-2%2", "--partition=long", "--time=1:00:00", "--gpus=1", "--account=lab", "--requeue",
        "--cpus-per-task=1", "--open-mode=append", "--job-name=dmg-table3",
        f"--output={tmp_path}/my runs/logs/slurm-%A_%a.out",
    }  # fmt: skip
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}  # of XQL-ablation, DMG-XQL, DMG-SQL
    with subprocess.Popen(["bash"], text=True, stdin=-1, stdout=-1, env=environment, cwd="/") as bash:
        place, file, *task = bash.communicate(script)[0].splitlines()
    assert (place, file) == (str(tmp_path), str(ROOT / "tools/reproduce.py")) and "--slurm" not in task
    assert call(*task) == 0
    assert (tmp_path / f"my runs/{HOPPER}__DMG-SQL__s0-0/done").is_file()
    assert call(*words, "--slurm") == 0 and "--array=0-1" in sent.pop()[0]
    monkeypatch.setattr(reproduce, "prepare", lambda env_id: "")
    assert call("figure3", "--slurm") == 0 and "--array=0-2%1" in sent.pop()[0]  # one after the other


def test_task(call: Callable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's exit status is 1 for a job that failed, and that of a complete one is 0 without running
    it again."""
    monkeypatch.setattr(
        reproduce.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, -9)
    )
    words = ["figure4", *SMALL, "--task", f"{HOPPER}__DMG__s0-0"]
    assert call(*words) == 1 and "failed (-9); see runs" in capsys.readouterr().err
    monkeypatch.setattr(Job, "state", lambda job, run_dir: "complete")
    assert call(*words) == 0 and call.reported == []


def test_sbatch_that_is_missing_or_refuses(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each."""
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, **_: open("no such file"))
    with pytest.raises(SystemExit, match="^error: --slurm: no sbatch here"):
        call("figure4", *SMALL, "--slurm")
    answer = subprocess.CompletedProcess([], 1, "", "invalid\npartition\n")
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, **_: answer)
    with pytest.raises(SystemExit, match="^error: sbatch --requeue .*: invalid partition$"):
        call("figure4", *SMALL, "--slurm")


# ---- Mistakes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2", "--only", "hopper-v2"], "--only hopper-v2: expected one of halfcheetah-medium-v2, "),
        (["table1", "--only", HOPPER], f"--only {HOPPER}: expected"),
        (["table1", "--settings", "dmg"], "--settings dmg: expected one of DMG, in-sample-ablation, "),
        (["table2", "--seeds", "0"], "--seeds 0: expected more than 0"),
        (["table2", "--iterations", "-1"], "--iterations -1"),
        (["table2", "--rate", "nan"], "--rate nan"),
        (["figure3", "--workers", "2"], "one job at a time"),
        (
            ["table2", "--task", "99"],
            "--task 99: expected one of halfcheetah-medium-v2__",
        ),
    ],
)
def test_refuses(words: list[str], message: str, call: Callable, tmp_path: Path) -> None:
    """A value that is not known or out of range is an error with a message, and nothing is written."""
    with pytest.raises(SystemExit, match="^error: ") as error:
        call(*words)
    assert message in str(error.value) and not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(call: Callable, tmp_path: Path) -> None:
    """They are an error before anything is run."""
    (tmp_path / "file").touch()
    for flag in ("--run-dir", "--reports"):
        with pytest.raises(OSError, match="file"):
            call("figure4", *SMALL, flag, "file/x")
    assert call.ran == []


# ---- benchmark.sh -------------------------------------------------------------------------------------
@pytest.fixture
def shell(tmp_path: Path) -> Callable:
    """Run a copy of benchmark.sh in an empty folder with a Python of that version, which makes an
    environment of itself and else prints what it is called with. Its exit status is 3 for words that
    contain FAIL."""
    shutil.copy(ROOT / "benchmark.sh", tmp_path)
    (tmp_path / "tests").mkdir()
    for name in (
        "requirements.txt",
        "requirements-dev.txt",
        "tests/test_a.py",
        "tests/test_b.py",
        "tests/test_c.py",
    ):
        (tmp_path / name).touch()
    python = tmp_path / "my python"
    python.write_text("""#!/bin/bash
case "$1 $2" in
"-c import sys;"*) cat "$(dirname "$0")/version" 2>/dev/null || echo "$VERSION" ;;
"-m venv")
    mkdir -p .venv/bin
    echo "$VERSION" >.venv/bin/version
    for name in python ruff; do cp "$0" .venv/bin/$name; done
    ;;
"-c from common import LOCAL_IDS"*) echo "hopper-medium-local antmaze-umaze-local" ;;
"-c from common import dataset_file"*) echo "${@:3}" ;;
"-m pip") echo "pip ${@: -1}" >&2 ;;
*)
    echo "$(basename "$0") $*"
    touch "$TMPDIR/left-by-a-test"
    case "$*" in *$FAIL*) exit 3 ;; esac
    ;;
esac
""")
    python.chmod(0o755)

    def run(
        *words: str, version: str = "3.12", fail: str = "nothing", **env: str
    ) -> subprocess.CompletedProcess:
        own = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "VERSION": version, "FAIL": fail}
        (tmp_path / "tmp").mkdir(exist_ok=True)
        command = ["bash", str(tmp_path / "benchmark.sh"), *words]
        env = {"PATH": os.environ["PATH"], "PYTHON": str(python)} | own | env
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True)

    return run


def test_benchmark_names(shell: Callable) -> None:
    """A wrong name is named with the right ones; tables, figures and tools get their flags."""
    ended = shell("tabel1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: 'tabel1' is none of quickstart, datasets, table1, ")
    assert shell().returncode == 2 and "quickstart" in shell("--help").stdout
    for name in EXPERIMENTS:
        assert shell(name, "--only", "a b").stdout == f"python tools/reproduce.py {name} --only a b\n"
    for name in ("speed", "gpu"):
        assert shell(name, "--threads", "2").stdout == f"python tools/{name}.py --threads 2\n"
    ended = shell("datasets", "--size", "9")
    assert ended.returncode == 1 and ended.stderr.startswith("error: datasets takes no flags")
    assert shell("datasets").stdout.splitlines() == [
        "python tools/data/collect.py --env-id hopper-medium-local",
        "python tools/data/collect.py --env-id antmaze-umaze-local",
        "python tools/data/describe.py --out reports/datasets.md",
    ]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_benchmark_makes_its_environment_once(shell: Callable, tmp_path: Path, version: str) -> None:
    """Each of these versions is accepted; packages are installed once, and again when their list
    changes."""
    assert shell("speed", version=version).stderr.count("pip ") == 2
    assert shell("speed", version=version).stderr == ""
    (tmp_path / "requirements.txt").write_text("one more")
    assert shell("speed", version=version).stderr.count("pip ") == 2
    ended = shell("speed", version="3.11" if version == "3.12" else "3.12")
    assert ended.returncode == 1 and f".venv has Python {version}, not 3.1" in ended.stderr


@pytest.mark.parametrize(("version", "python"), [("3.10", None), ("3.15", None), ("3.12", "/bin/false")])
def test_benchmark_refuses_other_pythons(
    shell: Callable, tmp_path: Path, version: str, python: str | None
) -> None:
    """Too old, too new, and no Python at all."""
    ended = shell("speed", version=version, **({"PYTHON": python} if python else {}))
    assert ended.returncode == 1 and "is no Python 3.11 to 3.14" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_quickstart(shell: Callable) -> None:
    """It collects, trains, reports, in runs/ and reports/, and goes on after an interruption. Further
    flags go to the training, or are refused."""
    collect, training, report = shell("quickstart", "--lam", "0.5").stdout.splitlines()
    assert collect == "python tools/data/collect.py --env-id hopper-medium-local"
    words = training.split()
    assert words[:2] == ["python", "dmg_iql.py"] and words[-3:] == ["--resume", "--lam", "0.5"]
    flags = dict(zip(words, words[1:]))
    assert int(flags["--save-every"]) * 10 == int(flags["--iterations"])
    assert flags["--env-id"] in collect and flags["--run-dir"] == "runs/quickstart"
    assert report == "python tools/report.py runs/quickstart --figure reports/quickstart.png"
    ended = shell("quickstart", "--run-dir", "x")
    assert ended.returncode == 1 and "leave --run-dir out" in ended.stderr and ended.stdout == ""
    assert shell("quickstart", "--help").stdout == "python dmg_iql.py --help\n"
    failed = shell("quickstart", fail="dmg_iql.py")
    assert failed.returncode == 3 and "report.py" not in failed.stdout


def test_test(shell: Callable, tmp_path: Path) -> None:
    """Formatter, linter, every test file once in one of two processes, one last line, nothing left
    behind."""
    ended = shell("test")
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and lines[-1] == "all passed: format, lint and tests"
    assert lines[:2] == ["ruff format --check .", "ruff check ."]
    files = [[word for word in line.split() if word.startswith("tests/")] for line in lines[2:-1]]
    assert sorted(map(sorted, files)) == [["tests/test_a.py", "tests/test_c.py"], ["tests/test_b.py"]]
    for words in ("test_a", "test_b", "check ."):
        failed = shell("test", fail=words)
        assert failed.returncode != 0 and "all passed" not in failed.stdout
    only = shell("test", "tests/test_a.py", "-x")
    assert only.stdout.splitlines()[-1].endswith("tests/test_a.py -x") and only.returncode == 0
    assert list((tmp_path / "tmp").iterdir()) == []
