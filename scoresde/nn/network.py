"""What every network is: ``net(x, c, *, key=None, labels=None, cond=None)``, zero until trained: an array like x, or
logits of classes (B, K).

It holds parameters and plain numbers only: no random state, no statistics. Where the parameters are bfloat16 it
computes in bfloat16, but for its input's waves, the features of c, norms and the softmax of attention; the result has
x's dtype. Constructors draw the parameters on the host, so they run outside ``jit``.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import check_input


class Network(nnx.Module):
    """A network with conditions. Constructors set ``event_shape`` and ``conditions``; ``_forward`` is its program."""

    event_shape: tuple[Any, ...]
    conditions: Conditions

    def __call__(
        self,
        x: jax.Array,
        c: jax.Array,
        *,
        key: jax.Array | None = None,
        labels: jax.Array | None = None,
        cond: Any = None,
    ) -> jax.Array:
        """The network's output (B, *sizes, outputs), or (B, outputs) of one that has no sizes.

        Args:
            x: (B, *event) of unit variance.
            c: (B,) the noise coordinate.
            key: a random key, or (B,) keys, in training (dropout on); None in evaluation (deterministic).
            labels: (B, L) how the examples were augmented; None is the same as zeros.
            cond: what else is known of the examples, the pytree that ``conditions`` describes (module ``conditions``);
                None is the same as its null.

        Raises:
            ValueError: x, c, labels or cond of another shape.
        """
        check_input(self, self.event_shape, x, c)
        h = self._forward(x, c, self.conditions(x, cond), labels, key)
        return h.astype(jnp.promote_types(h.dtype, x.dtype))

    @abc.abstractmethod
    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array: ...
