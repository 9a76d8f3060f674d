"""tools/speed.py: what it compares is the same update; its tables follow from its measurements;
processes of their own end when they should."""

import importlib.util
import json
import os
import re
import time
from pathlib import Path
from types import ModuleType

import pytest
import speed
import torch

ROOT = Path(speed.__file__).parent.parent
SMALL = dict(device="cpu", hidden_dim=16, batch_size=16, rows=1000, seconds=0.1, repeats=2, threads=(1,))


def floats(line: str) -> list[str]:
    """The cells of a table's row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another version of the script, with an expectile that is the other way round."""
    text = (ROOT / "dmg_iql.py").read_text(encoding="utf-8")
    (tmp_path / "other.py").write_text(text.replace("where(u < 0,", "where(u > 0,"), encoding="utf-8")
    return tmp_path / "other.py"


def test_same_update(other: Path) -> None:
    """After 20 float64 updates no parameter of the script's differs by more than 1e-9 from plain's;
    those of another version do."""
    same = speed.apart(60, speed.check, speed.Args(**SMALL, baseline=ROOT / "dmg_iql.py"))
    assert same.keys() == {"eager", "baseline"} and max(same.values()) < 1e-9
    assert speed.apart(60, speed.check, speed.Args(**SMALL, baseline=other))["baseline"] > 1e-4


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs JAX")
def test_same_update_in_jax() -> None:
    """The same of JAX's; its loop trains, and with one seed as with others beside it."""
    assert speed.apart(100, speed.check, speed.Args(**SMALL, jax=True))["jax"] < 1e-9

    def trained(seeds: int) -> list:
        import speed_jax

        job = speed.job_of(speed.Args(**SMALL), seeds)
        agent = speed_jax.Jax(job, speed.dmg_iql.DMG(job, 11, 3))
        before = agent.weights()
        agent.loop(speed.random_rows(speed.Args(**SMALL)), 20)()
        return [float(abs(agent.weights()[key] - before[key]).max()) for key in before]

    moved = speed.apart(100, trained, 2)
    assert all(1e-6 < distance < 0.1 for distance in moved), moved


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each row follows from the raw numbers: medians, seeds times the rate, the ratio to plain's in the
    same turn. The file holds the same."""
    monkeypatch.setattr(speed, "sgemm", lambda device: float(os.getpid()))
    out = tmp_path / "new/speed.json"
    speed.main(speed.Args(**SMALL, seeds=(1, 2), out=out))
    printed, saved = capsys.readouterr().out, json.loads(out.read_text())
    assert printed.splitlines() == saved["table"]
    rows = [floats(line) for line in saved["table"] if line.startswith("| 1 ")]
    assert [row[:3] for row in rows] == [["1", n, name] for n in "12" for name in ("plain", "eager")]
    for row in rows:
        n, name = int(row[1]), row[2]
        runs, plain = (saved["raw"][str((variant, n, 1))] for variant in (name, "plain"))
        rate = (runs[0]["rate"] + runs[1]["rate"]) / 2
        ratio = (runs[0]["rate"] / plain[0]["rate"] + runs[1]["rate"] / plain[1]["rate"]) / 2
        share = sum(n * 19 * 2 * 16**3 * 1e-9 * run["rate"] / run["sgemm"] for run in runs) / 2
        assert (
            row[3:6] == [f"{rate:.1f}", f"{n * rate:.1f}", f"{ratio:.2f}x"] and row[7] == f"{share:.0%}"
        )


def test_rate_is_that_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate counts the iterations behind the warm-up, by the clock; a variant may do many at a
    time."""

    def slow(args: speed.Args, seeds: int) -> object:
        while True:
            time.sleep(0.02)
            yield 4

    monkeypatch.setitem(speed.VARIANTS, "slow", slow)
    rate = speed.apart(60, speed.measure, speed.Args(**SMALL | {"seconds": 0.5}), "slow", 1, 1)["rate"]
    assert 100 < rate <= 200


