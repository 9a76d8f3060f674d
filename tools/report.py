"""From run folders to tables and figures.

    python tools/report.py runs/hopper-medium-local__quickstart__s0-1 --figure curve.png
    python tools/report.py runs                                  # all runs in a folder
    python tools/report.py runs --name table2 --dataset d4rl     # what `bash benchmark.sh table2` writes at its end

Without --name, one line per run: the score on D4RL's scale at the last checkpoint and at the best one (chosen in
hindsight), as mean and sample standard deviation over seeds of each seed's mean over episodes, the number of seeds
and iterations, and the mean score of the episodes in the dataset itself. Complete runs of one name that differ in
nothing but their seeds, and in the machine, are one line, and one curve.

With --name, a table or figure of the paper in reports/: Markdown and CSV in the paper's layout with the paper's
number beside ours, the same for every seed by itself, and PNG and SVG for figures. All numbers come from the run
folders' eval.csv, metrics.csv and config.json, the paper's from tools/paper.json.
"""

import contextlib
import csv
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import tyro
from scipy import stats

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from experiments import EXPERIMENTS, Job, Setting, resolved

from dmg_iql import normalized_score

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())
EXIT = "exit status "  # what benchmark.py writes at the end of a job's log, before the number
MACHINE = set("run_dir dataset_path dataset save_every resume overwrite device cudagraphs threads eval_workers".split())
ABOUT = set("device_name torch numpy mujoco gymnasium script_sha256".split())  # provenance: may differ within a cell
FREE = MACHINE | ABOUT | {"seed", "num_seeds", "exp_name"}  # all other settings may not
LENGTHS = set("iterations online_steps warmup_steps eval_every eval_episodes log_every".split())


@dataclass
class Args:
    """Which runs to report, and as what."""

    runs: tyro.conf.Positional[list[Path]]
    """run folders, or folders that hold them; with --name, the one folder that holds them"""
    figure: Path | None = None
    """PNG file to draw the learning curves into: one panel per dataset, shaded by the standard deviation over seeds"""
    name: Literal[tuple(EXPERIMENTS)] | None = None
    """table or figure of the paper"""
    dataset: Literal["d4rl", "local"] = "d4rl"
    """with --name: D4RL's datasets, or those collected here"""
    seeds: int | None = None
    """with --name: number of seeds in each cell, from seed 0. None: the paper's"""
    only: tuple[str, ...] = ()
    """with --name: only these dataset ids"""
    reports: Path = Path("reports")
    """with --name: folder of the reports"""


