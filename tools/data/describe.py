"""What is in a dataset file (get.py --describe FILE), and the page of the local datasets:

python tools/data/describe.py --out reports/datasets.md
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import collect
from common import LOCAL_IDS, LOCAL_ROWS, ROOT, dataset_file, replacing, run

import dmg_iql

NEEDED = ("observations", "actions", "rewards", "terminals")
COLUMNS = (*NEEDED, "timeouts", "truncations", "next_observations")
VECTORS = ("observations", "actions", "next_observations")
JUMP = 10  # the state jumps where it misses its prediction by this many times the usual error
INTRODUCTION = f"""# Local datasets

The fifteen locomotion datasets, as `python tools/data/collect.py --env-id ...` makes them (by default
{LOCAL_ROWS:,} rows each); `python tools/data/describe.py` prints this page. Returns and scores are
those of the whole episodes in a file, mean ± standard deviation over episodes (the last episode of each
policy's rows is cut to fit, and left out). Scores are on D4RL's scale: 0 is a random policy, 100 an
expert. But this is **not** D4RL's data: the policies are small, were trained for a short time, and
`expert` is the best one reached, so every level lies elsewhere than D4RL's of the same name.

The column *cloning D4RL's* is the nearest published number that can be given for D4RL's own dataset of
that name: what cloning it scores, from the DMG paper's Table 2.
"""
MAZES = """
## AntMaze

Collected as D4RL did it, by an ant of our own (the header of `tools/data/collect.py` says in which
points it departs). A trajectory goes on for its whole time, so it can reach the place that it was sent
to and see the evaluation goal besides, or only one of them, or neither: an ant that has fallen on its
back does not get up. *Reached*: came within 0.5 m of the place that it was sent to. *Saw the goal*:
came within 0.5 m of the evaluation goal, which is when reward and terminal are 1; *over a path of*: how
long the shortest path to it is from where those began, in metres along the cells (median, longest).
*From the start*: how many of the trajectories that began in evaluation's start cell saw it. The last
trajectory is cut to fit, and not counted. A file is the same for any number of workers, but not on
every machine: on another one umaze's had 1,378 trajectories that saw the goal, and another hash.
"""


# ---- One file -----------------------------------------------------------------------------------------
def read(
    path: Path, other: dict[str, tuple[str, ...]] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The columns of a dataset that the scripts know, one number or one vector a row, and its
    attributes. `other` has the names under which to look for a column, if not under its own. Raises
    OSError for a file that cannot be read and ValueError for one that is no dataset."""
    if not path.is_file():
        raise OSError(f"there is no file {path}")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is no HDF5 file")
    data = {}
    with h5py.File(path, "r", locking=False) as file:
        names = [name for name in file if isinstance(file[name], h5py.Dataset) and file[name].shape]
        for column, candidates in ({name: (name,) for name in COLUMNS} | (other or {})).items():
            found = [name for name in candidates if name in names]
            if found:
                data[column] = file[found[0]][:]
        attrs = dict(file.attrs)
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(names) or 'nothing'}")
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: its columns should have the same number of rows, and have {lengths}")
    if not lengths["rewards"]:
        raise ValueError(f"{path} has no rows")
    for name, values in data.items():
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name} holds {values.dtype}, not numbers")
        if name in VECTORS:
            data[name] = values.reshape(len(values), -1)
        elif values.size == len(values):  # (n, 1), too
            data[name] = values.reshape(-1)
    return data, attrs


