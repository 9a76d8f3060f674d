# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "mujoco==4.0.0", "h5py==3.16.0",
#   "imageio==2.38.1", "huggingface_hub==2.4.0", "filelock==4.3.1", "tensorboard==2.21.0",
#   "tyro==1.0.17", "tqdm==4.70.1"]
# ///
"""Doubly Mild Generalization (DMG) from offline to online: fine-tuning of a policy of dmg_iql.py.
Mao et al., "Doubly Mild Generalization for Offline Reinforcement Learning", NeurIPS 2024, Appendix C.2.
    python dmg_finetune.py --env-id antmaze-umaze-v2 --checkpoint runs/antmaze-umaze-v2__dmg_iql__s0-0
Every step in the environment is followed by one update, on the dataset and the online transitions. λ and
ν move towards online RL, which is λ = 1, ν = 0; the actor's rate is constant. The rest is dmg_iql.py.

    paper         here                   paper        here          paper  here
    π_φ, π_φ'     actor, actor_target    s, a, r, s'  s, a, r, s2   λ      lam
    Q_θ, Q_θ'     critic, critic_target  a' ~ π_φ'    a2            ν      nu
    V_ψ           value                  A(s, a)      adv           α      temperature
    Q_θ'(s, a)    q_slow                 exp(α A)     weight        τ      expectile
    Q_θ'(s', a')  q2                     V_ψ(s')      v2            γ      gamma

Six departures from Eq. 14-16, all in the authors' IQL code (github.com/maoyixiu/DMG, commit 28dfe7c):
 1 Eq. 14 prints -ν E[w log π]. In an objective that is maximised, this pushes π away from the data. The
   penalty of Eq. 13 is KL(β*||π) = const - E_β*[log π], so the sign is +ν.
 2 The policy is deterministic and log π becomes -(π(s) - a)², averaged over the action dimensions.
   Q(s, π(s)) is divided by its mean absolute value in the batch, so ν need not match the size of Q.
 3 The weight w = exp(α A) is clipped, at 3 on Gym and at 100 on AntMaze.
 4 Critics are twins. Q_θ' and Eq. 14's Q_θ are the smaller twin; Eq. 16 sums both twins' errors.
 5 a' is the target actor's action plus clipped Gaussian noise, as in TD3.
 6 There is no bootstrapping from terminal states: the target is r. The rest: docs/differences.md."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import gymnasium as gym
import h5py
import numpy as np
import torch
import tyro
from filelock import FileLock
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    """Train DMG. Flags left at None take the dataset's preset, named at the end of their help."""

    env_id: str = ""  # D4RL, *-local (docs/data.md), Gymnasium id + --dataset-path; the checkpoint's
    dataset_path: Path | None = None  # HDF5 file; None: in $D4RL_DATASET_DIR, or download D4RL's
    exp_name: str = Path(__file__).stem  # label of the run
    run_dir: Path = Path("runs")  # parent of <env_id>__<exp_name>__s<first seed>-<last seed>
    seed: int = 0  # first seed, >= 0
    num_seeds: int = 1  # seeds trained side by side, >= 1
    resume: bool = False  # continue the run, or start it if it is new
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda if there is a GPU
    cudagraphs: bool = False  # replay captured updates (on a GPU only)
    threads: int = 1  # torch's CPU threads, 1 to 256; several are faster only on an idle machine
    lam: float = 0.25  # λ in [0, 1], share of the policy's value in the Bellman target (Eq. 16)
    nu: float | None = None  # ν >= 0, inf: cloning only (Eq. 14); 0.1, *expert* 10, AntMaze 0.5
    expectile: float | None = None  # τ in [0, 1] (Eq. 15); 0.7, AntMaze 0.9
    temperature: float | None = None  # α >= 0 in exp(α A), 0: no weighting (Eq. 14); 3, AntMaze 10
    weight_clip: float | None = None  # largest weight, >= 0; 3, AntMaze 100
    gamma: float | None = None  # γ in [0, 1], discount (Appendix C.2); 0.99, antmaze-large 0.995
    polyak: float = 0.005  # in [0, 1], step of the target networks
    learning_rate: float = 3e-4  # Adam's, in [0, 1]
    batch_size: int = 256  # transitions per seed, >= 1
    hidden_dim: int = 256  # width of both hidden layers, >= 1
    policy_noise: float = 0.2  # >= 0, standard deviation of the noise on the target action
    noise_clip: float = 0.5  # >= 0, bound of that noise
    policy_delay: int = 2  # iterations per step of the actor and the target networks, >= 1
    iterations: int = 1_000_000  # environment steps of each seed, one update each, >= 1 (Appendix C.2)
    checkpoint: Path | None = None  # run folder or checkpoint.pt of dmg_iql.py; sets env_id, seeds
    scratch: bool = False  # start from nothing, no data; TD3: with --lam 1 --nu 0 --warmup-steps 25000
    warmup_steps: int = 0  # first steps, with uniform actions and no update, >= 0
    exploration_noise: float = 0.1  # >= 0, standard deviation of the noise on actions (Appendix C.2)
    buffer_size: int = 1_000_000  # online transitions kept for each seed, >= 1, beside the dataset
    lam_online: float | None = None  # in [0, 1], λ's end; 2 lam, at most 1 (Appendix C.2: 0.5)
    nu_online: float | None = None  # >= 0, ν's end; nu / 100 (Appendix C.2: 0.005)
    decay: float = 0.99  # in [0, 1], factor on what λ and ν lack to their ends (Appendix C.2)
    decay_every: int = 1_000  # updates between two such steps, >= 1 (Appendix C.2)
    normalize_states: bool | None = None  # to zero mean and unit variance; True, AntMaze False
    antmaze_reward: bool | None = None  # reward 1 becomes 0, any other -1; False, AntMaze True
    eval_every: int | None = None  # iterations between evaluations, >= 1; 20,000, AntMaze 50,000
    eval_episodes: int | None = None  # episodes per seed and evaluation, >= 1; 10, AntMaze 100
    log_every: int = 1_000  # iterations between logged losses, >= 1
    save_every: int = 10_000  # iterations between checkpoints, >= 1


