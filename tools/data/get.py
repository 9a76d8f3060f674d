"""Turn whatever there is into a file that the scripts train on, and tell a wrong file before it is used.

    python tools/data/get.py walker2d-medium-v2 'antmaze-*'       # download D4RL's files; or: all
    python tools/data/get.py --check                              # is every file in the folder whole?
    python tools/data/get.py --minari mujoco/walker2d/medium-v0   # convert a Minari dataset
    python tools/data/get.py --fix mine.hdf5 --env-id Hopper-v5   # put own data into D4RL's layout
    python tools/data/get.py --describe mine.hdf5                 # what is in a file

Files are in $D4RL_DATASET_DIR (default ~/.d4rl/datasets). docs/data.md says what makes a dataset.
"""

import contextlib
import fnmatch
import hashlib
import http.client
import json
import os
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import gymnasium as gym
import h5py
import numpy as np
import tyro
from huggingface_hub import hf_hub_url
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import describe
from common import D4RL_IDS, LOCAL_IDS, data_folder, dataset_file, hdf5, replacing, run

import dmg_iql

FILES = json.loads(Path(__file__).with_name("d4rl_files.json").read_text("utf-8"))["files"]
SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of an HDF5 file
TRIES = 3  # in a row that bring less than a megabyte, before the next source is asked


@dataclass
class Args:
    """Download, check, convert, mend or describe datasets."""

    ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """D4RL's datasets to download: ids, patterns in quotes, or all"""
    check: bool = False
    """say of every file in the folder whether it is whole"""
    minari: str | None = None
    """Minari dataset to convert, downloaded if it is not here (needs: pip install minari)"""
    fix: Path | None = None
    """HDF5 file to put into D4RL's layout; the file itself stays as it is"""
    describe: Path | None = None
    """dataset file to describe"""
    env_id: str | None = None
    """Gymnasium id of the simulator (--minari, --fix, --describe); default: what the data says"""
    timeouts: str | None = None
    """--fix: the column that is 1 where time ended an episode, or "count", to count the steps"""
    out: Path | None = None
    """--minari, --fix: file to write"""
    overwrite: bool = False
    """--minari, --fix: replace a file that is there"""
    picture: Path | None = None
    """--describe: picture to draw"""
    wait: float = 60.0
    """downloads: seconds without a byte until a server counts as dead"""


OPTIONS = {  # the flags that each action has
    "ids": {"wait"},
    "check": set(),
    "minari": {"env_id", "out", "overwrite"},
    "fix": {"env_id", "timeouts", "out", "overwrite"},
    "describe": {"env_id", "picture"},
}


# ---- D4RL's files -------------------------------------------------------------------------------------
class Failed(Exception):
    """Why a source does not give a file. final: another try would end the same way."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def sources(name: str) -> list[str]:
    """The addresses of one of D4RL's files: the mirror's, at the revision that the scripts use, and
    D4RL's own server's."""
    folder = "ant_maze_v2" if name.startswith("Ant_maze") else "gym_mujoco_v2"
    mirror = hf_hub_url("imone/D4RL", name, repo_type="dataset", revision=dmg_iql.REVISION)
    return [mirror, f"{SERVER}/{folder}/{name}"]


def stream(url: str, have: int, size: int, wait: float) -> Iterator[tuple[int, bytes]]:
    """A file of `size` bytes from byte `have` on, or from its beginning where the server cannot do that,
    in pieces (offset, bytes). Raises Failed."""
    request = urllib.request.Request(url, headers={"User-Agent": "get.py"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=wait) as response:
            if response.status != 206:
                have = 0
            begin = response.read(8) if have == 0 else b""
            if have == 0 and begin != SIGNATURE:
                raise Failed(f"what it sends is no HDF5 file, it begins with {begin!r}", final=True)
            length = response.headers["Content-Length"]
            if length and have + int(length) != size:
                raise Failed(f"its file has {have + int(length):,} bytes, not {size:,}", final=True)
            yield have, begin
            have += len(begin)
            while piece := response.read1(2**16):
                yield have, piece
                have += len(piece)
    except urllib.error.HTTPError as error:
        final = error.code < 500 and error.code not in (408, 429)
        raise Failed(f"status {error.code}, {error.reason}", final) from None
    except TimeoutError:
        raise Failed(f"no byte in {wait:g} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        raise Failed(str(getattr(error, "reason", error) or type(error).__name__)) from None
    if have < size:
        raise Failed(f"the connection ended after {have:,} of {size:,} bytes")


def lock(file: BinaryIO, path: Path) -> None:
    """Make sure that no other process writes this file. Raises ValueError where one does."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is downloading {path}") from None


