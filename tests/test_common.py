"""tools/common.py: dataset ids, files and scores against the d4rl package; files that are never
half-written; how a tool ends. (The policy of a run: test_export.py.)"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import common
import h5py
import numpy as np
import pytest
from test_dataset import d4rl  # noqa: F401 (a fixture)


# ---- datasets -----------------------------------------------------------------------------------------
def test_ids() -> None:
    """The paper's fifteen datasets of robots and six of AntMaze, each by D4RL and made here."""
    robots = [name for name in common.D4RL_IDS if not name.startswith("antmaze-")]
    assert len(set(robots)) == 15 and len(set(common.D4RL_IDS)) == len(common.D4RL_IDS) == 21
    assert common.LOCAL_IDS == [name.replace("-v2", "-local") for name in common.D4RL_IDS]


@pytest.mark.parametrize("env_id", common.D4RL_IDS)
def test_files_and_scores(d4rl: ModuleType, monkeypatch: pytest.MonkeyPatch, env_id: str) -> None:  # noqa: F811
    """A file has D4RL's name, in D4RL's folder or $D4RL_DATASET_DIR, and a score is D4RL's; data made
    here has a name of its own and the same scores."""
    name = os.path.basename(d4rl.infos.DATASET_URLS[env_id])
    local = env_id.replace("-v2", "-local")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    assert common.dataset_file(env_id) == Path("/home/someone/.d4rl/datasets", name)
    monkeypatch.setenv("D4RL_DATASET_DIR", "~/data")
    assert common.dataset_file(env_id) == Path("/home/someone/data", name)
    assert common.dataset_file(local).name == f"{local[:-6].replace('-', '_')}-local.hdf5"
    returns = np.array([-500.0, 0.0, 1.5, 3234.3])
    wanted = 100 * d4rl.get_normalized_score(env_id, returns)
    for task in (env_id, local):
        np.testing.assert_allclose(common.normalized_score(task, returns), wanted, rtol=1e-12)


# ---- files --------------------------------------------------------------------------------------------
def test_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays until the new one is whole and synced; its folder is made; after an error no
    temporary file is left."""
    path, fsync, synced = tmp_path / "new" / "x.txt", os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.exists()) or fsync(number))
    with common.replacing(path) as part:
        part.write_text("old")
    assert path.read_text() == "old" and synced == [False]
    with pytest.raises(ZeroDivisionError), common.replacing(path) as part:
        part.write_text("half")
        assert part.suffix == ".txt" and path.read_text() == "old"
        raise ZeroDivisionError
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"] and path.read_text() == "old"


def test_hdf5(tmp_path: Path) -> None:
    """The bytes are an HDF5 file of these columns and attributes, compressed."""
    rows, labels = np.arange(6000, dtype=np.float32).reshape(2000, 3), np.arange(2000) % 7 == 0
    data = common.hdf5({"rows": rows, "infos/labels": labels}, {"env_id": "mine", "size": 2000})
    (tmp_path / "x.hdf5").write_bytes(data)
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert dict(file.attrs) == {"env_id": "mine", "size": 2000}
        np.testing.assert_array_equal(file["rows"][:], rows, strict=True)
        np.testing.assert_array_equal(file["infos/labels"][:], labels, strict=True)
    assert len(data) < rows.nbytes


# ---- how a tool ends ----------------------------------------------------------------------------------
@dataclass
class Args:
    """A tool."""

    number: int = 0


@pytest.mark.parametrize(
    "error, message",
    [
        (ValueError("so\n  many"), "error: so many"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (ImportError("no\nmujoco"), "error: no mujoco"),
        (MemoryError("too much"), "error: too much"),
        (ValueError("x" * 9999), "error: " + "x" * 500),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mistakes_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    """What users get wrong is one line. A tool's own faults keep their traceback."""
    monkeypatch.setattr(common.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tool", "--number", "3"])
    raised = [error, RuntimeError("a fault")]

    def main(args: Args) -> None:
        assert args.number == 3
        raise raised.pop(0)

    with pytest.raises(SystemExit) as end:
        common.run(main, Args)
    assert end.value.code == message
    with pytest.raises(RuntimeError):
        common.run(main, Args)


@pytest.mark.parametrize("status", [None, 0, 1])
def test_status(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    """What main returns is the exit status."""
    monkeypatch.setattr(common.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as end:
        common.run(lambda args: status, Args)
    assert end.value.code == status
