"""Run the paper's tables and figures by name, here or on a SLURM cluster, and write their reports.

    bash benchmark.sh table2                # 42 jobs of five seeds, then reports/table2-d4rl.md
    bash benchmark.sh table2 --dry-run      # what that would do, and how long it would take
    bash benchmark.sh table1 --dataset local --iterations 250000 --settings DMG in-sample-ablation
    bash benchmark.sh table2 --slurm --partition gpu --gpus 1 --time 4:00:00

A job is one setting on one dataset, all seeds together. A job that is complete is skipped, one that was
cut short is resumed, and one that fails is reported while the others go on: the same command again does
what is left. The output of each job is in <run-dir>/logs/.
"""

import importlib
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import GYM_TASKS, MAZE_TASKS, ROOT, dataset_file, dmg_iql, run


# ---- What the paper has -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Setting:
    """One column of a table or line of a figure: a script and the flags that differ from its presets."""

    name: str  # --exp-name of its runs
    script: str
    flags: dict[str, float | bool]
    action: str = ""  # Table 1: how far the policy generalises in actions
    propagation: str = ""  # Table 1: how far the Bellman target does
    offline: "Setting | None" = None  # the setting whose runs it fine-tunes


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its datasets of D4RL and collected here, its settings, its number of seeds."""

    title: str
    d4rl: list[str]
    local: list[str]
    settings: list[Setting]
    ours: str = ""  # what the paper's text does not say, so that it is our choice
    seeds: int = 5


DMG = Setting("DMG", "dmg_iql", {}, "mild", "mild")
ABLATION = Setting("in-sample-ablation", "dmg_iql", {"lam": 0.0, "nu": float("inf")}, "none", "none")
TD3BC = Setting("TD3+BC-like", "dmg_iql", {"lam": 1.0, "nu": 0.4, "temperature": 0.0}, "mild", "full")
AWAC = Setting("AWAC-like", "dmg_iql", {"lam": 1.0, "nu": float("inf")}, "none", "full")
TD3 = Setting("TD3-like", "dmg_iql", {"lam": 1.0, "nu": 0.0}, "full", "full")
BACKBONES = [
    Setting("XQL-ablation", "dmg_xql", ABLATION.flags),
    Setting("DMG-XQL", "dmg_xql", {}),
    Setting("SQL-ablation", "dmg_sql", ABLATION.flags),
    Setting("DMG-SQL", "dmg_sql", {}),
]
FINETUNED = [
    Setting("TD3-scratch", "dmg_finetune", {"scratch": True, "lam": 1.0, "nu": 0.0}),
    Setting("in-sample-ablation-finetuned", "dmg_finetune", ABLATION.flags, offline=ABLATION),
    Setting("DMG-finetuned", "dmg_finetune", {}, offline=DMG),
]
# One value of each grid is DMG itself: on medium data the preset of ν is 0.1. Its runs are shared.
LAMBDAS = [
    Setting("DMG" if lam == 0.25 else f"DMG-lam{lam:g}", "dmg_iql", {"lam": lam, "nu": 0.1})
    for lam in (0.0, 0.25, 0.5, 0.75, 1.0)
]
NUS = [
    Setting("DMG" if nu == 0.1 else f"DMG-nu{nu:g}", "dmg_iql", {"lam": 0.25, "nu": nu})
    for nu in (0.01, 0.03, 0.1, 1.0, 10.0)
]


def tasks(*qualities: str) -> list[str]:
    """The locomotion tasks of these qualities, in the paper's order."""
    return [task for quality in qualities for task in GYM_TASKS if task.split("-", 1)[1] == quality]


def experiment(
    title: str,
    on: list[str],
    settings: list[Setting],
    ours: str = "",
    seeds: int = 5,
    local: Iterable = (),
) -> Experiment:
    """An experiment on these tasks, and on the `local` ones with data collected here."""
    d4rl = [f"{task}-v2" for task in on]
    return Experiment(title, d4rl, [f"{task}-local" for task in [*local, *on]], settings, ours, seeds)


