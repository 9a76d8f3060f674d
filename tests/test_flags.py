"""The command line: bad input ends in one clear line with nothing written; good input at its bounds."""

import importlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import SCRIPTS, folder_of
from jobs import ENV_ID, Finished, command, command_of, flags_of, launcher, load, run, scalars


# ---- bad flags ----------------------------------------------------------------------------------------
def check_refusal(finished: Finished, *words: str) -> None:
    """One clear line on standard error, with these words, and status 1."""
    (line,) = finished.err.splitlines()
    assert finished.status == 1 and line.startswith("error: ") and len(line) < 700
    assert all(word in line for word in words), line


NUMBERS = """lam -0.1, lam 1.5, lam nan, nu -1, nu nan, expectile -0.1, expectile 1.1,
    expectile nan, temperature -1, temperature nan, weight-clip -1, weight-clip nan, gamma 1.01,
    gamma nan, polyak -1, polyak 2, learning-rate -1, learning-rate nan, policy-noise -1,
    noise-clip nan, batch-size 0, batch-size -5, hidden-dim 0, policy-delay 0, iterations 0,
    iterations -1, num-seeds 0, num-seeds -2, seed -1, threads 0, eval-every 0, eval-episodes 0,
    log-every 0, save-every 0, eval-episodes 100000000000000000000"""
WRONG = {  # flag and value -> words of the line
    **{case.strip(): [f"--{case.strip()}", "expected"] for case in NUMBERS.split(",")},
    "device tpu": ["--device tpu", "cpu, cuda"],
    "device ": ["--device ", "must not be empty"],
    "batch-size 1000000000": ["device cpu", "memory"],
    "num-seeds 1000000": ["1000000 seed(s)", "memory"],
    "hidden-dim 1000000000": ["device cpu", "overflowed"],
    "hidden-dim 100000": ["device cpu", "memory"],
    "eval-episodes 1000000000": ["device cpu", "memory"],
    "env-id xyz": ["no simulator for xyz", "doesn't exist"],
    "env-id ": ["no simulator for "],
    "env-id walker-medium-v2": ["no simulator for walker-medium-v2"],
    "env-id walker2d-medium-local": ["for walker2d-medium-local", "widths"],
    "env-id antmaze-umaz-v2": ["no simulator for antmaze-umaz-v2", "antmaze-umaze"],
    "env-id CartPole-v1": ["no simulator for CartPole-v1", "Box action space"],
    "dataset-path /none/none.hdf5": ["/none/none.hdf5", "No such file"],
    "dataset-path /": ["cannot use / for", "Is a directory"],
    f"dataset-path {__file__}": [__file__, "signature"],
    f"run-dir {__file__}/x": [f"{__file__}/x", "Not a directory"],
    f"exp-name {'x' * 300}": ["File name too long"],
}
if not torch.cuda.is_available():
    WRONG |= {f"device {gpu}": [f"seed(s) on --device {gpu}: "] for gpu in ("cuda", "cuda:1")}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flag(iql: ModuleType, job: Callable, case: str) -> None:
    """What cannot be is refused at once, in one line that names it. No run folder is made."""
    name, value = case.split(" ")
    args = job(iql)
    check_refusal(command(iql, *flags_of(args), f"--{name}", value), *WRONG[case])
    assert not args.run_dir.exists() or not list(args.run_dir.iterdir())


@pytest.mark.parametrize(
    "words", ["--lam x", "--iterations 1e3", "--nonsense 3", "--normalize-states maybe", "walker2d"]
)
def test_flag_that_cannot_be_parsed(iql: ModuleType, words: str) -> None:
    """Status 2, a message that names the flag, and no traceback."""
    finished = command(iql, *words.split())
    assert finished.status == 2 and words.split()[0] in finished.err and "Traceback" not in finished.err


def test_file_without_permission(iql: ModuleType, job: Callable, tmp_path: Path) -> None:
    """A dataset that may not be read, and a folder that may not be written to, are named as that."""
    data, folder = tmp_path / "secret.hdf5", tmp_path / "closed"
    data.touch(mode=0)
    folder.mkdir(mode=0o500)
    if os.access(data, os.R_OK):
        pytest.skip("this user may read every file")
    for args, path in (replace(job(iql), dataset_path=data), data), (job(iql, run_dir=folder), folder):
        check_refusal(command_of(args), str(path), "Permission denied")


def test_folder_exists(iql: ModuleType, job: Callable) -> None:
    """An existing run folder is refused in one line that says how to go on."""
    folder_of(job(iql)).mkdir(parents=True)
    check_refusal(command_of(job(iql)), str(folder_of(job(iql))), "--resume", "--exp-name")
    assert not list(folder_of(job(iql)).iterdir())


@pytest.mark.parametrize("exp_name", ["../../x", "/x", "a/../../victim", "a/b"])
def test_exp_name_is_no_path(script: ModuleType, job: Callable, tmp_path: Path, exp_name: str) -> None:
    """No --exp-name leads out of --run-dir: one with a slash is refused, and nothing is written."""
    args = job(script, exp_name=exp_name, run_dir=tmp_path / "a" / "runs", iterations=2)
    check_refusal(command_of(args), f"--exp-name {exp_name}: expected a name without /")
    assert not list(tmp_path.iterdir())


def test_exp_name_of_dots(iql: ModuleType, job: Callable, tmp_path: Path) -> None:
    """ ".." is part of a folder's name, and no path."""
    args = job(iql, exp_name="..", run_dir=tmp_path / "a" / "runs", iterations=2)
    run(args)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in args.run_dir.iterdir()] == [f"{ENV_ID}__..__s0-0"]


