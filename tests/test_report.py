"""tools/report.py on run folders made up here, whose means, deviations, intervals and totals are known."""

import csv
import itertools
import json
import math
from pathlib import Path

import experiments
import numpy as np
import pytest
import report
from experiments import EXPERIMENTS, Setting

HOPPER, WALKER = "hopper-medium-local", "walker2d-medium-local"
ABOUT = {"torch": "2", "numpy": "2", "mujoco": "4", "gymnasium": "1", "device_name": "CPU, 2 cores", "threads": 1}
ABOUT |= {"script_sha256": "a" * 64, "dataset_sha256": "d" * 64, "dataset": "/nowhere"}


def make_run(
    parent: Path,
    env_id: str,
    setting: Setting,
    scores: np.ndarray,
    first: int = 0,
    done: bool = True,
    diverged: tuple[int, ...] = (),
    steps: tuple[int, ...] | None = None,
    **config: object,
) -> Path:
    """A run folder with scores [evaluations, seeds], each of two episodes one below and one above by 1; evaluations
    at iterations 1000, 2000, ...; mean Q of seed k is 100 + k; `steps`: online steps of the evaluations."""
    scores = np.asarray(scores, float)
    seeds = range(first, first + scores.shape[1])
    run = parent / f"{env_id}__{setting.name}__s{seeds[0]}-{seeds[-1]}"
    run.mkdir(parents=True)
    flags = setting.flags | ({} if "scratch" in setting.flags else {"iterations": 1000 * len(scores)})
    values = experiments.resolved(setting.script, env_id, tuple(flags.items()))
    values = values | {"exp_name": setting.name, "seed": first, "num_seeds": len(seeds), **ABOUT}
    (run / "config.json").write_text(json.dumps(values | config))
    with (run / "eval.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("phase,iteration,env_steps,seed,episode,return,length,score,success".split(","))
        for row, k, e in itertools.product(range(len(scores)), range(len(seeds)), (0, 1)):
            online = steps[row] if steps else 0
            writer.writerow(["", 1000 * (row + 1), online, seeds[k], e, 0, 0, scores[row, k] + 2 * e - 1, ""])
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = "iteration,seed,value_loss,qf_loss,actor_loss,q_values,v_values,lam,nu,wall_seconds,diverged"
        writer.writerow(names.split(","))
        for seed in seeds:
            writer.writerow([1000 * len(scores), seed, 0, 0, 0, 100 + seed, 0, 0, 0, 3600, int(seed in diverged)])
    if done:
        (run / "done").write_text("done")
    return run


def rows_of(folder: Path, name: str) -> dict[str, list[str]]:
    """A report's CSV table, by first column."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return {row[0]: row[1:] for row in csv.reader(file)}


def test_cell_numbers(tmp_path: Path) -> None:
    """Seeds 10, 20, 40 at the end: mean 23.3, sample standard deviation 15.3; best at 1,000 by the mean over seeds."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[30, 20, 40], [10, 20, 40]])
    cell = report.read_cell(tmp_path, HOPPER, experiments.DMG, 3)
    np.testing.assert_allclose(cell.last, [10, 20, 40])
    assert cell.best[1] == 1000 and cell.best[0].mean() == 30
    assert cell.text() == "23.3 ± 15.3 (best 30.0)"
    np.testing.assert_array_equal(cell.joined("q"), [100, 101, 102])


def test_seeds_of_several_runs_are_one_cell(tmp_path: Path) -> None:
    """s0-0 and s1-2 together are the three seeds; four wanted: it says so; the run of just these seeds goes first."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[10]])
    make_run(tmp_path, HOPPER, experiments.DMG, [[20, 40]], first=1)
    assert report.read_cell(tmp_path, HOPPER, experiments.DMG, 3).text(best=False) == "23.3 ± 15.3"
    assert report.read_cell(tmp_path, HOPPER, experiments.DMG, 4).text(best=False) == "23.3 ± 15.3 (3 of 4 seeds)"
    make_run(tmp_path, HOPPER, experiments.DMG, [[1, 1, 1]])
    assert report.read_cell(tmp_path, HOPPER, experiments.DMG, 3).text(best=False) == "1.0 ± 0.0"


def test_runs_that_differ_in_their_seeds_only_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Seeds 10 and 30, trained one by one: 20.0 ± 14.1, on whatever machine. Not with a seed that is there already,
    other data, another setting, or one that is unfinished: these have a line each."""
    first = make_run(tmp_path / "a", HOPPER, experiments.DMG, [[50], [10]])
    second = make_run(tmp_path / "b", HOPPER, experiments.DMG, [[40], [30]], first=1, torch="3", threads=2)
    curve = tmp_path / "curve.png"
    report.main(report.Args(runs=[first, second], figure=curve))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "| 20.0 ± 14.1 | 45.0 ± 7.1 (1,000) | nan | 2 × 2,000 |" in lines[2]
    for i, other in enumerate(({}, {"dataset_sha256": "e"}, {"nu": 7.0}, {"exp_name": "other"}, {"done": False})):
        seed = {"first": 1 if other else 0}
        other = make_run(tmp_path / str(i), HOPPER, experiments.DMG, [[40], [30]], **seed, **other)
        report.main(report.Args(runs=[first, other]))
        assert len(capsys.readouterr().out.splitlines()) == 4, other
    kept = report.together([report.read_run(folder) for folder in (first, second)])
    assert kept[0]["seeds"] == [0, 1] and kept[0]["q"].tolist() == [100, 101]


def test_missing_unfinished_failed(tmp_path: Path) -> None:
    """What is not complete is named by what it is, and has no number; an interrupted job has not failed."""
    failed, interrupted = "failed (exit status ", "interrupted; the same command\n\nexit status 1"
    cases = [(None, "unfinished"), ("exit status 1", f"{failed}1)"), ("exit status -9", f"{failed}-9)")]
    cases += [("exit status -15", "unfinished"), (interrupted, "unfinished")]
    for number, (tail, wanted) in enumerate(cases):
        parent = tmp_path / str(number)
        run = make_run(parent, HOPPER, experiments.DMG, [[10, 20]], done=False)
        if tail:
            (parent / "logs").mkdir()
            (parent / "logs" / f"{run.name}.log").write_text(f"... rows\n{tail}\n")
        assert report.read_cell(parent, HOPPER, experiments.DMG, 2).text() == wanted
    assert report.read_cell(tmp_path, WALKER, experiments.DMG, 2).text() == "missing"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"iterations": 999}, "iterations"),
        ({"dataset_sha256": "e" * 64}, "dataset_sha256"),
        ({"batch_size": 8}, "batch_size"),
    ],
)
def test_mixed_settings_are_refused(tmp_path: Path, config: dict, words: str) -> None:
    """Two runs of a cell that differ in what changes results: an error that names both and the setting."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[10]])
    make_run(tmp_path, HOPPER, experiments.DMG, [[20]], first=1, **config)
    with pytest.raises(SystemExit, match=words) as error:
        report.read_cell(tmp_path, HOPPER, experiments.DMG, 2)
    assert "s0-0" in str(error.value) and "s1-1" in str(error.value)


def test_machines_may_differ(tmp_path: Path) -> None:
    """Devices and versions are provenance, not settings."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[10]])
    make_run(tmp_path, HOPPER, experiments.DMG, [[20]], first=1, device_name="a GPU", torch="3", threads=8)
    assert report.read_cell(tmp_path, HOPPER, experiments.DMG, 2).text(best=False) == "15.0 ± 7.1"


