"""What tests of whole jobs share: small jobs, run in this process or by the command line, and what they
leave. `python tests/jobs.py` is the server that the command lines are forked from (see Launcher)."""

import atexit
import contextlib
import csv
import functools
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

ENV_ID = "hopper-medium-local"


# ---- jobs in this process -----------------------------------------------------------------------------
def small(script: str, dataset: Path, run_dir: Path, **changes: object) -> object:
    """A script's Args of a job of a second, the same as the fixture `job` makes; keywords override."""
    flags = dict(hidden_dim=16, batch_size=32, iterations=40, eval_every=20, eval_episodes=2)
    flags |= dict(log_every=10, save_every=10, device="cpu", exp_name="job")
    flags |= dict(dataset_path=dataset, run_dir=run_dir)
    return importlib.import_module(script).Args(env_id=ENV_ID, **(flags | changes))


def module_of(args: object) -> ModuleType:
    """The script of a job."""
    return sys.modules[type(args).__module__]


@contextlib.contextmanager
def closed_boards(module: ModuleType) -> Iterator[None]:
    """Close a script's TensorBoard writers at the end. Each keeps a file and a thread otherwise."""
    writer, made = module.SummaryWriter, []

    def make(*args: object, **options: object) -> object:
        made.append(writer(*args, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SummaryWriter", make)
        try:
            yield
        finally:
            for board in made:
                board.close()


def run(args: object) -> str:
    """Train in this process. Returns what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, closed_boards(module_of(args)):
        module_of(args).train(args)
    return out.getvalue()


def refused(args: object) -> str:
    """Train, which has to end in a SystemExit with one line. Returns the line."""
    with pytest.raises(SystemExit) as error:
        run(args)
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


class Crash(Exception):
    """What `crash` raises inside a job."""


def crash(args: object, updates: int) -> None:
    """Train, and fail in place of update number `updates` + 1. TensorBoard's files get flushed."""
    dmg, left = module_of(args).DMG, iter(range(updates))
    update = dmg.update

    def failing(self: torch.nn.Module, *inputs: object) -> dict[str, Tensor]:
        if next(left, None) is None:
            raise Crash
        return update(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dmg, "update", failing)
        with contextlib.suppress(Crash):
            run(args)
            pytest.fail(f"the job ended before {updates} updates")


# ---- what a job leaves --------------------------------------------------------------------------------
def load(folder: Path) -> dict:
    """A run folder's checkpoint."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flat(value: object, name: str = "") -> dict[str, object]:
    """Nested dicts and lists as one dict; of a tensor its type, shape and bytes."""
    if isinstance(value, Tensor):
        return {name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: part for k, v in items for key, part in flat(v, f"{name}/{k}").items()}
    return {name: repr(value)}


def outcome(folder: Path) -> dict[str, object]:
    """What a job computes: eval.csv, `done`, and its checkpoint but for flags that may change."""
    saved = load(folder)
    free = importlib.import_module(saved["config"]["script"]).MAY_CHANGE | {"resume", "exp_name"}
    saved["config"] = {key: value for key, value in saved["config"].items() if key not in free}
    texts = {name: data for name, data in every_file(folder).items() if name in ("eval.csv", "done")}
    return flat(saved, "checkpoint") | texts


def assert_same(folder: Path, other: Path) -> None:
    """Both jobs end alike, bit for bit."""
    a, b = outcome(folder), outcome(other)
    assert [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)] == []


def every_file(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder: tag -> iteration -> value. No point may be shown twice."""
    board, found = EventAccumulator(str(folder), size_guidance={"scalars": 0}), {}
    board.Reload()
    for tag in board.Tags()["scalars"]:
        found[tag] = {event.step: event.value for event in board.Scalars(tag)}
        assert len(found[tag]) == len(board.Scalars(tag)), f"{tag} shows a point twice"
    return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's curves of a folder; of charts/SPS, which the clock decides, the iterations alone."""
    found = scalars(folder)
    return found | {"charts/SPS": dict.fromkeys(found["charts/SPS"], 0.0)}


def backdate(folder: Path, second: int) -> None:
    """Give the newest event files of a run folder an earlier second. TensorBoard reads them in the order
    of their names, events.out.tfevents.SECOND..., and two runs here may begin within one second."""
    for file in folder.glob("s*/events*"):
        words = file.name.split(".")
        if int(words[3]) > 1000:
            file.rename(file.with_name(".".join([*words[:3], f"{second:010d}", *words[4:]])))


# ---- the command line ---------------------------------------------------------------------------------
def flags_of(args: object) -> list[str]:
    """A job's command line: the flags that differ from their defaults."""
    words = []
    for field in fields(args):
        value, flag = getattr(args, field.name), field.name.replace("_", "-")
        if value is True and field.default is False:
            words.append(f"--{flag}")
        elif value != field.default:
            words += [f"--{flag}", str(value)]
    return words


@dataclass
class Finished:
    """How a process ended: exit status (of a kill, minus the signal's number) and what it printed."""

    status: int
    out: str
    err: str


class Process:
    """A script's command line in a process of its own."""

    def __init__(self, launcher: "Launcher", order: dict[str, object]) -> None:
        self.launcher, self.order = launcher, order
        self.pid, self.status = launcher.ask(order), None

    def poll(self) -> bool:
        """Whether the process has ended."""
        if self.status is None:
            self.status = self.launcher.ask({"poll": self.pid})
        return self.status is not None

    def wait(self, moment: Callable[[], bool] | None = None, number: int = signal.SIGKILL) -> Finished:
        """Wait for the end. Send the signal once `moment` is true; after 100 s, kill the process."""
        deadline = time.monotonic() + 100
        while not self.poll():
            if time.monotonic() > deadline or (moment and moment()):
                os.kill(self.pid, number if moment else signal.SIGKILL)
                moment = None
            time.sleep(0.0005)
        out, err = (
            Path(self.order[name]).read_bytes().decode(errors="replace") for name in ("out", "err")
        )
        return Finished(self.status, out, err)


class Launcher:
    """Starts command lines. They are forked from a server that has done the imports, which take longer
    than the jobs here."""

    def __init__(self) -> None:
        self.folder, self.number = tempfile.TemporaryDirectory(), 0
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder.name,
            env=env,
        )
        atexit.register(self.server.wait)
        atexit.register(self.server.stdin.close)  # comes first, and ends the server

    def ask(self, order: dict[str, object]) -> int | None:
        """The server's answer: the id of the process that it started, or the exit status of one."""
        self.server.stdin.write(json.dumps(order).encode() + b"\n")
        return json.loads(self.server.stdout.readline())

    def start(self, module: ModuleType, flags: list[str], **options: object) -> Process:
        """Start a script. `encoding`: its standard output's; `file_size`: bytes that a file may have."""
        self.number += 1
        files = {name: f"{self.folder.name}/{self.number}.{name}" for name in ("out", "err")}
        return Process(self, {"script": module.__file__, "flags": flags, **files, **options})


@functools.cache
def launcher() -> Launcher:
    """The one launcher of this process."""
    return Launcher()


def command(module: ModuleType, *flags: str, **options: object) -> Finished:
    """Run a script by its command line."""
    return launcher().start(module, list(flags), **options).wait()


def command_of(args: object) -> Finished:
    """Run a job by its command line."""
    return command(module_of(args), *flags_of(args))


def play(order: dict) -> int:
    """The server's child: what `python SCRIPT FLAGS` does. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in (1, "out"), (2, "err"):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = open(os.devnull)
    sys.stdout = open(1, "w", encoding=order.get("encoding", "utf-8"), closefd=False)
    if "file_size" in order:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, 2 * [order["file_size"]])
    sys.argv = [order["script"], *order["flags"]]
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """The server: import what jobs need, then answer each line of standard input."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    importlib.import_module("torch._dynamo")  # as torch's optimisers do, late
    importlib.import_module("dmg_iql").make_env(ENV_ID)
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            status = play(order)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)  # the interpreter would spend a second on tidying up
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