MEDIUM = tasks("medium")
MEDIUMS = tasks("medium", "medium-replay", "medium-expert")
LOCOMOTION = MEDIUMS + tasks("expert", "random")
ALL = LOCOMOTION + MAZE_TASKS
AN_IMAGE = "the datasets, Table 2's: the paper's is an image"
ONLINE = "random steps of TD3; on local data, locomotion beside AntMaze"
EXPERIMENTS = {
    "table1": experiment(
        "Table 1: five methods as two flags, with scores",
        MEDIUM,
        [DMG, ABLATION, TD3BC, AWAC, TD3],
        "the scores, their datasets, and the flags of the settings other than DMG",
    ),
    "table2": experiment("Table 2: offline scores", ALL, [ABLATION, DMG]),
    "table3": experiment("Table 3: DMG on other in-sample maxima", MEDIUMS, BACKBONES),
    "table4": experiment("Table 4: online fine-tuning", MAZE_TASKS, FINETUNED, ONLINE, local=MEDIUM),
    "table6": experiment(
        "Table 6: ten seeds, 95 % confidence intervals", ALL, [DMG], AN_IMAGE, seeds=10
    ),
    "figure1": experiment(
        "Figure 1: mixture coefficient λ at ν = 0.1", MEDIUM, LAMBDAS, "datasets and the grid of λ"
    ),
    "figure2": experiment(
        "Figure 2: penalty coefficient ν at λ = 0.25", MEDIUM, NUS, "datasets and the grid of ν"
    ),
    "figure3": experiment(
        "Figure 3: wall clock",
        ["halfcheetah-medium-replay"],
        [replace(setting, name=f"{setting.name}-timed") for setting in (DMG, ABLATION, TD3BC)],
        "which methods, apart from DMG; one job at a time",
        seeds=1,
    ),
    "figure4": experiment("Figure 4: learning curves on locomotion", LOCOMOTION, [DMG], AN_IMAGE),
    "figure5": experiment("Figure 5: learning curves on AntMaze", MAZE_TASKS, [DMG], AN_IMAGE),
    "figure6": experiment("Figure 6: fine-tuning curves", MAZE_TASKS, FINETUNED, ONLINE, local=MEDIUM),
}


# ---- The command line ---------------------------------------------------------------------------------
@dataclass
class Args:
    """Run a table or figure of the paper and write its report. What is complete is not run again."""

    name: tyro.conf.Positional[Literal[tuple(EXPERIMENTS)]]  # table or figure of the paper
    dataset: Literal["d4rl", "local"] = "d4rl"  # D4RL's data, downloaded; or data collected here
    only: tuple[str, ...] = ()  # only these dataset ids, in this order
    settings: tuple[str, ...] = ()  # only these settings, in this order: DMG in-sample-ablation ...
    seeds: int | None = None  # number of seeds, >= 1; None: 5, table6 10 (the paper's), figure3 1
    iterations: int = 1_000_000  # offline iterations, >= 1 (Table 5)
    online_steps: int | None = None  # of table4 and figure6, >= 1; None: as many as iterations
    eval_every: int | None = None  # >= 1; None: the paper's, or a 25th of less than a million
    eval_episodes: int | None = None  # per evaluation, >= 1; None: the paper's, 10, AntMaze 100
    run_dir: Path | None = None  # of the run folders; None: runs, not a million: runs/iterations-<N>
    reports: Path = Path("reports")  # of the reports; not a million: its iterations-<N>
    report_only: bool = False  # run nothing, write the report of what there is
    dry_run: bool = False  # print the commands and the estimated time, and do nothing
    workers: int | None = None  # jobs at a time, >= 1; None: one per GPU, else core; figure3 one
    threads: int = 1  # CPU threads of each job, >= 1
    rate: float = 100.0  # seed-iterations per second of a job, for estimates; 100: two jobs, two cores
    slurm: bool = False  # submit the jobs as a SLURM array instead of running them here
    partition: str | None = None  # SLURM: partition
    time: str | None = None  # SLURM: time limit of a job, which goes on when submitted again
    gpus: str | None = None  # SLURM: GPUs of a job
    array_limit: int | None = None  # SLURM: jobs running at a time, >= 1
    sbatch: tuple[str, ...] = ()  # SLURM: more options of sbatch without dashes, such as account=lab
    task: str | None = None  # run only the job of this run folder's name, as a SLURM task does


def chosen(flag: str, names: tuple[str, ...], known: list[str]) -> list[str]:
    """The names, or all that are known if there are none. SystemExit: one is not known."""
    for name in names:
        if name not in known:
            raise SystemExit(f"error: {flag} {name}: expected one of {', '.join(known)}")
    return list(dict.fromkeys(names)) or known


