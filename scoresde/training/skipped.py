"""Steps of training without a finite loss and gradient: their number, and what the first of a row looked like."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

UNKNOWN = -1.0  # not NaN, which jax_debug_nans would take for an error


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Skipped:
    """The steps that were not taken, and what the first step of the last row of them looked like."""

    total: jax.Array
    in_a_row: jax.Array
    step: jax.Array
    loss: jax.Array
    level: jax.Array
    """Noise level of the first example without a finite loss; negative where it is not known."""
    leaves: jax.Array
    """(L,) whether the gradient of each leaf of the parameters was other than finite."""

    @classmethod
    def none(cls, params: Any) -> "Skipped":
        """Before the first step."""
        zero, none = jnp.array(0, jnp.int32), jnp.array(UNKNOWN, jnp.float32)
        return cls(zero, zero, zero, none, none, jnp.zeros(len(jax.tree.leaves(params)), bool))

    def taken(self) -> "Skipped":
        """After a step that was taken."""
        return dataclasses.replace(self, in_a_row=jnp.array(0, jnp.int32))

    def counted(self, step: jax.Array, losses: jax.Array, levels: jax.Array, grads: Any) -> "Skipped":
        """After a step that was skipped, with these losses (B,) at these noise levels: (B,), or any other shape if they
        are not known."""
        finite = jnp.isfinite(losses).ravel()
        known = levels.shape == losses.shape
        level = jnp.where(jnp.all(finite), UNKNOWN, levels[jnp.argmin(finite)]) if known else UNKNOWN
        leaves = jnp.array([~jnp.isfinite(jnp.sum(g * g)) for g in jax.tree.leaves(grads)])
        first = partial(jnp.where, self.in_a_row == 0)
        return Skipped(
            total=self.total + 1,
            in_a_row=self.in_a_row + 1,
            step=first(step, self.step),
            loss=first(jnp.mean(losses), self.loss),
            level=first(level, self.level),
            leaves=first(leaves, self.leaves),
        )

    def report(self, params: Any) -> str:
        """One line about the last row of skipped steps; ``params`` give the leaves' names."""
        names = [jax.tree_util.keystr(path) or "(the parameters)" for path, _ in jax.tree.leaves_with_path(params)]
        bad = [name for name, marked in zip(names, jax.device_get(self.leaves), strict=True) if marked]
        where = (
            f"gradient not finite in {len(bad)} of {len(names)} leaves, first {bad[0]}" if bad else "finite gradient"
        )
        level = "" if not float(self.level) >= 0 else f" at noise level {float(self.level):.4g}"
        return f"step {int(self.step)}: loss {float(self.loss):.4g}{level}, {where}"
