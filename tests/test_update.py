"""The update of each script against an independent, plain transcription of the method, the losses
against numbers worked out by hand, and the networks' first weights against torch.nn.Linear's."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from conftest import OTHER, folder_of
from jobs import scalars
from scipy import stats
from torch import Tensor, nn

ANTMAZE = dict(nu=0.5, temperature=10.0, weight_clip=100.0, normalize_states=False, antmaze_reward=True)


class Transcription:
    """DMG for one seed, the slow way: one torch.nn net at a time, one step after the other, nothing
    reused. Written from the paper's Section 3.5 and a description of the authors' code, for this test;
    shares no code with the scripts."""

    def __init__(self, nets: dict[str, nn.Module], args: object, script: str) -> None:
        self.nets, self.args, self.script, self.count = nets, args, script, 0
        self.optimisers = {}
        for name in ("actor", "q1", "q2", "v"):
            self.optimisers[name] = torch.optim.Adam(
                nets[name].parameters(), lr=args.learning_rate, foreach=False
            )
        steps = args.iterations // 2
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimisers["actor"], T_max=steps)

    def step(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self.optimisers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimisers[name].step()

    def iterate(self, s: Tensor, a: Tensor, r: Tensor, d: Tensor, s2: Tensor, z: Tensor) -> None:
        """One iteration on a batch (r and d of shape [batch, 1]) with standard Gaussian noise z [batch,
        action]."""
        nets, args = self.nets, self.args
        self.count += 1

        # V step, towards the smaller target critic
        low = torch.min(
            nets["q1_target"](torch.cat([s, a], 1)), nets["q2_target"](torch.cat([s, a], 1))
        ).detach()
        v = nets["v"](s)
        if self.script == "dmg_iql":  # expectile regression
            tau = torch.where(low > v, torch.tensor(args.expectile), torch.tensor(1 - args.expectile))
            v_loss = tau * (low - v) ** 2
        elif self.script == "dmg_xql":  # Gumbel regression
            x = torch.clip((low - v) / args.beta, max=args.gumbel_clip)
            v_loss = (torch.exp(x) - x - 1) / math.exp(max(x.max().item(), -1))
        else:  # SQL
            t = (low - v) / (2 * args.alpha) + 1
            v_loss = (t > 0) * t**2 + (v - low) / args.alpha  # printed without low, a constant
        self.step(v_loss.mean(), "v")

        # Q step towards r + γ (1 - d) [λ min Q'(s', π'(s') + noise) + (1 - λ) V(s')]
        noise = torch.clamp(args.policy_noise * z, -args.noise_clip, args.noise_clip)
        a2 = torch.clamp(torch.tanh(nets["actor_target"](s2)) + noise, -1, 1)
        sa2 = torch.cat([s2, a2], 1)
        outside = torch.min(nets["q1_target"](sa2), nets["q2_target"](sa2))
        mixed = args.lam * outside + (1 - args.lam) * nets["v"](s2)
        y = (r + args.gamma * (1 - d) * mixed).detach()
        q1, q2 = nets["q1"](torch.cat([s, a], 1)), nets["q2"](torch.cat([s, a], 1))
        q_loss = nn.functional.mse_loss(q1, y) + nn.functional.mse_loss(q2, y)
        self.step(q_loss, "q1", "q2")
        self.log = dict(value_loss=v_loss.mean(), qf_loss=q_loss, v_values=v.mean())
        self.log["q_values"] = torch.cat([q1, q2]).mean()

        if self.count % 2 == 0:
            low = torch.min(
                nets["q1_target"](torch.cat([s, a], 1)), nets["q2_target"](torch.cat([s, a], 1))
            )
            advantage = (low - nets["v"](s)).detach()
            weight = torch.clamp(torch.exp(args.temperature * advantage), max=args.weight_clip)
            pi = torch.tanh(nets["actor"](s))
            q = torch.min(nets["q1"](torch.cat([s, pi], 1)), nets["q2"](torch.cat([s, pi], 1)))
            cloning = (weight * (pi - a) ** 2).mean()
            if math.isinf(args.nu):
                pi_loss = cloning
            else:
                pi_loss = -q.mean() / q.abs().mean().item() + args.nu * cloning
            self.step(pi_loss, "actor")
            self.log["actor_loss"] = pi_loss
            self.schedule.step()
            for name in ("q1", "q2", "actor"):
                for slow, fast in zip(
                    nets[name + "_target"].parameters(), nets[name].parameters(), strict=True
                ):
                    slow.data = (1 - args.polyak) * slow.data + args.polyak * fast.data


def plain_net(state: dict[str, Tensor], name: str, net: int) -> nn.Sequential:
    """Number `net` of a script's networks as torch.nn modules. Its weights are [nets, in, out], biases
    [nets, 1, out]."""
    modules = []
    for i in range(3):
        weight, bias = state[f"{name}.layers.{i}.weight"][net], state[f"{name}.layers.{i}.bias"][net]
        linear = nn.Linear(*weight.shape)
        linear.weight.data.copy_(weight.T)
        linear.bias.data.copy_(bias[0])
        modules += [linear, nn.ReLU()]
    assert f"{name}.layers.3.weight" not in state
    return nn.Sequential(*modules[:-1])


def all_nets(state: dict[str, Tensor], k: int, seeds: int) -> dict[str, nn.Module]:
    """The seven networks of seed number k of `seeds`. The first twins of all seeds stand before the
    second ones."""
    single = {"actor": "actor", "actor_target": "actor_target", "v": "value"}
    nets = {name: plain_net(state, theirs, k) for name, theirs in single.items()}
    for twin in range(2):
        nets[f"q{twin + 1}"] = plain_net(state, "critic", twin * seeds + k)
        nets[f"q{twin + 1}_target"] = plain_net(state, "critic_target", twin * seeds + k)
    return nets


def plain_transitions(path: Path, args: object) -> list[Tensor]:
    """s, a, r, d, s2 of a D4RL file, row by row, r and d [n, 1]."""
    with h5py.File(path) as file:
        arrays = [
            file[key][:] for key in ("observations", "actions", "rewards", "terminals", "timeouts")
        ]
    states, actions, rewards, terminals, timeouts = arrays
    last = len(states) - 1
    rows = [
        (states[i], actions[i], rewards[i : i + 1], terminals[i : i + 1], states[i + 1])
        for i in range(last)
        if not timeouts[i]
    ]
    s, a, r, d, s2 = (torch.tensor(np.array(column, dtype=np.float64)) for column in zip(*rows))
    if args.normalize_states:
        mean, std = s.mean(0), s.std(0, correction=0) + 1e-3
        s, s2 = (s - mean) / std, (s2 - mean) / std
    if args.antmaze_reward:
        r = -(r != 1).double()
    return [s, a, r, d, s2]


def stream(seed: int, rows: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """What a seed draws for its first thousand iterations: rows of the data, and standard Gaussian
    noise."""
    word = np.random.SeedSequence((seed, 1, 0)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word))
    indices = torch.randint(rows, (1000, batch_size), generator=generator)
    return indices, torch.randn(1000, batch_size, 3, generator=generator)


SETTINGS = {
    "gym": {},
    "antmaze": ANTMAZE,
    "clone only": dict(lam=0.0, nu=math.inf),
    "td3bc-like": dict(lam=1.0, nu=0.4, temperature=0.0),
    "td3": dict(lam=1.0, nu=0.0),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("setting", SETTINGS)
def test_twenty_updates(
    script: ModuleType, float64: None, job: Callable, hopper_file: Path, setting: str, seeds: int
) -> None:
    """After twenty iterations of a whole job, all nets of every seed equal the transcription's to 1e-9
    in float64. So do the losses and values that TensorBoard shows, which it keeps in float32."""
    flags = SETTINGS[setting] | (OTHER[script.__name__] if setting == "antmaze" else {})
    args = job(
        script, num_seeds=seeds, iterations=20, eval_episodes=1, learning_rate=1e-3, polyak=0.05, **flags
    )
    script.resolve(args)
    start = script.DMG(args, 11, 3).state_dict()
    script.train(args)
    end = torch.load(folder_of(args) / "checkpoint.pt", weights_only=True)["agent"]
    s, a, r, d, s2 = plain_transitions(hopper_file, args)
    for k in range(seeds):
        plain = Transcription(all_nets(start, k, seeds), args, script.__name__)
        indices, noise = stream(args.seed + k, len(s), args.batch_size)
        for i in range(20):
            rows = indices[i]
            plain.iterate(s[rows], a[rows], r[rows], d[rows], s2[rows], noise[i])
        shown = scalars(folder_of(args) / f"s{k}")
        for name, value in plain.log.items():
            assert shown[f"losses/{name}"][20] == pytest.approx(value.item(), rel=1e-6), name
        before = all_nets(start, k, seeds)
        for name, net in all_nets(end, k, seeds).items():
            for ours, theirs in zip(net.parameters(), plain.nets[name].parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
            assert any(
                not torch.equal(x, y) for x, y in zip(net.parameters(), before[name].parameters())
            ), name


def test_value_loss_by_hand(iql: ModuleType) -> None:
    """Eq. 15 with τ = 0.7: 0.7 u² above, 0.3 u² below: (0.7 * 4 + 0.3 * 1) / 2 = 1.55. The other
    scripts' losses have tests of their own."""
    loss = iql.value_loss(torch.tensor([[2.0, -1.0]]), iql.Args(expectile=0.7))
    assert loss.tolist() == pytest.approx([1.55])


