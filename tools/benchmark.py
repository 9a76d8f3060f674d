"""Run the paper's tables and figures by name, here or on a SLURM cluster, and write their reports.

    bash benchmark.sh table2                       # 42 jobs of five seeds, then reports/table2-d4rl.md
    bash benchmark.sh table2 --dry-run             # what that would do, and how long it would take
    bash benchmark.sh table3 --dataset local --seeds 2 --iterations 40000 --only hopper-medium-local
    bash benchmark.sh table2 --slurm --partition gpu --gpus 1 --time 4:00:00

A job that is complete is skipped, one that was cut short is resumed, and one that fails is reported while the others
go on; so the same command again does what is left. The output of each job is in <run-dir>/logs/.
"""

import contextlib
import difflib
import fcntl
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import report
from experiments import EXPERIMENTS, Job, jobs

from dmg_iql import find_dataset

CPU_RATE = 85  # seed-iterations per second and job, measured: two jobs side by side on a 2-core machine, 1 thread each
GPU_HOURS = 1.7  # of a job of a million iterations: the paper's, on an RTX 3090; ours has not been measured
LOCKED = 4  # exit status of a job that another process is running


@dataclass
class Args:
    """Run a table or figure of the paper and write its report. What is complete already is not run again."""

    name: tyro.conf.Positional[Literal[tuple(EXPERIMENTS)]]
    """table or figure of the paper"""
    dataset: Literal["d4rl", "local"] = "d4rl"
    """d4rl: D4RL's datasets, downloaded; local: data collected here, whose results are not D4RL's"""
    seeds: int | None = None
    """number of seeds, 1 or more. None: the paper's, 5 (table6: 10; figure3, ours: 1)"""
    iterations: int = 1_000_000
    """offline iterations, 1 or more (Table 5)"""
    online_steps: int | None = None
    """online steps of table4 and figure6, 1 or more. None: as many as iterations"""
    only: tuple[str, ...] = ()
    """only these dataset ids"""
    eval_every: int | None = None
    """iterations between evaluations. None: the paper's protocol, or a tenth of runs shorter than a million"""
    eval_episodes: int | None = None
    """episodes per evaluation. None: the paper's, 10, and 100 on AntMaze"""
    run_dir: Path | None = None
    """parent of the run folders. None: runs; runs/iterations-<N> for another number of iterations than a million"""
    reports: Path = Path("reports")
    """parent of the reports. Those of another number of iterations than a million go to its iterations-<N>"""
    report_only: bool = False
    """run nothing, write the report of what there is"""
    dry_run: bool = False
    """print the commands, their number and the estimated time, and do nothing"""
    workers: int | None = None
    """jobs at a time, 1 or more. None: one per GPU, else one per core and --threads; figure3 one"""
    devices: tuple[int, ...] = ()
    """GPUs to use, numbered from 0 among those that this process sees, each to one worker after the other. None: all"""
    threads: int = 1
    """CPU threads of each job, 1 or more"""
    rate: float | None = None
    """seed-iterations per second of one job, for estimates. None: 85, measured on a CPU; on a GPU the paper's time"""
    slurm: bool = False
    """submit the jobs that are not complete as a SLURM array, instead of running them here"""
    partition: str | None = None
    """SLURM: partition"""
    time: str | None = None
    """SLURM: time limit of one job, as sbatch takes it; jobs cut off by it go on when submitted again"""
    gpus: str | None = None
    """SLURM: GPUs of one job, as sbatch takes it"""
    array_limit: int | None = None
    """SLURM: jobs running at a time, 1 or more"""
    sbatch: tuple[str, ...] = ()
    """SLURM: further options for sbatch, such as account=lab (without the dashes)"""
    task: str | None = None
    """run only the job of this run folder's name: what a SLURM task calls"""


