"""Computing in bfloat16: every layout at a tiny size, padded or conditioned, near its float32, float32 around it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde import nn
from scoresde.nn.unets import presets

KEY = jax.random.key(0)
UNET = {"channels": 8, "features": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "key": KEY}
TOKENS = {"width": 16, "heads": 2, "features": 8, "ratio": 2, "key": KEY}
WORDS = {"class": nn.Classes(3), "text": nn.Tokens(3)}
ADM = nn.Layout(**(vars(presets.ADM) | {"head_channels": 8}))
EDM2 = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "head_channels": 8, "key": KEY}
NETS = {  # U-Nets on odd sizes, which are padded where they are halved
    "ddpm": partial(presets.ddpm, (7, 5, 2), conditions=WORDS, **UNET),
    "ddpmpp": partial(presets.ddpmpp, (7, 5, 2), conditions=WORDS, **UNET),
    "ncsnpp": partial(presets.ncsnpp, (7, 5, 2), conditions=WORDS, **UNET),
    "ncsnpp skip": partial(presets.ncsnpp_256, (7, 5, 2), conditions=WORDS, **UNET),
    "adm": partial(presets.adm, (7, 5, 2), layout=ADM, **UNET | {"conditions": WORDS}),
    "edm2": partial(nn.EDM2, (7, 5, 2), conditions=WORDS["class"], **EDM2),
    "dit": partial(nn.DiT, (4, 6, 1), depth=2, conditions=WORDS, **TOKENS),
    "uvit": partial(nn.UViT, (4, 6, 1), depth=3, conditions=WORDS, **TOKENS),
    "set": partial(nn.SetTransformer, (5, 3), depth=2, conditions=WORDS, **TOKENS),
    "mlp": partial(nn.ResidualMLP, (5, 3), width=16, depth=2, conditions=WORDS, features=8, heads=2, key=KEY),
}


class Case:
    """A network with its parameters moved off their start, data, and a condition with a masked sequence."""

    def __init__(self, name):
        self.make = NETS[name]
        net = self.make()
        rng = np.random.default_rng(0)
        start = nn.functional(net)[1]
        self.params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.1, p.shape), jnp.float32), start)
        self.x, self.c = jax.random.normal(KEY, (3, *net.event_shape)), jnp.array([-2.0, 0.1, 1.0])
        text = jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32), jnp.arange(4)[None] < jnp.array([[4], [2], [0]])
        self.cond = {"class": jnp.array([0, 2, -1]), "text": text}
        self.cond = self.cond["class"] if name == "edm2" else self.cond

    def loss(self, dtype, **options):
        apply, _ = nn.functional(self.make(**options), dtype=dtype)

        def loss(params):
            y = apply(params, self.x, self.c, cond=self.cond, key=KEY)
            return jnp.mean((y - self.x) ** 2), y

        return loss


def kinds(jaxpr, name):
    """The dtypes of what the equations of this name read first, those inside of others too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield str(equation.invars[0].aval.dtype)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from kinds(inner, name)


@pytest.mark.parametrize(
    "name", [n if n in ("ncsnpp", "dit") else pytest.param(n, marks=pytest.mark.slow) for n in NETS]
)
def test_norms_softmax_and_time_are_float32_and_products_bfloat16(name):
    case = Case(name)
    jaxpr = jax.make_jaxpr(case.loss(jnp.bfloat16))(case.params).jaxpr
    for primitive in ("exp", "rsqrt", "cos"):
        assert set(kinds(jaxpr, primitive)) <= {"float32"}, primitive
    assert "float32" in set(kinds(jaxpr, "exp")) and "float32" in set(kinds(jaxpr, "cos"))
    products = [*kinds(jaxpr, "dot_general"), *kinds(jaxpr, "channels_last_conv")]
    assert products and set(products) == {"bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_are_float32_and_near_those_of_float32(name):
    """Within three in a hundred, in a loop and with blocks computed again as well; no parameter's gradient is NaN."""
    case = Case(name)
    compiled = jax.jit(
        lambda params: [
            jax.grad(loss, has_aux=True)(params)
            for loss in (
                case.loss(jnp.float32),
                case.loss(jnp.bfloat16),
                case.loss(jnp.bfloat16, scan=True, remat=True),
            )
        ]
    )
    (exact_gradient, exact), *narrow = compiled(case.params)
    scale = max(float(jnp.linalg.norm(g)) for g in jax.tree.leaves(exact_gradient))
    for gradient, y in narrow:
        assert y.dtype == jnp.float32
        assert 0 < np.linalg.norm(y - exact) < 3e-2 * np.linalg.norm(exact)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True):
            assert a.dtype == jnp.float32 and np.linalg.norm(a - b) < 5e-2 * scale
