"""dmg_finetune.py: both phases against an independent transcription, online transitions against the simulator itself,
the schedule, the buffer, kills and resuming, starting from checkpoints, and what is refused."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from test_update import Transcription, all_nets

import antmaze
import dmg_finetune
import dmg_iql
import dmg_xql

COLUMNS = {
    "s": slice(0, 11),
    "a": slice(11, 14),
    "r": 14,
    "not_done": 15,
    "s2": slice(16, 27),
}  # of Hopper's transitions


@pytest.fixture
def tuning(hopper_file: Path, tmp_path: Path) -> Callable:
    """A function that makes dmg_finetune.Args of a short Hopper job; keywords override."""

    def make(**changes: object) -> dmg_finetune.Args:
        small = dict(
            env_id="hopper-medium-local", dataset_path=hopper_file, hidden_dim=16, batch_size=32, iterations=20
        )
        small |= dict(online_steps=60, eval_every=30, eval_episodes=2, log_every=10, save_every=10, device="cpu")
        small |= dict(threads=1, exp_name="job", run_dir=tmp_path / "runs", num_seeds=2)
        return dmg_finetune.Args(**(small | changes))

    return make


def folder_of(args: dmg_finetune.Args) -> Path:
    """The folder of a job, with whatever seeds."""
    (folder,) = args.run_dir.glob(f"{args.env_id}__{args.exp_name}__*")
    return folder


def checkpoint_of(args: dmg_finetune.Args) -> dict:
    return torch.load(folder_of(args) / "checkpoint.pt", weights_only=True)


def transitions_of(args: dmg_finetune.Args, width: int = 27) -> np.ndarray:
    """All online transitions [steps, seeds, columns]."""
    dtype = np.float64 if torch.get_default_dtype() == torch.float64 else np.float32
    return np.fromfile(folder_of(args) / "transitions.bin", dtype).reshape(-1, args.num_seeds, width)


def equal(one: object, other: object) -> bool:
    """Whether two nested structures of tensors and numbers are the same, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def killed_at(iteration: int, args: dmg_finetune.Args) -> None:
    """Run a job that is cut short behind the checkpoint of an iteration."""
    save = torch.save

    def dies(state: dict, path: Path) -> None:
        save(state, path)
        if state["iteration"] == iteration:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", dies)
        dmg_finetune.train(args)


# ---- schedule and buffer ---------------------------------------------------------------------------------------------
def test_schedule() -> None:
    """Appendix C.2: λ 0.25 to 0.5 and ν 0.5 to 0.005, nearer by 1 % of the distance at updates 1,000, 2,000, ..."""
    args = dmg_finetune.resolve(dmg_finetune.Args(env_id="antmaze-umaze-v2"))
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
    args = dmg_finetune.resolve(dmg_finetune.Args(env_id="antmaze-umaze-v2", lam=lam, nu=nu))
    for update in (1, 1000, 10**6):
        assert dmg_finetune.schedule(args, update) == (lam, nu)


@pytest.mark.parametrize("env_id, gamma", [("antmaze-large-play-v2", 0.995), ("antmaze-large-diverse-v2", 0.995),
                                           ("antmaze-medium-play-v2", 0.99), ("hopper-medium-v2", 0.99)])  # fmt: skip
def test_gamma_online(env_id: str, gamma: float) -> None:
    """Appendix C.2: γ is 0.995 on antmaze-large, online only."""
    args = dmg_finetune.resolve(dmg_finetune.Args(env_id=env_id))
    assert (args.gamma, args.gamma_online) == (0.99, gamma)