def resolve(args: Args) -> tuple[Args, list[str]]:
    """Fill in every None but those that stay; returns the dataset ids with it. Raises SystemExit for a bad value."""
    experiment = EXPERIMENTS[args.name]
    known = experiment.d4rl if args.dataset == "d4rl" else experiment.local
    for env_id in args.only:
        if env_id not in known:
            close = difflib.get_close_matches(env_id, known, n=5, cutoff=0.4) or known
            raise SystemExit(
                f"error: --only {env_id} is not in {args.name} of {args.dataset}; it has {', '.join(close)}"
            )
    for flag in "seeds iterations online_steps eval_every eval_episodes workers threads array_limit".split():
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise SystemExit(f"error: --{flag.replace('_', '-')} {value}: it has to be 1 or more")
    if args.rate is not None and not args.rate > 0:
        raise SystemExit(f"error: --rate {args.rate}: it has to be above 0")
    if args.name == "figure3" and (args.workers or 1) > 1:
        raise SystemExit("error: --workers: figure3 measures time, one job at a time; leave it out")
    args.seeds = args.seeds or experiment.seeds
    args.online_steps = args.online_steps or args.iterations
    length = "" if args.iterations == 1_000_000 else f"iterations-{args.iterations}"
    args.run_dir, args.reports = args.run_dir or Path("runs", length), args.reports / length
    if wrong := [device for device in args.devices if not 0 <= device < len(gpus())]:
        raise SystemExit(f"error: --devices {wrong[0]}: this process sees {len(gpus())} GPU(s), numbered from 0")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once = len(args.devices) or len(gpus()) or max(1, cores // args.threads)
    args.workers = args.workers or (1 if args.name == "figure3" else at_once)
    return args, [env_id for env_id in known if env_id in args.only or not args.only]


def gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[: torch.cuda.device_count()] or [str(k) for k in range(torch.cuda.device_count())]


def text(value: float | int) -> str:
    """A number as one would type it: 0.25, inf, 1000000."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(job: Job, args: Args) -> list[str]:
    """The command of a job, as one would type it."""
    words = ["python", f"{job.setting.script}.py", "--env-id", job.env_id, "--exp-name", job.setting.name]
    for name, value in job.flags.items():
        flag = f"--{name.replace('_', '-')}"
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, text(value)]
    return [*words, "--threads", str(args.threads), "--run-dir", str(args.run_dir), "--resume"]


def state(job: Job, args: Args) -> str:
    """missing, cut short, complete, or in what the run folder of that name is not the job's."""
    folder = args.run_dir / job.folder
    if not (folder / "config.json").is_file():
        return "missing"
    try:
        config = json.loads((folder / "config.json").read_text())
        differ = report.differing(config, job.settings)
    except (OSError, ValueError, AttributeError):
        return "with a damaged config.json"
    if differ:
        return f"with other settings: {differ}"
    return "complete" if (folder / "done").is_file() else "cut short"


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[IO | None]:
    """Hold the lock file `path`: gives it, or None where another process holds it and `wait` is False. On a file system
    that has no locks, goes on without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            print(f"{path}: no locks on this file system ({error}); start nothing twice", file=sys.stderr)
        yield lock


def prepare(env_id: str) -> str:
    """Collect or download a dataset that is not there. Returns what went wrong, or nothing."""
    folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    try:
        if not env_id.endswith("-local"):
            find_dataset(env_id)
            return ""
        with locked(folder / f".{env_id}.lock", wait=True):
            try:
                find_dataset(env_id)
                return ""
            except SystemExit:
                print(f"collecting {env_id} ...", flush=True)
            words = [sys.executable, str(ROOT / "tools/collect.py"), "--env-id", env_id]
            ended = subprocess.run(words, capture_output=True, text=True)
            failed = ended.stderr.strip()[-500:] or f"tools/collect.py ended with {ended.returncode}"
            return failed if ended.returncode else ""
    except (OSError, SystemExit) as error:
        return str(error)


def run(job: Job, args: Args, device: str | None = None) -> int:
    """Run one job, its output going to its log, and return its exit status: the script's, or LOCKED."""
    logs = args.run_dir / "logs"
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with locked(logs / f"{job.folder}.lock") as lock, (logs / f"{job.folder}.log").open("a") as log:
        if not lock:
            return LOCKED
        words = command(job, args)
        log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n")
        log.flush()
        words = [sys.executable, str(ROOT / words[1]), *words[2:]]
        held = (lock.fileno(),)  # the job keeps the lock where this process dies before it
        status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=held).returncode
        log.write(f"\n{report.EXIT}{status}\n")
    return status


