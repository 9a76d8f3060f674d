"""Replay a recorded AntMaze file one step at a time, to see how far this simulator is from the one that
recorded it.

    python tools/antmaze/replay.py ~/.d4rl/datasets/Ant_maze_u-maze_...sparse_fixed.hdf5

Every replayed row starts from the recorded qpos and qvel, takes the recorded action, and is compared
with the state that was recorded next: no error adds up over steps. The states of a file are float32,
which alone gives errors of about 1e-6, more where a foot is about to touch the ground or a wall. Three
ants are replayed: antmaze.py's; the same without its halved margins, which is what D4RL's own code gives
on MuJoCo 3.5 and later; and antmaze.py's with capsules that weigh what MuJoCo before 2.1.2 computed for
them, as when D4RL's data was made. "standing still" predicts that nothing changes, and gives the errors
a scale.

Only a file of D4RL's own tells anything about D4RL's simulator. One that was made with antmaze.py (all
that the tests have) shows that the replay works, and, replayed under another release of MuJoCo, what
that changes:

    python tools/antmaze/replay.py umaze.hdf5 --record 3000   # makes the file first, by random actions
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import mujoco
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import replacing, run

import antmaze

# Each maze in D4RL's file names, and how many numbers a row has.
NAMES = {"umaze": r"u-?maze", "medium": r"big-maze|medium", "large": r"hardest-maze|large"}
WIDTHS = {"observations": 29, "actions": 8, "timeouts": 1, "infos/qpos": 15, "infos/qvel": 14}


@dataclass
class Args:
    """Which file to replay, and how much of it."""

    path: tyro.conf.Positional[Path]
    """HDF5 file with observations, actions and timeouts, and infos/qpos and infos/qvel or observations
    of 29 numbers"""
    maze: str | None = None
    """umaze, medium or large; default: as the file's name says"""
    rows: int = 5_000
    """rows to replay, 1 or more, drawn at random from those that can be"""
    seed: int = 0
    """seed of that draw and of what --record does, 0 or more"""
    record: int = 0
    """make the file first: this many steps of smooth random actions in antmaze.py, in D4RL's layout; 0:
    it is there"""


def record(path: Path, maze: str, steps: int, seed: int) -> None:
    """Write `steps` rows in D4RL's layout: observation before the action, qpos and qvel behind it.
    Raises ValueError where the file is already there."""
    if path.exists():
        raise ValueError(
            f"{path} is already there; leave out --record to replay it, or give another name"
        )
    env, rng = antmaze.AntMazeEnv(maze), np.random.default_rng(seed)
    rows = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    rows |= {"infos/goal": [], "infos/qpos": [], "infos/qvel": []}
    state, _ = env.reset(seed=seed)
    action = np.zeros(8)
    with replacing(path) as part:
        part.touch()  # fails now rather than after the recording
        for step in range(1, steps + 1):
            action = np.clip(0.7 * action + 0.5 * rng.normal(size=8), -1, 1).astype(np.float32)
            after, reward, terminated, _, info = env.step(action)
            ended = not terminated and step % 700 == 0
            columns = [state, action, reward, terminated, ended, info["goal"]]
            columns += [env.data.qpos.copy(), env.data.qvel.copy()]
            for key, value in zip(rows, columns):
                rows[key].append(value)
            state = env.reset()[0] if terminated or ended else after
        with h5py.File(part, "w") as file:
            for key, values in rows.items():
                kind = bool if key in ("terminals", "timeouts") else np.float32
                file[key] = np.asarray(values, dtype=kind)
            file.attrs["made_by"] = f"tools/antmaze/replay.py --record, MuJoCo {mujoco.__version__}"