def test_critic_loss_by_hand(script: ModuleType) -> None:
    """Eq. 16: r + 0.9 [0.25 * 8 + 0.75 * 4] = 1 + 4.5 = 5.5, or 1 at a terminal; errors (6 - 5.5)² and
    (3 - 1)² for one twin, (5.5 - 5.5)² and (1 - 1)² for the other; means 2.125 and 0."""
    q = torch.tensor([[[6.0, 3.0]], [[5.5, 1.0]]])
    r, discount = torch.ones(1, 2), torch.tensor([[0.9, 0.0]])
    q2, v2 = torch.full((1, 2), 8.0), torch.full((1, 2), 4.0)
    loss = script.critic_loss(q, r, discount, q2, v2, torch.tensor(0.25))
    assert loss.tolist() == pytest.approx([2.125])


def test_actor_loss_by_hand(script: ModuleType) -> None:
    """Eq. 14: weights exp(3 * 0) = 1 and min(exp(3 * 9), 3) = 3; squares 0.25 and 1 in one of two action
    dimensions, so the cloning term is (0.25 + 0 + 3 + 0) / 4; the Q term is -(2 - 4) / 2 / 3."""
    q, adv = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.0, 9.0]])
    pi, a = torch.tensor([[[0.5, 0.1], [1.0, 0.2]]]), torch.tensor([[[0.0, 0.1], [0.0, 0.2]]])
    args = script.Args(temperature=3.0, weight_clip=3.0, nu=0.1)
    loss = script.actor_loss(q, pi, a, adv, torch.tensor(0.1), args)
    assert loss.tolist() == pytest.approx([1 / 3 + 0.1 * 3.25 / 4])


