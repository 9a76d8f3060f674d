"""What the tests share: the repository on the import path, one CPU thread, and a small dataset.

With DMG_SCRIPT=dmg_xql or dmg_sql in the environment, the tests written for dmg_iql run on that script instead: `import
dmg_iql` gives it. `bash benchmark.sh test` does that for those of whole jobs and of the update.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

SCRIPT = os.environ.get("DMG_SCRIPT", "dmg_iql")
if SCRIPT != "dmg_iql":
    sys.modules["dmg_iql"] = importlib.import_module(SCRIPT)
PRESET = {  # of the flags of the script's own in-sample maximum, on hopper-medium
    "dmg_iql": {"expectile": 0.7},
    "dmg_xql": {"beta": 5.0, "gumbel_clip": 7.0},
    "dmg_sql": {"alpha": 2.0, "sparse_weights": False},
}[SCRIPT]
OTHER = {  # other values of theirs
    "dmg_iql": {"expectile": 0.9},
    "dmg_xql": {"beta": 0.5, "gumbel_clip": 1.0},
    "dmg_sql": {"alpha": 0.1, "sparse_weights": True},
}[SCRIPT]


@pytest.fixture
def float64() -> Iterator[None]:
    """Run the test with float64 as torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of random numbers in D4RL's layout and in hopper's shapes, with episodes of about 50 steps; some
    rewards are exactly 1, for the AntMaze reward."""
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
    """A function that makes dmg_iql.Args of a job which takes a second; keywords override."""
    import dmg_iql

    def make(**changes: object) -> dmg_iql.Args:
        small = dict(hidden_dim=16, batch_size=32, iterations=40, eval_every=20, eval_episodes=2, log_every=10)
        small |= dict(save_every=10, device="cpu", threads=1, exp_name="job", run_dir=tmp_path / "runs")
        return dmg_iql.Args(env_id="hopper-medium-local", dataset_path=hopper_file, **(small | changes))

    return make
