"""What the tools share: dataset ids and their files, scores, files that are never half-written, and errors in one line."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools" / "data")]
import antmaze
import dmg_iql

ROBOTS = ("halfcheetah", "hopper", "walker2d")  # in the paper's order
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")
GYM_TASKS = [f"{robot}-{quality}" for robot in ROBOTS for quality in QUALITIES]
MAZE_TASKS = list(antmaze.TASKS)
D4RL_IDS = [f"{task}-v2" for task in GYM_TASKS + MAZE_TASKS]
LOCAL_IDS = [f"{task}-local" for task in GYM_TASKS + MAZE_TASKS]
LOCAL_ROWS = 1_000_000  # rows of a -local dataset, as many as D4RL's files have


def data_folder() -> Path:
    """Where dataset files lie: $D4RL_DATASET_DIR, else ~/.d4rl/datasets."""
    return Path(os.path.expanduser(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")))


def dataset_file(env_id: str) -> Path:
    """The file of a -v2 or -local dataset, which may not exist."""
    task, _, kind = env_id.rpartition("-")
    name = f"{task.replace('-', '_')}-{kind}.hdf5"
    return data_folder() / (antmaze.FILES[task] if task in antmaze.FILES and kind == "v2" else name)


def normalized_score(env_id: str, returns: np.ndarray) -> np.ndarray:
    """D4RL's score of returns: 0 is a random policy's return, 100 an expert's; AntMaze's is success in percent."""
    _, low, high = dmg_iql.ROBOTS[env_id.split("-")[0]]
    return 100 * (returns - low) / (high - low)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which is synced and renamed to `path` at the end, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def run(main: Callable, args: type) -> None:
    """Parse the command line into `args` and call `main`. What users get wrong (OSError, ValueError, too little
    memory, Ctrl-C) ends in one line and status 1."""
    try:
        sys.exit(main(tyro.cli(args)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
