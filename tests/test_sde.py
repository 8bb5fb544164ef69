"""The SDEs against the published formulas, quadrature, simulation, SciPy and float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from family import OTHER_PARAMETERS, SDES, Custom, assert_moments, float64, name, textbook, times_of

from scoresde import SDE, VE, VP, Cosine, RectifiedFlow, SubVP

ALL = SDES + OTHER_PARAMETERS
KEY = jax.random.key(3)
METHODS = ("log_alpha", "variance", "alpha", "sigma", "log_snr", "drift", "diffusion")


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_everything_follows_the_published_formulas(x64, sde):
    t = np.linspace(max(sde.t_min, 1e-3), sde.t_max, 101)
    alpha, variance, f, g2 = textbook(sde, t)
    expected = {
        "log_alpha": np.log(alpha),
        "variance": variance,
        "alpha": alpha,
        "sigma": np.sqrt(variance),
        "log_snr": np.log(alpha**2 / variance),
        "drift": f,
        "diffusion": np.sqrt(g2),
    }
    assert set(expected) == set(METHODS)
    for method, values in expected.items():
        np.testing.assert_allclose(getattr(sde, method)(float64(t)), values, rtol=1e-8, atol=1e-12, err_msg=method)


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_transitions_compose_to_the_marginals(x64, sde):
    """By quadrature from s to t: log r = int f, v = int g^2 (alpha_t/alpha_w)^2 dw; sigma_t^2 = v + r^2 sigma_s^2."""
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def transition(s, t):
        w = (s + t) / 2 + (t - s) / 2 * nodes
        inner = (w[:, None] + t) / 2 + (t - w[:, None]) / 2 * nodes
        log_r = np.sum(weights * np.asarray(sde.drift(inner)), 1) * (t - w) / 2
        v = (t - s) / 2 * np.sum(weights * np.asarray(sde.diffusion(w)) ** 2 * np.exp(2 * log_r))
        return math.exp((t - s) / 2 * np.sum(weights * np.asarray(sde.drift(w)))), v

    times = sde.t_min + (sde.t_max - sde.t_min) * np.array([0.02, 0.2, 0.45, 0.7, 0.9])
    for s, u, t in zip(times[:-2], times[1:-1], times[2:], strict=True):
        (r_us, v_us), (r_tu, v_tu), (r_ts, v_ts) = transition(s, u), transition(u, t), transition(s, t)
        np.testing.assert_allclose([r_us * r_tu, v_tu + r_tu**2 * v_us], [r_ts, v_ts], rtol=1e-9)
        np.testing.assert_allclose(r_ts, sde.alpha(t) / sde.alpha(s), rtol=1e-9)
        np.testing.assert_allclose(v_ts + r_ts**2 * sde.variance(s), sde.variance(t), rtol=1e-9)


@jax.jit
def _simulate(key, x, f, g, dt):
    """Euler-Maruyama through all steps; the state after every 200 of them."""

    def step(x, row):
        key, f, g, dt = row
        return x + f * x * dt + g * jnp.sqrt(dt) * jax.random.normal(key, x.shape), None

    def block(x, rows):
        return (x := jax.lax.scan(step, x, rows)[0]), x

    rows = jax.random.split(key, len(f)), f, g, dt
    return jax.lax.scan(block, x, jax.tree.map(lambda v: v.reshape(5, -1, *v.shape[1:]), rows))[1]


@pytest.mark.parametrize(
    "sde", [*SDES, *(pytest.param(sde, marks=pytest.mark.slow) for sde in OTHER_PARAMETERS)], ids=name
)
def test_simulated_paths_have_the_marginals(sde):
    """20,000 paths of dx = f x dt + g dw from a fixed x_0, at five times; f, g at the middle of each step."""
    edges = sde.t_min + (sde.t_max - sde.t_min) * np.sin(np.linspace(0, np.pi / 2, 1001)) ** 2
    middle, dt = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    key_start, key_path = jax.random.split(KEY)
    x_0 = 1.5
    x = sde.alpha(sde.t_min) * x_0 + sde.sigma(sde.t_min) * jax.random.normal(key_start, (20_000,))
    f, g = sde.drift(middle.astype("f4")), sde.diffusion(middle.astype("f4"))
    paths = _simulate(key_path, x, f, g, dt.astype("f4"))
    for x_t, t in zip(paths, edges[200::200], strict=True):
        assert_moments(x_t[:, None], float(sde.alpha(t)) * x_0, float(sde.sigma(t)), bias=2e-3)


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_time_inverts_log_snr(x64, sde):
    t = times_of(sde).astype(np.float64)
    inside = (t >= sde.t_min) & (t <= sde.t_max)
    np.testing.assert_allclose(sde.time(sde.log_snr(t[inside])), t[inside], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_closed_form_time_is_the_bisection_of_the_base_class(x64, sde):
    log_snr = np.linspace(*np.asarray(sde.log_snr(np.array([sde.t_min, sde.t_max]))), 57)
    np.testing.assert_allclose(sde.time(log_snr), SDE.time(sde, log_snr), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_float32_is_float64_rounded_from_end_to_end(sde):
    t = times_of(sde)
    for method in METHODS:
        single = np.asarray(getattr(sde, method)(t))
        assert single.dtype == np.float32 and np.all(np.isfinite(single)), method
        with jax.enable_x64(True):
            double = np.asarray(getattr(sde, method)(t.astype(np.float64)))
        np.testing.assert_allclose(single, double, rtol=5e-6, atol=5e-6 if method == "log_snr" else 0, err_msg=method)
    log_snr = np.asarray(sde.log_snr(t))
    single = sde.time(log_snr)
    with jax.enable_x64(True):
        double = np.asarray(sde.time(log_snr.astype(np.float64)))
    np.testing.assert_allclose(single, double, rtol=5e-6, atol=2e-7 if sde.t_min == 0 else 0)


@pytest.mark.parametrize("sde", ALL, ids=name)
def test_default_ends(sde):
    with jax.enable_x64(True):
        log_snr = np.asarray(sde.log_snr(np.array([sde.t_min, sde.t_max])))
    if isinstance(sde, VE):
        assert sde.t_min == 0
        np.testing.assert_allclose(sde.sigma(0.0), sde.sigma_min, rtol=1e-6)
    else:
        np.testing.assert_allclose(np.exp(-0.5 * log_snr[0]), 1e-3, rtol=1e-5)
    if isinstance(sde, Cosine | RectifiedFlow):
        np.testing.assert_allclose(log_snr[1], -10, atol=1e-4)
    else:
        assert sde.t_max == 1
    for t in (sde.t_min, sde.t_max):
        assert float(np.float32(t)) == t  # a float32 copy cannot step outside


def test_a_user_sde_whose_alpha_vanishes_at_one_also_ends_at_minus_ten():
    @dataclasses.dataclass(frozen=True)
    class Straight(SDE):
        def log_alpha(self, t):
            return jnp.log1p(-jnp.asarray(t))

        def variance(self, t):
            return jnp.asarray(t) ** 2

    np.testing.assert_allclose(Straight().t_max, RectifiedFlow().t_max, rtol=1e-6)
    np.testing.assert_allclose(Straight().t_min, RectifiedFlow().t_min, rtol=1e-6)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_times_of_any_shape(sde):
    methods = METHODS[2:] if isinstance(sde, Custom) else METHODS  # what the user returned is returned
    expected = {method: float(getattr(sde, method)(jnp.array(0.5))) for method in methods}
    for t in (0.5, np.float32(0.5), np.full((), 0.5), np.full((2, 1, 3), 0.5, "f4")):
        for method in methods:
            value = getattr(sde, method)(t)
            assert value.shape == np.shape(t) and value.dtype == np.float32
            np.testing.assert_allclose(value, expected[method], rtol=1e-6)
        assert sde.time(sde.log_snr(t)).shape == np.shape(t)
    assert sde.time(0).shape == () and sde.time(0).dtype == np.float32


@pytest.mark.parametrize("event", [(), (3,), (2, 2, 1)])
def test_perturb_is_alpha_x_plus_sigma_noise(x64, event):
    sde = SubVP()
    rng = np.random.default_rng(0)
    x, noise, t = rng.normal(size=(4, *event)), rng.normal(size=(4, *event)), np.array([0.01, 0.3, 0.7, 1.0])
    alpha, variance, _, _ = textbook(sde, t)
    for i, x_t in enumerate(sde.perturb(x, t, noise)):
        np.testing.assert_allclose(x_t, alpha[i] * x[i] + np.sqrt(variance[i]) * noise[i], rtol=1e-10)
    np.testing.assert_array_equal(sde.perturb(x, 0.3, noise)[1], sde.perturb(x, t, noise)[1])


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_prior(x64, sde):
    std = math.sqrt(textbook(sde, sde.t_max)[1])
    x = sde.prior_sample(KEY, (4000, 2))
    assert_moments(x, 0.0, std)
    np.testing.assert_array_equal(sde.prior_sample(KEY, (7, 2)), x[:7])
    for event in ((2,), (2, 3, 1)):
        x = std * np.random.default_rng(1).normal(size=(5, *event))
        expected = scipy.stats.norm(0, std).logpdf(x).reshape(5, -1).sum(1)
        np.testing.assert_allclose(sde.prior_log_prob(x), expected, rtol=1e-10)


def test_whole_numbers_are_numbers():
    """Integer states are taken as the numbers that they are, not as an integer arithmetic."""
    x = np.array([[1, -2], [0, 3]])
    np.testing.assert_allclose(VP().prior_log_prob(x), VP().prior_log_prob(x.astype("f4")), rtol=1e-6)
    np.testing.assert_allclose(VP().perturb(x, 0.5, x), VP().perturb(x.astype("f4"), 0.5, x.astype("f4")), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_min=-0.1), r"VP: beta_min must be at least 0, got -0\.1"),
        (lambda: VP(beta_min=3, beta_max=2), r"VP: beta_max must be above beta_min = 3, got 2"),
        (lambda: SubVP(beta_max=0.1), r"SubVP: beta_max must be above beta_min = 0\.1, got 0\.1"),
        (lambda: VP(beta_max=math.inf), r"VP: beta_max must be a finite number, got inf"),
        (lambda: VP(beta_max="20"), r"VP: beta_max must be a finite number, got '20'"),
        (lambda: VP(beta_max=True), r"VP: beta_max must be a finite number, got True"),
        (lambda: VP(beta_max=None), r"VP: beta_max must be a finite number, got None"),
        (lambda: VP(beta_max=np.complex64(1)), r"VP: beta_max must be a finite number, got "),
        (lambda: VE(sigma_min=0), r"VE: sigma_min must be above 0, got 0"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), r"VE: sigma_max must be above sigma_min = 2, got 1"),
        (lambda: VE(sigma_max=math.nan), r"VE: sigma_max must be a finite number, got nan"),
        (lambda: VE(t_min=-0.1), r"VE: t_min must be in \[0, t_max = 1\), got -0\.1"),
        (lambda: VE(t_min=1.0), r"VE: t_min must be in \[0, t_max = 1\), got 1"),
        (lambda: VP(t_max=0.0), r"VP: t_max must be above 0, got 0"),
        (lambda: VP(t_min=0.0), r"VP: t_min must be a time where sigma > 0, got 0"),
        (lambda: RectifiedFlow(t_max=1.0), r"RectifiedFlow: t_max must be a time where alpha > 0 .*, got 1"),
        (lambda: Cosine(t_max=1.0), r"Cosine: t_max must be a time where alpha > 0 .*, got 1"),
        (lambda: Cosine(t_max=1.5), r"Cosine: t_max must be a time where alpha > 0 .*, got 1\.5"),
        (lambda: RectifiedFlow(t_max=1.5), r"RectifiedFlow: t_max must be a time where alpha > 0 .*, got 1\.5"),
    ],
)
def test_refusals_name_the_parameter_in_one_line(make, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        make()
    assert "\n" not in str(error.value)


def test_positional_parameters_are_the_sde_own_and_ends_are_keywords():
    assert VP(0.2, 15.0) == VP(beta_min=0.2, beta_max=15.0)
    assert VE(0.1, 20.0) == VE(sigma_min=0.1, sigma_max=20.0)
    with pytest.raises(TypeError):
        RectifiedFlow(0.1)
    custom = VP(t_min=1e-3, t_max=0.9)
    assert (custom.t_min, custom.t_max) == (1e-3, 0.9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_an_sde_is_an_immutable_value(sde):
    twin = dataclasses.replace(sde)
    assert twin == sde and hash(twin) == hash(sde) and {sde: 1}[twin] == 1
    assert sde != dataclasses.replace(sde, t_max=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sde.t_max = 0.5
    traces = []

    @jax.jit
    def f(sde, t):
        traces.append(sde)
        return sde.sigma(t) + sde.time(sde.log_snr(t))

    for argument in (sde, twin, sde):
        np.testing.assert_allclose(f(argument, 0.4), sde.sigma(0.4) + 0.4, rtol=1e-5)
    assert len(traces) == 1
    assert jax.tree.leaves(sde) == []


class Drawn(SDE):
    """An SDE with an ``__init__`` of its own, as a user writes it: no fields, an attribute."""

    def __init__(self, rate, **ends):
        self.rate = rate
        super().__init__(**ends)

    def log_alpha(self, t):
        return -0.5 * self.rate[0] * t

    def variance(self, t):
        return -jnp.expm1(-self.rate[0] * t)


class Scaled(Drawn):
    """The same by inheritance, with an attribute set afterwards."""

    def __init__(self, factor):
        super().__init__((3.0 * factor,), t_min=1e-3, t_max=1.0)
        self.factor = factor


class Renamed(VP):
    """A subclass that changes a method alone."""

    def variance(self, t):
        return 2 * super().variance(t)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Drawn((3.0,), t_min=1e-3), lambda: Drawn((9.0,), t_min=1e-3)),
        (lambda: Scaled(1.0), lambda: Scaled(3.0)),
        (lambda: VP(), lambda: Renamed()),
    ],
)
def test_sdes_of_other_attributes_are_never_taken_for_one_another(one, other):
    assert one() == one() and hash(one()) == hash(one()) and one() != other()
    noise = jax.jit(lambda sde, t: sde.sigma(t))
    got = [float(noise(make(), 0.2)) for make in (one, other, one)]
    np.testing.assert_allclose(got, [float(make().sigma(0.2)) for make in (one, other, one)], rtol=1e-6)
    assert got[0] != got[1]


def test_an_attribute_without_a_hash_is_refused_where_it_matters():
    with pytest.raises(
        TypeError, match="^Drawn: attribute rate is of type ndarray, which has no hash: an SDE is a static"
    ):
        hash(Drawn(np.array([3.0]), t_min=1e-3))


def test_methods_differentiate_and_vectorise(x64):
    sde = Custom()
    t = jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(jax.vmap(sde.diffusion)(t), sde.diffusion(t), rtol=1e-12)
    rate = -jax.vmap(jax.grad(sde.log_snr))(t)
    np.testing.assert_allclose(rate, sde.diffusion(t) ** 2 / sde.variance(t), rtol=1e-10)  # g^2/sigma^2 = -d logSNR/dt


def test_simpson_of_f_is_log_alpha(x64):
    """The same by SciPy's adaptive quadrature, from the very first time on."""
    for sde in ALL:
        value, _ = scipy.integrate.quad(lambda t, sde=sde: float(sde.drift(t)), sde.t_min, 0.9, limit=40)
        np.testing.assert_allclose(value, sde.log_alpha(0.9) - sde.log_alpha(sde.t_min), rtol=1e-7, atol=1e-12)
