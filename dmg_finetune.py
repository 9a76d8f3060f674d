"""Doubly Mild Generalization (DMG), from offline to online: one file, from a checkpoint to a fine-tuned policy.

Mao et al., "Doubly Mild Generalization for Offline Reinforcement Learning", NeurIPS 2024: Section 5.4, Appendix C.2.
    python dmg_iql.py --env-id antmaze-umaze-v2
    python dmg_finetune.py --env-id antmaze-umaze-v2 --checkpoint runs/...__dmg_iql__s0-0/checkpoint.pt
This is dmg_iql.py with a second phase: one environment step, one update, and λ and ν on their way to online RL, which
is λ = 1, ν = 0. Without --checkpoint the first phase is run here (--iterations).

The paper's symbols, and their names here:
    π_φ, π_φ'  actor, actor_target      λ  lam            s, a, r, s'  s, a, r, s2    A = Q_θ'(s, a) - V_ψ(s)  adv
    Q_θ, Q_θ'  critic, critic_target    ν  nu             a' ~ π_φ'    a2             w = exp(α A)             weight
    V_ψ        value                    α  temperature    Q_θ'(s', a') q2             τ expectile, γ gamma
    Q_θ'(s, a) q_target                                   V_ψ(s')      v2

Where the paper slips or is silent, and what is done here. [A]: as the authors' code (github.com/maoyixiu/DMG, 28dfe7c)
does; [O]: our choice.
 1 Eq. 14 prints -ν E[w log π] in a maximised objective, which pushes π away from the data. KL(β*||π) = const -
   E_β*[log π] makes it +ν E[w log π] (the normaliser of β* dropped, as in print). With -(π(s) - a)² for log π
   (Appendix C.1): minimise -Q + ν w (π(s) - a)². [A] actor_loss
 2 The square is averaged over action dimensions; Q(s, π(s)) is divided by its batch's mean absolute value, held
   constant, so ν is relative to the size of Q. [A] actor_loss
 3 The weight w is clipped, at 3 on Gym and 100 on AntMaze. [A] actor_loss
 4 Critics are twins. The smaller counts as Q_θ' (Eq. 14-16) and as Q_θ (Eq. 14); Eq. 16 sums both errors. [A] update
 5 a' is the target actor's action plus clipped Gaussian noise, within the action bounds, as in TD3. [A] update
 6 No value follows a terminal state. A time limit is not terminal: rows at one are dropped, and so is a file's last
   row, as D4RL does. [A] critic_loss, load_transitions
 7 An iteration is a V step, a Q step with the new V, and every policy_delay-th (2nd) time an actor step, with the new
   V and Q but the same Q_θ', and a Polyak step of both target networks: polyak counts per actor step. [A] update
 8 The actor's cosine ends with the run, after iterations / policy_delay actor steps [O]; the authors' after 500,000,
   however long the run. They agree at the paper's 1,000,000 iterations. set_actor_rate
 9 Gym states are normalised by mean and std + std_offset [A], taken in float64 [O]. AntMaze's are not, and its reward
   becomes 0 at the goal, -1 elsewhere [A]. Else rewards are the file's [A], unless --normalize-rewards. replay_table
10 Every seed has a random stream of its own, and so has evaluation: neither the seeds beside it nor how often one
   evaluates changes what is drawn. [O] In the authors' code AntMaze's goals and the batches share one. random_seeds
11 nu = inf means cloning only: coefficient 0 on Q, 1 on the square. [O] A seed whose critic or V is not finite, or
   whose batch has a mean |Q| above 100 max|r| / (1 - γ), when logged, is marked as diverged from then on. [O] train
12 Smaller things: β* has exp(α A), as in Eq. 14, not Section 3.5's exp(A); targets, advantages and weights carry no
   gradient; the actor ends in tanh; V's network and rate are the critics' [A]; evaluation is in Gymnasium's -v4. [O]
13 Online, λ = λ_end - (λ_end - λ_0) d and ν = ν_end + (ν_0 - ν_end) d, with d = decay ^ (updates // decay_every), so it
   falls before update 1,000, 2,000, ... The actor's rate is constant, the optimisers go on as they are, the count of
   updates starts anew; a time limit is not terminal. [A] The paper has λ_end = 0.5 = 2 λ_0 and ν_end = 0.005 =
   ν_0 / 100 on AntMaze; here these ratios are the default everywhere, so that λ = 0, ν = inf and λ = 1, ν = 0 stay. [O]
14 Online, γ is 0.995 on antmaze-large, 0.99 elsewhere (Appendix C.2). Rewards and states are treated as offline, with
   the dataset's mean and std; the authors' code fails outside AntMaze. [O] Collector, train
15 Each seed has its own simulator and its own online transitions; the newest buffer_size of them are kept, and all of
   the dataset. Batches are uniform over both. [O] draw_online, online_rows
"""

import csv
import ctypes
import difflib
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, make_dataclass, replace
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Task:
    """What is learnt from, and where the run goes."""

    env_id: str = "walker2d-medium-v2"  # {hopper,walker2d,halfcheetah}-<quality> or antmaze-<task> + -v2, -local (ours)
    exp_name: str | None = None  # part of the run folder's name; None: the script's name and the changed flags
    run_dir: Path = Path("runs")  # parent of the run folder <env-id>__<exp-name>__s<first seed>-<last seed>
    dataset_path: Path | None = None  # a file in D4RL's layout, not the one in $D4RL_DATASET_DIR (~/.d4rl/datasets)
    seed: int = 0  # first seed, 0 or more
    num_seeds: int = 1  # seeds trained side by side, 1 or more: seed ... seed + num_seeds - 1


@dataclass
class Method:
    """The method: the paper's symbols and Table 5. A default of None stands for the dataset's preset, which ends the
    sentence: the value on Gym; then, where it differs, on (medium-)expert; then on AntMaze."""

    lam: float = 0.25  # λ in [0, 1], share of the policy's value in the Bellman target (Eq. 6, 16; Table 5)
    nu: float | None = None  # ν >= 0, pull towards good data actions (Eq. 14), inf: clone. 0.1; expert 10; AntMaze 0.5
    expectile: float | None = None  # τ in (0, 1), expectile taken for the in-sample maximum (Eq. 15). 0.7; AntMaze 0.9
    temperature: float | None = None  # α >= 0 in the weights exp(α A) (Eq. 14), 0: all weights are 1. 3; AntMaze 10
    weight_clip: float | None = None  # largest weight, > 0 (authors' code). 3; AntMaze 100
    gamma: float = 0.99  # γ in [0, 1), discount (Table 5)
    polyak: float = 0.005  # in (0, 1], step of the target networks towards the trained ones (Table 5)
    learning_rate: float = 3e-4  # > 0, Adam's rate; the actor's falls to 0 along a cosine (Table 5)
    batch_size: int = 256  # transitions per seed and iteration, 1 or more, drawn with replacement (Table 5)
    hidden_dim: int = 256  # units in each of the two hidden layers, 1 or more (Table 5)
    policy_noise: float = 0.2  # >= 0, standard deviation of the noise on the target actor's action (authors' code)
    noise_clip: float = 0.5  # >= 0, bound of that noise (authors' code)
    policy_delay: int = 2  # iterations per actor step and target step, 1 or more (authors' code)


