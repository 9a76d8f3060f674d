"""DMG's update (dmg_iql.py) in plain JAX, jit and scan, for tools/speed.py: what a user of JAX would
write.

The functions work on one seed, jax.vmap puts the seeds side by side. A network is a list of (weight,
bias), the critics have an axis of twins in front."""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dmg_iql

jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU float32 products, as torch's are
State = dict


def mlp(params: list, x: jax.Array) -> jax.Array:
    """x [batch, in] -> [batch, out]."""
    *hidden, (weight, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ weight + bias


def twins(params: list, s: jax.Array, a: jax.Array) -> jax.Array:
    """Q(s, a) of both critics [2, batch]."""
    return jax.vmap(mlp, (0, None))(params, jnp.concatenate([s, a], -1))[..., 0]


def policy(params: list, s: jax.Array) -> jax.Array:
    return jnp.tanh(mlp(params, s))


def adam(state: State, name: str, gradient: list, rate: jax.Array | float) -> State:
    """One step of Adam for the network `name`; its moments and the count of its steps are in the
    state."""
    first, second, step = state[f"adam_{name}"]
    step = step + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
    move = lambda p, m, v: p - rate * m / (1 - 0.9**step) / (jnp.sqrt(v / (1 - 0.999**step)) + 1e-8)
    moved = jax.tree.map(move, state[name], first, second)
    return state | {name: moved, f"adam_{name}": (first, second, step)}


def update(
    args: dmg_iql.Args, columns: list[int], state: State, batch: tuple, actor_step: bool
) -> State:
    """One iteration of one seed, from (rows of the buffer [batch, columns], noise [batch, action])."""
    rows, noise = batch
    s, a, r, not_done, s2 = jnp.split(rows, np.cumsum(columns)[:-1], axis=-1)
    r, discount = r[:, 0], args.gamma * not_done[:, 0]
    q_target = twins(state["critic_target"], s, a).min(0)
    a2 = jnp.clip(policy(state["actor_target"], s2) + noise, -1, 1)
    q2 = twins(state["critic_target"], s2, a2).min(0)

    def value_loss(params: list) -> jax.Array:
        u = q_target - mlp(params, s)[:, 0]
        return jnp.mean(jnp.where(u < 0, 1 - args.expectile, args.expectile) * u**2)

    state = adam(state, "value", jax.grad(value_loss)(state["value"]), args.learning_rate)
    v2 = mlp(state["value"], s2)[:, 0]
    target = r + discount * (args.lam * q2 + (1 - args.lam) * v2)

    def critic_loss(params: list) -> jax.Array:
        return jnp.mean((twins(params, s, a) - target) ** 2, -1).sum()

    state = adam(state, "critic", jax.grad(critic_loss)(state["critic"]), args.learning_rate)
    if not actor_step:
        return state
    advantage = q_target - mlp(state["value"], s)[:, 0]
    weight = jnp.minimum(jnp.exp(args.temperature * advantage), args.weight_clip)[:, None]

    def actor_loss(params: list) -> jax.Array:
        pi = policy(params, s)
        q = twins(state["critic"], s, pi).min(0)
        scale = jax.lax.stop_gradient(jnp.abs(q).mean())
        return args.nu * jnp.mean(weight * (pi - a) ** 2) - q.mean() / scale

    done, steps = state["adam_actor"][2], args.iterations // args.policy_delay
    rate = args.learning_rate * (1 + jnp.cos(jnp.pi * done / steps)) / 2
    state = adam(state, "actor", jax.grad(actor_loss)(state["actor"]), rate)
    follow = lambda slow, fast: slow + args.polyak * (fast - slow)
    for name in "actor", "critic":
        state[f"{name}_target"] = jax.tree.map(follow, state[f"{name}_target"], state[name])
    return state


def find_device(name: str) -> jax.Device:
    """JAX's device for torch's name of it."""
    kind, _, index = name.partition(":")
    return jax.devices("cpu" if kind == "cpu" else "gpu")[int(index or 0)]


def memory(name: str) -> float:
    """The most memory of the device that was in use so far, in GB; 0 where JAX does not count it."""
    return (find_device(name).memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9


class Jax:
    """All seeds of a job, with the first weights of a dmg_iql.DMG."""

    def __init__(self, args: dmg_iql.Args, agent: dmg_iql.DMG) -> None:
        device = find_device(args.device)
        weights = {key: np.array(tensor.cpu()) for key, tensor in agent.state_dict().items()}  # copies
        state = {}
        for key, weight in weights.items():  # "critic.layers.0.weight" and so on, weight before bias
            name = key.split(".")[0]
            if name.startswith("critic"):  # [2 * seeds, ...] -> [seeds, 2, ...]
                weight = weight.reshape(2, args.num_seeds, *weight.shape[1:]).swapaxes(0, 1)
            state.setdefault(name, []).append(weight)
        state = {name: list(zip(arrays[::2], arrays[1::2])) for name, arrays in state.items()}
        for name in "actor", "critic", "value":
            zeros = jax.tree.map(np.zeros_like, state[name])
            state[f"adam_{name}"] = zeros, zeros, np.zeros(args.num_seeds, weight.dtype)
        self.state, self.device = jax.device_put(state, device), device

        def iterate(state: State, rows: jax.Array, noise: jax.Array, actor_step: bool) -> State:
            """One iteration of all seeds, from [seeds, batch, columns] and [seeds, batch, action]."""
            one_seed = functools.partial(update, args, agent.columns, actor_step=actor_step)
            return jax.vmap(one_seed)(state, (rows, noise))

        @functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
        def block(state: State, table: jax.Array, key: jax.Array, length: int) -> State:
            """`length` iterations: their numbers are drawn at once; each pass of the scan does as many
            as belong to one step of the actor."""
            shape = length // args.policy_delay, args.policy_delay, args.num_seeds, args.batch_size
            keys = jax.random.split(key)
            indices = jax.random.randint(keys[0], shape, 0, len(table))
            noise = (
                jax.random.normal(keys[1], (*shape, agent.columns[1]), table.dtype) * args.policy_noise
            )
            noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)

            def body(state: State, draws: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
                for i in range(args.policy_delay):
                    rows = table[draws[0][i]]
                    state = iterate(state, rows, draws[1][i], i == args.policy_delay - 1)
                return state, None

            return jax.lax.scan(body, state, (indices, noise))[0]

        self.iterate, self.block = jax.jit(iterate, static_argnums=3), block

    def update(self, batch: np.ndarray, noise: np.ndarray, actor_step: bool) -> None:
        """One iteration, with the inputs of DMG.update."""
        self.state = self.iterate(self.state, batch, noise, actor_step)

    def loop(self, buffer: np.ndarray, length: int) -> Callable[[], None]:
        """A function that does `length` iterations, a multiple of policy_delay, and waits for them."""
        table, blocks = jax.device_put(buffer, self.device), iter(range(2**31))

        def advance() -> None:
            key = jax.random.PRNGKey(next(blocks))
            self.state = jax.block_until_ready(self.block(self.state, table, key, length))

        return advance

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, under the names and in the shapes of DMG's state_dict."""
        found = {}
        for name in "actor", "critic", "value", "actor_target", "critic_target":
            for i, pair in enumerate(self.state[name]):
                for kind, array in zip(("weight", "bias"), map(np.array, pair)):
                    if name.startswith("critic"):
                        array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
                    found[f"{name}.layers.{i}.{kind}"] = array
        return found
