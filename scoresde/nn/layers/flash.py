"""Attention of queries to keys, the one place where it is computed: head by head, with d the channels of a head,

    attention(q, k, v)_i = sum_j p_ij v_j,      p_i = softmax_j(q_i . k_j / sqrt(d)) over the keys j whose mask is True,

the softmax in float32 at least. On NVIDIA's devices, in half precision, without a mask and with heads that it knows,
it is cuDNN's flash attention, which never writes p; elsewhere XLA's. Which of the two it is, the platform decides that
a program is lowered for; where no such device is at hand, cuDNN's is not even traced.

cuDNN has a derivative in reverse mode only, where a likelihood needs J z and a guided likelihood a J z of gradients.
So one primitive joins the two: with f the attention, J its Jacobian at (q, k, v) and w any cotangent of f,

    f          cuDNN;      its tangent  J (dq, dk, dv)  is XLA's, linear, and transposed it is
    J^T w      cuDNN;      its tangent  is XLA's, and so are all higher derivatives.

References: Dao (2024), FlashAttention-2; the guide of cuDNN's frontend, scaled dot-product attention.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Three = tuple[jax.Array, jax.Array, jax.Array]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Attention (B, T, heads, d) of q (B, T, heads, d) to k and v (B, S, heads, d).

    Args:
        q: queries.
        k: keys, of the dtype of q.
        v: values, of the dtype of q.
        mask: bool, True where a query attends to a key; its shape broadcasts to (B, heads, T, S).
    """
    return _flash((q, k, v)) if mask is None and fits(q) else _plain((q, k, v), mask)


def fits(q: jax.Array) -> bool:
    """Whether cuDNN has a kernel, backward too, for queries like q on NVIDIA's devices of this process: half precision,
    Ampere or newer, heads of a multiple of 8 channels, at most 128, on Hopper 256."""
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8:
        return False
    generation = _generation()
    hopper = generation == 9 and jax.default_backend() == "gpu"  # JAX asks the default backend for it
    return generation >= 8 and q.shape[-1] <= (256 if hopper else 128)


def _generation() -> int:
    """The first number of the compute capability of NVIDIA's devices, 0 without one: 8 Ampere, 9 Hopper."""
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return 0
    return int(str(device.compute_capability).partition(".")[0])


def _plain(qkv: Three, mask: jax.Array | None = None) -> jax.Array:
    """By XLA; ``jax.nn.dot_product_attention`` has its softmax in float32 even in float64."""
    q, k, v = qkv
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    there = None if mask is None else jnp.broadcast_to(mask, logits.shape)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits, axis=-1, where=there), v)


def _cudnn(qkv: Three) -> jax.Array:
    return jax.nn.dot_product_attention(*qkv, implementation="cudnn")


@jax.custom_jvp
def _flash(qkv: Three) -> jax.Array:
    return jax.lax.platform_dependent(qkv, cuda=_cudnn, default=_plain)


@_flash.defjvp
def _flash_jvp(at: tuple[Three], along: tuple[Three]) -> tuple[jax.Array, jax.Array]:
    return _flash(*at), _tangent.bind(*at[0], *along[0])


@jax.custom_jvp
def _pull(qkv: Three, w: jax.Array) -> Three:
    """J^T w."""

    def of(attention: Any, qkv: Three, w: jax.Array) -> Three:
        return jax.vjp(attention, qkv)[1](w)[0]

    return jax.lax.platform_dependent(qkv, w, cuda=partial(of, _cudnn), default=partial(of, _plain))


@_pull.defjvp
def _pull_jvp(at: tuple[Three, jax.Array], along: tuple[Three, jax.Array]) -> tuple[Three, Three]:
    return _pull(*at), jax.jvp(lambda qkv, w: jax.vjp(_plain, qkv)[1](w)[0], at, along)[1]


def _push(*six: jax.Array) -> jax.Array:
    """J (dq, dk, dv), of q, k, v, dq, dk, dv."""
    return jax.jvp(_plain, (six[:3],), (six[3:],))[1]


def _transposed(w: jax.Array, *six: Any) -> list[Any]:
    return [None, None, None, *_pull(six[:3], w)]


def _pushed(at: Any, along: Any) -> tuple[jax.Array, jax.Array]:
    along = tuple(ad.instantiate_zeros(tangent) for tangent in along)
    return _tangent.bind(*at), jax.jvp(_push, at, along)[1]


def _batched(six: Any, axes: Any) -> tuple[jax.Array, int]:
    """A new axis joins the batch."""
    n = next(a.shape[axis] for a, axis in zip(six, axes, strict=True) if axis is not None)
    front = [
        jnp.broadcast_to(a[None], (n, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(six, axes, strict=True)
    ]
    y = _tangent.bind(*(a.reshape(-1, *a.shape[2:]) for a in front))
    return y.reshape(n, -1, *y.shape[1:]), 0


_tangent = Primitive("attention_tangent")
_tangent.def_impl(jax.jit(_push))
_tangent.def_abstract_eval(lambda q, *_: q)
mlir.register_lowering(_tangent, mlir.lower_fun(_push, multiple_results=False))
ad.primitive_jvps[_tangent] = _pushed
ad.primitive_transposes[_tangent] = _transposed
batching.primitive_batchers[_tangent] = _batched
