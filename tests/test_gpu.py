"""tools/gpu.py: all of it on the CPU; every step fails when what it looks at is broken; a step that
fails does so alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gpu
import numpy as np
import pytest
import speed
import torch
from test_graphs import fake_graphs  # noqa: F401 (a fixture)

QUICK = gpu.Args(device="cpu", quick=True)


@pytest.fixture(autouse=True)
def float32() -> object:
    """The checks set float64, each in a process of its own; here they do not."""
    yield
    torch.set_default_dtype(torch.float32)


def test_quick(tmp_path: Path) -> None:
    """`--device cpu --quick` goes through every step that needs no GPU, in a minute on an idle
    machine."""
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path / "new")]
    command = [sys.executable, "tools/gpu.py", *words]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=gpu.ROOT, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "new/gpu.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["step", "verdict", "result", "seconds"]
    verdicts = {row[0]: row[1] for row in rows[2:]}
    needs_gpu = verdicts.pop("graphs")
    assert needs_gpu == "-" and set(verdicts.values()) == {"ok"}
    steps = "machine|device|seed alone|resume|eager, 1 seed(s)|plain, 1 seed(s)|eager, 2 seed(s)"
    steps += "|plain, 2 seed(s)|profile|evaluation, antmaze|evaluation, hopper|collect|training"
    assert list(verdicts) == steps.split("|")
    saved = json.loads((tmp_path / "new/gpu.json").read_text(encoding="utf-8"))
    assert [row[0] for row in saved["rows"]] == [row[0] for row in rows[2:]]
    assert saved["steps"]["device"]["difference"] < 1e-9 and saved["steps"]["resume"]["difference"] == 0
    training = saved["steps"]["training"]
    assert list(training["scores"]) == ["25", "50", "75", "100"] and len(training["scores"]["100"]) == 2
    assert 0 < training["evaluation"] < training["seconds"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["gpu.json", "gpu.md"]
    assert not list(tmp_path.glob("tmp*")), "the data and the runs are gone"


# ---- what is broken shows -----------------------------------------------------------------------------
def broken(function: Callable, *args: object) -> str:
    """What a step that fails says."""
    with pytest.raises(RuntimeError) as error:
        speed.apart(120, function, *args)
    return str(error.value)


def test_update_is_wrong(iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A λ that is one part in a million off."""
    real = iql.critic_loss
    monkeypatch.setattr(iql, "critic_loss", lambda *rest: real(*rest[:-1], rest[-1] * (1 + 1e-6)))
    assert "the update and the CPU's, 100 iterations" in broken(gpu.device_equals_cpu, QUICK)


def test_rates_are_float32(monkeypatch: pytest.MonkeyPatch, fake_graphs: None) -> None:  # noqa: F811
    """In float64, torch's fused Adam on a GPU refuses a learning rate in float64 (seen with torch 2.11):
    the checks give it one in float32."""
    real = torch.optim.Adam.step

    def step(optimiser: torch.optim.Adam) -> None:
        (group,) = optimiser.param_groups
        if group["fused"] and group["lr"].dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Double")
        real(optimiser)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    for check in gpu.device_equals_cpu, gpu.graphs_equal_eager, gpu.seed_alone:
        assert speed.apart(120, check, QUICK)[1]["difference"] < 1e-9
    monkeypatch.setattr(speed, "float32_rates", lambda agent: None)
    for check in gpu.device_equals_cpu, gpu.graphs_equal_eager, gpu.seed_alone:
        assert "found Double" in broken(check, QUICK)