@dataclass
class Training:
    """How long, and on what."""

    iterations: int = 1_000_000  # offline iterations, 0 or more (Table 5); none with --checkpoint or --scratch
    checkpoint: Path | None = None  # start from this checkpoint.pt of dmg_iql.py: all its seeds, in place of iterations
    scratch: bool = False  # no dataset and no offline phase; TD3: with --lam 1 --nu 0 --warmup-steps 25000
    online_steps: int = 1_000_000  # environment steps for each seed, 0 or more, each with one update (Appendix C.2)
    warmup_steps: int = 0  # of these, 0 or more: the first ones, with uniform actions and no update (TD3: 25,000)
    exploration_noise: float = 0.1  # >= 0, standard deviation of the noise on online actions (Appendix C.2)
    buffer_size: int = 1_000_000  # online transitions kept for each seed, 1 or more, beside the dataset
    lam_online: float | None = None  # in [0, 1], what λ moves to: twice lam, at most 1 (Appendix C.2: 0.5)
    nu_online: float | None = None  # >= 0, what ν moves to: nu / 100 (Appendix C.2: 0.005); inf if and only if nu is
    decay: float = 0.99  # in (0, 1], factor on the distance of λ and ν from there (authors' code)
    decay_every: int = 1_000  # updates between two such steps, 1 or more (authors' code)
    gamma_online: float | None = None  # γ online, in [0, 1). 0.99; antmaze-large 0.995 (Appendix C.2)
    normalize_states: bool | None = None  # states to mean 0, standard deviation 1 (Appendix C.1). True; AntMaze False
    std_offset: float = 1e-3  # > 0, added to that standard deviation before dividing by it (authors' code)
    antmaze_reward: bool | None = None  # reward 1 becomes 0, any other -1 (Appendix C.1). False; AntMaze True
    normalize_rewards: bool = False  # times 1000 / (best - worst return in the data), as the published IQL, XQL, SQL do


@dataclass
class Run:
    """Evaluations, logs and checkpoints."""

    eval_every: int | None = None  # iterations between evaluations, 1 or more; the last counts. 20,000; AntMaze 50,000
    eval_episodes: int | None = None  # episodes per seed and evaluation, 1 or more (Appendix C.1). 10; AntMaze 100
    log_every: int = 1_000  # iterations between rows of metrics.csv, 1 or more; the last counts
    save_every: int = 10_000  # iterations between checkpoints, 1 or more; the last counts
    resume: bool = False  # continue from the run folder's checkpoint, if there is one
    overwrite: bool = False  # delete the run folder first, if there is one


@dataclass
class Machine:
    """Where it runs; results do not depend on it but for rounding."""

    device: str = "auto"  # cpu, cuda, or auto: cuda if torch sees a GPU
    cudagraphs: bool = False  # on a GPU, capture the update and replay it: the same arithmetic, launched at once
    threads: int = 0  # CPU threads, 0: two where there are as many cores (more was not measured)
    eval_workers: int = 0  # processes that play evaluation episodes; 0: one per core beside a GPU, else only this one


@dataclass
class Args(Machine, Run, Training, Method, Task):
    """Train DMG on an offline dataset and report its normalised score."""


def command_line(words: list[str] | None = None) -> Args:
    """The flags given, sys.argv's for None; --help shows them in the groups above."""
    groups = [(group.__name__.lower(), group, field(default_factory=group)) for group in reversed(Args.__bases__)]
    page = tyro.conf.OmitArgPrefixes[make_dataclass("Groups", groups)]
    parts = vars(tyro.cli(page, args=words, description=Args.__doc__)).values()
    return Args(**{name: value for part in parts for name, value in vars(part).items()})