def receive(url: str, file: BinaryIO, size: int, wait: float, bar: tqdm) -> None:
    """Bring a file that may have been begun to its full size. Raises Failed after some tries."""
    tries = 0
    while file.tell() < size:
        before = file.tell()
        try:
            for offset, piece in stream(url, before, size, wait):
                if offset != file.tell():
                    file.seek(offset)
                    file.truncate()
                file.write(piece)
                bar.update(file.tell() - bar.n)
        except Failed as failure:
            tries = 0 if file.tell() > before + 1e6 else tries + 1
            if failure.final or tries == TRIES:
                raise
            time.sleep(tries)


def download(path: Path, wait: float) -> None:
    """Fetch one of D4RL's files. After a failure, or where the process is killed, what has arrived is
    kept beside it as .<name>.part, and the next call goes on from there; after Ctrl-C nothing is kept.
    Raises ValueError where no source has the file."""
    size, sha256 = FILES[path.name]["bytes"], FILES[path.name].get("sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, reasons = path.with_name(f".{path.name}.part"), []
    with part.open("ab") as file, tqdm(desc=path.name, total=size, unit="B", unit_scale=True) as bar:
        lock(file, path)
        try:
            if path.exists():  # another process had the lock, and has finished
                return
            if size - file.tell() > shutil.disk_usage(path.parent).free:
                raise OSError(f"{path.parent} has no room for {size:,} bytes")
            for url in sources(path.name):
                try:
                    if file.tell() > size:
                        raise Failed(f"the part that is here already is larger than {size:,} bytes")
                    bar.update(file.tell() - bar.n)
                    receive(url, file, size, wait, bar)
                    file.flush()
                    os.fsync(file.fileno())
                    with part.open("rb") as whole:
                        found = hashlib.file_digest(whole, "sha256").hexdigest()
                    if sha256 not in (found, None):
                        raise Failed(f"its file has SHA-256 {found[:12]}..., not {sha256[:12]}...")
                    os.replace(part, path)
                    return
                except Failed as failure:
                    reasons.append(f"{url.split('/')[2]}: {failure}")
                    if file.tell() >= size:  # wrong, so that nothing can be made of it
                        file.seek(0)
                        file.truncate()
            kept = f"; {file.tell():,} bytes are kept, this command goes on from there" * (
                file.tell() > 0
            )
            raise ValueError(f"no download of {path.name} ({'; '.join(reasons)}){kept}")
        except (KeyboardInterrupt, SystemExit):
            part.unlink(missing_ok=True)
            raise
        finally:
            if part.exists() and file.tell() == 0:
                part.unlink()


def judge(path: Path) -> tuple[bool, str]:
    """Whether a file can be used as far as one can tell, and what it is."""
    with path.open("rb") as file:
        hdf5_file = file.read(8) == SIGNATURE
        file.seek(0)
        if path.name in FILES:
            size, sha256 = FILES[path.name]["bytes"], FILES[path.name].get("sha256")
            missing = size - path.stat().st_size
            if not hdf5_file:
                return False, "not D4RL's: no HDF5 file"
            if missing > 0:
                return (
                    False,
                    f"truncated: {missing:,} of {size:,} bytes are missing ({missing / size:.0%})",
                )
            if missing < 0:
                return False, f"not D4RL's: {-missing:,} bytes more than its {size:,}"
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 is None:
                return True, "whole by its size (its SHA-256 is not known)"
            if sha256 != found:
                return False, f"not D4RL's: SHA-256 {found[:12]}..., D4RL's is {sha256[:12]}..."
            return True, "whole"
    if not hdf5_file:
        return False, "unknown: no HDF5 file"
    try:
        with h5py.File(path, "r", locking=False) as file:
            rows, env_id = len(file["rewards"]), file.attrs.get("env_id", "a simulator it does not name")
        return True, f"unknown: not one of D4RL's files; {rows:,} rows of {env_id}"
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        return False, f"unknown: no dataset ({' '.join(str(error).split())[:100]})"


def check() -> int:
    """Judge every file in the folder. Returns 1 where one cannot be used. Raises ValueError for no
    files."""
    folder = data_folder()
    paths = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix != ".part")
    for path in (parts := sorted(folder.glob(".*.part"))):
        print(f"{path}: begun; the same download goes on from its {path.stat().st_size:,} bytes")
    if not paths + parts:
        raise ValueError(f"{folder} has no files")
    status = 0
    for path in paths:
        usable, words = judge(path)
        status |= not usable
        print(f"{path}: {words}")
    return status


