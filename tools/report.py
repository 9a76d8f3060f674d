"""From run folders to tables and figures.

    python tools/report.py runs/walker2d-medium-v2__dmg_iql__s0-0 --figure curve.png
    python tools/report.py runs                # all runs in a folder
    python tools/report.py runs --name table2  # what `bash benchmark.sh table2` writes at its end

Without --name: a line for each run, or for runs that differ in nothing but their seeds. With --name: a
table or figure of the paper in reports/, as Markdown, PNG and SVG, with each seed's numbers as CSV. All
are read from the run folders' config.json, eval.csv and TensorBoard events.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduce import EXPERIMENTS, Job
from runs import (
    Cell,
    Run,
    dataset_facts,
    finite,
    iqm,
    kind,
    mean_sd,
    read_cell,
    read_runs,
    remarks,
    together,
)
from scipy import stats

PAPER = json.loads((common.ROOT / "tools/paper.json").read_text("utf-8"))
LENGTHS = set("iterations warmup_steps eval_every eval_episodes log_every".split())
KINDS = {"d4rl": "D4RL", "local": "Data collected here, not D4RL's", "own": "Other tasks and files"}
COLOURS = {  # the colour of a method in every figure
    "DMG": "#0072B2",
    "in-sample-ablation": "#E69F00",
    "TD3+BC-like": "#009E73",
    "AWAC-like": "#CC79A7",
    "TD3-like": "#8C564B",
    "TD3-scratch": "#8C564B",
    "DMG-XQL": "#56B4E9",
    "XQL-ablation": "#D55E00",
    "DMG-SQL": "#332288",
    "SQL-ablation": "#B8A800",
}
METHODS = {"quickstart": "DMG", "dmg_iql": "DMG", "dmg_finetune": "DMG"}  # of other names
METHODS |= {"dmg_xql": "DMG-XQL", "dmg_sql": "DMG-SQL"}
OTHERS = ("#999999", "#117733", "#882255", "#44AA99", "#DDCC77", "#661100")  # of names without a method
CAPTION = """Score: the last evaluation, mean ± sample standard deviation over seeds of each seed's mean
over episodes. On D4RL's scale 0 is a random and 100 an expert policy; AntMaze's is success in %; of
other tasks it is the return. a → b: before and after the online phase. Rows: transitions of the dataset.
-: not known. ×: seeds that diverged, which means that a loss, value or score is not finite, or that a
mean |Q| exceeds 100 max|r| / (1 − γ)."""
NOTES = {  # by the beginning of a report's name
    "table": "Totals add means. IQM: interquartile mean over datasets and seeds [95 %, by bootstrap].",
    "table4": "Regret: what the evaluations of the online phase miss to 100, on average.",
    "table6": "95 % CI: Student's t over seeds.",
    "figure": "Shaded: ± one sample standard deviation. Mean Q: of seeds that have not diverged.",
    "": "The in-sample ablation (`--lam 0 --nu inf`) is not the published IQL, XQL or SQL.",
}
ORIGINS = {
    "d4rl": "The paper's numbers: 1,000,000 iterations, 5 seeds (its Tables 2 to 4).",
    "local": "The data were collected here: this is **not** D4RL, and the paper's scores are left out.",
}

Cells = dict[str, dict[str, Cell]]  # by dataset id, then by setting
Table = tuple[list[str], list[list[str]]]  # header and rows
ABOUT = ["dataset's mean", "rows", "seeds × iterations"]
MEAN, DIVERGED = "the dataset's mean", "a diverged seed"  # in legends


@dataclass
class Args:
    """Which runs to report, and as what."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()  # run folders, or folders that hold them
    figure: Path | None = None  # PNG, SVG or PDF file for the learning curves, a panel for each dataset
    name: Literal[tuple(EXPERIMENTS)] | None = None  # table or figure of the paper
    dataset: Literal["d4rl", "local"] = "d4rl"  # with --name: D4RL's datasets, or those collected here
    seeds: int | None = None  # with --name: seeds in each cell, from seed 0, >= 1. None: the paper's
    only: tuple[str, ...] = ()  # with --name: only these dataset ids
    reports: Path = Path("reports")  # with --name: folder of the reports


