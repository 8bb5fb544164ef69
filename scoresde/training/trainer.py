"""Training as pure functions of one state: gradient, clipping, optimiser, moving averages; k steps a compiled call.

Every random number is a function of the state's key and the step, and the order of the data of the key and the epoch:
a restored state continues exactly as if never stopped, and nothing depends on the number of devices or of microbatches
beyond rounding.

A step whose loss or gradient is not finite is skipped: parameters, optimiser, averages and carry stay, only the step
moves on, and ``Skipped`` counts it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from scoresde.arrays import widened
from scoresde.training.average import Profile, warmed
from scoresde.training.order import Order, places
from scoresde.training.sharding import batch_sharding, state_sharding
from scoresde.training.skipped import Skipped

Loss = Callable[..., Any]
"""(params, key, batch) -> losses of the examples (B,) or a scalar; with a carry (params, key, batch, carry) -> (losses,
seen), ``seen`` being a pytree of leading axis B."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: a pytree of arrays, to be saved and restored whole."""

    step: jax.Array
    params: Any
    averages: tuple[Any, ...]
    opt_state: Any
    key: jax.Array
    carry: Any
    skipped: Skipped

    @property
    def ema(self) -> Any:
        """The first moving average of the parameters."""
        return self.averages[0]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How a state moves. Hashable: make it once and keep it, since each instance compiles its own steps.

    Args:
        loss: (params, key, batch) -> losses; ``key`` is fresh at every step.
        optimizer: any optax transformation; its schedules see the step number.
        averages: the profiles of the moving averages, at least one.
        clip: largest global norm of the gradient, positive; ``inf`` for none.
        microbatches: equal parts of the batch whose gradients are accumulated one after another.
        carry: what training keeps of the batches, such as ``Levels``: its initial value, a pytree of arrays, which the
            loss gets as a fourth argument to return (losses, seen).
        update: (carry, what the loss saw of the whole batch) -> the next carry; given with ``carry``, and only then.
        draw: (key, batch) or (key, batch, carry) -> a pytree of leading axis B with all that is random in the loss,
            drawn for the whole batch at once; the loss then gets it as its batch, or a part of it, and None as its key.
            Without it each microbatch has a key of its own, and the numbers drawn depend on how many there are.
            ``noised`` draws times and noise; networks take (B,) keys for their dropout.
        level: (the loss's batch) -> noise levels (B,), at least 0, for the report of a skipped step.
        mesh: the devices, from ``device_mesh``; None for one device. States and data must lie on it.

    Raises:
        ValueError: no averages; clip or microbatches out of range; carry without update, or update without carry; at
            the step, a batch that cannot be cut.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    averages: tuple[Profile, ...] = (warmed(0.999),)
    clip: float = 1.0
    microbatches: int = 1
    carry: Any = dataclasses.field(default=None, compare=False)
    update: Callable[[Any, Any], Any] | None = None
    draw: Callable[..., Any] | None = None
    level: Callable[[Any], jax.Array] | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.averages, tuple) and self.averages and all(map(callable, self.averages))):
            raise ValueError(f"averages must be a tuple of profiles such as (warmed(0.999),), got {self.averages!r}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip!r}")
        if self.microbatches < 1:
            raise ValueError(f"microbatches must be at least 1, got {self.microbatches!r}")
        if (self.carry is None) != (self.update is None):
            raise ValueError("carry and update go together: a value, and a function that moves it; one is missing")

    def init(self, key: jax.Array, params: Any) -> State:
        """The state before the first step; parameters, carry and key are copied.

        All that moves keeps its dtype: the averages that of the parameters, but float32 at least.
        """
        zero, averages = jnp.array(0, jnp.int32), (jax.tree.map(widened, params),) * len(self.averages)
        state = State(zero, params, averages, self.optimizer.init(params), key, self.carry, Skipped.none(params))
        return jax.tree.map(jnp.copy, state)  # ``run`` donates it: no buffer may be the caller's, or occur twice

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step on one batch.

        Returns:
            the next state and {loss, grad_norm (before clipping), skipped (the steps in a row up to this one)}.
        """
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        if self.mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, batch_sharding(self.mesh))
        losses, levels, carry, grads = self._gradient(state, key, batch)
        grads = jax.tree.map(widened, grads)
        loss, norm = jnp.mean(widened(losses)), optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        grads, _ = optax.clip_by_global_norm(self.clip).update(grads, optax.EmptyState())
        before = state.params, state.averages, state.opt_state, state.carry, state.skipped

        def take() -> tuple[Any, ...]:
            updates, opt_state = self.optimizer.update(_like(state.params, grads), state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            averages = tuple(map(partial(_average, state.step, params), self.averages, state.averages))
            return _like(before, (params, averages, opt_state, carry, state.skipped.taken()))

        def skip() -> tuple[Any, ...]:
            return _like(before, (*before[:-1], state.skipped.counted(state.step, losses, levels, grads)))

        params, averages, opt_state, carry, skipped = jax.lax.cond(good, take, skip)
        state = State(state.step + 1, params, averages, opt_state, state.key, carry, skipped)
        result = state, {"loss": loss, "grad_norm": norm, "skipped": skipped.in_a_row}
        if self.mesh is None:
            return result
        return jax.lax.with_sharding_constraint(result, state_sharding(self.mesh, result))

    def _gradient(self, state: State, key: jax.Array | None, batch: Any) -> tuple[jax.Array, jax.Array, Any, Any]:
        """Losses of the batch, their noise levels, the next carry and the gradient of the mean loss."""

        carried = [] if self.update is None else [state.carry]

        def evaluate(params: Any, key: jax.Array | None, batch: Any) -> tuple[jax.Array, Any]:
            result = self.loss(params, key, batch, *carried)
            losses, seen = result if carried else (result, None)
            return jnp.mean(widened(losses)), (losses, seen)

        gradient, parts = jax.value_and_grad(evaluate, has_aux=True), self.microbatches
        if self.draw is not None:
            batch, key = self.draw(key, batch, *carried), None
        levels = jnp.zeros(0) if self.level is None else self.level(batch)
        if parts == 1:
            (_, (losses, seen)), grads = gradient(state.params, key, batch)
        else:

            def body(total: Any, part: tuple[Any, Any]) -> tuple[Any, Any]:
                (_, found), grads = gradient(state.params, *part)
                return jax.tree.map(lambda s, g: s + widened(g), total, grads), found

            keys = None if key is None else jax.random.split(key, parts)
            zeros = jax.tree.map(lambda p: jnp.zeros_like(widened(p)), state.params)
            total, found = jax.lax.scan(body, zeros, (keys, self._cut(batch)))
            losses, seen = jax.tree.map(_joined, found)
            grads = jax.tree.map(lambda g: g / parts, total)
        return losses, levels, state.carry if self.update is None else self.update(state.carry, seen), grads

    def _cut(self, batch: Any) -> Any:
        """(B, ...) as (microbatches, B / microbatches, ...): part m has the examples m, m + M, ..., so that each
        device holds the same share of every part."""
        size, parts = jax.tree.leaves(batch)[0].shape[0], self.microbatches
        if size % parts:
            raise ValueError(f"microbatches must divide the batch of {size}, got {parts}")
        cut = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(size // parts, parts, *a.shape[1:]), 1, 0), batch)
        return (
            cut if self.mesh is None else jax.lax.with_sharding_constraint(cut, batch_sharding(self.mesh, stacked=True))
        )

    @partial(jax.jit, static_argnames=("self", "steps", "batch_size"), donate_argnames="state")
    def run(self, state: State, data: Any, *, steps: int, batch_size: int) -> tuple[State, dict[str, jax.Array]]:
        """``steps`` steps in one compiled call over ``data``, a pytree of arrays (n, ...) on the device.

        Each epoch visits every example once, in an order that depends on (key, epoch, n) alone. ``state`` is donated.

        Returns:
            the state and the metrics of every step, (steps,).

        Raises:
            ValueError: no examples.
        """
        n = jax.tree.leaves(data)[0].shape[0]
        if not n:
            raise ValueError("data must hold at least one example, got none")
        first, _ = places(state.step, batch_size, n)
        epochs = first + jnp.arange(-(-steps * batch_size // n) + 1, dtype=jnp.uint32)
        order = Order.of(jax.random.fold_in(state.key, 1), epochs, n)

        def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
            epoch, place = places(state.step, batch_size, n)
            place += jnp.arange(batch_size, dtype=jnp.uint32)
            index = order.examples(epoch - first + place // n, place % n)
            return self.step(state, jax.tree.map(lambda a: a[index], data))

        return jax.lax.scan(body, state, length=steps)

    @partial(jax.jit, static_argnames="self", donate_argnames="state")
    def run_batches(self, state: State, batches: Any) -> tuple[State, dict[str, jax.Array]]:
        """As ``run``, on batches made by the host: a pytree of arrays (k, B, ...) for k steps."""
        return jax.lax.scan(self.step, state, batches)


def projected(optimizer: optax.GradientTransformation, project: Callable[[Any], Any]) -> optax.GradientTransformation:
    """The optimiser with every step ending in ``project`` of the parameters, such as ``ss.nn.normalise_weights``.

    Args:
        optimizer: any optax transformation.
        project: (parameters) -> parameters of the same structure and shapes; where it changes nothing, nor does this.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("projected: the parameters must be given to update")
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(jnp.subtract, project(optax.apply_updates(params, updates)), params), state

    return optax.GradientTransformation(optimizer.init, update)


def _joined(a: jax.Array) -> jax.Array:
    """(microbatches, B / microbatches, ...) as (B, ...), the inverse of ``Trainer._cut``; (microbatches,) as it is."""
    return a if a.ndim == 1 else jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])


def _average(n: jax.Array, params: Any, profile: Profile, ema: Any) -> Any:
    d = profile(n)
    return jax.tree.map(lambda average, p: average + (1 - d) * (widened(p) - average), ema, params)


def _like(old: Any, new: Any) -> Any:
    """``new`` in the dtypes of ``old``: what was computed in a wider one is rounded once, where it is kept."""
    return jax.tree.map(lambda a, b: b if a.dtype == jnp.result_type(b) else jnp.asarray(b, a.dtype), old, new)
