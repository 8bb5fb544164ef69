"""Blocks in a loop and blocks computed again: the same parameters, outputs and gradients, and one program for many."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresde import nn
from scoresde.nn.layers.repeat import through
from scoresde.nn.unets import presets

KEY = jax.random.key(0)
UNET = {"channels": 8, "features": 8, "multipliers": (1, 2), "blocks": 3, "attention_levels": (1,), "key": KEY}
TOKENS = {"width": 8, "heads": 2, "features": 4, "ratio": 2, "key": KEY}
WORDS = {"class": nn.Classes(3), "text": nn.Tokens(3)}
EDM2 = {"channels": 8, "multipliers": (1, 2), "blocks": 3, "attention_levels": (1,), "head_channels": 8, "key": KEY}
NETS = {
    "mlp": partial(nn.ResidualMLP, (5, 3), width=8, depth=3, conditions=WORDS, features=8, heads=2, key=KEY),
    "unet": partial(nn.UNet, (6, 5, 2), conditions=WORDS, **UNET),
    "ddpmpp": partial(presets.ddpmpp, (8, 8, 2), **UNET),
    "ncsnpp skip": partial(presets.ncsnpp_256, (8, 8, 2), **UNET),
    "adm": partial(presets.adm, (8, 8, 2), layout=nn.Layout(**(vars(presets.ADM) | {"head_channels": 8})), **UNET),
    "edm2": partial(nn.EDM2, (6, 5, 2), conditions=WORDS["class"], **EDM2),
    "dit": partial(nn.DiT, (4, 6, 1), depth=3, conditions=WORDS, separate=True, **TOKENS),
    "uvit": partial(nn.UViT, (4, 6, 1), depth=7, conditions=WORDS, **TOKENS),
    "set": partial(nn.SetTransformer, (5, 3), depth=3, conditions=WORDS, **TOKENS),
}


def conditions(name, batch):
    rng = np.random.default_rng(5)
    text = jnp.asarray(rng.normal(size=(batch, 4, 3)), jnp.float32), jnp.arange(4)[None] < jnp.array([[4], [2]])
    classes = jnp.arange(batch) % 3
    return {"edm2": classes, "adm": classes, "ddpmpp": None, "ncsnpp skip": None}.get(
        name, {"class": classes, "text": text}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_scan_and_remat_change_no_parameter_no_output_and_no_gradient(name):
    make = NETS[name]
    plain, start = nn.functional(make(dropout=0.5))
    looped, same = nn.functional(make(dropout=0.5, scan=True, remat=True))
    jax.tree.map(np.testing.assert_array_equal, start, same)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.2, p.shape), jnp.float32), start)
    x, c = jax.random.normal(KEY, (2, *make().event_shape)), jnp.array([-0.5, 0.5])
    cond = conditions(name, 2)

    def value_and_gradient(apply):
        def loss(p):
            y = apply(p, x, c, key=KEY, cond=cond)
            return jnp.sum(y**2), y

        return jax.grad(loss, has_aux=True)

    got, wanted = jax.jit(lambda p: [value_and_gradient(apply)(p) for apply in (looped, plain)])(params)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        error = 1e-4 * float(jnp.max(jnp.abs(b))) + 1e-6
        np.testing.assert_allclose(a, b, atol=error, err_msg=jax.tree_util.keystr(path))


class Wave(nnx.Module):
    def __init__(self, inputs, outputs, seed):
        self.linear = nnx.Linear(inputs, outputs, rngs=nnx.Rngs(seed))


def test_only_runs_of_blocks_alike_are_loops():
    """Of three alike, one of another size, and two alike of which the second is given something else."""
    called = []
    blocks = [Wave(2, 2, i) for i in range(3)] + [Wave(2, 3, 3)] + [Wave(3, 3, i) for i in (4, 5)]
    extras = [jnp.full((1, n), float(i)) for i, n in enumerate((2, 2, 2, 3, 3, 1))]

    def call(block, h, key, extra):
        called.append(h.shape)
        return jnp.sin(block.linear(h)) + extra

    h = jnp.ones((4, 2))
    run = partial(through, blocks, call, h, [None] * 6, extras, remat=False)
    unrolled, looped = (run(scan=scan) for scan in (False, True))
    assert called == [(4, 2)] * 4 + [(4, 3)] * 2 + [(4, 2)] * 2 + [(4, 3)] * 2
    for a, b in zip(looped, unrolled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
