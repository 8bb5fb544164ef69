"""Transformers against NumPy written from the papers and from diffusers' layout, permutations, and themselves."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresde import nn
from scoresde.nn.layers.positions import positions
from scoresde.nn.layers.transformer_blocks import SelfAttention

KEY = jax.random.key(0)
SIZE = {"width": 8, "heads": 2, "features": 4, "ratio": 2, "key": KEY}
CLOUD = {"there": nn.Present(), "class": nn.Classes(3), "of each": nn.Map(2)}
NETS = {  # a network, and the shape of its events
    "dit 1d": (lambda **o: nn.DiT((6, 2), patch=3, depth=2, conditions=nn.Tokens(3), **SIZE, **o), (6, 2)),
    "dit 3d": (lambda **o: nn.DiT((None, 2, 4, 1), depth=2, separate=True, **SIZE, **o), (2, 2, 4, 1)),
    "uvit": (lambda **o: nn.UViT((4, 6, 1), depth=5, conditions={"c": nn.Classes(3)}, **SIZE, **o), (4, 6, 1)),
    "set": (lambda **o: nn.SetTransformer((5, 3), depth=1, conditions=CLOUD, **SIZE, **o), (5, 3)),
    "induced set": (
        lambda **o: nn.SetTransformer((None, 3), depth=2, inducing=3, conditions=CLOUD, **SIZE, **o),
        (5, 3),
    ),
}


def moved(params, scale=0.3):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + rng.normal(0, scale, p.shape).astype(np.float32), params)


class Case:
    def __init__(self, name):
        self.make, shape = NETS[name]
        self.apply, self.start = nn.functional(self.make(dropout=0.5))
        self.jitted, self.params = jax.jit(self.apply), moved(self.start)
        self.x, self.c = jax.random.normal(jax.random.key(1), (3, *shape)), jnp.array([-2.0, 0.0, 1.0])


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def dear(names, first):
    """The first by default, the others among the slow tests."""
    return [name if name == first else slow(name) for name in names]


@pytest.fixture(params=[slow(name) for name in NETS], scope="module")
def case(request):
    return Case(request.param)


def unit_last_layer(net):
    """The network with its last layer, zero otherwise, drawn like the others."""
    last = net.output if isinstance(net, nn.UViT) else net.output.linear
    kernel = last.kernel[...]
    rng = np.random.default_rng(3)
    last.kernel[...] = jnp.asarray(rng.normal(0, 1 / math.sqrt(kernel[..., 0].size), kernel.shape), jnp.float32)
    return net


def test_the_output_is_zero_at_first_and_has_unit_variance_where_its_last_layer_has(case):
    assert not np.any(case.jitted(case.start, case.x, case.c))
    apply, params = nn.functional(unit_last_layer(case.make()))
    y = jax.jit(apply)(params, jax.random.normal(KEY, (200, *case.x.shape[1:])), jnp.linspace(-3, 3, 200))
    assert 0.5 < float(jnp.std(y)) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("make", [nn.dit_s, nn.dit_b, nn.dit_l, nn.dit_xl, nn.uvit_s, nn.uvit_m, nn.uvit_l, nn.uvit_h])
def test_presets_have_unit_variance_at_first(make):
    """With three blocks of the preset's width: more would not fit into a test."""
    apply, params = nn.functional(unit_last_layer(make((8, 8, 4), depth=3, key=KEY)))
    y = jax.jit(apply)(params, jax.random.normal(KEY, (8, 8, 8, 4)), jnp.linspace(-3, 3, 8))
    assert 0.6 < float(jnp.std(y)) < 1.4


def test_examples_are_apart_and_dropout_follows_its_key(case):
    y = case.jitted(case.params, case.x, case.c)
    assert float(jnp.std(y)) > 0.1
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(case.jitted(case.params, case.x[order], case.c[order]), y[order], atol=1e-5)
    a, b, again = (case.jitted(case.params, case.x, case.c, key=jax.random.key(i)) for i in (1, 2, 1))
    np.testing.assert_array_equal(a, again)
    assert float(jnp.max(jnp.abs(a - b))) > 1e-2 < float(jnp.max(jnp.abs(a - y)))