# ---- Text ---------------------------------------------------------------------------------------------
def show(values: np.ndarray) -> str:
    """Mean ± sample standard deviation of the values that are finite."""
    mean, sd = mean_sd(values)
    form = ".3g" if abs(mean) >= 1e6 else ".1f"
    return "none" if np.isnan(mean) else f"{mean:{form}}" + ("" if np.isnan(sd) else f" ± {sd:{form}}")


def marks(cell: Cell) -> list[str]:
    """What a reader has to know about the seeds of a cell."""
    words, lost = [cell.note] if cell.note else [], cell.run.diverged.sum()
    if without := (~np.isfinite(cell.run.last)).sum():
        words.insert(0, f"{without} without a score")
    return [f"× {lost} of {len(cell.run.seeds)} seeds diverged", *words] if lost else words


def score(cell: Cell) -> str:
    """The score of a cell with its marks, or why there is none; of a fine-tuned run, before → after."""
    if not cell.run:
        return cell.note
    before = f"{show(cell.run.curve[0])} → " if cell.run.config.get("checkpoint") else ""
    return before + show(cell.run.last) + (f" ({', '.join(words)})" if (words := marks(cell)) else "")


def length(run: Run) -> str:
    """Seeds × iterations of a run; of a fine-tuned one, offline + online iterations."""
    before = run.config.get("offline_iterations", 0)
    offline = "? + " if before is None else f"{before:,} + " if before else ""
    whole = "" if run.complete else f" of {run.config['iterations']:,}"
    return f"{len(run.seeds)} × {offline}{run.iterations[-1]:,}{whole}"


def about(runs: list[Run]) -> list[str]:
    """What ABOUT says: mean score and rows of the runs' datasets, and their seeds × iterations."""
    means = [dataset_facts(run.config)[0] for run in runs]
    means = [show(np.array([mean])) for mean in means if np.isfinite(mean)]
    rows = [f"{run.config['rows']:,}" for run in runs if run.config["dataset_sha256"]]
    return [", ".join(dict.fromkeys(texts)) or "-" for texts in (means, rows, map(length, runs))]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def plain_table(runs: list[Run]) -> Table:
    """A line for each run."""
    rows = []
    for run in runs:
        rows.append([run.config["env_id"], run.config["exp_name"], score(Cell(run, "")), *about([run])])
    return ["dataset", "setting", "score", *ABOUT], rows


# ---- Tables of the paper ------------------------------------------------------------------------------
def adding(cells: list[Cell]) -> list[Run]:
    """The runs that can be part of a sum: every seed has a score."""
    return [cell.run for cell in cells if cell.run and np.isfinite(cell.run.last).all()]


def total(cells: list[Cell]) -> str:
    """Sum of the means, as the paper adds them, and how many datasets it lacks or should not hide."""
    runs = adding(cells)
    text = f"{sum(run.last.mean() for run in runs):.1f}" if runs else "none"
    if runs and runs[0].config.get("checkpoint"):
        text = f"{sum(finite(run.curve[0]).mean() for run in runs):.1f} → {text}"
    missing = sum(not cell.run for cell in cells)
    marked = sum(bool(cell.run in runs and marks(cell)) for cell in cells)
    counts = {"missing": missing, "without a score": len(cells) - missing - len(runs), "marked": marked}
    words = [f"{count} {what}" for what, count in counts.items() if count]
    return text + (f" ({', '.join(words)})" if words else "")


def iqm_text(cells: list[Cell]) -> str:
    """IQM [interval] over the datasets that are there."""
    samples = [run.last for run in adding(cells)]
    if not samples:
        return "none"
    point, low, high = iqm(samples)
    text = f"{point:.1f}" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")
    return text + (f" ({len(samples)} of {len(cells)} datasets)" if len(samples) < len(cells) else "")


def block(env_id: str) -> str:
    """The block of datasets whose scores the paper adds up."""
    return "antmaze" if env_id.startswith("antmaze-") else "locomotion"


@dataclass
class Column:
    """A column of a table by dataset: the text for one dataset, for a sum of several, for their IQM."""

    title: str
    entry: Callable[[str], str]
    total: Callable[[list[str]], str] = lambda env_ids: ""
    iqm: Callable[[list[str]], str] = lambda env_ids: ""


