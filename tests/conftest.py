"""What the tests share: the repository on the import path, one CPU thread, the scripts, and a small
dataset."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools" / "data"), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C

SCRIPTS = ("dmg_iql", "dmg_xql", "dmg_sql")
PRESET = {  # each script's flags of its own, on hopper-medium
    "dmg_iql": {"expectile": 0.7},
    "dmg_xql": {"beta": 5.0, "gumbel_clip": 7.0},
    "dmg_sql": {"alpha": 2.0},
}
OTHER = {  # other values of theirs
    "dmg_iql": {"expectile": 0.9},
    "dmg_xql": {"beta": 0.5, "gumbel_clip": 1.0},
    "dmg_sql": {"alpha": 0.1},
}


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the three offline scripts, as a module."""
    return importlib.import_module(request.param)


@pytest.fixture
def iql() -> ModuleType:
    """dmg_iql, for what is the same text in all scripts."""
    return importlib.import_module("dmg_iql")


@pytest.fixture
def float64() -> Iterator[None]:
    """Run the test with float64 as torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of random numbers in D4RL's layout and in hopper's shapes, with episodes of about 50
    steps; some rewards are exactly 1, for the AntMaze reward."""
    path = tmp_path_factory.mktemp("data") / "hopper.hdf5"
    rng = np.random.default_rng(0)
    n = 2000
    with h5py.File(path, "w") as file:
        file["observations"] = (3 * rng.normal(size=(n, 11)) + rng.normal(size=11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
        file["rewards"] = np.where(rng.random(n) < 0.2, 1, rng.normal(size=n)).astype(np.float32)
        file["terminals"] = rng.random(n) < 0.02
        file["timeouts"] = rng.random(n) < 0.005
    return path


@pytest.fixture
def job(hopper_file: Path, tmp_path: Path) -> Callable:
    """A function that makes a script's Args of a job which takes a second; keywords override."""

    def make(module: ModuleType, **changes: object) -> object:
        small = dict(
            hidden_dim=16, batch_size=32, iterations=40, eval_every=20, eval_episodes=2, log_every=10
        )
        small |= dict(save_every=10, device="cpu", exp_name="job", run_dir=tmp_path / "runs")
        return module.Args(env_id="hopper-medium-local", dataset_path=hopper_file, **(small | changes))

    return make


def folder_of(args: object) -> Path:
    """The run folder of a job."""
    last = args.seed + args.num_seeds - 1
    return args.run_dir / f"{args.env_id}__{args.exp_name}__s{args.seed}-{last}".replace("/", "_")
