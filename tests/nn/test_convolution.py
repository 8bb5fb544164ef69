"""The convolution of the networks beside JAX's own, to second derivatives, and the layout that it compiles to."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde.nn.layers.convolution import channels_last


def plain(x, w, stride):
    axes = "XYZ"[: x.ndim - 2]
    layout = f"N{axes}C", f"{axes}IO", f"N{axes}C"
    return jax.lax.conv_general_dilated(x, w, (stride,) * len(axes), "SAME", dimension_numbers=layout)


def ours(x, w, stride):
    return channels_last(x, w, (stride,) * (x.ndim - 2), "SAME")


def pair(dims, n=5, k=3):
    keys = jax.random.split(jax.random.key(dims))
    return jax.random.normal(keys[0], (2, *(n,) * dims, 3)), jax.random.normal(keys[1], ((k,) * dims + (3, 4)))


@pytest.mark.parametrize(
    ("dims", "n", "k", "stride"),
    [(1, 6, 3, 1), (1, 5, 4, 3), (2, 6, 3, 2), pytest.param(2, 5, 1, 2, marks=pytest.mark.slow), (3, 5, 3, 2)],
)
def test_value_and_derivatives_are_those_of_jax(dims, n, k, stride):
    def second(convolution):
        loss = lambda x, w: jnp.sum(jnp.sin(convolution(x, w, stride)))  # noqa: E731
        bent = lambda x, w: sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1))(x, w))  # noqa: E731
        return jax.jit(lambda x, w: (convolution(x, w, stride), jax.grad(bent, (0, 1))(x, w)))

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-9),
        second(ours)(*pair(dims, n, k)),
        second(plain)(*pair(dims, n, k)),
    )


def test_batches_of_inputs_of_kernels_and_of_tangents(x64):
    x, w = pair(2)
    xs, ws = jnp.stack([x, x + 1], 1), jnp.stack([w, w + 1])
    push = lambda x: jax.jvp(lambda x: ours(x, w, 1), (x,), (x,))[1]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(push, 1)(xs)[1], plain(x + 1, w, 1), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(ours, (None, 0, None))(x, ws, 1)[1], plain(x, w + 1, 1), atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_inside_a_loop_every_convolution_has_the_layout_of_the_fast_kernel(stride):
    x, w = pair(2)
    loss = lambda both: jnp.sum(ours(*both, stride) ** 2)  # noqa: E731
    loop = jax.jit(lambda both: jax.lax.scan(lambda c, _: (jax.grad(loss)(c), None), both, length=2)[0])
    labels = re.findall(r"dim_labels=(\S+?)[,\s}]", loop.lower((x, w)).compile().as_text())
    assert len(labels) >= 3
    assert set(labels) == {"b01f_01io->b01f"}


def test_elsewhere_than_on_a_cpu_it_is_that_of_jax(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, w = pair(2)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    made = jax.make_jaxpr(lambda x, w: channels_last(x, w, (1, 1), "SAME", **layout))(x, w)
    assert [str(e.primitive) for e in made.eqns] == ["conv_general_dilated"]