def transitions(data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that are a transition [n], the states that follow them [n, state] by the scripts' rule, which
    is the next row where the file has timeouts, and whether the rows go on, so that it counts [n]."""
    go_on = data["terminals"] == 0
    if "timeouts" in data:
        rows = np.flatnonzero(data["timeouts"][:-1] == 0)
        return rows, data["observations"][rows + 1], go_on[rows]
    return np.arange(len(go_on)), data.get("next_observations", data["observations"]), go_on


def episode_ends(data: dict[str, np.ndarray], env_id: str) -> tuple[np.ndarray, str]:
    """Where episodes end, bool [n], and the columns that say so. AntMaze's go on after the goal."""
    ends = data["terminals"] != 0
    for name in ("timeouts", "truncations"):
        if name in data:
            if env_id.startswith("antmaze-") and data[name].any():
                return data[name] != 0, name
            return ends | (data[name] != 0), f"terminals and {name}"
    if "next_observations" not in data:
        return ends, "terminals"
    breaks = (data["next_observations"][:-1] != data["observations"][1:]).any(1)
    return ends | np.append(breaks, True), "terminals, and where next_observations is not the next row"


def whole_episodes(
    data: dict[str, np.ndarray], attrs: dict[str, object], env_id: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, lengths and last rows of a file's whole episodes. In a local dataset, the last episode of
    each policy's share of the rows is cut to fit. AntMaze's return is 1 where the goal is seen."""
    ends = np.flatnonzero(episode_ends(data, env_id)[0])
    returns = np.diff(np.cumsum(data["rewards"].astype(np.float64))[ends], prepend=0.0)
    lengths = np.diff(ends, prepend=-1)
    if env_id.startswith("antmaze-"):
        returns = np.minimum(returns, 1)
    whole = np.ones(len(ends), bool)
    if "policies" in attrs:
        shares = len(json.loads(attrs["policies"]))
        whole = ~np.isin(ends, np.linspace(0, len(data["rewards"]), shares + 1).astype(int) - 1)
    return returns[whole], lengths[whole], ends[whole]


def reference(attrs: dict[str, object], env_id: str) -> tuple[float, float]:
    """The returns that score 0 and 100, as the scripts have them."""
    _, low, high = dmg_iql.ROBOTS.get(env_id.split("-")[0], ("", 0.0, 100.0))
    return float(attrs.get("ref_min_score", low)), float(attrs.get("ref_max_score", high))


def uncut(s: np.ndarray) -> np.ndarray:
    """Whether a state says it all, bool [n]. Hopper's and walker2d's velocities are cut at 10."""
    return (np.abs(s) != 10).all(1)


def surprises(s: np.ndarray, a: np.ndarray, s2: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each s2 lies from what least squares make of s and a [n], in the dimension where it is
    farthest, in units of the error that 99 % of that dimension's rows stay below, 0 where s is cut; and
    the share of the variance of s2 that this explains in the dimension where it explains most."""
    x = np.column_stack([s, a])
    x = (x - x.mean(0, dtype=np.float64)) / (x.std(0, dtype=np.float64) + 1e-9)
    few = range(
        x.shape[1] if x.shape[1] <= 25 else 0
    )  # products of columns, as a step is nearly quadratic

    def features(rows: np.ndarray | slice) -> np.ndarray:
        z = x[rows]
        return np.hstack([np.ones((len(z), 1)), z, *(z[:, i : i + 1] * z[:, i:] for i in few)])

    some = np.random.default_rng(0).permutation(len(x))[:20_000]
    fit, *_ = np.linalg.lstsq(features(some), s2[some].astype(np.float64))
    blocks = [slice(i, i + 5_000) for i in range(0, len(x), 5_000)]
    predicted = np.concatenate([features(block) @ fit for block in blocks])
    errors = np.abs(s2 - np.clip(predicted, s2.min(0), s2.max(0)))  # as simulators cut velocities
    spread = s2[some].std(0, dtype=np.float64)
    explained = 1 - np.square(errors[some] / np.maximum(spread, 1e-12)).mean(0)
    usual = np.quantile(errors[some], 0.99, axis=0) + 1e-6 * spread + 1e-12
    return uncut(s) * (errors / usual).max(1), float(explained[spread > 1e-12].max(initial=0))


def simulator_error(env_id: str, s: np.ndarray, a: np.ndarray, s2: np.ndarray) -> float | None:
    """The median over 100 transitions of how far the simulator's next state lies from s2, as a share of
    the step from s to s2: about 0 for the simulator's own data, about 1 for that of another robot or
    for rows in no order. None for a simulator that cannot be put into a state that is an observation.
    Raises SystemExit where there is no simulator."""
    env = dmg_iql.make_env(env_id).unwrapped
    if not isinstance(env, MujocoEnv):
        return None
    observe = getattr(env, "_get_obs", getattr(env, "_observation", None))
    start, _ = env.reset(seed=0)
    if observe is None or not isinstance(start, np.ndarray) or start.shape != s[0].shape:
        return None
    hidden = env.model.nq + env.model.nv - len(start)  # a robot's place, which is no part of the state

    def put(state: np.ndarray) -> bool:  # whether the simulator can be put there
        positions = np.concatenate([np.zeros(hidden), state])
        env.set_state(positions[: env.model.nq], positions[env.model.nq :])
        return np.allclose(observe(), state, rtol=1e-3, atol=1e-3)

    if not 0 <= hidden <= 2 or not put(start):
        return None
    known = np.flatnonzero(uncut(s))
    errors = []
    for i in np.random.default_rng(0).choice(known if len(known) else len(s), 100):
        error = np.inf
        if put(s[i].astype(np.float64)):
            try:
                error = np.linalg.norm(env.step(a[i])[0] - s2[i]) / (np.linalg.norm(s2[i] - s[i]) + 1e-9)
            except RuntimeError:  # an unstable simulation
                pass
        errors.append(error)
    return float(np.median(errors))


def starts_anew(env_id: str, states: np.ndarray) -> np.ndarray:
    """Whether the simulator could start from these states, bool [n]: they lie within the range of 100
    resets, or as far outside as half of it. Raises SystemExit where there is no simulator."""
    env = dmg_iql.make_env(env_id)
    resets = np.stack([env.reset(seed=seed)[0] for seed in range(100)])
    low, high = resets.min(0), resets.max(0)
    reach = (high - low) / 2 + 1e-5
    return ((states > low - reach) & (states < high + reach)).all(1)


def table(names: list[str], columns: np.ndarray) -> list[str]:
    """Lines with smallest, mean, standard deviation and largest of each of the columns [n, k]."""
    lines = [f"  {'':<12}{'smallest':>12}{'mean':>12}{'sd':>12}{'largest':>12}"]
    columns = columns.astype(np.float64)
    for name, *numbers in zip(names, columns.min(0), columns.mean(0), columns.std(0), columns.max(0)):
        lines.append(f"  {name:<12}" + "".join(f"{number:>12.5g}" for number in numbers))
    return lines


def text(path: Path, env_id: str | None) -> str:
    """The description of a file. Raises OSError, ValueError or SystemExit for one that is no dataset."""
    data, attrs = read(path)
    env_id = env_id or str(attrs.get("env_id", ""))
    n = len(data["rewards"])
    lines = [f"{path}: {n:,} rows, {path.stat().st_size / 1e6:.1f} MB" + f", {env_id}" * bool(env_id)]
    for name, values in data.items():
        kind = f"{values.dtype} {list(values.shape[1:]) or ''}".strip()
        holes = 0 if values.dtype.kind in "bui" else (~np.isfinite(values)).sum()
        lines.append(
            f"  {name:<18}{kind}" + f", {holes:,} of its numbers are NaN or infinite" * bool(holes)
        )
    lines += [f"  {name} = {str(value)[:80]}" for name, value in attrs.items()]

    if "timeouts" not in data and "next_observations" not in data:
        lines.append(
            "transitions unknown: neither timeouts nor next_observations (get.py --fix may know them)"
        )
    rows, s2, go_on = transitions(data)
    rule = "the next row" if "timeouts" in data else "next_observations"
    terminal = (data["terminals"] != 0).mean()
    lines.append(f"transitions {len(rows):,}, s' is {rule}; {terminal:.3%} of all rows terminal")
    ends, columns = episode_ends(data, env_id)
    returns, lengths, _ = whole_episodes(data, attrs, env_id)
    if ends.mean() > 0.5:
        lines.append("episodes unknown: the rows are in no order")
    elif len(returns):
        lines.append(
            f"episodes    {len(returns):,} whole ones, by {columns}; "
            f"{lengths.min():,} to {lengths.max():,} rows, median {np.median(lengths):,.0f}"
        )
        low, high = reference(attrs, env_id)
        scores = 100 * (returns - low) / (high - low)
        for name, values in (("return", returns), ("score", scores)):
            lines.append(
                f"{name:<12}{values.mean():,.1f} ± {values.std():,.1f}, "
                f"from {values.min():,.1f} to {values.max():,.1f}"
            )
        lines[-1] += f" (0 is a return of {low:,.1f}, 100 one of {high:,.1f})"
    else:
        lines.append("episodes    none that ends")
    rows, s2 = rows[go_on], s2[go_on]
    s, a = data["observations"][rows], data["actions"][rows]
    if len(s) and all(np.isfinite(values).all() for values in (s, a, s2)):
        far, _ = surprises(s, a, s2)
        jumps = rows[far > JUMP]
        where = f" after rows {', '.join(map(str, jumps[:5]))}" + ", ..." * (len(jumps) > 5)
        if env_id and len(jumps):
            where += f"; {starts_anew(env_id, s2[far > JUMP]).sum():,} to where the simulator starts"
        lines.append(f"jumps       {len(jumps):,} inside episodes" + where * bool(len(jumps)))
        error = simulator_error(env_id, s, a, s2) if env_id else None
        if error is not None:
            verdict = "its own data" if error < 0.01 else "NOT its data" if error > 0.5 else "nearly"
            lines.append(
                f"simulator   misses the next state by {error:.2%} of the step (median): {verdict}"
            )
    numbers = [data["rewards"].reshape(-1, 1), data["actions"], data["observations"]]
    names = ["reward"] + [f"{kind} {i}" for kind in ("action", "state") for i in range(1000)]
    names = names[: 1 + a.shape[1]] + names[1001 : 1001 + s.shape[1]]
    return "\n".join(lines + table(names, np.hstack(numbers)))


def draw(path: Path, env_id: str | None, out: Path) -> None:
    """A picture of a file: the return of its episodes in their order, and where its states lie."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data, attrs = read(path)
    returns, _, last = whole_episodes(data, attrs, env_id or str(attrs.get("env_id", "")))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    left.plot(last, returns, ".", markersize=3)
    left.set(title=path.name, xlabel="row", ylabel="return of the episode that ends there")
    states = data["observations"].astype(np.float64)
    low, quarter, middle, three, high = np.quantile(states, [0, 0.25, 0.5, 0.75, 1], axis=0)
    place = np.arange(states.shape[1])
    right.vlines(place, low, high, color="0.7")
    right.vlines(place, quarter, three, linewidth=4)
    right.plot(place, middle, "k_")
    right.set(title="states: median, quartiles, all", xlabel="dimension")
    with replacing(out) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)


# ---- The page of the local datasets -------------------------------------------------------------------
@dataclass
class Args:
    """Where the page goes."""

    out: Path | None = None
    """Markdown file to write; default: print the page"""


def rows_of(number: int) -> str:
    """A number of rows, marked where it is not what collect.py makes by default."""
    return f"{number:,}" if number == LOCAL_ROWS else f"{number:,} (a trial: not {LOCAL_ROWS:,})"


def robot_row(env_id: str, path: Path, cloning: str) -> str:
    """The line of a locomotion dataset."""
    data, attrs = read(path)
    returns, *_ = whole_episodes(data, attrs, env_id)
    low, high = reference(attrs, env_id)
    scores = 100 * (returns - low) / (high - low)
    cells = [env_id, rows_of(len(data["rewards"])), f"{len(returns):,}"]
    cells += [str(len(json.loads(attrs["policies"])))]
    cells += [f"{values.mean():,.1f} ± {values.std():,.1f}" for values in (returns, scores)]
    cells += [cloning, f"`{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`"]
    return f"| {' | '.join(cells)} |"


def maze_row(env_id: str, path: Path, cloning: str) -> str:
    """The line of an AntMaze dataset."""
    with h5py.File(path, "r", locking=False) as file:
        data = {key: file[key][:] for key in ("observations", "terminals", "timeouts", "infos/goal")}
    facts = collect.maze_facts(env_id, data)
    number, paths = facts["trajectories"], facts["paths"]
    cells = [env_id, rows_of(len(data["timeouts"])), f"{number:,}"]
    cells += [
        f"{facts[key]:,} ({100 * facts[key] / max(number, 1):.0f} %)" for key in ("reached", "seen")
    ]
    cells += [f"{np.median(paths):.0f}, {paths.max():.0f} m" if len(paths) else "-"]
    cells += [f"{facts['begun_seen']:,} of {facts['begun']:,}"]
    cells += [cloning, f"`{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`"]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The page's text, with those of the local datasets that are there. Raises SystemExit for a file
    that is none."""
    paper = json.loads((ROOT / "tools/paper.json").read_text("utf-8"))["table2_offline"]
    robots = ["dataset", "rows", "episodes", "policies", "return", "score", "cloning D4RL's", "SHA-256"]
    mazes = ["dataset", "rows", "trajectories", "reached", "saw the goal", "over a path of"]
    mazes += ["from the start", "cloning D4RL's", "SHA-256"]
    found = []
    for columns, row, maze in ((robots, robot_row, False), (mazes, maze_row, True)):
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for env_id in LOCAL_IDS:
            path = dataset_file(env_id)
            if env_id.startswith("antmaze-") == maze and path.exists():
                with dmg_iql.blame(f"{path} is no local dataset"):
                    lines.append(row(env_id, path, str(paper[env_id.replace("-local", "-v2")]["BC"])))
        found.append("\n".join(lines) + "\n")
    return (INTRODUCTION + "\n" + found[0] + MAZES + "\n" + found[1]).replace("| -0.0 ", "| 0.0 ")


def main(args: Args) -> None:
    """Print or write the page."""
    words = page()
    if args.out is None:
        print(words)
        return
    with replacing(args.out) as part:
        part.write_text(words, "utf-8")
    print(args.out)


if __name__ == "__main__":
    run(main, Args)
