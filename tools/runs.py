"""Run folders: scores, logs, which seeds diverged, and the statistics that tools/report.py prints."""

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import common
import h5py
import numpy as np
from scipy import stats
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

import dmg_iql

HEADER = "iteration,seed,episode,return,length,score"  # of eval.csv
# What a report needs of config.json: these settings, and counts of 1 and more.
TYPES = {"env_id": str, "exp_name": str, "script": str, "seed": int, "rows": int, "gamma": int | float}
TYPES |= dict.fromkeys(("dataset_path", "dataset_sha256", "checkpoint"), str | None)
COUNTS = ("num_seeds", "eval_episodes", "iterations")
# What may differ between runs whose seeds are put together.
FREE = dmg_iql.MAY_CHANGE | {"resume", "seed", "num_seeds", "exp_name", "checkpoint"}


@dataclass(eq=False)
class Run:
    """A run, or several whose seeds are put together."""

    folder: Path
    config: dict
    iterations: np.ndarray  # [evaluations]; at 0 a fine-tuned run evaluates the end of its offline phase
    hours: np.ndarray  # [jobs], wall clock from each start to its last log; NaN: no TensorBoard events
    seeds: np.ndarray
    curve: np.ndarray  # [evaluations, seeds]: mean score of the episodes, NaN if one has no score
    q: np.ndarray  # [seeds]: mean Q at the last log
    diverged: np.ndarray  # [seeds]

    @property
    def last(self) -> np.ndarray:
        """[seeds]: score at the last evaluation."""
        return self.curve[-1]

    @property
    def complete(self) -> bool:
        """Whether the evaluation that ends the run is there."""
        return bool(self.iterations[-1] == self.config["iterations"])

    @property
    def online(self) -> bool:
        """Whether it is a fine-tuned run."""
        return self.config["script"] == "dmg_finetune"


def finite(values: np.ndarray) -> np.ndarray:
    """Those of the values that are finite, flat; one NaN where none is."""
    kept = values[np.isfinite(values)]
    return kept if len(kept) else np.array([np.nan])


