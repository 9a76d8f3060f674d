"""The update of dmg_iql.py (or of another script, see conftest.py) against an independent, plain transcription of the
method, the losses against numbers worked out by hand, and the networks' first weights against torch.nn.Linear's."""

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import OTHER, SCRIPT
from scipy import stats
from torch import nn

import dmg_iql

ANTMAZE = dict(OTHER, nu=0.5, temperature=10.0, weight_clip=100.0, normalize_states=False, antmaze_reward=True)


class Transcription:
    """DMG for one seed, the slow way: one torch.nn net at a time, one step after the other, nothing reused. Written
    from the paper's Section 3.5 and a description of the authors' code, for this test; shares no code with the
    script."""

    def __init__(self, nets: dict[str, nn.Module], args: dmg_iql.Args) -> None:
        self.nets, self.args, self.count = nets, args, 0
        self.optimisers = {}
        for name in ("actor", "q1", "q2", "v"):
            self.optimisers[name] = torch.optim.Adam(nets[name].parameters(), lr=args.learning_rate, foreach=False)
        steps = args.iterations // 2
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimisers["actor"], T_max=steps)

    def step(self, loss: torch.Tensor, *names: str) -> None:
        for name in names:
            self.optimisers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimisers[name].step()

    def iterate(
        self, s: torch.Tensor, a: torch.Tensor, r: torch.Tensor, d: torch.Tensor, s2: torch.Tensor, z: torch.Tensor
    ) -> None:
        """One iteration on a batch (r and d of shape [batch, 1]) with Gaussian smoothing noise z, not yet clipped."""
        nets, args = self.nets, self.args
        self.count += 1

        # V step, towards the smaller target critic
        low = torch.min(nets["q1_target"](torch.cat([s, a], 1)), nets["q2_target"](torch.cat([s, a], 1))).detach()
        v = nets["v"](s)
        if SCRIPT == "dmg_iql":  # expectile regression
            tau = torch.where(low > v, torch.tensor(args.expectile), torch.tensor(1 - args.expectile))
            v_loss = tau * (low - v) ** 2
        elif SCRIPT == "dmg_xql":  # Gumbel regression
            x = torch.clip((low - v) / args.beta, max=args.gumbel_clip)
            v_loss = (torch.exp(x) - x - 1) / math.exp(max(x.max().item(), -1))
        else:  # SQL
            t = (low - v) / (2 * args.alpha) + 1
            v_loss = (t > 0) * t**2 + v / args.alpha
        self.step(v_loss.mean(), "v")

        # Q step towards r + γ (1 - d) [λ min Q'(s', π'(s') + noise) + (1 - λ) V(s')]
        a2 = torch.clamp(
            torch.tanh(nets["actor_target"](s2)) + torch.clamp(z, -args.noise_clip, args.noise_clip), -1, 1
        )
        sa2 = torch.cat([s2, a2], 1)
        outside = torch.min(nets["q1_target"](sa2), nets["q2_target"](sa2))
        mixed = args.lam * outside + (1 - args.lam) * nets["v"](s2)
        y = (r + args.gamma * (1 - d) * mixed).detach()
        q1, q2 = nets["q1"](torch.cat([s, a], 1)), nets["q2"](torch.cat([s, a], 1))
        self.step(nn.functional.mse_loss(q1, y) + nn.functional.mse_loss(q2, y), "q1", "q2")

        if self.count % 2 == 0:
            low = torch.min(nets["q1_target"](torch.cat([s, a], 1)), nets["q2_target"](torch.cat([s, a], 1)))
            advantage = (low - nets["v"](s)).detach()
            weight = torch.exp(args.temperature * advantage)
            if getattr(args, "sparse_weights", False):
                weight = torch.relu(advantage)
            weight = torch.clamp(weight, max=args.weight_clip)
            pi = torch.tanh(nets["actor"](s))
            q = torch.min(nets["q1"](torch.cat([s, pi], 1)), nets["q2"](torch.cat([s, pi], 1)))
            cloning = (weight * (pi - a) ** 2).mean()
            if math.isinf(args.nu):
                self.step(cloning, "actor")
            else:
                self.step(-q.mean() / q.abs().mean().item() + args.nu * cloning, "actor")
            self.schedule.step()
            for name in ("q1", "q2", "actor"):
                for slow, fast in zip(nets[name + "_target"].parameters(), nets[name].parameters(), strict=True):
                    slow.data = (1 - args.polyak) * slow.data + args.polyak * fast.data


