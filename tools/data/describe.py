"""List the local datasets: size, returns, score beside D4RL's, and the file's hash; of AntMaze's, who gets where.

bash benchmark.sh datasets   # collects what is missing of the 21, then runs
python tools/describe_datasets.py --out docs/datasets.md
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import collect

import dmg_iql

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())["table2_offline"]
INTRODUCTION = """# Local datasets

The fifteen locomotion datasets, as `python tools/collect.py --env-id ...` makes them by default; `bash benchmark.sh
datasets` writes this page. Returns and scores are those of the whole episodes in a file, mean ± standard deviation over
episodes (the last episode of each policy's rows is cut to fit, and left out). Scores are on D4RL's scale: 0 is a random
policy, 100 an expert. But this is **not** D4RL's data: the policies are small, were trained for a short time, and
`expert` is the best one reached, so every level lies elsewhere than D4RL's of the same name.

The column *cloning D4RL's* is the nearest published number that can be given for D4RL's own dataset of that name: what
cloning it scores, from the DMG paper's Table 2. The mean scores of D4RL's datasets themselves are printed neither there
nor in the `d4rl` package, which has the ends of the scale only: a random and an expert policy's reference returns.
"""
MAZES = """
## AntMaze

Collected as D4RL did it, by an ant of our own (the header of `tools/collect.py` says in which points it departs). A
trajectory goes on for its whole time, so it can reach the place that it was sent to and see the evaluation goal
besides, or only one of them, or neither: an ant that has fallen on its back does not get up. *Reached*: came within
0.5 m of the place that it was sent to. *Saw the goal*: came within 0.5 m of the evaluation goal, which is when reward
and terminal are 1; *over a path of*: how long the shortest path to it is from where those began, in metres along the
cells (median, longest). *From the start*: how many of the trajectories that began in evaluation's start cell saw it.
The last trajectory is cut to fit, and not counted. A file is the same for any number of workers, but not on every
machine: on another one umaze's had 1,378 trajectories that saw the goal, and another hash.
"""


@dataclass
class Args:
    """Where the page goes."""

    out: Path | None = None
    """Markdown file to write; default: print the page"""


def describe(env_id: str) -> dict[str, object]:
    """Rows, whole episodes, returns and hash of a local dataset. Raises SystemExit where it has not been collected."""
    path = dmg_iql.find_dataset(env_id)
    with h5py.File(path) as file:
        rewards = file["rewards"][:].astype(np.float64)
        ends = np.flatnonzero(file["terminals"][:] | file["timeouts"][:])
        about = {key: str(value) for key, value in file.attrs.items()}
    returns = np.diff(np.concatenate([[0], np.cumsum(rewards)[ends]]))
    shares = np.linspace(0, len(rewards), len(collect.parts(env_id)) + 1).astype(int)[1:] - 1
    whole = ~np.isin(ends, shares)  # the last episode of each policy's share is cut to fit
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    policies = len(json.loads(about["policies"]))
    return {"rows": len(rewards), "returns": returns[whole], "policies": policies, "sha256": digest}


def maze_row(env_id: str) -> str:
    """The line of an AntMaze dataset. Raises SystemExit where it has not been collected."""
    path = dmg_iql.find_dataset(env_id)
    with h5py.File(path) as file:
        data = {key: file[key][:] for key in ("observations", "terminals", "timeouts", "infos/goal")}
    facts = collect.maze_facts(env_id, data)
    number, paths = facts["trajectories"], facts["paths"]
    share = [f"{facts[key]:,} ({100 * facts[key] / number:.0f} %)" for key in ("reached", "seen")]
    far = f"{np.median(paths):.0f}, {paths.max():.0f} m" if len(paths) else "-"
    cells = [env_id, f"{len(data['timeouts']):,}", f"{number:,}", *share, far]
    cells += [f"{facts['begun_seen']:,} of {facts['begun']:,}"]
    cells += [PAPER[env_id.replace("-local", "-v2")]["BC"], f"`{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`"]
    return f"| {' | '.join(map(str, cells))} |"


def page() -> str:
    """The page's text. Raises SystemExit where a dataset is missing."""
    columns = ("dataset", "rows", "episodes", "policies", "return", "score", "cloning D4RL's", "SHA-256")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    gym_ids, maze_ids = [[i for i in collect.LOCAL_IDS if i.startswith("antmaze-") == maze] for maze in (False, True)]
    for env_id in gym_ids:
        d4rl = env_id.replace("-local", "-v2")
        found = describe(env_id)
        returns = found["returns"]
        scores = dmg_iql.normalized_score(env_id, returns)
        lines.append(
            f"| {env_id} | {found['rows']:,} | {len(returns):,} | {found['policies']} | {returns.mean():,.1f} ± "
            f"{returns.std():,.1f} | {scores.mean():.1f} ± {scores.std():.1f} | {PAPER[d4rl]['BC']} | "
            f"`{found['sha256'][:12]}` |"
        )
    text = INTRODUCTION + "\n" + "\n".join(lines) + "\n"
    columns = ("dataset", "rows", "trajectories", "reached", "saw the goal", "over a path of", "from the start")
    columns += ("cloning D4RL's", "SHA-256")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(maze_row, maze_ids)]
    return (text + MAZES + "\n" + "\n".join(lines) + "\n").replace("| -0.0 ", "| 0.0 ")


def main(args: Args) -> None:
    """Print or write the page."""
    text = page()
    if args.out is None:
        print(text)
        return
    part = args.out.with_name(args.out.name + ".part")
    part.write_text(text)
    os.replace(part, args.out)
    print(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
