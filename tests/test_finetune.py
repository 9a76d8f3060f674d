"""dmg_finetune.py, the online phase: updates against an independent transcription, transitions against
the simulator itself, λ, ν and the buffer by hand, kills and resuming, where it starts from, and what it
refuses."""

import csv
import gc
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import folder_of
from filelock import FileLock, Timeout
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_update import Transcription, all_nets, plain_transitions, stream

import antmaze
import dmg_finetune
import dmg_iql
import dmg_xql

SMALL = dict(hidden_dim=16, batch_size=32, eval_episodes=2, device="cpu")
S, A, R, NOT_DONE, S2 = slice(0, 11), slice(11, 14), 14, 15, slice(16, 27)  # Hopper's columns


@pytest.fixture(scope="module")
def offline(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short job of dmg_iql.py with two seeds."""
    args = dmg_iql.Args("hopper-medium-local", hopper_file, run_dir=tmp_path_factory.mktemp("offline"))
    args = replace(args, num_seeds=2, iterations=20, **SMALL)
    dmg_iql.train(args)
    return folder_of(args)


@pytest.fixture
def tuning(offline: Path, hopper_file: Path, tmp_path: Path) -> Callable:
    """A function that makes dmg_finetune.Args of a short job of two seeds, from `offline` or with
    scratch=True from nothing; keywords override."""

    def make(**changes: object) -> dmg_finetune.Args:
        small = SMALL | dict(iterations=60, eval_every=30, log_every=10, save_every=10, exp_name="job")
        small |= dict(num_seeds=2) if changes.get("scratch") else dict(checkpoint=offline)
        args = dmg_finetune.Args("hopper-medium-local", hopper_file, run_dir=tmp_path / "runs")
        return replace(args, **small | changes)

    return make


def run(args: dmg_finetune.Args) -> dmg_finetune.Args:
    """Train. Returns the flags as they were resolved."""
    args = replace(args)
    dmg_finetune.train(args)
    return args


def run_folder(args: dmg_finetune.Args) -> Path:
    """The folder of a job, whatever its seeds."""
    (folder,) = args.run_dir.glob(f"{args.env_id}__{args.exp_name}__*")
    return folder


def checkpoint_of(args: dmg_finetune.Args) -> dict:
    return torch.load(run_folder(args) / "checkpoint.pt", weights_only=True)


def evaluations(args: dmg_finetune.Args) -> list[dict[str, str]]:
    """The rows of eval.csv."""
    with (run_folder(args) / "eval.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def transitions_of(args: dmg_finetune.Args, width: int = 27, seeds: int = 2) -> np.ndarray:
    """All online transitions [steps, seeds, columns]."""
    dtype = torch.empty(0).numpy().dtype
    return np.fromfile(run_folder(args) / "transitions.bin", dtype).reshape(-1, seeds, width)


def equal(one: object, other: object) -> bool:
    """Whether two nested structures of tensors and numbers are the same, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def killed(args: dmg_finetune.Args, at: Callable[[str], bool]) -> bool:
    """Train in a process of its own that kills itself when `at` says so. It is asked at every step of a
    simulator ("step"), before every call of fsync or sync ("sync"), and after every checkpoint
    ("checkpoint 20"). Returns whether the process was killed; if not, it ended well."""

    def moment(name: str) -> None:
        if at(name):
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        step, sync, write = dmg_finetune.Player.step, os.fsync, dmg_finetune.write_file

        def write_file(path: Path, data: bytes) -> None:
            write(path, data)
            if path.name == "checkpoint.pt":
                moment(f"checkpoint {torch.load(path)['iteration']}")

        dmg_finetune.Player.step = lambda player, action: moment("step") or step(player, action)
        dmg_finetune.write_file = write_file
        os.fsync = lambda file: moment("sync") or sync(file)
        os.sync = lambda: moment("sync")
        dmg_finetune.train(args)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def killed_behind(iteration: int, args: dmg_finetune.Args) -> None:
    """Run a job that is killed right behind the checkpoint of an iteration."""
    assert killed(args, lambda name: name == f"checkpoint {iteration}")


def draws(seed: int, batch_size: int = 32) -> tuple[torch.Tensor, ...]:
    """What a seed draws for its first thousand online steps: places in the buffer, standard Gaussian
    noise for the targets and for the actions, uniform actions in [0, 1]."""
    word = np.random.SeedSequence((seed, 3, 0)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word))
    places = torch.rand(1000, batch_size, dtype=torch.float64, generator=generator)
    noise = torch.randn(1000, batch_size, 3, generator=generator)
    explore = torch.randn(1000, 3, generator=generator)
    return places, noise, explore, torch.rand(1000, 3, generator=generator)