def linear_net(params: list[torch.Tensor], net: int) -> nn.Sequential:
    """One of the script's networks as torch.nn modules."""
    layers = []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.weight.data.copy_(weight[net])
        linear.bias.data.copy_(bias[net, :, 0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def all_nets(nets: dict[str, list[torch.Tensor]], k: int) -> dict[str, nn.Module]:
    """Seed k's seven networks."""
    single = {"actor": "actor", "actor_target": "actor_target", "v": "value"}
    modules = {name: linear_net(nets[theirs], k) for name, theirs in single.items()}
    for twin in range(2):
        modules[f"q{twin + 1}"] = linear_net(nets["critic"], 2 * k + twin)
        modules[f"q{twin + 1}_target"] = linear_net(nets["critic_target"], 2 * k + twin)
    return modules


SETTINGS = {
    "gym": {},
    "antmaze": ANTMAZE,
    "clone only": dict(lam=0.0, nu=math.inf),
    "td3bc-like": dict(lam=1.0, nu=0.4, temperature=0.0),
    "td3": dict(lam=1.0, nu=0.0),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("setting", SETTINGS)
def test_twenty_updates(float64: None, job: Callable, hopper_file: Path, setting: str, seeds: int) -> None:
    """After twenty iterations of a whole job, all nets of every seed equal the transcription's to 1e-9 in float64."""
    args = job(num_seeds=seeds, iterations=20, learning_rate=1e-3, polyak=0.05, **SETTINGS[setting])
    first = dmg_iql.DMG(dmg_iql.resolve(args), 11, 3)
    start = {name: [param.detach().clone() for param in getattr(first, name)] for name in dmg_iql.NETS}
    assert dmg_iql.train(args) == 0
    args = dmg_iql.resolve(args)
    saved = torch.load(next(args.run_dir.glob("*/checkpoint.pt")), weights_only=True)

    with h5py.File(hopper_file) as file:  # the transitions, row by row
        rows = [
            [file[key][i] for key in ("observations", "actions", "rewards", "terminals")]
            + [file["observations"][i + 1]]
            for i in range(len(file["rewards"]) - 1)
            if not file["timeouts"][i]
        ]
    s, a, r, d, s2 = (torch.tensor(np.array([row[i] for row in rows], dtype=np.float64)) for i in range(5))
    if args.normalize_states:
        mean, std = s.mean(0), s.std(0, correction=0) + 1e-3
        s, s2 = (s - mean) / std, (s2 - mean) / std
    if args.antmaze_reward:
        r = -(r != 1).double()
    indices, noise = dmg_iql.draw_block(args, 0, len(rows), 3)
    for k in range(seeds):
        plain = Transcription(all_nets(start, k), args)
        for i in range(20):
            batch = indices[k, i]
            plain.iterate(s[batch], a[batch], r[batch, None], d[batch, None], s2[batch], noise[k, i])
        for name, module in all_nets(saved["nets"], k).items():
            moved = False
            for ours, theirs, before in zip(
                module.parameters(), plain.nets[name].parameters(), all_nets(start, k)[name].parameters(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
                moved |= not torch.equal(theirs, before)
            assert moved, f"{name} did not change at all"


@pytest.mark.skipif(SCRIPT != "dmg_iql", reason="the others' losses have tests of their own")
def test_value_loss_by_hand() -> None:
    """Eq. 15 with τ = 0.7: 0.7 u² above, 0.3 u² below: (0.7 * 4 + 0.3 * 1) / 2 = 1.55."""
    args = dmg_iql.Args(expectile=0.7)
    assert dmg_iql.value_loss(torch.tensor([[2.0, -1.0]]), args).item() == pytest.approx(1.55)


def test_critic_loss_by_hand() -> None:
    """Eq. 16: r + 0.9 [0.25 * 8 + 0.75 * 4] = 1 + 4.5 = 5.5, or 1 at a terminal; errors (6 - 5.5)² and (3 - 1)² for one
    twin, (5.5 - 5.5)² and (1 - 1)² for the other; means 2.125 and 0."""
    q = torch.tensor([[[6.0, 3.0], [5.5, 1.0]]])
    r, not_done = torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
    q2, v2 = torch.full((1, 2), 8.0), torch.full((1, 2), 4.0)
    args = dmg_iql.Args(gamma=0.9)
    assert dmg_iql.critic_loss(q, r, not_done, q2, v2, torch.tensor(0.25), args).tolist() == pytest.approx([2.125])


def test_actor_loss_by_hand() -> None:
    """Eq. 14: weights exp(3 * 0) = 1 and min(exp(3 * 9), 3) = 3; squares 0.25 and 1 in one of two action dimensions,
    so the cloning term is (0.25 + 0 + 3 + 0) / 4; the Q term is -(2 - 4) / 3."""
    q, adv = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.0, 9.0]])
    pi, a = torch.tensor([[[0.5, 0.1], [1.0, 0.2]]]), torch.tensor([[[0.0, 0.1], [0.0, 0.2]]])
    args = dmg_iql.Args(temperature=3.0, weight_clip=3.0)
    loss = dmg_iql.actor_loss(q, pi, a, adv, torch.tensor(1.0), torch.tensor(0.1), args)
    assert loss.tolist() == pytest.approx([2 / 3 * 0.5 + 0.1 * 3.25 / 4])


def test_actor_loss_pulls_towards_good_actions() -> None:
    """The sign of Eq. 14: a gradient step moves π(s) towards the dataset action, and further where the weight is
    larger."""
    pi = torch.zeros(1, 2, 1, requires_grad=True)
    a, adv = torch.full((1, 2, 1), 0.5), torch.tensor([[0.0, 0.3]])
    args = dmg_iql.Args(temperature=3.0, weight_clip=3.0)
    dmg_iql.actor_loss(torch.ones(1, 2), pi, a, adv, torch.tensor(0.0), torch.tensor(1.0), args).sum().backward()
    step = -pi.grad.flatten()
    assert step[1] > step[0] > 0
    assert (step[1] / step[0]).item() == pytest.approx(math.exp(0.9), rel=1e-5)


def test_first_weights_are_linear_ones() -> None:
    """Weights and biases of every layer come from the distribution of torch.nn.Linear's (two-sample
    Kolmogorov-Smirnov)."""
    args = dmg_iql.resolve(dmg_iql.Args(env_id="hopper-medium-local", num_seeds=8, device="cpu", threads=1))
    agent = dmg_iql.DMG(args, 11, 3)
    torch.manual_seed(0)
    for params, sizes in (
        (agent.actor, (11, 256, 256, 3)),
        (agent.critic, (14, 256, 256, 1)),
        (agent.value, (11, 256, 256, 1)),
    ):
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
            assert params[2 * i].shape[1:] == (fan_out, fan_in) and params[2 * i + 1].shape[1:] == (fan_out, 1)
            linears = [nn.Linear(fan_in, fan_out) for _ in range(400 if fan_out < 256 else 8)]
            for ours, name in ((params[2 * i], "weight"), (params[2 * i + 1], "bias")):
                theirs = torch.cat([getattr(linear, name).flatten() for linear in linears])
                assert ours.abs().max() <= 1 / math.sqrt(fan_in)
                result = stats.ks_2samp(ours.detach().flatten().numpy(), theirs.detach().numpy())
                assert result.pvalue > 1e-3, (name, fan_in, fan_out)


def test_twins_and_seeds_start_apart_and_targets_start_equal() -> None:
    """No two networks share their first weights; the target networks are copies."""
    args = dmg_iql.resolve(dmg_iql.Args(env_id="hopper-medium-local", num_seeds=3, device="cpu", threads=1))
    agent = dmg_iql.DMG(args, 11, 3)
    nets = [tuple(net[0, :3].tolist()) for params in (agent.actor, agent.critic, agent.value) for net in params[0]]
    assert len(set(nets)) == 3 + 6 + 3
    for target, trained in ((agent.actor_target, agent.actor), (agent.critic_target, agent.critic)):
        assert all(torch.equal(x, y) and x.data_ptr() != y.data_ptr() for x, y in zip(target, trained, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_adam_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    """Over 60 steps with a falling rate and gradients of very different sizes, Adam does what torch.optim.Adam's plain
    loop does, also where a gradient is transposed in memory, and leaves the gradients alone."""
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((2, 16, 5), (2, 16, 1), (2, 1, 1))]
    theirs = [param.clone().requires_grad_() for param in ours]
    adam, plain = dmg_iql.Adam(ours, 1e-2), torch.optim.Adam(theirs, 1e-2, foreach=False, fused=False)
    for step in range(60):
        adam.rate.fill_(1e-2 * (1 - step / 60))
        plain.param_groups[0]["lr"] = adam.rate.item()
        gradients = tuple(10.0 ** (step % 9 - 6) * torch.randn(p.shape, generator=generator, dtype=dtype) for p in ours)
        for param, gradient in zip(theirs, gradients):
            param.grad = gradient.clone()
        adam.step(tuple(gradient.mT.contiguous().mT for gradient in gradients))
        plain.step()
        assert all(torch.equal(param.grad, gradient) for param, gradient in zip(theirs, gradients))
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other.detach(), rtol=0, atol=tolerance)
    assert adam.state[0].item() == 60 and len(adam.state) == 7


def test_cosine_schedule() -> None:
    """The actor's rate starts at 3e-4, halves in the middle and ends near 0 with the run (Table 5), set in place."""
    args = dmg_iql.Args(env_id="hopper-medium-local", iterations=1000, device="cpu", threads=1, hidden_dim=4)
    agent = dmg_iql.DMG(dmg_iql.resolve(args), 11, 3)
    rate = agent.optimisers["actor"].rate
    for step, wanted in ((0, 3e-4), (250, 1.5e-4), (499, 1.5e-4 * (1 + math.cos(math.pi * 499 / 500))), (500, 0.0)):
        agent.set_actor_rate(step)
        assert rate.item() == pytest.approx(wanted, rel=1e-5, abs=1e-10)