def get(patterns: tuple[str, ...], wait: float) -> int:
    """Download the datasets whose ids fit the patterns, as far as they are not here. Returns 1 where one
    is not here afterwards. Raises ValueError for an id that D4RL does not have."""
    ids = []
    for pattern in patterns:
        found = fnmatch.filter(D4RL_IDS, "*" if pattern == "all" else pattern)
        if not found and pattern in LOCAL_IDS:
            raise ValueError(f"{pattern} is made here: python tools/data/collect.py --env-id {pattern}")
        if not found:
            raise ValueError(f"{pattern}: expected some of {', '.join(D4RL_IDS)}")
        ids += [env_id for env_id in found if env_id not in ids]
    if not 0 < wait < 1e6:
        raise ValueError(f"--wait {wait}: expected more than 0 and less than 1e6 seconds")
    status = 0
    for path in map(dataset_file, ids):
        try:
            if not path.exists():
                download(path, wait)
            usable, words = judge(path)
            if not usable:
                raise ValueError(f"{words}; it is left as it is, move it and run this again")
            print(f"{path}: {words}")
        except (OSError, ValueError) as error:
            status = 1
            print(f"error: {path}: {error}", file=sys.stderr)
    return status


# ---- Other data ---------------------------------------------------------------------------------------
def save(out: Path, columns: dict[str, np.ndarray], attrs: dict[str, object], overwrite: bool) -> None:
    """Write a dataset, read it as the scripts do, and print the command that trains on it. Raises
    SystemExit, and writes nothing, where the scripts would refuse it."""
    env_id = str(attrs["env_id"])
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is already there; --overwrite replaces it, --out gives another name")
    with replacing(out) as part:
        part.write_bytes(hdf5(columns, attrs))
        job = dmg_iql.Args(env_id=env_id, dataset_path=part, device="cpu")
        dmg_iql.resolve(job)
        try:
            buffer, *_ = dmg_iql.load_dataset(job, dmg_iql.make_env(env_id))
        except SystemExit as error:
            raise SystemExit(str(error).replace(str(part), str(out))) from None
    print(f"{out}: {len(columns['rewards']):,} rows, {len(buffer):,} transitions")
    print(f"python dmg_iql.py --env-id {env_id} --dataset-path {shlex.quote(str(out))}")


def flatten(space: gym.Space, values: object) -> np.ndarray:
    """Observations of a whole episode as vectors [n, k], in the order of Gymnasium's FlattenObservation:
    that of the keys in the environment's space. Raises ValueError for others than Box and Dict."""
    if isinstance(space, gym.spaces.Dict):
        return np.hstack([flatten(space[key], values[key]) for key in space.spaces])
    if not isinstance(space, gym.spaces.Box) or isinstance(values, dict):
        raise ValueError(f"observations should be Box, or Dict of Box, and are {space}")
    return np.asarray(values).reshape(len(values), -1)


