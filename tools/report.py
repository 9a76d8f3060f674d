"""From run folders to a table and learning curves.

    python tools/report.py runs/hopper-medium-local__quickstart__s0-1 --figure curve.png

For each run: the score on D4RL's scale at the last checkpoint and at the best one (chosen in hindsight), as mean and
sample standard deviation over seeds of each seed's mean over episodes, the number of seeds and iterations, and the
mean score of the episodes in the dataset itself.
"""

import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dmg_iql import normalized_score


@dataclass
class Args:
    """Which runs to report, and where to draw their learning curves."""

    runs: tyro.conf.Positional[list[Path]]
    """run folders"""
    figure: Path | None = None
    """PNG file to draw the learning curves into: one panel per dataset, shaded by the standard deviation over seeds"""


def read_run(folder: Path) -> dict:
    """A run's configuration and its scores [evaluations, seeds] by iteration. Raises SystemExit where it has none."""
    try:
        config = json.loads((folder / "config.json").read_text())
        with (folder / "eval.csv").open() as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {folder} is not a run folder ({error})") from None
    scores = defaultdict(lambda: defaultdict(list))
    for row in rows:
        scores[int(row["iteration"])][int(row["seed"])].append(float(row["score"]))
    if not scores:
        raise SystemExit(f"error: {folder} has no evaluation yet; run dmg_iql.py on it with --resume")
    curve = np.array([[np.mean(episodes) for episodes in seeds.values()] for seeds in scores.values()])
    done = (folder / "done").exists()
    return {"config": config, "iterations": np.array(list(scores)), "curve": curve, "complete": done}


def dataset_score(config: dict) -> float:
    """Mean score of the dataset's whole episodes; NaN where the file is no longer there."""
    if not Path(config["dataset"]).is_file():
        return float("nan")
    with h5py.File(config["dataset"]) as file:
        rewards, ends = file["rewards"][:].squeeze().astype(np.float64), file["terminals"][:].squeeze().astype(bool)
        ends = ends | file["timeouts"][:].squeeze().astype(bool) if "timeouts" in file else ends
    sums = np.cumsum(rewards)[np.flatnonzero(ends)]
    return float(normalized_score(config["env_id"], np.diff(sums, prepend=0)).mean())


def show(scores: np.ndarray) -> str:
    """Mean ± sample standard deviation over seeds."""
    return f"{scores.mean():.1f}" + (f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else "")


def table(runs: list[dict]) -> str:
    """The Markdown table."""
    lines = ["| dataset | setting | last score | best score (at, in hindsight) | dataset's mean | seeds × iterations |"]
    lines.append("|---|---|---|---|---|---|")
    for run in runs:
        config, curve = run["config"], run["curve"]
        best = np.nan_to_num(curve.mean(1), nan=-np.inf).argmax()
        ran = f"{curve.shape[1]} × {run['iterations'][-1]:,}" + ("" if run["complete"] else " (unfinished)")
        lines.append(
            f"| {config['env_id']} | {config['exp_name']} | {show(curve[-1])} | {show(curve[best])} "
            f"({run['iterations'][best]:,}) | {dataset_score(config):.1f} | {ran} |"
        )
    return "\n".join(lines)


def draw(runs: list[dict], path: Path) -> None:
    """Learning curves, one panel per dataset; the dashed line is the dataset's own mean score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    datasets = list(dict.fromkeys(run["config"]["env_id"] for run in runs))
    figure, axes = plt.subplots(1, len(datasets), figsize=(1 + 4 * len(datasets), 3.4), squeeze=False)
    for axis, env_id in zip(axes[0], datasets):
        for run in (run for run in runs if run["config"]["env_id"] == env_id):
            mean, spread = run["curve"].mean(1), run["curve"].std(1, ddof=1) if run["curve"].shape[1] > 1 else 0
            axis.plot(run["iterations"], mean, marker="o", markersize=3, label=run["config"]["exp_name"])
            axis.fill_between(run["iterations"], mean - spread, mean + spread, alpha=0.2)
            own = dataset_score(run["config"])
        axis.axhline(own, color="0.4", linestyle="--", linewidth=1, label="dataset's mean")
        axis.set(title=env_id, xlabel="iterations", ylim=(min(0, axis.get_ylim()[0]), None))
        axis.set_xlim(0, None)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("score on D4RL's scale")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"learning curves: {path}")


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    all_runs = sorted(map(read_run, arguments.runs), key=lambda run: run["config"]["env_id"])  # datasets in turn
    print(table(all_runs))
    if arguments.figure:
        draw(all_runs, arguments.figure)