def test_actor_loss_pulls_towards_good_actions(script: ModuleType) -> None:
    """The sign of Eq. 14: a gradient step moves π(s) towards the dataset action, and further where the
    weight is larger."""
    pi = torch.zeros(1, 2, 1, requires_grad=True)
    a, adv = torch.full((1, 2, 1), 0.5), torch.tensor([[0.0, 0.3]])
    args = script.Args(temperature=3.0, weight_clip=3.0, nu=1.0)
    script.actor_loss(torch.ones(1, 2), pi, a, adv, torch.tensor(1.0), args).sum().backward()
    step = -pi.grad.flatten()
    assert step[1] > step[0] > 0
    assert (step[1] / step[0]).item() == pytest.approx(math.exp(0.9), rel=1e-5)


def test_infinite_nu_is_cloning_alone(script: ModuleType) -> None:
    """With ν = inf the actor's loss is the mean of the weights exp(3 A), clipped at 3, on squares of 1,
    and Q has no part in it, not even as NaN."""
    adv, pi, a = torch.tensor([[0.1, -1.0, 50.0]]), torch.ones(1, 3, 2), torch.zeros(1, 3, 2)
    args = script.Args(temperature=3.0, weight_clip=3.0, nu=math.inf)
    for q in (torch.ones(1, 3), torch.full((1, 3), math.nan)):
        loss = script.actor_loss(q, pi, a, adv, torch.tensor(math.inf), args)
        assert loss.tolist() == pytest.approx([(math.exp(0.3) + math.exp(-3) + 3) / 3])


def agent_of(module: ModuleType, **flags: object) -> nn.Module:
    """The networks of a job on hopper, as they begin."""
    args = module.Args(env_id="hopper-medium-local", device="cpu", **flags)
    module.resolve(args)
    return module.DMG(args, 11, 3)