def test_graphs_are_wrong(iql: ModuleType, fake_graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Graphs faked on the CPU are equal to eager; they are not where they see old noise, or skip a
    step."""
    result, found = speed.apart(120, gpu.graphs_equal_eager, QUICK)
    assert result == "CUDA graphs and eager, 100 iterations in float64: equal to the last bit"
    real = iql.captured

    def old_noise(agent: torch.nn.Module) -> Callable:
        replay, first = real(agent), []

        def wrong(batch: torch.Tensor, noise: torch.Tensor, actor_step: bool) -> dict:
            first.append(noise.clone())
            return replay(batch, first[0], actor_step)

        return wrong

    def no_actor(agent: torch.nn.Module) -> Callable:
        replay = real(agent)
        return lambda batch, noise, actor_step: replay(batch, noise, False)

    for wrong, words in (old_noise, "difference"), (no_actor, "inf"):
        monkeypatch.setattr(iql, "captured", wrong)
        assert words in broken(gpu.graphs_equal_eager, QUICK)


def test_seeds_see_each_other(iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers that depend on the seeds beside; a loss that mixes them."""
    real, loss = iql.random_seeds, iql.value_loss
    monkeypatch.setattr(iql, "random_seeds", lambda args, *key: real(args, *key, args.num_seeds))
    assert "a seed in a batch and alone" in broken(gpu.seed_alone, QUICK)
    monkeypatch.setattr(iql, "random_seeds", real)
    monkeypatch.setattr(iql, "value_loss", lambda u, args: loss(u, args) * (1 + 1e-6 * u.mean()))
    assert "a seed in a batch and alone" in broken(gpu.seed_alone, QUICK)


def test_resume_is_wrong(iql: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on with new moments of Adam. (One more that is not killed in time, and one that
    does not start.)"""
    for name in "moments", "late", "none":
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "load_state_dict", lambda *_: None)
        words = broken(gpu.resume, QUICK, tmp_path / "moments")
        assert "and one that was not: largest difference" in words or "other evaluations" in words
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "wait_for", lambda path, process: process.join())
        assert "the run had ended before it was killed" in broken(gpu.resume, QUICK, tmp_path / "late")
    monkeypatch.setattr(iql, "make_env", lambda _: sys.exit("error: no simulator"))
    assert "the run of hopper-medium-local__whole__s0-1 ended with status 1" in broken(
        gpu.resume, QUICK, tmp_path / "none"
    )


def test_training_is_wrong(iql: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that refuses, a file that is none, and a run that ends early."""
    monkeypatch.setattr(gpu, "ENV_ID", "hoper-medium-local")
    assert "hoper-medium-local" in broken(gpu.collect, QUICK, tmp_path / "data.hdf5")
    monkeypatch.setattr(gpu, "ENV_ID", "walker2d-medium-local")
    (tmp_path / "data.hdf5").write_text("none")
    assert str(tmp_path / "data.hdf5") in broken(gpu.training, QUICK, tmp_path, 100)

    def early(job: object) -> None:
        folder = tmp_path / "walker2d-medium-local__dmg_iql__s0-1"
        folder.mkdir()
        lines = ["iteration,seed,episode,return,length,score", "50,0,0,1,1,2.5", "50,1,0,1,1,3.5"]
        (folder / "eval.csv").write_text("\n".join(lines))
        iql.draw_block(job, 0, 1, 1)

    monkeypatch.setattr(iql, "draw_block", lambda *_: None)
    monkeypatch.setattr(gpu, "train", early)
    assert "the last evaluation is that of iteration 50, not 100" in broken(
        gpu.training, QUICK, tmp_path, 100
    )
    assert gpu.scores(tmp_path) == (50, {"50": [2.5, 3.5]})


@pytest.mark.parametrize("name", ["machine", "rate", "profile", "evaluation"])
def test_subject_raises(name: str, iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other steps fail with what they run."""
    if name == "machine":
        assert " nonsense" in broken(gpu.machine, gpu.Args(device="nonsense"))
        return

    def fails(*_: object) -> None:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(iql.DMG, "update", fails)
    monkeypatch.setattr(iql, "rollout", fails)
    rest = {"rate": ("eager", 1), "profile": ("eager", 1), "evaluation": ("hopper-medium-local", 1)}[
        name
    ]
    assert broken(getattr(gpu, name), QUICK, *rest) == "ArithmeticError: on purpose"


# ---- the report ---------------------------------------------------------------------------------------
def test_steps_fail_alone(tmp_path: Path) -> None:
    """A step that raises, dies or does not end has a row and the next one follows; time is shared; one
    that is not needed does not count."""
    report = gpu.Report(gpu.Args(out=tmp_path, device="cpu"))
    assert report.step("first", 10, lambda: ("fine | good", {"x": 1})) == {"x": 1}
    for limit, function in (10, lambda: 1 / 0), (10, lambda: os._exit(3)), (1.5, lambda: time.sleep(60)):
        assert report.step("next", limit, function) is None
    report.step("jax", 10, lambda: 1 / 0, needed=False)
    report.began -= 420
    report.step("late", 10, lambda: ("no", {}))
    rows = [(name, verdict, result) for name, verdict, result, _ in report.rows]
    assert rows == [
        ("first", "ok", "fine / good"),
        ("next", "FAILED", "ZeroDivisionError: division by zero"),
        ("next", "FAILED", "its process ended with status 3"),
        ("next", "FAILED", "not done after 2 s"),
        ("jax", "-", "ZeroDivisionError: division by zero"),
        ("late", "FAILED", "no time left"),
    ]
    assert report.failed == 4 and len((tmp_path / "gpu.md").read_text().splitlines()) == 8
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"]["first"] == {"x": 1}


class Given(gpu.Report):
    """A report whose steps give what is known."""

    def step(
        self, name: str, limit: float, function: Callable, *args: object, needed: bool = True
    ) -> dict:
        self.add(name, "ok", "", 0.0)
        words = name.replace(",", "").split()
        return self.known.get((words[0], int(words[1])) if len(words) > 1 else name)


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are judged by the rates that were measured; where one is missed, one profile is taken."""
    found = gpu.importlib.util.find_spec
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name == "jax" or found(name))
    args = gpu.Args(out=tmp_path, device="cuda")
    report = Given(args)
    rates = {("graphs", 1): 5000, ("graphs", 5): 4000, ("graphs", 10): 3999, ("graphs", 20): 2000}
    rates |= {("plain", 5): 100, ("jax", 1): 5001, ("jax", 5): 3000}
    report.known = {key: {"rate": rate, "memory": 0.5} for key, rate in rates.items()}
    measured = gpu.measure_rates(args, report)
    assert {key: value["rate"] for key, value in measured.items()} == rates
    names = [row[0] for row in report.rows]
    five = [name.split(",")[0] for name in names if name.endswith(" 5 seed(s)")]
    assert five[:4] == ["graphs", "eager", "plain", "jax"]
    gpu.compare(args, report, measured)
    verdicts = {row[0][8:]: row[1:3] for row in report.rows if row[0].startswith("target: ")}
    assert verdicts == {
        "1 seed, it/s": ["ok", "5,000.0, wanted at least 5,000"],
        "5 seeds, seed-it/s": ["ok", "20,000.0, wanted at least 20,000"],
        "10 seeds, seed-it/s": ["short", "39,990.0, wanted at least 40,000"],
        "5 seeds, times plain's": ["ok", "40.0, wanted at least 40"],
        "1 seed, times JAX's": ["short", "1.0, wanted at least 1"],
        "5 seeds, times JAX's": ["ok", "1.3, wanted at least 1"],
        "5 seeds and 1,000,000 rows, GB": ["ok", "0.5, wanted at most 1"],
    }
    assert [row[0] for row in report.rows].count("profile") == 1
    less = Given(args)
    less.began -= 420 - gpu.AFTER_RATES
    assert gpu.measure_rates(args, less) == {} and {row[1] for row in less.rows} == {"-"}
    gpu.compare(args, less, {("graphs", 1): {"rate": 6000, "memory": 2.0}})
    assert [row[1] for row in less.rows if row[0].startswith("target")] == ["ok"] + 6 * ["-"]
    assert "profile" not in [row[0] for row in less.rows]


def test_iterations_that_fit() -> None:
    """100 s, of which 25 are the start and 20 four evaluations of 50,000 steps at 10,000 steps/s, at
    4,000 iterations/s with a tenth to spare; not below a thousand or above the paper's million."""
    args = gpu.Args()
    assert gpu.iterations_that_fit(args, 100, 4000, 10_000) == 198_000
    assert gpu.iterations_that_fit(args, 30, 4000, 10_000) == 1000
    assert gpu.iterations_that_fit(args, 3000, 4000, 10_000) == 1_000_000


def test_profile_adds_up() -> None:
    """On the CPU: some hundred operators an iteration; what is between them is less than the whole."""
    words, found = speed.apart(120, gpu.profile, QUICK, "eager", 1)
    assert 100 < found["kernels"] < 5000 and 0 < found["busy_us"] < found["total_us"]
    names = {name: count for name, (count, _) in found["longest"].items()}
    assert any("baddbmm" in name or "Addmm" in name or "bmm" in name for name in names), names
    assert f"{found['kernels']:.0f} operators an iteration" in words
    assert all(np.isfinite(count) and count > 0 for count in names.values())
