"""What the tools share: dataset ids and their files, scores, the policy of a run, files that are never
half-written, and errors in one line."""

import contextlib
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType


def say_briefly(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C is one line, also while the imports below take their seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = say_briefly

import h5py
import numpy as np
import torch
import tyro
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools" / "data")]
import dmg_iql

with dmg_iql.blame("cannot import mujoco (MUJOCO_GL names a way to draw that has to be installed)"):
    import antmaze

ROBOTS = ("halfcheetah", "hopper", "walker2d")  # in the paper's order
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")
GYM_TASKS = [f"{robot}-{quality}" for robot in ROBOTS for quality in QUALITIES]
MAZE_TASKS = list(antmaze.TASKS)
D4RL_IDS = [f"{task}-v2" for task in GYM_TASKS + MAZE_TASKS]
LOCAL_IDS = [f"{task}-local" for task in GYM_TASKS + MAZE_TASKS]
LOCAL_ROWS = 1_000_000  # rows of a -local dataset, as many as D4RL's files have


def data_folder() -> Path:
    """Where dataset files lie: $D4RL_DATASET_DIR, else ~/.d4rl/datasets. Raises ValueError where its
    ~user does not exist."""
    folder = os.path.expanduser(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets"))
    if folder.startswith("~"):
        raise ValueError(f"$D4RL_DATASET_DIR is {folder}, and there is no such user")
    return Path(folder)


def dataset_file(env_id: str) -> Path:
    """The file of a -v2 or -local dataset, which may not exist."""
    task, _, kind = env_id.rpartition("-")
    name = f"{task.replace('-', '_')}-{kind}.hdf5"
    return data_folder() / (antmaze.FILES[task] if task in antmaze.FILES and kind == "v2" else name)


def normalized_score(env_id: str, returns: np.ndarray) -> np.ndarray:
    """D4RL's score of returns: 0 is a random policy's return, 100 an expert's; AntMaze's is success in
    percent."""
    _, low, high = dmg_iql.ROBOTS[env_id.split("-")[0]]
    return 100 * (returns - low) / (high - low)


class Policy(nn.Module):
    """One seed's policy, from raw states [n, state] to actions [n, action] in [-1, 1], as evaluation
    acts: the states are normalised in float64, the network works in its own dtype."""

    def __init__(self, actor: dmg_iql.Actor, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.actor = actor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64))
        self.requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        s = (states.double() - self.mean) / self.std
        return self.actor(s.to(self.actor.layers[0].weight.dtype).unsqueeze(0)).squeeze(0)


def load_policy(run: Path, seed: int | None = None) -> tuple[str, Policy]:
    """The env id of a run of any of the scripts (its folder or its checkpoint.pt), and the policy of one
    of its seeds, by default of the first. Raises OSError where there is no such file, and ValueError for
    one that is no checkpoint, for a network that is not dmg_iql.Actor, and for a seed that the run does
    not have."""
    path = run / "checkpoint.pt" if run.is_dir() else run
    try:
        damaged = zipfile.ZipFile(path).testzip()
        assert damaged is None, damaged
        saved = torch.load(path, map_location="cpu", weights_only=True)
        env_id, first = saved["config"]["env_id"], saved["config"]["seed"]
        seeds = range(first, first + saved["config"]["num_seeds"])
        agent, mean, std = saved["agent"], saved["mean"], saved["std"]
    except OSError:
        raise
    except Exception as error:  # torch has many kinds for a damaged file
        what = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(
            f"{path} is no whole checkpoint of these scripts ({what}); give a run"
        ) from None
    seed = first if seed is None else seed
    if seed not in seeds:
        raise ValueError(f"--seed {seed}: {path} has seeds {first} to {seeds[-1]}")
    try:
        k = seed - first
        weights = {key[6:]: x[k : k + 1] for key, x in agent.items() if key.startswith("actor.")}
        shapes = [weight.shape for key, weight in weights.items() if key.endswith("weight")]
        actor = dmg_iql.Actor([torch.Generator()], 1, shapes[0][1], *[shape[2] for shape in shapes])
        actor.load_state_dict(weights)
        policy = Policy(actor, mean, std)
        policy(torch.zeros(1, len(mean)))
    except Exception as error:
        raise ValueError(
            f"cannot load this network: {path} has no actor of dmg_iql.py ({error})"
        ) from None
    return env_id, policy


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which is synced and renamed to `path` at the end, or removed after
    an error. Raises ValueError where `path` is a link, a folder or a device."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no plain file, so it is not replaced; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def hdf5(columns: dict[str, np.ndarray], attrs: dict[str, object]) -> bytes:
    """The bytes of an HDF5 file. (h5py cannot be trusted to write them: it crashes on a full disk.)"""
    with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=1)
        for name, value in attrs.items():
            file.attrs[name] = value
        file.flush()
        return file.id.get_file_image()


def run(main: Callable, args: type) -> None:
    """Parse the command line into `args` and call `main`. What users get wrong (OSError, ValueError, a
    missing package, too little memory, Ctrl-C) ends in one line and status 1. SIGTERM, too,
    leaves no temporary file."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main(tyro.cli(args)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (OSError, ValueError, ImportError, MemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
