"""Train the SAC policies that tools/data/collect.py rolls out. Only needed to make
tools/data/behaviours/ again.

    pip install -r requirements-dev.txt
    python tools/data/train_behaviour.py --robot hopper --steps 300000
    python tools/data/train_behaviour.py --robot ant --steps 340000 --snapshot-every 20000

Every `--snapshot-every` steps the actor is written to `runs/behaviours/<robot>/snapshot_<steps>.npz` and
a row to `progress.csv`; the whole learner (networks, optimisers, replay buffer) is saved beside them.
The command can be stopped at any time: called again, it continues from the last snapshot. After the last
step it rolls out every snapshot (ten episodes, sampled stochastically) and writes to
tools/data/behaviours/: *medium*, the snapshot whose score is nearest to a third of expert level (33.3 on
D4RL's scale); *expert*, the snapshot with the best score, whatever that is; *medium-replay*, ten
snapshots evenly spaced from the first to medium; and `<robot>.json`, which says how they were made and
what they score.

The ant is antmaze.py's, on a plane without walls: it learns to walk where it is told, as
tools/data/collect.py leads it through the mazes; from step 260,000 on its motors are noisy, so that it
learns to stay on its feet when it does not do quite what it would (as a policy cloned from it does not).
Of it the last snapshot is kept, as *walk*.
"""

import csv
import json
import multiprocessing
import sys
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import collect
from common import normalized_score, replacing, run

from antmaze import AntMazeEnv
from dmg_iql import blame

ROBOTS = {
    "hopper": "Hopper-v4",
    "walker2d": "Walker2d-v4",
    "halfcheetah": "HalfCheetah-v4",
    "ant": "Plane below",
}
NOISY_FROM = 260_000  # environment steps, where the ant walks already; begins with a snapshot's interval
MOTOR_NOISE = 0.3  # standard deviation


class Plane(gym.Env):
    """The ant on a plane. Observation [27]: collect.facing() the direction in which it has to walk,
    which changes every 30 to 149 steps, as it does between waypoints. Reward: its speed that way in m/s
    (up to 4) + 0.5 - a tenth of the mean square of the action. An episode ends after 500 steps, or where
    the ant has turned over, jumped or fallen. The motors get the action plus normal noise of standard
    deviation `noise`."""

    noise = 0.0

    def __init__(self) -> None:
        self.ant = AntMazeEnv(["SG"])
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (27,), np.float32)
        self.action_space = self.ant.action_space

    def turn(self) -> None:
        """Draw the next direction and how long it holds."""
        self.angle, self.left = (
            self.np_random.uniform(-np.pi, np.pi),
            int(self.np_random.integers(30, 150)),
        )

    def observation(self) -> np.ndarray:
        return collect.facing(self.state, self.angle).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """A new episode at the origin; `seed` seeds the ant and the directions."""
        super().reset(seed=seed)
        self.state, _ = self.ant.reset(seed=int(self.np_random.integers(2**31)))
        self.steps = 0
        self.turn()
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """0.1 s. An unstable simulation ends the episode with reward 0."""
        place, motors = self.state[:2], action
        if self.noise:
            motors = np.clip(action + self.noise * self.np_random.standard_normal(8), -1, 1)
        try:
            self.state, *_ = self.ant.step(motors)
        except RuntimeError:
            return self.observation(), 0.0, True, False, {}
        speed = (self.state[:2] - place) / self.ant.dt @ (np.cos(self.angle), np.sin(self.angle))
        reward = float(min(speed, 4.0) + 0.5 - 0.1 * np.square(action).mean())
        _, x, y, _ = self.state[3:7]
        upright = 1 - 2 * (x * x + y * y)  # z of the torso's own z axis
        fallen = bool(upright < 0.2 or not 0.2 < self.state[2] < 1.2)
        self.steps += 1
        self.left -= 1
        if self.left == 0:
            self.turn()
        return self.observation(), reward, fallen, self.steps >= 500, {}


@dataclass
class Args:
    """Train SAC on one robot, or continue where the last call was stopped."""

    robot: str = "hopper"
    """hopper, walker2d or halfcheetah (Gymnasium's -v4 environments), or ant (for AntMaze)"""
    steps: int = 300_000
    """environment steps in all, 1 or more, one SAC update each (the ant: two for every four)"""
    snapshot_every: int = 10_000
    """environment steps between two snapshots, 1 or more"""
    seed: int = 0
    """seed of the learner and of the environment, 0 to 2**32 - 1"""
    folder: Path = Path("runs/behaviours")
    """snapshots go to <folder>/<robot>/"""
    episodes: int = 10
    """episodes that each snapshot is judged by, 1 or more"""


