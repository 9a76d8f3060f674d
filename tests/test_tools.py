"""tools/: collected data is reproducible and is what the simulator gave; the plain update of the benchmark is the same
update; the report's numbers are those of the files it reads; benchmark.sh says how it is used."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import collect
import gymnasium as gym
import h5py
import numpy as np
import pytest
import report
import speed
import torch
import train_behaviour

import dmg_iql

ROOT = Path(__file__).resolve().parent.parent


def make(tmp_path: Path, name: str, **flags: object) -> Path:
    """Collect a small dataset; returns its file."""
    path = tmp_path / f"{name}.hdf5"
    collect.main(
        collect.Args(
            **({"env_id": "hopper-medium-local", "size": 1500, "workers": 1, "out": path} | flags)
        )
    )
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "env_id",
    [
        "hopper-random-local",
        "hopper-medium-replay-local",
        "walker2d-medium-expert-local",
        "antmaze-umaze-diverse-local",
    ],
)
def test_same_file_for_any_number_of_workers(tmp_path: Path, env_id: str) -> None:
    """Two runs with one worker and one with two write the same bytes; another seed does not."""
    one, again = make(tmp_path, "one", env_id=env_id), make(tmp_path, "again", env_id=env_id)
    two, other = (
        make(tmp_path, "two", env_id=env_id, workers=2),
        make(tmp_path, "other", env_id=env_id, seed=1),
    )
    assert digest(one) == digest(again) == digest(two) != digest(other)
    with h5py.File(one) as file:
        assert file.attrs["env_id"] == env_id and file.attrs["size"] == 1500
        assert {len(file[key]) for key in file if key != "infos"} == {1500}


def test_rows_are_what_the_simulator_gives(tmp_path: Path) -> None:
    """Playing a recorded episode's actions from its reset seed gives its observations, rewards and ends again; the
    next row is the next state, except after an end."""
    with h5py.File(make(tmp_path, "medium")) as file:
        data = {key: file[key][:] for key in file}
    assert data["observations"].dtype == data["actions"].dtype == data["rewards"].dtype == np.float32
    seed = int(np.random.SeedSequence((0, 0, 0)).spawn(2)[0].generate_state(1)[0])
    env = gym.make("Hopper-v4")
    state, _ = env.reset(seed=seed)
    for i in range(1500):
        np.testing.assert_array_equal(data["observations"][i], state.astype(np.float32))
        state, reward, terminated, truncated, _ = env.step(data["actions"][i])
        assert data["rewards"][i] == np.float32(reward)
        assert data["terminals"][i] == terminated and data["timeouts"][i] == (
            truncated and not terminated
        )
        if terminated or truncated:
            break
    assert i > 50
    assert data["timeouts"][-1] or data["terminals"][-1], (
        "the last episode, cut to fit, ends with a timeout"
    )
    transitions = dmg_iql.load_transitions(tmp_path / "medium.hdf5", 11, 3, 1000)
    assert len(transitions["rewards"]) == 1499 - data["timeouts"][:-1].sum()


def test_qualities_are_ordered(tmp_path: Path) -> None:
    """The mean score of whole episodes: random near 0, medium about a third, expert well above."""
    scores = {}
    for quality in ("random", "medium", "expert"):
        _, returns = collect.collect(f"hopper-{quality}-local", 6000, 0, 2)
        scores[quality] = dmg_iql.normalized_score("hopper-medium-local", returns).mean()
    assert (
        -1 < scores["random"] < 5
        and 20 < scores["medium"] < 45
        and scores["expert"] > scores["medium"] + 20
    ), scores


def test_medium_expert_is_half_and_half(tmp_path: Path) -> None:
    """The first half equals the rows of medium, the second half those of expert's part."""
    with h5py.File(make(tmp_path, "both", env_id="hopper-medium-expert-local", size=3000)) as file:
        both = file["actions"][:]
    with h5py.File(make(tmp_path, "medium")) as file:
        medium = file["actions"][:]
    np.testing.assert_array_equal(both[:1500], medium)
    assert not np.array_equal(both[1500:], medium)


