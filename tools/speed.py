"""Time the update of dmg_iql.py beside the same update as it is usually written.

    bash benchmark.sh speed                 # or: python tools/speed.py --threads 1 2 --seeds 1 5 10
    bash benchmark.sh speed --evaluation    # the share of the wall clock that evaluation takes

Variants: *plain* (a NumPy replay buffer, one host-to-device copy per array and batch, torch.nn networks
one by one, the seeds in a loop, Adam without fusion), *eager* (dmg_iql.py: its update, in its loop), on
a GPU *graphs* (its CUDA graphs), and by flag *compile* (its update through torch.compile), *baseline*
(eager, of another dmg_iql.py) and *jax* (tools/speed_jax.py, where JAX is installed). Before anything is
timed, plain, eager, baseline and jax are checked to compute the same parameters from the same batches.

Each measurement is a process of its own, bound to as many CPUs as it has threads (on Linux, not with a
GPU); the variants take turns, `--repeats` times, and the table shows medians. The last columns compare
with this machine's rate of products of 256 x 256 matrices, measured behind each variant in its process.

Evaluation is timed under the paper's protocol (the presets' --eval-every and --eval-episodes) at its
longest: with an untrained policy in tasks where that one's episodes last to the time limit, a
halfcheetah's and an ant's in a maze. There --threads counts the threads that step the simulators: the
pool of dmg_iql.rollout is made with so many (a run's own has four more than there are CPUs)."""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import replacing, run
from torch import Tensor, nn

import dmg_iql

RATE = 2**-12  # learning rate of checks in float64: the same number in float32
LONGEST = ("halfcheetah-medium-local", "antmaze-umaze-local", "antmaze-large-play-local")


@dataclass
class Args:
    """Which variants to time, and for how long."""

    threads: tuple[int, ...] = (1, 2)
    """CPU thread counts to measure, one block of rows each; on a GPU only the first is used"""
    seeds: tuple[int, ...] = (1, 5, 10)
    """numbers of seeds trained side by side, 1 to 1,000"""
    repeats: int = 5
    """measurements of each row, taken in turns, 1 to 1,000"""
    seconds: float = 4.0
    """length of one measurement, 0.1 to 3,600"""
    rows: int = 200_000
    """transitions in the replay buffer, 1,000 to 10,000,000 (random numbers; the arithmetic does not
    depend on them)"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda if torch sees a GPU"""
    state_dim: int = 11
    """state dimensions, 1 to 10,000: 11 as hopper, 17 as walker2d and halfcheetah"""
    action_dim: int = 3
    """action dimensions, 1 to 10,000: 3 as hopper, 6 as walker2d and halfcheetah"""
    hidden_dim: int = 256
    """units per hidden layer, 1 to 10,000"""
    batch_size: int = 256
    """transitions per seed, 1 to 100,000"""
    jax: bool = False
    """also time the update in JAX, which has to be installed"""
    compile: bool = False
    """also time the update through torch.compile; it compiles for a minute in each measurement"""
    baseline: Path | None = None
    """also time this other version of dmg_iql.py"""
    out: Path | None = None
    """also write the table and the raw numbers to this JSON file"""
    evaluation: bool = False
    """instead time evaluations beside the training between two of them"""