def minari_env(metadata: dict[str, object]) -> str:
    """The --env-id of a Minari dataset's evaluation environment. Raises ValueError where no id says
    it."""
    spec = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not spec:
        raise ValueError("the dataset does not say which environment it is from; give --env-id")
    spec = json.loads(spec)
    module = str(spec["entry_point"]).split(":")[0].split(".")[0]
    env_id = spec["id"] if module == "gymnasium" else f"{module}:{spec['id']}"
    try:
        import_module(module)  # which registers its ids
        usual = gym.spec(spec["id"])
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"{env_id} is not installed ({error}); install it or give --env-id") from None
    other = {}
    if spec["max_episode_steps"] != usual.max_episode_steps:
        other["max_episode_steps"] = spec["max_episode_steps"]
    if spec.get("additional_wrappers"):
        other["additional_wrappers"] = [wrapper["name"] for wrapper in spec["additional_wrappers"]]
    kwargs = json.loads(json.dumps(usual.kwargs, default=str))
    for name, value in spec["kwargs"].items():
        if name != "render_mode" and kwargs.get(name) != value:
            other[name] = value
    if other:
        raise ValueError(
            f"its environment is {env_id} with {json.dumps(other)}, which no id says: register one that "
            "does, and give it as --env-id module:Id (docs/data.md shows how)"
        )
    return env_id


def convert(args: Args) -> None:
    """Minari's episodes, one after the other: each transition with its own next state, so that the last
    one of an episode that time ended is kept. `truncations` marks those, for who counts episodes."""
    try:
        import minari
    except ImportError:
        raise ValueError("Minari is not installed: pip install minari==0.5.4") from None
    with dmg_iql.blame(f"no Minari dataset {args.minari}"):
        dataset = minari.load_dataset(args.minari, download=True)
    metadata = dataset.storage.metadata
    env_id = args.env_id or minari_env(metadata)
    space = dmg_iql.make_env(env_id).unwrapped.observation_space
    if not isinstance(dataset.action_space, gym.spaces.Box):
        raise ValueError(f"actions should be Box, and are {dataset.action_space}")
    names = ("observations", "actions", "rewards", "terminals", "truncations", "next_observations")
    columns = {name: [] for name in names}
    for episode in tqdm(dataset.iterate_episodes(), total=dataset.total_episodes, unit="episode"):
        states = flatten(space, episode.observations)
        n = len(episode.rewards)
        if not len(states) - 1 == len(episode.actions) == n:
            raise ValueError(f"episode {episode.id}: {len(states)} observations, {n} rewards")
        last = np.arange(n) == n - 1
        columns["observations"].append(states[:-1])
        columns["actions"].append(episode.actions)
        columns["rewards"].append(episode.rewards)
        columns["terminals"].append(episode.terminations)
        columns["truncations"].append(last & ~np.asarray(episode.terminations, bool))
        columns["next_observations"].append(states[1:])
    kinds = {"terminals": bool, "truncations": bool}
    data = {
        name: np.concatenate(parts).astype(kinds.get(name, np.float32))
        for name, parts in columns.items()
    }
    attrs = {"env_id": env_id, "source": f"Minari {args.minari}, converted by tools/data/get.py"}
    if None not in (metadata.get("ref_min_score"), metadata.get("ref_max_score")):
        attrs |= {name: float(metadata[name]) for name in ("ref_min_score", "ref_max_score")}
    out = data_folder() / f"minari_{args.minari.replace('/', '_')}.hdf5"
    save(args.out or out, data, attrs, args.overwrite)


