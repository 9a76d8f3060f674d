"""Train the SAC policies that tools/collect.py rolls out. Only needed to make `tools/behaviours/` again.

    pip install -r requirements-dev.txt
    python tools/train_behaviour.py --robot hopper --steps 300000

Every `--snapshot-every` steps the actor is written to `runs/behaviours/<robot>/snapshot_<steps>.npz` and a row to
`progress.csv`; the whole learner (networks, optimisers, replay buffer) is saved beside them. The command can be stopped at
any time: called again, it continues from the last snapshot.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

ROBOTS = {"hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "halfcheetah": "HalfCheetah-v4"}


@dataclass
class Train:
    """Train SAC on one robot, or continue where the last call was stopped."""

    robot: str = "hopper"
    """hopper, walker2d or halfcheetah (Gymnasium's -v4 environments)"""
    steps: int = 300_000
    """environment steps in all, one SAC update each"""
    snapshot_every: int = 10_000
    """environment steps between two snapshots"""
    seed: int = 0
    """seed of the learner and of the environment"""
    folder: Path = Path("runs/behaviours")
    """snapshots go to <folder>/<robot>/"""


def actor_arrays(model) -> dict[str, np.ndarray]:
    """The actor of a stable-baselines3 SAC model as float32 arrays: w0, b0, w1, b1 (ReLU layers), w2, b2 (mean and
    log standard deviation side by side), each w of shape (in, out)."""
    actor = model.policy.actor
    layers = [layer for layer in actor.latent_pi if hasattr(layer, "weight")]
    arrays = {}
    for i, layer in enumerate(layers):
        arrays[f"w{i}"], arrays[f"b{i}"] = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
    heads = (actor.mu, actor.log_std)
    arrays[f"w{len(layers)}"] = np.concatenate([head.weight.detach().numpy().T for head in heads], axis=1)
    arrays[f"b{len(layers)}"] = np.concatenate([head.bias.detach().numpy() for head in heads])
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}


def replace(path: Path, write) -> None:
    """Call write(temporary path), then rename it to `path`, so that a kill leaves the old file or the new one."""
    temporary = path.with_name("tmp-" + path.name)
    write(temporary)
    os.replace(temporary, path)


def train(args: Train) -> None:
    """Run SAC up to args.steps. Raises SystemExit for an unknown robot."""
    import torch
    from stable_baselines3 import SAC

    if args.robot not in ROBOTS:
        raise SystemExit(f"error: --robot {args.robot}: expected one of {', '.join(ROBOTS)}")
    torch.set_num_threads(1)
    folder = args.folder / args.robot
    folder.mkdir(parents=True, exist_ok=True)
    env = gym.make(ROBOTS[args.robot])
    state, progress = folder / "learner.zip", folder / "progress.csv"
    if state.exists():
        model = SAC.load(state, env=env)
        model.load_replay_buffer(folder / "replay.pkl")
        # A kill between two files leaves the buffer one interval ahead of the networks: it is then used as it is.
        print(f"continuing {args.robot} at step {model.num_timesteps}")
        rows = [row for row in csv.reader(progress.open()) if row[0] == "steps" or int(row[0]) <= model.num_timesteps]
    else:
        # Small actor (the file we keep), larger critics (thrown away).
        model = SAC(
            "MlpPolicy",
            env,
            seed=args.seed,
            buffer_size=args.steps,
            learning_starts=5_000,
            learning_rate=1e-3 if args.robot == "halfcheetah" else 7e-4,
            policy_kwargs={"net_arch": {"pi": [64, 64], "qf": [128, 128]}},
        )
        rows = [["steps", "episodes", "mean_return_of_last_100_training_episodes"]]
    progress.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    while model.num_timesteps < args.steps:
        model.learn(args.snapshot_every, reset_num_timesteps=False)
        n = model.num_timesteps
        recent = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        np.savez(folder / f"snapshot_{n:07d}.npz", **actor_arrays(model))
        replace(folder / "replay.pkl", model.save_replay_buffer)
        replace(state, model.save)
        with progress.open("a") as file:
            file.write(f"{n},{model._episode_num},{recent:.1f}\n")
        print(f"{args.robot} step {n}: mean return of the last 100 training episodes {recent:.0f}", flush=True)


if __name__ == "__main__":
    train(tyro.cli(Train))
