"""Tools given nonsense: numbers out of range, files that are missing or something else, places that
cannot be written. Each ends with one line that says what was wrong, and leaves nothing behind."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import common
import pytest
import torch
from test_export import run, trained  # noqa: F401 (fixtures)

TOOLS = Path(common.__file__).parent
CASES = """
speed.py          --seconds nan | --seconds nan: expected 0.1 to 3,600
speed.py          --seconds 0 | --seconds 0.0: expected 0.1 to 3,600
speed.py          --seeds 1 0 | --seeds 1 0: expected 1 to 1,000
speed.py          --threads 0 | --threads 0: expected 1 to 1,024
speed.py          --repeats -3 | --repeats -3: expected 1 to 1,000
speed.py          --rows 1000000000000 | --rows 1000000000000: expected 1,000 to 10,000,000
speed.py          --state-dim 0 | --state-dim 0: expected 1 to 10,000
speed.py          --device nonsense | nonsense
speed.py          --baseline NONE | --baseline NONE is no dmg_iql.py: .*No such file
speed.py          --baseline TEXT | --baseline TEXT is no dmg_iql.py
speed.py          --out /proc/nowhere/x.json | /proc/nowhere
speed.py          --out TEXT/x.json | TEXT
speed.py          --out FOLDER | FOLDER
gpu.py            --minutes nan | --minutes nan: expected 1 to 60
gpu.py            --minutes 0 | --minutes 0.0: expected 1 to 60
gpu.py            --device nonsense | nonsense.*; without a GPU: --device cpu --quick
gpu.py            --device cpu --out /proc/nowhere | /proc/nowhere
gpu.py            --device cpu --out TEXT | TEXT
export.py         NONE | NONE
export.py         FOLDER | FOLDER/checkpoint.pt
export.py         TEXT | TEXT is no whole checkpoint
export.py         RUN --seed 7 | --seed 7: .* has seeds 3 to 4
export.py         RUN --out policy.exe | --out policy.exe: expected a new file that ends in
export.py         RUN --out RUN/checkpoint.pt | expected a new file that ends in .pt
export.py         RUN --out /proc/nowhere/x.pt | /proc/nowhere
export.py         RUN --out TEXT/x.pt | TEXT
watch.py          NONE | NONE
watch.py          TEXT | TEXT is no whole checkpoint
watch.py          RUN --seed 2 | --seed 2: .* has seeds 3 to 4
watch.py          RUN --episodes 0 | --episodes 0: expected 1 to 1000
watch.py          RUN --pictures 0 | --pictures 0: expected 1 to 1000
watch.py          RUN --size 100000000 | --size 100000000: expected 16 to 4096
watch.py          RUN --reset-seed -1 | --reset-seed -1: expected 0 or more
watch.py          RUN --reset-seed 18446744073709551616 | --reset-seed 1844.*: expected 0 or more, below
watch.py          RUN --out /proc/nowhere/x | /proc/nowhere
antmaze/draw.py   NONE | NONE
antmaze/draw.py   TEXT | TEXT is no whole checkpoint
antmaze/draw.py   RUN | the runs are of hopper-medium-local; give runs of one
antmaze/draw.py   MAZE RUN | antmaze-umaze-local, hopper-medium-local; give runs
antmaze/draw.py   MAZE | is no AntMaze dataset
antmaze/draw.py   MAZE --episodes 0 | --episodes 0: expected 1 to 100,000
antmaze/draw.py   MAZE --trajectories 0 | --trajectories 0: expected 1 to 100,000
antmaze/draw.py   MAZE --out x.hdf5 | --out x.hdf5: expected a file that ends in .png
antmaze/replay.py NONE --maze umaze | cannot read NONE as an HDF5 file: .*No such file
antmaze/replay.py TEXT --maze umaze | cannot read TEXT as an HDF5 file
antmaze/replay.py FOLDER --maze umaze | cannot read FOLDER as an HDF5 file
antmaze/replay.py TEXT | which maze. text does not say; --maze has to be
antmaze/replay.py TEXT --maze huge | --maze has to be umaze, medium, large
antmaze/replay.py TEXT --maze umaze --rows 0 | --rows has to be 1 or more
antmaze/replay.py TEXT --maze umaze --seed -1 | --seed 0 or more
antmaze/replay.py NONE --maze umaze --record 1 | --record 0 or 2 to 10,000,000
antmaze/replay.py NONE --maze umaze --record 100000000000 | --record 0 or 2 to 10,000,000
antmaze/replay.py TEXT --maze umaze --record 10 | TEXT is already there
antmaze/replay.py /proc/nowhere/x --maze umaze --record 10 | /proc/nowhere
antmaze/speed.py  --steps 5 | --steps 5: expected 100 to 10,000,000
antmaze/speed.py  --repeats 0 | --repeats 0: expected 1 to 1,000
antmaze/speed.py  --mazes umaze huge | --mazes umaze huge: expected some of umaze medium
antmaze/speed.py  --picture x.mp4 | --picture x.mp4: expected a file that ends in .png
antmaze/speed.py  --picture /proc/nowhere/x.png | /proc/nowhere
"""


def tool(name: str) -> ModuleType:
    """A tool as a module, under a name of its own: two are called speed.py."""
    spec = importlib.util.spec_from_file_location(f"tool_{name[:-3].replace('/', '_')}", TOOLS / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_one_line(case: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The command line ends with status 1 and the message; every file is as it was."""
    words, message = case.split(" | ")
    name, *flags = words.split()
    (tmp_path / "text").write_text("none")
    (tmp_path / "antmaze_umaze-local.hdf5").write_text("none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "maze").mkdir()
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["config"]["env_id"] = "antmaze-umaze-local"
    torch.save(saved, tmp_path / "maze/checkpoint.pt")
    places = {key: str(tmp_path / key.lower()) for key in ("NONE", "TEXT", "FOLDER", "MAZE", "RUN")}
    for key, place in places.items():
        flags = [flag.replace(key, place) for flag in flags]
        message = message.replace(key, place)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [name, *flags])
    monkeypatch.chdir(tmp_path)
    module = tool(name)
    with pytest.raises(SystemExit) as end:
        common.run(module.main, module.Args)
    assert isinstance(end.value.code, str) and end.value.code.startswith("error: ")
    assert "\n" not in end.value.code and len(end.value.code) < 510
    with pytest.raises(ValueError, match=message):
        raise ValueError(end.value.code)
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
