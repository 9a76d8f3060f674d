"""A whole job of dmg_iql.py: the files that it leaves, and what is in them."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import folder_of
from jobs import ENV_ID, Finished, command_of, load, rows_of, run, scalars, small
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Hopper-v4 is an old version
LOSSES = ("value_loss", "qf_loss", "actor_loss", "q_values", "v_values")
TAGS = {f"losses/{name}" for name in LOSSES} | {
    "charts/SPS",
    "eval/normalized_score",
    "eval/episodic_return",
}


@dataclass
class Whole:
    """A job that has ended."""

    args: object
    folder: Path
    finished: Finished


@pytest.fixture(scope="module")
def whole(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A job of seeds 3 and 4 whose last iteration, 50, is no multiple of any interval."""
    run_dir = tmp_path_factory.mktemp("whole") / "runs"
    uneven = dict(iterations=50, log_every=15, save_every=40, lam=0.5)
    args = small("dmg_iql", hopper_file, run_dir, seed=3, num_seeds=2, **uneven)
    return Whole(args, folder_of(args), command_of(args))


def test_files(whole: Whole) -> None:
    """Exit status 0, the folder's name, and its files; no temporary file stays."""
    assert whole.finished.status == 0 and "Traceback" not in whole.finished.err
    assert [path.name for path in whole.args.run_dir.iterdir()] == [f"{ENV_ID}__job__s3-4"]
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {"config.json", "eval.csv", "checkpoint.pt", "done", ".lock", "s3", "s4"}


def test_config_json(whole: Whole, hopper_file: Path) -> None:
    """config.json, which is also printed first, has every flag with its resolved value, the script, the
    number of transitions, the data's hash and torch's version."""
    text = (whole.folder / "config.json").read_text()
    assert whole.finished.out.startswith(text)
    config = json.loads(text)
    extra = {"script", "rows", "dataset_sha256", "torch"}
    assert config.keys() == {field.name for field in fields(whole.args)} | extra
    given = dict(
        env_id=ENV_ID, lam=0.5, seed=3, num_seeds=2, iterations=50, dataset_path=str(hopper_file)
    )
    preset = dict(
        nu=0.1, expectile=0.7, temperature=3.0, weight_clip=3.0, gamma=0.99, normalize_states=True
    )
    with h5py.File(hopper_file) as file:
        rows = int((file["timeouts"][:-1] == 0).sum())
    sha = hashlib.sha256(hopper_file.read_bytes()).hexdigest()
    data = dict(script="dmg_iql", rows=rows, dataset_sha256=sha, torch=torch.__version__)
    wanted = given | preset | data
    assert {key: config[key] for key in wanted} == wanted


def test_eval_csv(whole: Whole) -> None:
    """eval.csv has a row per evaluation (also after the last iteration), seed and episode."""
    rows = rows_of(whole.folder / "eval.csv")
    assert list(rows[0]) == ["iteration", "seed", "episode", "return", "length", "score"]
    keys = [(int(row["iteration"]), int(row["seed"]), int(row["episode"])) for row in rows]
    assert keys == [(t, seed, e) for t in (20, 40, 50) for seed in (3, 4) for e in (0, 1)]
    for row in rows:
        score = 100 * (float(row["return"]) + 20.272305) / (3234.3 + 20.272305)
        assert float(row["score"]) == pytest.approx(score, rel=1e-9)


def test_eval_csv_is_what_the_policy_gets(whole: Whole) -> None:
    """The last rows are those of a plain loop over Hopper-v4 with the checkpoint's policy in numpy, from
    the reset seeds that (seed, 2, iteration) gives."""
    saved, env = load(whole.folder), gym.make("Hopper-v4")
    layers = [
        [saved["agent"][f"actor.layers.{i}.{name}"].double().numpy() for name in ("weight", "bias")]
        for i in range(3)
    ]
    for row in rows_of(whole.folder / "eval.csv")[-4:]:
        seed, episode = int(row["seed"]), int(row["episode"])
        resets = np.random.SeedSequence((seed, 2, 50)).generate_state(2, np.uint64)
        s, _ = env.reset(seed=int(resets[episode]))
        total, length, over = 0.0, 0, False
        while not over:
            x = (s - np.array(saved["mean"])) / np.array(saved["std"])
            for i, (weight, bias) in enumerate(layers):
                x = x @ weight[seed - 3] + bias[seed - 3, 0]
                x = np.tanh(x) if i == 2 else np.maximum(x, 0)
            s, reward, terminated, truncated, _ = env.step(x)
            total, length, over = total + reward, length + 1, terminated or truncated
        assert int(row["length"]) == length
        assert float(row["return"]) == pytest.approx(total, rel=1e-4)


