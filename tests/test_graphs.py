"""CUDA graphs: `captured` on graphs faked on the CPU and, where there is a GPU, on real ones."""

import contextlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import folder_of
from torch import Tensor, nn


def state_of(agent: nn.Module) -> list[Tensor]:
    """Every tensor that an update may change, but the gradients."""
    tensors = list(agent.state_dict().values())
    for name in ("actor", "critic", "value"):
        optimiser = agent.optimisers[name]
        tensors += [tensor for state in optimiser.state.values() for tensor in state.values()]
    return tensors


class FakeGraph:
    """A CUDA graph on the CPU. What runs inside its capture computes nothing: all state is put back, and
    the results are NaN. A replay runs it on the same input tensors and writes into the same results."""

    capturing: "FakeGraph | None" = None
    replays = 0
    eager: Callable  # DMG.update as it is in the script

    @staticmethod
    @contextlib.contextmanager
    def capture(graph: "FakeGraph") -> Iterator[None]:
        FakeGraph.capturing = graph
        yield
        FakeGraph.capturing = None

    @staticmethod
    def update(agent: nn.Module, *inputs: object) -> dict[str, Tensor]:
        """In the place of DMG.update."""
        if not FakeGraph.capturing:
            return FakeGraph.eager(agent, *inputs)
        before = [tensor.clone() for tensor in state_of(agent)]
        log = FakeGraph.eager(agent, *inputs)
        with torch.no_grad():
            for tensor, value in zip(state_of(agent), before, strict=True):  # a capture makes no state
                tensor.copy_(value)
            for value in log.values():
                value.fill_(math.nan)
        FakeGraph.capturing.call = agent, inputs, dict(log)
        return log

    def replay(self) -> None:
        agent, inputs, log = self.call
        results = FakeGraph.eager(agent, *inputs)
        with torch.no_grad():
            for name, value in results.items():
                log[name].copy_(value)
        FakeGraph.replays += 1


@pytest.fixture
def fake_graphs(iql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs that work without a GPU, for dmg_iql's agents."""
    monkeypatch.setattr(FakeGraph, "eager", staticmethod(iql.DMG.update), raising=False)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(iql.DMG, "update", FakeGraph.update)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeGraph.capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("policy_delay", [1, 2, 3])
def test_captured_update_equals_eager(
    iql: ModuleType, fake_graphs: None, job: Callable, policy_delay: int
) -> None:
    """100 updates through `captured` give the results of 100 eager ones, one by one, and bit-equal
    networks and optimisers: nothing is left out, done twice, or done on old inputs; a falling rate and
    a new λ and ν are seen; and the inputs stay as they are."""
    args = job(iql, num_seeds=2, policy_delay=policy_delay, iterations=100)
    iql.resolve(args)
    eager, graphed = iql.DMG(args, 11, 3), iql.DMG(args, 11, 3)
    update, generator = iql.captured(graphed), torch.Generator().manual_seed(0)
    batches = torch.randn(100, 2, 32, 11 + 3 + 1 + 1 + 11, generator=generator)
    noises = torch.randn(100, 2, 32, 3, generator=generator)
    given = batches.clone(), noises.clone()
    for t, (batch, noise) in enumerate(zip(batches, noises)):
        actor_step = (t + 1) % policy_delay == 0
        wanted, log = FakeGraph.eager(eager, batch, noise, actor_step), update(batch, noise, actor_step)
        assert log.keys() == wanted.keys()
        assert all(torch.equal(log[name], wanted[name]) for name in wanted)
        for agent in (eager, graphed):
            if actor_step:
                agent.optimisers["schedule"].step()
            if t == 50:
                agent.lam.fill_(0.75)
                agent.nu.fill_(3.0)
    assert FakeGraph.replays >= 88  # all but five of each kind
    assert torch.equal(batches, given[0]) and torch.equal(noises, given[1])
    assert all(torch.equal(x, y) for x, y in zip(state_of(eager), state_of(graphed), strict=True))


class Board(dict):
    """In the place of TensorBoard's writer: every scalar by tag and iteration, of all seeds and runs."""

    def add_scalar(self, tag: str, value: object, iteration: int) -> None:
        self.setdefault((tag, iteration), []).append(torch.as_tensor(value).item())

    def flush(self) -> None:
        pass


def leaves(value: object) -> Iterator[object]:
    """The tensors, numbers and words in nested dicts and lists."""
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def train(module: ModuleType, args: object, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, Board]:
    """A whole job's checkpoint, but its configuration, and what it logs for TensorBoard."""
    board = Board()
    monkeypatch.setattr(module, "SummaryWriter", lambda *_, **__: board)
    module.train(args)
    saved = torch.load(folder_of(args) / "checkpoint.pt", weights_only=True, map_location="cpu")
    del saved["config"]
    return saved, board


@pytest.mark.parametrize("policy_delay", [2, 15])
def test_captured_job_equals_eager(
    iql: ModuleType,
    fake_graphs: None,
    job: Callable,
    monkeypatch: pytest.MonkeyPatch,
    policy_delay: int,
) -> None:
    """A whole job through `captured`, stopped and resumed once, ends as an eager one does, losses
    included; also where the first actor step comes late."""
    settings = dict(
        num_seeds=2, iterations=100, policy_delay=policy_delay, save_every=35, eval_episodes=1
    )
    eager, wanted = train(iql, job(iql, exp_name="eager", **settings), monkeypatch)

    class Graphed(iql.DMG):
        """An agent as train makes it on a GPU, which stops the first job in iteration 71."""

        stop = 71

        def __init__(self, *sizes: object) -> None:
            super().__init__(*sizes)
            eager = SimpleNamespace(update=super().update, lam=self.lam)
            self.replay, self.count = iql.captured(eager), 0

        def update(self, *inputs: object) -> dict[str, Tensor]:
            self.count += 1
            if self.count == Graphed.stop:
                raise KeyboardInterrupt
            return self.replay(*inputs)

    monkeypatch.setattr(iql, "DMG", Graphed)
    args = job(iql, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(iql, args, monkeypatch)
    Graphed.stop = None
    graphed, board = train(iql, job(iql, resume=True, **settings), monkeypatch)
    assert FakeGraph.replays >= 60
    for x, y in zip(leaves(graphed), leaves(eager), strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y
    losses = {key for key in board if key[0].startswith("losses/")}
    assert {iteration for _, iteration in losses} == {80, 90, 100}
    assert {tag for tag, _ in losses} >= {"losses/value_loss", "losses/actor_loss"}
    assert all(board[key] == wanted[key] for key in losses)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy_delay", [2, 15])
def test_captured_job_equals_eager_on_a_gpu(
    script: ModuleType, job: Callable, monkeypatch: pytest.MonkeyPatch, policy_delay: int
) -> None:
    """On a GPU, 100 iterations through CUDA graphs and 100 eager ones end within 1e-4 of each other."""
    settings = dict(
        device="cuda", num_seeds=2, iterations=100, policy_delay=policy_delay, eval_episodes=1
    )
    eager, _ = train(script, job(script, exp_name="eager", **settings), monkeypatch)
    graphed, _ = train(script, job(script, cudagraphs=True, **settings), monkeypatch)
    for name, tensor in eager["agent"].items():
        torch.testing.assert_close(graphed["agent"][name], tensor, rtol=0, atol=1e-4)