@pytest.mark.parametrize(
    "robot, rows", [("hopper", 12_000), ("walker2d", 40_000), ("halfcheetah", 12_000)]
)
def test_script_evaluates_a_stored_policy_as_collect_does(
    robot: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator is what it should be: the stored medium policy, sampled as it was when its data was collected but
    rolled out by the script's own evaluation, scores what collect.py reports, within the error of the two samples."""
    env_id = f"{robot}-medium-local"
    _, returns = collect.collect(env_id, rows, 0, 1)
    layers = collect.load_policy(f"{robot}-medium.npz:0")
    actor = [array for w, b in layers for array in (w.T[None].copy(), b[None, :, None].copy())]
    generator = torch.Generator().manual_seed(0)

    def sampled(actor: list[torch.Tensor], s: torch.Tensor) -> torch.Tensor:
        mean, log_std = dmg_iql.mlp(actor, s).chunk(2, -1)
        return (mean + log_std.clamp(-20, 2).exp() * torch.randn(mean.shape, generator=generator)).tanh()

    monkeypatch.setattr(dmg_iql, "policy", sampled)
    dims = len(layers[0][0])
    resets = np.random.SeedSequence(5).generate_state(max(len(returns), 12), np.uint64)[None]
    (played,), (lengths,) = dmg_iql.rollout(env_id, actor, np.zeros(dims), np.ones(dims), resets)
    ours, theirs = (dmg_iql.normalized_score(env_id, values) for values in (played, returns))
    error = math.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 3.5 * error and error < 4, (
        ours.mean(),
        theirs.mean(),
        error,
    )
    assert lengths.max() <= 1000 and ours.mean() > 20

    mean_only = lambda actor, s: (
        dmg_iql.mlp(actor, s).chunk(2, -1)[0].tanh()
    )  # another policy: the check has to see it
    monkeypatch.setattr(dmg_iql, "policy", lambda actor, s: -mean_only(actor, s))
    (other,), _ = dmg_iql.rollout(env_id, actor, np.zeros(dims), np.ones(dims), resets[:, :3])
    assert abs(dmg_iql.normalized_score(env_id, other).mean() - theirs.mean()) > 3.5 * error


@pytest.mark.parametrize("env_id", collect.LOCAL_IDS)
def test_every_local_id_has_its_policies(env_id: str) -> None:
    """All 21 ids can be collected: their policies are stored and fit the robot; one action of each lies in [-1, 1]."""
    env, rng = dmg_iql.make_env(env_id), np.random.default_rng(0)
    names = collect.parts(env_id)
    assert (
        len(names) == (2 if "medium-expert" in env_id else len(names)) and len(collect.LOCAL_IDS) == 21
    )
    for name in names:
        state = np.zeros(27) if env_id.startswith("antmaze-") else env.observation_space.sample() * 0
        action = collect.act(collect.load_policy(name), state, env.action_space.shape[0], rng)
        assert action.shape == env.action_space.shape and np.abs(action).max() <= 1


def test_policies_are_small_and_described() -> None:
    """Every behaviour file is under 1 MB and has a JSON beside it with its command, steps and score."""
    for path in collect.BEHAVIOURS.glob("*.npz"):
        robot, quality = path.stem.split("-", 1)
        about = json.loads((collect.BEHAVIOURS / f"{robot}.json").read_text())
        assert path.stat().st_size < 1e6 and "train_behaviour.py" in about["made_by"]
        assert (
            len(about[quality]) == len(np.load(path)["w0"])
            and {"steps", "score", "sd"} <= about[quality][0].keys()
        )


def test_actor_is_exported_as_it_acts() -> None:
    """The stored arrays, run by collect.act without noise, give stable-baselines3's own deterministic action."""
    from stable_baselines3 import SAC

    env = gym.make("Hopper-v4")
    model = SAC(
        "MlpPolicy", env, seed=3, buffer_size=10, policy_kwargs={"net_arch": {"pi": [64, 64], "qf": [8]}}
    )
    arrays = train_behaviour.actor_arrays(model)
    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(3)]

    class Silent:
        def standard_normal(self, size: int, dtype: type) -> np.ndarray:
            return np.zeros(size, dtype)

    for state in np.random.default_rng(0).normal(size=(20, 11)):
        theirs, _ = model.predict(state.astype(np.float32), deterministic=True)
        np.testing.assert_allclose(collect.act(layers, state, 3, Silent()), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"env_id": "hopper-medium-v2"}, "expected one of"),
        ({"size": 10}, "--size"),
        ({"seed": -1}, "--seed"),
        ({"out": Path("/proc/nowhere/x.hdf5")}, "--out"),
    ],
)
def test_collect_refuses(tmp_path: Path, flags: dict, words: str) -> None:
    """Bad flags end with one line that says what is wrong, and leave nothing behind."""
    with pytest.raises(SystemExit, match=words):
        make(tmp_path, "bad", **flags)
    assert not list(tmp_path.iterdir())