CHECKS = {  # flags: (test, which NaN fails; what they have to be)
    "lam lam_online": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "gamma gamma_online": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "polyak decay": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "expectile": (lambda x: 0 < x < 1, "inside (0, 1)"),
    "weight_clip": (lambda x: x > 0, "above 0"),
    "learning_rate std_offset": (lambda x: 0 < x < math.inf, "finite, above 0"),
    "nu nu_online seed threads eval_workers iterations online_steps warmup_steps": (lambda x: x >= 0, "0 or more"),
    "temperature policy_noise noise_clip exploration_noise": (lambda x: 0 <= x < math.inf, "finite, 0 or more"),
    "num_seeds batch_size hidden_dim policy_delay buffer_size decay_every": (lambda x: x >= 1, "1 or more"),
    "eval_every eval_episodes log_every save_every": (lambda x: x >= 1, "1 or more"),
    "device": (lambda x: x in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
}
MACHINE = set(
    "run_dir dataset_path checkpoint save_every resume overwrite device cudagraphs threads eval_workers".split()
)
UNNAMED = MACHINE | set("env_id exp_name seed num_seeds log_every".split())  # not in exp_name; MACHINE may change later

# ---- tasks and presets -----------------------------------------------------------------------------------------------
ROBOTS = {  # Gymnasium environment (D4RL's returns are those of -v4, not of -v5), D4RL's random and expert return
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "antmaze": ("antmaze.py's", 0.0, 1.0),
}
ANTMAZE = {  # the task's file, without what all have in common, and its size in bytes where that is known
    "antmaze-umaze": ("u-maze_noisy_multistart_False_multigoal_False", 232_532_949),
    "antmaze-umaze-diverse": ("u-maze_noisy_multistart_True_multigoal_True", 230_854_272),
    "antmaze-medium-play": ("big-maze_noisy_multistart_True_multigoal_False", 231_110_764),
    "antmaze-medium-diverse": ("big-maze_noisy_multistart_True_multigoal_True", 231_095_166),
    "antmaze-large-play": ("hardest-maze_noisy_multistart_True_multigoal_False", 230_880_653),
    "antmaze-large-diverse": ("hardest-maze_noisy_multistart_True_multigoal_True", None),
}
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")
GYM_TASKS = [f"{robot}-{quality}" for robot in ("hopper", "walker2d", "halfcheetah") for quality in QUALITIES]
ENV_IDS = [f"{task}-{kind}" for kind in ("v2", "local") for task in (*GYM_TASKS, *ANTMAZE)]


def preset(env_id: str) -> dict[str, float | bool]:
    """The paper's settings for an id: Table 5, Appendix C.1; weight_clip and eval_every from the authors' code."""
    if env_id.startswith("antmaze-"):
        return dict(nu=0.5, expectile=0.9, temperature=10.0, weight_clip=100.0, normalize_states=False,
                    antmaze_reward=True, eval_every=50_000, eval_episodes=100,
                    gamma_online=0.995 if "-large-" in env_id else 0.99)  # fmt: skip
    return dict(nu=10.0 if "expert" in env_id else 0.1, expectile=0.7, temperature=3.0, weight_clip=3.0,
                normalize_states=True, antmaze_reward=False, eval_every=20_000, eval_episodes=10,
                gamma_online=0.99)  # fmt: skip


def resolve(args: Args) -> Args:
    """Fill in every None. Raises SystemExit for an unknown id, a flag out of range, or a GPU that is not there."""
    if args.env_id not in ENV_IDS:
        close = difflib.get_close_matches(args.env_id, ENV_IDS, n=5, cutoff=0.4) or ENV_IDS
        raise SystemExit(f"error: --env-id {args.env_id} is unknown; closest: {', '.join(close)}")
    changed = [f.name for f in fields(args) if f.name not in UNNAMED and getattr(args, f.name) != f.default]
    name = "-".join([Path(__file__).stem] + [f"{key.replace('_', '')}{getattr(args, key)}" for key in changed])
    given = {key: value for key, value in vars(args).items() if value is not None}
    if args.nu is None:
        given["nu"] = preset(args.env_id)["nu"]
    moves_to = {"lam_online": min(2 * args.lam, 1.0), "nu_online": given["nu"] / 100}
    args = Args(**{"exp_name": name, **preset(args.env_id), **moves_to, **given})
    for flags, (test, wanted) in CHECKS.items():
        for flag in flags.split():
            if not test(getattr(args, flag)):
                raise SystemExit(f"error: --{flag.replace('_', '-')} {getattr(args, flag)}: it has to be {wanted}")
    if math.isinf(args.nu) != math.isinf(args.nu_online):
        raise SystemExit(f"error: --nu {args.nu} --nu-online {args.nu_online}: both have to be inf, or neither")
    if args.scratch and args.checkpoint:
        raise SystemExit("error: --scratch starts without a checkpoint; leave out --scratch or --checkpoint")
    if args.normalize_rewards:
        raise SystemExit("error: --normalize-rewards is known for a dataset only, not online; leave it out")
    args.iterations = 0 if args.scratch or args.checkpoint else args.iterations
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch sees no GPU; use --device cpu or install torch with CUDA")
    args.device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    args.cudagraphs = args.cudagraphs and args.device == "cuda"
    args.threads = args.threads or min(torch.get_num_threads(), 2)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    args.eval_workers = args.eval_workers or (cores if args.device == "cuda" else 1)
    return args


def make_env(env_id: str) -> gym.Env:
    """The simulator in which policies trained on this dataset id are evaluated."""
    gym.logger.min_level = gym.logger.ERROR  # no "v4 is out of date": it is the version that D4RL's scores mean
    if not env_id.startswith("antmaze-"):
        return gym.make(ROBOTS[env_id.split("-")[0]][0])
    try:
        import antmaze  # noqa: F401 (it registers the ids)

        return gym.make(env_id.replace("-local", "-v2"))
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {env_id} needs antmaze.py beside this script, and d4rl: {error}") from None


def normalized_score(env_id: str, returns: np.ndarray) -> np.ndarray:
    """D4RL's score (Appendix C.1): 0 is a random policy's return, 100 an expert's; AntMaze's is success in %."""
    _, random_return, expert_return = ROBOTS[env_id.split("-")[0]]
    return 100 * (returns - random_return) / (expert_return - random_return)


# ---- dataset and replay buffer ---------------------------------------------------------------------------------------
MIRROR, REVISION = "imone/D4RL", "9ed58d8a76c12f4c1cb5db51fa71389e703d2ec5"  # a dataset on the Hugging Face hub
SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"  # D4RL's own
SHA256 = {"antmaze-umaze-v2": "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130"}  # the known one


def digest(path: Path) -> str:
    """The file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, env_id: str) -> None:
    """Raise an exception where the file is no HDF5, or not D4RL's as far as its size and SHA-256 are known."""
    _, wanted = ANTMAZE.get(env_id.removesuffix("-v2"), ("", None))
    if wanted and path.stat().st_size != wanted:
        raise ValueError(f"{path.stat().st_size:,} bytes, D4RL's file has {wanted:,}")
    if env_id in SHA256 and digest(path) != SHA256[env_id]:
        raise ValueError(f"its SHA-256 is {digest(path)[:12]}..., D4RL's file has {SHA256[env_id][:12]}...")
    h5py.File(path).close()


def find_dataset(env_id: str, dataset_path: Path | None = None) -> Path:
    """The HDF5 file of a dataset id; D4RL's are downloaded. Raises SystemExit, saying what to do, without one."""
    task, kind = env_id.rsplit("-", 1)
    folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    name, server, failures = f"{task.replace('-', '_')}-{kind}.hdf5", f"{SERVER}/gym_mujoco_v2", ""
    if task in ANTMAZE and kind == "v2":
        name, server = f"Ant_maze_{ANTMAZE[task][0]}_sparse_fixed.hdf5", f"{SERVER}/ant_maze_v2"
    path = dataset_path or folder / name
    collect = f"python tools/collect.py --env-id {task}-local"
    if path.is_file():
        try:
            if not dataset_path and kind == "v2":
                check_file(path, env_id)
        except Exception as error:
            raise SystemExit(f"error: {path} is not whole ({error}); delete it, and it is downloaded again") from None
        return path
    if dataset_path or kind == "local":
        raise SystemExit(f"error: {path} does not exist; {collect} makes data without a network")
    from huggingface_hub import hf_hub_download

    sources = (server,) if task == "antmaze-large-diverse" else (MIRROR, server)  # the mirror lacks that one
    for source in sources:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as part:
                if source == MIRROR:
                    hf_hub_download(MIRROR, path.name, repo_type="dataset", revision=REVISION, local_dir=part)
                else:
                    torch.hub.download_url_to_file(f"{server}/{path.name}", f"{part}/{path.name}")
                check_file(Path(part, path.name), env_id)  # raises if the connection was cut or something else was sent
                os.replace(f"{part}/{path.name}", path)
            return path
        except Exception as error:  # each library raises kinds of its own; all of them mean: try the next source
            failures += f"\n  {source}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    mirror = f"Hugging Face's dataset {MIRROR} (revision {REVISION[:7]}) or\n" if MIRROR in sources else ""
    raise SystemExit(
        f"error: no download of {path.name}:{failures}\nPut it at {path}, from {mirror}{server}/{path.name}. "
        f"Without a network: {collect}, then --env-id {task}-local"
    )


def load_transitions(path: Path, state_dim: int, action_dim: int, time_limit: int) -> dict[str, np.ndarray]:
    """The transitions of a D4RL file, equal to d4rl.qlearning_dataset: s' is the next row's observation; rows at a time
    limit and the last row are dropped. Returns float32 observations and next_observations [n, state_dim], actions
    [n, action_dim], rewards [n], and bool terminals [n]. Raises SystemExit for a damaged, incomplete or unfit file."""
    shapes = {"observations": (state_dim,), "actions": (action_dim,), "rewards": (), "terminals": (), "timeouts": ()}
    try:
        with h5py.File(path) as file:
            data = {key: file[key][:] for key in shapes if key in file}
    except Exception as error:  # a damaged file raises any of six kinds
        raise SystemExit(
            f"error: {path} is not a whole HDF5 file ({error}); delete it, and get or make it again"
        ) from None
    if missing := [key for key in shapes if key not in data and key != "timeouts"]:
        raise SystemExit(f"error: {path} has no {', '.join(missing)}; give a file in D4RL's layout as --dataset-path")
    rows = len(data["observations"])
    for key, values in data.items():
        wanted = (rows, *shapes[key])
        data[key] = values = values[:, 0] if values.shape == (rows, 1) and not shapes[key] else values
        if values.shape != wanted:
            raise SystemExit(f"error: {path}: {key} has shape {values.shape} and {wanted} is needed: use another file")
        if values.dtype.kind not in "biuf" or not (np.abs(values) < np.finfo(np.float32).max).all():
            raise SystemExit(f"error: {path}: {key} holds NaN, infinite or no numbers; delete it, get or make it again")
    terminals, limits = data["terminals"].astype(bool), data.get("timeouts", np.zeros(rows)).astype(bool)
    if "timeouts" not in data:
        begin = step = 0  # counted as d4rl does: from 0 at first and after a time limit, from 1 after a terminal
        for end in np.flatnonzero(np.append(terminals[:-1], True)[:rows]):
            limits[begin + time_limit - 1 - step : end + 1 : time_limit] = True
            begin, step = end + 1, int(not limits[end])
    keep = np.flatnonzero(~limits[:-1])
    if len(keep) == 0:
        raise SystemExit(f"error: {path} has {rows} row(s) and no transition; delete it, and get or make it again")
    data["next_observations"] = data["observations"][1:]
    columns = ("observations", "actions", "rewards", "next_observations")
    return {key: data[key][keep].astype(np.float32) for key in columns} | {"terminals": terminals[keep]}


def return_range(r: np.ndarray, data: dict[str, np.ndarray]) -> float:
    """The best minus the worst return of a trajectory: rows to a terminal one, or to one whose s' is not the next s.
    Raises SystemExit where all are the same."""
    ends = np.append((data["observations"][1:] != data["next_observations"][:-1]).any(1), True) | data["terminals"]
    returns = np.diff(np.cumsum(r, dtype=np.float64)[ends], prepend=0)
    if returns.max() == returns.min():
        raise SystemExit("error: --normalize-rewards, but all trajectories have the same return; leave the flag out")
    return returns.max() - returns.min()


def replay_table(data: dict[str, np.ndarray], args: Args) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """All transitions as one tensor [n, columns] on the device, a row being s | a | r | 1 - terminal | s', with states
    normalised by the mean and scale [state_dim] that are returned with it."""
    s, s2, r = data["observations"], data["next_observations"], data["rewards"]
    mean, scale = np.zeros(s.shape[1]), np.ones(s.shape[1])
    if args.normalize_states:
        mean, scale = s.mean(0, dtype=np.float64), s.std(0, dtype=np.float64) + args.std_offset
    r = np.where(r == 1, 0.0, -1.0) if args.antmaze_reward else r
    r = r * (1000 / return_range(r, data)) if args.normalize_rewards else r
    columns = (s - mean) / scale, data["actions"], r[:, None], ~data["terminals"][:, None], (s2 - mean) / scale
    table = torch.cat([torch.as_tensor(column, dtype=torch.get_default_dtype()) for column in columns], dim=1)
    return table.to(args.device), mean, scale


def random_seeds(args: Args, *key: int, number: int = 1) -> np.ndarray:
    """Random seeds [seeds, number] that depend on (seed, key) alone: the same whatever seeds train beside it, and in a
    resumed run. Keys: (0,) first networks, (1, block) batches and noise, (2, iteration) evaluation."""
    seeds = range(args.seed, args.seed + args.num_seeds)
    return np.stack([np.random.SeedSequence((seed, *key)).generate_state(number, np.uint64) for seed in seeds])


BLOCK = 1_000  # iterations whose random numbers are drawn at once


def draw_block(args: Args, block: int, rows: int, action_dim: int) -> tuple[Tensor, Tensor]:
    """Batch indices [seeds, BLOCK, batch] and target noise [seeds, BLOCK, batch, action_dim] of BLOCK iterations."""
    indices, noise = [], []
    for seed in random_seeds(args, 1, block)[:, 0]:
        draw = {"generator": torch.Generator(args.device).manual_seed(int(seed)), "device": args.device}
        indices.append(torch.randint(rows, (BLOCK, args.batch_size), **draw))
        noise.append(torch.randn(BLOCK, args.batch_size, action_dim, **draw) * args.policy_noise)
    return torch.stack(indices), torch.stack(noise).clamp_(-args.noise_clip, args.noise_clip)


def draw_online(args: Args, block: int, action_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for the online phase, where the buffer grows: batch indices as fractions of it, float64 [seeds, BLOCK,
    batch], target noise, and for each step's action [seeds, BLOCK, action_dim] noise and a uniform draw in [-1, 1]."""
    parts: list[list[Tensor]] = [[], [], [], []]
    for seed in random_seeds(args, 3, block)[:, 0]:
        draw = {"generator": torch.Generator(args.device).manual_seed(int(seed)), "device": args.device}
        parts[0].append(torch.rand(BLOCK, args.batch_size, dtype=torch.float64, **draw))
        parts[1].append(torch.randn(BLOCK, args.batch_size, action_dim, **draw) * args.policy_noise)
        parts[2].append(torch.randn(BLOCK, action_dim, **draw) * args.exploration_noise)
        parts[3].append(2 * torch.rand(BLOCK, action_dim, **draw) - 1)
    fractions, noise, explore, uniform = map(torch.stack, parts)
    return fractions, noise.clamp_(-args.noise_clip, args.noise_clip), explore, uniform


def online_rows(fractions: Tensor, rows: int, steps: int, args: Args) -> Tensor:
    """Rows of the buffer [seeds, batch] for fractions in [0, 1): uniform over the dataset's `rows` and the newest of a
    seed's `steps` online transitions. Seed k's lie behind those, from rows + k * buffer_size on."""
    index = (fractions * (rows + min(steps, args.buffer_size))).long()
    shift = torch.arange(len(index), device=index.device)[:, None] * args.buffer_size
    return torch.where(index < rows, index, index + shift)


def schedule(args: Args, update: int) -> tuple[float, float]:
    """λ and ν at an online update, counted from 1 (Appendix C.2)."""
    d = args.decay ** (update // args.decay_every)
    lam = args.lam_online - (args.lam_online - args.lam) * d
    return lam, args.nu if math.isinf(args.nu) else args.nu_online + (args.nu - args.nu_online) * d


# ---- networks: parameters of all seeds side by side, [nets, out, in] and [nets, out, 1] ------------------------------
def init_mlp(args: Args, generators: list[torch.Generator], copies: int, sizes: list[int]) -> list[Tensor]:
    """`copies` networks for every seed, nets = seeds * copies, drawn like torch.nn.Linear's: uniform in ±1/sqrt(in)."""
    params = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        for columns in (fan_in, 1):
            uniform = torch.cat([torch.rand(copies, fan_out, columns, generator=g) for g in generators])
            params.append(((2 * uniform - 1) / math.sqrt(fan_in)).to(args.device).requires_grad_())
    return params


def mlp(params: list[Tensor], x: Tensor) -> Tensor:
    """x [inputs, batch, in] -> [nets, batch, out]; the first nets / inputs networks share the first input, and so on.
    Inside, samples are columns (W x + b), and networks that share an input are one in their first layer: faster."""
    w1, b1, w2, b2, w3, b3 = params
    h = torch.baddbmm(b1.view(len(x), -1, 1), w1.view(len(x), -1, x.shape[-1]), x.mT).relu_()
    h = torch.baddbmm(b2, w2, h.view(len(w2), -1, x.shape[1])).relu_()
    return torch.baddbmm(b3, w3, h).mT


def policy(actor: list[Tensor], s: Tensor) -> Tensor:
    """π_φ(s) [seeds, batch, action], inside the action bounds, ±1 for every robot here."""
    return mlp(actor, s).tanh()


def V(value: list[Tensor], s: Tensor) -> Tensor:
    """V_ψ(s) [seeds, batch]."""
    return mlp(value, s).squeeze(-1)


def Q(critic: list[Tensor], s: Tensor, a: Tensor) -> Tensor:
    """Q_θ(s, a) of both twins [seeds, 2, batch]; seed k's are the nets 2k and 2k + 1."""
    return mlp(critic, torch.cat((s, a), -1)).view(len(s), 2, -1)


# ---- the losses, each [seeds] ----------------------------------------------------------------------------------------
# Eq. 15
def value_loss(u: Tensor, args: Args) -> Tensor:
    """Eq. 15: L_V(ψ) = E[|τ - 1(u < 0)| u²], u = Q_θ'(s, a) - V_ψ(s). As τ -> 1, V_ψ -> the in-sample maximum of Q."""
    return (torch.where(u < 0, 1 - args.expectile, args.expectile) * u.square()).mean(-1)


# Eq. 16 (and Eq. 6, on samples)
def critic_loss(q: Tensor, r: Tensor, not_done: Tensor, q2: Tensor, v2: Tensor, lam: Tensor, args: Args) -> Tensor:
    """Eq. 16: L_Q(θ) = E[(Q_θ(s, a) - r - γ λ Q_θ'(s', a') - γ (1 - λ) V_ψ(s'))²], a' from π_φ', summed over twins."""
    target = r + args.gamma * not_done * (lam * q2 + (1 - lam) * v2)
    return (q - target.unsqueeze(1)).square().mean(-1).sum(-1)


# Eq. 14 (Eq. 11 to 13 lead to it)
def actor_loss(q: Tensor, pi: Tensor, a: Tensor, adv: Tensor, q_coef: Tensor, nu: Tensor, args: Args) -> Tensor:
    """Eq. 14 negated, with its sign corrected: -E[Q_θ(s, π_φ(s))] / mean |Q| + ν E[w (π_φ(s) - a)²], w = exp(α A)."""
    weight = (args.temperature * adv).exp().clamp(max=args.weight_clip)
    cloning = (weight.unsqueeze(-1) * (pi - a).square()).mean((-2, -1))
    return -q_coef * q.mean(-1) / q.detach().abs().mean(-1) + nu * cloning


class Adam:
    """Adam (Table 5): torch.optim.Adam's own fused step and defaults, without the bookkeeping around it, which takes
    longer on a CPU than the step. `rate` is a tensor, so that a captured graph sees it change; `state` is what a
    checkpoint keeps: the count of steps, then every parameter's first moment, then every second."""

    def __init__(self, params: list[Tensor], rate: float) -> None:
        self.params, device = [param.detach() for param in params], params[0].device
        self.rate, self.steps = torch.tensor(rate).to(device), torch.zeros((), dtype=torch.float32, device=device)
        self.moments = [[torch.zeros_like(param) for param in self.params] for _ in range(2)]
        self.state = [self.steps, *self.moments[0], *self.moments[1]]

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        """One step, in place."""
        self.steps += 1
        gradients = [gradient.contiguous() for gradient in gradients]  # the fused step ignores a gradient's strides
        defaults = dict(beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False)
        steps = [self.steps] * len(self.params)
        torch._fused_adam_(self.params, gradients, *self.moments, [], steps, lr=self.rate, **defaults)


class DMG:
    """The networks and optimisers of all seeds, and one iteration of Algorithm 1."""

    def __init__(self, args: Args, state_dim: int, action_dim: int) -> None:
        self.args, self.columns = args, [state_dim, action_dim, 1, 1, state_dim]  # as in replay_table
        generators = [torch.Generator().manual_seed(int(seed)) for seed in random_seeds(args, 0)[:, 0]]
        hidden = [args.hidden_dim] * 2
        self.actor = init_mlp(args, generators, 1, [state_dim, *hidden, action_dim])
        self.critic = init_mlp(args, generators, 2, [state_dim + action_dim, *hidden, 1])
        self.value = init_mlp(args, generators, 1, [state_dim, *hidden, 1])
        self.actor_target = [param.detach().clone() for param in self.actor]
        self.critic_target = [param.detach().clone() for param in self.critic]
        self.optimisers = {x: Adam(getattr(self, x), args.learning_rate) for x in ("actor", "critic", "value")}
        # λ and ν are tensors, too.
        self.lam = torch.tensor(args.lam, device=args.device)
        self.q_coef, self.nu = torch.tensor([0.0, 1.0] if math.isinf(args.nu) else [1.0, args.nu], device=args.device)

    def descend(self, name: str, loss: Tensor) -> None:
        """One Adam step. Seeds share no parameter, so the gradient of their summed losses is each one's own."""
        self.optimisers[name].step(torch.autograd.grad(loss, getattr(self, name), torch.ones_like(loss)))

    def set_actor_rate(self, steps_done: int) -> None:
        """Table 5's cosine schedule: the full rate at the first actor step, 0 behind the last."""
        angle = math.pi * steps_done / max(self.args.iterations // self.args.policy_delay, 1)
        self.optimisers["actor"].rate.fill_(self.args.learning_rate * (1 + math.cos(angle)) / 2)

    def update(self, batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        """One iteration, from rows of the replay table [seeds, batch, columns] and target noise [seeds, batch, action].
        Returns the losses [seeds] and the batch's q [seeds, 2, batch] and v [seeds, batch], to be logged."""
        s, a, r, not_done, s2 = batch.split(self.columns, dim=-1)
        with torch.no_grad():  # the target networks stand until the Polyak step: q_target serves Eq. 15 and Eq. 14
            a2 = (policy(self.actor_target, s2) + noise).clamp_(-1, 1)
            q_target = Q(self.critic_target, s, a).amin(1)  # the smaller twin
            q2 = Q(self.critic_target, s2, a2).amin(1)

        v = V(self.value, s)
        v_loss = value_loss(q_target - v, self.args)
        self.descend("value", v_loss)

        with torch.no_grad():
            v2 = V(self.value, s2)
        q = Q(self.critic, s, a)
        q_loss = critic_loss(q, r.squeeze(-1), not_done.squeeze(-1), q2, v2, self.lam, self.args)
        self.descend("critic", q_loss)

        log = {"value_loss": v_loss, "qf_loss": q_loss, "q": q, "v": v}
        if actor_step:
            with torch.no_grad():
                adv = q_target - V(self.value, s)
            pi = policy(self.actor, s)
            pi_loss = actor_loss(Q(self.critic, s, pi).amin(1), pi, a, adv, self.q_coef, self.nu, self.args)
            self.descend("actor", pi_loss)
            log["actor_loss"] = pi_loss
            with torch.no_grad():
                torch._foreach_lerp_(self.actor_target, self.actor, self.args.polyak)
                torch._foreach_lerp_(self.critic_target, self.critic, self.args.polyak)
        return {name: value.detach() for name, value in log.items()}


def captured(update: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """DMG.update as two CUDA graphs, with and without the actor step. The first 5 iterations of each kind run as they
    are, since a capture must not make what outlives it; it computes nothing; later ones replay on copied inputs."""
    graphs, inputs, calls = {}, [], {True: 0, False: 0}

    def replay(batch: Tensor, noise: Tensor, actor_step: bool) -> dict[str, Tensor]:
        calls[actor_step] += 1
        if calls[actor_step] <= 5:
            return update(batch, noise, actor_step)
        inputs[:] = inputs or [batch.clone(), noise.clone()]
        if actor_step not in graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                graphs[actor_step] = graph, update(*inputs, actor_step)
        torch._foreach_copy_(inputs, [batch, noise])
        graph, log = graphs[actor_step]
        graph.replay()
        return log

    return replay


# ---- evaluation ------------------------------------------------------------------------------------------------------
simulators = functools.cache(lambda env_id, number: [make_env(env_id) for _ in range(number)])  # kept from call to call


@torch.no_grad()
def rollout(env_id: str, actor: list, mean: np.ndarray, scale: np.ndarray, resets: np.ndarray) -> np.ndarray:
    """One episode from each reset seed [policies, episodes], all of them together; an ended episode is not stepped on.
    Gives [2, policies, episodes]: returns (NaN where an action was not finite) and lengths."""
    envs, played = simulators(env_id, resets.size), np.zeros((2, resets.size))
    actor, running = [torch.as_tensor(param) for param in actor], set(range(resets.size))
    states = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, resets.flat)])
    while running:
        s = torch.as_tensor((states - mean) / scale, dtype=actor[0].dtype).view(*resets.shape, -1)
        actions = policy(actor, s).flatten(0, 1).numpy()
        for i in sorted(running):
            if not np.isfinite(actions[i]).all():
                played[0, i], ended = math.nan, True
            else:
                states[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
                played[:, i], ended = played[:, i] + (reward, 1), terminated or truncated
            running -= {i} if ended else set()
    return played.reshape(2, *resets.shape)


# ---- the online phase's simulators -----------------------------------------------------------------------------------
class Collector:
    """One simulator for each seed, and the episode that it is in. An episode's reset has a seed of its own, so that all
    that a checkpoint has to keep of a simulator is its physical state and these counts."""

    def __init__(self, args: Args) -> None:
        self.args, self.envs = args, [make_env(args.env_id) for _ in range(args.num_seeds)]
        self.limit = self.envs[0].spec.max_episode_steps
        self.envs = [env.unwrapped for env in self.envs]  # the limit is counted here
        self.episodes, self.lengths, self.returns = ([0] * args.num_seeds for _ in range(3))
        self.states = np.stack([self.reset(k) for k in range(args.num_seeds)])

    def reset(self, k: int) -> np.ndarray:
        """Begin seed k's next episode; its first state."""
        self.episodes[k], self.lengths[k], self.returns[k] = self.episodes[k] + 1, 0, 0.0
        seed = random_seeds(self.args, 4, self.episodes[k])[k, 0]
        return self.envs[k].reset(seed=int(seed))[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, float, int]]]:
        """Step every simulator. Gives s' [seeds, state], rewards, terminals (a time limit is none), and of each episode
        that has ended its seed's position, return and length; the next one begins at once."""
        after, rewards, terminals, ended = (
            np.empty_like(self.states),
            np.zeros(len(actions)),
            np.zeros(len(actions)),
            [],
        )
        for k, action in enumerate(actions):
            after[k], rewards[k], terminals[k], _, _ = self.envs[k].step(action)
            self.lengths[k], self.returns[k] = self.lengths[k] + 1, self.returns[k] + float(rewards[k])
            self.states[k] = after[k]
            if terminals[k] or self.lengths[k] == self.limit:
                ended.append((k, self.returns[k], self.lengths[k]))
                self.states[k] = self.reset(k)
        return after, rewards, terminals, ended

    def save(self) -> dict[str, list]:
        """All that `load` needs to go on from here, bit for bit."""
        physics = []
        for env in self.envs:
            size = mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION)
            physics.append(np.empty(size))
            mujoco.mj_getState(env.model, env.data, physics[-1], mujoco.mjtState.mjSTATE_INTEGRATION)
        counts = {"episodes": self.episodes, "lengths": self.lengths, "returns": self.returns}
        lists = {"physics": [values.tolist() for values in physics], "states": self.states.tolist()}
        return {name: list(values) for name, values in (counts | lists).items()}

    def load(self, saved: dict[str, list]) -> None:
        """Go on from what `save` gave: the episode's reset again, for its goal, then its physical state."""
        for k, env in enumerate(self.envs):
            self.episodes[k] = saved["episodes"][k] - 1
            self.reset(k)
            physics = np.array(saved["physics"][k])
            mujoco.mj_setState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.lengths, self.returns = list(saved["lengths"]), list(saved["returns"])
        self.states = np.array(saved["states"])


# ---- checkpoint, logs and the run ------------------------------------------------------------------------------------
NETS = ("actor", "critic", "value", "actor_target", "critic_target")
TABLES = {  # the same columns as when fine-tuning online, where phase, env_steps, λ and ν change; success is AntMaze's
    "eval.csv": "phase,iteration,env_steps,seed,episode,return,length,score,success",
    "metrics.csv": "iteration,seed,value_loss,qf_loss,actor_loss,q_values,v_values,lam,nu,wall_seconds,diverged",
    "episodes.csv": "env_steps,seed,return,length,score,success",
}


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have a temporary file written, then rename it: a kill leaves the old file or the new one, never half of one."""
    write(path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def save_checkpoint(path: Path, agent: DMG, state: dict) -> None:
    """Write the agent's networks and optimisers, seed axis first, beside `state`: configuration, counters, flags."""
    nets = {name: [param.detach() for param in getattr(agent, name)] for name in NETS}
    optimisers = {name: optimiser.state for name, optimiser in agent.optimisers.items()}
    replace_file(path, lambda part: torch.save({**state, "nets": nets, "optimisers": optimisers}, part))


def check_same(path: Path, was: dict, now: dict) -> None:
    """Raise SystemExit, naming `path` and the settings, where it was made with other ones than those asked for now."""
    if differ := [f"{key} {was.get(key)} (now {now[key]})" for key in now if was.get(key) != now[key]]:
        raise SystemExit(f"error: {path} has {', '.join(differ)}; use its settings, or --overwrite to start again")


def load_checkpoint(path: Path, agent: DMG, state: dict) -> dict:
    """Put a checkpoint's networks and optimisers into the agent and return its entries of the same names as `state`'s.
    Raises SystemExit where it is damaged, or was made by another script, from other data, with other settings."""
    try:
        saved = torch.load(path, map_location=agent.args.device, weights_only=True)
        check_same(path, saved["config"], state["config"])
        pairs = []
        for name in NETS:
            pairs += zip(getattr(agent, name), saved["nets"][name], strict=True)
        for name, optimiser in agent.optimisers.items():
            pairs += zip(optimiser.state, saved["optimisers"][name], strict=True)
        if any(param.shape != old.shape for param, old in pairs):
            raise ValueError("wrong shapes")
        for param, old in pairs:
            param.data.copy_(old)
        return {key: saved[key] for key in state}
    except Exception as error:  # torch raises many kinds for a damaged file
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise SystemExit(f"error: {path} is damaged ({what}); --overwrite starts again") from None


def keep_memory() -> None:
    """Have glibc keep what is freed for the next iteration. By default it gives large tensors back to the kernel, and
    getting them again, page by page, takes up to a quarter of an iteration. Does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, size in ((-3, 2**25), (-1, 2**28)) if mallopt else ():  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD; bytes
        mallopt(parameter, size)


def attend() -> None:
    """Make a process that plays evaluation episodes use one thread, and end when the main process has ended."""
    torch.set_num_threads(1)
    parent = torch.multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def offline_seeds(args: Args) -> dict[str, int]:
    """The seeds in args.checkpoint. Raises SystemExit where it is none of dmg_iql.py's or the flags ask for others."""
    try:
        config = torch.load(args.checkpoint, map_location="cpu", weights_only=True)["config"]
        script, seeds = config["script"], {"seed": config["seed"], "num_seeds": config["num_seeds"]}
    except Exception as error:  # torch raises many kinds for a damaged file
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise SystemExit(f"error: --checkpoint {args.checkpoint} is no checkpoint.pt of dmg_iql.py ({what})") from None
    if script != "dmg_iql":
        raise SystemExit(f"error: --checkpoint {args.checkpoint} is {script}.py's; give one of dmg_iql.py")
    if any(getattr(args, key) not in (getattr(Args, key), seeds[key]) for key in seeds):
        raise SystemExit(f"error: --checkpoint {args.checkpoint} has {seeds}; leave out --seed and --num-seeds")
    return seeds


def train(args: Args) -> int:
    """One job: offline phase, online phase, logs, checkpoints in one run folder. Returns the exit status: 3 if a seed
    diverged."""
    args = resolve(replace(args, **offline_seeds(args)) if args.checkpoint else args)
    seeds = range(args.seed, args.seed + args.num_seeds)
    folder = args.run_dir / f"{args.env_id}__{args.exp_name}__s{seeds[0]}-{seeds[-1]}"
    done, checkpoint = folder / "done", folder / "checkpoint.pt"
    settings = {key: value if isinstance(value, int | float) else str(value) for key, value in vars(args).items()}
    config = {key: value for key, value in settings.items() if key not in MACHINE | {"exp_name"}}
    if os.path.exists(folder) and not (args.resume or args.overwrite):  # (Path.exists raises for a name too long)
        how = "complete" if done.exists() else "unfinished: --resume continues it"
        raise SystemExit(f"error: {folder} exists and is {how}; --overwrite deletes it, --exp-name makes another")
    if os.path.exists(done) and not args.overwrite:
        try:
            check_same(folder, json.loads((folder / "config.json").read_text()), config)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {folder}/config.json is damaged ({error}); --overwrite starts again") from None
        print(f"{folder} is complete. {done.read_text()}")
        return 3 if "diverged" in done.read_text() else 0
    torch.set_num_threads(args.threads)
    keep_memory()
    if args.cudagraphs:
        torch.cuda.set_stream(torch.cuda.Stream())  # a capture must not follow work on the default stream
    env = make_env(args.env_id)
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    agent, collector, dtype = DMG(args, *dims), Collector(args), torch.get_default_dtype()
    dataset, mean, scale, path = torch.empty(0, sum(agent.columns)), np.zeros(dims[0]), np.ones(dims[0]), None
    if not args.scratch:
        path = find_dataset(args.env_id, args.dataset_path)
        dataset, mean, scale = replay_table(load_transitions(path, *dims, env.spec.max_episode_steps), args)
    rows = len(dataset)
    table = torch.empty(rows + args.num_seeds * args.buffer_size, sum(agent.columns), dtype=dtype, device=args.device)
    table[:rows] = dataset  # the memory behind it is touched as transitions come
    r_max = dataset[:, sum(dims)].abs().max().item() if rows else 0.0
    del dataset

    data = {"checkpoint_format": 2, "dataset_sha256": digest(path) if path else "none"}
    config |= {"script": Path(__file__).stem} | data
    about = {"dataset": str(path), "transitions": rows, "script_sha256": digest(Path(__file__))}
    about |= {"device_name": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {os.cpu_count()} cores"}
    about |= {package: version(package) for package in ("torch", "numpy", "mujoco", "gymnasium")}
    print(text := json.dumps(settings | config | about, indent=2))
    state = {"config": config, "state_mean": mean.tolist(), "state_scale": scale.tolist(), "iteration": 0}
    state |= {"wall_seconds": 0.0, "csv_bytes": [0] * len(TABLES), "diverged": [False] * len(seeds), "collector": {}}
    if os.path.exists(checkpoint) and not args.overwrite:
        state = load_checkpoint(checkpoint, agent, state)
    elif args.checkpoint:
        same = ("env_id", "hidden_dim", "normalize_states", "std_offset", "antmaze_reward", "normalize_rewards")
        offline = {"config": {key: config[key] for key in same} | data}
        try:
            load_checkpoint(args.checkpoint, agent, offline)
        except SystemExit as error:
            what = str(error).rpartition(";")[0]
            raise SystemExit(f"{what}; change the flags to its, or give another --checkpoint of dmg_iql.py") from None
    if state["collector"]:
        collector.load(state["collector"])
    try:
        if args.overwrite and os.path.exists(folder):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.json", lambda part: part.write_text(text))
        files = [(folder / name).open("a", newline="") for name in TABLES]
        for file, header, size in zip(files, TABLES.values(), state["csv_bytes"]):
            if file.tell() < size:
                raise OSError(f"{file.name} has lost rows since the checkpoint")
            file.truncate(size)  # rows past the checkpoint are made again
            file.seek(size)
            file.write("" if size else header + "\r\n")
        transitions = (folder / "transitions.bin").open("a+b")  # every online transition, in order
        steps, size = max(state["iteration"] - args.iterations, 0), table[0].nbytes * args.num_seeds
        transitions.seek(0)
        seen = np.frombuffer(transitions.read(steps * size), table[:0].cpu().numpy().dtype)
        if seen.nbytes < steps * size:
            raise OSError(f"{transitions.name} has lost rows since the checkpoint")
        transitions.truncate(steps * size)
    except OSError as error:
        raise SystemExit(f"error: {folder}: {error}; --run-dir makes another, --overwrite starts again") from None
    slots = rows + args.buffer_size * torch.arange(args.num_seeds, device=args.device)  # each seed's first online row
    for step, values in enumerate(torch.tensor(seen.reshape(steps, args.num_seeds, table.shape[1]))):
        table[slots + step % args.buffer_size] = values.to(args.device)
        r_max = max(r_max, values[:, sum(dims)].abs().max().item())
    evals, metrics, ends = map(csv.writer, files)
    first, began, shown = state["iteration"], time.perf_counter() - state["wall_seconds"], {}
    boards = [SummaryWriter(folder / f"s{seed}", purge_step=first + 1) for seed in seeds]
    spawn = torch.multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(args.eval_workers, spawn, initializer=attend) if args.eval_workers > 1 else None
    antmaze = args.env_id.startswith("antmaze-")

    def evaluate(iteration: int, steps: int) -> None:
        """Play and log eval_episodes episodes of every seed's policy."""
        actor = [param.detach().cpu().numpy() for param in agent.actor]
        resets = random_seeds(args, 2, iteration, number=args.eval_episodes)
        shares = np.array_split(resets, min(args.eval_workers, args.eval_episodes), axis=1)
        play = functools.partial(rollout, args.env_id, actor, mean, scale)
        returns, lengths = np.concatenate(list((pool.map if pool else map)(play, shares)), axis=2)
        scores = normalized_score(args.env_id, returns)
        for k, board in enumerate(boards):
            for e, values in enumerate(zip(returns[k], lengths[k].astype(int), scores[k])):
                success = int(values[0] > 0) if antmaze else ""
                evals.writerow(["online" if steps else "offline", iteration, steps, seeds[k], e, *values, success])
            board.add_scalar("eval/normalized_score", scores[k].mean(), iteration)
            board.add_scalar("eval/episodic_return", returns[k].mean(), iteration)
            board.add_scalar("eval/episodic_length", lengths[k].mean(), iteration)
        shown["score"] = f"{scores.mean():.1f}"

    total, lam, nu = args.iterations + args.online_steps, args.lam, args.nu
    update = captured(agent.update) if args.cudagraphs else agent.update
    if first == args.iterations == 0:
        evaluate(0, 0)
    for t in (bar := tqdm(range(first, total), initial=first, total=total, mininterval=1)):
        iteration, last = t + 1, t + 1 == total
        step = t - args.iterations  # of the online phase, where it is 0 or more
        if step < 0:
            if t % BLOCK == 0 or t == first:
                indices, noise = draw_block(args, t // BLOCK, rows, dims[1])
            index, updates = indices[:, t % BLOCK], iteration
            if updates % args.policy_delay == 0:
                agent.set_actor_rate(t // args.policy_delay)
        else:
            if step == 0 or t == first:
                agent.args = replace(args, gamma=args.gamma_online)
                agent.optimisers["actor"].rate.fill_(args.learning_rate)
                update = captured(agent.update) if args.cudagraphs else agent.update
            if step % BLOCK == 0 or t == first:
                fractions, noise, explore, uniform = draw_online(args, step // BLOCK, dims[1])
            with torch.no_grad():
                s = torch.as_tensor((collector.states - mean) / scale, dtype=dtype, device=args.device)
                a = (policy(agent.actor, s.unsqueeze(1)).squeeze(1) + explore[:, step % BLOCK]).clamp_(-1, 1)
                a = uniform[:, step % BLOCK] if step < args.warmup_steps else a
            after, rewards, terminals, ended = collector.step(a.cpu().numpy())
            r = np.where(rewards == 1, 0.0, -1.0) if args.antmaze_reward else rewards
            r_max = max(r_max, float(np.abs(r).max()))
            behind = np.concatenate([r[:, None], 1 - terminals[:, None], (after - mean) / scale], axis=1)
            new = torch.cat([s, a, torch.as_tensor(behind, dtype=dtype, device=args.device)], dim=1)
            table[slots + step % args.buffer_size] = new
            transitions.write(new.cpu().numpy().tobytes())
            for k, value, length in ended:
                score = normalized_score(args.env_id, np.array(value)).item()
                row = [step + 1, seeds[k], value, length, score, int(value > 0) if antmaze else ""]
                ends.writerow(row)
                boards[k].add_scalar("charts/episodic_return", value, iteration)
            index = online_rows(fractions[:, step % BLOCK], rows, step + 1, args)
            updates = step + 1 - args.warmup_steps
            if updates > 0:
                lam, nu = schedule(args, updates)
                agent.lam.fill_(lam)
                agent.nu.fill_(1.0 if math.isinf(nu) else nu)
        if updates > 0:
            batch = table.index_select(0, index.flatten()).view(*index.shape, -1)
            log = update(batch, noise[:, t % BLOCK if step < 0 else step % BLOCK], updates % args.policy_delay == 0)
        wall = time.perf_counter() - began

        if updates > 0 and (iteration % args.log_every == 0 or last):
            q, losses = log["q"], {name: log[name] for name in ("value_loss", "qf_loss", "actor_loss") if name in log}
            losses |= {"q_values": q.mean((1, 2)), "v_values": log["v"].mean(1)}
            q_bound = 100 * (r_max or math.inf) / (1 - agent.args.gamma)  # beyond it: diverged
            for k, seed in enumerate(seeds):
                row = dict.fromkeys(TABLES["metrics.csv"].split(","), "") | {"iteration": iteration, "seed": seed}
                row |= {name: values[k].item() for name, values in losses.items()}
                finite = math.isfinite(row["q_values"] + row["v_values"])
                state["diverged"][k] |= not finite or q[k].abs().mean().item() > q_bound
                row |= {"lam": lam, "nu": nu, "wall_seconds": round(wall, 2)}
                metrics.writerow((row | {"diverged": int(state["diverged"][k])}).values())
                for name in losses:
                    boards[k].add_scalar(f"losses/{name}", row[name], iteration)
                boards[k].add_scalar("schedule/lam", lam, iteration)
                boards[k].add_scalar("schedule/nu", nu, iteration)
                boards[k].add_scalar("charts/SPS", iteration / wall, iteration)
            shown |= {"Q": f"{q.mean().item():.1f}", "V": f"{log['v'].mean().item():.1f}"}
        if (iteration if step < 0 else step + 1) % args.eval_every == 0 or last or step == -1:
            evaluate(iteration, max(step + 1, 0))
        bar.set_postfix(shown, refresh=False)
        if iteration % args.save_every == 0 or last:
            for file in (*files, transitions, *boards):
                file.flush()
            wall = time.perf_counter() - began
            state |= {"iteration": iteration, "wall_seconds": wall, "csv_bytes": [file.tell() for file in files]}
            state |= {"collector": collector.save() if step >= 0 else {}}
            save_checkpoint(checkpoint, agent, state)

    for file in (*boards, *files, transitions):
        file.close()
    values = np.loadtxt(folder / "eval.csv", delimiter=",", skiprows=1, usecols=(2, 7), ndmin=2)
    values = values.reshape(-1, len(seeds), args.eval_episodes, 2)
    curve, steps = values[..., 1].mean(2), values[:, 0, 0, 0]  # [evaluations, seeds], [evaluations]
    pair = [curve[steps == 0][-1], curve[-1]]
    many = len(seeds) > 1
    before, final = (f"{x.mean():.1f}" + (f" ± {x.std(ddof=1):.1f}" if many else "") for x in pair)
    summary = f"{args.env_id}: score {before} offline -> {final} after {args.online_steps:,} online steps"
    if args.online_steps:
        summary += f"; regret {(100 - curve[steps > 0]).mean():.1f} (what scores miss to 100, mean over evaluations)"
    summary += f"; mean over {args.eval_episodes} episodes"
    summary += f", then mean ± standard deviation over {len(seeds)} seeds" if many else ""
    lost = [seed for seed, diverged in zip(seeds, state["diverged"]) if diverged]
    summary += f"; diverged: seeds {lost}" if lost else ""
    replace_file(done, lambda part: part.write_text(summary))
    print(summary)
    return 3 if lost else 0


if __name__ == "__main__":
    try:
        sys.exit(train(command_line()))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with --resume continues from the last checkpoint")
