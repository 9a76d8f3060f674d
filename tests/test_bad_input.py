"""Scripts and tools given nonsense: numbers out of range, files that are missing or something else,
places that cannot be written. Each ends with one line that says what was wrong, and leaves nothing
behind. (More of what a run folder, a dataset and a stored policy can be is in test_resume.py,
test_report.py, test_dataset.py and test_collect.py.)"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import common
import pytest
import torch
from conftest import ROOT
from test_export import run, trained  # noqa: F401 (fixtures)

# Words in capitals are paths: NONE is not there, TEXT is no dataset and no checkpoint, RUN is a run of
# hopper-medium-local, MAZE one of antmaze-umaze-local, whose dataset is a text. NOBODY before the flags:
# the datasets are in a folder of a user that does not exist.
CASES = """
dmg_iql.py        --lam nan | --lam nan: expected 0 to 1
dmg_iql.py        --num-seeds 0 | --num-seeds 0: expected 1 to
dmg_iql.py        --seed -1 | --seed -1: expected 0 to inf
dmg_iql.py        --device nonsense | --device nonsense
dmg_iql.py        --env-id nonsense | no simulator for nonsense
dmg_iql.py        --env-id hopper-medium-local | cannot use .*hopper_medium-local.hdf5 .*No such file
dmg_iql.py        --env-id hopper-medium-local --dataset-path TEXT | cannot use TEXT .*signature
dmg_iql.py        NOBODY --env-id hopper-medium-local | cannot use ~nosuchuser/x/hopper_medium-local
dmg_iql.py        --env-id antmaze-umaze-local | cannot use .*antmaze_umaze-local.hdf5 .*signature
dmg_xql.py        --beta 0 | --beta 0.0: expected
dmg_xql.py        --env-id hopper-medium-local --dataset-path FOLDER | cannot use FOLDER .*directory
dmg_sql.py        --alpha nan | --alpha nan: expected
dmg_sql.py        --env-id Pendulum-v1 --dataset-path NONE | cannot use NONE for Pendulum-v1
dmg_finetune.py   --env-id hopper-medium-local | either --checkpoint, a run of dmg_iql.py, or --scratch
dmg_finetune.py   --env-id hopper-medium-local --checkpoint NONE | NONE cannot be fine-tuned
dmg_finetune.py   --env-id hopper-medium-local --checkpoint TEXT | TEXT cannot be fine-tuned
dmg_finetune.py   --env-id hopper-medium-local --checkpoint FOLDER | FOLDER/checkpoint.pt cannot be
dmg_finetune.py   --scratch --decay 2 | --decay 2.0: expected
reproduce.py      figure4 --seeds 0 | --seeds 0: expected more than 0
reproduce.py      figure4 --rate nan | --rate nan: expected more than 0
reproduce.py      figure4 --only hopper-v9 | --only hopper-v9: expected one of
reproduce.py      figure4 --settings TD4 | --settings TD4: expected one of DMG
reproduce.py      figure4 --task nonsense | --task nonsense: expected one of
reproduce.py      figure4 --run-dir TEXT/x | TEXT/x
reproduce.py      figure4 --run-dir /proc/nowhere | /proc/nowhere
report.py         NONE | NONE: no run folder, it has no config.json
report.py         TEXT | TEXT: no run folder, it has no config.json
report.py         RUN | RUN: no run folder, it has no config.json
report.py         FOLDER --name table2 | --name needs the one folder that holds the run folders
report.py         RUN --seeds 3 | --only and --seeds go with --name
data/collect.py   --seed 18446744073709551616 | --seed 18446744073709551616: expected 0 to
data/collect.py   --size 0 | --size 0: expected 1,?000 to
data/collect.py   --workers -1 | --workers -1: expected 0 to
data/collect.py   --env-id hopper-medium-v2 | hopper-medium-v2
data/collect.py   --out FOLDER | FOLDER is no plain file
data/collect.py   --out TEXT --overwrite --out /dev/null | /dev/null is no plain file
data/collect.py   --out TEXT | TEXT is already there
data/collect.py   --out /proc/nowhere/x.hdf5 | /proc/nowhere
data/collect.py   NOBODY | there is no such user
data/describe.py  | antmaze_umaze-local.hdf5 is no local dataset
data/describe.py  NOBODY | there is no such user
data/train_behaviour.py --steps 0 | --steps 0: expected 1
data/train_behaviour.py --seed 4294967296 | --seed 4294967296: expected 0 to
data/train_behaviour.py --robot cat | --robot cat: expected one of hopper
data/get.py       nonsense | nonsense: expected some of
data/get.py       --check --wait 3 | --wait
data/get.py       --describe NONE | NONE
data/get.py       --describe TEXT | TEXT
data/get.py       --fix NONE | there is no file NONE
data/get.py       --fix TEXT | TEXT
data/get.py       NOBODY --check | there is no such user
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
antmaze/draw.py   NOBODY MAZE | there is no such user
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_one_line(
    case: str,
    run: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The command ends with a status other than 0 and the message, in one line; every file is as it
    was."""
    words, message = case.split("| ")
    name, *flags = words.split()
    (tmp_path / "text").write_text("none")
    (tmp_path / "antmaze_umaze-local.hdf5").write_text("none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "maze").mkdir()
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["config"]["env_id"] = "antmaze-umaze-local"
    torch.save(saved, tmp_path / "maze/checkpoint.pt")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    if "NOBODY" in flags:
        flags.remove("NOBODY")
        monkeypatch.setenv("D4RL_DATASET_DIR", "~nosuchuser/x")
    places = {key: str(tmp_path / key.lower()) for key in ("NONE", "TEXT", "FOLDER", "MAZE", "RUN")}
    for key, place in places.items():
        flags = [flag.replace(key, place) for flag in flags]
        message = message.replace(key, place)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    path = ROOT / name if name.startswith("dmg_") else ROOT / "tools" / name
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    monkeypatch.setattr(common.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    said = end.value.code
    if said == 1:  # it has printed the line itself
        said = f"error: {capsys.readouterr().err.rstrip()}"
    assert isinstance(said, str) and said.startswith("error: ")
    assert "\n" not in said and len(said) < 700
    assert re.search(message, said), said
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_interrupted_while_it_starts() -> None:
    """Ctrl-C in the first seconds, in which packages are imported, is one line."""
    code = """
import runpy, sys
class Interrupt:
    def find_spec(name, *rest):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)
runpy.run_path("report.py", run_name="__main__")
"""
    for package in ("h5py", "torch", "matplotlib"):
        words = [sys.executable, "-c", code, package]
        ended = subprocess.run(words, cwd=ROOT / "tools", capture_output=True, text=True)
        assert ended.returncode != 0 and ended.stderr == "interrupted\n"