def ours(cells: Cells, title: str, *names: str) -> Column:
    """Our scores in a setting, or in two with an arrow between them."""

    def each(function: Callable[[list[Cell]], str], env_ids: list[str]) -> str:
        """The function's text for the cells of each setting that the report has."""
        there = [name for name in names if name in cells[env_ids[0]]]
        return " → ".join(function([cells[env_id][name] for env_id in env_ids]) for name in there)

    return Column(
        title,
        lambda env_id: each(lambda cells: score(cells[0]), [env_id]),
        lambda env_ids: each(total, env_ids),
        lambda env_ids: each(iqm_text, env_ids),
    )


def paper(title: str, section: str, *keys: str) -> Column:
    """The paper's scores of a method, or of two with an arrow between them; totals as printed, or else
    the sums of the datasets that are there."""

    def entry(env_id: str) -> str:
        """The score on a dataset, with its standard deviation where that is printed."""
        row = PAPER[section][env_id]
        sds = [f" ± {row[f'{key}_sd']}" if f"{key}_sd" in row else "" for key in keys]
        return " → ".join(f"{row[key]}{sd}" for key, sd in zip(keys, sds))

    def total(env_ids: list[str]) -> str:
        """The total of a block."""
        part, table = block(env_ids[0]), section.split("_")[0]
        printed = PAPER["printed_totals"].get(table) or PAPER["printed_totals"][f"{table}_{part}"]
        sums = [sum(PAPER[section][env_id][key] for env_id in env_ids) for key in keys]
        if len(env_ids) == sum(block(env_id) == part for env_id in PAPER[section]):
            sums = [printed[key.removesuffix("_online_from_scratch")] for key in keys]
        return " → ".join(f"{value:.1f}" for value in sums)

    return Column(title, entry, total)


def by_dataset(cells: Cells, columns: list[Column]) -> Table:
    """A row for each dataset, for the totals of locomotion and of AntMaze, and for the IQM."""
    rows = []
    for part in dict.fromkeys(map(block, cells)):
        env_ids = [env_id for env_id in cells if block(env_id) == part]
        for env_id in env_ids:
            runs = [cell.run for cell in cells[env_id].values() if cell.run]
            rows.append([env_id, *(column.entry(env_id) for column in columns), *about(runs)])
        totals = [column.total(env_ids) for column in columns]
        rows.append([f"{part} total ({len(env_ids)})", *totals, "", "", ""])
    rows.append(["IQM [95 % interval]", *(column.iqm(list(cells)) for column in columns), "", "", ""])
    return ["dataset", *(column.title for column in columns), *ABOUT], rows


def table1(cells: Cells, d4rl: bool) -> Table:
    """Datasets by methods, under rows that say how far each method generalises."""
    columns, facts = [], {"action generalisation": [], "generalisation propagation": [], "flags": []}
    like = {"DMG": "DMG", "in-sample-ablation": "IQL", "TD3+BC-like": "TD3BC", "AWAC-like": "AWAC"}
    for setting in EXPERIMENTS["table1"].settings:
        if setting.name not in next(iter(cells.values())):
            continue
        flags = " ".join(f"--{key} {value:g}" for key, value in setting.flags.items())
        columns.append(ours(cells, setting.name, setting.name))
        texts = [[setting.action, setting.propagation, flags or "presets"]]
        if d4rl and setting.name in like:
            columns.append(paper(f"{like[setting.name]} (paper)", "table2_offline", like[setting.name]))
            texts.append([setting.action, setting.propagation, ""])
        for column in texts:
            for row, text in zip(facts.values(), column):
                row.append(text)
    header, rows = by_dataset(cells, columns)
    return header, [[name, *texts, "", "", ""] for name, texts in facts.items()] + rows


def table2(cells: Cells, d4rl: bool) -> Table:
    """Datasets by methods."""
    keys = [key for key in next(iter(PAPER["table2_offline"].values())) if key != "DMG_sd"]
    columns = [paper(f"{key} (paper)", "table2_offline", key) for key in keys if d4rl]
    columns.append(ours(cells, "in-sample ablation (ours)", "in-sample-ablation"))
    return by_dataset(cells, [*columns, ours(cells, "DMG (ours)", "DMG")])


