"""Run the paper's tables and figures by name, here or on a SLURM cluster, and write their reports.

    bash benchmark.sh table2                       # 42 jobs of five seeds, then reports/table2-d4rl.md
    bash benchmark.sh table2 --dry-run             # what that would do, and how long it would take
    bash benchmark.sh table3 --dataset local --seeds 2 --iterations 40000 --only hopper-medium-local
    bash benchmark.sh table2 --slurm --partition gpu --gpus 1 --time 4:00:00

A job that is complete is skipped, one that was cut short is resumed, and one that fails is reported while the others
go on; so the same command again does what is left. The output of each job is in <run-dir>/logs/.
"""

import difflib
import fcntl
import json
import os
import queue
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    """folder of the reports"""
    report_only: bool = False
    """run nothing, write the report of what there is"""
    dry_run: bool = False
    """print the commands, their number and the estimated time, and do nothing"""
    workers: int | None = None
    """jobs at a time, 1 or more. None: one per device or CPU core; figure3 one"""
    devices: tuple[int, ...] = ()
    """GPUs to use, by index: worker k sees only the k-th of them, in turns. None given: what the machine shows"""
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
    task: int | None = None
    """run the job of this number alone: what a SLURM task calls"""


def resolve(args: Args) -> tuple[Args, list[str]]:
    """Fill in every None but those that stay; returns the dataset ids with it. Raises SystemExit for a bad value."""
    experiment = EXPERIMENTS[args.name]
    known = experiment.d4rl if args.dataset == "d4rl" else experiment.local
    if not known:
        raise SystemExit(f"error: {args.name} has no local datasets: its ids are AntMaze's; use --dataset d4rl")
    for env_id in args.only:
        if env_id not in known:
            close = difflib.get_close_matches(env_id, known, n=5, cutoff=0.4) or known
            raise SystemExit(
                f"error: --only {env_id} is not in {args.name} of {args.dataset}; it has {', '.join(close)}"
            )
    for flag in (
        "seeds",
        "iterations",
        "online_steps",
        "eval_every",
        "eval_episodes",
        "workers",
        "threads",
        "array_limit",
    ):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise SystemExit(f"error: --{flag.replace('_', '-')} {value}: it has to be 1 or more")
    if args.rate is not None and not args.rate > 0:
        raise SystemExit(f"error: --rate {args.rate}: it has to be above 0")
    if args.name == "figure3" and (args.workers or 1) > 1:
        raise SystemExit("error: --workers: figure3 measures time, one job at a time; leave it out")
    args.seeds = args.seeds or experiment.seeds
    args.online_steps = args.online_steps or args.iterations
    args.run_dir = args.run_dir or Path(
        "runs" if args.iterations == 1_000_000 else f"runs/iterations-{args.iterations}"
    )
    args.workers = args.workers or (1 if args.name == "figure3" else len(args.devices) or on_gpu() or os.cpu_count())
    return args, [env_id for env_id in known if env_id in args.only or not args.only]


def on_gpu() -> int:
    """The number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


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
    """missing, cut short, complete, or in what the run folder of that name has other settings than the job."""
    folder = args.run_dir / job.folder
    if not (folder / "config.json").is_file():
        return "missing"
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError:
        return "with a damaged config.json"
    wanted = {"script": job.setting.script, "env_id": job.env_id, **job.flags}
    differ = [f"{key} {config.get(key)}, not {wanted[key]}" for key in wanted if config.get(key) != wanted[key]]
    if differ := [words for words in differ if not words.startswith("save_every")]:
        return f"with other settings: {'; '.join(differ)}"
    return "complete" if (folder / "done").is_file() else "cut short"


def prepare(env_id: str, args: Args) -> str:
    """Collect or download a dataset that is not there. Returns what went wrong, or nothing."""
    try:
        find_dataset(env_id)
    except SystemExit as error:
        if not env_id.endswith("-local"):
            return str(error)
        print(f"collecting {env_id} ...", flush=True)
        words = [sys.executable, str(ROOT / "tools/collect.py"), "--env-id", env_id]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        return ended.stderr.strip()[-500:] if ended.returncode else ""
    return ""


def run(job: Job, args: Args, device: int | None = None) -> int:
    """Run one job, its output going to its log, and return its exit status: the script's, or LOCKED."""
    logs = args.run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(device)
    with (logs / f"{job.folder}.lock").open("w") as lock, (logs / f"{job.folder}.log").open("a") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return LOCKED
        words = command(job, args)
        log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n")
        log.flush()
        words = [sys.executable, str(ROOT / words[1]), *words[2:]]
        held = (lock.fileno(),)  # the job keeps the lock where this process dies before it
        status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=held).returncode
        log.write(f"\n{report.EXIT}{status}\n")
    return status