@pytest.mark.parametrize("config", [{"lam": 0.5}, {"batch_size": 8}, {"expectile": 0.9}])
@pytest.mark.parametrize("setting", [experiments.ABLATION, experiments.DMG])
def test_wrong_label_does_not_count(tmp_path: Path, setting: Setting, config: dict) -> None:
    """A run whose folder is named like a setting and that had other values is not taken for it, and the cell says so,
    also where the setting is the default of everything."""
    make_run(tmp_path, HOPPER, setting, [[10]], **config)
    (key, value), cell = next(iter(config.items())), report.read_cell(tmp_path, HOPPER, setting, 1)
    assert not cell.runs and cell.text().startswith(f"other settings: {key} {value}, not ")


def test_runs_of_another_length_do_not_count(tmp_path: Path) -> None:
    """Where the jobs are known, a run of other iterations or episodes is none of the table's."""
    (job,) = experiments.jobs("figure4", [HOPPER], 2, 2000, 2000)
    setting = experiments.DMG
    for number, (config, wanted) in enumerate(
        [({}, "15.0 ± 7.1"), ({"eval_episodes": 1}, "other settings: eval_episodes 1, not 10"),
         ({"iterations": 4000}, "other settings: iterations 4000, not 2000")]
    ):  # fmt: skip
        make_run(tmp_path / str(number), HOPPER, setting, [[0, 0], [10, 20]], **({"eval_every": 200} | config))
        cell = report.read_cell(tmp_path / str(number), HOPPER, setting, 2, job)
        assert cell.text(best=False) == wanted


