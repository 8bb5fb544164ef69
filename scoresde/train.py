"""Training as pure functions of one state: gradient, clipping, optimiser, moving average; k steps in one compiled call.

Every average of the parameters moves as ema <- d ema + (1 - d) params, d being its profile at step n (see ``average``).
A loss may carry a state of its own, such as ``Levels``, from step to step. Every random number is a function of the
state's key and the step, and the order of the data of the key and the epoch: a restored state continues exactly as if
never stopped.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scoresde.average import Profile, warmed

Loss = Callable[..., Any]
"""(params, key, batch) -> losses of the examples (B,) or a scalar; with a carry
(params, key, batch, carry) -> (losses, carry)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: a pytree of arrays, to be saved and restored whole."""

    step: jax.Array
    params: Any
    averages: tuple[Any, ...]
    opt_state: Any
    key: jax.Array
    carry: Any = None

    @property
    def ema(self) -> Any:
        """The first average."""
        return self.averages[0]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How a state moves. Hashable: make it once and keep it, since each instance compiles its own steps.

    Args:
        loss: (params, key, batch) -> losses; ``key`` is fresh at every step.
        optimizer: any optax transformation; its schedules see the step number.
        averages: profiles of the moving averages, at least one; the first is ``state.ema``.
        clip: largest global norm of the gradient, positive; ``inf`` for none.
        carry: the first carry, a pytree of arrays, where the loss has one.

    Raises:
        ValueError: no averages, or clip out of range.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    averages: tuple[Profile, ...] = (warmed(0.999),)
    clip: float = 1.0
    carry: Any = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.averages:
            raise ValueError("averages must hold at least one profile, got none")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip!r}")

    def init(self, key: jax.Array, params: Any) -> State:
        """The state before the first step; parameters and key are copied."""
        averages, opt_state = (params,) * len(self.averages), self.optimizer.init(params)
        state = State(jnp.array(0, jnp.int32), params, averages, opt_state, key, self.carry)
        return jax.tree.map(jnp.copy, state)  # ``run`` donates it: no buffer may be the caller's, or occur twice

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step on one batch: the next state and {loss, grad_norm} (the norm before clipping)."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)

        def mean(params: Any) -> tuple[jax.Array, Any]:
            if state.carry is None:
                return jnp.mean(self.loss(params, key, batch)), None
            losses, carry = self.loss(params, key, batch, state.carry)
            return jnp.mean(losses), carry

        (loss, carry), grads = jax.value_and_grad(mean, has_aux=True)(state.params)
        norm = optax.tree.norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1, self.clip / jnp.maximum(norm, 1e-30)), grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = tuple(map(partial(_average, state.step, params), self.averages, state.averages))
        state = State(state.step + 1, params, averages, opt_state, state.key, carry)
        return state, {"loss": loss, "grad_norm": norm}

    @partial(jax.jit, static_argnames=("self", "steps", "batch_size"), donate_argnames="state")
    def run(self, state: State, data: Any, *, steps: int, batch_size: int) -> tuple[State, dict[str, jax.Array]]:
        """``steps`` steps in one compiled call over ``data``, a pytree of arrays (n, ...) on the device.

        Each epoch visits every example once, in an order that depends on (key, epoch) alone. ``state`` is donated.

        Returns:
            the state and the metrics of every step, (steps,).
        """
        n = jax.tree.leaves(data)[0].shape[0]
        cycle = n // math.gcd(n, batch_size)  # steps after which batches begin with an epoch again

        def place(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Epoch and position in it of a step's first example; the count of all examples would overflow."""
            cycles, position = step // cycle, step % cycle * batch_size
            return cycles * (cycle * batch_size // n) + position // n, position % n

        epoch, _ = place(state.step)
        epochs = epoch + jnp.arange(-(-steps * batch_size // n) + 1)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(state.key, 1)))(epochs)
        orders = jax.vmap(lambda key: jax.random.permutation(key, n))(keys)

        def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
            current, first = place(state.step)
            position = first + jnp.arange(batch_size)
            index = orders[current - epoch + position // n, position % n]
            return self.step(state, jax.tree.map(lambda a: a[index], data))

        return jax.lax.scan(body, state, length=steps)


def _average(step: jax.Array, params: Any, profile: Profile, average: Any) -> Any:
    decay = profile(step)
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