MAY_CHANGE = set("checkpoint dataset_path run_dir device cudagraphs threads save_every torch".split())
ROBOTS = {  # simulator (D4RL's returns are those of -v4), and the returns that D4RL scores as 0 and 100
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "antmaze": ("antmaze.py", 0.0, 1.0),
}
REVISION = "9ed58d8a76c12f4c1cb5db51fa71389e703d2ec5"  # of imone/D4RL on the Hugging Face hub
BLOCK = 1_000  # iterations per draw of random numbers


@contextmanager
def blame(what: str) -> Iterator[None]:
    """Turn any exception into SystemExit with a one-line message."""
    try:
        yield
    except Exception as error:
        raise SystemExit(f"error: {what}: {' '.join(str(error).split())[:400]}") from None


def resolve(args: Args) -> None:
    """Fill in presets (Appendix C; weight_clip, eval_every: authors' code). SystemExit: a bad flag."""
    robot = dict(expectile=0.7, temperature=3.0, weight_clip=3.0, eval_every=20_000, eval_episodes=10)
    maze = dict(expectile=0.9, temperature=10.0, weight_clip=100.0, eval_every=50_000, eval_episodes=100)
    antmaze = args.env_id.startswith("antmaze-")
    preset = dict(maze if antmaze else robot, normalize_states=not antmaze, antmaze_reward=antmaze)
    preset["nu"] = 0.5 if antmaze else 10.0 if "expert" in args.env_id else 0.1
    preset["gamma"] = 0.995 if "antmaze-large-" in args.env_id else 0.99
    preset["lam_online"] = min(2 * args.lam, 1.0)
    preset["nu_online"] = (preset["nu"] if args.nu is None else args.nu) / 100
    for key, value in vars(args).items():
        if value is None and key in preset:
            setattr(args, key, value := preset[key])
        low = int(type(value) is int and key not in ("seed", "warmup_steps"))
        unit = "lam lam_online expectile gamma polyak learning_rate decay".split()
        top = 1 if key in unit else 1e9 if low or key == "nu_online" and args.nu < np.inf else np.inf
        if isinstance(value, int | float) and not low <= value <= top:
            raise SystemExit(f"error: --{key.replace('_', '-')} {value}: expected {low} to {top:g}")
    if args.scratch == bool(args.checkpoint):
        raise SystemExit("error: give either --checkpoint, a run of dmg_iql.py, or --scratch")
    if "/" in args.exp_name:
        raise SystemExit(f"error: --exp-name {args.exp_name}: expected a name without /")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    floats = max(8 * args.hidden_dim**2, 16 * BLOCK * args.batch_size, 250_000 * args.eval_episodes)
    with blame(f"cannot put {args.num_seeds} seed(s) on --device {args.device}"):  # enough memory?
        torch.empty(args.num_seeds, max(floats, 70 * args.buffer_size), device=args.device)


