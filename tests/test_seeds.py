"""Several seeds in one job: each is what it is alone, and none is harmed by another's NaN."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from conftest import folder_of
from jobs import ENV_ID, curves, flat, load, rows_of, run, scalars
from torch import Tensor

MAZE = "antmaze-umaze-local"


def of_seed(tensors: dict[str, Tensor], k: int, seeds: int) -> dict[str, Tensor]:
    """A state dict's part [copies, ...] of seed number k. Twins come first: net = twin * seeds + k."""
    return {name: tensor[k::seeds] for name, tensor in tensors.items()}


def rows_of_seed(args: object, seed: int) -> list[dict[str, str]]:
    """eval.csv's rows of one seed."""
    return [row for row in rows_of(folder_of(args) / "eval.csv") if int(row["seed"]) == seed]


def test_a_seed_alone_is_itself_among_others(
    iql: ModuleType, job: Callable, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, a seed trained alone ends where it ends beside two others, to 1e-9: networks, logs and
    episodes, which begin from the same resets. The seeds differ from one another."""
    rollout, resets = iql.rollout, []

    def watched(*inputs: object) -> np.ndarray:
        resets.append(inputs[2])
        return rollout(*inputs)

    monkeypatch.setattr(iql, "rollout", watched)
    trio = job(iql, num_seeds=3, seed=5, exp_name="trio")
    run(trio)
    together, evaluations = load(folder_of(trio))["agent"], list(resets)
    every = np.concatenate([reset.ravel() for reset in evaluations])
    assert len(set(every)) == len(every) == 12, "every episode begins from a reset of its own"
    for k, seed in enumerate((5, 6, 7)):
        resets.clear()
        alone = job(iql, seed=seed, exp_name="alone")
        run(alone)
        for reset, evaluation in zip(resets, evaluations, strict=True):
            np.testing.assert_array_equal(reset, evaluation[k : k + 1])
        others = of_seed(together, (k + 1) % 3, 3)
        for name, tensor in load(folder_of(alone))["agent"].items():
            torch.testing.assert_close(of_seed(together, k, 3)[name], tensor, rtol=0, atol=1e-9)
            assert (others[name] - tensor).abs().max() > 1e-3
        for row, other in zip(rows_of_seed(alone, seed), rows_of_seed(trio, seed), strict=True):
            assert {key: float(value) for key, value in row.items()} == pytest.approx(
                {key: float(value) for key, value in other.items()}, rel=1e-6
            )
        shown, among = curves(folder_of(alone) / f"s{seed}"), curves(folder_of(trio) / f"s{seed}")
        assert flat(shown).keys() == flat(among).keys()
        for tag, curve in shown.items():
            assert list(curve.values()) == pytest.approx(list(among[tag].values()), rel=1e-6)


WAYS = [dict(eval_every=1000), dict(eval_every=5), dict(eval_episodes=5)]
WAYS += [dict(log_every=1), dict(save_every=40)]


def test_evaluating_logging_and_saving_do_not_change_training(iql: ModuleType, job: Callable) -> None:
    """However often, and however long, one evaluates, logs or saves: networks, optimisers and the last
    logged losses are the same bits."""
    outcomes = []
    for number, way in enumerate(WAYS):
        args = job(iql, exp_name=f"way{number}", num_seeds=2, **way)
        run(args)
        saved, shown = load(folder_of(args)), scalars(folder_of(args) / "s1")
        losses = {tag: curve[40] for tag, curve in shown.items() if tag.startswith("losses/")}
        outcomes.append(flat([saved["agent"], saved["optimisers"], losses]))
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.fixture
def umaze_file(tmp_path: Path) -> Path:
    """400 rows of random numbers in the shapes of AntMaze's ant."""
    path, rng = tmp_path / "umaze.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(400, 29)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (400, 8)).astype(np.float32)
        file["rewards"] = (rng.random(400) < 0.1).astype(np.float32)
        file["terminals"] = np.zeros(400, bool)
        file["timeouts"] = np.arange(400) % 100 == 99
    return path


def poisoned(module: ModuleType, network: str, updates: int) -> Callable:
    """DMG.update after which, so many updates later, a network of seed number 1 of 2 is NaN."""
    update, calls = module.DMG.update, []

    def spoilt(self: torch.nn.Module, *inputs: object) -> dict[str, Tensor]:
        log = update(self, *inputs)
        calls.append(None)
        if len(calls) == updates:
            with torch.no_grad():
                getattr(self, network).layers[0].weight[1::2] = torch.nan
        return log

    return spoilt


@pytest.mark.parametrize("network, env_id", [("actor", ENV_ID), ("critic", ENV_ID), ("actor", MAZE)])
def test_a_seed_of_nan_harms_no_other(
    iql: ModuleType,
    job: Callable,
    monkeypatch: pytest.MonkeyPatch,
    umaze_file: Path,
    network: str,
    env_id: str,
) -> None:
    """One of two seeds turns NaN after iteration 25. Its later episodes are NaN, without a step, and
    the job ends well. What belongs to the other seed is as in a healthy run."""
    healthy = replace(job(iql, exp_name="healthy", num_seeds=2), env_id=env_id)
    if env_id == MAZE:
        healthy = replace(healthy, dataset_path=umaze_file, eval_every=40, eval_episodes=1)
    ill = replace(healthy, exp_name="ill")
    run(healthy)
    monkeypatch.setattr(iql.DMG, "update", poisoned(iql, network, 25))
    assert "nan]" in run(ill).splitlines()[-1]
    for row, well in zip(rows_of_seed(ill, 1), rows_of_seed(healthy, 1), strict=True):
        late = {"return": "nan", "length": "0", "score": "nan"} if int(row["iteration"]) > 25 else {}
        assert row == well | late
    assert rows_of_seed(ill, 0) == rows_of_seed(healthy, 0)
    assert curves(folder_of(ill) / "s0") == curves(folder_of(healthy) / "s0")
    after, well = load(folder_of(ill))["agent"], load(folder_of(healthy))["agent"]
    assert flat(of_seed(after, 0, 2)) == flat(of_seed(well, 0, 2))
    assert any(tensor.isnan().any() for tensor in of_seed(after, 1, 2).values())
    assert "resumed at iteration 40" in run(replace(ill, resume=True))