def in_progress(job: Job, args: Args) -> bool:
    """Whether another process has the job's lock."""
    path = args.run_dir / "logs" / f"{job.folder}.lock"
    if not path.exists():
        return False
    with locked(path) as lock:
        return not lock


def not_started(job: Job, args: Args, why: str) -> None:
    """Leave in the job's log why it was not started."""
    log = args.run_dir / "logs" / f"{job.folder}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"{why}\n{report.EXIT}1\n")


def seconds(job: Job, args: Args) -> float:
    """Estimated time of a whole job."""
    updates = (job.flags.get("iterations") or 0) + (job.flags.get("online_steps") or 0)
    if args.rate or not (args.gpus or gpus()):
        return updates * args.seeds / (args.rate or CPU_RATE)
    return updates * GPU_HOURS * 3600 / 1e6


def dry_run(listed: list[Job], args: Args) -> None:
    """Print what a run would do."""
    left = []
    for job in listed:
        now = state(job, args)
        left += [job] if now in ("missing", "cut short") else []
        print(f"{shlex.join(command(job, args))}{'' if now == 'missing' else f'   # {now}'}")
    hours = sum(seconds(job, args) for job in left) / 3600
    by = "the paper's 1.7 h per million iterations of one seed, taken for all seeds of a job: no GPU was measured here"
    if args.rate or not (args.gpus or gpus()):
        by = f"{args.rate or CPU_RATE:g} seed-iterations per second and job, without evaluations"
    at_once = args.array_limit or len(left) if args.slurm else args.workers
    wall = max([hours / max(at_once, 1), *(seconds(job, args) / 3600 for job in left)]) if left else 0
    print(
        f"{len(listed)} runs of {args.seeds} seeds ({len(listed) * args.seeds} trainings), {len(left)} of them to be "
        f"run: about {hours:.1f} hours one by one, {wall:.1f} hours {at_once} at a time ({by})"
    )