# ---- Networks of all seeds, side by side: nets = seeds, or 2 * seeds for twins ------------------------
class Linear(nn.Module):
    """x [nets, batch, in] -> [nets, batch, out]. Initialised as torch.nn.Linear: uniform in
    ±1/sqrt(in), one generator per seed. (A plain torch.nn module would be shared by all seeds.)"""

    def __init__(self, generators: list, copies: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        for name, columns in (("weight", fan_in), ("bias", 1)):
            draws = [torch.rand(copies, fan_out, columns, generator=g) for g in generators]
            uniform = torch.stack(draws, dim=1).flatten(0, 1).mT.contiguous()  # [nets, in or 1, out]
            setattr(self, name, nn.Parameter((2 * uniform - 1) / fan_in**0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[-1] == 1:  # the same, but faster on a CPU
            return torch.linalg.vecdot(x, self.weight.mT).unsqueeze(-1) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    def __init__(self, generators: list, copies: int, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(generators, copies, *pair) for pair in zip(sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu_(layer(x))
        return last(x)


class Actor(MLP):  # π_φ(s) [seeds, batch, action] in [-1, 1]
    def forward(self, s: Tensor) -> Tensor:
        return super().forward(s).tanh()


class TwinCritic(MLP):  # Q_θ(s, a) of both twins [2, seeds, batch]
    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return super().forward(torch.cat(2 * [torch.cat((s, a), -1)])).view(2, *s.shape[:2])


class Value(MLP):  # V_ψ(s) [seeds, batch]
    def forward(self, s: Tensor) -> Tensor:
        return super().forward(s).squeeze(-1)


# ---- Losses: each returns [seeds] ---------------------------------------------------------------------
# Eq. 15
def value_loss(u: Tensor, args: Args) -> Tensor:
    """L_V(ψ) = E[|τ - 1(u < 0)| u²], u = Q_θ'(s, a) - V_ψ(s). As τ -> 1, V -> the in-sample maximum."""
    return (torch.where(u < 0, 1 - args.expectile, args.expectile) * u.square()).mean(-1)


# Eq. 16 (its target: Eq. 6)
def critic_loss(q: Tensor, r: Tensor, discount: Tensor, q2: Tensor, v2: Tensor, lam: Tensor) -> Tensor:
    """L_Q(θ) = E[(Q_θ(s, a) - r - γ λ Q_θ'(s', a') - γ (1 - λ) V_ψ(s'))²], summed over the twins. The
    discount is γ, and 0 at a terminal state."""
    target = r + discount * (lam * q2 + (1 - lam) * v2)
    return (q - target).square().mean(-1).sum(0)


# Eq. 14 with +ν for its -ν and -(π - a)² for log π, then negated: a loss
def actor_loss(q: Tensor, pi: Tensor, a: Tensor, adv: Tensor, nu: Tensor, args: Args) -> Tensor:
    """-E[Q_θ(s, π_φ(s))] / mean |Q| + ν E[w (π_φ(s) - a)²], w = exp(α A). For ν = inf, cloning alone."""
    weight = (args.temperature * adv).exp().clamp(max=args.weight_clip)
    cloning = (weight.unsqueeze(-1) * (pi - a).square()).mean((-2, -1))
    if args.nu == np.inf:
        return cloning
    return nu * cloning - q.mean(-1) / q.detach().abs().mean(-1)


class DMG(nn.Module):  # the networks and optimisers of all seeds, and the update
    def __init__(self, args: Args, state_dim: int, action_dim: int) -> None:
        super().__init__()
        self.args, hidden = args, [args.hidden_dim] * 2
        self.columns = [state_dim, action_dim, 1, 1, state_dim]  # of the buffer: s, a, r, not_done, s2
        generators = [torch.Generator().manual_seed(int(seed)) for seed in random_seeds(args, 0)[:, 0]]
        self.actor = Actor(generators, 1, state_dim, *hidden, action_dim)
        self.critic = TwinCritic(generators, 2, state_dim + action_dim, *hidden, 1)
        self.value = Value(generators, 1, state_dim, *hidden, 1)
        self.to(args.device)
        # Rates, λ and ν may change, so they are tensors: a CUDA graph freezes Python numbers.
        optimisers = self.optimisers = {}
        for name, network in self.named_children():  # the target networks are made below
            lr = torch.tensor(args.learning_rate, device=args.device)
            optimisers[name] = Adam(network.parameters(), lr, fused=True, capturable=True)
        self.lam, self.nu = torch.tensor([args.lam, args.nu], device=args.device)
        self.actor_target = deepcopy(self.actor).requires_grad_(False)
        self.critic_target = deepcopy(self.critic).requires_grad_(False)

    def descend(self, name: str, loss: Tensor) -> None:
        """One Adam step. Seeds share nothing: the gradient of their summed losses is each one's own."""
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        loss.sum().backward(inputs=optimiser.param_groups[0]["params"])
        optimiser.step()

    def update(self, batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        """One iteration, from rows of the buffer [seeds, batch, columns] and noise for the target action
        [seeds, batch, action]. Returns what is logged, [seeds] each."""
        s, a, r, not_done, s2 = batch.split(self.columns, dim=-1)
        r, discount = r.squeeze(-1), self.args.gamma * not_done.squeeze(-1)
        with torch.no_grad():
            q_slow = self.critic_target(s, a).amin(0)
            a2 = (self.actor_target(s2) + noise).clamp(-1, 1)
            q2 = self.critic_target(s2, a2).amin(0)
        v = self.value(s)
        v_loss = value_loss(q_slow - v, self.args)
        self.descend("value", v_loss)

        with torch.no_grad():
            v2 = self.value(s2)
        q = self.critic(s, a)
        q_loss = critic_loss(q, r, discount, q2, v2, self.lam)
        self.descend("critic", q_loss)
        log = dict(value_loss=v_loss, qf_loss=q_loss, q_values=q.mean((0, 2)), v_values=v.mean(1))

        if actor_step:
            with torch.no_grad():
                adv = q_slow - self.value(s)  # V after its step
            pi = self.actor(s)
            pi_loss = actor_loss(self.critic(s, pi).amin(0), pi, a, adv, self.nu, self.args)
            self.descend("actor", pi_loss)
            log["actor_loss"] = pi_loss
            for network, target in (self.actor, self.actor_target), (self.critic, self.critic_target):
                for parameter, slow in zip(network.parameters(), target.parameters()):
                    slow.lerp_(parameter.detach(), self.args.polyak)
        return log


def captured(agent: DMG) -> Callable:
    """agent.update as two CUDA graphs, with and without the actor step, captured at their sixth call."""
    torch.cuda.set_device(agent.lam.device)
    torch.cuda.synchronize()  # the new stream does not wait for earlier work
    torch.cuda.set_stream(torch.cuda.Stream())  # a capture needs its warm-up on a side stream
    calls, graphs = [0, 0], {}

    def replay(batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        calls[actor_step] += 1
        if calls[actor_step] <= 5:  # warm-up; the first creates Adam's state
            return agent.update(batch, noise, actor_step)
        if actor_step not in graphs:
            graph, inputs = torch.cuda.CUDAGraph(), (batch.clone(), noise.clone())
            with torch.cuda.graph(graph):
                graphs[actor_step] = graph, *inputs, agent.update(*inputs, actor_step)
        graph, graph_batch, graph_noise, log = graphs[actor_step]
        graph_batch.copy_(batch)
        graph_noise.copy_(noise)
        graph.replay()
        return log

    return replay


# ---- Data and simulators ------------------------------------------------------------------------------
def load_dataset(args: Args, env: gym.Env) -> tuple[Tensor, np.ndarray, np.ndarray, dict]:
    """A dataset: all transitions [n, columns] on the device, mean and std [state] of its states, and the
    file's attributes. s2 is the next row; rows with `timeouts` and the last row are dropped, as in D4RL.
    In a file without `timeouts`, s2 is `next_observations`. Raises SystemExit if no file fits."""
    task, _, kind = args.env_id.rpartition("-")
    folder = os.path.expanduser(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets"))
    name = f"{task.replace('-', '_')}-{kind}.hdf5"
    if task.startswith("antmaze-") and kind == "v2":
        name = import_module("antmaze").FILES[task]
    args.dataset_path = path = args.dataset_path or Path(folder, name)
    if path == Path(folder, name) and kind == "v2" and not path.exists():
        with blame(f"no download of {name} (python tools/data/get.py {args.env_id} tries more)"):
            hf_hub_download("imone/D4RL", name, repo_type="dataset", revision=REVISION, local_dir=folder)
    with blame(f"cannot use {path} for {args.env_id} (see docs/data.md)"):
        with h5py.File(path, "r", locking=False) as file:
            attrs = {"env_id": args.env_id, **file.attrs}
            last = "timeouts" if "timeouts" in file else "next_observations"
            names = ["observations", "actions", "rewards", "terminals", last]
            arrays = [np.column_stack([np.float32(file[name][:])]) for name in names]
        space, state_dim = env.unwrapped.action_space, env.observation_space.shape[0]
        widths = [state_dim, *space.shape, 1, 1, 1 if last == "timeouts" else state_dim]
        assert [array.shape[1] for array in arrays] == widths, f"{names} should have widths {widths}"
        assert np.isfinite(np.hstack(arrays)).all(), "it has NaN or infinite numbers"
        assert task.split("-")[0].lower() in str(attrs["env_id"]).lower(), f"it is for {attrs['env_id']}"
        s, a, r, terminal, s2 = arrays
        if last == "timeouts":
            keep = np.flatnonzero(arrays[-1][:-1] == 0)
            s, a, r, terminal, s2 = s[keep], a[keep], r[keep], terminal[keep], s[keep + 1]
        a = (a - (space.high + space.low) / 2) / ((space.high - space.low) / 2)
        assert len(a) and np.abs(a).max() < 1 + 1e-5, f"it has no transition, or actions outside {space}"
    mean, std = np.zeros(state_dim), np.ones(state_dim)
    if args.normalize_states:
        mean, std = s.mean(0, dtype=np.float64), s.std(0, dtype=np.float64) + 1e-3
    r = np.where(r == 1, 0, -1) if args.antmaze_reward else r
    columns = (s - mean) / std, a, r, terminal == 0, (s2 - mean) / std
    tensors = [torch.as_tensor(column, dtype=torch.get_default_dtype()) for column in columns]
    return torch.cat(tensors, dim=1).to(args.device), mean, std, attrs


def random_seeds(args: Args, *key: int, number: int = 1) -> np.ndarray:
    """Random seeds [seeds, number] from (seed, key) alone, not from other seeds or a resume.
    Keys: (0,) first weights, (2, step) evaluation, (3, block) batches and noise, (4, episode) resets."""
    seeds = range(args.seed, args.seed + args.num_seeds)
    return np.stack([np.random.SeedSequence((k, *key)).generate_state(number, np.uint64) for k in seeds])


def draw_block(args: Args, block: int, action_dim: int) -> list[Tensor]:
    """Of BLOCK steps: places in the buffer, 0 to 1, [seeds, BLOCK, batch]; target noise [seeds, BLOCK,
    batch, action]; exploration noise and uniform actions [seeds, BLOCK, action]."""
    blocks = []
    for seed in random_seeds(args, 3, block)[:, 0]:
        draw = {"generator": torch.Generator(args.device).manual_seed(int(seed)), "device": args.device}
        places = torch.rand(BLOCK, args.batch_size, dtype=torch.float64, **draw)
        noise = torch.randn(BLOCK, args.batch_size, action_dim, **draw) * args.policy_noise
        explore = torch.randn(BLOCK, action_dim, **draw) * args.exploration_noise
        uniform = 2 * torch.rand(BLOCK, action_dim, **draw) - 1
        blocks.append((places, noise.clamp_(-args.noise_clip, args.noise_clip), explore, uniform))
    return [torch.stack(x) for x in zip(*blocks)]


def buffer_rows(places: Tensor, rows: int, steps: int, args: Args) -> Tensor:
    """Rows of the buffer [seeds, batch], uniform over the dataset's `rows` and the newest of each seed's
    `steps` online transitions. Seed k's begin at rows + k * buffer_size."""
    index = (places * (rows + min(steps, args.buffer_size))).long()
    shift = torch.arange(len(index), device=index.device)[:, None] * args.buffer_size
    return index + (index >= rows) * shift


# Appendix C.2
def schedule(args: Args, update: int) -> tuple[float, float]:
    """λ = λ_end - (λ_end - λ_0) d and ν = ν_end + (ν_0 - ν_end) d at an update, counted from 1. d
    begins at 1 and is multiplied by `decay` every `decay_every` updates."""
    d = args.decay ** (update // args.decay_every)
    lam = args.lam_online - (args.lam_online - args.lam) * d
    return lam, args.nu if args.nu == np.inf else args.nu_online + (args.nu - args.nu_online) * d


def make_env(env_id: str) -> gym.Env:
    """The simulator of a dataset, with actions in [-1, 1]. Raises SystemExit if there is none."""
    gym.logger.min_level = gym.logger.ERROR  # no -v4 deprecation warning
    name = ROBOTS.get(env_id.split("-")[0], [env_id])[0]
    with blame(f"no simulator for {env_id}"):
        if env_id.startswith("antmaze-"):
            import_module("antmaze")  # registers the -v2 ids
            name = env_id.replace("-local", "-v2")
        return gym.wrappers.RescaleAction(gym.wrappers.FlattenObservation(gym.make(name)), -1.0, 1.0)


@torch.no_grad()
def rollout(agent: DMG, envs: list, resets: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Returns and lengths [2, seeds, episodes] of one episode from each reset seed [seeds, episodes],
    played side by side. A non-finite action ends its episode, with return NaN."""
    played = np.zeros((2, resets.size))
    states = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, resets.flat)])

    def step(i: int) -> bool:  # whether the episode goes on
        if not np.isfinite(actions[i]).all():
            played[0, i] = np.nan
            return False
        states[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
        played[:, i] += reward, 1
        return not (terminated or truncated)

    running = range(resets.size)
    with ThreadPoolExecutor() as pool:  # MuJoCo steps without the interpreter's lock
        while running:
            s = torch.tensor((states - mean) / std).to(agent.lam).view(*resets.shape, -1)
            actions = agent.actor(s).flatten(0, 1).cpu().numpy()
            running = [i for i, goes_on in zip(running, pool.map(step, running)) if goes_on]
    return played.reshape(2, *resets.shape)


class Player:
    """The simulator of seed number k and its episode. A reset has a seed of its own, so that playing an
    episode's actions again brings back its state."""

    def __init__(self, args: Args, k: int) -> None:
        self.args, self.k, self.env = args, k, make_env(args.env_id)
        self.begin(1)

    def begin(self, episode: int) -> None:
        """Begin an episode, counted from 1."""
        self.episode, self.total, self.length = episode, 0.0, 0
        self.state, _ = self.env.reset(seed=int(random_seeds(self.args, 4, episode)[self.k, 0]))

    def step(self, action: np.ndarray) -> tuple[float, bool, bool]:
        """One step. Returns its reward, whether the state is terminal, whether the episode is over."""
        self.state, reward, terminated, truncated, _ = self.env.step(action)
        self.total += reward
        self.length += 1
        return reward, terminated, terminated or truncated


def write_file(path: Path, data: bytes) -> None:
    """Write atomically: after a crash or on a full disk, the old file or the new one is whole."""
    part = path.with_name(path.name + ".tmp")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file)
        part.replace(path)
        os.fsync(file)  # the new name, too


def load_offline(args: Args) -> dict:
    """The checkpoint of dmg_iql.py to start from; `args` gets its env_id, seeds and normalisation.
    Raises SystemExit if there is none."""
    path = args.checkpoint / "checkpoint.pt" if args.checkpoint.is_dir() else args.checkpoint
    with blame(f"--checkpoint {path} cannot be fine-tuned"):
        assert not ZipFile(path).testzip(), "it is damaged"
        offline = torch.load(path, map_location="cpu", weights_only=True)
        config = offline["config"]
        assert config["script"] == "dmg_iql", f"it is of {config['script']}.py, not of dmg_iql.py"
        for key in "env_id seed num_seeds normalize_states antmaze_reward".split():
            assert getattr(args, key) in (getattr(Args, key), config[key]), f"its {key} is {config[key]}"
            setattr(args, key, config[key])
    return offline


def train(args: Args) -> None:
    """One run. Its folder gets dmg_iql.py's files, and all online transitions, in transitions.bin."""
    saved = args.checkpoint and load_offline(args)
    resolve(args)
    torch.set_num_threads(min(args.threads, 256))  # many thousands crash torch
    seeds = range(args.seed, args.seed + args.num_seeds)
    name = f"{args.env_id.replace('/', '_')}__{args.exp_name}__s{seeds[0]}-{seeds[-1]}"
    folder, checkpoint = args.run_dir / name, args.run_dir / name / "checkpoint.pt"
    if folder.exists() and not args.resume:
        raise SystemExit(f"error: {folder} exists; --resume continues it, --exp-name starts another run")
    env = make_env(args.env_id)
    agent = DMG(args, env.observation_space.shape[0], env.action_space.shape[0])
    state_dim, action_dim, *_ = agent.columns
    buffer, attrs, sha = agent.lam.new_empty(0, sum(agent.columns)), {}, None
    mean, std = np.zeros(state_dim), np.ones(state_dim)
    if not args.scratch:
        buffer, mean, std, attrs = load_dataset(args, env)
        sha = hashlib.sha256(args.dataset_path.read_bytes()).hexdigest()
    _, low, high = ROBOTS.get(args.env_id.split("-")[0], ("", 0.0, 100.0))  # default: the return
    low, high = attrs.get("ref_min_score", low), attrs.get("ref_max_score", high)
    update = captured(agent) if args.cudagraphs and agent.lam.is_cuda else agent.update
    envs = [make_env(args.env_id) for _ in range(args.num_seeds * args.eval_episodes)]
    players = [Player(args, k) for k in range(args.num_seeds)]
    if args.checkpoint:
        with blame(f"--checkpoint {args.checkpoint} cannot be fine-tuned"):
            assert saved["config"]["dataset_sha256"] == sha, f"it had another {args.dataset_path}"
            agent.load_state_dict(saved["agent"])
            for name, optimiser in agent.optimisers.items():
                optimiser.load_state_dict(saved["optimisers"][name])
                optimiser.param_groups[0]["lr"].fill_(args.learning_rate)
    rows = len(buffer)
    buffer = torch.cat((buffer, buffer.new_empty(args.num_seeds * args.buffer_size, buffer.shape[1])))
    online = buffer[rows:].view(args.num_seeds, args.buffer_size, -1)
    slot = online[:, 0]  # one step of every seed; transitions.bin is a sequence of these
    folder.mkdir(parents=True, exist_ok=args.resume)
    _lock = FileLock(folder / ".lock").acquire(blocking=False)  # raises Timeout if another run holds it
    data = dict(script=Args.exp_name, rows=rows, dataset_sha256=sha, torch=torch.__version__)
    print(text := json.dumps(vars(args) | data, default=str, indent=2))
    config, done, summary, csv = json.loads(text), 0, "", ["iteration,seed,episode,return,length,score"]
    again = checkpoint.exists()
    if again:
        with blame(f"cannot resume from {checkpoint} (another --exp-name starts another run)"):
            assert not ZipFile(checkpoint).testzip(), "it is damaged"
            saved = torch.load(checkpoint, map_location=args.device, weights_only=True)
            was = saved["config"]
            differ = {k: was.get(k) for k in {*config, *was} - {"resume"} if was.get(k) != config.get(k)}
            assert {*differ} <= MAY_CHANGE, f"it was made with {differ}"
            agent.load_state_dict(saved["agent"])
            for name, optimiser in agent.optimisers.items():
                optimiser.load_state_dict(saved["optimisers"][name])
            done, csv, summary = saved["iteration"], saved["evals"], saved["summary"]
            assert done in range(args.iterations + 1), f"its iteration is {done}"
            seen = np.fromfile(folder / "transitions.bin", str(online.dtype)[6:], done * slot.numel())
            seen = seen.reshape(done, *slot.shape)  # fails if the file is cut
            recent = np.arange(done)[-args.buffer_size :]
            online[:, recent % args.buffer_size] = torch.tensor(seen[recent]).transpose(0, 1).to(online)
            for player, (episode, length) in zip(players, saved["players"]):
                player.begin(episode)
                for row in seen[done - length :, player.k]:
                    player.step(row[state_dim : state_dim + action_dim])
    transitions = (folder / "transitions.bin").open("ab")
    transitions.truncate(done * slot.nbytes)
    print(f"resumed at iteration {done:,} (before: {differ or 'same'})" if again else "new run", summary)
    write_file(folder / "config.json", text.encode())
    boards = [SummaryWriter(folder / f"s{seed}", purge_step=done + 1) for seed in seeds]

    began, log = time.perf_counter(), {}
    for step in tqdm(range(done, args.iterations + 1), total=args.iterations, initial=done):
        # Log; `step` steps are done
        scalars, last = {}, step == args.iterations
        if log and (step % args.log_every == 0 or last):
            scalars = {f"losses/{name}": values for name, values in log.items()}
            scalars["charts/SPS"] = [(step - done) / (time.perf_counter() - began)] * len(seeds)
        # Evaluate
        if (step % args.eval_every == 0 or last) and not (again and step == done):
            resets = random_seeds(args, 2, step, number=args.eval_episodes)
            returns, lengths = rollout(agent, envs, resets, mean, std)
            scores = 100 * (returns - low) / (high - low)
            for (k, e), score in np.ndenumerate(scores):
                csv.append(f"{step},{seeds[k]},{e},{returns[k, e]},{lengths[k, e]:.0f},{score}")
            write_file(folder / "eval.csv", "\n".join([*csv, ""]).encode())
            scalars |= {"eval/normalized_score": scores.mean(1), "eval/episodic_return": returns.mean(1)}
            tqdm.write(summary := f"{args.env_id} at {step:,}: score {scores.mean(1).round(1)}")
        for name, values in scalars.items():
            for board, value in zip(boards, values):
                board.add_scalar(name, value, step)
        # Save
        if step % args.save_every == 0 or last:
            for file in transitions, *boards:
                file.flush()
            os.sync()  # these files, before the checkpoint that continues them
            optimisers = {name: optimiser.state_dict() for name, optimiser in agent.optimisers.items()}
            state = dict(config=config, agent=agent.state_dict(), optimisers=optimisers, summary=summary)
            state |= dict(iteration=step, evals=csv, mean=mean.tolist(), std=std.tolist())
            state["players"] = [(player.episode, player.length) for player in players]
            torch.save(state, data := BytesIO())
            write_file(checkpoint, data.getvalue())
        if last:
            break
        # Act
        block, t = divmod(step, BLOCK)
        if t == 0 or step == done:
            places, noise, explore, uniform = draw_block(args, block, action_dim)
        s = torch.tensor((np.stack([player.state for player in players]) - mean) / std).to(agent.lam)
        a = agent.actor(s.unsqueeze(1)).detach().squeeze(1) + explore[:, t]
        a = uniform[:, t] if step < args.warmup_steps else a.clamp(-1, 1).nan_to_num()
        r, terminal, over = np.array([*map(Player.step, players, a.cpu().numpy())]).T
        r = np.where(r == 1, 0, -1) if args.antmaze_reward else r
        s2 = (np.stack([player.state for player in players]) - mean) / std
        new = torch.hstack((s, a, torch.tensor(np.column_stack((r, 1 - terminal, s2))).to(s)))
        online[:, step % args.buffer_size] = new
        transitions.write(new.cpu().numpy())
        for player in [p for p, ended in zip(players, over) if ended]:
            boards[player.k].add_scalar("charts/episodic_return", player.total, step + 1)
            player.begin(player.episode + 1)
        # Update
        updates = step + 1 - args.warmup_steps
        if updates > 0:
            lam, nu = schedule(args, updates)
            agent.lam.fill_(lam)
            agent.nu.fill_(nu)
            batch = buffer[buffer_rows(places[:, t], rows, step + 1, args)]
            log = update(batch, noise[:, t], updates % args.policy_delay == 0)
    write_file(folder / "done", summary.encode())


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show λ
    try:
        train(tyro.cli(Args))
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume continues from the last checkpoint, if there is one")
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # a full disk, a folder in use, ...
        sys.exit(f"error: {' '.join(str(error).split())[:400]}")
