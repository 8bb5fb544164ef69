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


def test_the_platform_of_the_program_decides_not_that_of_the_process():
    """Lowered for a GPU or TPU the convolutions are those of JAX; one program exported for all gives the same here."""

    def second(convolution):
        loss = lambda x, w: jnp.sum(jnp.sin(convolution(x, w, 2)))  # noqa: E731
        return jax.jit(lambda x, w: jax.grad(lambda x, w: jnp.sum(jax.grad(loss)(x, w) ** 2), 1)(x, w))

    def convolutions(function, platform):
        text = function.trace(*pair(2)).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"stablehlo\.convolution.*?dim_numbers = (.*?), window = (\{.*?\})", text))

    for platform in ("cuda", "tpu"):
        assert len(convolutions(second(plain), platform)) > 3
        assert convolutions(second(ours), platform) == convolutions(second(plain), platform)
    assert convolutions(second(ours), "cpu") != convolutions(second(plain), "cpu")
    exported = jax.export.export(second(ours), platforms=("cpu", "cuda"))(*pair(2))
    np.testing.assert_allclose(exported.call(*pair(2)), second(plain)(*pair(2)), rtol=1e-4, atol=1e-4)