def test_no_seed_counts_twice(tmp_path: Path) -> None:
    """Of runs that have a seed in common the longer one counts; one seed alone is in no larger run's way."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[90]])
    make_run(tmp_path, HOPPER, experiments.DMG, [[20, 30]], first=1)
    make_run(tmp_path, HOPPER, experiments.DMG, [[10, 20, 30, 40]])
    np.testing.assert_array_equal(report.read_cell(tmp_path, HOPPER, experiments.DMG, 4).last, [10, 20, 30, 40])
    np.testing.assert_array_equal(report.read_cell(tmp_path, HOPPER, experiments.DMG, 3).last, [90, 20, 30])
    assert report.read_cell(tmp_path, HOPPER, experiments.DMG, 2).text(best=False) == "90.0 (1 of 2 seeds)"


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    """A diverged policy may have no score: the others are still shown, sums leave the cell out and say so."""
    nan = float("nan")
    make_run(tmp_path, HOPPER, experiments.DMG, [[10, nan, 30]], diverged=(1,))
    make_run(tmp_path, WALKER, experiments.DMG, [[nan, nan, nan]], diverged=(0, 1, 2))
    make_run(tmp_path, "hopper-expert-local", experiments.DMG, [[10, 20, 30]], diverged=(2,))
    cells = [
        report.read_cell(tmp_path, env_id, experiments.DMG, 3) for env_id in (HOPPER, WALKER, "hopper-expert-local")
    ]
    assert cells[0].text() == "20.0 ± 14.1 without 1 that has no score (best 20.0) (× 1 of 3 seeds diverged)"
    assert cells[1].text() == "diverged (× 3 of 3 seeds diverged)"
    assert report.total(cells) == "20.0 (2 diverged, 1 with diverged or missing seeds)"
    assert report.iqm_text(cells).startswith("20.0 [") and "nan" not in report.iqm_text(cells)
    assert report.total(cells[:2]) == "none (2 diverged)" and report.iqm_text(cells[:2]).startswith("none")


def test_t_interval() -> None:
    """By a t table: ten seeds have 9 degrees of freedom, t = 2.262; scores 1 ... 10 have sd 3.0277."""
    assert report.t_interval(np.arange(1.0, 11)) == pytest.approx(2.262 * 3.0277 / math.sqrt(10), abs=1e-3)


def test_iqm() -> None:
    """The mean of the middle half: of 0, ..., 7 it is (2 + 3 + 4 + 5) / 4 = 3.5, whatever dataset they belong to. Its
    interval: bootstrap written out with loops; a dataset is only ever resampled within itself."""
    low_dataset, high_dataset = np.array([0.0, 1, 2, 3]), np.array([4.0, 5, 6, 7])
    point, low, high = report.iqm([low_dataset, high_dataset])
    assert point == 3.5
    rng, means = np.random.default_rng(1), []
    for _ in range(20_000):
        scores = sorted([*rng.choice(low_dataset, 4), *rng.choice(high_dataset, 4)])
        means.append(sum(scores[2:6]) / 4)
    wanted = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([low, high], wanted, atol=0.26)  # the means are multiples of a quarter
    assert np.isnan(report.iqm([np.array([1.0]), high_dataset])[1])


def test_iqm_ignores_outliers() -> None:
    """One seed at a million in eight leaves the interquartile mean where it was."""
    assert report.iqm([np.array([1.0, 1, 1, 1]), np.array([1.0, 1, 1, 1e6])])[0] == 1


def test_table2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rows, totals of means and what is missing; local results without the paper's, D4RL's with them and their sums."""
    make_run(tmp_path, HOPPER, experiments.DMG, [[30, 50]])
    make_run(tmp_path, WALKER, experiments.DMG, [[10, 10]], diverged=(1,))
    make_run(tmp_path, HOPPER, experiments.ABLATION, [[20, 20]])
    report.write("table2", "local", [HOPPER, WALKER], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-local")
    assert not any("paper" in name for name in rows["dataset"])
    assert rows[HOPPER] == ["20.0 ± 0.0 (best 20.0)", "40.0 ± 14.1 (best 40.0)", "2 × 1,000"]
    assert rows[WALKER] == ["missing", "10.0 ± 0.0 (best 10.0) (× 1 of 2 seeds diverged)", "2 × 1,000"]
    assert rows["total of 2"] == ["20.0 (1 missing)", "50.0 (1 with diverged or missing seeds)", ""]
    assert rows["IQM [95 % interval]"][0] == "20.0 [20.0, 20.0] (1 of 2 datasets)"
    with (tmp_path / "out/table2-local-seeds.csv").open() as file:
        seeds = list(csv.DictReader(file))
    assert [(row["setting"], row["seed"], row["last"]) for row in seeds if row["dataset"] == HOPPER][2:] == [
        ("DMG", "0", "30.0"),
        ("DMG", "1", "50.0"),
    ]
    assert [row["diverged"] for row in seeds if row["dataset"] == WALKER and row["seed"]] == ["0", "1"]
    text = (tmp_path / "out/table2-local.md").read_text()
    assert "not D4RL" in text and "torch 2" in text and "d" * 12 in text and "a" * 12 in text
    assert "CPU, 2 cores" in text and text.split("\n\n")[1] in capsys.readouterr().out
    ids = [HOPPER.replace("local", "v2"), "hopper-expert-v2"]
    make_run(tmp_path, ids[0], experiments.DMG, [[30, 50]])
    report.write("table2", "d4rl", ids, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-d4rl")
    paper = dict(zip(rows["dataset"], rows[ids[0]]))
    assert paper["DMG (paper)"] == "100.6 ± 1.9" and paper["IQL (paper)"] == "66.2"
    assert paper["DMG (ours)"] == "40.0 ± 14.1 (best 40.0)"
    assert dict(zip(rows["dataset"], rows["total of 2"]))["DMG (paper)"] == "212.1"  # 100.6 + 111.5
    everything = EXPERIMENTS["table2"].d4rl
    report.write("table2", "d4rl", everything, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table2-d4rl")
    totals = dict(zip(rows["dataset"], rows["locomotion total"]))
    assert totals["DMG (paper)"] == "1182.8" and totals["DMG (ours)"] == "40.0 (14 missing)"
    assert dict(zip(rows["dataset"], rows["antmaze total"]))["IQL (paper)"] == "392.4"
    assert len(rows) == 21 + 4


def test_table1(tmp_path: Path) -> None:
    """A row per method; on D4RL the paper's score of the method that it imitates."""
    env_id = "hopper-medium-v2"
    make_run(tmp_path, env_id, experiments.TD3BC, [[30, 50]])
    report.write("table1", "d4rl", [env_id], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table1-d4rl")
    flags = "--lam 1 --nu 0.4 --temperature 0"
    assert rows["TD3+BC-like"][:5] == ["mild", "full", flags, "40.0 ± 14.1 (best 40.0)", "TD3BC 59.3"]
    assert rows["TD3+BC-like"][5] == "40.0" and rows["TD3+BC-like"][6].startswith("40.0 [")
    wanted = ["missing", "not available", "none (1 missing)", "none", "none"]
    assert rows["TD3-like"][3:] == wanted and len(rows) == 6
    for setting, (method, paper) in zip(EXPERIMENTS["table1"].settings, report.PAPER["table1_settings"].items()):
        assert (setting.action, setting.propagation) == (paper["action"], paper["propagation"]), method


def test_table3(tmp_path: Path) -> None:
    """ablation → DMG for both backbones; the paper's printed totals where all nine datasets are shown."""
    for setting, score in zip(experiments.BACKBONES, (10, 20, 30, 40)):
        make_run(tmp_path, HOPPER, setting, [[score, score + 2]])
    report.write("table3", "local", [HOPPER], 2, tmp_path, tmp_path / "out")
    row = rows_of(tmp_path / "out", "table3-local")[HOPPER]
    assert row[0] == "11.0 ± 1.4 (best 11.0) → 21.0 ± 1.4 (best 21.0)"
    assert row[1].startswith("31.0") and "→ 41.0" in row[1]
    report.write("table3", "d4rl", EXPERIMENTS["table3"].d4rl, 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table3-d4rl")
    assert rows["total of 9"][0] == "725.3 → 792.7" and rows["total of 9"][2] == "747.5 → 804.2"
    assert rows["hopper-medium-v2"][:2] == ["71.1 → 90.1", "missing → missing"]


def test_table4(tmp_path: Path) -> None:
    """offline → online pairs, totals of both, regret over the online evaluations only."""
    scratch, ablation, dmg = EXPERIMENTS["table4"].settings
    steps, online = (0, 0, 1000, 2000), {"online_steps": 2000}
    make_run(tmp_path, HOPPER, dmg, [[0, 0], [20, 30], [60, 60], [80, 90]], steps=steps, **online)
    make_run(tmp_path, HOPPER, ablation, [[0, 0], [10, 10], [20, 20], [10, 10]], steps=steps, **online)
    make_run(tmp_path, HOPPER, scratch, [[0, 0], [1, 3]], steps=(0, 1000), dataset_sha256="none", **online)
    make_run(tmp_path, WALKER, dmg, [[1, 1], [2, 2], [3, 3], [4, 4]], steps=steps, **online)
    report.write("table4", "local", [HOPPER, WALKER], 2, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table4-local")
    text = (tmp_path / "out/table4-local.md").read_text()
    assert f"- datasets (SHA-256): {HOPPER} {'d' * 12}, {WALKER} {'d' * 12}\n" in text  # TD3 from scratch has none
    best = ["2.0 ± 1.4 (best 2.0)", "10.0 ± 0.0 → 10.0 ± 0.0 (best 20.0)", "25.0 ± 7.1 → 85.0 ± 7.1 (best 85.0)"]
    assert rows[HOPPER][:3] == best
    assert rows[HOPPER][3] == "98.0, 85.0, 27.5"  # DMG: 100 - mean(60, 60, 80, 90)
    assert rows["total of 2"][:3] == ["2.0 (1 missing)", "10.0 → 10.0 (1 missing)", "27.0 → 89.0"]
    # the middle half of 4, 4, 80, 90 is 4, 80; resampling the seeds of a dataset makes it 4, 80 or 4, 90
    assert rows["IQM after the online phase [95 % interval]"][2] == "42.0 [42.0, 47.0]"
    report.write("table4", "d4rl", EXPERIMENTS["table4"].d4rl, 2, tmp_path, tmp_path / "out")
    assert rows_of(tmp_path / "out", "table4-d4rl")["total of 6"][:3] == ["0.0", "392.4 → 490.4", "439.4 → 556.4"]


def test_table6(tmp_path: Path) -> None:
    """Ten seeds with scores 1 ... 10: 5.5 ± 2.2 (95 % CI), sd 3.0; the paper's table is an image, so not available."""
    make_run(tmp_path, "hopper-medium-v2", experiments.DMG, [range(1, 11)])
    report.write("table6", "d4rl", ["hopper-medium-v2"], 10, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table6-d4rl")
    wanted = ["100.6 ± 1.9", "not available", "5.5 ± 2.2", "5.5 ± 3.0 (best 5.5)", "10 × 1,000"]
    assert rows["hopper-medium-v2"] == wanted
    assert rows["total of 1"][:3] == ["100.6", "not available", "5.5"]
    assert rows["IQM [95 % interval]"][2].startswith("5.5 [")
    report.write("table6", "d4rl", EXPERIMENTS["table6"].d4rl, 10, tmp_path, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "table6-d4rl")
    assert rows["locomotion total"][:3] == ["1182.8", "not available", "5.5 (14 missing)"]
    assert rows["antmaze total"][0] == "439.4"


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure3", "figure4", "figure6"])
def test_figures(tmp_path: Path, name: str) -> None:
    """PNG and SVG of every figure, also with settings missing; the same SVG for the same runs."""
    ids = EXPERIMENTS[name].local[:2]
    settings = EXPERIMENTS[name].settings
    for setting in settings[:-1] if len(settings) > 1 else settings:
        steps = (0, 500, 1000) if name == "figure6" else None
        make_run(tmp_path, ids[0], setting, [[5, 15], [10, 20], [20, 40]], steps=steps, diverged=(0,))
    texts = []
    for out in (tmp_path / "a", tmp_path / "b"):
        report.write(name, "local", ids, 2, tmp_path, out)
        assert (out / f"{name}-local.png").read_bytes()[:4] == b"\x89PNG"
        texts.append((out / f"{name}-local.svg").read_text())
    assert texts[0] == texts[1] and "<svg" in texts[0]
    assert f"{name}-local.png" in (tmp_path / "a" / f"{name}-local.md").read_text()


def test_figure1_marks_diverged_seeds(tmp_path: Path) -> None:
    """One red × in each of the two panels for each diverged seed, at its score and its Q, beside the line of means."""
    for setting in experiments.LAMBDAS:
        lost = (0, 1) if setting.flags["lam"] == 1 else (1,) if setting.flags["lam"] == 0.75 else ()
        make_run(tmp_path, HOPPER, setting, [[10, 30]], diverged=lost)
    cells = {HOPPER: {s.name: report.read_cell(tmp_path, HOPPER, s, 2) for s in experiments.LAMBDAS}}
    figure = report.draw_grid(cells, "figure1")
    for axis, low, high in zip(figure.axes, (10, 100), (30, 101)):
        line, *crosses = axis.lines
        np.testing.assert_allclose(line.get_xdata(), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(line.get_ydata(), [(low + high) / 2] * 5)
        marked = [(x, y) for cross in crosses for x, y in zip(cross.get_xdata(), cross.get_ydata())]
        assert marked == [(0.75, high), (1, low), (1, high)]


def test_a_seed_without_a_value_is_marked_on_the_edge(tmp_path: Path) -> None:
    """A diverged seed whose score is not a number has its × at the panel's lower edge, not at a score of 0; the line is
    the mean of the others."""
    for setting in experiments.LAMBDAS:
        lost = (1,) if setting.flags["lam"] == 1 else ()
        make_run(tmp_path, HOPPER, setting, [[10, float("nan") if lost else 30]], diverged=lost)
    cells = {HOPPER: {s.name: report.read_cell(tmp_path, HOPPER, s, 2) for s in experiments.LAMBDAS}}
    axis = report.draw_grid(cells, "figure1").axes[0]
    line, *crosses = axis.lines
    np.testing.assert_allclose(line.get_ydata(), [20, 20, 20, 20, 10])
    (cross,) = [cross for cross in crosses if len(cross.get_xdata())]
    assert list(cross.get_xdata()) == [1] and list(cross.get_ydata()) == [0]
    assert cross.get_transform() == axis.get_xaxis_transform()


@pytest.mark.parametrize("lost", [(), (1,)])
def test_panels_fill_the_figure(tmp_path: Path, lost: tuple[int, ...]) -> None:
    """Marks, also those on the edge, leave the panels their room: each has most of its half of the figure."""
    for env_id, setting in itertools.product((HOPPER, WALKER), experiments.LAMBDAS):
        make_run(tmp_path, env_id, setting, [[10, float("nan") if lost else 30]], diverged=lost)
    cells = {e: {s.name: report.read_cell(tmp_path, e, s, 2) for s in experiments.LAMBDAS} for e in (HOPPER, WALKER)}
    figure = report.draw_grid(cells, "figure1")
    figure.tight_layout()
    for axis in figure.axes:
        assert axis.get_position().width > 0.35 and axis.get_position().height > 0.3


@pytest.mark.parametrize("name", ["figure4", "figure6"])
def test_curves(tmp_path: Path, name: str) -> None:
    """Figure 4: the means over seeds against iterations. Figure 6: from the end of the offline phase on, against online
    steps."""
    (setting, *_), steps = EXPERIMENTS[name].settings[-1:], (0, 0, 500, 1000)
    make_run(
        tmp_path, HOPPER, setting, [[1, 3], [5, 15], [10, 20], [20, 40]], steps=steps if name == "figure6" else None
    )
    figure = report.draw_curves({HOPPER: {setting.name: report.read_cell(tmp_path, HOPPER, setting, 2)}}, name)
    (line,) = figure.axes[0].lines
    wanted = {"figure4": ([1000, 2000, 3000, 4000], [2, 10, 15, 30]), "figure6": ([0, 500, 1000], [10, 15, 30])}[name]
    np.testing.assert_allclose(line.get_xdata(), wanted[0])
    np.testing.assert_allclose(line.get_ydata(), wanted[1])


def test_a_run_that_is_going_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Files of a run that is going on end anywhere: half rows and half evaluations are left out, and one without an
    evaluation yet is named while the others are listed. Runs in folders below are found."""
    run = make_run(tmp_path / "iterations-5000", HOPPER, experiments.DMG, [[10, 20], [30, 50]], done=False)
    rows = (run / "eval.csv").read_text().splitlines()
    (run / "eval.csv").write_text("\n".join([*rows[:-2], rows[-2][:15]]))
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text() + "2000,0,0.5")
    early = make_run(tmp_path, WALKER, experiments.DMG, [[10, 20]], done=False)
    (early / "eval.csv").write_text(rows[0] + "\n")
    report.main(report.Args(runs=[tmp_path]))
    printed = capsys.readouterr().out
    assert "15.0 ± 7.1" in printed and "2 × 1,000 (unfinished)" in printed and f"{early}: no evaluation yet" in printed


def test_figure3_hours(tmp_path: Path) -> None:
    """An hour for 2,000 iterations is 500 hours for a million; the paper's 1.7 h beside D4RL's only."""
    for kind in ("local", "v2"):
        make_run(tmp_path, f"halfcheetah-medium-replay-{kind}", EXPERIMENTS["figure3"].settings[0], [[1], [2]])
    for kind in ("local", "d4rl"):
        report.write("figure3", kind, getattr(EXPERIMENTS["figure3"], kind), 1, tmp_path, tmp_path / "out")
        with (tmp_path / f"out/figure3-{kind}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert [row[4] for row in rows if row[1] == "DMG (ours)"] == ["500.00"]
        assert [row[4] for row in rows if row[1] == "DMG (paper)"] == (["1.7"] if kind == "d4rl" else [])


def test_d4rl_and_local_are_never_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder with both gives two tables."""
    for env_id in (HOPPER, "hopper-medium-v2"):
        make_run(tmp_path, env_id, experiments.DMG, [[1, 2]])
    report.main(report.Args(runs=[tmp_path]))
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert ["-v2" in part for part in tables] == [True, False] and ["local" in part for part in tables] == [False, True]


def test_report_command_refuses(tmp_path: Path) -> None:
    """An id that is not in the table, and --name without a folder of runs."""
    with pytest.raises(SystemExit, match="hopper-v9"):
        report.main(report.Args(runs=[tmp_path], name="table2", only=("hopper-v9",)))
    with pytest.raises(SystemExit, match="one folder"):
        report.main(report.Args(runs=[tmp_path / "no"], name="table2"))