def flags(values: np.ndarray, name: str) -> np.ndarray:
    """A column of 0 and 1 as bool. Raises ValueError for other numbers."""
    wrong = values[~np.isin(values, (0, 1))]
    if len(wrong):
        raise ValueError(f"{name} should be 0 or 1 in every row, and is {wrong[0]} in {len(wrong):,}")
    return values.astype(bool)


def count(terminals: np.ndarray, limit: int) -> np.ndarray:
    """Where time ends episodes of at most `limit` steps, bool [n]: as D4RL counts."""
    timeouts, steps = np.zeros(len(terminals), bool), 0
    for i, terminal in enumerate(terminals):
        steps += 1
        timeouts[i] = steps == limit and not terminal
        steps = 0 if terminal or steps == limit else steps
    return timeouts


def own_columns(path: Path, data: dict[str, np.ndarray], env: gym.Env) -> dict[str, np.ndarray]:
    """The columns of a user's file as float32 and bool. Raises ValueError for widths that are not the
    simulator's, numbers that are none, and actions that it would cut."""
    space, states = env.unwrapped.action_space, env.observation_space.shape
    widths = {"actions": space.shape, "observations": states, "next_observations": states}
    columns = {}
    for name, values in data.items():
        width = widths.get(name, ())
        if values.shape[1:] != width:
            shapes = f"{list(values.shape[1:])} in a row, the simulator {list(width)}"
            raise ValueError(f"{path}: {name} has {shapes}")
        if name in ("terminals", "timeouts"):
            columns[name] = flags(values, name)
            continue
        with np.errstate(over="ignore"):
            columns[name] = values.astype(np.float32)
        holes = np.flatnonzero(~np.isfinite(columns[name].reshape(len(values), -1)).all(1))
        if len(holes):
            rows = f"{len(holes):,} rows, the first is {holes[0]}"
            raise ValueError(f"{path}: {name} has NaN or infinite numbers in {rows}")
    a = columns["actions"]
    if (a < space.low - 1e-5).any() or (a > space.high + 1e-5).any():
        reach = f"actions go from {a.min():g} to {a.max():g}, outside {space}"
        raise ValueError(f"{path}: {reach}; where the simulator cut them, np.clip does the same")
    return columns


def settle(
    columns: dict[str, np.ndarray], counted: bool, limit: int
) -> tuple[dict[str, np.ndarray], str]:
    """A user's columns with what says which state follows a row, timeouts or next_observations, and that
    rule in words."""
    terminals, timeouts = columns["terminals"], columns.pop("timeouts", None)
    s2 = columns.pop("next_observations", None)
    if counted:
        columns["timeouts"] = count(terminals, limit)
        number = columns["timeouts"].sum()
        return columns, f"the next row, but at {number:,} timeouts, counted up to {limit} steps"
    if s2 is None:
        columns["timeouts"] = timeouts & ~terminals
        return columns, "the next row, but at timeouts"
    columns["next_observations"] = s2
    if timeouts is None:
        return columns, "next_observations"
    # Some logs have the next episode's first state there.
    columns["truncations"] = timeouts & ~terminals
    leaks = columns["truncations"].copy()
    leaks[:-1] &= (s2[:-1] == columns["observations"][1:]).all(1)
    leaks[-1] = False
    columns = {name: values[~leaks] for name, values in columns.items()}
    words = f"; {leaks.sum():,} rows are left out, where it is the next episode's first state"
    return columns, "next_observations" + words * bool(leaks.any())


