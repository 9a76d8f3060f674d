"""See a trained policy: a video of evaluation episodes from a run's checkpoint, and a strip of pictures.

    pip install imageio-ffmpeg==0.6.0                   # once; it brings the encoder
    MUJOCO_GL=egl python tools/watch.py runs/hopper-medium-local__quickstart__s0-1

writes watch.mp4 and watch.png into the run folder. MUJOCO_GL=egl draws without a screen (on Debian with
libegl1, libegl-mesa0 and libgl1-mesa-dri). The episodes are those of an evaluation: deterministic
actions, states normalised as in training.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch
import tyro
from common import Policy, load_policy, normalized_score, replacing, run
from gymnasium.envs.mujoco import MujocoEnv
from tqdm import tqdm

import dmg_iql


@dataclass
class Args:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """run folder, or a checkpoint.pt, of any of the scripts"""
    seed: int | None = None
    """whose policy, of the run's seeds; default: the first"""
    episodes: int = 1
    """episodes to play, 1 to 1,000"""
    reset_seed: int = 0
    """seed of the first episode's reset, 0 or more; the next one's is one larger"""
    pictures: int = 8
    """pictures in the strip, evenly spread over the first episode, 1 to 1,000"""
    size: int = 480
    """height and width of a picture in pixels, 16 to 4,096"""
    out: Path | None = None
    """where to write, without ending: OUT.mp4 and OUT.png; default: watch in the run folder"""


@contextmanager
def drawing() -> Iterator[None]:
    """Turn an error of what draws, of which each way has its own kinds, into ValueError."""
    try:
        yield
    except Exception as error:
        sys.unraisablehook = lambda _: (
            None
        )  # else Gymnasium's half-made viewer has a traceback of its own
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot draw ({why}); without a screen set MUJOCO_GL=egl") from None


def make_env(env_id: str, size: int) -> gym.Env:
    """The script's simulator of an id; a robot or a maze is drawn in size x size pixels."""
    env, look = dmg_iql.make_env(env_id), {"render_mode": "rgb_array"}
    if isinstance(env.unwrapped, MujocoEnv):
        look |= {"width": size, "height": size}
        if not env_id.startswith("antmaze-"):
            look["camera_name"] = "track"
    with drawing():
        return gym.make(env.spec, **look)


@torch.no_grad()
def play(env: gym.Env, policy: Policy, reset_seed: int) -> tuple[list, float]:
    """One evaluation episode: its pictures, one more than its steps, and its return. Raises ValueError
    where it cannot be drawn, or where an action is not finite."""
    state, _ = env.reset(seed=reset_seed)
    pictures, total, ended = [], 0.0, False
    with tqdm(unit="step") as bar:
        while True:
            with drawing():
                pictures.append(env.render())
            if ended:
                return pictures, total
            action = policy(torch.tensor(state)[None])[0].numpy()
            if not np.isfinite(action).all():
                raise ValueError(f"the policy's action after {len(pictures) - 1} steps is {action}")
            state, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
            bar.update()


def find_encoder() -> None:
    """Raises ValueError where there is no video encoder."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"no video encoder ({error}); pip install imageio-ffmpeg==0.6.0") from None


def main(args: Args) -> None:
    """Play, write both files, print the scores. Raises ValueError and OSError for a bad flag or file,
    and where nothing can be drawn."""
    for name, low, high in ("episodes", 1, 1000), ("pictures", 1, 1000), ("size", 16, 4096):
        if not low <= getattr(args, name) <= high:
            raise ValueError(f"--{name} {getattr(args, name)}: expected {low} to {high}")
    if not 0 <= args.reset_seed < 2**63:
        raise ValueError(f"--reset-seed {args.reset_seed}: expected 0 or more, below 2^63")
    env_id, policy = load_policy(args.run, args.seed)
    find_encoder()
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "watch"
    names = [out.with_name(out.name + ending) for ending in (".png", ".mp4")]
    with replacing(names[0]) as strip, replacing(names[1]) as video:
        strip.touch()  # fails now rather than after the playing
        env = make_env(env_id, args.size)
        episodes = [play(env, policy, args.reset_seed + i) for i in range(args.episodes)]
        first, _ = episodes[0]
        chosen = np.linspace(0, len(first) - 1, args.pictures).round().astype(int)
        imageio.imwrite(strip, np.concatenate([first[i] for i in chosen], axis=1))
        fps = env.metadata["render_fps"]
        with imageio.get_writer(video, fps=fps, macro_block_size=2) as writer:
            for pictures, _ in episodes:
                for picture in pictures:
                    writer.append_data(picture)
    for i, (pictures, total) in enumerate(episodes):
        score = ""
        if env_id.split("-")[0] in dmg_iql.ROBOTS:
            score = f", score {normalized_score(env_id, total):.1f}"
        print(f"episode {i}: {len(pictures) - 1} steps, return {total:.1f}{score}")
    print(*names, sep=", ")


if __name__ == "__main__":
    run(main, Args)