def reset_seed(seed: int, episode: int) -> int:
    """The seed of the reset that begins an online episode, counted from 1."""
    return int(np.random.SeedSequence((seed, 4, episode)).generate_state(1, np.uint64)[0])


# ---- λ, ν and the buffer, by hand ---------------------------------------------------------------------
def test_schedule() -> None:
    """Appendix C.2: λ 0.25 to 0.5 and ν 0.5 to 0.005, nearer by 1 % at updates 1,000, 2,000, ..."""
    args = dmg_finetune.Args(env_id="antmaze-umaze-v2", scratch=True)
    dmg_finetune.resolve(args)
    assert (args.lam_online, args.nu_online) == (0.5, 0.005)
    far = 0.99**100
    wanted = {1: (0.25, 0.5), 999: (0.25, 0.5), 1000: (0.2525, 0.49505), 1001: (0.2525, 0.49505)}
    wanted |= {1999: wanted[1000], 2000: (0.5 - 0.25 * 0.9801, 0.005 + 0.495 * 0.9801)}
    wanted |= {100_000: (0.5 - 0.25 * far, 0.005 + 0.495 * far)}
    for update, values in wanted.items():
        assert dmg_finetune.schedule(args, update) == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("lam, nu", [(0.0, math.inf), (1.0, 0.0)])
def test_ends_of_the_schedule_stay(lam: float, nu: float) -> None:
    """The in-sample ablation (λ 0, ν inf) and TD3 (λ 1, ν 0) keep their λ and ν without another flag."""
    args = dmg_finetune.Args(env_id="antmaze-umaze-v2", scratch=True, lam=lam, nu=nu)
    dmg_finetune.resolve(args)
    for update in (1, 1000, 10**6):
        assert dmg_finetune.schedule(args, update) == (lam, nu)


@pytest.mark.parametrize(
    "env_id, gamma",
    [("antmaze-large-play-v2", 0.995), ("antmaze-medium-play-v2", 0.99), ("hopper-medium-v2", 0.99)],
)
def test_discount(env_id: str, gamma: float) -> None:
    """Appendix C.2: γ is 0.995 on antmaze-large; --gamma overrides."""
    for given, wanted in ((None, gamma), (0.9, 0.9)):
        args = dmg_finetune.Args(env_id=env_id, scratch=True, gamma=given)
        dmg_finetune.resolve(args)
        assert args.gamma == wanted