def load(path: Path) -> dict[str, np.ndarray]:
    """The recorded transitions: before and after [n, 29], actions [n, 8]. Rows at a time limit are left
    out, and those where the torso moves by a metre or more, which no ant does in 0.1 s: a reset that the
    file does not mark. Raises ValueError for a file that cannot be read or lacks something."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            data = {key: file[key][:] for key in WIDTHS if key in file}
            made = {key: str(value) for key, value in file.attrs.items()}
    except Exception as error:
        raise ValueError(f"cannot read {path} as an HDF5 file: {error}") from None
    if missing := [key for key in ("observations", "actions") if key not in data]:
        raise ValueError(f"{path} has no {', '.join(missing)}; give a D4RL AntMaze file")
    observations, actions, n = data["observations"], data["actions"], len(data["observations"])
    kinds = {"timeouts": "fiub"}
    whole = all(
        len(value) == n and value.size == n * WIDTHS[key] and value.dtype.kind in kinds.get(key, "fiu")
        for key, value in data.items()
    )
    if not whole or n < 2:
        found = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in data.items())
        wanted = ", ".join(f"{key} (n, {width})" for key, width in WIDTHS.items())
        raise ValueError(f"{path}: {found}; numbers of {wanted} and n > 1 are needed: an AntMaze file")
    infos = [data[key] for key in ("infos/qpos", "infos/qvel") if key in data]
    states = np.concatenate(infos, axis=1) if len(infos) == 2 else observations
    # D4RL's collection code stores the state behind the action beside the observation before it.
    late = (np.abs(states[:-1] - observations[1:]) < 1e-4).all(
        1
    ).mean() > 0.5 and states is not observations
    before, after, actions = states[:-1], states[1:], actions[1:] if late else actions[:-1]
    limits = data.get("timeouts", np.zeros(n)).astype(bool).ravel()[:-1]
    jump = np.linalg.norm(after[:, :2] - before[:, :2], axis=1) >= 1
    finite = np.isfinite(before).all(1) & np.isfinite(after).all(1) & np.isfinite(actions).all(1)
    keep = ~limits & ~jump & finite
    where = "behind" if late else "before"
    print(f"{path}: {n:,} rows; states recorded {where} the action; left out:")
    print(f"{limits.sum():,} at a time limit, {(jump & ~limits).sum():,} resets without a mark,")
    print(f"{(~finite).sum():,} not finite")
    if made:
        print(f"the file says of itself: {json.dumps(made)}")
    if not keep.any():
        raise ValueError(f"{path} has no row that can be replayed; give another file")
    return {"before": before[keep], "after": after[keep], "actions": actions[keep]}


def cylinder_capsules(model: mujoco.MjModel) -> None:
    """Give the ant's limbs, one capsule each, the mass and inertia that MuJoCo before 2.1.2 computed for
    a capsule: those of a cylinder that is half a radius longer at each end (MuJoCo's changelog,
    2.1.2)."""
    for i in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE):
        (radius, half), body = model.geom_size[i, :2], model.geom_bodyid[i]
        length = 2 * half + radius
        exact = np.pi * radius**2 * (2 * half + 4 / 3 * radius)
        mass = model.body_mass[body] * np.pi * radius**2 * length / exact
        across, along = mass * (3 * radius**2 + length**2) / 12, mass * radius**2 / 2
        model.body_mass[body] = mass
        model.body_inertia[body] = np.where(
            model.body_inertia[body] < model.body_inertia[body].max() / 2, along, across
        )
    mujoco.mj_setConst(model, mujoco.MjData(model))


def replay(env: antmaze.AntMazeEnv, before: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The state [n, 29] one step behind each of `before` [n, 29]. Raises RuntimeError for an unstable
    simulation."""
    after = np.empty(before.shape)
    for i, (state, action) in enumerate(zip(before.astype(np.float64), actions)):
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(state[:15], state[15:])
        after[i] = env.step(action)[0]
    return after


def errors(predicted: np.ndarray, recorded: np.ndarray) -> list[np.ndarray]:
    """For qpos and for qvel: quantiles (0.5, 0.9, 0.99, 1) over rows of the largest absolute difference
    in a row. A quaternion and its negative are the same rotation."""
    predicted = predicted.copy()
    predicted[:, 3:7] *= np.where(
        (predicted[:, 3:7] * recorded[:, 3:7]).sum(1, keepdims=True) < 0, -1, 1
    )
    difference = np.abs(predicted - recorded)
    return [
        np.quantile(part.max(1), (0.5, 0.9, 0.99, 1))
        for part in (difference[:, :15], difference[:, 15:])
    ]


def compare(args: Args) -> dict[str, list[np.ndarray]]:
    """Replay, print the table, and return it. Raises ValueError and OSError for a bad flag or file."""
    if args.rows < 1 or args.seed < 0 or (args.record and not 2 <= args.record <= 10_000_000):
        raise ValueError("--rows has to be 1 or more, --seed 0 or more, --record 0 or 2 to 10,000,000")
    named = [maze for maze, pattern in NAMES.items() if re.search(pattern, args.path.name)]
    maze = args.maze or (named[0] if named else None)
    if maze not in antmaze.MAZES:
        mazes = ", ".join(antmaze.MAZES)
        raise ValueError(f"which maze? {args.path.name} does not say; --maze has to be {mazes}")
    if args.record:
        record(args.path, maze, args.record, args.seed)
    data = load(args.path)
    size = len(data["before"])
    rows = np.sort(np.random.default_rng(args.seed).choice(size, min(args.rows, size), replace=False))
    before, after, actions = (data[key][rows] for key in ("before", "after", "actions"))
    today, stock, old = (antmaze.AntMazeEnv(maze) for _ in range(3))
    stock.model.geom_margin[:] = 0.01  # as in ant.xml
    cylinder_capsules(old.model)
    table = {"standing still": errors(before, after)}
    table[f"antmaze.py, MuJoCo {mujoco.__version__}"] = errors(replay(today, before, actions), after)
    table["the same, margins as in ant.xml"] = errors(replay(stock, before, actions), after)
    table["the same, capsules as before 2.1.2"] = errors(replay(old, before, actions), after)
    print(f"largest error of a row over {len(rows):,} rows of {maze}, in m, rad and per second:")
    print(f"{'':36}" + "".join(f"{name:>10}" for name in 2 * ("median", "90 %", "99 %", "max")))
    print(f"{'':36}{'qpos':>10}{'':30}{'qvel':>10}")
    for name, parts in table.items():
        print(f"{name:36}" + "".join(f"{value:10.1e}" for value in np.concatenate(parts)))
    print("Only a file that D4RL made checks this simulator against D4RL's;")
    print("any other shows that the replay works.")
    return table


def main(args: Args) -> None:
    """Replay and print the table. Raises ValueError and OSError for a bad flag or file."""
    compare(args)


if __name__ == "__main__":
    run(main, Args)
