"""Time the update of dmg_iql.py beside the same update as it is usually written.

    bash benchmark.sh speed                       # or: python tools/speed.py --threads 1 2 --seeds 1 5 10
    bash benchmark.sh speed --evaluation          # the share of the wall clock that evaluation takes

Variants: *plain* (a NumPy replay buffer, one host-to-device copy per array and batch, torch.nn networks one by one, the
seeds in a loop, Adam without fusion), *eager* (DMG.update of dmg_iql.py), on a GPU *graphs* (its CUDA graphs), and
elsewhere *by hand* (that update without autograd, every derivative written out: what autograd, and the matrix products
that it picks, cost on a CPU).
Each measurement is a process of its own; the variants take turns, `--repeats` times, and the table shows medians.
Before anything is timed, all are checked to compute the same parameters from the same batches.

Evaluation is timed under the paper's protocol (the presets' --eval-every and --eval-episodes) at its longest: with an
untrained policy in tasks where that one's episodes last to the time limit, a halfcheetah's and an ant's in a maze.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dmg_iql

GFLOP = 0.64  # arithmetic of one iteration of one seed: 19 products of hidden layers, 2 * 256^3 each


@dataclass
class Args:
    """Which variants to time, and for how long."""

    threads: tuple[int, ...] = (1, 2)
    """CPU thread counts to measure (one block of rows each); on a GPU only the first is used"""
    seeds: tuple[int, ...] = (1, 5, 10)
    """numbers of seeds trained side by side"""
    repeats: int = 5
    """measurements of each row, taken in turns"""
    seconds: float = 4.0
    """length of one measurement"""
    rows: int = 200_000
    """transitions in the replay buffer (random numbers; the arithmetic does not depend on them)"""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if torch sees a GPU"""
    state_dim: int = 11
    """state dimensions: 11 as hopper, 17 as walker2d and halfcheetah"""
    action_dim: int = 3
    """action dimensions: 3 as hopper, 6 as walker2d and halfcheetah"""
    out: Path | None = None
    """also write the table and, without --evaluation, the raw numbers to this JSON file"""
    evaluation: bool = False
    """instead time evaluations beside the training between two of them, with the first of --threads"""
    worker: str | None = None
    """internal: measure this one variant and print its numbers as JSON"""


class Plain:
    """DMG's update (dmg_iql.py) for one seed, written the usual way: torch.nn modules, backward(), one optimiser
    each."""

    def __init__(self, args: dmg_iql.Args, state_dim: int, action_dim: int) -> None:
        def net(inputs: int, outputs: int) -> nn.Sequential:
            width = args.hidden_dim
            layers = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
            return nn.Sequential(*layers).to(args.device)

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
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimiser, args.iterations // 2)

    def take(self, agent: dmg_iql.DMG, k: int) -> None:
        """Copy seed k's networks from a dmg_iql.DMG, to compare the two."""
        for name in ("actor", "actor_target", "value"):
            for mine, theirs in zip(getattr(self, name).parameters(), getattr(agent, name)):
                mine.data.copy_(theirs[k].view_as(mine))
        for nets, params in ((self.critics, agent.critic), (self.critic_targets, agent.critic_target)):
            for twin, one in enumerate(nets):
                for mine, theirs in zip(one.parameters(), params):
                    mine.data.copy_(theirs[2 * k + twin].view_as(mine))

    def update(self, s: Tensor, a: Tensor, r: Tensor, not_done: Tensor, s2: Tensor, noise: Tensor) -> dict[str, float]:
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
            for net, target in ((self.actor, self.actor_target), (self.critics, self.critic_targets)):
                for param, slow in zip(net.parameters(), target.parameters()):
                    slow.data.copy_(args.polyak * param.data + (1 - args.polyak) * slow.data)
        return {"value_loss": value_loss.item(), "critic_loss": critic_loss.item()}


