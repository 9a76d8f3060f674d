"""Whether the scripts work on a GPU, and how fast they are there: one command of at most seven minutes.

    bash benchmark.sh gpu                      # or: python tools/gpu.py --out reports
    python tools/gpu.py --device cpu --quick   # tries this file, without a GPU, in a minute

Every step is a process of its own with a time limit; one that fails has a row that says so, and the next
one follows. What was found so far is in OUT/gpu.md, a table, and OUT/gpu.json at any time."""

import contextlib
import csv
import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import speed
import torch
from common import ROOT, replacing, run
from torch.autograd import DeviceType

import dmg_iql

CLOSE = 1e-9  # largest difference of any parameter in float64
RESUMED = 1e-4  # the same in float32, on a GPU, between a run that was killed and one that was not
ENV_ID = "walker2d-medium-local"  # of the training
MUST = ("graphs", "eager", "plain")  # variants that have to run
AFTER_RATES = 160  # seconds that evaluation, collecting and the training need behind the rates


@dataclass
class Args:
    """Where to run, and where to write."""

    out: Path = Path("reports")
    """folder for gpu.md and gpu.json"""
    device: str = "cuda"
    """cuda, cuda:1, ...; cpu: what a CPU can do of it"""
    minutes: float = 7.0
    """time for everything, 1 to 60: the last step, a training, takes what the others leave"""
    quick: bool = False
    """small sizes, a fixed short training: this file is tried, nothing is measured"""


@dataclass
class Report:
    """The table so far and the numbers behind it; both files are written anew with each row."""

    args: Args
    began: float = field(default_factory=time.monotonic)
    rows: list[list[str]] = field(default_factory=list)
    data: dict[str, object] = field(default_factory=dict)
    failed: int = 0

    def left(self) -> float:
        """Seconds left of --minutes."""
        return 60 * self.args.minutes - (time.monotonic() - self.began)

    def add(self, step: str, verdict: str, result: str, seconds: float) -> None:
        """A row of the table: verdict is ok, FAILED, short (of a target) or -."""
        self.rows.append([step, verdict, result.replace("|", "/"), f"{seconds:.0f}"])
        print(f"{step}: {verdict} ({result}, {seconds:.1f} s)", flush=True)
        lines = speed.markdown(["step", "verdict", "result", "seconds"], self.rows)
        texts = {"gpu.md": "\n".join(lines) + "\n"}
        texts["gpu.json"] = json.dumps({"rows": self.rows, "steps": self.data}, indent=1)
        for name, text in texts.items():
            with replacing(self.args.out / name) as part:
                part.write_text(text, encoding="utf-8")

    def step(
        self, name: str, limit: float, function: Callable, *args: object, needed: bool = True
    ) -> dict | None:
        """Run function(*args) -> (result, numbers) under a time limit in seconds. Returns the numbers,
        None if it failed, which counts only where it is needed."""
        began = time.monotonic()
        limit = 120.0 if self.args.quick else min(limit, self.left())
        try:
            if limit <= 1:
                raise RuntimeError("no time left")
            result, self.data[name] = speed.apart(limit, function, *args)
        except RuntimeError as error:
            self.failed += needed
            self.data[name] = {"error": str(error)}
            self.add(name, "FAILED" if needed else "-", str(error)[:300], time.monotonic() - began)
            return None
        self.add(name, "ok", result, time.monotonic() - began)
        return self.data[name]