@pytest.mark.slow
def test_no_parameter_is_dead_after_three_steps(case):
    cond = condition(case.make())
    target = jax.random.normal(jax.random.key(3), case.x.shape)
    loss = lambda p: jnp.mean((case.apply(p, case.x, case.c, cond=cond) - target) ** 2)  # noqa: E731
    grad, params = jax.jit(jax.grad(loss)), case.start
    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), params, grad(params))
    for path, g in jax.tree_util.tree_leaves_with_path(grad(params)):
        assert float(jnp.max(jnp.abs(g))) > 1e-7, jax.tree_util.keystr(path)


def condition(net):
    """Values for the conditions of NETS, three examples."""
    rng = np.random.default_rng(5)
    tokens = jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32), jnp.ones((3, 4), bool)
    if isinstance(net, nn.SetTransformer):
        there = jnp.arange(5)[None] < jnp.array([5, 3, 1])[:, None]
        each = jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32)
        return {"there": nn.Kept(there), "class": jnp.array([0, 1, 2]), "of each": each}
    if isinstance(net, nn.UViT):
        return {"c": jnp.array([0, 1, 2])}
    return None if None in net.event_shape else tokens


@pytest.mark.parametrize("name", dear(["set", "induced set"], "set"))
def test_a_set_transformer_commutes_with_permutations_and_so_does_its_derivative(name):
    case = Case(name)
    cond = condition(case.make())
    z = jax.random.normal(jax.random.key(7), case.x.shape)
    order = np.array([[3, 0, 4, 1, 2], [1, 2, 0, 4, 3], [4, 3, 2, 1, 0]])
    permuted = functools.partial(jax.tree.map, lambda a: a[np.arange(3)[:, None], order] if a.ndim > 1 else a)

    @jax.jit
    def field(x, z, cond):
        return jax.jvp(lambda x: case.apply(case.params, x, case.c, cond=cond), (x,), (z,))

    for a, b in zip(permuted(field(case.x, z, cond)), field(*permuted((case.x, z, cond))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.max(jnp.abs(a))))


@pytest.mark.parametrize("name", dear(["set", "induced set"], "set"))
def test_points_that_are_not_there_have_no_influence(name):
    """NaN in their place changes no bit, of the gradient neither, and the cloud is the smaller cloud."""
    case = Case(name)
    cond = condition(case.make())
    there = cond["there"].value
    junk, each = (jnp.where(there[..., None], a, jnp.nan) for a in (case.x, cond["of each"]))

    @jax.jit
    def run(params, x, each):
        f = lambda p: case.apply(p, x, case.c, cond=cond | {"of each": each})  # noqa: E731
        return f(params), None if name == "set" else jax.grad(lambda p: jnp.sum(f(p) ** 2))(params)

    y, gradient = run(case.params, case.x, cond["of each"])
    jax.tree.map(np.testing.assert_array_equal, (y, gradient), run(case.params, junk, each))
    assert not np.any(y[~there])
    options = {"depth": 1} if name == "set" else {"depth": 2, "inducing": 3}
    few, _ = nn.functional(nn.SetTransformer((None, 3), conditions=CLOUD, **options, **SIZE))
    alone = {"class": cond["class"][1:2], "of each": cond["of each"][1:2, :3], "there": None}
    fewer = jax.jit(lambda p: few(p, case.x[1:2, :3], case.c[1:2], cond=alone))(case.params)
    np.testing.assert_allclose(fewer[0], y[1, :3], atol=1e-5)
    with pytest.raises(ValueError, match=r"cond must be .*Kept\(value=bool \(B, 5\)\)"):
        case.apply(case.params, case.x, case.c, cond=cond | {"there": there})


def softmax(a):
    p = np.exp(a - a.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def norm(h, epsilon=1e-6):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + epsilon)


def gelu(h):
    return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def silu(h):
    return h / (1 + np.exp(-h))


def test_self_attention_is_its_formula_over_the_tokens_that_are_there():
    attention = SelfAttention(6, 2, rngs=nnx.Rngs(KEY))
    h, mask = jax.random.normal(KEY, (2, 4, 6)), np.array([[True, True, False, True], [True, False, False, False]])
    qkv = np.asarray(h, np.float64) @ np.asarray(attention.qkv.kernel[...])
    expected = np.empty((2, 4, 6))
    for b in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            q, k, v = (part[:, head] for part in np.split(qkv[b], 3, axis=1))
            expected[b, :, head] = softmax(q @ k[mask[b]].T / math.sqrt(3)) @ v[mask[b]]
    out = np.asarray(attention.output.kernel[...])
    np.testing.assert_allclose(jax.jit(attention.__call__)(h, jnp.array(mask)), expected @ out, atol=1e-5)


