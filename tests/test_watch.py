"""tools/watch.py: the episode is the one that an evaluation plays; the video has its pictures; what is
refused, and when. MuJoCo does not draw here: pictures are made up, so that the tests need no OpenGL."""

from pathlib import Path
from types import ModuleType

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import watch
from test_export import run, trained  # noqa: F401 (fixtures)


class Drawn(gym.Wrapper):
    """A simulator whose picture is grey, a little lighter with every step."""

    def reset(self, **kwargs: object) -> tuple:
        self.count = 0
        return self.env.reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple:
        self.count += 1
        return self.env.step(action)

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), min(4 * self.count, 255), np.uint8)


@pytest.fixture
def grey(iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulators draw grey pictures."""
    monkeypatch.setattr(watch, "make_env", lambda env_id, size: Drawn(iql.make_env(env_id)))


def test_watch(run: Path, iql: ModuleType, grey: None, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    """Steps, return and score of both episodes are those of the script's own evaluation from the same
    resets; the video has one picture more than each has steps, the strip the first and the last of the
    first episode."""
    watch.main(watch.Args(run, seed=4, episodes=2, reset_seed=7, pictures=3))
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    args = iql.Args("hopper-medium-local", seed=3, num_seeds=2, hidden_dim=16, device="cpu")
    iql.resolve(args)
    agent = iql.DMG(args, 11, 3)
    agent.load_state_dict(saved["agent"])
    envs = [iql.make_env("hopper-medium-local") for _ in range(4)]
    resets, scale = np.array([[7, 8], [7, 8]]), (np.array(saved["mean"]), np.array(saved["std"]))
    (_, returns), (_, lengths) = iql.rollout(agent, envs, resets, *scale)
    lines = capsys.readouterr().out.splitlines()[-3:]
    for i in range(2):
        score = 100 * (returns[i] + 20.272305) / (3234.3 + 20.272305)
        assert (
            lines[i]
            == f"episode {i}: {lengths[i]:.0f} steps, return {returns[i]:.1f}, score {score:.1f}"
        )
    assert sum(1 for _ in imageio.get_reader(run / "watch.mp4")) == lengths.sum() + 2
    strip = imageio.imread(run / "watch.png")
    assert strip.shape == (32, 96, 3) and strip[0, 0, 0] == 0
    assert strip[0, -1, 0] == min(4 * lengths[0], 255)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "watch.mp4", "watch.png"]


@pytest.mark.parametrize("env_id", ["hopper-medium-local", "antmaze-umaze-v2", "Pendulum-v1"])
def test_simulator_is_the_script_s(iql: ModuleType, env_id: str) -> None:
    """What is drawn is what the script steps: the same states from the same actions."""
    ours, theirs = watch.make_env(env_id, 64), iql.make_env(env_id)
    assert ours.render_mode == "rgb_array"
    np.testing.assert_array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    action = np.full(theirs.action_space.shape, 0.5, np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(ours.step(action)[0], theirs.step(action)[0])


def test_nothing_is_played_in_vain(run: Path, grey: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Without an encoder, and where the files cannot be written, nothing is played."""
    monkeypatch.setattr(watch, "play", lambda *_: pytest.fail("played"))
    with pytest.raises(FileExistsError):
        watch.main(watch.Args(run, out=run / "checkpoint.pt/watch"))
    monkeypatch.setitem(watch.sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match="no video encoder .*pip install imageio-ffmpeg"):
        watch.main(watch.Args(run))
    assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]


def test_cannot_draw(run: Path, grey: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Where MuJoCo cannot draw, the message says what to set; a network that fails is not called a
    picture's fault. Neither leaves a file."""
    monkeypatch.setattr(watch.sys, "unraisablehook", watch.sys.unraisablehook)
    monkeypatch.setattr(Drawn, "render", lambda self: 1 / 0)
    with pytest.raises(ValueError, match="^cannot draw .ZeroDivisionError.*MUJOCO_GL=egl"):
        watch.main(watch.Args(run))
    monkeypatch.undo()
    assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]


def test_policy_of_nan(run: Path, grey: None) -> None:  # noqa: F811
    """A diverged policy is named, with the step at which it gave NaN."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["agent"]["actor.layers.2.bias"].fill_(torch.nan)
    torch.save(saved, run / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"action after 0 steps is \[nan nan nan\]"):
        watch.main(watch.Args(run))
    assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]