def test_online_rows() -> None:
    """Ten rows of data and a buffer of four behind them for each of two seeds: a fraction falls on the data, or on the
    transitions that a seed has, never on those that it has not or on another seed's."""
    args = dmg_finetune.Args(buffer_size=4)
    at = lambda steps, *fractions: dmg_finetune.online_rows(
        torch.tensor([fractions, fractions], dtype=torch.float64), 10, steps, args
    ).tolist()
    assert at(1, 0, 9.9 / 11, 10.1 / 11, 0.999999) == [[0, 9, 10, 10], [0, 9, 14, 14]]
    assert at(3, 10.1 / 13, 12.9 / 13) == [[10, 12], [14, 16]]
    for steps in (4, 5, 1000):  # full: four at most
        assert at(steps, 9.9 / 14, 10.1 / 14, 13.9 / 14) == [[9, 10, 13], [9, 14, 17]]
    fractions = torch.rand(2, 100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(dmg_finetune.online_rows(fractions, 10, 2, args).flatten(), minlength=18)
    assert (counts[:10] / 2).tolist() == pytest.approx([1e5 / 12] * 10, rel=0.05)
    assert counts[[10, 11, 14, 15]].tolist() == pytest.approx([1e5 / 12] * 4, rel=0.05)
    assert counts[[12, 13, 16, 17]].sum() == 0


# ---- both phases -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("buffer_size", [1000, 7])
def test_forty_updates(float64: None, tuning: Callable, hopper_file: Path, buffer_size: int) -> None:
    """Twenty offline and twenty online updates, λ, ν and γ moving, equal the plain transcription to 1e-9 in every net
    of both seeds: constant actor rate online, Adam's states carried over, the count of actor steps anew. Batches are
    drawn from the data and the newest online transitions."""
    args = tuning(online_steps=20, learning_rate=1e-3, polyak=0.05, decay=0.5, decay_every=3, gamma_online=0.9,
                  nu_online=0.3, buffer_size=buffer_size, exploration_noise=0.2)  # fmt: skip
    first = dmg_finetune.DMG(dmg_finetune.resolve(args), 11, 3)
    start = {name: [param.detach().clone() for param in getattr(first, name)] for name in dmg_finetune.NETS}
    assert dmg_finetune.train(args) == 0
    saved, online = checkpoint_of(args), transitions_of(args)
    args = dmg_finetune.resolve(args)

    with h5py.File(hopper_file) as file:
        data = dmg_iql.load_transitions(hopper_file, 11, 3, 1000)
        assert "timeouts" in file
    mean, scale = np.array(saved["state_mean"]), np.array(saved["state_scale"])
    table = np.concatenate([(data["observations"] - mean) / scale, data["actions"], data["rewards"][:, None],
                            1 - data["terminals"][:, None], (data["next_observations"] - mean) / scale], 1)  # fmt: skip
    indices, noise = dmg_finetune.draw_block(args, 0, len(table), 3)
    fractions, noise_online, _, _ = dmg_finetune.draw_online(args, 0, 3)
    for k in range(2):
        plain = Transcription(all_nets(start, k), args)

        def iterate(batch: np.ndarray, z: torch.Tensor, plain: Transcription = plain) -> None:
            s, a, r, not_done, s2 = (torch.tensor(batch[:, columns]) for columns in COLUMNS.values())
            plain.iterate(s, a, r[:, None], 1 - not_done[:, None], s2, z)

        for i in range(20):
            iterate(table[indices[k, i]], noise[k, i])
        plain.count = 0
        plain.schedule.step = lambda: None
        plain.optimisers["actor"].param_groups[0]["lr"] = args.learning_rate
        for i in range(20):
            kept = [online[j, k] for j in range(i + 1) if j > i - buffer_size]
            ring = sorted(
                range(i + 1 - len(kept), i + 1), key=lambda j: j % buffer_size
            )  # the newest replaces the oldest
            rows = np.concatenate([table, [online[j, k] for j in ring]])
            moved = 0.5 ** ((i + 1) // 3)
            lam, nu = 0.5 - 0.25 * moved, 0.3 + (0.1 - 0.3) * moved
            plain.args = replace(args, lam=lam, nu=nu, gamma=0.9)
            iterate(rows[(fractions[k, i] * len(rows)).long()], noise_online[k, i])
        for name, module in all_nets(saved["nets"], k).items():
            for ours, theirs in zip(module.parameters(), plain.nets[name].parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_transitions_are_the_simulators(tuning: Callable) -> None:
    """Every online transition of every seed is what a fresh simulator gives for its action, from resets with the
    episode's own seed; states are normalised as the data is, terminals end a row, episodes.csv has each episode."""
    args = tuning(online_steps=200)
    assert dmg_finetune.train(args) == 0
    saved, online = checkpoint_of(args), transitions_of(args)
    mean, scale = np.array(saved["state_mean"]), np.array(saved["state_scale"])
    with (folder_of(args) / "episodes.csv").open(newline="") as file:
        logged = [(int(row["env_steps"]), int(row["seed"]), int(row["length"])) for row in csv.DictReader(file)]
    found = []
    for k in range(2):
        env, episode, begin = gym.make("Hopper-v4"), 0, 0
        state = None
        for i, row in enumerate(online[:, k]):
            if state is None:
                episode, begin = episode + 1, i
                state, _ = env.reset(seed=int(dmg_finetune.random_seeds(args, 4, episode)[k, 0]))
            np.testing.assert_allclose(row[COLUMNS["s"]], (state - mean) / scale, rtol=1e-5, atol=1e-5)
            state, reward, terminated, truncated, _ = env.step(row[COLUMNS["a"]])
            np.testing.assert_allclose(row[COLUMNS["s2"]], (state - mean) / scale, rtol=1e-5, atol=1e-5)
            assert row[COLUMNS["r"]] == np.float32(reward) and row[COLUMNS["not_done"]] == 1 - terminated
            if terminated or truncated:
                found.append((i + 1, k, i + 1 - begin))
                state = None
    assert sorted(found) == sorted(logged) and len(found) > 4


def test_time_limit_is_not_terminal(tuning: Callable, tmp_path: Path) -> None:
    """HalfCheetah never falls: the row at step 1,000 keeps its true s' and no terminal; the next one is a reset."""
    path, rng = tmp_path / "cheetah.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(100, 17)), rng.uniform(-1, 1, (100, 6))
        file["rewards"], file["terminals"], file["timeouts"] = rng.normal(size=100), np.zeros(100), np.zeros(100)
    args = tuning(env_id="halfcheetah-medium-local", dataset_path=path, online_steps=1003, iterations=1, hidden_dim=4,
                  batch_size=4, num_seeds=1, eval_every=5000, eval_episodes=1)  # fmt: skip
    assert dmg_finetune.train(args) == 0
    rows = transitions_of(args, 17 + 6 + 2 + 17)[:, 0]
    assert (rows[:, 24] == 1).all()
    np.testing.assert_array_equal(rows[:999, 25:], rows[1:1000, :17])
    assert np.abs(rows[999, 25:] - rows[1000, :17]).max() > 0.1
    text = (folder_of(args) / "episodes.csv").read_text().splitlines()
    assert len(text) == 2 and text[1].split(",")[:2] == ["1000", "0"] and text[1].split(",")[3] == "1000"


def test_actions(tuning: Callable) -> None:
    """The first warmup_steps actions are uniform and train nothing; then the policy acts, with noise, within ±1."""
    args = tuning(warmup_steps=40, online_steps=41, exploration_noise=0.0, iterations=0, save_every=10)
    killed_at(40, args)
    cold = checkpoint_of(args)
    fresh = dmg_finetune.DMG(dmg_finetune.resolve(args), 11, 3)
    for name in dmg_finetune.NETS:
        assert equal([param.detach() for param in getattr(fresh, name)], cold["nets"][name])
    assert dmg_finetune.train(replace(args, resume=True)) == 0
    online = torch.tensor(transitions_of(args))
    uniform = dmg_finetune.draw_online(dmg_finetune.resolve(args), 0, 3)[3]
    assert torch.equal(online[:40, :, COLUMNS["a"]], uniform[:, :40].mT.reshape(2, 3, 40).permute(2, 0, 1))
    s = online[40][:, None, COLUMNS["s"]]
    torch.testing.assert_close(online[40, :, COLUMNS["a"]], dmg_finetune.policy(fresh.actor, s)[:, 0].detach())
    assert not equal(checkpoint_of(args)["nets"]["critic"], cold["nets"]["critic"])
    with (folder_of(args) / "metrics.csv").open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["41", "41"]

    noisy = tuning(exp_name="noisy", exploration_noise=5.0, online_steps=30)
    assert dmg_finetune.train(noisy) == 0
    actions = transitions_of(noisy)[:, :, COLUMNS["a"]]
    assert np.abs(actions).max() == 1 and np.mean(np.abs(actions) == 1) > 0.5


# ---- starting, dying, resuming ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("iteration", [10, 20, 30, 60])
@pytest.mark.parametrize("buffer_size", [1000, 13])
def test_resume(tuning: Callable, iteration: int, buffer_size: int) -> None:
    """Killed in the offline phase, between the phases, in the online phase: resumed, all is as if never killed."""
    assert dmg_finetune.train(tuning(exp_name="whole", buffer_size=buffer_size)) == 0
    part = tuning(exp_name="part", buffer_size=buffer_size)
    killed_at(iteration, part)
    for name in ("episodes.csv", "transitions.bin"):  # rows past the checkpoint are cut off
        with (folder_of(part) / name).open("ab") as file:
            file.write(b"1" * 1001)
    assert dmg_finetune.train(replace(part, resume=True)) == 0
    whole, resumed = folder_of(tuning(exp_name="whole")), folder_of(part)
    for name in ("eval.csv", "episodes.csv", "transitions.bin"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    one, other = checkpoint_of(tuning(exp_name="whole")), checkpoint_of(part)
    for key in ("nets", "optimisers", "collector", "iteration", "diverged"):
        assert equal(one[key], other[key]), key
    assert not list(resumed.glob("*.tmp"))


def test_from_a_checkpoint(tuning: Callable, hopper_file: Path, tmp_path: Path) -> None:
    """Started from dmg_iql.py's checkpoint, of all its seeds, the online phase is the one of a run that trained offline
    by itself; the checkpoint is left alone."""
    both = tuning(exp_name="both")
    assert dmg_finetune.train(both) == 0
    shared = {key: getattr(both, key) for key in ("env_id", "dataset_path", "hidden_dim", "batch_size", "iterations",
              "num_seeds", "eval_episodes", "device", "threads", "run_dir")}  # fmt: skip
    assert dmg_iql.train(dmg_iql.Args(exp_name="offline", **shared)) == 0
    (offline,) = both.run_dir.glob("*__offline__*/checkpoint.pt")
    content = offline.read_bytes()
    args = tuning(exp_name="from", checkpoint=offline, num_seeds=1)  # its seeds are the checkpoint's
    killed_at(40, args)
    assert offline.read_bytes() == content
    offline.rename(tmp_path / "moved.pt")
    again = replace(args, checkpoint=tmp_path / "moved.pt", resume=True)
    assert dmg_finetune.train(again) == 0
    one, other = checkpoint_of(both), checkpoint_of(args)
    assert equal(one["nets"], other["nets"]) and equal(one["optimisers"], other["optimisers"])
    assert folder_of(args).name.endswith("__s0-1")
    assert (folder_of(both) / "transitions.bin").read_bytes() == (folder_of(args) / "transitions.bin").read_bytes()
    with (folder_of(args) / "eval.csv").open(newline="") as file:
        rows = [(row["phase"], row["env_steps"]) for row in csv.DictReader(file)]
    assert rows == [
        (phase, steps) for phase, steps in (("offline", "0"), ("online", "30"), ("online", "60")) for _ in "1234"
    ]


def test_from_scratch(tuning: Callable) -> None:
    """Without data: states as they are, no offline phase, batches of online transitions only."""
    args = tuning(scratch=True, lam=1.0, nu=0.0, warmup_steps=10, dataset_path=Path("none"), num_seeds=1)
    assert dmg_finetune.train(args) == 0
    saved, rows = checkpoint_of(args), transitions_of(replace(args, num_seeds=1))
    assert saved["state_mean"] == [0] * 11 and saved["state_scale"] == [1] * 11 and len(rows) == 60
    config = json.loads((folder_of(args) / "config.json").read_text())
    assert (config["dataset_sha256"], config["iterations"], config["transitions"]) == ("none", 0, 0)
    assert rows[0, 0, 0] == pytest.approx(1.25, abs=0.01)  # Hopper's height, not normalised


def test_antmaze(tuning: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AntMaze the reward is -1, 0 at the goal, where the episode ends; killed within an episode, with its goal
    drawn, a run goes on to the same transitions. Where the goal is far to the left it is as large as the maze."""
    path, rng = tmp_path / "maze.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(100, 29)), rng.uniform(-1, 1, (100, 8))
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros(100), np.zeros(100), np.zeros(100)
    true = antmaze.AntMazeEnv.step

    def step(env: antmaze.AntMazeEnv, action: np.ndarray) -> tuple:
        monkeypatch.setattr(antmaze, "REACHED", 1e3 if env.goal[0] < 0.7 else 0.01)
        return true(env, action)

    monkeypatch.setattr(antmaze.AntMazeEnv, "step", step)
    args = tuning(env_id="antmaze-umaze-v2", dataset_path=path, hidden_dim=8, num_seeds=3, eval_every=5000,
                  eval_episodes=1, iterations=4, online_steps=56)  # fmt: skip
    assert dmg_finetune.train(replace(args, exp_name="whole")) == 0
    rows = transitions_of(replace(args, exp_name="whole"), 29 + 8 + 2 + 29)
    assert set(rows[..., 37].flat) == {0, -1} and ((rows[..., 37] == 0) == (rows[..., 38] == 0)).all()
    killed_at(30, args)
    assert dmg_finetune.train(replace(args, resume=True)) == 0
    for name in ("transitions.bin", "episodes.csv", "eval.csv"):
        ours, theirs = ((folder_of(replace(args, exp_name=run)) / name).read_bytes() for run in ("job", "whole"))
        assert ours == theirs, name
    with (folder_of(args) / "episodes.csv").open(newline="") as file:
        ended = list(csv.DictReader(file))
    assert ended and {(row["success"], row["score"], row["length"]) for row in ended} == {("1", "100.0", "1")}


def test_summary_and_tags(tuning: Callable, capsys: pytest.CaptureFixture) -> None:
    """The last line has the offline and the online score and the regret, as eval.csv has them; λ, ν and online returns
    are in TensorBoard's events and metrics.csv."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = tuning(decay_every=10, decay=0.5, log_every=1)
    assert dmg_finetune.train(args) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    with (folder_of(args) / "eval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mean = lambda steps: np.mean([float(row["score"]) for row in rows if row["env_steps"] == steps])
    regret = 100 - (mean("30") + mean("60")) / 2
    assert f"score {mean('0'):.1f} ± " in line and f"-> {mean('60'):.1f} ± " in line and f"regret {regret:.1f}" in line
    board = EventAccumulator(str(folder_of(args) / "s0")).Reload()
    assert {"schedule/lam", "schedule/nu", "charts/episodic_return"} <= set(board.Tags()["scalars"])
    assert [event.value for event in board.Scalars("schedule/lam")][-1] == pytest.approx(0.5 - 0.25 / 64)
    with (folder_of(args) / "metrics.csv").open(newline="") as file:
        logged = {int(row["iteration"]): (float(row["lam"]), float(row["nu"])) for row in csv.DictReader(file)}
    assert logged[20] == logged[29] == (0.25, 0.1) and logged[30] == pytest.approx((0.375, 0.001 + 0.099 / 2))


# ---- what is refused -------------------------------------------------------------------------------------------------
def refused(args: dmg_finetune.Args) -> str:
    """What a job says that does not start; it leaves no folder."""
    with pytest.raises(SystemExit) as error:
        dmg_finetune.train(args)
    assert str(error.value).startswith("error: ") and not list(args.run_dir.glob("*__job__*"))
    return str(error.value)


@pytest.mark.parametrize("changes, words", [
    (dict(nu=math.inf, nu_online=0.1), "both have to be inf"), (dict(nu_online=math.inf), "both have to be inf"),
    (dict(normalize_rewards=True), "--normalize-rewards"), (dict(online_steps=-1), "--online-steps -1"),
    (dict(warmup_steps=-1), "--warmup-steps"), (dict(buffer_size=0), "--buffer-size"), (dict(decay=0.0), "--decay"),
    (dict(decay=1.1), "--decay"), (dict(decay_every=0), "--decay-every"), (dict(gamma_online=1.0), "--gamma-online"),
    (dict(lam_online=1.5), "--lam-online"), (dict(nu_online=-1.0), "--nu-online"),
    (dict(exploration_noise=-0.1), "--exploration-noise"), (dict(exploration_noise=math.nan), "--exploration-noise"),
    (dict(checkpoint=Path("none.pt"), scratch=True), "none.pt"), (dict(checkpoint=Path("none.pt")), "none.pt"),
])  # fmt: skip
def test_bad_flags(tuning: Callable, changes: dict, words: str) -> None:
    """Flags out of range or at odds with each other."""
    assert words in refused(tuning(**changes))


def test_bad_checkpoints(tuning: Callable, hopper_file: Path, tmp_path: Path) -> None:
    """A checkpoint of another script, another task's or network's, of other data, with other seeds, or damaged."""
    shared = dict(env_id="hopper-medium-local", dataset_path=hopper_file, hidden_dim=16, batch_size=8, iterations=2)
    shared |= dict(eval_episodes=1, device="cpu", threads=1, run_dir=tmp_path / "offline")
    assert dmg_iql.train(dmg_iql.Args(exp_name="iql", **shared)) == 0
    assert dmg_xql.train(dmg_xql.Args(exp_name="xql", **shared)) == 0
    iql, xql = (next((tmp_path / "offline").glob(f"*__{name}__*/checkpoint.pt")) for name in ("iql", "xql"))
    (tmp_path / "half.pt").write_bytes(iql.read_bytes()[:5000])
    assert "dmg_xql.py's" in refused(tuning(checkpoint=xql))
    assert "half.pt" in refused(tuning(checkpoint=tmp_path / "half.pt"))
    other = refused(tuning(checkpoint=iql, hidden_dim=8, num_seeds=1))
    assert "hidden_dim 16 (now 8)" in other and "another --checkpoint" in other and "--overwrite" not in other
    assert "leave out --seed" in refused(tuning(checkpoint=iql, num_seeds=2))
    assert "leave out --scratch" in refused(tuning(checkpoint=iql, num_seeds=1, scratch=True))
    assert "leave out --seed" in refused(tuning(checkpoint=iql, num_seeds=1, seed=3))
    with h5py.File(hopper_file) as file, h5py.File(tmp_path / "other.hdf5", "w") as other:
        for key in file:
            other[key] = file[key][:100]
    changed = tuning(checkpoint=iql, num_seeds=1, dataset_path=tmp_path / "other.hdf5")
    assert "dataset_sha256" in refused(changed)
    assert "normalize_states" in refused(tuning(checkpoint=iql, num_seeds=1, normalize_states=False))
    assert dmg_finetune.train(tuning(checkpoint=iql, num_seeds=1, online_steps=10)) == 0


def test_lost_transitions(tuning: Callable) -> None:
    """A run whose online transitions were cut off since its checkpoint cannot be resumed, and says so."""
    args = tuning()
    killed_at(50, args)
    path = folder_of(args) / "transitions.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SystemExit, match="^error: .*transitions.bin has lost rows.*--overwrite"):
        dmg_finetune.train(replace(args, resume=True))