def examine(path: Path, env_id: str, columns: dict[str, np.ndarray], counted: bool) -> None:
    """Raises ValueError where a file's next states cannot be what followed: the simulator gives others,
    or they have nothing to do with the states before; or, where episodes were counted, others begin
    inside them."""
    rows, s2, go_on = describe.transitions(columns)
    rows, s2 = rows[go_on], s2[go_on]
    s, a = columns["observations"][rows], columns["actions"][rows]
    if not len(s):
        raise ValueError(f"{path} has no transition that is not terminal")
    order = "only a next_observations column can say what follows a row"
    error = describe.simulator_error(env_id, s, a, s2)
    if error is not None and error > 0.5:
        what = f"{env_id}'s simulator goes elsewhere from these states"
        raise ValueError(f"{path}: {what}: rows of another robot, or in no order, where {order}")
    if "timeouts" not in columns or len(s) < 100:
        return
    far, explained = describe.surprises(s, a, s2)
    if explained < 0.5:
        raise ValueError(f"{path}: rows have nothing to do with the rows before them: {order}")
    jumps = far > describe.JUMP  # contacts can do that, too
    if not jumps.any():
        return
    anew = rows[jumps & describe.starts_anew(env_id, s2)]
    ends = (columns["timeouts"] | columns["terminals"]).sum()
    if counted and len(anew) > ends / 50:
        times = f"an episode begins inside another {len(anew):,} times, first after row {anew[0]}"
        raise ValueError(f"{path}: {times}: time ended episodes elsewhere; a timeouts column decides it")
    times = f"{jumps.sum():,} times, first after row {rows[jumps][0]}"
    where = f"{len(anew):,} times to where the simulator starts"
    print(f"warning: {path}: the state jumps inside episodes, {times}, {where}", file=sys.stderr)


def mend(args: Args) -> None:
    """Own data in D4RL's layout. What follows a row is known by next_observations, or by a column that
    marks where time ended an episode, or by counting up to the simulator's time limit. Raises ValueError
    where none of them can be right."""
    path, named = args.fix, args.timeouts not in (None, "count")
    other = {"terminals": ("terminals", "terminations"), "truncations": ()}  # as Gymnasium calls them
    other["timeouts"] = (args.timeouts,) if named else ("timeouts", "truncations")
    data, attrs = describe.read(path, other)
    if named and "timeouts" not in data:
        raise ValueError(f"{path} has no column {args.timeouts}")
    env_id = str(args.env_id or attrs.get("env_id", ""))
    if not env_id:
        raise ValueError(f"{path} does not say which simulator it is from; give --env-id")
    env = dmg_iql.make_env(env_id)
    columns = own_columns(path, data, env)
    counted = args.timeouts == "count" or not columns.keys() & {"timeouts", "next_observations"}
    limit = env.spec.max_episode_steps
    if counted and limit is None:
        known = (
            f"{path} has neither timeouts nor next_observations, and {env_id} no time limit to count by"
        )
        raise ValueError(f"{known}; either column decides what follows a row")
    columns, rule = settle(columns, counted, limit)
    examine(path, env_id, columns, counted)
    a = columns["actions"]
    print(f"{path}: s' is {rule}")
    print(f"actions go from {a.min():g} to {a.max():g}, {env_id}'s are {env.unwrapped.action_space}")
    about = {"env_id": env_id, "source": f"{path.name}, by tools/data/get.py --fix: s' is {rule}"}
    about |= {name: attrs[name] for name in ("ref_min_score", "ref_max_score") if name in attrs}
    save(args.out or path.with_name(f"{path.stem}-fixed.hdf5"), columns, about, args.overwrite)


def main(args: Args) -> int | None:
    """Do the one thing that was asked for. Raises ValueError where that is none or two."""
    actions = [name for name in OPTIONS if getattr(args, name)]
    if len(actions) != 1:
        raise ValueError(
            "give ids to download, or one of --check, --minari, --fix, --describe (see --help)"
        )
    action, plain = actions[0], Args()
    for name in vars(plain):
        if name not in OPTIONS[action] | {action} and getattr(args, name) != getattr(plain, name):
            raise ValueError(f"--{name.replace('_', '-')} has no meaning here (see --help)")
    if action == "ids":
        return get(args.ids, args.wait)
    if action == "check":
        return check()
    if action == "describe":
        print(describe.text(args.describe, args.env_id))
        if args.picture:
            describe.draw(args.describe, args.env_id, args.picture)
        return None
    return convert(args) if action == "minari" else mend(args)


if __name__ == "__main__":
    run(main, Args)