def test_first_weights_are_linear_ones(iql: ModuleType) -> None:
    """Weights and biases of every layer come from the distribution of torch.nn.Linear's (two-sample
    Kolmogorov-Smirnov)."""
    agent = agent_of(iql, num_seeds=8)
    torch.manual_seed(0)
    for network, nets, sizes in (
        (agent.actor, 8, (11, 256, 256, 3)),
        (agent.critic, 16, (14, 256, 256, 1)),
        (agent.value, 8, (11, 256, 256, 1)),
    ):
        for layer, fan_in, fan_out in zip(network.layers, sizes[:-1], sizes[1:], strict=True):
            assert layer.weight.shape == (nets, fan_in, fan_out) and layer.bias.shape == (
                nets,
                1,
                fan_out,
            )
            linears = [nn.Linear(fan_in, fan_out) for _ in range(400 if fan_out < 256 else 8)]
            for name in ("weight", "bias"):
                ours = getattr(layer, name).detach()
                theirs = torch.cat([getattr(linear, name).detach().flatten() for linear in linears])
                assert ours.abs().max() <= 1 / math.sqrt(fan_in)
                result = stats.ks_2samp(ours.flatten().numpy(), theirs.numpy())
                assert result.pvalue > 1e-3, (name, fan_in, fan_out)


def test_twins_and_seeds_start_apart_and_targets_start_equal(iql: ModuleType) -> None:
    """No two networks share their first weights; the target networks are copies, without gradients. A
    seed's first weights do not depend on the seeds beside it."""
    agent = agent_of(iql, num_seeds=3)
    networks = (agent.actor, agent.critic, agent.value)
    nets = [tuple(net[0, :3].tolist()) for network in networks for net in network.layers[0].weight]
    assert len(set(nets)) == 3 + 6 + 3
    for target, trained in ((agent.actor_target, agent.actor), (agent.critic_target, agent.critic)):
        for slow, fast in zip(target.parameters(), trained.parameters(), strict=True):
            assert torch.equal(slow, fast) and slow.data_ptr() != fast.data_ptr()
            assert fast.requires_grad and not slow.requires_grad
    alone = agent_of(iql, seed=2).state_dict()
    for name, ours in agent.state_dict().items():
        assert torch.equal(ours[2::3], alone[name]), name


@pytest.mark.parametrize("fan_out", [1, 3])
def test_linear_is_torchs(iql: ModuleType, float64: None, fan_out: int) -> None:
    """Each net of a layer does what torch's linear layer does with its weights, values and gradients;
    one output, which is computed in another way, too."""
    generator = torch.Generator().manual_seed(0)
    layer = iql.Linear([generator, generator], 2, 5, fan_out)
    x = torch.randn(4, 7, 5, generator=generator, requires_grad=True)
    weights = torch.randn(4, 7, fan_out, generator=generator)
    gradients = torch.autograd.grad((layer(x) * weights).sum(), (x, layer.weight, layer.bias))
    for net in range(4):
        inputs = [tensor[net].detach().requires_grad_() for tensor in (x, layer.weight, layer.bias)]
        output = nn.functional.linear(inputs[0], inputs[1].T, inputs[2][0])
        torch.testing.assert_close(layer(x)[net], output, rtol=0, atol=1e-12)
        for ours, theirs in zip(gradients, torch.autograd.grad((output * weights[net]).sum(), inputs)):
            torch.testing.assert_close(ours[net], theirs, rtol=0, atol=1e-12)


def test_cosine_schedule(script: ModuleType) -> None:
    """The actor's rate starts at 3e-4, halves in the middle and ends at 0 with the run (Table 5). It is
    one tensor throughout, as a captured CUDA graph needs; the other two rates stay."""
    optimisers = agent_of(script, iterations=1000, hidden_dim=4).optimisers
    rate = optimisers["actor"].param_groups[0]["lr"]
    optimisers[
        "actor"
    ].step()  # no gradients yet; torch warns of a schedule that goes ahead of its optimiser
    for step in range(501):
        assert rate.item() == pytest.approx(
            1.5e-4 * (1 + math.cos(math.pi * step / 500)), rel=1e-5, abs=1e-10
        )
        optimisers["schedule"].step()
    assert optimisers["actor"].param_groups[0]["lr"] is rate
    for name in ("critic", "value"):
        assert optimisers[name].param_groups[0]["lr"].item() == pytest.approx(3e-4, rel=1e-6)
