"""How fast antmaze.py steps on this machine, and what its mazes look like.

    python tools/antmaze_bench.py                                            # steps per second
    MUJOCO_GL=egl python tools/antmaze_bench.py --picture docs/antmaze.png   # the three mazes from above

Steps are environment steps (five of MuJoCo's) of random actions. Every row is the median of several measurements that
are taken in turns. "vectorised" is Gymnasium's own vector environment; "processes" its asynchronous one, which pays for
sending each step's numbers between processes; "pool" gives every process its own environments and whole episodes,
as dmg_iql.py's --eval-workers does.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import antmaze


@dataclass
class Args:
    """What to measure or to draw."""

    steps: int = 2_000
    """environment steps in each measurement, 100 or more"""
    repeats: int = 3
    """measurements for each row, 1 or more"""
    mazes: tuple[str, ...] = tuple(antmaze.MAZES)
    """mazes to measure: umaze, medium, large"""
    picture: Path | None = None
    """draw the mazes into this PNG file and measure nothing; without a screen, set MUJOCO_GL=egl"""


IDS = {maze: next(f"{task}-v2" for task, (name, _) in antmaze.TASKS.items() if name == maze) for maze in antmaze.MAZES}


def play(env_id: str, steps: int) -> None:
    """Step one environment with random actions, resetting it where an episode ends."""
    env = gym.make(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def play_vectorised(env_id: str, steps: int, number: int, mode: str) -> None:
    """The same with `number` environments in Gymnasium's vector environment; `steps` counts all of theirs."""
    envs = gym.make_vec(env_id, num_envs=number, vectorization_mode=mode)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(steps // number):
        envs.step(envs.action_space.sample())
    envs.close()


def play_in_pool(env_id: str, steps: int, cores: int) -> None:
    """The same in `cores` processes, one environment in each."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(play, [env_id] * cores, [steps // cores] * cores))


def measure(args: Args) -> None:
    """Print a Markdown table of environment steps per second."""
    cores = len(os.sched_getaffinity(0))
    kinds: dict[str, Callable[[str, int], None]] = {
        "single": play,
        "vectorised, 8 environments": lambda env_id, steps: play_vectorised(env_id, steps, 8, "sync"),
    }
    if cores > 1:
        kinds["vectorised in 2 processes"] = lambda env_id, steps: play_vectorised(env_id, steps, 2, "async")
        kinds["pool of 2 processes"] = lambda env_id, steps: play_in_pool(env_id, steps, 2)
    rates: dict[tuple[str, str], list[float]] = {(maze, kind): [] for maze in args.mazes for kind in kinds}
    for _ in range(args.repeats):
        for maze, kind in rates:
            seconds = []
            for steps in (args.steps // 10, args.steps + args.steps // 10):  # the difference leaves out the start
                began = time.perf_counter()
                kinds[kind](IDS[maze], steps)
                seconds.append(time.perf_counter() - began)
            rates[maze, kind].append(args.steps / (seconds[1] - seconds[0]))
    print("| steps per second | " + " | ".join(args.mazes) + " |\n|---|" + "---|" * len(args.mazes))
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(f"{statistics.median(rates[maze, kind]):,.0f}" for maze in args.mazes) + " |")
    print(f"\n({cores} cores; median of {args.repeats} measurements of {args.steps:,} steps)")


def draw(path: Path) -> None:
    """The three mazes from above, each with the ant at its start and a goal as a red disc; x to the right, y up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    for axis, maze in zip(axes, antmaze.MAZES):
        env = gym.make(IDS[maze], render_mode="rgb_array", width=600, height=600)
        env.reset(seed=1)
        for _ in range(5):
            env.step(np.zeros(8))  # it falls on its feet
        axis.imshow(env.render())
        axis.set_title(
            f"{maze}: " + ", ".join(task for task, (name, _) in antmaze.TASKS.items() if name == maze), fontsize=8
        )
        axis.axis("off")
        env.close()
    part = path.with_name("." + path.name)
    figure.savefig(part, format="png", dpi=100)
    os.replace(part, path)
    print(path)


def main(args: Args) -> None:
    """Measure or draw. Raises SystemExit for a flag out of range."""
    if args.steps < 100 or args.repeats < 1 or not args.mazes or set(args.mazes) - set(antmaze.MAZES):
        raise SystemExit("error: --steps has to be 100 or more, --repeats 1 or more, --mazes umaze, medium or large")
    try:
        draw(args.picture) if args.picture else measure(args)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(tyro.cli(Args))