def table3(cells: Cells, d4rl: bool) -> Table:
    """Each in-sample maximum alone, and with DMG."""
    columns = []
    for key in ("XQL", "SQL"):
        if d4rl:
            columns.append(paper(f"{key} → DMG (paper)", "table3_backbones", key, f"DMG-{key}"))
        columns.append(ours(cells, f"{key} ablation → DMG (ours)", f"{key}-ablation", f"DMG-{key}"))
    return by_dataset(cells, columns)


def table4(cells: Cells, d4rl: bool) -> Table:
    """Scores before and after the online phase, and the regret of that phase."""
    settings = EXPERIMENTS["table4"].settings

    def regrets(env_id: str) -> str:
        """What the evaluations of the online phase miss to 100, on average."""
        runs = [cells[env_id][setting.name].run for setting in settings if setting.name in cells[env_id]]
        return ", ".join(f"{100 - finite(run.curve[1:]).mean():.1f}" if run else "-" for run in runs)

    columns = [paper("TD3 (paper)", "table4_finetune", "TD3_online_from_scratch")] if d4rl else []
    for key in ("IQL", "DMG") if d4rl else ():
        columns.append(paper(f"{key} (paper)", "table4_finetune", f"{key}_offline", f"{key}_finetuned"))
    for setting in settings:
        columns.append(ours(cells, f"{setting.name} (ours)", setting.name))
    return by_dataset(cells, [*columns, Column("regret of ours", regrets)])


def table6(cells: Cells, d4rl: bool) -> Table:
    """DMG's mean and 95 % confidence interval over ten seeds."""

    def interval(env_id: str) -> str:
        """Mean and interval of the seeds that have a score."""
        cell = cells[env_id]["DMG"]
        scores = finite(cell.run.last) if cell.run else np.array([])
        if len(scores) < 2:
            return "-"
        half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores)
        return f"{scores.mean():.1f} ± {half:.1f}"

    columns = [paper("5 seeds, SD (paper, Table 2)", "table2_offline", "DMG")] if d4rl else []
    columns += [Column("10 seeds, 95 % CI (paper)", lambda env_id: "not available")] if d4rl else []
    columns.append(Column("mean, 95 % CI (ours)", interval))
    return by_dataset(cells, [*columns, ours(cells, "mean, SD (ours)", "DMG")])


def figure_table(cells: Cells, d4rl: bool) -> Table:
    """The numbers behind a figure."""
    header = ["dataset", "setting", "score", *ABOUT, "mean Q at the last log"]
    rows = []
    for env_id, settings in cells.items():
        for name, cell in settings.items():
            numbers = ["-", "-"]
            if cell.run:
                numbers = [show(healthy_q(cell.run)), f"{speed(cell.run):.2f}"]
            rows.append([env_id, name, score(cell), *about([cell.run] if cell.run else []), *numbers])
    return [*header, "hours per 1,000,000 iterations"], rows


def figure3_table(cells: Cells, d4rl: bool) -> Table:
    """figure_table with the paper's time."""
    header, rows = figure_table(cells, d4rl)
    if d4rl:
        printed = PAPER["figure3_runtime"]
        hours = str(printed["DMG_hours_per_1e6_iterations"])
        rows.insert(0, [printed["dataset"], f"DMG (paper, {printed['gpu']})", *["-"] * 5, hours])
    return header, rows


def healthy_q(run: Run) -> np.ndarray:
    """Mean Q at the last log of the seeds that have not diverged."""
    return run.q[~run.diverged]


def speed(run: Run) -> float:
    """Hours of wall clock per million iterations of a job, evaluations included."""
    return float(finite(run.hours).mean() * 1e6 / run.iterations[-1])