def test_collect_keeps_what_is_there(tmp_path: Path) -> None:
    """An existing file is replaced only with --overwrite."""
    path = tmp_path / "there.hdf5"
    path.write_text("mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        make(tmp_path, "there")
    assert path.read_text() == "mine"
    make(tmp_path, "there", overwrite=True)
    assert h5py.is_hdf5(path)


def test_plain_update_is_the_same_update() -> None:
    """tools/speed.py compares like with like: after 20 float64 updates, no parameter differs by more than 1e-9."""
    assert speed.check(speed.Args()) < 1e-9


def test_share_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """tools/speed.py --evaluation plays what the preset asks for, and its share follows from its own two columns."""
    presets = dmg_iql.preset("halfcheetah-medium-local") | {"eval_every": 200, "eval_episodes": 3}
    monkeypatch.setattr(dmg_iql, "preset", lambda env_id: presets)
    args = speed.Args(threads=(1,), seeds=(1, 2), seconds=0.2, rows=1_000, device="cpu")
    rows = [line.split(" | ") for line in speed.evaluation(args, ("halfcheetah-medium-local",))[2:]]
    assert [row[:3] for row in rows] == [
        ["| halfcheetah-medium-local", str(n), f"{n * 3_000:,}"] for n in (1, 2)
    ]
    for row in rows:
        seconds, training, share = float(row[3]), float(row[5]), float(row[6].rstrip("% |"))
        low, high = (
            100 * x / (x + y)
            for x, y in ((seconds - 0.06, training + 0.06), (seconds + 0.06, training - 0.06))
        )
        assert row[4] == "200" and low < share < high


def synthetic_run(folder: Path, name: str, scores: np.ndarray) -> Path:
    """A run folder with given scores [evaluations, seeds, episodes]."""
    run = folder / name
    run.mkdir()
    config = {"env_id": "hopper-medium-local", "exp_name": name, "dataset": "/nowhere"}
    (run / "config.json").write_text(json.dumps(config))
    lines = ["phase,iteration,env_steps,seed,episode,return,length,score,success"]
    for (i, k, e), score in np.ndenumerate(scores):
        lines.append(f"offline,{1000 * (i + 1)},0,{k},{e},0,0,{score},")
    (run / "eval.csv").write_text("\n".join(lines))
    (run / "metrics.csv").write_text("iteration,seed,q_values,wall_seconds,diverged\n1000,0,1.0,1.0,0\n")
    return run


def test_report_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Last 30 ± 14.1 (seeds 20 and 40), best 50 ± 0 at 1,000; marked unfinished without a `done` file; figure
    written."""
    scores = np.array([[[40.0, 60.0], [50.0, 50.0]], [[10.0, 30.0], [40.0, 40.0]]])
    run = report.read_run(synthetic_run(tmp_path, "known", scores))
    line = report.table([run]).splitlines()[2]
    assert "| 30.0 ± 14.1 | 50.0 ± 0.0 (1,000) | nan | 2 × 2,000 (unfinished) |" in line
    report.draw([run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_report_dataset_score(tmp_path: Path) -> None:
    """The dataset's own score is the mean over its whole episodes: returns 3 and 7, not the unfinished 100."""
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["rewards"] = np.array([1, 2, 3, 4, 100], np.float32)
        file["terminals"] = np.array([0, 1, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 1, 0], bool)
    config = {"env_id": "hopper-medium-local", "dataset": str(tmp_path / "data.hdf5")}
    wanted = 100 * (5 + 20.272305) / (3234.3 + 20.272305)
    assert report.dataset_score(config) == pytest.approx(wanted)


def test_report_dataset_score_of_antmaze(tmp_path: Path) -> None:
    """There it is the share of trajectories that see the goal, however often: one of two, without the cut one."""
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["rewards"] = np.array([0, 1, 1, 0, 0, 0, 1], np.float32)
        file["terminals"] = file["rewards"][:] == 1
        file["timeouts"] = np.array([0, 0, 0, 1, 0, 1, 0], bool)
    config = {"env_id": "antmaze-umaze-local", "dataset": str(tmp_path / "data.hdf5")}
    assert report.dataset_score(config) == 50


def test_report_refuses_what_is_no_run(tmp_path: Path) -> None:
    """A folder without a run is named, without a traceback."""
    with pytest.raises(SystemExit, match="not a run folder"):
        report.read_run(tmp_path)


def test_benchmark_usage() -> None:
    """An unknown name prints the names that exist and ends with status 2; a Python that is not 3.11 is refused."""
    run = subprocess.run(["bash", "benchmark.sh", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "quickstart" in run.stderr and "test" in run.stderr
    run = subprocess.run(
        ["bash", "benchmark.sh", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false"},
    )
    assert run.returncode == 1 and "Python 3.11" in run.stderr


def test_help_is_grouped_and_names_every_flag() -> None:
    """`python dmg_iql.py --help` shows each flag with its sentence, below the heading of its group."""
    run = [sys.executable, "dmg_iql.py", "--help"]
    page = subprocess.run(
        run, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    ).stdout
    text = " ".join(page.replace("│", " ").split())
    for flag in vars(dmg_iql.Args()):
        assert f"--{flag.replace('_', '-')}" in text, flag
    assert "share of the policy's value" in text and "expectile" in text
    order = [
        "task options",
        "--env-id",
        "method options",
        "--lam ",
        "--nu ",
        "training options",
        "--iterations ",
    ]
    order += ["run options", "--eval-every ", "machine options", "--device "]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_command_line_is_flat() -> None:
    """Groups are for the page only: flags have no prefix, and Args gets what was given and else its defaults."""
    args = dmg_iql.command_line(["--lam", "0.5", "--num-seeds", "3", "--device", "cpu"])
    assert vars(args) == vars(dmg_iql.Args(lam=0.5, num_seeds=3, device="cpu"))