# ---- Datasets -----------------------------------------------------------------------------------------
@functools.cache
def read_dataset(env_id: str, path: str | None, sha256: str | None) -> tuple[float, float]:
    """A dataset's mean score over its episodes, a cut last one too, and its largest |reward|; or NaN.
    Only a file with this SHA-256 counts: the one at `path`, else the one where datasets lie here."""
    for place in (path, common.dataset_file(env_id)):
        try:
            with open(place or os.devnull, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    continue
            with h5py.File(place, locking=False) as file:
                rewards = file["rewards"][:].ravel().astype(np.float64)
                ends = file["terminals"][:].ravel() != 0
                limits = file["timeouts"][:].ravel() != 0 if "timeouts" in file else None
                attrs = dict(file.attrs)
        except (OSError, KeyError):  # gone, not readable, or no dataset
            continue
        largest = float(np.abs(rewards).max(initial=0))
        if limits is None:  # transitions in any order, so that there are no episodes
            return np.nan, largest
        # AntMaze's episodes go on after the goal: the score is the share of them that see it.
        maze = env_id.startswith("antmaze-")
        ends = limits if maze and limits.any() else ends | limits
        returns = np.diff(np.cumsum(rewards)[ends], prepend=0)
        returns = np.minimum(returns, 1) if maze else returns
        _, low, high = dmg_iql.ROBOTS.get(env_id.split("-")[0], ("", 0.0, 100.0))
        low, high = attrs.get("ref_min_score", low), attrs.get("ref_max_score", high)
        mean = returns.mean() if len(returns) else np.nan
        return float(100 * (mean - low) / (high - low)), largest
    return np.nan, np.nan


def dataset_facts(config: dict) -> tuple[float, float]:
    """Mean score and largest |reward| of the dataset of a run, NaN where they are not known; AntMaze's
    reward is at most 1."""
    mean, largest = read_dataset(config["env_id"], config["dataset_path"], config["dataset_sha256"])
    maze = config["env_id"].startswith("antmaze-") or config.get("antmaze_reward")
    return mean, 1.0 if maze else largest


@functools.cache
def d4rl_sha256(env_id: str) -> str | None:
    """SHA-256 of D4RL's file, None where it is not known."""
    files = json.loads((common.ROOT / "tools/data/d4rl_files.json").read_text("utf-8"))["files"]
    return (files.get(common.dataset_file(env_id).name) or {}).get("sha256")


def kind(config: dict) -> str:
    """Beside which scores a run's can stand: "d4rl", "local", or "own" (of another task, or of a file
    that is not D4RL's)."""
    env_id, sha256 = config["env_id"], config["dataset_sha256"]
    if env_id in common.LOCAL_IDS:
        return "local"
    if env_id in common.D4RL_IDS and (sha256 is None or d4rl_sha256(env_id) in (sha256, None)):
        return "d4rl"
    return "own"


def remarks(runs: list[Run]) -> list[str]:
    """What a reader has to know about the data and the logs of these runs, a line for each."""
    lines, files = [], defaultdict(set)
    for run in runs:
        env_id, sha256, rows = (run.config[key] for key in ("env_id", "dataset_sha256", "rows"))
        if np.isnan(run.hours).any():
            lines.append(f"{run.folder}: no TensorBoard events; only its scores can show divergence")
        if sha256 is None:  # from scratch
            continue
        files[env_id].add(sha256[:12])
        if np.isnan(read_dataset(env_id, run.config["dataset_path"], sha256)[1]):
            bounded = np.isfinite(dataset_facts(run.config)[1])
            lost = "its mean is left out" if bounded else "its mean and the bound on Q are left out"
            lines.append(f"{env_id}: no file with SHA-256 {sha256[:12]} is here; {lost}")
        # Less than 1 % of a file's rows end an episode by its time limit, and are no transitions.
        if env_id in common.LOCAL_IDS and not 0.99 * common.LOCAL_ROWS < rows <= common.LOCAL_ROWS:
            lines.append(f"{env_id}: {rows:,} rows, where local datasets have {common.LOCAL_ROWS:,}")
        if env_id in common.D4RL_IDS and kind(run.config) == "own":
            lines.append(f"{env_id}: the file with SHA-256 {sha256[:12]} is not D4RL's")
        if env_id in common.D4RL_IDS and d4rl_sha256(env_id) is None:
            lines.append(f"{env_id}: not checked, since the SHA-256 of D4RL's file is not known")
    for env_id, digests in files.items():
        if len(digests) > 1:
            lines.append(f"{env_id}: the runs have different files ({', '.join(sorted(digests))})")
    return list(dict.fromkeys(lines))


# ---- Run folders --------------------------------------------------------------------------------------
def read_config(folder: Path) -> dict:
    """The settings of a run. Raises OSError or ValueError where they are not there or not a run's."""
    if not os.path.exists(folder / "config.json"):
        raise ValueError("no run folder, it has no config.json")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"config.json is damaged: {error}") from None
    if not isinstance(config, dict):
        raise ValueError("config.json does not hold a run's settings")
    for key in (*TYPES, *COUNTS):
        value = config.get(key)
        if not isinstance(value, TYPES.get(key, int)) or (key in COUNTS and value < 1):
            raise ValueError(f"config.json says {key} = {json.dumps(value)[:40]}")
    return config


def offline_iterations(checkpoint: Path, beside: Path) -> int | None:
    """Iterations of the run that a fine-tuned one began with, None if it is gone, also from `beside`."""
    folder = checkpoint.parent if checkpoint.name == "checkpoint.pt" else checkpoint
    for place in (folder, beside / folder.name):
        with contextlib.suppress(OSError, ValueError):
            return read_config(place)["iterations"]
    return None