def actor_arrays(model: object) -> dict[str, np.ndarray]:
    """The actor of a stable-baselines3 SAC model as float32 arrays: w0, b0, w1, b1 (ReLU layers), w2, b2
    (mean and log standard deviation side by side), each w of shape (in, out)."""
    actor = model.policy.actor
    layers = [layer for layer in actor.latent_pi if hasattr(layer, "weight")]
    arrays = {}
    for i, layer in enumerate(layers):
        arrays[f"w{i}"], arrays[f"b{i}"] = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
    heads = (actor.mu, actor.log_std)
    arrays[f"w{len(layers)}"] = np.concatenate(
        [head.weight.detach().numpy().T for head in heads], axis=1
    )
    arrays[f"b{len(layers)}"] = np.concatenate([head.bias.detach().numpy() for head in heads])
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}


def train(args: Args) -> None:
    """Run SAC up to args.steps. Raises SystemExit for a bad flag."""
    if args.robot not in ROBOTS:
        raise SystemExit(f"error: --robot {args.robot}: expected one of {', '.join(ROBOTS)}")
    for flag in ("steps", "snapshot_every", "episodes"):
        if not 1 <= getattr(args, flag) <= 10**9:
            raise SystemExit(
                f"error: --{flag.replace('_', '-')} {getattr(args, flag)}: expected 1 to {10**9}"
            )
    if not 0 <= args.seed < 2**32:
        raise SystemExit(f"error: --seed {args.seed}: expected 0 to {2**32 - 1}")
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    folder = args.folder / args.robot
    folder.mkdir(parents=True, exist_ok=True)
    ant = args.robot == "ant"
    env = make_vec_env(Plane, 4, seed=args.seed) if ant else gym.make(ROBOTS[args.robot])
    state, progress = folder / "learner.zip", folder / "progress.csv"
    if state.exists():
        # A kill between two files leaves the buffer one interval ahead of the networks: used as it is.
        with blame(f"cannot continue from {state}"):
            model = SAC.load(state, env=env)
            model.load_replay_buffer(folder / "replay.pkl")
        print(f"continuing {args.robot} at step {model.num_timesteps}")
        rows = [
            row
            for row in csv.reader(progress.open())
            if row[0] == "steps" or int(row[0]) <= model.num_timesteps
        ]
    else:
        # Small actor (the file we keep), larger critics (thrown away).
        units = 128 if ant else 64
        settings = {
            "learning_starts": 10_000 if ant else 5_000,
            "learning_rate": {"halfcheetah": 1e-3, "ant": 5e-4}.get(args.robot, 7e-4),
            "policy_kwargs": {"net_arch": {"pi": [units] * 2, "qf": [2 * units] * 2}},
            "gamma": 0.98 if ant else 0.99,
            "gradient_steps": 2 if ant else 1,
        }
        model = SAC("MlpPolicy", env, seed=args.seed, buffer_size=args.steps, **settings)
        rows = [["steps", "episodes", "mean_return_of_last_100_training_episodes"]]
    progress.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    while model.num_timesteps < args.steps:
        for plane in env.envs if ant else ():
            plane.unwrapped.noise = MOTOR_NOISE if model.num_timesteps >= NOISY_FROM else 0.0
        model.learn(args.snapshot_every, reset_num_timesteps=False)
        n = model.num_timesteps
        recent = float(np.mean([episode["r"] for episode in model.ep_info_buffer] or [np.nan]))
        np.savez(folder / f"snapshot_{n:07d}.npz", **actor_arrays(model))
        for path, save in ((folder / "replay.pkl", model.save_replay_buffer), (state, model.save)):
            with replacing(path) as part:
                save(part)
        with progress.open("a") as file:
            file.write(f"{n},{model._episode_num},{recent:.1f}\n")
        print(
            f"{args.robot} step {n}: mean return of the last 100 training episodes {recent:.0f}",
            flush=True,
        )


def describe(args: Args, algorithm: str, score: str) -> dict[str, object]:
    """What stands above the policies in <robot>.json."""
    command = f"python tools/data/train_behaviour.py --robot {args.robot} --steps {args.steps}"
    command += f" --seed {args.seed}"
    return {
        "made_by": f"{command} --snapshot-every {args.snapshot_every}",
        "algorithm": algorithm,
        "versions": {
            name: version(name) for name in ("stable-baselines3", "torch", "gymnasium", "mujoco")
        },
        "score": score,
    }


