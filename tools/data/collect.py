"""Make an offline dataset without a network: roll out the small policies of tools/data/behaviours/ in
Gymnasium's -v4 robots, or lead a walking ant through antmaze.py's mazes.

    python tools/data/collect.py --env-id hopper-medium-local
    python tools/data/collect.py --env-id antmaze-medium-play-local

The file has D4RL's HDF5 layout (observations, actions, rewards, terminals, timeouts; float32 and bool)
and goes where the scripts look for it. Every episode has a seed of its own, so the file is the same,
byte for byte, for any number of workers. Qualities, in D4RL's sense: *random* uniform actions; *medium*
a SAC policy of about a third of expert level, sampled stochastically; *expert* the best policy of that
training run; *medium-expert* half of each; *medium-replay* policies saved on the way to medium, in
training order, the same number of rows each. (D4RL's medium-replay is the training buffer itself: every
step by another policy. Ours are roll-outs of a few snapshots, so its early, random part is thinner.)

AntMaze is collected as D4RL did it (generate_dataset.py, maze_env.py in d4rl 1.1's folder locomotion/;
relabelling and time limits: scripts/generation/ of its repository): a policy that walks where it is told
is led from cell to cell along the shortest path, with Gaussian noise of 0.2 on its actions, in maps with
other goals than those of evaluation. Only time ends an episode, one row after the limit of evaluation;
it goes on after the goal. Then reward and terminal of every row are set by whether the next row is
within 0.5 m of the evaluation goal. *umaze* has one start and one goal; in all others the ant starts in
any cell that is free and no goal's. It is sent to D4RL's goal cells in *play*, to any free cell in
*diverse* (D4RL's paper: random goals; its script has the flag, but not what it did). Ours: the ant's
policy, which sees the direction as a frame turned that way, and is sampled before the noise as D4RL's
was; where D4RL's search for the next cell would end in an error, in some corners, the ant goes on from
the cell it stands in; the goal that counts in relabelling is the centre of those that evaluation draws
(D4RL: one draw); infos/goal is where the ant was sent.
"""

import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import LOCAL_IDS, LOCAL_ROWS, dataset_file, hdf5, normalized_score, replacing, run

import antmaze
import dmg_iql

BEHAVIOURS = Path(__file__).resolve().parent / "behaviours"


@dataclass
class Args:
    """Which dataset to make."""

    env_id: str = "hopper-medium-local"
    """{hopper,walker2d,halfcheetah}-{random,medium,medium-replay,medium-expert,expert}-local, or
    antmaze-{umaze,umaze-diverse,medium-play,medium-diverse,large-play,large-diverse}-local"""
    size: int = LOCAL_ROWS
    """rows (environment steps), 1,000 to 1e9; the last episode is cut to fit and ends with a timeout"""
    seed: int = 0
    """seed of all episodes, 0 to 2**64 - 1"""
    workers: int = 0
    """processes; 0: one per core. The file does not depend on it"""
    out: Path | None = None
    """file to write; default: the file that the scripts look for, in $D4RL_DATASET_DIR or
    ~/.d4rl/datasets"""
    overwrite: bool = False
    """replace a file that is already there (never a folder, a device or a link)"""


@functools.cache
def read_behaviour(path: Path) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The policies of a behaviour file, each a list of layers (weight [in, out], bias [out]). Raises
    SystemExit where it is missing, damaged, or holds NaN."""
    robot = path.stem.split("-")[0]
    if not path.is_file():
        raise SystemExit(
            f"error: {path} is missing; python tools/data/train_behaviour.py --robot {robot} makes it"
        )
    with dmg_iql.blame(f"{path} is damaged (the repository has it whole)"):
        with np.load(path) as file:
            arrays = {**file}
        layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays) // 2)]
        assert layers and all(np.isfinite(array).all() for array in arrays.values()), "not all numbers"
        units = layers[0][0].shape[1]
        for weights, biases in layers:  # [policies, in, out], [policies, out]
            fits = weights.shape == (len(layers[0][0]), units, biases.shape[1])
            assert fits and len(biases) == len(weights), "its layers do not fit together"
            units = biases.shape[1]
    return [[(weights[i], biases[i]) for weights, biases in layers] for i in range(len(weights))]


def parts(env_id: str) -> list[str]:
    """The policies that make up a dataset, in order, each with an equal share of rows: "random", or
    "<file>:<index>"."""
    robot, quality = env_id.removesuffix("-local").split("-", 1)
    robot, quality = ("ant", "walk") if robot == "antmaze" else (robot, quality)
    if quality == "random":
        return ["random"]
    names = []
    for name in ("medium", "expert") if quality == "medium-expert" else (quality,):
        path = BEHAVIOURS / f"{robot}-{name}.npz"
        names += [f"{path.name}:{i}" for i in range(len(read_behaviour(path)))]
    return names


def load_policy(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The layers (weights [in, out], bias [out]) of one policy of a behaviour file; none for
    "random"."""
    if name == "random":
        return []
    file, index = name.split(":")
    return read_behaviour(BEHAVIOURS / file)[int(index)]