def read_scores(path: Path, config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Iterations [evaluations] and scores [evaluations, seeds] of eval.csv, without a cut line or a cut
    evaluation. Raises OSError or ValueError where the file is damaged or has no evaluation."""
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else HEADER
    header, *lines = text.split("\n")
    if header != HEADER:
        raise ValueError(f"eval.csv does not begin with {HEADER}")
    seeds, episodes = config["num_seeds"], config["eval_episodes"]
    count = len(lines[:-1]) // (seeds * episodes)  # the last line has no end: it is empty or cut
    if count == 0:
        raise ValueError("no evaluation yet")
    try:
        rows = np.loadtxt(lines[: count * seeds * episodes], delimiter=",", comments=None)
        rows = rows.reshape(count, seeds, episodes, 6)
    except ValueError as error:
        raise ValueError(f"eval.csv is damaged: {error}") from None
    iteration, seed, episode, *_, score = np.moveaxis(rows, -1, 0)
    iterations = iteration[:, 0, 0]
    right = iteration == iterations[:, None, None]
    right &= seed == config["seed"] + np.arange(seeds)[:, None]
    right &= episode == np.arange(episodes)
    if not right.all() or (np.diff(iterations) <= 0).any():
        raise ValueError("eval.csv is damaged: its rows are not all episodes of all seeds in turn")
    return iterations.astype(int), score.mean(2)


def read_events(folder: Path) -> tuple[dict[str, dict[int, float]], float]:
    """What a seed logged to TensorBoard, {tag: {iteration: value}}, and the hours it took, NaN without
    events. Each start of a run writes a file, and makes again what came after its checkpoint."""
    logged, seconds = defaultdict(dict), []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        times = []
        for event in LegacyEventFileLoader(str(path)).Load():
            times.append(event.wall_time)
            if event.session_log.status == SessionLog.START:
                for tag, values in logged.items():
                    logged[tag] = {at: value for at, value in values.items() if at < event.step}
            for value in event.summary.value:
                logged[value.tag][event.step] = value.simple_value
        seconds += [times[-1] - times[0]] if times else []
    return logged, sum(seconds) / 3600 if seconds else np.nan


def diverged(logged: dict[str, dict[int, float]], config: dict) -> bool:
    """Whether a logged loss, value or score is not finite, or a mean |Q| exceeds 100 max|r| / (1 - γ),
    with the dataset's max|r|; where that is not known, the bound is left out."""
    tags = [tag for tag in logged if not tag.startswith("charts/")]
    _, largest = dataset_facts(config)
    q = np.array(list(logged.get("losses/q_values", {}).values()))
    exceeds = np.abs(q) * (1 - config["gamma"]) > 100 * largest
    return bool(exceeds.any()) or not all(np.isfinite(list(logged[tag].values())).all() for tag in tags)


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises OSError or ValueError where it is damaged or has no evaluation yet."""
    config = read_config(folder)
    if config.get("checkpoint"):
        config["offline_iterations"] = offline_iterations(Path(config["checkpoint"]), folder.parent)
    iterations, curve = read_scores(folder / "eval.csv", config)
    seeds = config["seed"] + np.arange(config["num_seeds"])
    q, hours, lost = [], [], []
    for seed, scores in zip(seeds, curve.T):
        logged, time = read_events(folder / f"s{seed}")
        q.append([np.nan, *logged.get("losses/q_values", {}).values()][-1])
        hours.append(time)
        lost.append(diverged(logged, config) or not np.isfinite(scores).all())
    job = np.array([max(hours)])
    return Run(folder, config, iterations, job, seeds, curve, np.array(q), np.array(lost))


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """The runs in these folders, each a run folder or one that holds them, by dataset; and the folders
    that cannot be read, which are named on stderr."""
    runs, unread = {}, []
    for path in paths:
        inside = [] if os.path.exists(path / "config.json") else path.glob("**/config.json")
        for folder in sorted(config.parent for config in inside) or [path]:
            try:
                runs[folder] = read_run(folder)
            except (OSError, ValueError, OverflowError) as error:
                unread.append(folder)
                print(f"{folder}: {' '.join(str(error).split())}", file=sys.stderr)
    return sorted(runs.values(), key=lambda run: run.config["env_id"]), unread


# ---- Runs put together --------------------------------------------------------------------------------
def differing(config: dict, wanted: dict) -> str:
    """What a run's settings have other than wanted."""
    other = [key for key in wanted if config.get(key) != wanted[key]]
    return "; ".join(f"{key} {config.get(key)}, not {wanted[key]}" for key in other)


def bound(config: dict) -> dict:
    """What has to be the same in runs that are put together."""
    return {key: value for key, value in config.items() if key not in FREE}


def join(runs: list[Run]) -> Run:
    """One run with the seeds of all of them."""
    names = ("hours", "seeds", "curve", "q", "diverged")
    joined = {name: np.concatenate([getattr(run, name) for run in runs], axis=-1) for name in names}
    return replace(runs[0], **joined)


def together(runs: list[Run]) -> list[Run]:
    """The runs, those of one name put together that are complete, have no seed in common and differ in
    nothing that changes results."""
    groups = []
    for run in runs:
        for group in groups:
            first = group[0].config
            same = bound(first) == bound(run.config) and first["exp_name"] == run.config["exp_name"]
            seeds = {seed for other in group for seed in other.seeds}
            if same and seeds.isdisjoint(run.seeds) and all(r.complete for r in (*group, run)):
                group.append(run)
                break
        else:
            groups.append([run])
    return [join(group) for group in groups]


@dataclass
class Cell:
    """A setting on a dataset: its complete runs put together, if there are any, and what is missing."""

    run: Run | None
    note: str


def read_cell(run_dir: Path, env_id: str, name: str, seeds: int, wanted: dict) -> Cell:
    """The runs of a dataset and a setting with seeds below `seeds`, those of more seeds first, no seed
    twice. One that is cut short, cannot be read or has other settings than `wanted` does not count."""
    found = {}
    for folder in run_dir.glob(f"{env_id}__{name}__s*-*"):
        first, _, last = folder.name.rpartition("__s")[2].partition("-")
        if first.isdigit() and last.isdigit() and int(last) < seeds:
            found[folder] = set(range(int(first), int(last) + 1))
    chosen, there = [], set()
    for folder in sorted(found, key=lambda folder: (-len(found[folder]), folder.name)):
        if there.isdisjoint(found[folder]):
            chosen.append(folder)
            there |= found[folder]
    runs, unread = read_runs(sorted(chosen))
    kept, notes = [], ["cannot be read"] if unread else []
    for run in runs:
        if other := differing(run.config, {key: wanted[key] for key in wanted if key not in FREE}):
            notes.append(f"other settings: {other}")
        elif env_id in common.D4RL_IDS and kind(run.config) != "d4rl":
            notes.append("not D4RL's file")
        elif not run.complete:
            notes.append(f"cut short at {run.iterations[-1]:,}")
        else:
            kept.append(run)
    joined = together(kept)
    if len(joined) > 1:
        one, other = joined[:2]
        why = differing(bound(one.config), bound(other.config))
        return Cell(None, f"{one.folder.name} and {other.folder.name} do not go together: {why}")
    count = sum(len(run.seeds) for run in kept)
    if kept and count < seeds:
        notes.append(f"{count} of {seeds} seeds")
    if not found:
        notes.append("missing")
    return Cell(joined[0] if joined else None, "; ".join(dict.fromkeys(notes)))


# ---- Statistics ---------------------------------------------------------------------------------------
def mean_sd(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of the values that are finite, NaN where there are too few."""
    kept = finite(values)
    return float(kept.mean()), float(kept.std(ddof=1)) if len(kept) > 1 else np.nan


def iqm(samples: list[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean of all scores [datasets][seeds], and its 95 % percentile-bootstrap interval,
    stratified by dataset. The interval is NaN where a dataset has one seed."""

    def statistic(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Mean of the middle half of all datasets' scores together."""
        return stats.trim_mean(np.concatenate(rows, axis=axis), 0.25, axis=axis)

    point = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return point, np.nan, np.nan
    rng = np.random.default_rng(0)
    options = dict(n_resamples=10_000, method="percentile", vectorized=True, rng=rng)
    low, high = stats.bootstrap(samples, statistic, **options).confidence_interval
    return point, float(low), float(high)