def store(robot: str, quality: str, actors: list[dict[str, np.ndarray]]) -> None:
    """Write policies as one file of tools/data/behaviours/, arrays stacked along a first axis."""
    np.savez(
        file := BytesIO(), **{name: np.stack([actor[name] for actor in actors]) for name in actors[0]}
    )
    with replacing(collect.BEHAVIOURS / f"{robot}-{quality}.npz") as part:
        part.write_bytes(file.getvalue())


def store_description(robot: str, about: dict[str, object]) -> None:
    """Print <robot>.json and write it."""
    text = json.dumps(about, indent=1)
    with replacing(collect.BEHAVIOURS / f"{robot}.json") as part:
        part.write_text(text + "\n", "utf-8")
    print(text)


def judge(path: Path, robot: str, episodes: int) -> list[float]:
    """Returns of `episodes` stochastic episodes of a snapshot, played as tools/data/collect.py plays
    them."""
    arrays = np.load(path)
    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays.files) // 2)]
    collect.load_policy = lambda name: layers
    keys = [(f"{robot}-medium-local", path.name, 1, 0, i) for i in range(episodes)]
    return [float(collect.play(key)["rewards"].sum(dtype=np.float64)) for key in keys]


def judge_walk(path: Path, episode: int) -> float:
    """The return of a snapshot of the ant on the plane, acting as tools/data/collect.py has it act."""
    arrays, env, rng = np.load(path), Plane(), np.random.default_rng(episode)
    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays.files) // 2)]
    state, _ = env.reset(seed=episode)
    total, ended = 0.0, False
    while not ended:
        action = collect.act(layers, state, 8, rng) + collect.NOISE * rng.standard_normal(
            8, dtype=np.float32
        )
        state, reward, fallen, timeout, _ = env.step(np.clip(action, -1, 1))
        total, ended = total + reward, fallen or timeout
    return total


def publish_walk(args: Args) -> None:
    """Write the ant's last snapshot to tools/data/behaviours/."""
    path = sorted((args.folder / args.robot).glob("snapshot_*.npz"))[-1]
    with multiprocessing.Pool() as pool:
        returns = pool.starmap(
            judge_walk, [(path, episode) for episode in range(args.episodes)], chunksize=1
        )
    algorithm = "SAC of stable-baselines3, actor 128-128, critics 256-256, two updates per four steps"
    algorithm += f"; from step {NOISY_FROM:,} on normal noise of {MOTOR_NOISE} on the motors"
    score = "return of 500 steps on the plane, acting as collect.py has it act: "
    score += f"mean and sd over {args.episodes} episodes"
    about = describe(args, algorithm, score)
    about["walk"] = [
        {
            "steps": int(path.stem.split("_")[1]),
            "score": round(np.mean(returns), 1),
            "sd": round(np.std(returns), 1),
        }
    ]
    store("ant", "walk", [np.load(path)])
    store_description(args.robot, about)


def publish(args: Args) -> None:
    """Choose medium, expert and medium-replay among the snapshots and write them to
    tools/data/behaviours/."""
    paths = sorted((args.folder / args.robot).glob("snapshot_*.npz"))
    with multiprocessing.Pool() as pool:
        returns = pool.starmap(judge, [(path, args.robot, args.episodes) for path in paths], chunksize=1)
    scores = normalized_score(f"{args.robot}-medium-local", np.array(returns))
    means, steps = scores.mean(axis=1), [int(path.stem.split("_")[1]) for path in paths]
    for path, mean in zip(paths, means):
        print(f"{path.name}: score {mean:.1f}")
    medium = int(np.argmin(np.abs(means - 100 / 3)))
    replay = sorted({round(i) for i in np.linspace(0, medium, 10)})
    chosen = {"medium": [medium], "expert": [int(np.argmax(means))], "medium-replay": replay}
    algorithm = (
        "SAC of stable-baselines3, actor 64-64, critics 128-128, one update per step, sampled as trained"
    )
    score = f"D4RL's scale: mean and standard deviation over {args.episodes} episodes of the snapshot"
    about = describe(args, algorithm, score)
    for quality, indices in chosen.items():
        store(args.robot, quality, [np.load(paths[i]) for i in indices])
        about[quality] = [
            {"steps": steps[i], "score": round(means[i], 1), "sd": round(scores[i].std(), 1)}
            for i in indices
        ]
    store_description(args.robot, about)


def main(args: Args) -> None:
    """Train, then judge the snapshots and write the policies."""
    train(args)
    (publish_walk if args.robot == "ant" else publish)(args)


if __name__ == "__main__":
    run(main, Args)
