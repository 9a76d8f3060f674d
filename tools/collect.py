"""Make an offline dataset without a network: roll out the small policies of tools/behaviours/ in Gymnasium's -v4
robots.

    python tools/collect.py --env-id hopper-medium-local

The file has D4RL's HDF5 layout (observations, actions, rewards, terminals, timeouts; float32 and bool) and goes where
the scripts look for it. Every episode has a seed of its own, so the file is the same, byte for byte, for any number of
workers. Qualities, in D4RL's sense: *random* uniform actions; *medium* a SAC policy of about a third of expert level,
sampled stochastically; *expert* the best policy of that training run; *medium-expert* half of each; *medium-replay*
policies saved on the way to medium, in training order, the same number of rows each. (D4RL's medium-replay is the
training buffer itself: every step by another policy. Ours are roll-outs of a few snapshots, so its early, random part
is thinner.)
"""

import functools
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dmg_iql

BEHAVIOURS = Path(__file__).resolve().parent / "behaviours"
LOCAL_IDS = [env_id for env_id in dmg_iql.ENV_IDS if env_id.endswith("-local")]


@dataclass
class Args:
    """Which dataset to make."""

    env_id: str = "hopper-medium-local"
    """{hopper,walker2d,halfcheetah}-{random,medium,medium-replay,medium-expert,expert}-local"""
    size: int = 200_000
    """rows (environment steps), 1,000 or more; the last episode is cut to fit and ends with a timeout"""
    seed: int = 0
    """seed of all episodes, 0 or more"""
    workers: int = 0
    """processes; 0: one per core. The file does not depend on it"""
    out: Path | None = None
    """file to write; default: the file that the scripts look for, in $D4RL_DATASET_DIR or ~/.d4rl/datasets"""
    overwrite: bool = False
    """replace a file that is already there"""


def parts(env_id: str) -> list[str]:
    """The policies that make up a dataset, in order, each with an equal share of rows: "random", or
    "<file>:<index>"."""
    robot, quality = env_id.removesuffix("-local").split("-", 1)
    if quality == "random":
        return ["random"]
    names = []
    for name in ("medium", "expert") if quality == "medium-expert" else (quality,):
        path = BEHAVIOURS / f"{robot}-{name}.npz"
        if not path.is_file():
            raise SystemExit(f"error: {path} is missing; python tools/train_behaviour.py --robot {robot} makes it")
        names += [f"{path.name}:{i}" for i in range(len(np.load(path)["w0"]))]
    return names


@functools.cache
def load_policy(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The layers (weights [in, out], bias [out]) of one policy of a behaviour file; none for "random"."""
    if name == "random":
        return []
    file, index = name.split(":")
    arrays = np.load(BEHAVIOURS / file)
    return [(arrays[f"w{i}"][int(index)], arrays[f"b{i}"][int(index)]) for i in range(len(arrays.files) // 2)]


def act(
    policy: list[tuple[np.ndarray, np.ndarray]], state: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A sample of the policy's action in [-1, 1], float32: tanh of a Gaussian, as SAC acts in training."""
    if not policy:
        return rng.uniform(-1, 1, size).astype(np.float32)
    x = state.astype(np.float32)
    for weight, bias in policy[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    mean, log_std = np.split(x @ policy[-1][0] + policy[-1][1], 2)
    noise = rng.standard_normal(size, dtype=np.float32)
    return np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise)


make_env = functools.cache(dmg_iql.make_env)


def play(key: tuple[str, str, int, int, int]) -> dict[str, np.ndarray]:
    """One episode, a function of key = (env id, policy, seed, part, episode) alone; the columns of D4RL's layout."""
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
    return {name: np.asarray(values, dtype=kinds.get(name, np.float32)) for name, values in columns.items()}


def collect(env_id: str, size: int, seed: int, workers: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`size` rows in D4RL's layout and the returns of all whole episodes among them."""
    names = parts(env_id)
    shares = np.diff(np.linspace(0, size, len(names) + 1).astype(int))
    episodes, returns = [], []
    with ProcessPoolExecutor(workers) as pool, tqdm(total=size, unit="row", desc=env_id) as bar:
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
    return {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}, np.array(returns)


def main(args: Args) -> None:
    """Collect, write, report. Raises SystemExit for a bad flag or where nothing can be written."""
    if args.env_id not in LOCAL_IDS:
        raise SystemExit(f"error: --env-id {args.env_id}: expected one of {', '.join(LOCAL_IDS)}")
    if args.size < 1000 or args.seed < 0 or args.workers < 0:
        raise SystemExit("error: --size has to be 1000 or more, --seed and --workers 0 or more")
    folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    out = args.out or folder / f"{args.env_id.removesuffix('-local').replace('-', '_')}-local.hdf5"
    if out.exists() and not args.overwrite:
        raise SystemExit(f"error: {out} is already there; --overwrite makes it again")
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise SystemExit(f"error: cannot write {out} ({error}); --out names another place") from None
    data, returns = collect(args.env_id, args.size, args.seed, args.workers or len(os.sched_getaffinity(0)))
    scores = dmg_iql.normalized_score(args.env_id, returns)
    with h5py.File(part, "w") as file:
        for key, values in data.items():
            file.create_dataset(key, data=values, compression="gzip", compression_opts=1)
        made = {"env_id": args.env_id, "simulator": make_env(args.env_id).spec.id, "seed": args.seed, "size": args.size}
        made |= {
            "policies": json.dumps(parts(args.env_id)),
            "gymnasium": gym.__version__,
            "made_by": "tools/collect.py",
        }
        for key, value in made.items():
            file.attrs[key] = value
    os.replace(part, out)
    print(
        f"{out}: {args.size:,} rows, {len(returns)} whole episodes, mean return {returns.mean():.1f} "
        f"(standard deviation {returns.std():.1f}), score {scores.mean():.1f} on D4RL's scale"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