def test_default_name(script: ModuleType) -> None:
    """Without --exp-name the folder is named after the script."""
    assert script.Args().exp_name == script.__name__


# ---- bounds -------------------------------------------------------------------------------------------
TINY, INF, NAN = 1e-300, math.inf, math.nan
FRACTION = ([0.0, TINY, 0.5, 1.0], [-TINY, 1 + 1e-9, INF, NAN])
POSITIVE = ([1e-6, 5.0, 1e9], [0.0, -1.0, INF, NAN])
NOT_NEGATIVE = ([0.0, TINY, 3.0, INF], [-TINY, -INF, NAN])
COUNT = ([1, 2], [0, -1, 10**10])
BOUNDS = (  # values to be accepted, values to be refused
    dict.fromkeys("lam gamma polyak expectile learning_rate".split(), FRACTION)
    | dict.fromkeys("beta gumbel_clip alpha".split(), POSITIVE)
    | dict.fromkeys("nu temperature weight_clip policy_noise noise_clip".split(), NOT_NEGATIVE)
    | dict.fromkeys("num_seeds batch_size hidden_dim policy_delay iterations threads".split(), COUNT)
    | dict.fromkeys("eval_every eval_episodes log_every save_every".split(), COUNT)
    | {"seed": ([0, 7, 10**20], [-1])}
)


def test_bounds(script: ModuleType) -> None:
    """Every flag that is a number takes the values at its bounds and none past them. A refusal names it
    and the value."""
    types = {field.name: str(field.type) for field in fields(script.Args)}
    numbers = {name for name, kind in types.items() if "int" in kind or "float" in kind}
    assert numbers <= BOUNDS.keys()
    for name in numbers:
        good, bad = BOUNDS[name]
        for value in good:
            args = script.Args(ENV_ID, device="cpu", **{name: value})
            script.resolve(args)
            assert getattr(args, name) == value
        for value in bad:
            with pytest.raises(SystemExit) as error:
                script.resolve(script.Args(ENV_ID, device="cpu", **{name: value}))
            assert str(error.value).startswith(f"error: --{name.replace('_', '-')} {value}: expected ")


EXTREMES = [
    dict(lam=0.0, gamma=0.0, temperature=0.0),
    dict(lam=1.0, nu=0.0, policy_noise=0.0, noise_clip=0.0, gamma=1.0),
    dict(nu=math.inf, weight_clip=math.inf, polyak=0.0),
    dict(batch_size=1, hidden_dim=1, policy_delay=1, polyak=1.0),
    dict(policy_delay=100, log_every=1, save_every=100, eval_every=100, eval_episodes=1, iterations=1),
    dict(temperature=1e30, expectile=1.0),
    dict(normalize_states=False, antmaze_reward=True, learning_rate=0.0),
]


@pytest.mark.parametrize("changes", EXTREMES, ids=str)
def test_extreme_values_train(iql: ModuleType, job: Callable, changes: dict) -> None:
    """The extreme values that are accepted train, too, and to finite numbers."""
    args = job(iql, **{"iterations": 20, **changes})
    run(args)
    assert all(tensor.isfinite().all() for tensor in load(folder_of(args))["agent"].values())


def test_cudagraphs_without_a_gpu(iql: ModuleType, job: Callable) -> None:
    """--cudagraphs on a CPU is the plain update, and --device auto without a GPU is the CPU."""
    args = job(iql, cudagraphs=True, iterations=2)
    run(args)
    assert load(folder_of(args))["iteration"] == 2
    args = job(iql, device="auto")
    iql.resolve(args)
    assert args.device == ("cuda" if torch.cuda.is_available() else "cpu")


# ---- terminals, locales, Ctrl-C -----------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SCRIPTS, "dmg_finetune"])
def test_help_on_a_terminal_without_greek(name: str) -> None:
    """--help names every flag, also on a terminal that cannot show λ."""
    script = importlib.import_module(name)
    finished = command(script, "--help", encoding="cp1252")
    assert (finished.status, finished.err) == (0, "")
    for field in fields(script.Args):
        assert f"--{field.name.replace('_', '-')}" in finished.out


def test_c_locale(iql: ModuleType, job: Callable, tmp_path: Path) -> None:
    """Two seeds by plain Python in the C locale: the job ends well, and every event is on disk."""
    args = job(iql, num_seeds=2, iterations=25)
    words = [sys.executable, iql.__file__, *flags_of(args)]
    locale = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    ended = subprocess.run(
        words, cwd=tmp_path, env=os.environ | locale, capture_output=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode().splitlines()[-1] == (folder_of(args) / "done").read_text()
    for seed in (0, 1):
        assert list(scalars(folder_of(args) / f"s{seed}")["losses/qf_loss"]) == [10, 20, 25]


@pytest.mark.parametrize("file", ["config.json", "checkpoint.pt"])
def test_interrupt(iql: ModuleType, job: Callable, file: str) -> None:
    """Ctrl-C before and after the first checkpoint: a status other than 0 and, behind the progress bar,
    one line with what --resume does."""
    args = job(iql, iterations=300)
    process = launcher().start(iql, flags_of(args))
    finished = process.wait((folder_of(args) / file).exists, signal.SIGINT)
    assert finished.status > 0 and "Traceback" not in finished.err
    *bars, line = finished.err.splitlines()
    assert line.startswith("interrupted; --resume continues")
    assert all("it/s" in bar or not bar.strip() for bar in bars)
    assert not (folder_of(args) / "done").exists()
