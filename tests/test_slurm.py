"""`--slurm` on a real cluster of one machine: needs Debian's slurm-wlm, and root. Else it is skipped.

apt-get install slurm-wlm && python -m pytest -q tests/test_slurm.py
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dmg_xql

ROOT = Path(dmg_xql.__file__).parent
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.geteuid() != 0,
    reason="needs Debian's slurm-wlm, and root",
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A running cluster of this machine; gives the environment in which sbatch and the others find
    it."""
    folder = tmp_path / "cluster"
    script = ["bash", str(ROOT / "tests/slurm_cluster.sh"), str(folder)]
    try:
        subprocess.run(script, check=True)
        yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([*script, "stop"], check=True)


def wait(condition: Callable[[], bool], seconds: float = 400) -> None:
    """Until the condition holds. Raises AssertionError if that takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.2)


def test_array_cancelled_resubmitted_resumed(
    cluster: dict[str, str], hopper_file: Path, tmp_path: Path
) -> None:
    """The four jobs of table3 on one dataset as an array, one of them cancelled in the middle: the
    others end. Submitted again, only that one is sent, it goes on from its checkpoint, and its
    evaluations are those of a run that nothing interrupted."""
    (tmp_path / "hopper_medium-local.hdf5").symlink_to(hopper_file)
    environment = cluster | {"D4RL_DATASET_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    flags = ["--seeds", "1", "--iterations", "400", "--eval-every", "40", "--eval-episodes", "1"]
    words = [sys.executable, str(ROOT / "tools/reproduce.py"), "table3", "--dataset", "local", *flags]
    words += ["--run-dir", "runs", "--only", "hopper-medium-local"]

    def call(*more: str) -> str:
        """The command's output."""
        run = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def queued() -> str:
        """What squeue lists."""
        return subprocess.run(
            ["squeue", "-h"], env=environment, capture_output=True, text=True, check=True
        ).stdout

    sent = call("--slurm", "--partition", "test", "--time", "10")
    assert "Submitted batch job" in sent and "4 of 4 jobs" in sent
    number = sent.split("Submitted batch job ")[1].split(":")[0]
    victim = tmp_path / "runs/hopper-medium-local__XQL-ablation__s0-0"
    wait(lambda: (victim / "checkpoint.pt").exists())
    subprocess.run(["scancel", f"{number}_0"], env=environment, check=True)
    wait(lambda: not queued())
    assert not (victim / "done").exists() and len(list(tmp_path.glob("runs/*/done"))) == 3
    assert "cut short" in call("--report-only")
    assert "1 of 4 jobs" in call("--slurm")
    wait(lambda: not queued())
    assert (victim / "done").exists() and "nothing to submit" in call("--slurm")
    log = (tmp_path / f"runs/logs/{victim.name}.log").read_text()
    assert log.count("dmg_xql.py --env-id") == 2 and "resumed at iteration" in log
    flags = dict(lam=0.0, nu=float("inf"), iterations=400, eval_every=40, eval_episodes=1, device="cpu")
    args = dmg_xql.Args("hopper-medium-local", hopper_file, "whole", tmp_path / "whole", **flags)
    dmg_xql.train(args)
    whole = next((tmp_path / "whole").glob("*/eval.csv"))
    assert whole.read_text() == (victim / "eval.csv").read_text()