# ---- Figures ------------------------------------------------------------------------------------------
def panels(titles: Iterable[str], each: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure that is readable at a page's width, and the axes of each title: one, three titles in a
    row, or `each`, in a row of their own."""
    titles = list(titles)
    columns = each if each > 1 else min(3, len(titles))
    rows = -(-len(titles) * each // columns)
    width = 3.1 * columns if columns > 1 else 5.0
    figure = Figure(figsize=(width, 2.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    groups = [axes[i * each : (i + 1) * each] for i in range(len(titles))]
    for axis in axes[len(titles) * each :]:
        axis.remove()
    for title, group in zip(titles, groups):
        for axis in group:
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.3)
            axis.set_axisbelow(True)
    return figure, groups


def legend(figure: Figure) -> None:
    """One legend for all panels, below them: the settings, then what is not of one setting."""
    handles = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: label in (MEAN, DIVERGED))
    columns = max(2, figure.axes[0].get_gridspec().ncols)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))  # not from the panels
    place = dict(loc="outside lower center", ncols=columns, frameon=False)
    shown = figure.legend([handles[label] for label in labels], labels, **place)
    for handle, label in zip(shown.legend_handles, labels):
        if label == DIVERGED:  # of any setting
            handle.set_markerfacecolor("white")


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colours of settings; those of a known method are always the same."""
    found = {}
    for name in names:
        method = name.removesuffix("-timed").removesuffix("-finetuned")
        found[name] = COLOURS.get(METHODS.get(method, method)) or OTHERS[len(found) % len(OTHERS)]
    return found


def band(axis: Axes, x: Iterable[float], values: Iterable[np.ndarray], **style: str) -> None:
    """The mean over seeds of values [points][seeds], shaded by their standard deviation."""
    mean, sd = np.array([mean_sd(value) for value in values]).T
    sd = np.nan_to_num(sd)
    axis.plot(list(x), mean, marker="o", markersize=3, **style)
    axis.fill_between(list(x), mean - sd, mean + sd, color=style["color"], alpha=0.2, linewidth=0)


def cross(axis: Axes, x: float, height: float, colour: str) -> None:
    """The mark of a diverged seed in its setting's colour, on the lower edge where it has no finite
    value."""
    style = dict(markersize=10, markerfacecolor=colour, markeredgecolor="black", linestyle="none")
    if not np.isfinite(height):
        height, style["transform"] = 0, axis.get_xaxis_transform()
    axis.plot([x], [height], "X", label=DIVERGED, zorder=5, clip_on=False, **style)


def score_axis(axis: Axes, env_id: str, runs: Iterable[Run]) -> None:
    """Label an axis of scores, with a dashed line at the mean of the runs' dataset."""
    known = env_id in common.D4RL_IDS + common.LOCAL_IDS
    axis.set_ylabel("score on D4RL's scale" if known else "score")
    if block(env_id) == "antmaze":
        axis.set_ylabel("success in %")
    for mean in {dataset_facts(run.config)[0] for run in runs}:
        if np.isfinite(mean):
            axis.axhline(mean, color="0.3", linestyle="--", linewidth=1, label=MEAN)


def missing(axis: Axes, settings: dict[str, Cell]) -> list[Run]:
    """Name in a panel what it lacks; returns the runs that are there."""
    lines = [f"{name}: {cell.note[:40]}" for name, cell in settings.items() if not cell.run]
    axis.text(0.02, 0.98, "\n".join(lines), transform=axis.transAxes, fontsize=7, color="0.4", va="top")
    return [cell.run for cell in settings.values() if cell.run]


def curves(axis: Axes, env_id: str, runs: list[Run], palette: dict[str, str]) -> None:
    """Learning curves of runs on a dataset."""
    for run in runs:
        name = run.config["exp_name"]
        band(axis, run.iterations, run.curve, color=palette[name], label=name)
        for scores in run.curve.T[run.diverged]:
            last = np.flatnonzero(np.isfinite(scores)).max(initial=0)
            cross(axis, run.iterations[last], scores[last], palette[name])
    score_axis(axis, env_id, runs)
    axis.set_xlabel("online steps" if runs and runs[0].online else "iterations")
    axis.set_xlim(0, None)
    axis.set_ylim(min(0, axis.get_ylim()[0]), None)
    axis.locator_params("x", nbins=4)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")


def draw(runs: list[Run]) -> Figure:
    """Learning curves, a panel for each dataset; fine-tuning and own files have panels of their own."""
    groups = {}
    for run in runs:
        own = ", own file" if kind(run.config) == "own" else ""
        title = run.config["env_id"] + own + (", online" if run.online else "")
        groups.setdefault(title, []).append(run)
    figure, axes = panels(groups)
    palette = colours(sorted({run.config["exp_name"] for run in runs}))
    for (axis,), group in zip(axes, groups.values()):
        curves(axis, group[0].config["env_id"], group, palette)
    legend(figure)
    return figure


def draw_curves(cells: Cells, name: str) -> Figure:
    """Figures 4 to 6: score against iterations or online steps."""
    figure, axes = panels(cells)
    for (axis,), (env_id, settings) in zip(axes, cells.items()):
        curves(axis, env_id, missing(axis, settings), colours(settings))
    legend(figure)
    return figure


def draw_grid(cells: Cells, name: str) -> Figure:
    """Figures 1 and 2: score and learned Q against λ or ν."""
    key, symbol = {"figure1": ("lam", "λ"), "figure2": ("nu", "ν")}[name]
    grid = [setting.flags[key] for setting in EXPERIMENTS[name].settings]
    figure, axes = panels(cells, each=2)
    for (scores, learned), (env_id, settings) in zip(axes, cells.items()):
        runs = missing(scores, settings)
        x = [run.config[key] for run in runs]
        last, q = [run.last for run in runs], [run.q for run in runs]
        for axis, means, marked in (scores, last, last), (learned, map(healthy_q, runs), q):
            if runs:
                band(axis, x, means, color=COLOURS["DMG"], label="DMG")
            for place, run, heights in zip(x, runs, marked):
                for height in heights[run.diverged]:
                    cross(axis, place, height, COLOURS["DMG"])
            axis.set_xscale("log" if key == "nu" else "linear")
            axis.set_xticks(grid, [f"{value:g}" for value in grid])
            axis.minorticks_off()
            axis.set_xlabel(symbol)
        score_axis(scores, env_id, runs)
        learned.set_ylabel("mean Q")
        if any(run.diverged.any() for run in runs):
            learned.set_yscale("symlog", linthresh=100)
    legend(figure)
    return figure


def draw_hours(cells: Cells, name: str) -> Figure:
    """Figure 3: hours per million iterations."""
    figure, axes = panels(cells)
    for (axis,), settings in zip(axes, cells.values()):
        runs = missing(axis, settings)
        names = [run.config["exp_name"].removesuffix("-timed") for run in runs]
        bars = axis.bar(
            names, [speed(run) for run in runs], width=0.6, color=list(colours(names).values())
        )
        axis.bar_label(bars, fmt="%.2f")
        axis.margins(y=0.3)  # room for what is missing
        axis.set_ylabel("hours per 1,000,000 iterations")
    return figure


TABLES = {"table1": table1, "table2": table2, "table3": table3, "table4": table4, "table6": table6}
TABLES["figure3"] = figure3_table
FIGURES = {"figure1": draw_grid, "figure2": draw_grid, "figure3": draw_hours}
FIGURES |= dict.fromkeys(("figure4", "figure5", "figure6"), draw_curves)


# ---- Reports ------------------------------------------------------------------------------------------
def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same file for the same numbers."""
    suffix = path.suffix[1:] or "png"
    metadata = {"Date": None} if suffix == "svg" else None
    with common.replacing(path) as part, matplotlib.rc_context({"svg.hashsalt": "dmg"}):
        figure.savefig(part, dpi=150, format=suffix, metadata=metadata)


def provenance(runs: list[Run]) -> list[str]:
    """What the runs were made with."""

    def values(key: str) -> str:
        """All values of a setting."""
        return ", ".join(sorted({str(run.config.get(key)) for run in runs})) or "none"

    hours = np.concatenate([run.hours for run in runs]) if runs else np.zeros(0)
    data = {f"{run.config['env_id']} {(run.config['dataset_sha256'] or 'none')[:12]}" for run in runs}
    return [
        f"runs: {len(hours)} complete, of {values('script')}, {np.nansum(hours):.1f} hours in all",
        f"torch {values('torch')}; device {values('device')}; threads {values('threads')}",
        f"datasets and their SHA-256: {', '.join(sorted(data)) or 'none'}",
    ]


def seed_rows(cells: Cells) -> list[list]:
    """The numbers of every seed."""
    rows = ["dataset,setting,seed,rows,iterations,first,last,q,diverged,note".split(",")]
    for env_id, settings in cells.items():
        for name, cell in settings.items():
            if not cell.run:
                rows.append([env_id, name, *[""] * 7, cell.note])
                continue
            run, sizes = cell.run, [cell.run.config["rows"], cell.run.iterations[-1]]
            for seed, *numbers in zip(run.seeds, run.curve[0], run.last, run.q, run.diverged * 1):
                rows.append([env_id, name, seed, *sizes, *numbers, cell.note])
    return rows


def read_cells(name: str, listed: list, seeds: int, run_dir: Path) -> Cells:
    """The cells of these jobs, whose settings the runs must have, or of dataset ids, for any length."""
    cells = {}
    for item in listed:
        free = LENGTHS if isinstance(item, str) else set()
        for setting in EXPERIMENTS[name].settings if isinstance(item, str) else [item.setting]:
            job = Job(item, setting, setting.flags) if isinstance(item, str) else item
            wanted = {key: value for key, value in job.settings.items() if key not in free}
            cell = read_cell(run_dir, job.env_id, setting.name, seeds, wanted)
            cells.setdefault(job.env_id, {})[setting.name] = cell
    return cells


def write(name: str, dataset: str, listed: list, seeds: int, run_dir: Path, out: Path) -> None:
    """Write the report of a table or figure into `out` and print it. `listed`: as in read_cells."""
    experiment, cells = EXPERIMENTS[name], read_cells(name, listed, seeds, run_dir)
    runs = [cell.run for settings in cells.values() for cell in settings.values() if cell.run]
    d4rl = dataset == "d4rl"
    whole = len(experiment.d4rl if d4rl else experiment.local)
    part = "" if len(cells) == whole else f", {len(cells)} of its {whole} datasets"
    notes = [NOTES[key] for key in NOTES if name.startswith(key)]
    notes += [f"Not in the paper's text, so ours: {experiment.ours}."] if experiment.ours else []
    text = [
        f"# {experiment.title} ({'D4RL' if d4rl else 'local datasets, not D4RL'}{part})",
        markdown(*TABLES.get(name, figure_table)(cells, d4rl)),
        " ".join([CAPTION.replace("\n", " "), *notes, ORIGINS[dataset]]),
        "\n".join(f"- {line}" for line in remarks(runs) + provenance(runs)),
    ]
    print("\n\n".join(text))
    stem, suffixes = f"{name}-{dataset}", [".md", ".csv"]
    if name in FIGURES:
        figure = FIGURES[name](cells, name)
        for suffix in (".png", ".svg"):
            save(figure, out / f"{stem}{suffix}")
            suffixes.append(suffix)
        text.insert(1, f"![{experiment.title}]({stem}.png)")
    with common.replacing(out / f"{stem}.csv") as path:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(seed_rows(cells))
    with common.replacing(out / f"{stem}.md") as path:
        path.write_text("\n\n".join(text) + "\n", "utf-8")
    print(f"\nwritten: {out / stem}{', '.join(suffixes)}")


def write_named(args: Args) -> int:
    """What --name asks for; returns the exit status."""
    experiment = EXPERIMENTS[args.name]
    known = experiment.d4rl if args.dataset == "d4rl" else experiment.local
    for env_id in args.only:
        if env_id not in known:
            raise ValueError(f"--only {env_id}: {args.name} of {args.dataset} has {', '.join(known)}")
    if args.figure:
        raise ValueError("--figure goes without --name, which draws into --reports")
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: expected 1 or more")
    if len(args.runs) != 1 or not any(args.runs[0].glob("*__*")):
        raise ValueError("--name needs the one folder that holds the run folders, such as runs")
    env_ids = [env_id for env_id in known if env_id in args.only or not args.only]
    write(args.name, args.dataset, env_ids, args.seeds or experiment.seeds, args.runs[0], args.reports)
    return 0


def main(args: Args) -> int:
    """What the command line asks for; returns the exit status, 1 if a folder that it names is no run."""
    if not args.runs:
        print(__doc__.strip())
        return 2
    if args.name:
        return write_named(args)
    if args.only or args.seeds is not None:
        raise ValueError("--only and --seeds go with --name")
    runs, unread = read_runs(args.runs)
    runs = together(runs)
    for name, title in KINDS.items():  # whose scores never stand in one table
        if there := [run for run in runs if kind(run.config) == name]:
            print(f"**{title}**\n\n{markdown(*plain_table(there))}\n")
    if runs:
        print("\n".join([CAPTION, *(f"- {line}" for line in remarks(runs))]))
    if runs and args.figure:
        save(draw(runs), args.figure)
        print(f"learning curves: {args.figure}")
    return int(any(folder in args.runs for folder in unread))


if __name__ == "__main__":
    common.run(main, Args)