# ---- The usual way ------------------------------------------------------------------------------------
class Plain:
    """DMG's update for one seed, written the usual way: torch.nn modules, backward(), one optimiser
    each."""

    def __init__(self, args: dmg_iql.Args, state_dim: int, action_dim: int) -> None:
        def net(inputs: int, outputs: int) -> nn.Sequential:
            width = args.hidden_dim
            hidden = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            return nn.Sequential(*hidden, nn.Linear(width, outputs)).to(args.device)

        self.args, self.iteration = args, 0
        self.actor, self.actor_target = net(state_dim, action_dim), net(state_dim, action_dim)
        self.critics = nn.ModuleList([net(state_dim + action_dim, 1) for _ in range(2)])
        self.critic_targets = nn.ModuleList([net(state_dim + action_dim, 1) for _ in range(2)])
        self.value = net(state_dim, 1)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_targets.load_state_dict(self.critics.state_dict())
        adam = {"lr": args.learning_rate, "foreach": False, "fused": False}
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), **adam)
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), **adam)
        self.value_optimiser = torch.optim.Adam(self.value.parameters(), **adam)
        steps = args.iterations // args.policy_delay
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimiser, steps)

    def update(
        self, s: Tensor, a: Tensor, r: Tensor, not_done: Tensor, s2: Tensor, noise: Tensor
    ) -> dict:
        """One iteration from batches [batch, ...]; r and not_done are [batch, 1]."""
        args, self.iteration = self.args, self.iteration + 1
        sa = torch.cat([s, a], 1)
        with torch.no_grad():
            q_target = torch.min(*[critic(sa) for critic in self.critic_targets])
        v = self.value(s)
        u = q_target - v
        value_loss = (torch.where(u > 0, args.expectile, 1 - args.expectile) * u**2).mean()
        self.value_optimiser.zero_grad()
        value_loss.backward()
        self.value_optimiser.step()

        with torch.no_grad():
            a2 = (torch.tanh(self.actor_target(s2)) + noise).clamp(-1, 1)
            q2 = torch.min(*[critic(torch.cat([s2, a2], 1)) for critic in self.critic_targets])
            target = r + not_done * args.gamma * (args.lam * q2 + (1 - args.lam) * self.value(s2))
        q1, q2 = [critic(sa) for critic in self.critics]
        critic_loss = nn.functional.mse_loss(q1, target) + nn.functional.mse_loss(q2, target)
        self.critic_optimiser.zero_grad()
        critic_loss.backward()
        self.critic_optimiser.step()

        if self.iteration % args.policy_delay == 0:
            with torch.no_grad():
                advantage = torch.min(*[critic(sa) for critic in self.critic_targets]) - self.value(s)
                weight = torch.exp(args.temperature * advantage).clamp(max=args.weight_clip)
            pi = torch.tanh(self.actor(s))
            q = torch.min(*[critic(torch.cat([s, pi], 1)) for critic in self.critics])
            loss = -q.mean() / q.abs().mean().detach() + args.nu * (weight * (pi - a) ** 2).mean()
            self.actor_optimiser.zero_grad()
            loss.backward()
            self.actor_optimiser.step()
            self.schedule.step()
            pairs = (self.actor, self.actor_target), (self.critics, self.critic_targets)
            for net, target in pairs:
                for param, slow in zip(net.parameters(), target.parameters()):
                    slow.data.copy_(args.polyak * param.data + (1 - args.polyak) * slow.data)
        return {"value_loss": value_loss.item(), "critic_loss": critic_loss.item()}


def networks(plains: list[Plain]) -> dict[str, list[nn.Sequential]]:
    """The networks of all seeds under the names of DMG's, in its order: twins first."""
    twins = range(2)
    return {
        "actor": [plain.actor for plain in plains],
        "critic": [plain.critics[i] for i in twins for plain in plains],
        "value": [plain.value for plain in plains],
        "actor_target": [plain.actor_target for plain in plains],
        "critic_target": [plain.critic_targets[i] for i in twins for plain in plains],
    }


def weights(plains: list[Plain]) -> dict[str, Tensor]:
    """All parameters under the names and in the shapes of DMG's state_dict."""
    found = {}
    for name, nets in networks(plains).items():
        for i in range(3):
            layers = [net[2 * i] for net in nets]
            found[f"{name}.layers.{i}.weight"] = torch.stack(
                [layer.weight.detach().T for layer in layers]
            )
            found[f"{name}.layers.{i}.bias"] = torch.stack(
                [layer.bias.detach()[None] for layer in layers]
            )
    return found


def take(plains: list[Plain], agent: dmg_iql.DMG) -> None:
    """Give the seeds the networks of a DMG."""
    given = agent.state_dict()
    for name, nets in networks(plains).items():
        for n, net in enumerate(nets):
            for i in range(3):
                net[2 * i].weight.data.copy_(given[f"{name}.layers.{i}.weight"][n].T)
                net[2 * i].bias.data.copy_(given[f"{name}.layers.{i}.bias"][n, 0])