def seconds(job: Job, args: Args) -> float:
    """Estimated time of a whole job."""
    updates = (job.flags.get("iterations") or 0) + (job.flags.get("online_steps") or 0)
    if args.rate or not (args.devices or args.gpus or on_gpu()):
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
    by = "the paper's 1.7 h per job of a million iterations; a GPU has not been measured here"
    if args.rate or not (args.devices or args.gpus or on_gpu()):
        by = f"{args.rate or CPU_RATE:g} seed-iterations per second and job"
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
    wrong = {env_id: prepare(env_id, args) for env_id in dict.fromkeys(job.env_id for job in left if needs_data(job))}
    for job in left:
        if needs_data(job) and wrong[job.env_id]:
            failed[job.folder] = wrong[job.env_id]
            (args.run_dir / "logs").mkdir(parents=True, exist_ok=True)
            with (args.run_dir / "logs" / f"{job.folder}.log").open("a") as log:
                log.write(f"{wrong[job.env_id]}\n{report.EXIT}1\n")
    for env_id, why in wrong.items():
        if why:
            print(f"{env_id}: no data, its runs are left out: {why}", file=sys.stderr)
    left = [job for job in left if job.folder not in failed]
    print(
        f"{len(listed)} runs, {len(left)} of them to be run, {min(args.workers, max(len(left), 1))} at a time",
        flush=True,
    )
    slots = queue.Queue()
    for k in range(args.workers):
        slots.put(args.devices[k % len(args.devices)] if args.devices else None)

    def one(job: Job) -> tuple[int, float]:
        """Run a job when a worker is free: its exit status and seconds."""
        device = slots.get()
        began = time.perf_counter()
        try:
            return run(job, args, device), time.perf_counter() - began
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


def needs_data(job: Job) -> bool:
    """Whether a job reads a dataset."""
    return not job.flags.get("scratch")


def submit(listed: list[Job], args: Args) -> None:
    """Hand the jobs that are not complete to SLURM, as one array whose task numbers are places in the list."""
    states = [state(job, args) for job in listed]
    for job, now in zip(listed, states):
        if now not in ("missing", "cut short", "complete"):
            raise SystemExit(f"error: {args.run_dir / job.folder} exists, {now}; delete it or give another --run-dir")
    left = [k for k, now in enumerate(states) if now != "complete"]
    if not left:
        return print("all runs are complete; --report-only writes the report")
    for env_id in dict.fromkeys(listed[k].env_id for k in left if needs_data(listed[k])):
        if why := prepare(env_id, args):
            raise SystemExit(f"{why}\nnothing was submitted")
    logs = (args.run_dir / "logs").resolve()
    logs.mkdir(parents=True, exist_ok=True)
    limit = f"%{args.array_limit}" if args.array_limit else ""
    options = {
        "job-name": f"dmg-{args.name}",
        "array": ",".join(map(str, left)) + limit,
        "output": f"{logs}/slurm-%A_%a.out",
    }
    options |= {"open-mode": "append", "requeue": None, "cpus-per-task": args.threads, "partition": args.partition}
    options |= {"time": args.time, "gpus": args.gpus}
    optional = ("partition", "time", "gpus")
    lines = [
        f"#SBATCH --{key}" + ("" if value is None else f"={value}")
        for key, value in options.items()
        if not (key in optional and value is None)
    ]
    lines += [f"#SBATCH --{option}" for option in args.sbatch]
    again = [word for word in sys.argv[1:] if word != "--slurm"]
    task = shlex.join([sys.executable, str(ROOT / "tools/benchmark.py"), *again]) + ' --task "$SLURM_ARRAY_TASK_ID"'
    script = "\n".join(["#!/bin/bash", *lines, f"cd {shlex.quote(os.getcwd())}", f"exec {task}", ""])
    try:
        ended = subprocess.run(["sbatch"], input=script, text=True, capture_output=True)
    except FileNotFoundError:
        raise SystemExit("error: --slurm, but there is no sbatch here; submit from a machine of the cluster") from None
    if ended.returncode:
        raise SystemExit(f"error: sbatch refused the array ({ended.stderr.strip()}); it was sent:\n{script}")
    print(
        f"{ended.stdout.strip()}: {len(left)} of {len(listed)} runs\nwhen they have ended, the same command submits "
        "what is left, and --report-only in place of --slurm writes the report"
    )


def main(args: Args) -> int:
    """What the command line asks for; returns the exit status, 1 where a run is not complete."""
    args, env_ids = resolve(args)
    listed = jobs(
        args.name, env_ids, args.seeds, args.iterations, args.online_steps, args.eval_every, args.eval_episodes
    )
    if args.task is not None:
        if not 0 <= args.task < len(listed):
            raise SystemExit(f"error: --task {args.task}: there are {len(listed)} jobs, from 0")
        return run(listed[args.task], args)
    if args.dry_run:
        dry_run(listed, args)
        return 0
    if args.slurm:
        submit(listed, args)
        return 0
    complete = args.report_only or run_here(listed, args)
    report.write(args.name, args.dataset, env_ids, args.seeds, args.run_dir, args.reports)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
