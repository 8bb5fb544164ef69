"""Training as pure functions of one state: gradient, clipping, optimiser, moving average; k steps in one compiled call.

The exponential moving average of the parameters warms up,

    ema <- d ema + (1 - d) params,      d = min(decay, (1 + n)/(10 + n)) at step n,

so that early averages are not noise. Every random number is a function of the state's key and the step, and the order
of the data of the key and the epoch: a restored state continues exactly as if never stopped.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[Any, jax.Array, Any], jax.Array]
"""(params, key, batch) -> losses of the examples (B,) or a scalar."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: a pytree of arrays, to be saved and restored whole."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How a state moves. Hashable: make it once and keep it, since each instance compiles its own steps.

    Args:
        loss: (params, key, batch) -> losses; ``key`` is fresh at every step.
        optimizer: any optax transformation; its schedules see the step number.
        ema_decay: decay of the moving average, in [0, 1).
        clip: largest global norm of the gradient, positive; ``inf`` for none.

    Raises:
        ValueError: ema_decay or clip out of range.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    ema_decay: float = 0.999
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay!r}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip!r}")

    def init(self, key: jax.Array, params: Any) -> State:
        """The state before the first step; parameters and key are copied."""
        state = State(jnp.array(0, jnp.int32), params, params, self.optimizer.init(params), key)
        return jax.tree.map(jnp.copy, state)  # ``run`` donates it: no buffer may be the caller's, or occur twice

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step on one batch: the next state and {loss, grad_norm} (the norm before clipping)."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        loss, grads = jax.value_and_grad(lambda params: jnp.mean(self.loss(params, key, batch)))(state.params)
        norm = optax.tree.norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1, self.clip / jnp.maximum(norm, 1e-30)), grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda average, p: average + (1 - decay) * (p - average), state.ema, params)
        return State(state.step + 1, params, ema, opt_state, state.key), {"loss": loss, "grad_norm": norm}

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