# ---- The variants -------------------------------------------------------------------------------------
def load(path: Path) -> ModuleType:
    """Another version of dmg_iql.py as a module. Raises ValueError for a file that is none."""
    try:
        loader = importlib.machinery.SourceFileLoader("baseline", str(path))
        spec = importlib.util.spec_from_loader("baseline", loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["baseline"] = module  # dataclasses look their module up
        loader.exec_module(module)
        for name in "Args", "DMG", "draw_block", "resolve":
            getattr(module, name)
    except Exception as error:
        raise ValueError(f"--baseline {path} is no dmg_iql.py: {error}") from None
    return module


def job_of(args: Args, seeds: int, script: ModuleType = dmg_iql) -> dmg_iql.Args:
    """The script's resolved arguments of the job that is timed."""
    sizes = {"hidden_dim": args.hidden_dim, "batch_size": args.batch_size, "num_seeds": seeds}
    job = script.Args(env_id="hopper-medium-local", device=args.device, **sizes)
    script.resolve(job)
    return job


def random_rows(args: Args) -> np.ndarray:
    """A replay buffer [rows, columns] of random numbers: s, a, r, not_done, s2."""
    rng, n, s, a = np.random.default_rng(0), args.rows, args.state_dim, args.action_dim
    buffer = rng.standard_normal((n, s + a + 2 + s), np.float32)
    buffer[:, s : s + a] = np.tanh(buffer[:, s : s + a])
    buffer[:, s + a + 1] = rng.random(n) > 0.01
    return buffer


def wait(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)


# Each variant is a generator: it trains, and yields how many iterations it has done since the last time.
def plain(args: Args, seeds: int) -> Iterator[int]:
    """The usual way."""
    job = job_of(args, seeds)
    agents = [Plain(job, args.state_dim, args.action_dim) for _ in range(seeds)]
    ends = np.cumsum([args.state_dim, args.action_dim, 1, 1])
    columns = [np.ascontiguousarray(column) for column in np.split(random_rows(args), ends, axis=1)]
    while True:
        for agent in agents:
            rows = np.random.randint(0, args.rows, size=job.batch_size)
            batch = [torch.FloatTensor(column[rows]).to(job.device) for column in columns]
            noise = torch.randn_like(batch[1]) * job.policy_noise
            agent.update(*batch, noise.clamp(-job.noise_clip, job.noise_clip))
        yield 1


def eager(
    args: Args, seeds: int, script: ModuleType = dmg_iql, wrap: Callable | None = None
) -> Iterator[int]:
    """The script's loop without its logging, evaluating and saving; `wrap` makes another update of the
    agent, as dmg_iql.captured does."""
    job = job_of(args, seeds, script)
    agent = script.DMG(job, args.state_dim, args.action_dim)
    update = wrap(agent) if wrap else agent.update
    buffer = torch.tensor(random_rows(args), device=job.device)
    for iteration in itertools.count(1):
        block, t = divmod(iteration - 1, script.BLOCK)
        if t == 0:
            indices, noise = script.draw_block(job, block, len(buffer), args.action_dim)
        actor_step = iteration % job.policy_delay == 0
        update(buffer[indices[:, t]], noise[:, t], actor_step)
        if actor_step:
            agent.optimisers["schedule"].step()
        yield 1


def graphs(args: Args, seeds: int) -> Iterator[int]:
    """The script's loop with its CUDA graphs."""
    return eager(args, seeds, wrap=dmg_iql.captured)


def compiled(args: Args, seeds: int) -> Iterator[int]:
    """The script's loop with torch.compile, on a GPU within CUDA graphs."""

    def wrap(agent: dmg_iql.DMG) -> Callable:
        agent.update = torch.compile(agent.update)
        return dmg_iql.captured(agent) if agent.lam.is_cuda else agent.update

    return eager(args, seeds, wrap=wrap)


def baseline(args: Args, seeds: int) -> Iterator[int]:
    """The loop of another version of the script."""
    return eager(args, seeds, load(args.baseline))


def in_jax(args: Args, seeds: int) -> Iterator[int]:
    """The update in JAX, many iterations in each call."""
    import speed_jax

    job = job_of(args, seeds)
    agent = speed_jax.Jax(job, dmg_iql.DMG(job, args.state_dim, args.action_dim))
    length = 20 if job.device == "cpu" else 500
    advance = agent.loop(random_rows(args), length)
    while True:
        advance()
        yield length


VARIANTS = {"plain": plain, "eager": eager, "baseline": baseline, "graphs": graphs}
VARIANTS |= {"compile": compiled, "jax": in_jax}


# ---- Measuring ----------------------------------------------------------------------------------------
def apart(seconds: float, function: Callable, *args: Any) -> Any:
    """What function(*args) returns, in a process of its own that is ended with all its children after so
    many seconds. Raises RuntimeError with what went wrong there."""
    importlib.import_module("torch._dynamo")  # as torch's optimisers do, late: once, not in each process
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        os.setsid()
        try:
            sender.send((function(*args), None))
        except BaseException as error:
            words = " ".join(str(error).split()).removeprefix("error: ")
            if not isinstance(error, SystemExit | ValueError):
                traceback.print_exc()
                words = f"{type(error).__name__}: {words}"
            sender.send((None, words))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise RuntimeError(f"not done after {seconds:.0f} s")
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if error:
        raise RuntimeError(error)
    return result


def float32_rates(agent: dmg_iql.DMG) -> None:
    """Learning rates in float32, as torch's fused Adam wants them on a GPU."""
    for name in "actor", "critic", "value":
        group = agent.optimisers[name].param_groups[0]
        group["lr"] = group["lr"].float()


def check(args: Args, iterations: int = 20) -> dict[str, float]:
    """The largest difference of any parameter from plain's on the CPU, after so many updates in float64
    on the device, of each variant that computes another way."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    seeds = 2
    job, host = job_of(args, seeds), job_of(replace(args, device="cpu"), seeds)
    job.learning_rate = host.learning_rate = RATE
    agents = {"eager": dmg_iql.DMG(job, args.state_dim, args.action_dim)}
    plains = [Plain(host, args.state_dim, args.action_dim) for _ in range(seeds)]
    take(plains, agents["eager"])
    if args.baseline:
        script = load(args.baseline)
        other = job_of(args, seeds, script)
        other.learning_rate = RATE
        agents["baseline"] = script.DMG(other, args.state_dim, args.action_dim)
        agents["baseline"].load_state_dict(agents["eager"].state_dict())
    for agent in agents.values():
        float32_rates(agent)
    if args.jax:
        import jax
        import speed_jax

        jax.config.update("jax_enable_x64", True)
        agents["jax"] = speed_jax.Jax(job, agents["eager"])
    generator, columns = torch.Generator().manual_seed(0), agents["eager"].columns
    for i in range(1, iterations + 1):
        batch = torch.randn(seeds, job.batch_size, sum(columns), generator=generator)
        not_done = torch.rand(seeds, job.batch_size, generator=generator) > 0.1
        batch[..., -args.state_dim - 1] = not_done.double()
        noise = 0.2 * torch.randn(seeds, job.batch_size, args.action_dim, generator=generator)
        actor_step = i % job.policy_delay == 0
        for name, agent in agents.items():
            if name == "jax":
                agent.update(batch.numpy(), noise.numpy(), actor_step)
                continue
            agent.update(batch.to(job.device), noise.to(job.device), actor_step)
            if actor_step:
                agent.optimisers["schedule"].step()
        for k, one in enumerate(plains):
            one.update(*batch[k].split(columns, dim=-1), noise[k])
    differences = {}
    for name, agent in agents.items():
        found = agent.weights() if name == "jax" else agent.state_dict()
        pairs = [(torch.as_tensor(found[key]).cpu(), wanted) for key, wanted in weights(plains).items()]
        differences[name] = max((ours - wanted).abs().max().item() for ours, wanted in pairs)
    return differences


def sgemm(device: str) -> float:
    """GFLOP/s of 256 x 256 x 256 products in float32."""
    x, y, out = (torch.randn(256, 256, device=device) for _ in range(3))
    rates = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(200):
            torch.mm(x, y, out=out)
        wait(device)
        rates.append(200 * 2 * 256**3 / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates)


def bind(threads: int) -> None:
    """Give this process so many threads and CPUs."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(args: Args, variant: str, seeds: int, threads: int) -> dict[str, float]:
    """Iterations per second of one variant in its whole loop: batch, noise and update; GFLOP/s of
    products; GB of the device's memory."""
    device = job_of(args, 1).device
    if device == "cpu":
        bind(threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    torch.set_num_threads(threads)
    steps = VARIANTS[variant](args, seeds)

    def advance(iterations: int) -> tuple[int, float]:
        done, began = 0, time.perf_counter()
        while done < iterations:
            done += next(steps)
        wait(device)
        return done, time.perf_counter() - began

    advance(20)  # allocations, captures, compilation
    done, elapsed = advance(10)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    chunk = int(done / elapsed * args.seconds / 5) + 1
    done, elapsed = 0, 0.0
    while elapsed < args.seconds:
        iterations, seconds = advance(chunk)
        done, elapsed = done + iterations, elapsed + seconds
    memory = 0.0 if device == "cpu" else torch.cuda.max_memory_reserved(device) / 1e9
    if variant == "jax":
        memory = importlib.import_module("speed_jax").memory(device)
    return {"rate": done / elapsed, "sgemm": sgemm(device), "memory": memory}


def evaluate(
    device: str, env_id: str, seeds: int, threads: int | None, episodes: int | None = None
) -> dict[str, float]:
    """Seconds and steps of one evaluation with an untrained policy whose simulators are stepped by so
    many threads; None: by as many as in a run. A hopper is not stopped when it falls, so that it is
    long, too."""
    torch.set_num_threads(1)
    if threads:
        dmg_iql.ThreadPoolExecutor = functools.partial(ThreadPoolExecutor, threads)
    job = dmg_iql.Args(env_id=env_id, num_seeds=seeds, eval_episodes=episodes, device=device)
    dmg_iql.resolve(job)
    envs = [dmg_iql.make_env(env_id) for _ in range(seeds * job.eval_episodes)]
    if env_id.startswith("hopper-"):
        envs = [gym.make(env.spec, terminate_when_unhealthy=False) for env in envs]
    state_dim, action_dim = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    agent = dmg_iql.DMG(job, state_dim, action_dim)
    resets = dmg_iql.random_seeds(job, 2, 1, number=job.eval_episodes)
    began = time.perf_counter()
    _, lengths = dmg_iql.rollout(agent, envs, resets, np.zeros(state_dim), np.ones(state_dim))
    seconds = time.perf_counter() - began
    found = {"seconds": seconds, "steps": int(lengths.sum()), "every": job.eval_every}
    return found | {"state_dim": state_dim, "action_dim": action_dim}


# ---- Tables -------------------------------------------------------------------------------------------
def in_turns(args: Args, jobs: list[tuple], function: Callable) -> dict[tuple, list[dict]]:
    """function(*job) for every job, each in a process of its own, over and over. Raises RuntimeError."""
    found = {job: [] for job in jobs}
    for repeat in range(args.repeats):
        for job in jobs:
            found[job].append(apart(3600 + 10 * args.seconds, function, *job))
            print(f"{repeat + 1}/{args.repeats} {job}: {found[job][-1]}", file=sys.stderr)
    return found


def median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def markdown(names: list[str], rows: list[list]) -> list[str]:
    """The lines of a table."""
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def table_of_rates(args: Args) -> tuple[list[str], dict]:
    """The table of iterations per second, and what it was made from."""
    device = apart(60, lambda: job_of(args, 1).device)
    checked = [f"{name} {difference:.1e}" for name, difference in apart(600, check, args).items()]
    lines = ["largest difference of any parameter from plain's after 20 updates in float64:"]
    lines += [", ".join(checked), ""]
    flags = {"baseline": args.baseline, "compile": args.compile, "jax": args.jax}
    flags["graphs"] = device != "cpu"
    variants = [name for name in VARIANTS if flags.get(name, True)]
    threads = args.threads if device == "cpu" else args.threads[:1]
    jobs = [(variant, n, t) for t in threads for n in args.seeds for variant in variants]
    raw = in_turns(args, jobs, functools.partial(measure, args))
    names = ["threads", "seeds", "variant", "iterations/s", "seed-iterations/s", "against plain"]
    names, rows = [*names, "sgemm GFLOP/s", "share of it"], []
    # Of one seed's iteration, which has 19 products of hidden layers.
    gflop = 19 * 2e-9 * args.batch_size * args.hidden_dim**2
    for job in jobs:
        variant, n, t = job
        rate = median(raw[job], "rate")
        both = zip(raw[job], raw["plain", n, t])
        ratio = statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in both)
        share = statistics.median(n * gflop * run["rate"] / run["sgemm"] for run in raw[job])
        cells = [t, n, variant, f"{rate:.1f}", f"{n * rate:.1f}", f"{ratio:.2f}x"]
        cells += [f"{median(raw[job], 'sgemm'):.0f}", f"{share:.0%}"]
        rows.append(cells)
    lines += markdown(names, rows)
    if device != "cpu":
        peak = max(run["memory"] for runs in raw.values() for run in runs)
        lines += ["", f"largest memory of the device: {peak:.2f} GB ({args.rows:,} transitions)"]
    return lines, raw


def table_of_evaluations(args: Args, env_ids: tuple[str, ...] = LONGEST) -> tuple[list[str], dict]:
    """The table of seconds that an evaluation takes beside the training before it, and what it was made
    from."""
    device = apart(60, lambda: job_of(args, 1).device)
    jobs = [(env_id, n, threads) for env_id in env_ids for n in args.seeds for threads in args.threads]
    raw = in_turns(args, jobs, functools.partial(evaluate, args.device))
    names = [
        "task",
        "seeds",
        "threads of evaluation",
        "steps",
        "seconds",
        "iterations before it",
        "seconds",
    ]
    names, rows, rates = [*names, "evaluation's share"], [], {}
    for env_id, n, threads in jobs:
        one, seconds = raw[env_id, n, threads][0], median(raw[env_id, n, threads], "seconds")
        sized = replace(args, state_dim=one["state_dim"], action_dim=one["action_dim"])
        if (env_id, n) not in rates:
            variant = "eager" if device == "cpu" else "graphs"
            rates[env_id, n] = apart(600 + 10 * args.seconds, measure, sized, variant, n, 1)["rate"]
        training = one["every"] / rates[env_id, n]
        cells = [env_id, n, threads, f"{one['steps']:,}", f"{seconds:.1f}"]
        cells += [f"{one['every']:,}", f"{training:.1f}", f"{seconds / (seconds + training):.1%}"]
        rows.append(cells)
    return markdown(names, rows), raw


def check_flags(args: Args) -> None:
    """Raises ValueError for a flag out of range, and for a baseline or a JAX that is not there."""
    limits = {"repeats": (1, 1000), "seconds": (0.1, 3600), "rows": (1000, 10_000_000)}
    limits |= {"seeds": (1, 1000), "threads": (1, 1024), "batch_size": (1, 100_000)}
    limits |= dict.fromkeys(("state_dim", "action_dim", "hidden_dim"), (1, 10_000))
    for name, (low, high) in limits.items():
        values = np.atleast_1d(getattr(args, name))
        if not len(values) or not all(low <= value <= high for value in values):
            flag = f"--{name.replace('_', '-')} {' '.join(map(str, values))}"
            raise ValueError(f"{flag}: expected {low:,} to {high:,}")
    if args.jax and not importlib.util.find_spec("jax"):
        raise ValueError("--jax: JAX is not installed; pip install jax")
    if args.baseline:
        load(args.baseline)


def main(args: Args) -> None:
    """Check, measure in turns, print the table. Raises ValueError and OSError for a bad flag or file."""
    check_flags(args)
    with replacing(args.out) if args.out else contextlib.nullcontext() as part:
        if part:
            part.touch()  # fails now rather than after the measurements
        try:
            lines, raw = table_of_evaluations(args) if args.evaluation else table_of_rates(args)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        where = apart(60, where_it_ran, args)
        lines.insert(
            0,
            f"{where}, torch {torch.__version__}, {args.repeats} repeats of {args.seconds:g} s, medians",
        )
        print("\n".join(lines))
        if part:
            raw = {str(job): runs for job, runs in raw.items()}
            part.write_text(json.dumps({"table": lines, "raw": raw}, indent=1), encoding="utf-8")


def where_it_ran(args: Args) -> str:
    """The device's name."""
    device = job_of(args, 1).device
    return f"CPU, {os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    run(main, Args)