# ---- 1. The machine -----------------------------------------------------------------------------------
def machine(args: Args) -> tuple[str, dict]:
    """Names of the device, its driver, and what is installed. SystemExit where the device is not
    there."""
    dmg_iql.resolve(dmg_iql.Args(device=args.device))
    found = {"device": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.device != "cpu":
        found["device"] = torch.cuda.get_device_name(args.device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        if shutil.which(query[0]):
            found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
        found["cuda"] = torch.version.cuda
    found |= {"torch": torch.__version__, "python": platform.python_version()}
    found |= {name: version(name) for name in ("gymnasium", "mujoco")}
    if importlib.util.find_spec("jax"):
        found["jax"] = version("jax")
    return ", ".join(f"{name} {value}" for name, value in found.items()), found


# ---- 2. Checks ----------------------------------------------------------------------------------------
def within(difference: float, limit: float, what: str) -> tuple[str, dict]:
    """A check's result. Raises ValueError where the difference is larger than the limit, or NaN."""
    if not difference <= limit:
        raise ValueError(f"{what}: largest difference {difference:.1e}, more than {limit:.0e}")
    words = "equal to the last bit" if difference == 0 else f"largest difference {difference:.1e}"
    return f"{what}: {words}", {"difference": difference, "limit": limit}


def sizes_of(args: Args) -> speed.Args:
    """What tools/speed.py times and checks."""
    if args.quick:
        return speed.Args(device=args.device, rows=1000, seconds=0.1, hidden_dim=32, batch_size=32)
    return speed.Args(device=args.device, rows=1_000_000, seconds=2.0)


def job_of(args: Args, **changes: object) -> dmg_iql.Args:
    """A job's resolved arguments."""
    if args.quick:
        changes |= {"hidden_dim": 32, "batch_size": 32}
    job = dmg_iql.Args(env_id="hopper-medium-local", device=args.device, **changes)
    dmg_iql.resolve(job)
    return job


def train_on_noise(job: dmg_iql.Args, wrap: Callable | None = None) -> dict[str, torch.Tensor]:
    """Parameters and the last log after 100 iterations of the script's loop on random numbers."""
    agent = dmg_iql.DMG(job, 11, 3)
    speed.float32_rates(agent)
    update = wrap(agent) if wrap else agent.update
    buffer = torch.tensor(speed.random_rows(speed.Args(rows=1000))).to(agent.lam)
    indices, noise = dmg_iql.draw_block(job, 0, len(buffer), 3)
    for t in range(100):
        actor_step = (t + 1) % job.policy_delay == 0
        log = update(buffer[indices[:, t]], noise[:, t], actor_step)
        if actor_step:
            agent.optimisers["schedule"].step()
    return agent.state_dict() | {f"log {name}": values for name, values in log.items()}


def farthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of two dictionaries of tensors; infinite where they hold different
    things."""
    if found.keys() != wanted.keys():
        return np.inf
    return max((found[key] - wanted[key]).abs().max().item() for key in wanted)


def device_equals_cpu(args: Args) -> tuple[str, dict]:
    """The update on the device against the plain one of tools/speed.py on the CPU, in float64."""
    differences = speed.check(sizes_of(args), iterations=100)
    return within(differences["eager"], CLOSE, "the update and the CPU's, 100 iterations in float64")


def graphs_equal_eager(args: Args) -> tuple[str, dict]:
    """The captured update against the same one as it is, in float64."""
    torch.set_default_dtype(torch.float64)
    job = job_of(args, num_seeds=2)
    eager, graphs = train_on_noise(job), train_on_noise(job, dmg_iql.captured)
    return within(farthest(graphs, eager), CLOSE, "CUDA graphs and eager, 100 iterations in float64")


def seed_alone(args: Args) -> tuple[str, dict]:
    """Each seed of a batch of three against the same seed alone, in float64."""
    torch.set_default_dtype(torch.float64)
    together, worst = train_on_noise(job_of(args, num_seeds=3)), 0.0
    for k in range(3):
        alone = train_on_noise(job_of(args, seed=k))
        part = {key: x[k::3] for key, x in together.items()}  # nets are twin * seeds + seed
        worst = max(worst, farthest(part, alone))
    return within(worst, CLOSE, "a seed in a batch and alone, 100 iterations in float64")


def write_noise(path: Path) -> None:
    """A dataset of 2,000 rows of random numbers in hopper's shapes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(2000, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (2000, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=2000).astype(np.float32)
        file["terminals"] = rng.random(2000) < 0.02
        file["timeouts"] = rng.random(2000) < 0.005


def train(job: dmg_iql.Args) -> None:
    """dmg_iql.train without its output."""
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            dmg_iql.train(job)


def wait_for(path: Path, process: multiprocessing.Process) -> None:
    """Wait until the file is there, or the process that makes it has ended."""
    while process.is_alive() and not path.exists():
        time.sleep(0.01)


def resume(args: Args, folder: Path) -> tuple[str, dict]:
    """A run that is killed behind its first checkpoint and resumed against one that is not: parameters,
    states of the optimisers, episodes."""
    write_noise(folder / "noise.hdf5")
    size = dict(iterations=200, batch_size=32, hidden_dim=32) if args.quick else dict(iterations=5_000)
    job = dmg_iql.Args(env_id="hopper-medium-local", device=args.device, num_seeds=2, **size)
    job.dataset_path, job.run_dir, job.cudagraphs = folder / "noise.hdf5", folder, True
    job.save_every = job.eval_every = job.iterations // 5
    job.eval_episodes = 1

    def start(**changes: object) -> tuple[multiprocessing.Process, Path]:
        changed = replace(job, **changes)
        process = multiprocessing.get_context("fork").Process(target=train, args=(changed,))
        process.start()
        return process, folder / f"{job.env_id}__{changed.exp_name}__s0-1" / "checkpoint.pt"

    def finish(process: multiprocessing.Process, path: Path) -> dict:
        process.join()
        if process.exitcode:
            raise ValueError(f"the run of {path.parent.name} ended with status {process.exitcode}")
        return torch.load(path, map_location="cpu", weights_only=True)

    wanted = finish(*start(exp_name="whole"))
    process, path = start(exp_name="killed")
    wait_for(path, process)
    process.kill()
    process.join()
    at = torch.load(path, map_location="cpu", weights_only=True)["iteration"]
    if at >= job.iterations:
        raise ValueError("the run had ended before it was killed")
    found = finish(*start(exp_name="killed", resume=True))
    tensors = [{f"agent {key}": x for key, x in saved["agent"].items()} for saved in (found, wanted)]
    for values, saved in zip(tensors, (found, wanted)):
        for name in "actor", "critic", "value":
            for i, moments in saved["optimisers"][name]["state"].items():
                values |= {f"{name} {i} {key}": x for key, x in moments.items()}
    limit = 0.0 if args.device == "cpu" else RESUMED
    if len(found["evals"]) != len(wanted["evals"]) or (limit == 0 and found["evals"] != wanted["evals"]):
        raise ValueError("the resumed run has other evaluations")
    what = f"a run killed behind iteration {at:,} and one that was not"
    return within(farthest(*tensors), limit, what)


# ---- 3. Speed -----------------------------------------------------------------------------------------
RATE = lambda rates, name, n: n * rates[name, n]["rate"]
TIMES = lambda rates, name, n: rates["graphs", n]["rate"] / rates[name, n]["rate"]
TARGETS = [  # on an H100 or H200: name, what is wanted, whether at least that, how it is found
    ("1 seed, it/s", 5_000, True, lambda rates: RATE(rates, "graphs", 1)),
    ("5 seeds, seed-it/s", 20_000, True, lambda rates: RATE(rates, "graphs", 5)),
    ("10 seeds, seed-it/s", 40_000, True, lambda rates: RATE(rates, "graphs", 10)),
    ("5 seeds, times plain's", 40, True, lambda rates: TIMES(rates, "plain", 5)),
    ("1 seed, times JAX's", 1, True, lambda rates: TIMES(rates, "jax", 1)),
    ("5 seeds, times JAX's", 1, True, lambda rates: TIMES(rates, "jax", 5)),
    ("5 seeds and 1,000,000 rows, GB", 1, False, lambda rates: rates["graphs", 5]["memory"]),
]


def rate(args: Args, variant: str, seeds: int) -> tuple[str, dict]:
    """Iterations per second of one variant of tools/speed.py, with the memory that it takes."""
    found = speed.measure(sizes_of(args), variant, seeds, 1)
    words = f"{found['rate']:,.0f} it/s, {seeds * found['rate']:,.0f} seed-it/s"
    return f"{words}, {found['memory']:.2f} GB", found


def profile(args: Args, variant: str, seeds: int) -> tuple[str, dict]:
    """What the device does in an iteration: how many kernels (on a CPU: operators), how long they take
    and how long it waits between them."""
    on_gpu = args.device != "cpu"
    steps, number = speed.VARIANTS[variant](sizes_of(args), seeds), 20
    for _ in range(20):
        next(steps)
    speed.wait(args.device)
    activities = [torch.profiler.ProfilerActivity.CPU] + on_gpu * [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(number):
            next(steps)
        speed.wait(args.device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.events() if event.device_type == kind]
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, until = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(end - max(begin, until), 0)
        until = max(until, end)
    total = (until - spans[0][0]) / number
    found = {"kernels": len(spans) / number, "busy_us": busy / number, "total_us": total, "longest": {}}
    for event in events:
        taken = found["longest"].setdefault(event.name[:80], [0.0, 0.0])
        taken[0] += 1 / number
        taken[1] += (event.time_range.end - event.time_range.start) / number
    longest = sorted(found["longest"].items(), key=lambda item: -item[1][1])[:10]
    found["longest"] = dict(longest)
    what = "kernels" if on_gpu else "operators"
    words = f"{found['kernels']:.0f} {what} an iteration, {total:.0f} µs, "
    words += f"of which {total - found['busy_us']:.0f} are between them; longest: {longest[0][0]}"
    return words, found


# ---- 4. Evaluation ------------------------------------------------------------------------------------
def evaluation(args: Args, env_id: str, episodes: int) -> tuple[str, dict]:
    """One evaluation of one seed on all cores, as long as it can be."""
    found = speed.evaluate(args.device, env_id, 1, None, episodes)
    pace = found["steps"] / found["seconds"]
    return f"{found['steps']:,} steps in {found['seconds']:.1f} s, {pace:,.0f} steps/s", found


# ---- 5. A training ------------------------------------------------------------------------------------
def collect(args: Args, path: Path) -> tuple[str, dict]:
    """The training's dataset, made here."""
    size = 1000 if args.quick else 1_000_000
    words = ["tools/data/collect.py", "--env-id", ENV_ID, "--size", str(size), "--out", str(path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip().splitlines()[-1].removeprefix(f"{path}: "), {"rows": size}


def training(args: Args, folder: Path, iterations: int) -> tuple[str, dict]:
    """One run of dmg_iql.py of five seeds, with four evaluations."""
    job = dmg_iql.Args(env_id=ENV_ID, device=args.device, num_seeds=5, iterations=iterations)
    job.cudagraphs = True
    job.dataset_path, job.run_dir, job.eval_every = folder / "data.hdf5", folder, iterations // 4
    if args.quick:
        job = replace(job, num_seeds=2, hidden_dim=16, batch_size=16, eval_episodes=1)
    draw, play, began, seconds = dmg_iql.draw_block, dmg_iql.rollout, [], []

    def first_draw(*rest: object) -> object:
        began.append(time.perf_counter())
        return draw(*rest)

    def timed(*rest: object) -> object:
        since = time.perf_counter()
        result = play(*rest)
        seconds.append(time.perf_counter() - since)
        return result

    dmg_iql.draw_block, dmg_iql.rollout = first_draw, timed
    train(job)
    total, spent = time.perf_counter() - began[0], sum(seconds)
    last, mean = scores(folder)
    if last != iterations:
        raise ValueError(f"the last evaluation is that of iteration {last:,}, not {iterations:,}")
    pace = iterations / (total - spent)
    usual = spent / len(seconds) / (spent / len(seconds) + 20_000 / pace)
    found = {"iterations": iterations, "seconds": total, "evaluation": spent}
    found |= {"scores": mean, "rate": pace}
    words = (
        f"{iterations:,} iterations × {job.num_seeds} seeds in {total:.0f} s, {pace:,.0f} it/s between "
    )
    words += f"evaluations, which take {spent / total:.0%} (every 20,000 iterations: {usual:.0%}); "
    words += f"scores {' '.join(f'{score:.1f}' for score in mean[str(last)])}"
    return words, found


def scores(folder: Path) -> tuple[int, dict[str, list[float]]]:
    """The training's last evaluation so far (0: none), and of each one the mean score of every seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in folder.glob(f"{ENV_ID}__*/eval.csv"):
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            seeds = found.setdefault(row["iteration"], {})
            seeds.setdefault(row["seed"], []).append(float(row["score"]))
    mean = {key: [float(np.mean(x)) for x in seeds.values()] for key, seeds in found.items()}
    return int([0, *mean][-1]), mean


def iterations_that_fit(args: Args, seconds: float, pace: float, steps_per_second: float) -> int:
    """How many iterations of the training fit into so many seconds, in thousands, with four evaluations
    of five seeds' ten episodes of 1,000 steps, at most 1,000,000."""
    if args.quick:
        return 100
    seconds -= 25 + 4 * 50_000 / steps_per_second  # 25 s until it trains
    return int(np.clip(0.9 * pace * seconds // 1000, 1, 1000)) * 1000


def measure_rates(args: Args, report: Report) -> dict[tuple[str, int], dict]:
    """The table's rows of rates, first of what has to run, then of what may be installed."""
    seeds, on_gpu = (1, 2) if args.quick else (1, 5, 10, 20), args.device != "cpu"
    jobs = [(name, n) for n in seeds for name in (["graphs"] if on_gpu else []) + ["eager", "plain"]]
    if importlib.util.find_spec("jax") and not args.quick:
        jobs += [("jax", n) for n in seeds]
    if on_gpu and importlib.util.find_spec("triton") and not args.quick:
        jobs += [("compile", n) for n in seeds[:2]]
    rates = {}
    for variant, n in jobs:
        name = f"{variant}, {n} seed(s)"
        if report.left() < AFTER_RATES and not args.quick:
            report.add(name, "-", "not measured: no time left", 0.0)
        elif found := report.step(name, 75, rate, args, variant, n, needed=variant in MUST):
            rates[variant, n] = found
    return rates


def compare(args: Args, report: Report, rates: dict[tuple[str, int], dict]) -> None:
    """The table's rows of targets and, where one is missed, one profile."""
    missed = []
    for name, wanted, at_least, find in TARGETS:
        try:
            found = find(rates)
        except KeyError as error:
            report.add(f"target: {name}", "-", f"{error} was not measured", 0.0)
            continue
        if found < wanted if at_least else found > wanted:
            missed.append(name)
        words = f"{found:,.1f}, wanted at {'least' if at_least else 'most'} {wanted:,}"
        report.add(f"target: {name}", "short" if name in missed else "ok", words, 0.0)
    if missed:
        seeds = 1 if missed[0].startswith("1 seed") else 5
        report.step("profile", 60, profile, args, "graphs", seeds)


def main(args: Args) -> int:
    """Run every step. Returns 1 if one failed. Raises ValueError and OSError where there is no such
    device, for a flag out of range, and for a folder that cannot be written."""
    if not 1 <= args.minutes <= 60:
        raise ValueError(f"--minutes {args.minutes}: expected 1 to 60")
    try:
        speed.apart(120, machine, args)
    except RuntimeError as error:
        raise ValueError(f"{error}; without a GPU: --device cpu --quick") from None
    report = Report(args)
    report.step("machine", 60, machine, args)
    report.step("device", 60, device_equals_cpu, args)
    if args.device == "cpu":
        report.add("graphs", "-", "needs a GPU", 0.0)
    else:
        report.step("graphs", 60, graphs_equal_eager, args)
    report.step("seed alone", 60, seed_alone, args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.step("resume", 90, resume, args, folder)
        rates = measure_rates(args, report)
        if args.device != "cpu":
            compare(args, report, rates)
        elif args.quick:
            report.step("profile", 60, profile, args, "eager", 1)
        played = {}
        for env_id, episodes in ("antmaze-umaze-local", 100), ("hopper-medium-local", 10):
            words = f"evaluation, {env_id.split('-')[0]}"
            played = report.step(words, 60, evaluation, args, env_id, 2 if args.quick else episodes)
        if report.step("collect", 120, collect, args, folder / "data.hdf5"):
            pace = (rates.get(("graphs", 5)) or rates.get(("eager", 5)) or {"rate": 1_000})["rate"]
            stepped = played["steps"] / played["seconds"] if played else 5_000
            iterations = iterations_that_fit(args, report.left() - 10, pace, stepped)
            if not report.step("training", report.left() - 5, training, args, folder, iterations):
                report.data["training"]["scores"] = scores(folder)
        else:
            report.add("training", "-", "has no dataset", 0.0)
    if report.failed:
        print(f"{report.failed} steps failed: see {args.out}/gpu.md", file=sys.stderr)
    return int(report.failed > 0)


if __name__ == "__main__":
    run(main, Args)