def test_loop_is_the_script_s(iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eager` makes the updates that train makes: rows and noise of draw_block, the actor's steps, its
    rate."""
    seen, real = [], iql.DMG.update
    monkeypatch.setattr(iql, "BLOCK", 3)

    def update(agent: iql.DMG, batch: torch.Tensor, noise: torch.Tensor, actor_step: bool) -> dict:
        seen.append((batch, noise, actor_step, agent.optimisers["schedule"].last_epoch))
        return real(agent, batch, noise, actor_step)

    monkeypatch.setattr(iql.DMG, "update", update)
    args = speed.Args(**SMALL)
    steps = speed.eager(args, 2)
    assert sum(next(steps) for _ in range(6)) == 6
    buffer, job = torch.tensor(speed.random_rows(args)), speed.job_of(args, 2)
    for i, (batch, noise, actor_step, steps_before) in enumerate(seen):
        indices, wanted = iql.draw_block(job, i // 3, 1000, 3)
        assert torch.equal(batch, buffer[indices[:, i % 3]]) and torch.equal(noise, wanted[:, i % 3])
        assert actor_step == (i % 2 == 1) and steps_before == i // 2


def test_share_of_evaluation(
    iql: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """--evaluation plays what the preset asks for to the time limit, with so many threads; the share
    follows from its own two columns."""
    made, pool, resolve = [], speed.ThreadPoolExecutor, iql.resolve

    def shorter(args: iql.Args) -> None:
        args.eval_every, args.eval_episodes = 200, 3
        resolve(args)

    monkeypatch.setattr(iql, "resolve", shorter)
    args = speed.Args(**SMALL | {"threads": (1, 2), "repeats": 1}, seeds=(2,))
    lines, raw = speed.table_of_evaluations(args, ("halfcheetah-medium-local",))
    rows = [floats(line) for line in lines[2:]]
    assert [row[1:4] for row in rows] == [["2", "1", "6,000"], ["2", "2", "6,000"]]
    for row in rows:
        seconds, training, share = float(row[4]), float(row[6]), float(row[7].rstrip("%"))
        low, high = (100 * (seconds + e) / (seconds + training) for e in (-0.06, 0.06))
        assert row[5] == "200" and low - 1 < share < high + 1
    monkeypatch.setattr(speed, "ThreadPoolExecutor", lambda *a: made.append(a) or pool(*a))
    monkeypatch.setattr(iql, "ThreadPoolExecutor", pool)
    found = speed.evaluate("cpu", "hopper-medium-local", 1, 2, 1)
    assert made == [(2,)] and found["steps"] == 3000, "a hopper that falls goes on"


def fails() -> None:
    raise ZeroDivisionError("so\nmany")


def leaves_a_child(path: Path) -> None:
    """Starts a process that writes its number, and waits for ever."""
    if os.fork() == 0:
        path.write_text(str(os.getpid()))
    time.sleep(100)


def test_apart(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """What a function returns and raises comes back in one line; a process that dies, or that takes too
    long, is said to; its children end, too."""
    assert speed.apart(60, divmod, 7, 2) == (3, 1)
    assert speed.apart(60, os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match="^ZeroDivisionError: so many$"):
        speed.apart(60, fails)
    with pytest.raises(RuntimeError, match="^[a-z].* nonsense"):
        speed.apart(60, speed.job_of, speed.Args(device="nonsense"), 1)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        speed.apart(60, os._exit, 3)
    with pytest.raises(RuntimeError, match="^not done after 2 s$"):
        speed.apart(2, leaves_a_child, tmp_path / "pid")
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and not re.search(r"\) [ZX] ", stat.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not stat.exists() or re.search(r"\) [ZX] ", stat.read_text())
    assert (
        capfd.readouterr().err.count("Traceback") == 1
    )  # of the ZeroDivisionError, for whoever looks into it