def test_checkpoint(whole: Whole, hopper_file: Path) -> None:
    """checkpoint.pt loads without running code. It has settings, iteration, eval.csv's rows, mean and
    standard deviation of the states, and the networks and optimisers of both seeds."""
    saved = load(whole.folder)
    assert saved["iteration"] == 50
    assert saved["config"] == json.loads((whole.folder / "config.json").read_text())
    assert saved["evals"] == (whole.folder / "eval.csv").read_text().splitlines()
    with h5py.File(hopper_file) as file:
        s = file["observations"][:-1][file["timeouts"][:-1] == 0].astype(np.float64)
    np.testing.assert_allclose(saved["mean"], s.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(saved["std"], s.std(0) + 1e-3, rtol=1e-6)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved["agent"].items()}
    for name, nets, fan_in, fan_out in (
        ("actor", 2, 11, 3),
        ("actor_target", 2, 11, 3),
        ("critic", 4, 14, 1),
        ("critic_target", 4, 14, 1),
        ("value", 2, 11, 1),
    ):
        sizes = (fan_in, 16, 16, fan_out)
        for i in range(3):
            assert shapes.pop(f"{name}.layers.{i}.weight") == (nets, *sizes[i : i + 2])
            assert shapes.pop(f"{name}.layers.{i}.bias") == (nets, 1, sizes[i + 1])
    assert not shapes and all(tensor.isfinite().all() for tensor in saved["agent"].values())
    assert saved["optimisers"].keys() == {"actor", "critic", "value", "schedule"}
    for name, steps in ("actor", 25), ("critic", 50), ("value", 50):
        states = saved["optimisers"][name]["state"]
        assert [int(state["step"]) for state in states.values()] == 6 * [steps]
        assert all(
            (state["exp_avg_sq"] >= 0).all() and state["exp_avg"].any() for state in states.values()
        )
    assert float(saved["optimisers"]["actor"]["param_groups"][0]["lr"]) == pytest.approx(0, abs=1e-9)


def test_tensorboard(whole: Whole) -> None:
    """Each seed has its own folder of events. The evaluation's curves are means over eval.csv's rows."""
    for seed in (3, 4):
        shown = scalars(whole.folder / f"s{seed}")
        assert shown.keys() == TAGS
        assert all(
            list(shown[tag]) == [15, 30, 45, 50]
            for tag in TAGS
            if "actor" not in tag and "eval" not in tag
        )
        assert list(shown["losses/actor_loss"]) == [30, 50], "iterations with an actor step"
        rows = [row for row in rows_of(whole.folder / "eval.csv") if int(row["seed"]) == seed]
        for tag, column in ("eval/normalized_score", "score"), ("eval/episodic_return", "return"):
            for t in (20, 40, 50):
                values = [float(row[column]) for row in rows if int(row["iteration"]) == t]
                assert shown[tag].pop(t) == pytest.approx(sum(values) / 2, rel=1e-6)
            assert not shown[tag]


def test_logged_values_are_the_updates(
    iql: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard shows the very values that the update of that iteration and seed returned."""
    update, logs = iql.DMG.update, []

    def watched(self: torch.nn.Module, *inputs: object) -> dict[str, Tensor]:
        log = update(self, *inputs)
        logs.append({f"losses/{name}": value.clone() for name, value in log.items()})
        return log

    monkeypatch.setattr(iql.DMG, "update", watched)
    args = job(iql, num_seeds=2, iterations=25)
    run(args)
    assert logs[9]["losses/q_values"][0] != logs[9]["losses/q_values"][1]
    for k in (0, 1):
        shown = scalars(folder_of(args) / f"s{k}")
        for t in (10, 20, 25):
            assert {tag: shown[tag][t] for tag in logs[t - 1]} == pytest.approx(
                {tag: value[k].item() for tag, value in logs[t - 1].items()}, rel=1e-6
            )
    assert 25 not in shown["losses/actor_loss"]


def test_done_has_the_last_scores(whole: Whole) -> None:
    """`done` is the last printed line: each seed's mean score at the last iteration, to one decimal."""
    line = (whole.folder / "done").read_text()
    assert whole.finished.out.splitlines()[-1] == line
    name, iteration, scores = re.fullmatch(r"(\S+) at (\S+): score \[(.*)\]", line).groups()
    assert (name, iteration) == (ENV_ID, "50")
    rows = rows_of(whole.folder / "eval.csv")[-4:]
    wanted = [
        np.mean([float(row["score"]) for row in rows if row["seed"] == seed]) for seed in ("3", "4")
    ]
    assert [float(word) for word in scores.split()] == pytest.approx(wanted, abs=0.0501)


def test_order_of_files(iql: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are written first, `done` last; eval.csv at each evaluation, then the checkpoint."""
    write, written = iql.write_file, []

    def watched(path: Path, data: bytes) -> None:
        assert not (path.parent / "done").exists()
        written.append((path.name, data.count(b"\n")))
        write(path, data)

    monkeypatch.setattr(iql, "write_file", watched)
    run(job(iql))
    names = [name for name, _ in written]
    half = ["checkpoint.pt", "eval.csv", "checkpoint.pt"]
    assert names == ["config.json", *half, *half, "done"]
    assert [lines for name, lines in written if name == "eval.csv"] == [3, 5]
