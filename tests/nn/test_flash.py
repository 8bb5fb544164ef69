"""The one attention: its formula, when it is cuDNN's, and derivatives of every kind where cuDNN has one of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde.nn.layers import flash

SHAPES = (2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4)


def draws(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def formula(q, k, v, mask):
    y = np.zeros(q.shape)
    for b, i, head in np.ndindex(q.shape[:3]):
        p = np.exp(k[b, :, head] @ q[b, i, head] / math.sqrt(q.shape[-1])) * mask[b]
        y[b, i, head] = p @ v[b, :, head] / p.sum()
    return y


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_attention_is_its_formula_to_the_precision_of_its_dtype(x64, dtype, error):
    q, k, v = draws(0, dtype=dtype)
    some = np.array([[True, False, True, True, False], [False, False, False, True, False]])
    for mask in (some, np.ones((2, 5), bool)):
        y = jax.jit(flash.attention)(q, k, v, mask=jnp.asarray(mask)[:, None, None])
        np.testing.assert_allclose(y, formula(*map(np.float64, (q, k, v)), mask), atol=error)
    np.testing.assert_array_equal(y, flash.attention(q, k, v))


@pytest.mark.parametrize(
    ("backend", "generation", "dtype", "head", "fits"),
    [
        ("gpu", 8, jnp.bfloat16, 64, True),
        ("gpu", 9, jnp.float16, 256, True),
        ("gpu", 10, jnp.bfloat16, 128, True),
        ("gpu", 10, jnp.bfloat16, 256, False),
        ("gpu", 8, jnp.bfloat16, 136, False),
        ("gpu", 8, jnp.bfloat16, 12, False),
        ("gpu", 7, jnp.bfloat16, 64, False),
        ("gpu", 0, jnp.bfloat16, 64, False),
        ("gpu", 9, jnp.float32, 64, False),
        ("cpu", 9, jnp.bfloat16, 128, True),
        ("cpu", 9, jnp.bfloat16, 256, False),
    ],
)
def test_cudnn_is_traced_where_a_device_at_hand_has_a_kernel(monkeypatch, backend, generation, dtype, head, fits):
    """Whatever the default backend is: the platform of the program decides later."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(flash, "_generation", lambda: generation)
    assert flash.fits(jax.ShapeDtypeStruct((1, 4, 1, head), dtype)) is fits


def test_without_nvidias_devices_there_is_no_generation():
    assert flash._generation() == 0


@pytest.fixture
def cudnn(monkeypatch):
    """XLA's attention in cuDNN's place, as its own function of reverse mode alone; the list of its calls."""
    calls = []

    @jax.custom_vjp
    def stand_in(qkv):
        calls.append("forward")
        return flash._plain(qkv)

    def pull(qkv, w):
        calls.append("backward")
        return (jax.vjp(flash._plain, qkv)[1](w)[0],)

    stand_in.defvjp(lambda qkv: (stand_in(qkv), qkv), pull)
    monkeypatch.setattr(flash, "_cudnn", stand_in)
    monkeypatch.setattr(flash, "fits", lambda q: True)
    return calls


def plain(*qkv):
    return flash._plain(qkv)


def derivatives(f):
    """Derivatives of f at (q, k, v) along (dq, dk, dv), w and z being cotangents."""

    def loss(*qkv):
        return jnp.sum(jnp.sin(f(*qkv)))

    gradient = jax.grad(loss, (0, 1, 2))

    def call(qkv, along):
        forward = lambda *at: jax.jvp(f, at, along)[1]  # noqa: E731
        return {
            "value": f(*qkv),
            "gradient": gradient(*qkv),
            "forward": forward(*qkv),
            "forward of gradient": jax.jvp(gradient, qkv, along)[1],
            "gradient of forward": jax.grad(lambda *at: jnp.sum(forward(*at) ** 2), (0, 1, 2))(*qkv),
            "forward of forward": jax.jvp(forward, qkv, along)[1],
            "only the values": jax.jvp(lambda v: f(qkv[0], qkv[1], v), qkv[2:], along[2:])[1],
            "again": jax.grad(jax.checkpoint(loss))(*qkv),
        }

    return call


def along(f):
    return jax.vmap(f, (None, 0))


@pytest.mark.parametrize("wrap", [along, *(pytest.param(w, marks=pytest.mark.slow) for w in (jax.jit, jax.vmap))])
def test_derivatives_of_every_kind_are_those_of_the_formula(x64, cudnn, wrap):
    """Under ``vmap`` too, whether of all arguments or of the directions alone, as for probes of a divergence."""
    four = [(4, *shape) for shape in SHAPES]
    qkv, directions = draws(0, four if wrap is jax.vmap else SHAPES), draws(1, SHAPES if wrap is jax.jit else four)
    got, wanted = (jax.jit(wrap(derivatives(f)))(qkv, directions) for f in (flash.attention, plain))
    for name in wanted:
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(wanted[name]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


def test_a_training_step_is_cudnns_forward_and_backward(cudnn):
    q = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    jax.make_jaxpr(jax.grad(lambda q: jnp.sum(flash.attention(q, q, q).astype(float))))(q)
    assert cudnn.count("backward") == 1 and "forward" in cudnn
    cudnn.clear()
    jaxpr = jax.make_jaxpr(lambda q: jax.jvp(lambda q: flash.attention(q, q, q), (q,), (q,)))(q)
    assert "backward" not in cudnn and "attention_tangent" in str(jaxpr)


def test_the_platform_of_the_program_decides_not_that_of_the_process(monkeypatch):
    """Lowered for a device that is not at hand, up to the text that XLA is given; exported for CPUs and called here."""
    from jax._src.cudnn import fused_attention_stablehlo as kernels

    monkeypatch.setattr(flash, "fits", lambda q: True)
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 92000)
    q = jax.ShapeDtypeStruct((2, 16, 2, 64), jnp.bfloat16)
    loss = lambda q, k, v: jnp.sum(flash.attention(q, k, v).astype(jnp.float32))  # noqa: E731
    traced = jax.jit(jax.grad(loss)).trace(q, q, q)
    on_cuda, on_cpu = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu"))
    assert "fmhaSoftmax" in on_cuda and "fmhaSoftmaxBackward" in on_cuda and "fmha" not in on_cpu
    export = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu",))
    qkv = draws(0, (q.shape,) * 3, jnp.bfloat16)
    expected = jax.jit(jax.grad(lambda *qkv: jnp.sum(flash._plain(qkv).astype(jnp.float32))))(*qkv)
    np.testing.assert_allclose(export(q, q, q).call(*qkv).astype(float), expected.astype(float), atol=1e-3)