def resolve(args: Args) -> None:
    """Fill in what is None and check ranges. Raises SystemExit for a bad value."""
    for flag, value in vars(args).items():
        if type(value) in (int, float) and not 0 < value < float("inf"):
            raise SystemExit(f"error: --{flag.replace('_', '-')} {value}: expected more than 0")
    if args.name == "figure3" and (args.workers or 1) > 1:
        raise SystemExit("error: --workers: figure3 measures time, one job at a time; leave it out")
    args.seeds = args.seeds or EXPERIMENTS[args.name].seeds
    args.online_steps = args.online_steps or args.iterations
    length = "" if args.iterations == 1_000_000 else f"iterations-{args.iterations}"
    args.run_dir, args.reports = args.run_dir or Path("runs", length), args.reports / length
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once = 1 if args.name == "figure3" else len(gpus()) or max(1, cores // args.threads)
    args.workers = args.workers or at_once


def gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[: torch.cuda.device_count()] or [str(k) for k in range(torch.cuda.device_count())]


# ---- Jobs ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A setting on a dataset, all seeds together."""

    env_id: str
    setting: Setting
    flags: dict[str, float | int | bool]  # those of the setting, number of seeds, lengths
    offline: "Job | None" = None  # the job that it fine-tunes, which runs first

    @property
    def parts(self) -> list["Job"]:
        """The job, after the offline one if there is one."""
        return [self.offline, self] if self.offline else [self]

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.env_id}__{self.setting.name}__s0-{self.flags['num_seeds'] - 1}"

    @property
    def settings(self) -> dict[str, float | int | bool | str]:
        """What its config.json has to hold: every flag that changes results, resolved by the script."""
        script = importlib.import_module(self.setting.script)
        args = script.Args(env_id=self.env_id, device="cpu", **self.flags)
        if self.setting.offline:
            args.checkpoint = Path(self.setting.offline.name)  # any: the path is not compared
        script.resolve(args)
        values = json.loads(json.dumps(vars(args), default=str))
        free = script.MAY_CHANGE | {"resume", "exp_name", "checkpoint"}
        return {"script": self.setting.script} | {key: values[key] for key in values if key not in free}

    def command(self, args: Args) -> list[str]:
        """Its command, as one would type it."""
        words = ["python", f"{self.setting.script}.py", "--env-id", self.env_id]
        words += ["--exp-name", self.setting.name]
        for key, value in self.flags.items():
            words.append(f"--{key.replace('_', '-')}")
            if value is not True:
                words.append(f"{value:g}" if isinstance(value, float) else str(value))
        if self.offline:
            words += ["--checkpoint", str(args.run_dir / self.offline.folder)]
        words += ["--cudagraphs", "--threads", str(args.threads)]  # without a GPU there are none
        return [*words, "--run-dir", str(args.run_dir), "--resume"]

    def state(self, run_dir: Path) -> str:
        """missing, cut short, complete, or why the run folder of its name is left as it is."""
        folder = run_dir / self.folder
        config, checkpoint, done = (folder / name for name in ("config.json", "checkpoint.pt", "done"))
        try:
            if not any(path.exists() for path in (config, checkpoint, done)):
                return "missing"
            iteration, found, wanted = 0, [json.loads(config.read_text("utf-8"))], self.settings
            if checkpoint.exists() or done.exists():
                saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
                iteration = saved["iteration"]
                found.append(saved["config"])
            other = {key: c.get(key) for key in wanted for c in found if c.get(key) != wanted[key]}
            if other:
                words = (f"{key} {value}, not {wanted[key]}" for key, value in other.items())
                return f"other settings: {'; '.join(words)}"
            if iteration not in range(wanted["iterations"] + 1):
                raise ValueError(f"checkpoint.pt is of iteration {iteration}")
            if iteration == wanted["iterations"] and done.exists():
                return "complete"
            with FileLock(folder / ".lock", blocking=False):
                return "cut short"
        except Timeout:
            return "another process runs it"
        except Exception as error:  # all that a damaged folder can raise
            return f"damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def make_job(env_id: str, setting: Setting, args: Args) -> Job:
    """The job of a setting on a dataset."""
    length = args.online_steps if setting.script == "dmg_finetune" else args.iterations
    flags = {**setting.flags, "num_seeds": args.seeds, "iterations": length}
    if "scratch" in flags:
        flags["warmup_steps"] = length // 40  # TD3's 25,000 random steps, as a share of a million
    if args.eval_every or length < 1_000_000:
        flags["eval_every"] = args.eval_every or max(1, length // 25)
    if args.eval_episodes:
        flags["eval_episodes"] = args.eval_episodes
    flags["save_every"] = min(10_000, max(1, length // 10))
    return Job(env_id, setting, flags, setting.offline and make_job(env_id, setting.offline, args))


# ---- Running them -------------------------------------------------------------------------------------
def prepare(env_id: str) -> str:
    """Collect or download a dataset that is not there. Returns what went wrong, or nothing."""
    path = dataset_file(env_id)
    if path.exists():
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():  # another process has made it by now
                return ""
            if env_id.endswith("-v2"):
                dmg_iql.load_dataset(dmg_iql.Args(env_id, device="cpu"), dmg_iql.make_env(env_id))
                return ""
            print(f"collecting {env_id}: some minutes ...", flush=True)
            words = [sys.executable, str(ROOT / "tools/data/collect.py"), "--env-id", env_id]
            ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            return ended.stdout.strip().rpartition("\n")[2] if ended.returncode else ""
    except (OSError, SystemExit) as error:
        return str(error)


def with_data(left: list[Job]) -> tuple[list[Job], bool]:
    """The jobs whose dataset is there, or was downloaded or collected now, and whether these are all."""
    kept, wrong = [], {}
    for job in left:
        if "scratch" in job.flags:
            kept.append(job)
            continue
        if job.env_id not in wrong:
            wrong[job.env_id] = prepare(job.env_id)
        if wrong[job.env_id]:
            print(f"{job.folder}: left out, no data: {wrong[job.env_id]}", file=sys.stderr)
        else:
            kept.append(job)
    return kept, len(kept) == len(left)


def run_job(job: Job, args: Args, device: str | None = None) -> str:
    """Run a job, after its offline one, with the output in logs. Returns what went wrong, or nothing."""
    for part in job.parts:
        now = part.state(args.run_dir)
        if now == "complete":
            continue
        if now not in ("missing", "cut short"):
            return f"{args.run_dir / part.folder} is left as it is: {now}"
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        words = part.command(args)
        path = args.run_dir / "logs" / f"{part.folder}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n")
            log.flush()
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
            status = subprocess.run(words, stdout=log, stderr=log, env=environment).returncode
            log.write(f"\nexit status {status}\n")
        if status:
            return f"failed ({status}); see {path}"
    return ""


def run_here(listed: list[Job], args: Args) -> bool:
    """Run the jobs that are not complete, some at a time. Returns whether all are complete now."""
    left = [job for job in listed if job.state(args.run_dir) != "complete"]
    print(f"{len(listed)} jobs, {len(left)} of them to be run, {args.workers} at a time", flush=True)
    left, complete = with_data(left)
    devices = queue.Queue()
    for k in range(args.workers):
        devices.put(gpus()[k % len(gpus())] if gpus() else None)

    def one(job: Job) -> tuple[str, float]:
        """Run a job on a free device: what went wrong, or nothing, and how many seconds it took."""
        device = devices.get()
        began = time.perf_counter()
        try:
            return run_job(job, args, device), time.perf_counter() - began
        except OSError as error:
            return str(error), time.perf_counter() - began
        finally:
            devices.put(device)

    with ThreadPoolExecutor(args.workers) as pool:
        futures = {pool.submit(one, job): job for job in left}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                wrong, seconds = future.result()
                complete = complete and not wrong
                text = f"[{number}/{len(left)}] {futures[future].folder}: {wrong or 'complete'}"
                print(f"{text} ({seconds:.0f} s)", file=sys.stderr if wrong else sys.stdout, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit("interrupted; the same command continues") from None
    return complete


def submit(listed: list[Job], args: Args) -> int:
    """Hand the jobs that are not complete to SLURM as one array, whose tasks know them by run folder.
    Returns the exit status, 1 where some could not be submitted."""
    left, good = [], True
    for job in listed:
        now = job.state(args.run_dir)
        if now in ("missing", "cut short"):
            left.append(job)
        elif now != "complete":
            print(f"{args.run_dir / job.folder} is left as it is: {now}", file=sys.stderr)
            good = good and now == "another process runs it"
    left, all_have_data = with_data(left)
    status = 0 if good and all_have_data else 1
    if not left:
        print("nothing to submit; --report-only in place of --slurm writes the report")
        return status
    logs = (args.run_dir / "logs").resolve()
    logs.mkdir(exist_ok=True)
    at_once = 1 if args.name == "figure3" else args.array_limit
    limit = f"%{at_once}" if at_once else ""
    options = [
        "requeue",
        "open-mode=append",
        f"job-name=dmg-{args.name}",
        f"array=0-{len(left) - 1}{limit}",
    ]
    options += [f"output={logs}/slurm-%A_%a.out", f"cpus-per-task={args.threads}"]
    for key in ("partition", "time", "gpus"):
        if getattr(args, key):
            options.append(f"{key}={getattr(args, key)}")
    options = [f"--{option}" for option in [*options, *args.sbatch]]
    words = [word for word in sys.argv[1:] if word != "--slurm"]
    again = shlex.join([sys.executable, str(Path(__file__).resolve()), *words])
    script = f"""#!/bin/bash
jobs=({shlex.join(job.folder for job in left)})
cd {shlex.quote(os.getcwd())}
exec {again} --task "${{jobs[$SLURM_ARRAY_TASK_ID]}}"
"""
    try:
        ended = subprocess.run(["sbatch", *options], input=script, text=True, capture_output=True)
    except FileNotFoundError:
        raise SystemExit(
            "error: --slurm: no sbatch here; submit from a machine of the cluster"
        ) from None
    if ended.returncode:
        raise SystemExit(f"error: sbatch {shlex.join(options)}: {' '.join(ended.stderr.split())}")
    print(f"{ended.stdout.strip()}: {len(left)} of {len(listed)} jobs. When they have ended, the same")
    print("command submits what is left, and --report-only in place of --slurm writes the report")
    return status


def dry_run(listed: list[Job], args: Args) -> None:
    """Print what a run would do."""
    left, updates = 0, 0
    for job in listed:
        complete = job.state(args.run_dir) == "complete"
        left += not complete
        for part in [job] if complete else job.parts:
            now = part.state(args.run_dir)
            print(shlex.join(part.command(args)) + ("" if now == "missing" else f"   # {now}"))
            updates += part.flags["iterations"] if now in ("missing", "cut short") else 0
    at_once = min(args.array_limit or left if args.slurm else args.workers, left) or 1
    hours = updates * args.seeds / args.rate / 3600
    print(f"{len(listed)} jobs of {args.seeds} seeds, {left} of them to be run: about {hours:.1f} hours")
    print(f"one by one, {hours / at_once:.1f} hours {at_once} at a time, at --rate {args.rate:g}")


def main(args: Args) -> int:
    """What the command line asks for. Returns the exit status, 1 where a job is not complete."""
    this = EXPERIMENTS[args.name]
    env_ids = chosen("--only", args.only, this.d4rl if args.dataset == "d4rl" else this.local)
    names = chosen("--settings", args.settings, [setting.name for setting in this.settings])
    settings = [setting for name in names for setting in this.settings if setting.name == name]
    resolve(args)
    listed = [make_job(env_id, setting, args) for env_id in env_ids for setting in settings]
    args.workers = min(args.workers, len(listed))
    if args.dry_run:
        dry_run(listed, args)
        return 0
    if args.task:
        chosen("--task", (args.task,), [job.folder for job in listed])
    for folder in (args.run_dir, args.reports):  # not after the training, if they cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if args.task:
        wrong = next(run_job(job, args) for job in listed if job.folder == args.task)
        print(f"{args.task}: {wrong or 'complete'}", file=sys.stderr)
        return 1 if wrong else 0
    if args.slurm:
        return submit(listed, args)
    import report  # not above, since it imports this file

    complete = args.report_only or run_here(listed, args)
    report.write(args.name, args.dataset, listed, args.seeds, args.run_dir, args.reports)
    return 0 if complete else 1


if __name__ == "__main__":
    import reproduce  # the same file as tools/report.py sees it

    run(reproduce.main, reproduce.Args)
