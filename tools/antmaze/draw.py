"""An AntMaze from above: the trajectories of a dataset, and those of trained policies in evaluation.

    python tools/antmaze/draw.py runs/antmaze-umaze-local__DMG__s0-1 --out reports/umaze.png

One panel for the runs' dataset: every trajectory up to where it first comes within 0.5 m of the
evaluation goal (blue), or the whole of one that does not (grey). One for each run: evaluation episodes
of its checkpoint up to the goal (blue) or the time limit (orange), and the goal that each of them had
(black)."""

import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import torch
import tyro
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import dataset_file, load_policy, replacing, run

import antmaze
import dmg_iql


@dataclass
class Args:
    """Which runs, and how many trajectories of each."""

    runs: tyro.conf.Positional[list[Path]]
    """run folders of one AntMaze dataset, of any of the scripts, each with a checkpoint.pt"""
    out: Path = Path("maze.png")
    """PNG file to write"""
    trajectories: int = 60
    """trajectories of the dataset, evenly spread over the file, 1 to 100,000"""
    episodes: int = 20
    """evaluation episodes of each run, shared out evenly among its seeds, 1 to 100,000"""


def recorded(path: Path, number: int) -> list[tuple[np.ndarray, bool]]:
    """Places [steps, 2] of trajectories of a dataset, each up to the first terminal row, and whether it
    has one. Raises ValueError for a file that is no AntMaze dataset."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            places, terminals = file["observations"][:, :2], file["terminals"][:].astype(bool).ravel()
            ends = np.flatnonzero(file["timeouts"][:]) + 1
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no AntMaze dataset: {error}") from None
    if not len(ends):
        raise ValueError(f"{path} has no whole trajectory")
    chosen = np.unique(np.linspace(0, len(ends) - 1, number).astype(int))
    found = []
    for begin, end in zip(np.append(0, ends[:-1])[chosen], ends[chosen]):
        seen = np.flatnonzero(terminals[begin:end])
        found.append((places[begin : begin + seen[0] + 2 if len(seen) else end], len(seen) > 0))
    return found


@torch.no_grad()
def played(folder: Path, number: int) -> list[tuple[np.ndarray, bool, np.ndarray]]:
    """Evaluation episodes of a run's last checkpoint, its seeds in turn: places [steps + 1, 2], whether
    the goal was reached, the goal."""
    config = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["config"]
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    policies = [load_policy(folder, seed) for seed in seeds[:number]]
    episodes = []
    for i in tqdm(range(number), desc=folder.name, unit="episode"):
        env_id, policy = policies[i % len(seeds)]
        env = dmg_iql.make_env(env_id)
        state, info = env.reset(seed=i)
        places, ended = [state[:2]], False
        while not ended:
            action = policy(torch.tensor(state)[None])[0].numpy()
            state, _, terminated, truncated, info = env.step(action)
            places.append(state[:2])
            ended = terminated or truncated
        episodes.append((np.array(places), info["success"], info["goal"]))
    return episodes


def draw(panels: list[tuple[str, list]], env: antmaze.AntMazeEnv, out: Path) -> None:
    """One panel for each title and list of trajectories."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.4), squeeze=False, layout="constrained"
    )
    for axis, (title, trajectories) in zip(axes[0], panels):
        for x, y in env.walls:
            axis.add_patch(plt.Rectangle((x - 2, y - 2), 4, 4, color="0.75", linewidth=0))
        for places, success, *goal in trajectories:
            color = "tab:blue" if success else "tab:orange" if goal else "0.45"
            axis.plot(*places.T, color=color, linewidth=0.7, alpha=0.7, zorder=3 if success else 2)
            for xy in goal:
                axis.add_patch(plt.Circle(xy, 0.12, color="black", zorder=4))
        axis.plot(0, 0, "o", color="black", markersize=5, zorder=5)
        axis.annotate("start", (0, 0), (-1.5, -1.6), fontsize=8)
        if not any(goal for _, _, *goal in trajectories):
            axis.add_patch(
                plt.Circle(env.goals[0] + 0.75, antmaze.REACHED, fill=False, color="black", zorder=5)
            )
        axis.set_title(title, fontsize=9)
        axis.set_aspect("equal")
        low, high = env.walls.min(0) + 1, env.walls.max(0) - 1
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axis.set_xlabel("x in m")
    axes[0, 0].set_ylabel("y in m")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(args: Args) -> None:
    """Play, draw, say how many got there. Raises ValueError and OSError for a bad flag or file."""
    for name in "trajectories", "episodes":
        if not 1 <= getattr(args, name) <= 100_000:
            raise ValueError(f"--{name} {getattr(args, name)}: expected 1 to 100,000")
    if args.out.suffix != ".png" or args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a file that ends in .png")
    ids = [load_policy(folder)[0] for folder in args.runs]
    if len(set(ids)) != 1 or not ids[0].startswith("antmaze-"):
        raise ValueError(
            f"the runs are of {', '.join(sorted(set(ids)))}; give runs of one AntMaze dataset"
        )
    env = dmg_iql.make_env(ids[0]).unwrapped
    data = recorded(dataset_file(ids[0]), args.trajectories)
    panels = [(f"{ids[0]}: {sum(success for _, success in data)} of {len(data)} see the goal", data)]
    with replacing(args.out) as part:
        part.touch()  # fails now rather than after the playing
        for folder in args.runs:
            episodes = played(folder, args.episodes)
            reached = sum(success for _, success, _ in episodes)
            name = folder.resolve().name.split("__")[1:2] or [folder.name]
            panels.append((f"{name[0]}: {reached} of {len(episodes)} reach it", episodes))
        draw(panels, env, part)
    print("\n".join(title for title, _ in panels), args.out, sep="\n")


if __name__ == "__main__":
    run(main, Args)