def diffusers_dit(depth, width, channels, classes, patch, outputs):
    """A state of diffusers' DiTTransformer2DModel: its names and shapes, random numbers."""
    shapes = {"pos_embed.proj.weight": (width, channels, patch, patch), "pos_embed.proj.bias": (width,)}
    layers = {"proj_out_1": (2 * width, width), "proj_out_2": (patch**2 * outputs, width)}
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        shapes[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = (classes + 1, width)
        layers |= {f"{block}.attn1.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        layers |= {f"{block}.norm1.emb.timestep_embedder.linear_1": (width, 256)}
        layers |= {f"{block}.norm1.emb.timestep_embedder.linear_2": (width, width)}
        layers |= {f"{block}.norm1.linear": (6 * width, width)}
        layers |= {f"{block}.ff.net.0.proj": (4 * width, width), f"{block}.ff.net.2": (width, 4 * width)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    rng = np.random.default_rng(11)
    return {name: rng.normal(0, 1 / math.sqrt(np.prod(shape[1:])), shape) for name, shape in shapes.items()}


def run_dit(state, x, t, y, *, depth, heads, epsilon):
    """What DiTTransformer2DModel computes, on NCHW."""

    def layer(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    weight = state["pos_embed.proj.weight"]
    width, _, p, _ = weight.shape
    n, channels, rows, columns = x.shape[0], x.shape[1], x.shape[2] // p, x.shape[3] // p
    h = np.einsum("ncipjq,dcpq->nijd", x.reshape(n, channels, rows, p, columns, p), weight)
    place = np.zeros((rows, columns, width))
    quarter = width // 4
    for i in range(rows):
        for j in range(columns):
            for k in range(quarter):
                f = 10000 ** (-k / quarter)
                waves = math.sin(j * f), math.cos(j * f), math.sin(i * f), math.cos(i * f)
                place[i, j, k::quarter] = waves
    h = (h + state["pos_embed.proj.bias"] + place).reshape(n, rows * columns, width)
    angle = t[:, None] * np.exp(-math.log(10000) * np.arange(128) / 127)
    e = []
    for i in range(depth):
        name = f"transformer_blocks.{i}"
        time = layer(f"{name}.norm1.emb.timestep_embedder.linear_1", np.concatenate([np.cos(angle), np.sin(angle)], 1))
        time = layer(f"{name}.norm1.emb.timestep_embedder.linear_2", silu(time))
        e.append(silu(time + state[f"{name}.norm1.emb.class_embedder.embedding_table.weight"][y]))
        b_1, s_1, g_1, b_2, s_2, g_2 = (a[:, None] for a in np.split(layer(f"{name}.norm1.linear", e[i]), 6, axis=1))
        a = norm(h) * (1 + s_1) + b_1
        q, k, v = (layer(f"{name}.attn1.to_{s}", a).reshape(n, -1, heads, width // heads) for s in "qkv")
        p_ij = softmax(np.einsum("nihd,njhd->nhij", q, k) / math.sqrt(width // heads))
        values = np.einsum("nhij,njhd->nihd", p_ij, v).reshape(h.shape)
        h = h + g_1 * layer(f"{name}.attn1.to_out.0", values)
        a = norm(h, epsilon) * (1 + s_2) + b_2
        h = h + g_2 * layer(f"{name}.ff.net.2", gelu(layer(f"{name}.ff.net.0.proj", a)))
    b, s = (a[:, None] for a in np.split(layer("proj_out_1", e[0]), 2, axis=1))
    h = layer("proj_out_2", norm(h) * (1 + s) + b).reshape(n, rows, columns, p, p, -1)
    return np.einsum("nhwpqc->nchpwq", h).reshape(n, -1, rows * p, columns * p)


def from_diffusers(state, depth):
    """Our parameters of DiT(separate=True) for a state of DiTTransformer2DModel."""

    def layer(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    embeddings, blocks = {}, {}
    for i in range(depth):
        name = f"transformer_blocks.{i}"
        table = state[f"{name}.norm1.emb.class_embedder.embedding_table.weight"]
        time = layer(f"{name}.norm1.emb.timestep_embedder.linear_2")
        embeddings[str(i)] = {
            "linear_1": layer(f"{name}.norm1.emb.timestep_embedder.linear_1"),
            "linear_2": time | {"bias": time["bias"] + table[-1]},  # the last row is the null class
            "vector": {"kernel": table[:-1] - table[-1]},
        }
        q, k, v = (layer(f"{name}.attn1.to_{s}") for s in "qkv")
        blocks[str(i)] = {
            "modulation": layer(f"{name}.norm1.linear"),
            "attention": {
                "qkv": {part: np.concatenate([a[part] for a in (q, k, v)], axis=-1) for part in q},
                "output": layer(f"{name}.attn1.to_out.0"),
            },
            "feed": {"first": layer(f"{name}.ff.net.0.proj"), "second": layer(f"{name}.ff.net.2")},
        }
    patch = state["pos_embed.proj.weight"]
    return {
        "input": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
            "bias": state["pos_embed.proj.bias"],
        },
        "embeddings": embeddings,
        "blocks": blocks,
        "output": {"modulation": layer("proj_out_1"), "linear": layer("proj_out_2")},
    }


def test_dit_is_the_published_network():
    state = diffusers_dit(depth=2, width=8, channels=3, classes=5, patch=2, outputs=6)
    x, t, y = np.random.default_rng(1).normal(size=(3, 3, 4, 6)), np.array([0.0, 3.0, 250.0]), np.array([0, 4, 5])
    expected = run_dit(state, x, t, y, depth=2, heads=2, epsilon=1e-5)
    net = nn.DiT(
        (4, 6, 3),
        width=8,
        depth=2,
        heads=2,
        outputs=6,
        separate=True,
        epsilons=(1e-6, 1e-5),
        embedding=nn.transformer,
        conditions=nn.Classes(5),
        key=KEY,
    )
    apply, start = nn.functional(net)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), from_diffusers(state, 2))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, start)
    classes = jnp.array([0, 4, -1])  # 5, the row after the classes, is the null
    result = jax.jit(apply)(params, jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32), jnp.float32(t), cond=classes)
    error = np.asarray(result).transpose(0, 3, 1, 2) - expected
    assert np.linalg.norm(error) < 5e-6 * np.linalg.norm(expected)


def test_uvit_is_the_published_network():
    """Long skips join the first block to the last, the second to the one before it, and so on."""
    case = Case("uvit")
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), case.params)
    layer = lambda q, h: h @ q["kernel"] + q["bias"]  # noqa: E731

    def block(q, h):
        n, length, width = h.shape
        q_, k, v = (
            layer(q["attention"]["qkv"], norm(h, 1e-5)).reshape(n, length, 3, 2, width // 2).transpose(2, 0, 3, 1, 4)
        )
        values = softmax(q_ @ k.transpose(0, 1, 3, 2) / math.sqrt(width // 2)) @ v
        h = h + layer(q["attention"]["output"], values.transpose(0, 2, 1, 3).reshape(h.shape))
        return h + layer(q["feed"]["second"], gelu(layer(q["feed"]["first"], norm(h, 1e-5))))

    y = np.eye(3)[[2, 0, 0]] * np.array([1, 1, 0])[:, None]  # the last example has none
    x = np.asarray(case.x, np.float64)
    patches = x.reshape(3, 2, 2, 3, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(3, 6, 4)
    e = silu(layer(p["embedding"]["linear"], np.asarray(nn.gaussian_fourier(case.c, 4))))
    tokens = [layer(p["noise"], e)[:, None], layer(p["vector"], y)[:, None], layer(p["input"], patches)]
    h, skips = np.concatenate(tokens, axis=1) + p["positions"], []
    for i in ("0", "1"):
        h = block(p["down"][i], h)
        skips.append(h)
    h = block(p["middle"], h)
    for i in ("0", "1"):
        h = block(p["up"][i], layer(p["up"][i]["skip"], np.concatenate([h, skips.pop()], axis=-1)))
    pixels = layer(p["pixels"], norm(h[:, 2:], 1e-5)).reshape(3, 2, 3, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5)
    padded = np.pad(pixels.reshape(3, 4, 6), ((0, 0), (1, 1), (1, 1)))
    kernel = p["output"]["kernel"][..., 0, 0]
    out = sum(kernel[i, j] * padded[:, i : i + 4, j : j + 6] for i in range(3) for j in range(3)) + p["output"]["bias"]
    result = case.jitted(case.params, case.x, case.c, cond={"c": jnp.array([2, 0, -1])})
    np.testing.assert_allclose(result[..., 0], out, atol=2e-5 * np.abs(out).max())


@pytest.mark.parametrize("sizes", [(6,), (6, 4), (4, 2, 6)])
def test_no_two_positions_are_the_same(sizes):
    place = positions(sizes, 26)
    assert place.shape == (math.prod(sizes), 26) and len(np.unique(place, axis=0)) == len(place)


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (functools.partial(nn.dit_s, (32, 32, 4), patch=2, outputs=8, conditions=nn.Classes(1000)), 33),
        slow(functools.partial(nn.dit_b, (32, 32, 4), patch=4, outputs=8, conditions=nn.Classes(1000)), 130),
        slow(functools.partial(nn.dit_l, (32, 32, 4), patch=2, outputs=8, conditions=nn.Classes(1000)), 458),
        slow(functools.partial(nn.dit_xl, (32, 32, 4), patch=2, outputs=8, conditions=nn.Classes(1000)), 675),
        (functools.partial(nn.uvit_s, (32, 32, 3)), 44),
        slow(functools.partial(nn.uvit_m, (64, 64, 3), patch=4, conditions=nn.Classes(1000)), 131),
        slow(functools.partial(nn.uvit_l, (32, 32, 4), conditions=nn.Classes(1000)), 287),
        slow(functools.partial(nn.uvit_h, (32, 32, 4), conditions=nn.Classes(1000)), 501),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(make, millions):
    params = jax.eval_shape(lambda key: nn.functional(make(scan=True, key=key))[1], KEY)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert abs(count / 1e6 - millions) < 0.5 + 0.003 * millions


def test_bfloat16_keeps_norm_softmax_and_time_in_float32():
    net = NETS["dit 1d"][0]()
    (narrow, params), cond = nn.functional(net, dtype=jnp.bfloat16), condition(net)
    x, c = jax.random.normal(KEY, (3, 6, 2)), jnp.array([-2.0, 0.0, 1.0])
    jaxpr = jax.make_jaxpr(functools.partial(narrow, cond=cond))(params, x, c).jaxpr
    found = {name: [e.invars[0].aval.dtype for e in equations(jaxpr) if e.primitive.name == name] for name in KINDS}
    for name, dtype in KINDS.items():
        assert found[name] and set(found[name]) == {jnp.dtype(dtype)}, name


@pytest.mark.slow
def test_bfloat16_is_float32_to_its_precision(case):
    cond = condition(case.make())
    y, exact = (
        np.asarray(jax.jit(nn.functional(case.make(), dtype=dtype)[0])(case.params, case.x, case.c, cond=cond))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert y.dtype == np.float32
    assert 0 < np.linalg.norm(y - exact) < 0.1 * np.linalg.norm(exact)


KINDS = {"exp": "float32", "rsqrt": "float32", "cos": "float32", "dot_general": "bfloat16"}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize(
    ("message", "build"),
    [
        (r"DiT: event_shape must be \(\*sizes, channels\)", lambda: nn.DiT((4,), **SIZE)),
        (r"patch = 2 divides, or None for any size, got \(5, 1\)", lambda: nn.DiT((5, 1), **SIZE)),
        (r"DiT: heads = 3 must divide width = 8", lambda: nn.DiT((4, 1), **SIZE | {"heads": 3})),
        (r"DiT: outputs must be a whole number", lambda: nn.DiT((4, 1), outputs=0, **SIZE)),
        (r"UViT: depth must be odd", lambda: nn.UViT((4, 1), depth=4, **SIZE)),
        (r"UViT: event_shape must be numbers", lambda: nn.UViT((None, 1), **SIZE)),
        (r"SetTransformer: event_shape must be \(points or None, dim\)", lambda: nn.SetTransformer((4, 3, 1), **SIZE)),
        (r"Present\(\) at most once", lambda: nn.SetTransformer((4, 3), conditions=[nn.Present()] * 2, **SIZE)),
    ],
)
def test_refusals_at_construction(message, build):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_refusals_at_the_call(case):
    with pytest.raises(ValueError, match=r"x must have shape \(B, "):
        case.apply(case.params, case.x[..., None], case.c)
    with pytest.raises(ValueError, match=r"c must have shape \(B,\) = \(3,\), got \(2,\)"):
        case.apply(case.params, case.x, case.c[:2])