def act(
    policy: list[tuple[np.ndarray, np.ndarray]], state: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A sample of the policy's action in [-1, 1], float32: tanh of a Gaussian, as SAC acts in
    training."""
    if not policy:
        return rng.uniform(-1, 1, size).astype(np.float32)
    x = state.astype(np.float32)
    for weight, bias in policy[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    mean, log_std = np.split(x @ policy[-1][0] + policy[-1][1], 2)
    noise = rng.standard_normal(size, dtype=np.float32)
    return np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise)


make_env = functools.cache(dmg_iql.make_env)

# ---- AntMaze ------------------------------------------------------------------------------------------
MAPS = {  # D4RL's U_MAZE, BIG_MAZE and HARDEST_MAZE (maze_env.py 8-33)
    "umaze": antmaze.MAZES["umaze"],
    "medium": ["########",
               "#S ##  #",
               "#  #  G#",
               "##   ###",
               "#  #   #",
               "#G#  # #",
               "#   #G #",
               "########"],
    "large": ["############",
              "#S   #G    #",
              "# ## # # # #",
              "#    G #  G#",
              "# #### ### #",
              "# G# #     #",
              "## # # # ###",
              "#  #G G# G #",
              "############"],
}  # fmt: skip
NOISE = 0.2  # standard deviation on the ant's actions (generate_dataset.py 123)


def facing(state: np.ndarray, angle: float) -> np.ndarray:
    """The ant's state [29] without its place, in a frame whose x axis is turned by `angle` (rad) about
    z: [27] numbers, z, quaternion (w first and not negative), joint angles; linear velocity, angular
    velocity, joint velocities. (The angular velocity is in the torso's own frame already.)"""
    c, s = np.cos(angle), np.sin(angle)
    w, x, y, z = state[3:7]
    h, k = np.cos(angle / 2), -np.sin(angle / 2)  # the turn by -angle about z, multiplied from the left
    quaternion = np.array([h * w - k * z, h * x - k * y, h * y + k * x, h * z + k * w])
    quaternion *= 1.0 if quaternion[0] >= 0 else -1.0
    vx, vy = state[15:17]
    velocity = np.array([c * vx + s * vy, c * vy - s * vx])
    return np.concatenate([state[2:3], quaternion, state[7:15], velocity, state[17:]])


@functools.cache
def make_maze(env_id: str) -> antmaze.AntMazeEnv:
    """The environment in which an antmaze-...-local dataset is collected: D4RL's map, starts and
    goals."""
    task = env_id.removesuffix("-local")
    env = antmaze.AntMazeEnv(MAPS[antmaze.TASKS[task][0]], random_start=task != "antmaze-umaze")
    if task.endswith("diverse"):
        env.goals = np.concatenate([env.goals, env.starts])
    return env


@functools.cache
def steps_to(env: antmaze.AntMazeEnv, goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """How many cells every free cell is away from the cell `goal`, cells by (x, y) in units of 4 m from
    the start."""
    free = {
        tuple(cell) for cell in np.concatenate([env.goals, env.starts]).astype(int) // int(antmaze.CELL)
    }
    steps, front = {goal: 0}, [goal]
    for x, y in front:  # which grows: breadth first
        for cell in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
            if cell in free and cell not in steps:
                steps[cell] = steps[x, y] + 1
                front.append(cell)
    return steps


def cell_of(place: np.ndarray) -> tuple[int, int]:
    """The cell that D4RL counts a place [2] to (maze_env.py 208-212): from its centre to the next one's
    on each axis, so that an ant on its way up an axis walks on to the centre before it turns."""
    x, y = (np.maximum(place, 1e-4) // antmaze.CELL).astype(int).tolist()
    return x, y


def waypoint(env: antmaze.AntMazeEnv, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where to go from `place` [2]: to the next cell on the shortest path, its centre + U(0, 1) on each
    axis; where that, or this, is the goal's cell, to the goal. A place may be counted to a wall's cell:
    it has a next one, too."""
    goal = cell_of(env.goal)
    steps = steps_to(env, goal)
    inside = tuple(
        np.rint(place / antmaze.CELL).astype(int).tolist()
    )  # ours, where D4RL's cell leads nowhere
    for x, y in (cell_of(place), inside):
        near = [cell for cell in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if cell in steps]
        cell = goal if (x, y) == goal else min(near, key=steps.get, default=None)
        if cell is not None:
            return (
                env.goal
                if cell == goal
                else np.array(cell) * antmaze.CELL + rng.uniform(0, antmaze.CELL / 4, 2)
            )
    return env.goal


def evaluation_goal(env_id: str) -> np.ndarray:
    """The centre [2] of the square from which evaluation draws the goal of this maze (see antmaze.py's
    reset_model)."""
    env = make_env(env_id).unwrapped
    return env.goals[0] + 0.75 * antmaze.CELL / 4


def at_goal(env_id: str, observations: np.ndarray) -> np.ndarray:
    """Of every row [n, 29] of one episode, whether the next one is within 0.5 m of the evaluation goal;
    bool [n]."""
    distance = np.linalg.norm(observations[1:, :2] - evaluation_goal(env_id), axis=1)
    return np.append(distance <= antmaze.REACHED, False)


def lead(key: tuple[str, str, int, int, int]) -> dict[str, np.ndarray]:
    """play() for AntMaze: one episode, led to its goal and on around it, with rewards and terminals
    relabelled."""
    env_id, name, *numbers = key
    env, policy = make_maze(env_id), load_policy(name)
    simulator_seed, action_seed = np.random.SeedSequence(numbers).spawn(2)
    rng = np.random.default_rng(action_seed)
    state, _ = env.reset(seed=int(simulator_seed.generate_state(1)[0]))
    rows = make_env(env_id).spec.max_episode_steps + 1
    states, actions = [], []
    while len(states) < rows:
        x, y = waypoint(env, state[:2], rng) - state[:2]
        sample = act(policy, facing(state, np.arctan2(y, x)), 8, rng)
        action = np.clip(sample + NOISE * rng.standard_normal(8, dtype=np.float32), -1, 1)
        states.append(state)
        actions.append(action)
        try:
            state, *_ = env.step(action)
        except (
            RuntimeError
        ):  # unstable simulation: what follows this row is not known, as at a time limit
            break
    observations = np.array(states, dtype=np.float32)
    reached = at_goal(env_id, observations)
    return {
        "observations": observations,
        "actions": np.array(actions, dtype=np.float32),
        "rewards": reached.astype(np.float32),
        "terminals": reached,
        "timeouts": np.arange(len(states)) == len(states) - 1,
        "infos/goal": np.tile(env.goal, (len(states), 1)).astype(np.float32),
    }


def maze_facts(env_id: str, data: dict[str, np.ndarray]) -> dict[str, object]:
    """What an AntMaze file holds. Of its whole trajectories: how many there are, how many come within
    0.5 m of where they are sent ("reached") and of the evaluation goal ("seen"), and for those that see
    it, how long the shortest path to it is from where they begin, in metres along the cells ("paths", an
    array); how many begin in evaluation's own start cell ("begun"), and see the goal ("begun_seen")."""
    env = make_env(env_id)
    limit, env = env.spec.max_episode_steps, env.unwrapped
    steps = steps_to(env, tuple(np.rint(env.goals[0] / antmaze.CELL).astype(int).tolist()))
    ends = np.flatnonzero(data["timeouts"]) + 1
    reached, seen, cells = [], [], []
    for begin, end in zip(np.append(0, ends[:-1]), ends):
        if end - begin == limit + 1:
            place = data["observations"][begin:end, :2]
            reached.append(
                (np.linalg.norm(place - data["infos/goal"][begin], axis=1) <= antmaze.REACHED).any()
            )
            seen.append(data["terminals"][begin:end].any())
            cells.append(tuple(np.rint(place[0] / antmaze.CELL).astype(int).tolist()))
    reached, seen = np.array(reached, bool), np.array(seen, bool)
    begun = np.array([cell == (0, 0) for cell in cells], bool)
    paths = antmaze.CELL * np.array([steps[cell] for cell in cells])
    return {
        "trajectories": len(seen),
        "reached": int(reached.sum()),
        "seen": int(seen.sum()),
        "paths": paths[seen],
        "begun": int(begun.sum()),
        "begun_seen": int((begun & seen).sum()),
    }


# ---- every robot --------------------------------------------------------------------------------------
def play(key: tuple[str, str, int, int, int]) -> dict[str, np.ndarray]:
    """One episode, a function of key = (env id, policy, seed, part, episode) alone; the columns of
    D4RL's layout."""
    if key[0].startswith("antmaze-"):
        return lead(key)
    env_id, name, *numbers = key
    env, policy = make_env(env_id), load_policy(name)
    simulator_seed, action_seed = np.random.SeedSequence(numbers).spawn(2)
    rng = np.random.default_rng(action_seed)
    state, _ = env.reset(seed=int(simulator_seed.generate_state(1)[0]))
    columns = {"observations": [], "actions": [], "rewards": [], "terminals": [], "timeouts": []}
    terminated = truncated = False
    while not (terminated or truncated):
        action = act(policy, state, env.action_space.shape[0], rng)
        columns["observations"].append(state)
        columns["actions"].append(action)
        state, reward, terminated, truncated, _ = env.step(action)
        columns["rewards"].append(reward)
        columns["terminals"].append(terminated)
        columns["timeouts"].append(truncated and not terminated)
    kinds = {"terminals": bool, "timeouts": bool}
    return {
        name: np.asarray(values, dtype=kinds.get(name, np.float32)) for name, values in columns.items()
    }


def prepare_worker() -> None:
    """A worker process leaves Ctrl-C to the process that started it, and ends when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def stop(number: int, frame: object) -> None:
    """End at once at Ctrl-C or SIGTERM while there is no file yet; the workers follow. (An exception
    would be lost in Python's own code around a fork.)"""
    os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


def collect(env_id: str, size: int, seed: int, workers: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`size` rows in D4RL's layout and the returns of all whole episodes among them."""
    names = parts(env_id)
    shares = np.diff(np.linspace(0, size, len(names) + 1).astype(int))
    episodes, returns = [], []
    pool = ProcessPoolExecutor(workers, initializer=prepare_worker)
    with pool, tqdm(total=size, unit="row", desc=env_id) as bar:
        for part, (name, share) in enumerate(zip(names, shares)):
            rows, first = 0, 0
            while rows < share:
                keys = [(env_id, name, seed, part, i) for i in range(first, first + 2 * workers)]
                first += len(keys)
                for episode in pool.map(play, keys):  # in order, whoever plays them
                    length = len(episode["rewards"])
                    if length <= share - rows:
                        returns.append(episode["rewards"].sum(dtype=np.float64))
                    elif share > rows:  # cut to fit: ends like an episode that ran out of time
                        length = share - rows
                        episode = {key: values[:length] for key, values in episode.items()}
                        episode["timeouts"][-1] = True
                    else:
                        break
                    episodes.append(episode)
                    rows += length
                    bar.update(length)
    return {
        key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]
    }, np.array(returns)


def main(args: Args) -> None:
    """Collect, write, report. Raises SystemExit, ValueError or OSError, before anything is collected,
    for a bad flag or where nothing can be written."""
    if args.env_id not in LOCAL_IDS:
        raise SystemExit(f"error: --env-id {args.env_id}: expected one of {', '.join(LOCAL_IDS)}")
    for flag, value, low, high in (
        ("size", args.size, 1000, 10**9),
        ("seed", args.seed, 0, 2**64 - 1),
        ("workers", args.workers, 0, 1000),
    ):
        if not low <= value <= high:
            raise SystemExit(f"error: --{flag} {value}: expected {low} to {high}")
    out = args.out or dataset_file(args.env_id)
    if out.is_file() and not args.overwrite:
        raise SystemExit(f"error: {out} is already there; --overwrite makes it again")
    env = make_env(args.env_id)
    state_dim = 27 if args.env_id.startswith("antmaze-") else env.observation_space.shape[0]
    dims = state_dim, 2 * env.action_space.shape[0]
    for name in parts(args.env_id):
        policy = load_policy(name)
        if policy and (len(policy[0][0]), len(policy[-1][1])) != dims:
            raise SystemExit(f"error: {BEHAVIOURS / name} does not have {dims} inputs and outputs")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with replacing(out) as part:
        part.touch()  # fails now rather than after the collecting
        part.unlink()  # so that a kill leaves nothing
        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            data, returns = collect(args.env_id, args.size, args.seed, args.workers or cores)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        attrs = {
            "env_id": args.env_id,
            "simulator": env.spec.id,
            "seed": args.seed,
            "size": args.size,
            "policies": json.dumps(parts(args.env_id)),
            "gymnasium": gym.__version__,
            "made_by": "tools/data/collect.py",
        }
        part.write_bytes(hdf5(data, attrs))
    if args.env_id.startswith("antmaze-"):
        facts = maze_facts(args.env_id, data)
        what = f"{facts['reached']} reach the place they are sent to "
        what += f"and {facts['seen']} see the evaluation goal"
    elif len(returns):
        scores = normalized_score(args.env_id, returns)
        what = f"mean return {returns.mean():.1f} (standard deviation {returns.std():.1f}), "
        what += f"score {scores.mean():.1f} on D4RL's scale"
    else:
        what = "each policy's share is shorter than one"
    print(f"{out}: {args.size:,} rows, {len(returns)} whole episodes, {what}")


if __name__ == "__main__":
    run(main, Args)
