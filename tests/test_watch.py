"""tools/watch.py: the episode is the one that an evaluation plays; the video has its pictures; what is refused. MuJoCo
does not draw here: pictures are made up, so that the tests need no OpenGL."""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import watch

import dmg_iql


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
def run(job: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with two seeds; simulators draw grey pictures."""
    monkeypatch.setattr(watch, "make_env", lambda env_id, size: Drawn(dmg_iql.make_env(env_id)))
    assert dmg_iql.train(job(num_seeds=2, seed=3)) == 0
    return next(job().run_dir.iterdir())


def test_watch(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Steps, return and score of both episodes are those of the script's own evaluation from the same resets; the video
    has one picture more than each has steps, the strip the first and the last of the first episode."""
    watch.main(watch.Args(run, seed=4, episodes=2, reset_seed=7, pictures=3))
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    actor = [param[1:2] for param in saved["nets"]["actor"]]
    mean, scale = np.array(saved["state_mean"]), np.array(saved["state_scale"])
    returns, lengths = dmg_iql.rollout("hopper-medium-local", actor, mean, scale, np.array([[7, 8]]))[:, 0]
    scores = dmg_iql.normalized_score("hopper-medium-local", returns)
    lines = capsys.readouterr().out.splitlines()[-3:]
    for i in range(2):
        assert lines[i] == f"episode {i}: {lengths[i]:.0f} steps, return {returns[i]:.1f}, score {scores[i]:.1f}"
    assert sum(1 for _ in imageio.get_reader(run / "watch.mp4")) == lengths.sum() + 2
    strip = imageio.imread(run / "watch.png")
    assert strip.shape == (32, 96, 3) and strip[0, 0, 0] == 0 and strip[0, -1, 0] == min(4 * lengths[0], 255)
    assert not list(run.glob("*.part*"))


@pytest.mark.parametrize("flags, words", [(dict(seed=2), "seeds 3 to 4"), (dict(seed=5), "seeds 3 to 4"),
                                          (dict(episodes=0), "--episodes"), (dict(size=8), "--size")])  # fmt: skip
def test_refused(run: Path, flags: dict, words: str) -> None:
    """A seed that the run does not have, and numbers out of range; nothing is written."""
    with pytest.raises(SystemExit, match=f"^error: .*{words}"):
        watch.main(watch.Args(run, **flags))
    assert not list(run.glob("watch*"))


def test_no_checkpoint(tmp_path: Path) -> None:
    """A folder without a checkpoint, and a file that is none."""
    (tmp_path / "checkpoint.pt").write_bytes(b"none")
    for path in (tmp_path, tmp_path / "checkpoint.pt", tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="^error: .* is no checkpoint"):
            watch.main(watch.Args(path))


def test_cannot_draw(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MuJoCo cannot draw, the message says what to set."""
    monkeypatch.setattr(Drawn, "render", lambda self: 1 / 0)
    with pytest.raises(SystemExit, match="^error: cannot draw .*MUJOCO_GL=egl"):
        watch.main(watch.Args(run))