class ByHand(dmg_iql.DMG):
    """DMG's update (dmg_iql.py) with every derivative written out: a measurement of what autograd, and the products it
    picks, cost on a CPU. The scripts do not do it: whoever changes a loss in them need not know its derivative."""

    @torch.no_grad()
    def update(self, batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        """One iteration, as DMG.update's. Twins that are equal to the last bit both get the actor's gradient."""
        args, (state_dim, action_dim, *_), (seeds, samples, _) = self.args, self.columns, batch.shape
        s, a, r, not_done, s2 = batch.split(self.columns, dim=-1)
        sa, r, not_done = batch[..., : state_dim + action_dim], r.squeeze(-1), not_done.squeeze(-1)
        a2 = (dmg_iql.policy(self.actor_target, s2) + noise).clamp_(-1, 1)
        q_target = dmg_iql.mlp(self.critic_target, sa).view(seeds, 2, -1).amin(1)
        q2 = dmg_iql.Q(self.critic_target, s2, a2).amin(1)

        v, *hidden = forward(self.value, s)
        u = q_target - v.squeeze(1)
        weighted = torch.where(u < 0, 1 - args.expectile, args.expectile) * u  # Eq. 15 is the mean of this times u
        dv = (weighted * (-2 / samples)).unsqueeze(1)
        self.optimisers["value"].step(backward(self.value, s, *hidden, dv))

        q, *hidden = forward(self.critic, sa)
        v2 = dmg_iql.V(self.value, s2)
        error = q.view(seeds, 2, -1) - (r + args.gamma * not_done * (self.lam * q2 + (1 - self.lam) * v2)).unsqueeze(1)
        dq = (error * (2 / samples)).view(2 * seeds, 1, -1)  # of Eq. 16
        self.optimisers["critic"].step(backward(self.critic, sa, *hidden, dq))

        log = {"value_loss": (weighted * u).mean(-1), "qf_loss": error.square().mean(-1).sum(-1)}
        log |= {"q": q.view(seeds, 2, -1), "v": v.squeeze(1)}
        if actor_step:
            adv = q_target - dmg_iql.V(self.value, s)
            weight = (args.temperature * adv).exp().clamp(max=args.weight_clip).unsqueeze(-1)
            pi, *hidden = forward(self.actor, s)
            pi = pi.tanh_().mT
            s_pi = torch.cat((s, pi), -1)
            q, *critic_hidden = forward(self.critic, s_pi)
            q = q.view(seeds, 2, -1)
            smaller, error = q.amin(1, keepdim=True), pi - a
            scale = -self.q_coef / smaller.abs().mean(-1, keepdim=True)
            dq = ((q == smaller) * (scale / samples)).view(2 * seeds, 1, -1)  # of Eq. 14's first term
            dpi = backward(self.critic, s_pi, *critic_hidden, dq, of_input=True)[..., state_dim:]
            dpi = dpi + weight * error * (2 * self.nu / (samples * action_dim))  # of its second term
            dpi = dpi * (1 - pi.square())
            self.optimisers["actor"].step(backward(self.actor, s, *hidden, dpi.mT))
            log["actor_loss"] = (scale * smaller).mean((1, 2)) + self.nu * (weight * error.square()).mean((1, 2))
            torch._foreach_lerp_(self.actor_target, self.actor, args.polyak)
            torch._foreach_lerp_(self.critic_target, self.critic, args.polyak)
        return log


def forward(params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dmg_iql.mlp's output, samples as columns [nets, out, batch], and both hidden layers [nets, hidden, batch]."""
    w1, b1, w2, b2, w3, b3 = params
    h1 = torch.baddbmm(b1.view(len(x), -1, 1), w1.view(len(x), -1, x.shape[-1]), x.mT).relu_()
    h1 = h1.view(len(w2), -1, x.shape[1])
    h2 = torch.baddbmm(b2, w2, h1).relu_()
    return torch.baddbmm(b3, w3, h2), h1, h2


def backward(
    params: list[Tensor], x: Tensor, h1: Tensor, h2: Tensor, d3: Tensor, of_input: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """From the derivative d3 of a loss by forward's output: its derivatives by params, or by x where of_input."""
    w1, _, w2, _, w3, _ = params
    relu = torch.ops.aten.threshold_backward.grad_input  # writes its result over the gradient
    d2 = w3.mT * d3 if w3.shape[1] == 1 else torch.bmm(w3.mT, d3)
    d2 = relu(d2, h2, 0, grad_input=d2)
    d1 = torch.bmm(w2.mT, d2)
    d1 = relu(d1, h1, 0, grad_input=d1)
    shared = d1.view(len(x), -1, x.shape[1])
    if of_input:
        return torch.bmm(shared.mT, w1.view(len(x), -1, x.shape[-1]))
    dw1 = torch.bmm(x.mT, shared.mT).mT.reshape(w1.shape)
    return dw1, d1.sum(-1, True), torch.bmm(d2, h1.mT), d2.sum(-1, True), torch.bmm(d3, h2.mT), d3.sum(-1, True)


def dmg_args(args: Args, seeds: int, threads: int) -> dmg_iql.Args:
    """Resolved dmg_iql arguments for this benchmark's job."""
    job = dmg_iql.Args(env_id="hopper-medium-local", num_seeds=seeds, device=args.device, threads=threads)
    return dmg_iql.resolve(job)


def check(args: Args) -> float:
    """The largest difference of any parameter, ours or by hand, from plain's after 20 updates in float64 on the CPU."""
    torch.set_default_dtype(torch.float64)
    job, plains = dmg_args(Args(device="cpu"), 2, 1), []
    agents = [kind(job, args.state_dim, args.action_dim) for kind in (dmg_iql.DMG, ByHand)]  # equal networks
    for k in range(2):
        plains.append(Plain(job, args.state_dim, args.action_dim))
        plains[k].take(agents[0], k)
    for i in range(20):
        batch = torch.randn(2, 256, 2 * args.state_dim + args.action_dim + 2)
        batch[..., args.state_dim + args.action_dim + 1] = (torch.rand(2, 256) > 0.1).double()
        noise = torch.randn(2, 256, args.action_dim) * 0.2
        for agent in agents:
            if i % 2:
                agent.set_actor_rate(i // 2)
            agent.update(batch, noise, actor_step=i % 2 == 1)
        for k in range(2):
            plains[k].update(*batch[k].split(agents[0].columns, dim=-1), noise[k])
    torch.set_default_dtype(torch.float32)
    worst = 0.0
    for agent in agents:
        for k, plain in enumerate(plains):
            pairs = [(getattr(agent, name), k, getattr(plain, name)) for name in ("actor", "actor_target", "value")]
            for twin in range(2):
                pairs.append((agent.critic, 2 * k + twin, plain.critics[twin]))
                pairs.append((agent.critic_target, 2 * k + twin, plain.critic_targets[twin]))
            for params, net, module in pairs:
                for ours, usual in zip(params, module.parameters(), strict=True):
                    worst = max(worst, (ours[net].view_as(usual) - usual).abs().max().item())
    return worst


def measure(args: Args, variant: str, seeds: int, threads: int) -> dict[str, float]:
    """Iterations per second of one variant, whole loop: batch, noise and update."""
    job = dmg_args(args, seeds, threads)
    rng = np.random.default_rng(0)
    s, a = args.state_dim, args.action_dim
    data = {
        "observations": rng.standard_normal((args.rows, s), np.float32),
        "next_observations": rng.standard_normal((args.rows, s), np.float32),
        "actions": rng.uniform(-1, 1, (args.rows, a)).astype(np.float32),
        "rewards": rng.standard_normal(args.rows, np.float32),
        "terminals": rng.random(args.rows) < 0.01,
    }
    if variant == "plain":
        agents = [Plain(job, s, a) for _ in range(seeds)]
        buffer = [data["observations"], data["actions"], data["rewards"][:, None]]
        buffer += [1 - data["terminals"][:, None].astype(np.float32), data["next_observations"]]

        def step(i: int) -> None:
            for agent in agents:
                rows = np.random.randint(0, args.rows, size=job.batch_size)
                batch = [torch.FloatTensor(column[rows]).to(job.device) for column in buffer]
                noise = (torch.randn_like(batch[1]) * job.policy_noise).clamp(-job.noise_clip, job.noise_clip)
                agent.update(*batch, noise)
    else:
        dmg_iql.keep_memory()
        table, _, _ = dmg_iql.replay_table(data, job)
        agent = (ByHand if variant == "by hand" else dmg_iql.DMG)(job, s, a)
        update = dmg_iql.captured(agent.update) if variant == "graphs" else agent.update
        block = {}

        def step(i: int) -> None:
            k = i % dmg_iql.BLOCK
            if k == 0:
                block["now"] = dmg_iql.draw_block(job, i // dmg_iql.BLOCK, args.rows, a)
            indices, noise = block["now"][0][:, k], block["now"][1][:, k]
            if actor_step := (i + 1) % job.policy_delay == 0:
                agent.set_actor_rate(i // job.policy_delay)
            batch = table.index_select(0, indices.flatten()).view(*indices.shape, -1)
            update(batch, noise, actor_step)

    def wait() -> None:
        if job.device == "cuda":
            torch.cuda.synchronize()

    for i in range(20):
        step(i)
    wait()
    done, began = 20, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < args.seconds:
        for i in range(done, done + 10):
            step(i)
        done += 10
        wait() if done % 500 == 0 else None
    wait()
    elapsed = time.perf_counter() - began
    result = {"rate": (done - 20) / elapsed, "sgemm": sgemm(job.device)}
    result["memory"] = torch.cuda.max_memory_allocated() / 1e9 if job.device == "cuda" else 0.0
    return result


def prepare(env_id: str, episodes: int) -> None:
    """Make the simulators in this process, which a run does once and keeps."""
    dmg_iql.simulators(env_id, episodes)


LONGEST = ("halfcheetah-medium-local", "antmaze-umaze-local", "antmaze-large-play-local")


def evaluation(args: Args, env_ids: tuple[str, ...] = LONGEST) -> list[str]:
    """A table of the seconds that an evaluation takes, and the training before it, for each number of seeds."""
    head = "| task | seeds | steps of an evaluation | seconds | iterations before it | seconds | evaluation's share |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    torch.set_num_threads(args.threads[0])
    for env_id in env_ids:
        for seeds in args.seeds:
            job = dmg_iql.Args(env_id=env_id, num_seeds=seeds, device=args.device, threads=args.threads[0])
            job = dmg_iql.resolve(job)
            env = dmg_iql.make_env(env_id)
            dims = env.observation_space.shape[0], env.action_space.shape[0]
            sized = replace(args, state_dim=dims[0], action_dim=dims[1])
            variant = "graphs" if job.device == "cuda" else "eager"
            training = job.eval_every / measure(sized, variant, seeds, job.threads)["rate"]
            actor = [param.detach().cpu().numpy() for param in dmg_iql.DMG(job, *dims).actor]
            resets = dmg_iql.random_seeds(job, 2, 1, number=job.eval_episodes)
            play = functools.partial(dmg_iql.rollout, env_id, actor, np.zeros(dims[0]), np.ones(dims[0]))
            shares = np.array_split(resets, min(job.eval_workers, job.eval_episodes), axis=1)
            spawn = torch.multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(len(shares), spawn, initializer=dmg_iql.attend) as pool:
                run = pool.map if len(shares) > 1 else map
                list(run(functools.partial(prepare, env_id), [share.size for share in shares]))
                began = time.perf_counter()
                steps = sum(int(lengths.sum()) for _, lengths in run(play, shares))
                seconds = time.perf_counter() - began
            cells = [env_id, seeds, f"{steps:,}", f"{seconds:.1f}", f"{job.eval_every:,}", f"{training:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} | {seconds / (seconds + training):.1%} |")
    return lines


def sgemm(device: str) -> float:
    """GFLOP/s of 256 x 256 x 256 products in float32."""
    x, y, out = (torch.randn(256, 256, device=device) for _ in range(3))
    rates = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(200):
            torch.mm(x, y, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(200 * 2 * 256**3 / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates)


def main(args: Args) -> None:
    """Check, measure in turns, print the table."""
    args.device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if args.worker:
        variant, seeds, threads = args.worker.split(",")
        print(json.dumps(measure(args, variant, int(seeds), int(threads))))
        return
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    if args.evaluation:
        lines = [f"{where}, torch {torch.__version__}, {args.threads[0]} thread(s)", "", *evaluation(args)]
        print("\n".join(lines))
        if args.out:
            args.out.write_text(json.dumps({"table": lines}, indent=1))
        return
    print(f"plain, ours and by hand after 20 updates in float64: largest difference of any parameter {check(args):.1e}")
    variants = ("plain", "eager", "graphs") if args.device == "cuda" else ("plain", "eager", "by hand")
    threads = args.threads[:1] if args.device == "cuda" else args.threads
    jobs = [(variant, n, t) for t in threads for n in args.seeds for variant in variants]
    raw = {job: [] for job in jobs}
    for repeat in range(args.repeats):
        for job in jobs:
            flags = {"device": args.device, "seconds": args.seconds, "rows": args.rows}
            flags |= {"state-dim": args.state_dim, "action-dim": args.action_dim, "worker": ",".join(map(str, job))}
            command = [
                sys.executable,
                __file__,
                *[x for flag, value in flags.items() for x in (f"--{flag}", str(value))],
            ]
            environment = os.environ | {"OMP_NUM_THREADS": str(job[2])}
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            raw[job].append(json.loads(output.splitlines()[-1]))
            print(f"{repeat + 1}/{args.repeats} {job}: {raw[job][-1]['rate']:.1f} it/s", file=sys.stderr)
    lines = [f"{where}, torch {torch.__version__}, {args.repeats} repeats of {args.seconds:g} s, medians", ""]
    lines += [
        "| threads | seeds | variant | iterations/s | seed-iterations/s | against plain | sgemm GFLOP/s | share of it |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for job in jobs:
        variant, n, t = job
        rate, gemm = (statistics.median(run[key] for run in raw[job]) for key in ("rate", "sgemm"))
        ratio = statistics.median(
            run["rate"] / plain["rate"] for run, plain in zip(raw[job], raw["plain", n, t], strict=True)
        )
        share = statistics.median(GFLOP * n * run["rate"] / run["sgemm"] for run in raw[job])
        lines.append(
            f"| {t} | {n} | {variant} | {rate:.1f} | {n * rate:.1f} | {ratio:.2f}x | {gemm:.0f} | {share:.0%} |"
        )
    if args.device == "cuda":
        peak = max(run["memory"] for runs in raw.values() for run in runs)
        lines.append(f"\nlargest device memory allocated: {peak:.2f} GB ({args.rows:,} transitions)")
    print("\n".join(lines))
    if args.out:
        args.out.write_text(
            json.dumps({"table": lines, "raw": {str(job): runs for job, runs in raw.items()}}, indent=1)
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