def run_here(listed: list[Job], args: Args) -> bool:
    """Run the jobs in a pool. Returns whether all of them are complete now."""
    failed, left = {}, []
    for job in listed:
        now = state(job, args)
        if now in ("missing", "cut short"):
            left.append(job)
        elif now != "complete":
            failed[job.folder] = f"{args.run_dir / job.folder} exists, {now}; delete it or give another --run-dir"
            print(f"error: {failed[job.folder]}", file=sys.stderr)
    left, without = with_data(left, args)
    failed |= without
    at_once = min(args.workers, max(len(left), 1))
    print(f"{len(listed)} runs, {len(left)} of them to be run, {at_once} at a time", flush=True)
    slots = queue.Queue()
    devices = [gpus()[k] for k in args.devices] or gpus()
    for k in range(args.workers):
        slots.put(devices[k % len(devices)] if devices else None)

    def one(job: Job) -> tuple[int, float]:
        """Run a job when a worker is free: its exit status and seconds."""
        device = slots.get()
        began = time.perf_counter()
        try:
            return run(job, args, device), time.perf_counter() - began
        except OSError as error:
            print(f"error: {job.folder}: {error}", file=sys.stderr)
            return 1, time.perf_counter() - began
        finally:
            slots.put(device)

    with ThreadPoolExecutor(args.workers) as pool:
        futures = {pool.submit(one, job): job for job in left}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                job, (status, took) = futures[future], future.result()
                words = {0: "complete", 3: "complete, a seed diverged", LOCKED: "left out: another process runs it"}
                how = words.get(status, f"failed ({status}); see {args.run_dir}/logs/{job.folder}.log")
                if status not in (0, 3):
                    failed[job.folder] = how
                print(f"[{number}/{len(left)}] {job.folder}: {how} ({took:.0f} s)", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit("interrupted; the same command continues") from None
    return not failed


def with_data(left: list[Job], args: Args) -> tuple[list[Job], dict[str, str]]:
    """The jobs whose dataset is there, was downloaded or collected now, and by run folder why others' could not be had,
    which their logs say too."""
    needed = [job for job in left if not job.flags.get("scratch")]
    wrong = {env_id: prepare(env_id) for env_id in dict.fromkeys(job.env_id for job in needed)}
    for env_id, why in wrong.items():
        if why:
            print(f"{env_id}: no data, its runs are left out: {why}", file=sys.stderr)
    failed = {job.folder: wrong[job.env_id] for job in needed if wrong[job.env_id]}
    for job in left:
        if job.folder in failed:
            not_started(job, args, failed[job.folder])
    return [job for job in left if job.folder not in failed], failed


def submit(listed: list[Job], args: Args) -> int:
    """Hand the jobs that are not complete to SLURM as one array, a job being known by its run folder's name. Returns
    the exit status, 1 where some could not be submitted."""
    left, others = [], 0
    for job in listed:
        now = state(job, args)
        if now not in ("missing", "cut short", "complete"):
            print(
                f"error: {args.run_dir / job.folder} exists, {now}; delete it or give another --run-dir",
                file=sys.stderr,
            )
            others += 1
        elif now != "complete" and in_progress(job, args):
            print(f"{job.folder}: left out, it is running")
        elif now != "complete":
            left.append(job)
    left, without = with_data(left, args)
    if not left:
        print("nothing to submit; --report-only in place of --slurm writes the report")
        return int(bool(others or without))
    logs = (args.run_dir / "logs").resolve()
    logs.mkdir(parents=True, exist_ok=True)
    at_once = 1 if args.name == "figure3" else args.array_limit
    array = f"0-{len(left) - 1}" + (f"%{at_once}" if at_once else "")
    options = ["--requeue", "--open-mode=append", f"--job-name=dmg-{args.name}", f"--array={array}"]
    options += [f"--output={logs}/slurm-%A_%a.out", f"--cpus-per-task={args.threads}"]
    options += [f"--{name}={getattr(args, name)}" for name in ("partition", "time", "gpus") if getattr(args, name)]
    options += [f"--{option}" for option in args.sbatch]
    again = shlex.join([sys.executable, str(ROOT / "tools/benchmark.py"), *(w for w in sys.argv[1:] if w != "--slurm")])
    names = " ".join(shlex.quote(job.folder) for job in left)
    script = f"#!/bin/bash\nruns=({names})\ncd {shlex.quote(os.getcwd())}\n"
    script += f'exec {again} --task "${{runs[$SLURM_ARRAY_TASK_ID]}}"\n'
    try:
        ended = subprocess.run(["sbatch", *options], input=script, text=True, capture_output=True)
    except FileNotFoundError:
        raise SystemExit("error: --slurm, but there is no sbatch here; submit from a machine of the cluster") from None
    if ended.returncode:
        raise SystemExit(f"error: sbatch refused the array ({ended.stderr.strip()}); called with {shlex.join(options)}")
    print(f"{ended.stdout.strip()}: {len(left)} of {len(listed)} runs. When they have ended, the same command submits")
    print("what is left, and --report-only in place of --slurm writes the report")
    return int(bool(others or without))


def task(name: str, listed: list[Job], args: Args) -> int:
    """Run the job with that run folder; the exit status is 0 for a run that ended, also where a seed diverged."""
    (job,) = (job for job in listed if job.folder == name)
    status = run(job, args)
    if status == LOCKED:
        print(f"{name}: left out, another process runs it", file=sys.stderr)
    return 0 if status in (0, 3) else status if status > 0 else 128 - status


def main(args: Args) -> int:
    """What the command line asks for; returns the exit status, 1 where a run that was to be made is not complete."""
    args, env_ids = resolve(args)
    listed = jobs(
        args.name, env_ids, args.seeds, args.iterations, args.online_steps, args.eval_every, args.eval_episodes
    )
    if args.task is not None and args.task not in (names := [job.folder for job in listed]):
        raise SystemExit(f"error: --task {args.task}: it has to be one of {', '.join(names)}")
    if args.dry_run:
        dry_run(listed, args)
        return 0
    try:
        args.run_dir.mkdir(parents=True, exist_ok=True)
        args.reports.mkdir(parents=True, exist_ok=True)
        for folder in (args.run_dir, args.reports):
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SystemExit(f"error: {error}; --run-dir and --reports have to be folders that can be written") from None
    if args.task is not None:
        return task(args.task, listed, args)
    if args.slurm:
        return submit(listed, args)
    complete = args.report_only or run_here(listed, args)
    report.write(args.name, args.dataset, listed, args.seeds, args.run_dir, args.reports)
    return 0 if complete else 1


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args)))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
