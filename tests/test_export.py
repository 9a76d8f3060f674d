"""tools/export.py and common.load_policy: the exported policy acts as its run; what is refused."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import common
import export
import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def trained(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run with seeds 3 and 4."""
    import dmg_iql

    run_dir = tmp_path_factory.mktemp("runs")
    small = dict(hidden_dim=16, batch_size=32, iterations=4, eval_episodes=1, device="cpu")
    job = dmg_iql.Args("hopper-medium-local", hopper_file, "job", run_dir, seed=3, num_seeds=2, **small)
    dmg_iql.train(job)
    return run_dir / "hopper-medium-local__job__s3-4" / "checkpoint.pt"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder of this test's own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pt").write_bytes(trained.read_bytes())
    return tmp_path / "run"


def by_hand(run: Path, k: int, states: np.ndarray) -> np.ndarray:
    """The actions [n, action] of the run's seed number k, in NumPy and float64."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    x = (states - np.array(saved["mean"])) / np.array(saved["std"])
    for i in range(3):
        weight, bias = (saved["agent"][f"actor.layers.{i}.{kind}"][k] for kind in ("weight", "bias"))
        x = x @ weight.double().numpy() + bias.double().numpy()
        x = np.maximum(x, 0) if i < 2 else np.tanh(x)
    return x


@pytest.mark.parametrize("seed", [3, 4, None])
def test_torchscript(run: Path, seed: int | None, capsys: pytest.CaptureFixture) -> None:
    """The file alone, without this project, maps raw states of either dtype to the seed's actions."""
    export.main(export.Args(run, seed=seed))
    policy = torch.jit.load(run / "policy.pt")
    states = 3 * np.random.default_rng(1).normal(size=(50, 11))
    wanted = by_hand(run, 0 if seed is None else seed - 3, states)
    assert np.abs(wanted).max() > 0.05
    np.testing.assert_allclose(policy(torch.tensor(states)).numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(policy(torch.tensor(states).float()).numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(policy(torch.tensor(states[:1])).numpy(), wanted[:1], atol=1e-6)
    assert np.abs(wanted - by_hand(run, 1 if seed in (3, None) else 0, states)).max() > 1e-3
    assert "11 numbers of a state of hopper-medium-local to 3 of an action" in capsys.readouterr().out


def test_acts_as_evaluation_does(run: Path, iql: ModuleType) -> None:
    """The policy's actions in an episode are those of rollout, bit for bit."""
    _, policy = common.load_policy(run, 4)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    config = {
        key: saved["config"][key] for key in ("env_id", "hidden_dim", "num_seeds", "seed", "device")
    }
    args = iql.Args(**config)
    iql.resolve(args)
    agent = iql.DMG(args, 11, 3)
    agent.load_state_dict(saved["agent"])
    env = iql.make_env("hopper-medium-local")
    seen, step = [], env.step

    def watched(action: np.ndarray) -> tuple:
        seen.append((state[-1], action))
        result = step(action)
        state.append(result[0])
        return result

    state = [env.reset(seed=9)[0]]
    env.step = watched
    other = iql.make_env("hopper-medium-local")
    iql.rollout(
        agent, [other, env], np.array([[9], [9]]), np.array(saved["mean"]), np.array(saved["std"])
    )
    assert len(seen) > 5
    for s, action in seen:
        assert torch.equal(policy(torch.tensor(s)[None])[0], torch.tensor(action))


@pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="needs onnx and onnxscript")
def test_onnx(run: Path) -> None:
    """The same as ONNX."""
    import onnx.reference

    export.main(export.Args(run, seed=4, out=run / "policy.onnx"))
    states = 3 * np.random.default_rng(1).normal(size=(50, 11)).astype(np.float32)
    model = onnx.reference.ReferenceEvaluator(str(run / "policy.onnx"))
    (actions,) = model.run(None, {"states": states})
    np.testing.assert_allclose(actions, by_hand(run, 1, states), atol=1e-6)


def test_other_actions_are_not_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What acts otherwise than the script, or not at all, does not replace a file."""
    (run / "policy.pt").write_text("mine")
    real = common.Policy.forward
    for wrong in lambda self, x: real(self, x) + 2e-6, lambda self, x: real(self, x) * torch.nan:
        monkeypatch.setattr(common.Policy, "forward", wrong)
        with pytest.raises(ValueError, match="is not written: its actions are .* off"):
            export.main(export.Args(run))
    assert (run / "policy.pt").read_text() == "mine"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "policy.pt"]


def edit(run: Path, change: Callable[[dict], object]) -> None:
    """Change what a checkpoint holds."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    change(saved)
    torch.save(saved, run / "checkpoint.pt")


DAMAGES = {  # what is done to a checkpoint, and what the message has to say
    "text": (lambda run: (run / "checkpoint.pt").write_text("none"), "no whole checkpoint"),
    "empty": (lambda run: (run / "checkpoint.pt").write_bytes(b""), "no whole checkpoint"),
    "a list": (lambda run: torch.save([1], run / "checkpoint.pt"), "no whole checkpoint"),
    "no mean": (lambda run: edit(run, lambda saved: saved.pop("mean")), "no whole checkpoint"),
    "seed": (
        lambda run: edit(run, lambda saved: saved["config"].update(seed="3")),
        "no whole checkpoint",
    ),
    "no actor": (
        lambda run: edit(run, lambda saved: saved["agent"].clear()),
        "cannot load this network",
    ),
    "long mean": (
        lambda run: edit(run, lambda saved: saved["mean"].append(0.0)),
        "cannot load this network",
    ),
    "a norm": (
        lambda run: edit(
            run, lambda saved: saved["agent"].update({"actor.norm.weight": torch.ones(2, 1)})
        ),
        "cannot load this network",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged(run: Path, name: str) -> None:
    """A file that is no checkpoint is told from a network that is not the script's; nothing is
    written."""
    damage, words = DAMAGES[name]
    damage(run)
    with pytest.raises(ValueError, match=words):
        export.main(export.Args(run))
    assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]


def test_flipped_bit(run: Path) -> None:
    """One bit of a tensor that is not what was saved is noticed."""
    path = run / "checkpoint.pt"
    weight = torch.load(path, weights_only=True)["agent"]["actor.layers.0.weight"]
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        common.load_policy(run)


@pytest.mark.parametrize("seed", [2, 5, -1])
def test_seed_of_another_run(run: Path, seed: int) -> None:
    """A seed that the run does not have."""
    with pytest.raises(ValueError, match=f"--seed {seed}: .* has seeds 3 to 4"):
        export.main(export.Args(run, seed=seed))