def test_buffer_rows() -> None:
    """Ten rows of data and room for four transitions behind them for each of two seeds: a place falls on
    the data or on transitions that the seed has, never on those that it has not or on another seed's."""
    args = dmg_finetune.Args(buffer_size=4)

    def at(steps: int, *places: float) -> list[list[int]]:
        places = torch.tensor([places, places], dtype=torch.float64)
        return dmg_finetune.buffer_rows(places, 10, steps, args).tolist()

    assert at(1, 0, 9.9 / 11, 10.1 / 11, 0.999999) == [[0, 9, 10, 10], [0, 9, 14, 14]]
    assert at(3, 10.1 / 13, 12.9 / 13) == [[10, 12], [14, 16]]
    for steps in (4, 5, 1000):  # full: four at most
        assert at(steps, 9.9 / 14, 10.1 / 14, 13.9 / 14) == [[9, 10, 13], [9, 14, 17]]
    places = torch.rand(2, 100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(dmg_finetune.buffer_rows(places, 10, 2, args).flatten(), minlength=18)
    assert (counts[:10] / 2).tolist() == pytest.approx([1e5 / 12] * 10, rel=0.05)
    assert counts[[10, 11, 14, 15]].tolist() == pytest.approx([1e5 / 12] * 4, rel=0.05)
    assert counts[[12, 13, 16, 17]].sum() == 0


# ---- updates and transitions --------------------------------------------------------------------------
@pytest.mark.parametrize("buffer_size", [1000, 7])
def test_forty_updates(
    float64: None, job: Callable, tuning: Callable, hopper_file: Path, buffer_size: int
) -> None:
    """Twenty updates of dmg_iql.py and twenty online ones, λ and ν moving, with another γ, equal the
    plain transcription to 1e-9 in every network of both seeds: constant actor rate online, Adam's states
    carried over, the count of actor steps anew. Batches are of the data and the newest online
    transitions; actions are the policy's, with noise."""
    rates = dict(learning_rate=1e-3, polyak=0.05)
    first = job(dmg_iql, num_seeds=2, iterations=20, eval_episodes=1, exp_name="offline", **rates)
    dmg_iql.resolve(first)
    start = dmg_iql.DMG(first, 11, 3).state_dict()
    dmg_iql.train(first)
    flags = dict(decay=0.5, decay_every=3, gamma=0.9, nu_online=0.3, exploration_noise=0.2)
    args = run(
        tuning(checkpoint=folder_of(first), iterations=20, buffer_size=buffer_size, **rates, **flags)
    )
    end, online = checkpoint_of(args)["agent"], torch.tensor(transitions_of(args))
    s, a, r, d, s2 = plain_transitions(hopper_file, first)
    table = torch.cat([s, a, r, 1 - d, s2], dim=1)
    for k in range(2):
        plain = Transcription(all_nets(start, k, 2), first, "dmg_iql")

        def iterate(batch: torch.Tensor, noise: torch.Tensor, plain: Transcription = plain) -> None:
            r, d = batch[:, R : R + 1], 1 - batch[:, NOT_DONE : NOT_DONE + 1]
            plain.iterate(batch[:, S], batch[:, A], r, d, batch[:, S2], noise)

        indices, noise = stream(k, len(table), args.batch_size)
        for i in range(20):
            iterate(table[indices[i]], noise[i])
        plain.count = 0
        plain.schedule.step = lambda: None
        plain.optimisers["actor"].param_groups[0]["lr"] = args.learning_rate
        places, noise, explore, _ = draws(k)
        for i in range(20):
            action = torch.tanh(plain.nets["actor"](online[i, k, S])) + 0.2 * explore[i]
            torch.testing.assert_close(online[i, k, A], action.clamp(-1, 1), atol=1e-9, rtol=0)
            kept = range(max(i + 1 - buffer_size, 0), i + 1)
            ring = sorted(kept, key=lambda j: j % buffer_size)  # the newest replaces the oldest
            rows = torch.cat([table, online[ring, k]])
            moved = 0.5 ** ((i + 1) // 3)
            plain.args = replace(args, lam=0.5 - 0.25 * moved, nu=0.3 + (0.1 - 0.3) * moved)
            iterate(rows[(places[i] * len(rows)).long()], noise[i])
        for name, net in all_nets(end, k, 2).items():
            for ours, theirs in zip(net.parameters(), plain.nets[name].parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_transitions_are_the_simulators(tuning: Callable) -> None:
    """Every online transition of both seeds is what a fresh simulator gives for its action, from resets
    with the episode's own seed; states are normalised as the data is, terminals end a row. TensorBoard
    has each return."""
    args = run(tuning(iterations=200, eval_every=500))
    saved, online = checkpoint_of(args), transitions_of(args)
    mean, std = np.array(saved["mean"]), np.array(saved["std"])
    ended = 0
    for k in range(2):
        env, episode, state, returns = gym.make("Hopper-v4"), 0, None, []
        for i, row in enumerate(online[:, k]):
            if state is None:
                episode, total = episode + 1, 0.0
                state, _ = env.reset(seed=reset_seed(k, episode))
            np.testing.assert_allclose(row[S], (state - mean) / std, rtol=1e-5, atol=1e-5)
            state, reward, terminated, truncated, _ = env.step(row[A])
            np.testing.assert_allclose(row[S2], (state - mean) / std, rtol=1e-5, atol=1e-5)
            assert row[R] == np.float32(reward) and row[NOT_DONE] == 1 - terminated
            total += reward
            if terminated or truncated:
                returns.append((i + 1, np.float32(total)))
                state = None
        board = EventAccumulator(str(run_folder(args) / f"s{k}")).Reload()
        assert [
            (event.step, event.value) for event in board.Scalars("charts/episodic_return")
        ] == returns
        ended += len(returns)
    assert ended > 4


def test_time_limit_is_not_terminal(tuning: Callable) -> None:
    """Pendulum-v1 never ends but at step 200: that row keeps its true s' and no terminal; the next is of
    a reset. Its actions are kept in [-1, 1], and played as ±2. Without data its states stay as they
    are."""
    args = tuning(scratch=True, env_id="Pendulum-v1", iterations=203, warmup_steps=203, eval_every=500)
    rows = transitions_of(run(args), width=3 + 1 + 2 + 3)
    assert (rows[..., 5] == 1).all() and 0.9 < np.abs(rows[..., 3]).max() <= 1
    np.testing.assert_array_equal(rows[:199, :, 6:], rows[1:200, :, :3])
    assert np.abs(rows[199, :, 6:] - rows[200, :, :3]).max() > 0.1
    for k in range(2):
        env = gym.make("Pendulum-v1")
        np.testing.assert_array_equal(rows[200, k, :3], env.reset(seed=reset_seed(k, 2))[0])
        state, reward, *_ = env.step(2 * rows[200, k, 3:4])
        np.testing.assert_allclose(rows[200, k, 6:], state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows[200, k, 4], reward, rtol=1e-5)


def test_warm_up(tuning: Callable) -> None:
    """The first warmup_steps actions are uniform in [-1, 1] and train nothing; then the policy acts, and
    every step is followed by an update."""
    args = tuning(scratch=True, warmup_steps=40, iterations=41, exploration_noise=0.0)
    killed_behind(40, args)
    dmg_finetune.resolve(args)
    fresh, cold = dmg_finetune.DMG(args, 11, 3), checkpoint_of(args)
    assert equal(dict(fresh.state_dict()), dict(cold["agent"]))
    run(replace(args, resume=True))
    online = torch.tensor(transitions_of(args))
    for k in range(2):
        torch.testing.assert_close(online[:40, k, A], 2 * draws(k)[3][:40] - 1)
    policy = fresh.actor(online[40, :, None, S])[:, 0].detach()
    torch.testing.assert_close(online[40, :, A], policy)
    warm = checkpoint_of(args)["agent"]
    assert not equal(warm["value.layers.0.weight"], cold["agent"]["value.layers.0.weight"])
    assert not equal(warm["critic.layers.0.weight"], cold["agent"]["critic.layers.0.weight"])


def test_actions_in_bounds(tuning: Callable) -> None:
    """Noise does not take an action out of [-1, 1]."""
    actions = transitions_of(run(tuning(exploration_noise=5.0, iterations=30)))[..., A]
    assert np.abs(actions).max() == 1 and np.mean(np.abs(actions) == 1) > 0.5


# ---- where it starts ----------------------------------------------------------------------------------
def test_from_a_checkpoint(tuning: Callable, offline: Path, tmp_path: Path) -> None:
    """From a run folder or its checkpoint alone, wherever that lies, the online phase is the same: of
    all its seeds, from its networks and optimisers, but with the actor's full rate. The checkpoint is
    left alone."""
    before = (offline / "checkpoint.pt").read_bytes()
    args = tuning(save_every=1000)
    killed_behind(0, args)
    start, old = checkpoint_of(args), torch.load(offline / "checkpoint.pt", weights_only=True)
    assert equal(dict(start["agent"]), dict(old["agent"])) and run_folder(args).name.endswith("__s0-1")
    rates = [saved["optimisers"]["actor"]["param_groups"][0].pop("lr") for saved in (start, old)]
    assert rates[0] == pytest.approx(3e-4) and rates[1] == 0
    for name in ("actor", "critic", "value"):
        assert equal(start["optimisers"][name], old["optimisers"][name])
    rows = [(row["iteration"], row["seed"], row["episode"]) for row in evaluations(args)]
    assert rows == [("0", seed, episode) for seed in "01" for episode in "01"]

    shutil.copy(offline / "checkpoint.pt", tmp_path / "copy.pt")
    run(replace(args, exp_name="folder"))
    run(replace(args, exp_name="file", checkpoint=tmp_path / "copy.pt", num_seeds=2))
    folders = [run_folder(replace(args, exp_name=name)) for name in ("folder", "file")]
    for name in ("transitions.bin", "eval.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert {row["iteration"] for row in evaluations(replace(args, exp_name="file"))} == {"0", "30", "60"}
    assert (offline / "checkpoint.pt").read_bytes() == before


def test_from_scratch(tuning: Callable) -> None:
    """Without data: states as they are, batches of online transitions only, D4RL's score of the
    robot."""
    args = run(tuning(scratch=True, lam=1.0, nu=0.0, warmup_steps=10, dataset_path=Path("none")))
    saved, rows = checkpoint_of(args), transitions_of(args)
    assert saved["mean"] == [0] * 11 and saved["std"] == [1] * 11 and len(rows) == 60
    assert (saved["config"]["dataset_sha256"], saved["config"]["rows"]) == (None, 0)
    np.testing.assert_allclose(rows[0, :, 0], 1.25, atol=0.01)  # Hopper's height, not normalised
    for row in evaluations(args):
        assert float(row["score"]) == pytest.approx(
            100 * (float(row["return"]) + 20.272305) / 3254.572305
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_normalisation_is_the_checkpoints(job: Callable, tuning: Callable, normalize: bool) -> None:
    """States are normalised as they were for the policy that is fine-tuned, without another flag."""
    first = job(dmg_iql, iterations=2, eval_episodes=1, exp_name="offline", normalize_states=normalize)
    dmg_iql.train(first)
    args = run(tuning(checkpoint=folder_of(first), iterations=1))
    saved, old = checkpoint_of(args), torch.load(folder_of(first) / "checkpoint.pt", weights_only=True)
    assert (saved["mean"], saved["std"]) == (old["mean"], old["std"])
    assert (saved["std"] != [1] * 11) == normalize


# ---- kills and resuming -------------------------------------------------------------------------------
def test_ten_kills(tuning: Callable, tmp_path: Path) -> None:
    """Killed ten times and more, at random steps of a simulator and calls of fsync, and resumed each
    time, a run leaves the same bits as one that was never killed. Its buffer keeps the newest 13
    transitions."""
    whole = tuning(exp_name="whole", iterations=100, buffer_size=13)
    part, rng = replace(whole, exp_name="part"), np.random.default_rng(0)
    run(whole)
    for kills in range(50):
        left = iter(range(int(rng.integers(5, 90))))
        if not killed(replace(part, resume=kills > 0), lambda name, left=left: next(left, None) is None):
            break
    for name in ("transitions.bin", "eval.csv", "done"):
        assert (run_folder(whole) / name).read_bytes() == (run_folder(part) / name).read_bytes(), name
    one, other = checkpoint_of(whole), checkpoint_of(part)
    for name in ("exp_name", "resume"):
        del one["config"][name], other["config"][name]
    assert equal(one, other)
    ours, theirs = ({path.name for path in run_folder(args).iterdir()} for args in (whole, part))
    assert ours == theirs and kills >= 10


@pytest.mark.parametrize("iteration", [0, 10])
def test_killed_behind_a_checkpoint(
    tuning: Callable, capsys: pytest.CaptureFixture, iteration: int
) -> None:
    """A run killed right behind its first checkpoint, or its second, ends as one that was not."""
    args = [tuning(exp_name=name, iterations=20) for name in ("whole", "part")]
    run(args[0])
    killed_behind(iteration, args[1])
    assert "new run" in capsys.readouterr().out
    run(replace(args[1], resume=True))
    assert f"resumed at iteration {iteration} (before: same)" in capsys.readouterr().out
    for name in ("transitions.bin", "eval.csv", "done"):
        one, other = [(run_folder(job) / name).read_bytes() for job in args]
        assert one == other, name


def test_antmaze(tuning: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AntMaze the reward is -1, 0 at the goal, where the episode ends. Killed within episodes, with
    their goals drawn, a run goes on to the same transitions. (Time is up at step 50 here, and a goal
    that is drawn far to the left is where the ant stands.)"""
    true = antmaze.AntMazeEnv.step

    def step(env: antmaze.AntMazeEnv, action: np.ndarray) -> tuple:
        if env.goal[0] < 0.7:
            env.goal = env.data.qpos[:2].copy()
        return true(env, action)

    monkeypatch.setattr(antmaze.AntMazeEnv, "step", step)
    monkeypatch.setattr(gym.spec("antmaze-umaze-v2"), "max_episode_steps", 50)
    args = tuning(
        scratch=True,
        env_id="antmaze-umaze-v2",
        num_seeds=3,
        iterations=120,
        eval_every=500,
        hidden_dim=8,
    )
    rows = transitions_of(run(replace(args, exp_name="whole")), width=29 + 8 + 2 + 29, seeds=3)
    reward, not_done = rows[..., 37], rows[..., 38]
    assert set(reward.flat) == {0, -1} and ((reward == 0) == (not_done == 0)).all()
    killed_behind(30, args)
    killed_behind(70, replace(args, resume=True))
    run(replace(args, resume=True))
    for name in ("transitions.bin", "eval.csv"):
        ours, theirs = (
            (run_folder(replace(args, exp_name=exp)) / name).read_bytes() for exp in ("job", "whole")
        )
        assert ours == theirs, name
    assert {(row["return"], row["score"]) for row in evaluations(args)} <= {
        ("0.0", "0.0"),
        ("1.0", "100.0"),
    }


def test_a_seed_of_nan(tuning: Callable, offline: Path, tmp_path: Path) -> None:
    """A seed whose policy is not finite does not stop the other, which gets the same bits as beside a
    good one; its own evaluations are NaN."""
    saved = torch.load(offline / "checkpoint.pt", weights_only=True)
    saved["agent"]["actor.layers.2.weight"][1] = math.nan
    torch.save(saved, tmp_path / "nan.pt")
    good, bad = run(tuning(exp_name="good")), run(tuning(exp_name="bad", checkpoint=tmp_path / "nan.pt"))
    np.testing.assert_array_equal(transitions_of(good)[:, 0], transitions_of(bad)[:, 0])
    ours, theirs = evaluations(bad), evaluations(good)
    assert [row for row in ours if row["seed"] == "0"] == [row for row in theirs if row["seed"] == "0"]
    assert {(row["return"], row["score"]) for row in ours if row["seed"] == "1"} == {("nan", "nan")}
    assert np.isfinite(transitions_of(bad)).all()


# ---- what is refused ----------------------------------------------------------------------------------
def refused(args: dmg_finetune.Args, words: str) -> None:
    """A job that does not start says why in one line, and leaves no folder."""
    with pytest.raises(SystemExit) as error:
        dmg_finetune.train(args)
    line = str(error.value)
    assert line.startswith("error: ") and "\n" not in line and words in line, line
    assert not list(args.run_dir.glob("*__job__*"))


BAD_FLAGS = [
    (dict(warmup_steps=-1), "--warmup-steps -1"),
    (dict(buffer_size=0), "--buffer-size 0"),
    (dict(decay=1.1), "--decay 1.1"),
    (dict(decay_every=0), "--decay-every 0"),
    (dict(gamma=1.01), "--gamma 1.01"),
    (dict(lam_online=1.5), "--lam-online 1.5"),
    (dict(nu_online=-1.0), "--nu-online -1.0"),
    (dict(nu_online=math.inf), "--nu-online inf"),
    (dict(nu=1e10, nu_online=math.inf), "--nu-online inf"),
    (dict(exploration_noise=-0.1), "--exploration-noise -0.1"),
    (dict(exploration_noise=math.nan), "--exploration-noise nan"),
    (dict(scratch=True, checkpoint=None, iterations=0), "--iterations 0"),
    (dict(checkpoint=None), "either --checkpoint, a run of dmg_iql.py, or --scratch"),
]


@pytest.mark.parametrize("changes, words", BAD_FLAGS)
def test_bad_flags(tuning: Callable, changes: dict, words: str) -> None:
    """Flags out of range, and neither a checkpoint nor --scratch."""
    refused(tuning(**changes), words)


def test_bad_checkpoints(tuning: Callable, offline: Path, hopper_file: Path, tmp_path: Path) -> None:
    """A checkpoint that is none or damaged, of another script, of other data, seeds, sizes or
    normalisation, and one beside --scratch."""
    xql = dmg_xql.Args("hopper-medium-local", hopper_file, run_dir=tmp_path / "xql")
    xql = replace(xql, iterations=1, **SMALL | dict(eval_episodes=1))
    dmg_xql.train(xql)
    (tmp_path / "half.pt").write_bytes((offline / "checkpoint.pt").read_bytes()[:5000])
    flipped = bytearray((offline / "checkpoint.pt").read_bytes())
    weight = torch.load(offline / "checkpoint.pt")["agent"]["actor.layers.1.weight"].numpy().tobytes()
    flipped[flipped.index(weight)] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    refused(tuning(checkpoint=tmp_path / "flipped.pt"), "flipped.pt cannot be fine-tuned: it is damaged")
    torch.save([1, 2], tmp_path / "list.pt")
    with h5py.File(hopper_file) as file, h5py.File(tmp_path / "other.hdf5", "w") as other:
        for key in file:
            other[key] = file[key][:100]
    for checkpoint in ("none.pt", "half.pt", "list.pt"):
        refused(tuning(checkpoint=tmp_path / checkpoint), f"{checkpoint} cannot be fine-tuned")
    refused(tuning(checkpoint=tmp_path), "checkpoint.pt cannot be fine-tuned")
    refused(tuning(checkpoint=folder_of(xql)), "it is of dmg_xql.py, not of dmg_iql.py")
    refused(tuning(num_seeds=3), "its num_seeds is 2")
    refused(tuning(seed=1), "its seed is 0")
    for env_id in ("halfcheetah-medium-local", "walker2d-medium-v2"):
        refused(tuning(env_id=env_id), "its env_id is hopper-medium-local")
    refused(tuning(normalize_states=False), "its normalize_states is True")
    refused(tuning(antmaze_reward=True), "its antmaze_reward is False")
    refused(tuning(scratch=True, num_seeds=2, checkpoint=offline), "either --checkpoint")
    refused(tuning(dataset_path=tmp_path / "other.hdf5"), "other.hdf5")
    refused(tuning(hidden_dim=8), "size mismatch")


def test_dataset_of_the_checkpoint(tuning: Callable) -> None:
    """Without --env-id, the dataset is that of the offline run."""
    args = tuning(iterations=10, env_id=dmg_finetune.Args.env_id)
    assert run(args).env_id == "hopper-medium-local"


def test_rates_of_a_new_phase(tuning: Callable) -> None:
    """--learning-rate holds for all three networks, whatever the offline rates were."""
    args = tuning(iterations=10, learning_rate=1e-4)
    run(args)
    saved = checkpoint_of(args)["optimisers"]
    assert saved.keys() == {"actor", "critic", "value"}
    for optimiser in saved.values():
        assert float(optimiser["param_groups"][0]["lr"]) == pytest.approx(1e-4)


def test_resumed_from_another_place(tuning: Callable, offline: Path, tmp_path: Path) -> None:
    """A resume finds the offline run under another path, too, and ends as a run that was not stopped."""
    whole, part = [tuning(exp_name=name, iterations=20) for name in ("whole", "part")]
    run(whole)
    killed_behind(10, part)
    moved = shutil.copytree(offline, tmp_path / "moved")
    run(replace(part, resume=True, checkpoint=moved / "checkpoint.pt"))
    for name in ("transitions.bin", "eval.csv"):
        assert (run_folder(whole) / name).read_bytes() == (run_folder(part) / name).read_bytes()


def test_lock_comes_before_reading(tuning: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process is refused before it has read the checkpoint: the first may write a newer one."""
    args = tuning(iterations=10)
    run(args)
    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("transitions.bin was read"))
    with FileLock(run_folder(args) / ".lock"), pytest.raises(Timeout):
        run(replace(args, resume=True))


def test_resume_refused(tuning: Callable) -> None:
    """A run goes on only with its own settings, and only with all its transitions; nothing of it
    changes."""

    def refusal(changed: dmg_finetune.Args) -> str:
        with pytest.raises(SystemExit, match="^error: cannot resume from .*checkpoint.pt") as error:
            run(changed)
        message = str(error.value)
        del error
        gc.collect()  # the traceback, and with it the folder's lock
        return message

    args = tuning()
    killed_behind(40, args)
    files = {path: path.read_bytes() for path in run_folder(args).iterdir() if path.is_file()}
    transitions = run_folder(args) / "transitions.bin"
    cases = [(dict(exploration_noise=0.2), "exploration_noise"), (dict(nu_online=0.3), "nu_online")]
    for changes, words in cases:
        assert words in refusal(replace(args, resume=True, **changes))
    for size in (0, 100, 40 * 2 * 27 * 4 - 1, 40 * 2 * 4):
        transitions.write_bytes(files[transitions][:size])
        assert "cannot reshape" in refusal(replace(args, resume=True))
        assert transitions.read_bytes() == files[transitions][:size]
    transitions.write_bytes(
        files[transitions] + b"1" * 1001
    )  # what came behind the checkpoint is cut off
    with pytest.raises(SystemExit, match="exists; --resume continues it"):
        run(args)
    assert {path: path.read_bytes() for path in files} == files | {
        transitions: files[transitions] + b"1" * 1001
    }
    checkpoint = run_folder(args) / "checkpoint.pt"
    flipped = bytearray(files[checkpoint])
    flipped[len(flipped) // 2] ^= 1
    checkpoint.write_bytes(flipped)
    assert "it is damaged" in refusal(replace(args, resume=True))
    checkpoint.write_bytes(files[checkpoint])
    run(replace(args, resume=True))
    assert transitions_of(args).shape == (60, 2, 27)