# ---- run folders -----------------------------------------------------------------------------------------------------
def read_run(folder: Path) -> dict:
    """A run's configuration, its scores [evaluations, seeds] by iteration and by online step, and from the last log of
    each seed its mean Q and whether it diverged. Raises SystemExit where it is no run folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
        with (folder / "eval.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (folder / "metrics.csv").open() as file:
            last = {int(row["seed"]): row for row in csv.DictReader(file) if row["diverged"]}
        scores = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["score"] is not None:  # or the row is cut: the run is going on
                scores[int(row["iteration"]), int(row["env_steps"])][int(row["seed"])].append(float(row["score"]))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"error: {folder} is not a run folder ({type(error).__name__}: {error})") from None
    episodes = [sum(map(len, values.values())) for values in scores.values()]
    if len(episodes) > 1 and episodes[-1] < episodes[0]:
        scores.popitem()  # an evaluation of which the file does not have every episode yet
    if not scores:
        raise SystemExit(f"error: {folder} has no evaluation yet; run {config.get('script')}.py on it with --resume")
    seeds = list(next(iter(scores.values())))
    return {
        "folder": folder,
        "config": config,
        "seeds": seeds,
        "iterations": np.array([iteration for iteration, _ in scores]),
        "env_steps": np.array([steps for _, steps in scores]),
        "curve": np.array([[np.mean(values[seed]) for seed in seeds] for values in scores.values()]),
        "q": np.array([float(last[seed]["q_values"]) if seed in last else np.nan for seed in seeds]),
        "diverged": np.array([seed in last and last[seed]["diverged"] == "1" for seed in seeds]),
        "hours": max((float(row["wall_seconds"]) for row in last.values()), default=np.nan) / 3600,
        "complete": (folder / "done").exists(),
    }


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """The paths themselves, those of folders that hold run folders being replaced by these."""
    found = []
    for path in paths:
        inside = sorted(child.parent for child in path.glob("**/config.json")) if path.is_dir() else []
        found += inside if inside and not (path / "config.json").exists() else [path]
    return found


def dataset_score(config: dict) -> float:
    """Mean score of the dataset's whole episodes; NaN where the file is no longer there. AntMaze's episodes go on after
    the goal: the score is the share of them that see it, in percent."""
    if not Path(config["dataset"]).is_file():
        return float("nan")
    with h5py.File(config["dataset"]) as file:
        rewards, ends = file["rewards"][:].squeeze().astype(np.float64), file["terminals"][:].squeeze().astype(bool)
        limits = file["timeouts"][:].squeeze().astype(bool) if "timeouts" in file else np.zeros_like(ends)
    maze = config["env_id"].startswith("antmaze-")
    sums = np.cumsum(rewards)[np.flatnonzero(limits if maze and limits.any() else ends | limits)]
    returns = np.diff(sums, prepend=0)
    return float(normalized_score(config["env_id"], np.minimum(returns, 1) if maze else returns).mean())


def together(runs: list[dict]) -> list[dict]:
    """The runs, those being put together along the seeds that are complete, have no seed in common and are the same in
    name, data and every setting that changes results."""
    found = []
    for run in runs:
        kept = {key: value for key, value in run["config"].items() if key not in FREE - {"exp_name"}}
        for other, settings in found:
            same = settings == kept and run["complete"] and other["complete"]
            if same and not set(run["seeds"]) & set(other["seeds"]):
                other["seeds"] = other["seeds"] + run["seeds"]
                other |= {key: np.concatenate([other[key], run[key]], axis=-1) for key in ("curve", "q", "diverged")}
                break
        else:
            found.append((dict(run), kept))
    return [run for run, _ in found]


def show(scores: np.ndarray) -> str:
    """Mean ± sample standard deviation over seeds. A score that is not finite (a diverged policy's) is left out, which
    is said; where none is finite: diverged."""
    kept = scores[np.isfinite(scores)]
    if not len(kept):
        return "diverged"
    text = f"{kept.mean():.1f}" + (f" ± {kept.std(ddof=1):.1f}" if len(kept) > 1 else "")
    return text + (f" without {len(scores) - len(kept)} that has no score" if len(kept) < len(scores) else "")


def table(runs: list[dict]) -> str:
    """The Markdown table of runs, a line for each."""
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


# ---- cells: a setting on a dataset -----------------------------------------------------------------------------------
@dataclass
class Cell:
    """One setting on one dataset, the seeds of all its complete runs put together."""

    wanted: int
    """number of seeds that it should have"""
    runs: list[dict] = field(default_factory=list)
    """its complete runs"""
    note: str = ""
    """what is not complete"""

    def joined(self, name: str) -> np.ndarray:
        """A value of all runs, along the seeds, which are its last axis."""
        return np.concatenate([run[name] for run in self.runs], axis=-1)

    @property
    def last(self) -> np.ndarray:
        """[seeds]: score at the last checkpoint."""
        return self.joined("curve")[-1]

    @property
    def best(self) -> tuple[np.ndarray, int]:
        """[seeds] at the evaluation (of the online phase, if there is one) whose mean over seeds is highest, and its
        iteration."""
        curve, steps = self.joined("curve"), self.runs[0]["env_steps"]
        means = np.where((steps > 0) | (steps.max() == 0), np.nan_to_num(curve.mean(1), nan=-np.inf), -np.inf)
        return curve[means.argmax()], int(self.runs[0]["iterations"][means.argmax()])

    @property
    def offline(self) -> np.ndarray:
        """[seeds]: score at the end of the offline phase."""
        return self.joined("curve")[self.runs[0]["env_steps"] == 0][-1]

    @property
    def adds(self) -> bool:
        """Whether it can be part of a sum: it has runs, and no score that is not finite."""
        return bool(self.runs) and bool(np.isfinite(self.last).all())

    @property
    def regret(self) -> float:
        """What the scores of the online phase miss to 100, averaged over its evaluations and the seeds."""
        return float((100 - self.joined("curve")[self.runs[0]["env_steps"] > 0]).mean())

    def marks(self) -> str:
        """What a reader has to know about the number: seeds that are missing, that diverged."""
        words = [f"× {lost} of {len(self.last)} seeds diverged"] if (lost := self.joined("diverged").sum()) else []
        words += [f"{len(self.last)} of {self.wanted} seeds"] if len(self.last) < self.wanted else []
        return f" ({'; '.join(words)})" if words else ""

    def text(self, best: bool = True) -> str:
        """last ± sd (best), or why there is none."""
        if not self.runs:
            return self.note
        top, _ = self.best
        finite = np.isfinite(top).any()
        return show(self.last) + (f" (best {np.nanmean(top):.1f})" if best and finite else "") + self.marks()

    def pair(self) -> str:
        """offline → fine-tuned (best)."""
        return f"{show(self.offline)} → {self.text()}" if self.runs else self.note


def read_cell(run_dir: Path, env_id: str, setting: Setting, seeds: int, job: Job | None = None) -> Cell:
    """The cell's runs: the one of just these seeds, else those that hold some of them, the longer ones first, no seed
    twice. With `job`, a run has to have all its settings, else those that the setting means; one that has others does
    not count, and the cell's note says so. Raises SystemExit, naming them, where runs differ from each other."""
    found = {}
    for folder in sorted(run_dir.glob(f"{env_id}__{setting.name}__s*-*")):
        first, _, last = folder.name.rsplit("__s", 1)[1].partition("-")
        if first.isdigit() and last.isdigit() and int(last) < seeds:
            found[folder] = set(range(int(first), int(last) + 1))
    folders, there = [], set()
    for folder in sorted(found, key=lambda folder: (-len(found[folder]), folder.name)):
        if not there & found[folder]:
            folders.append(folder)
            there |= found[folder]
    wanted = job.settings if job else resolved(setting.script, env_id, tuple(setting.flags.items()))
    wanted = {key: value for key, value in wanted.items() if key not in FREE | (set() if job else LENGTHS)}
    cell, notes, others = Cell(seeds), [], []
    for folder in sorted(folders) or [run_dir / f"{env_id}__{setting.name}__s0-{seeds - 1}"]:
        if not (folder / "done").exists():
            state = "unfinished" if (folder / "config.json").exists() else "missing"
            notes.append(failure(run_dir / "logs" / f"{folder.name}.log") or state)
            continue
        run = read_run(folder)
        if differ := differing(run["config"], wanted):
            notes.append(f"other settings: {differ}")
            others.append(run)
        else:
            cell.runs.append(run)
    cell.note = ", ".join(dict.fromkeys(notes))
    check_cell(cell.runs + others if cell.runs else [])
    return cell


def differing(config: dict, wanted: dict) -> str:
    """What a run's config.json has other than wanted."""
    return "; ".join(f"{key} {config.get(key)}, not {wanted[key]}" for key in wanted if config.get(key) != wanted[key])


def failure(log: Path) -> str:
    """How the job of this log failed, if it did: an interrupted one only is not complete."""
    if not log.is_file():
        return ""
    text = log.read_text(errors="replace").rstrip()
    status = text.rpartition("\n")[2].partition(EXIT)[2]
    stopped = status in ("", "0", "3", "-1", "-2", "-15") or "interrupted;" in text.rpartition(".py --env-id ")[2]
    return "" if stopped else f"failed (exit status {status})"


def check_cell(runs: list[dict]) -> None:
    """Raise SystemExit, naming the runs, where they differ in what changes results."""
    for run in runs[1:]:
        keys = (set(run["config"]) | set(runs[0]["config"])) - FREE
        if differ := sorted(key for key in keys if run["config"].get(key) != runs[0]["config"].get(key)):
            raise SystemExit(
                f"error: {runs[0]['folder']} and {run['folder']} would be one cell, but differ in "
                + ", ".join(f"{key} ({runs[0]['config'].get(key)}, {run['config'].get(key)})" for key in differ)
                + "; move one of them away"
            )


# ---- statistics ------------------------------------------------------------------------------------------------------
def t_interval(scores: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of the mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores)))


