"""See a trained policy: a video of evaluation episodes from a run's checkpoint, and a strip of pictures.

    pip install imageio-ffmpeg==0.6.0                   # once; it brings the encoder
    MUJOCO_GL=egl python tools/watch.py runs/hopper-medium-local__quickstart__s0-1

writes watch.mp4 and watch.png into the run folder. MUJOCO_GL=egl draws without a screen (Debian: libegl1, libegl-mesa0,
libgl1-mesa-dri). The episodes are those of an evaluation: deterministic actions, states normalised as in training.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dmg_iql


@dataclass
class Args:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """run folder, or a checkpoint.pt, of any of the scripts"""
    seed: int | None = None
    """whose policy, of the run's seeds; default: the first"""
    episodes: int = 1
    """episodes to play, 1 or more"""
    reset_seed: int = 0
    """seed of the first episode's reset, 0 or more; the next one's is one larger"""
    pictures: int = 8
    """pictures in the strip, evenly spread over the first episode, 1 or more"""
    size: int = 480
    """height and width of a picture in pixels, 16 or more"""
    out: Path | None = None
    """where to write, without ending: OUT.mp4 and OUT.png; default: watch in the run folder"""


def load(path: Path, seed: int | None) -> tuple[str, list[torch.Tensor], np.ndarray, np.ndarray]:
    """A checkpoint's environment id, one seed's actor, and the states' mean and scale. Raises SystemExit for a file
    that is none, and for a seed that is not in it."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config, actor = saved["config"], saved["nets"]["actor"]
        first, number = config["seed"], config["num_seeds"]
        mean, scale = np.array(saved["state_mean"]), np.array(saved["state_scale"])
    except Exception as error:  # torch raises many kinds for a damaged file
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise SystemExit(f"error: {path} is no checkpoint of these scripts ({what}); give a run folder") from None
    seed = first if seed is None else seed
    if seed not in range(first, first + number):
        raise SystemExit(f"error: --seed {seed}: the run has seeds {first} to {first + number - 1}")
    return config["env_id"], [param[seed - first : seed - first + 1] for param in actor], mean, scale


def make_env(env_id: str, size: int) -> gym.Env:
    """The simulator of an id, drawing pictures of size x size pixels."""
    look = {"render_mode": "rgb_array", "width": size, "height": size}
    if env_id.startswith("antmaze-"):
        import antmaze  # noqa: F401 (it registers the ids)

        return gym.make(env_id.replace("-local", "-v2"), **look)
    gym.logger.min_level = gym.logger.ERROR
    return gym.make(dmg_iql.ROBOTS[env_id.split("-")[0]][0], camera_name="track", **look)


def play(env: gym.Env, actor: list, mean: np.ndarray, scale: np.ndarray, reset_seed: int) -> tuple[list, float]:
    """One evaluation episode: its pictures, one more than its steps, and its return."""
    state, _ = env.reset(seed=reset_seed)
    pictures, total, ended = [env.render()], 0.0, False
    with tqdm(unit="step") as bar, torch.no_grad():
        while not ended:
            s = torch.as_tensor((state - mean) / scale, dtype=actor[0].dtype)[None, None]
            action = dmg_iql.policy(actor, s)[0, 0].numpy()
            state, reward, terminated, truncated, _ = env.step(action)
            pictures.append(env.render())
            total, ended = total + float(reward), terminated or truncated
            bar.update()
    return pictures, total


def main(args: Args) -> None:
    """Play, write both files, and print the scores. Raises SystemExit for bad flags, files, or where nothing can be
    drawn."""
    if args.episodes < 1 or args.pictures < 1 or args.size < 16 or args.reset_seed < 0:
        raise SystemExit("error: --episodes and --pictures have to be 1 or more, --size 16, --reset-seed 0 or more")
    path = args.run / "checkpoint.pt" if args.run.is_dir() else args.run
    env_id, actor, mean, scale = load(path, args.seed)
    out = args.out or path.with_name("watch")
    try:
        env = make_env(env_id, args.size)
        episodes = [play(env, actor, mean, scale, args.reset_seed + i) for i in range(args.episodes)]
        fps = env.metadata["render_fps"]
        env.close()
    except Exception as error:  # each backend of MuJoCo's has its own
        raise SystemExit(
            f"error: cannot draw ({type(error).__name__}: {error}); without a screen set MUJOCO_GL=egl"
        ) from None
    first, _ = episodes[0]
    chosen = np.linspace(0, len(first) - 1, args.pictures).round().astype(int)
    strip, video = out.with_name(out.name + ".part.png"), out.with_name(out.name + ".part.mp4")
    imageio.imwrite(strip, np.concatenate([first[i] for i in chosen], axis=1))
    os.replace(strip, out.with_name(out.name + ".png"))
    try:
        with imageio.get_writer(video, fps=fps, macro_block_size=2) as writer:
            for pictures, _ in episodes:
                for picture in pictures:
                    writer.append_data(picture)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"error: no video ({error}); pip install imageio-ffmpeg==0.6.0") from None
    os.replace(video, out.with_name(out.name + ".mp4"))
    for i, (pictures, total) in enumerate(episodes):
        score = dmg_iql.normalized_score(env_id, np.array(total))
        print(f"episode {i}: {len(pictures) - 1} steps, return {total:.1f}, score {score:.1f}")
    print(f"{out}.mp4, {out}.png")


if __name__ == "__main__":
    main(tyro.cli(Args))
