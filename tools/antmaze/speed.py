"""How fast antmaze.py steps on this machine, and what its mazes look like.

    python tools/antmaze/speed.py                                               # steps per second
    MUJOCO_GL=egl python tools/antmaze/speed.py --picture reports/antmaze.png   # the mazes from above

Steps are environment steps (five of MuJoCo's) of random actions. Every row is the median of several
measurements that are taken in turns. "vectorised" is Gymnasium's own vector environment; "threads" steps
the environments side by side from a pool of threads, as the scripts' evaluation does.
"""

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import replacing, run

import antmaze


@dataclass
class Args:
    """What to measure or to draw."""

    steps: int = 2_000
    """environment steps in each measurement, 100 to 10,000,000"""
    repeats: int = 3
    """measurements for each row, 1 to 1,000"""
    mazes: tuple[str, ...] = tuple(antmaze.MAZES)
    """mazes to measure: umaze, medium, large"""
    picture: Path | None = None
    """draw the mazes into this PNG file and measure nothing; without a screen, set MUJOCO_GL=egl"""


IDS = {}  # one of D4RL's ids for each maze
for task, (maze, _) in antmaze.TASKS.items():
    IDS.setdefault(maze, f"{task}-v2")
NUMBER = 8  # environments side by side


def play_vectorised(env_id: str, steps: int) -> None:
    """`steps` steps of all environments together, in Gymnasium's vector environment."""
    envs = gym.make_vec(env_id, num_envs=NUMBER, vectorization_mode="sync")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(steps // NUMBER):
        envs.step(envs.action_space.sample())
    envs.close()


def play(env_id: str, steps: int, number: int, threads: int) -> None:
    """`steps` steps of `number` environments together, from a pool of threads."""
    envs = [gym.make(env_id) for _ in range(number)]
    for env in envs:
        env.reset(seed=0)
        env.action_space.seed(0)

    def step(env: gym.Env) -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(steps // number):
            list((pool.map if threads > 1 else map)(step, envs))


def measure(args: Args) -> None:
    """Print a Markdown table of environment steps per second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kinds: dict[str, Callable[[str, int], None]] = {"one": functools.partial(play, number=1, threads=1)}
    kinds[f"{NUMBER}, vectorised"] = play_vectorised
    for threads in sorted({1, 2, cores}):
        kinds[f"{NUMBER}, {threads} thread(s)"] = functools.partial(play, number=NUMBER, threads=threads)
    rates: dict[tuple[str, str], list[float]] = {
        (maze, kind): [] for maze in args.mazes for kind in kinds
    }
    for _ in range(args.repeats):
        for maze, kind in rates:
            seconds = []
            for steps in (
                args.steps // 10,
                args.steps + args.steps // 10,
            ):  # the difference is without the start
                began = time.perf_counter()
                kinds[kind](IDS[maze], steps)
                seconds.append(time.perf_counter() - began)
            rates[maze, kind].append(args.steps / (seconds[1] - seconds[0]))
    print("| environments, steps per second | " + " | ".join(args.mazes) + " |")
    print("|---|" + "---|" * len(args.mazes))
    for kind in kinds:
        cells = [f"{statistics.median(rates[maze, kind]):,.0f}" for maze in args.mazes]
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"\n({cores} cores; median of {args.repeats} measurements of {args.steps:,} steps)")


def draw(path: Path) -> None:
    """The three mazes from above, each with the ant at its start and a goal as a red disc; x to the
    right, y up. Raises ValueError where MuJoCo cannot draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    with replacing(path) as part:
        part.touch()  # fails now rather than after the drawing
        for axis, maze in zip(axes, antmaze.MAZES):
            tasks = [task for task, (name, _) in antmaze.TASKS.items() if name == maze]
            try:
                env = gym.make(IDS[maze], render_mode="rgb_array", width=600, height=600)
                env.reset(seed=1)
                for _ in range(5):
                    env.step(np.zeros(8))  # it falls on its feet
                axis.imshow(env.render())
            except Exception as error:  # each way to draw has its own kinds
                sys.unraisablehook = lambda _: None  # else Gymnasium's half-made viewer has a traceback
                raise ValueError(f"cannot draw ({error}); without a screen set MUJOCO_GL=egl") from None
            axis.set_title(f"{maze}: {', '.join(tasks)}", fontsize=8)
            axis.axis("off")
            env.close()
        figure.savefig(part, dpi=100)
    print(path)


def main(args: Args) -> None:
    """Measure or draw. Raises ValueError and OSError for a bad flag or file."""
    if not 100 <= args.steps <= 10_000_000:
        raise ValueError(f"--steps {args.steps}: expected 100 to 10,000,000")
    if not 1 <= args.repeats <= 1000:
        raise ValueError(f"--repeats {args.repeats}: expected 1 to 1,000")
    if not args.mazes or set(args.mazes) - set(IDS):
        raise ValueError(f"--mazes {' '.join(args.mazes)}: expected some of {' '.join(IDS)}")
    if args.picture and (args.picture.suffix != ".png" or args.picture.is_dir()):
        raise ValueError(f"--picture {args.picture}: expected a file that ends in .png")
    antmaze.ant_xml()  # fails now where the robot is not installed
    draw(args.picture) if args.picture else measure(args)


if __name__ == "__main__":
    run(main, Args)