def iqm(samples: list[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean of all scores [datasets][seeds] and its 95 % percentile-bootstrap interval, the seeds of each
    dataset being resampled by themselves (stratified). NaN for the interval where a dataset has one seed."""

    def statistic(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Mean of the middle half of all datasets' scores together."""
        return stats.trim_mean(np.concatenate(rows, axis=axis), 0.25, axis=axis)

    point = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return point, np.nan, np.nan
    bounds = stats.bootstrap(
        samples, statistic, n_resamples=10_000, method="percentile", vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    return point, float(bounds.low), float(bounds.high)


def total(cells: list[Cell]) -> str:
    """Sum of the means, as the paper adds them, of last scores."""
    there = [cell.last.mean() for cell in cells if cell.adds]
    return (f"{sum(there):.1f}" if there else "none") + left_out(cells)


def left_out(cells: list[Cell]) -> str:
    """How many of them a sum or a mean could not take in, and how many have marks."""
    missing, marked = sum(not cell.runs for cell in cells), sum(bool(cell.adds and cell.marks()) for cell in cells)
    words = [f"{missing} missing"] if missing else []
    words += [f"{lost} diverged"] if (lost := len(cells) - missing - sum(cell.adds for cell in cells)) else []
    words += [f"{marked} with diverged or missing seeds"] if marked else []
    return f" ({', '.join(words)})" if words else ""


def total_pair(cells: list[Cell]) -> str:
    """Sums of the offline and of the last scores."""
    there = [cell.offline.mean() for cell in cells if cell.adds]
    return f"{sum(there):.1f} → {total(cells)}" if there else total(cells)


def iqm_text(cells: list[Cell]) -> str:
    """IQM [interval] over the datasets that are there."""
    samples = [cell.last for cell in cells if cell.adds]
    if not samples:
        return "none"
    point, low, high = iqm(samples)
    words = f"{point:.1f} [{low:.1f}, {high:.1f}]" if np.isfinite(low) else f"{point:.1f}"
    return words + (f" ({len(samples)} of {len(cells)} datasets)" if len(samples) < len(cells) else "")


# ---- tables ----------------------------------------------------------------------------------------------------------
Cells = dict[str, dict[str, Cell]]  # by dataset id, then by setting
Rows = list[list[str]]


def blocks(env_ids: list[str]) -> dict[str, list[str]]:
    """The datasets whose scores the paper adds up."""
    parts = {"locomotion": [], "antmaze": []}
    for env_id in env_ids:
        parts["antmaze" if env_id.startswith("antmaze-") else "locomotion"].append(env_id)
    return {name: ids for name, ids in parts.items() if ids}


def paper_total(name: str, block: str, column: str, entries: list[float], whole: int) -> str:
    """The printed total where all its datasets are shown, else the sum of those shown."""
    printed = PAPER["printed_totals"].get(f"{name}_{block}", PAPER["printed_totals"].get(name, {}))
    return f"{printed[column] if len(entries) == whole and column in printed else sum(entries):.1f}"


def ran(cells: Iterable[Cell]) -> str:
    """Seeds × iterations of the runs that are there."""
    lengths = {f"{len(cell.last)} × {cell.runs[0]['iterations'][-1]:,}" for cell in cells if cell.runs}
    return ", ".join(sorted(lengths)) or "none"


def table1(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """Methods by how far they generalise, with one column of scores per dataset."""
    env_ids = list(cells)
    header = ["method", "action generalisation", "generalisation propagation", "flags"]
    for env_id in env_ids:
        header += [env_id] + (["its method's in the paper"] if d4rl else [])
    header += [f"total of {len(env_ids)}", "IQM [95 % interval]", "seeds × iterations"]
    rows, printed = [], {"AWAC-like": "AWAC", "TD3+BC-like": "TD3BC", "in-sample-ablation": "IQL", "DMG": "DMG"}
    for setting in EXPERIMENTS["table1"].settings:
        flags = " ".join(f"--{key} {value:g}" for key, value in setting.flags.items()) or "(default)"
        row = [setting.name, setting.action, setting.propagation, flags]
        for env_id in env_ids:
            row.append(cells[env_id][setting.name].text())
            if d4rl:
                column = printed.get(setting.name)
                row.append(f"{column} {PAPER['table2_offline'][env_id][column]}" if column else "not available")
        ours = [cells[env_id][setting.name] for env_id in env_ids]
        rows.append([*row, total(ours), iqm_text(ours), ran(ours)])
    return header, rows


def table2(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """Datasets by methods, with totals."""
    methods = [name for name in next(iter(PAPER["table2_offline"].values())) if name != "DMG_sd"]
    header = ["dataset"] + ([f"{name} (paper)" for name in methods] if d4rl else [])
    ours = ["in-sample-ablation", "DMG"]
    header += ["in-sample ablation (ours)", "DMG (ours)", "seeds × iterations"]
    rows = []
    for block, env_ids in blocks(list(cells)).items():
        for env_id in env_ids:
            row = [env_id]
            if d4rl:
                entry = PAPER["table2_offline"][env_id]
                row += [f"{entry[name]}" + (f" ± {entry['DMG_sd']}" if name == "DMG" else "") for name in methods]
            rows.append([*row, *(cells[env_id][name].text() for name in ours), ran(cells[env_id].values())])
        row = [
            f"{block} total"
            if d4rl and len(env_ids) == {"locomotion": 15, "antmaze": 6}[block]
            else f"total of {len(env_ids)}"
        ]
        if d4rl:
            whole = {"locomotion": 15, "antmaze": 6}[block]
            for name in methods:
                entries = [PAPER["table2_offline"][env_id][name] for env_id in env_ids]
                row.append(paper_total("table2", block, name, entries, whole))
        rows.append([*row, *(total([cells[env_id][name] for env_id in env_ids]) for name in ours), ""])
    row = ["IQM [95 % interval]"] + [""] * (len(methods) if d4rl else 0)
    rows.append([*row, *(iqm_text([cells[env_id][name] for env_id in cells]) for name in ours), ""])
    return header, rows


def table3(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """Each in-sample maximum alone, and with DMG."""
    header = ["dataset"]
    for name in ("XQL", "SQL"):
        header += ([f"{name} → DMG (paper)"] if d4rl else []) + [f"{name} ablation → DMG (ours)"]
    header, rows, env_ids = [*header, "seeds × iterations"], [], list(cells)
    for env_id in env_ids:
        row = [env_id]
        for name in ("XQL", "SQL"):
            if d4rl:
                entry = PAPER["table3_backbones"][env_id]
                row.append(f"{entry[name]} → {entry[f'DMG-{name}']}")
            row.append(" → ".join(cells[env_id][column].text() for column in (f"{name}-ablation", f"DMG-{name}")))
        rows.append([*row, ran(cells[env_id].values())])
    last = [f"total of {len(env_ids)}"], ["IQM [95 % interval]"]
    for name in ("XQL", "SQL"):
        columns = (f"{name}-ablation", f"DMG-{name}")
        if d4rl:
            entries = [
                [PAPER["table3_backbones"][env_id][column] for env_id in env_ids] for column in (name, columns[1])
            ]
            sums = [paper_total("table3", "", key, values, 9) for key, values in zip((name, columns[1]), entries)]
            last[0].append(" → ".join(sums))
            last[1].append("")
        for row, function in zip(last, (total, iqm_text)):
            row.append(" → ".join(function([cells[env_id][column] for env_id in env_ids]) for column in columns))
    return header, [*rows, *([*row, ""] for row in last)]


def table4(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """Scores before and after the online phase, and the regret of that phase."""
    scratch, ablation, dmg = (setting.name for setting in EXPERIMENTS["table4"].settings)
    header = ["dataset"] + (["TD3 (paper)", "IQL (paper)", "DMG (paper)"] if d4rl else [])
    header += ["TD3 from scratch (ours)", "in-sample ablation (ours)", "DMG (ours)", "regret: TD3, ablation, DMG"]
    header += ["seeds × offline + online"]
    rows, env_ids, pairs = [], list(cells), (("IQL_offline", "IQL_finetuned"), ("DMG_offline", "DMG_finetuned"))
    for env_id in env_ids:
        row, ours = [env_id], cells[env_id]
        if d4rl:
            entry = PAPER["table4_finetune"][env_id]
            row += [f"{entry['TD3_online_from_scratch']}"] + [f"{entry[a]} → {entry[b]}" for a, b in pairs]
        row += [ours[scratch].text(), ours[ablation].pair(), ours[dmg].pair()]
        row.append(
            ", ".join(f"{ours[name].regret:.1f}" if ours[name].runs else "-" for name in (scratch, ablation, dmg))
        )
        lengths = [f"{run['config']['iterations']:,} + {run['config']['online_steps']:,}" for run in ours[dmg].runs[:1]]
        rows.append([*row, f"{len(ours[dmg].last)} × {lengths[0]}" if lengths else "none"])
    row = [f"total of {len(env_ids)}"]
    if d4rl:
        for names in (("TD3_online_from_scratch",), *pairs):
            sums = []
            for name in names:
                entries = [PAPER["table4_finetune"][env_id][name] for env_id in env_ids]
                sums.append(paper_total("table4", "", name.replace("_online_from_scratch", ""), entries, 6))
            row.append(" → ".join(sums))
    row.append(total([cells[env_id][scratch] for env_id in env_ids]))
    row += [total_pair([cells[env_id][name] for env_id in env_ids]) for name in (ablation, dmg)]
    last = ["IQM after the online phase [95 % interval]"] + [""] * (3 if d4rl else 0)
    last += [iqm_text([cells[env_id][name] for env_id in env_ids]) for name in (scratch, ablation, dmg)]
    return header, [*rows, [*row, "", ""], [*last, "", ""]]


def table6(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """DMG's mean and 95 % confidence interval over ten seeds."""
    header = ["dataset"] + (["5 seeds, SD (paper, Table 2)", "10 seeds, 95 % CI (paper)"] if d4rl else [])
    header += ["mean, 95 % CI (ours)", "mean, SD (ours)", "seeds × iterations"]
    rows = []
    for env_id in cells:
        cell, row = cells[env_id]["DMG"], [env_id]
        if d4rl:
            entry = PAPER["table2_offline"][env_id]
            row += [f"{entry['DMG']} ± {entry['DMG_sd']}", "not available"]
        interval = f"{cell.last.mean():.1f} ± {t_interval(cell.last):.1f}" if cell.runs and len(cell.last) > 1 else "-"
        rows.append([*row, interval + (cell.marks() if cell.runs else ""), cell.text(), ran([cell])])
    for block, env_ids in blocks(list(cells)).items():
        whole = {"locomotion": 15, "antmaze": 6}[block]
        row = [f"{block} total" if d4rl and len(env_ids) == whole else f"total of {len(env_ids)}"]
        if d4rl:
            entries = [PAPER["table2_offline"][env_id]["DMG"] for env_id in env_ids]
            row += [paper_total("table2", block, "DMG", entries, whole), "not available"]
        rows.append([*row, total([cells[env_id]["DMG"] for env_id in env_ids]), "", ""])
    row = ["IQM [95 % interval]"] + [""] * (2 if d4rl else 0)
    return header, [*rows, [*row, iqm_text([settings["DMG"] for settings in cells.values()]), "", ""]]


def figure_table(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """The numbers behind a figure: last score and learned Q of each of its settings."""
    header = ["dataset", "setting", "last score", "mean Q at the last log", "seeds × iterations", "wall clock, hours"]
    rows = []
    for env_id, settings in cells.items():
        for name, cell in settings.items():
            text = cell.pair() if cell.runs and cell.runs[0]["env_steps"].any() else cell.text()
            q = show(cell.joined("q")) if cell.runs else "-"
            hours = ", ".join(f"{run['hours']:.2f}" for run in cell.runs) or "-"
            rows.append([env_id, name, text, q, ran([cell]), hours])
    return header, rows


def figure3_table(cells: Cells, d4rl: bool) -> tuple[list[str], Rows]:
    """Hours per million iterations."""
    header = ["dataset", "method", "hours measured", "seeds × iterations", "hours per 1,000,000 iterations", "device"]
    rows, paper = [], PAPER["figure3_runtime"]
    if d4rl:
        hours = f"{paper['DMG_hours_per_1e6_iterations']}"
        rows = [[paper["dataset"], "DMG (paper)", hours, "1,000,000 iterations", hours, paper["gpu"]]]
    for env_id, settings in cells.items():
        for name, cell in ((name.removesuffix("-timed"), cell) for name, cell in settings.items()):
            for run in cell.runs:
                million = run["hours"] * 1e6 / run["iterations"][-1]
                where = f"{run['config']['device_name']}, {run['config']['threads']} thread(s)"
                rows.append([env_id, f"{name} (ours)", f"{run['hours']:.3f}", ran([cell]), f"{million:.2f}", where])
            rows += [] if cell.runs else [[env_id, f"{name} (ours)", cell.note, "none", "-", "-"]]
    return header, rows


# ---- figures ---------------------------------------------------------------------------------------------------------
def panels(count: int, columns: int = 3, rows_each: int = 1):  # noqa: ANN201 (matplotlib is imported here alone)
    """A figure of `count` panels, `rows_each` axes in each of them."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dmg"  # the same file for the same numbers
    from matplotlib import pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns) * rows_each
    figure, axes = plt.subplots(rows, columns, figsize=(1 + 3.6 * columns, 0.5 + 2.9 * rows), squeeze=False)
    for axis in axes.flat[count * rows_each :]:
        axis.set_visible(False)
    return figure, axes


def band(axis, x: np.ndarray, curve: np.ndarray, label: str) -> None:  # noqa: ANN001
    """The mean over seeds, shaded by their standard deviation: curve [points, seeds]."""
    mean, spread = curve.mean(1), curve.std(1, ddof=1) if curve.shape[1] > 1 else 0
    axis.plot(x, mean, marker="o", markersize=3, label=label)
    axis.fill_between(x, mean - spread, mean + spread, alpha=0.2)


def without_data(axis, cells: dict[str, Cell]) -> None:  # noqa: ANN001
    """Name what is missing in a panel."""
    if lost := [f"{name}: {cell.note}" for name, cell in cells.items() if not cell.runs]:
        axis.text(0.02, 0.98, "\n".join(lost), transform=axis.transAxes, fontsize=7, color="0.4", va="top")


def score_label(env_id: str) -> str:
    """What a score of this dataset is."""
    return "success in %" if env_id.startswith("antmaze-") else "score on D4RL's scale"


def draw(runs: list[dict], path: Path) -> None:
    """Learning curves of runs, one panel per dataset; the dashed line is the dataset's own mean score."""
    datasets = list(dict.fromkeys(run["config"]["env_id"] for run in runs))
    figure, axes = panels(len(datasets), columns=len(datasets))
    for axis, env_id in zip(axes[0], datasets):
        for run in (run for run in runs if run["config"]["env_id"] == env_id):
            band(axis, run["iterations"], run["curve"], run["config"]["exp_name"])
            own = dataset_score(run["config"])
        axis.axhline(own, color="0.4", linestyle="--", linewidth=1, label="dataset's mean")
        axis.set(title=env_id, xlabel="iterations", ylim=(min(0, axis.get_ylim()[0]), None))
        axis.set_xlim(0, None)
        axis.locator_params("x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(score_label(datasets[0]))
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"learning curves: {path}")


def draw_grid(cells: Cells, name: str):  # noqa: ANN201
    """Figures 1 and 2: last score and learned Q against λ or ν; seeds that diverged are marked ×."""
    key, symbol = {"figure1": ("lam", "λ"), "figure2": ("nu", "ν")}[name]
    figure, axes = panels(len(cells), columns=len(cells), rows_each=2)
    for column, (env_id, ours) in enumerate(cells.items()):
        there = [setting for setting in EXPERIMENTS[name].settings if ours[setting.name].runs]
        for axis, what in zip(axes[:, column], ("last", "q")):
            values = [ours[s.name].last if what == "last" else ours[s.name].joined("q") for s in there]
            x = np.array([setting.flags[key] for setting in there])
            kept = [value[np.isfinite(value)] for value in values]
            mean = np.array([value.mean() if len(value) else np.nan for value in kept])
            spread = np.array([value.std(ddof=1) if len(value) > 1 else 0 for value in kept])
            axis.plot(x, mean, marker="o", markersize=3)
            axis.fill_between(x, mean - spread, mean + spread, alpha=0.2)
            for position, value, setting in zip(x, values, there):
                lost, finite = ours[setting.name].joined("diverged"), np.isfinite(value)
                places = [(height, axis.transData) for height in value[lost & finite]]
                places += [(0, axis.get_xaxis_transform())] * (lost & ~finite).sum()  # no height: on the lower edge
                for height, transform in places:
                    cross = {"color": "tab:red", "markersize": 9, "markeredgewidth": 2, "transform": transform}
                    axis.plot([position], [height], "x", **cross)
                if what == "q" and lost.any():
                    axis.set_yscale("symlog")
            axis.set(xlabel=symbol, ylabel="score on D4RL's scale" if what == "last" else "mean Q")
            grid = [setting.flags[key] for setting in EXPERIMENTS[name].settings]
            if key == "nu":
                axis.set_xscale("log")
                axis.set_xlim(grid[0] / 1.5, grid[-1] * 1.5)
            else:
                axis.set_xlim(grid[0] - 0.05, grid[-1] + 0.05)
            axis.set_xticks(grid, [f"{value:g}" for value in grid])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            without_data(axis, ours)
        axes[0, column].set_title(env_id)
    return figure


def draw_hours(cells: Cells, name: str):  # noqa: ANN201
    """Figure 3: hours per million iterations."""
    figure, axes = panels(len(cells))
    for axis, (env_id, timed) in zip(axes.flat, cells.items()):
        ours = {key.removesuffix("-timed"): cell for key, cell in timed.items()}
        bars = {key: cell.runs[0] for key, cell in ours.items() if cell.runs}
        values = [run["hours"] * 1e6 / run["iterations"][-1] for run in bars.values()]
        axis.bar_label(axis.bar(list(bars), values, width=0.6), fmt="%.2f", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.set(title=env_id, ylabel="hours per 1,000,000 iterations")
        axis.title.set_size(9)
        axis.margins(y=0.3)  # room for what is missing
        without_data(axis, ours)
    return figure


def draw_curves(cells: Cells, name: str):  # noqa: ANN201
    """Figures 4 to 6: score against iterations, or against online steps from the end of the offline phase on."""
    figure, axes = panels(len(cells))
    online = name == "figure6"
    for axis, (env_id, ours) in zip(axes.flat, cells.items()):
        for key, cell in ours.items():
            if cell.runs:
                steps, curve = cell.runs[0]["env_steps"], cell.joined("curve")
                x = steps if online else cell.runs[0]["iterations"]
                begin = np.flatnonzero(steps == 0)[-1] if online else 0
                band(axis, x[begin:], curve[begin:], key)
        axis.set(title=env_id, xlabel="online steps" if online else "iterations", ylabel=score_label(env_id))
        axis.title.set_size(9)
        axis.set_xlim(0, None)
        axis.locator_params("x", nbins=5)
        axis.grid(alpha=0.3)
        without_data(axis, ours)
        if len(ours) > 1 and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    return figure


LAYOUTS = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table6": table6,
    "figure3": figure3_table,
}
DRAWINGS = {"figure1": draw_grid, "figure2": draw_grid, "figure3": draw_hours}
DRAWINGS |= dict.fromkeys(("figure4", "figure5", "figure6"), draw_curves)


# ---- reports ---------------------------------------------------------------------------------------------------------
def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def caption(name: str, d4rl: bool, seeds: int) -> str:
    """What the numbers are."""
    words = "Scores on D4RL's scale (0 a random, 100 an expert policy; AntMaze: success in %). "
    words += (
        f"Ours: the last checkpoint, mean ± sample standard deviation over {seeds} seed(s) (or what a cell says) of "
    )
    words += "the mean over an evaluation's episodes; *best*: the highest mean over seeds of any evaluation (after an "
    words += "offline phase: of any online one), chosen in hindsight. "
    if name == "table6":
        words += "95 % CI: Student's t over seeds. "
    if name == "table4":
        words += "Before → after the online phase; regret: what its evaluations miss to 100, on average. "
    if name.startswith("table"):
        words += "Totals add means; IQM: interquartile mean over datasets and seeds, with a 95 % stratified bootstrap "
        words += "interval. "
    words += "The in-sample ablation (`--lam 0 --nu inf`) is not the published IQL, XQL or SQL. "
    words += "Diverged: critic or V not finite, or mean |Q| above 100 max|r| / (1 − γ), at a log. "
    if name.startswith("figure"):
        words += "Shaded: ± one sample standard deviation over seeds. "
    if name in ("figure1", "figure2"):
        words += "×: a diverged seed, on the lower edge where it has no finite value. "
    if d4rl and name in LAYOUTS:
        words += "The paper's numbers: 1,000,000 iterations, 5 seeds (its Tables 2 to 4). "
    if not d4rl:
        words += (
            "The datasets were collected here: these are **not** D4RL results, and the paper's are not beside them. "
        )
    ours = EXPERIMENTS[name].ours
    return words + (f"Not in the paper's text, so ours: {ours}." if ours else "")


def provenance(cells: Cells) -> str:
    """What the runs were made with."""
    runs = [run for settings in cells.values() for cell in settings.values() for run in cell.runs]
    configs = [run["config"] for run in runs]

    def values(key: str, length: int | None = None) -> str:
        """All values of a setting."""
        return ", ".join(sorted({str(config.get(key))[:length] for config in configs})) or "none"

    scripts = sorted({f"{config['script']}.py {config['script_sha256'][:12]}" for config in configs})
    used = [config for config in configs if config["dataset_sha256"] != "none"]  # TD3 from scratch has no dataset
    hashes = sorted({f"{config['env_id']} {config['dataset_sha256'][:12]}" for config in used})
    versions = ", ".join(f"{package} {values(package)}" for package in ("torch", "numpy", "mujoco", "gymnasium"))
    lines = [f"- runs: {len(runs)} complete, in all {sum(run['hours'] for run in runs):.1f} hours of wall clock"]
    lines += [f"- scripts (SHA-256): {', '.join(scripts) or 'none'}", f"- libraries: {versions}"]
    lines += [f"- device: {values('device_name')}", f"- datasets (SHA-256): {', '.join(hashes) or 'none'}"]
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # a copy without its history
        version = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        lines += [f"- report: tools/report.py of commit {version}"]
    return "\n".join(lines)


def write(name: str, dataset: str, listed: list[Job] | list[str], seeds: int, run_dir: Path, out: Path) -> None:
    """Write the report of a table or figure into `out` and print it: NAME-DATASET.md and .csv, -seeds.csv with every
    seed's numbers, and .png and .svg for a figure. `listed`: its jobs, whose settings the runs must have, or its
    dataset ids, for runs of any length. Raises SystemExit where runs of one cell differ."""
    experiment, d4rl = EXPERIMENTS[name], dataset == "d4rl"
    known = {(job.env_id, job.setting.name): job for job in listed if isinstance(job, Job)}
    cells = {
        env_id: {
            setting.name: read_cell(run_dir, env_id, setting, seeds, known.get((env_id, setting.name)))
            for setting in experiment.settings
        }
        for env_id in dict.fromkeys(job.env_id if isinstance(job, Job) else job for job in listed)
    }
    ids = experiment.d4rl if d4rl else experiment.local
    part = "" if len(cells) == len(ids) else f", {len(cells)} of its {len(ids)} datasets"
    header, rows = LAYOUTS.get(name, figure_table)(cells, d4rl)
    stem = out / f"{name}-{dataset}"
    out.mkdir(parents=True, exist_ok=True)
    text = [f"# {experiment.title} ({'D4RL' if d4rl else 'local datasets, not D4RL'}{part})", markdown(header, rows)]
    if name in DRAWINGS:
        text.insert(1, f"![{experiment.title}]({stem.name}.png)")
        figure = DRAWINGS[name](cells, name)
        figure.tight_layout()
        for suffix in (".png", ".svg"):
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(f"{stem}{suffix}", dpi=120, metadata=metadata)
    text += [caption(name, d4rl, seeds), provenance(cells)]
    Path(f"{stem}.md").write_text("\n\n".join(text) + "\n")
    with Path(f"{stem}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with Path(f"{stem}-seeds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "dataset,setting,seed,iterations,offline,last,best_iteration,at_best,q,diverged,note".split(",")
        )
        for env_id, settings in cells.items():
            for setting, cell in settings.items():
                if not cell.runs:
                    writer.writerow([env_id, setting, *[""] * 8, cell.note])
                    continue
                top, at = cell.best
                numbers = (cell.offline, cell.last, [at] * len(top), top, cell.joined("q"), cell.joined("diverged") * 1)
                for seed, *values in zip(cell.joined("seeds"), *numbers):
                    writer.writerow([env_id, setting, seed, cell.runs[0]["iterations"][-1], *values, cell.note])
    print("\n\n".join([text[0], markdown(header, rows), *text[-2:]]))
    print(f"\nwritten: {stem}.md, .csv, -seeds.csv" + (", .png, .svg" if name in DRAWINGS else ""))


def main(args: Args) -> None:
    """What the command line asks for."""
    if args.name:
        experiment = EXPERIMENTS[args.name]
        known = experiment.d4rl if args.dataset == "d4rl" else experiment.local
        if unknown := [env_id for env_id in args.only if env_id not in known]:
            raise SystemExit(
                f"error: --only {', '.join(unknown)}: {args.name} of {args.dataset} has {', '.join(known)}"
            )
        if len(args.runs) != 1 or not list(args.runs[0].glob("*__*")):
            raise SystemExit(
                "error: --name needs the one folder that holds the run folders: runs, or runs/iterations-<N>"
            )
        if args.seeds is not None and args.seeds < 1:
            raise SystemExit(f"error: --seeds {args.seeds}: it has to be 1 or more")
        env_ids = [env_id for env_id in known if env_id in args.only or not args.only]
        return write(args.name, args.dataset, env_ids, args.seeds or experiment.seeds, args.runs[0], args.reports)
    runs = []
    for folder in run_folders(args.runs):
        try:
            runs.append(read_run(folder))
        except SystemExit as error:
            if folder in args.runs or "no evaluation yet" not in str(error):
                raise
            print(f"{folder}: no evaluation yet")
    runs = together(sorted(runs, key=lambda run: run["config"]["env_id"]))  # datasets in turn
    kinds = [[run for run in runs if run["config"]["env_id"].endswith(kind)] for kind in ("-v2", "-local")]
    print("\n\n".join(table(kind) for kind in kinds if kind))  # D4RL and local results never in one table
    if args.figure:
        draw(runs, args.figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
