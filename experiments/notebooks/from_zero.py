"""The source of from_zero.ipynb: score-based SDEs in two dimensions, each formula beside the line that computes it."""
# ruff: noqa: E402

# %% [markdown]
# # Score-based SDEs from zero
#
# Everything in two dimensions and in plain JAX: a process that turns data into noise, the score that turns it around,
# how a score is learned, two ways to sample with it, and the likelihood of a point. **Each formula stands beside the
# line that computes it**, and each piece is then held against the library's and against the truth: the data are a
# mixture of Gaussians, of which everything is known.
#
# It takes no more than calculus, a little probability and NumPy; two minutes on two CPU cores.

# %% [install]
from experiments.notebooks.install import full

# isort: split

# %%
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.scipy.special import logsumexp
from matplotlib.colors import PowerNorm

import scoresde as ss
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREEN, GREY, use

use()
started = time.monotonic()

# %% [markdown]
# ## 1. Data
#
# Three Gaussians of unequal weight and width, $p_0(x)=\sum_k w_k\,\mathcal N(x;\,m_k,\,s_k^2 I)$.

# %%
m = jnp.array([[-1.0, -0.6], [0.9, -0.8], [0.1, 1.1]])  # m_k
s = jnp.array([0.15, 0.3, 0.2])  # s_k
w = jnp.array([0.5, 0.2, 0.3])  # w_k
mixture = ss.GaussianMixture(m, s, w)  # the library's, to draw from and to compare with
x_0 = mixture.sample(jax.random.key(0), 20_000)  # x_0 ~ p_0

# %% [markdown]
# ## 2. From data to noise: the forward SDE
#
# $$\mathrm dx = f(t)\,x\,\mathrm dt + g(t)\,\mathrm dw,\qquad f=-\tfrac12\beta(t),\quad g=\sqrt{\beta(t)},
# \quad\beta(t)=0.1+19.9\,t,$$
#
# the variance-preserving SDE of Song et al. (2021): in each instant $x$ shrinks a little and receives a little noise.
# The simplest solver, Euler–Maruyama, replaces $\mathrm dt$ by a step $\Delta$ and $\mathrm dw$ by
# $\sqrt{|\Delta|}\,z$ with $z\sim\mathcal N(0,I)$.


# %%
def beta(t):
    return 0.1 + 19.9 * t  # β(t)


def f(t):
    return -beta(t) / 2  # f(t)


def g(t):
    return jnp.sqrt(beta(t))  # g(t)


@partial(jax.jit, static_argnums=1)
def euler_maruyama(key, drift, x, times):
    """All states on the way from x at times[0] to times[-1], forward or backward in time."""

    def step(x, now):
        t, delta, key = now
        z = jax.random.normal(key, x.shape)
        x = x + drift(x, t) * delta + g(t) * jnp.sqrt(jnp.abs(delta)) * z  # x ← x + drift Δ + g √|Δ| z
        return x, x

    return jax.lax.scan(step, x, (times[:-1], jnp.diff(times), jax.random.split(key, len(times) - 1)))[1]


times = jnp.linspace(0, 1, 1001)
start = jnp.broadcast_to(jnp.array([1.5, -1.0]), (4000, 2))  # 4,000 walkers from one point
walks = euler_maruyama(jax.random.key(1), lambda x, t: f(t) * x, start, times)

# %% [markdown]
# **The perturbation kernel.** The SDE is linear, so from one point $x_0$ everything stays Gaussian, and two ordinary
# equations give mean and variance: $\dot\alpha = f\alpha$ and $\dot{(\sigma^2)} = 2f\sigma^2 + g^2$. With
# $B(t)=\int_0^t\beta = 0.1\,t + 9.95\,t^2$ they are solved by
#
# $$x_t\mid x_0\sim\mathcal N\big(\alpha(t)\,x_0,\;\sigma(t)^2 I\big),\qquad \alpha=e^{-B/2},\quad\sigma^2=1-e^{-B}.$$
#
# So $x_t=\alpha x_0+\sigma\varepsilon$ can be drawn in one step, at any $t$. The library declares an SDE by these two
# functions and derives $f$ and $g$ from them.


# %%
def alpha(t):
    return jnp.exp(-(0.1 * t + 9.95 * t**2) / 2)  # α = exp(-B/2)


def sigma(t):
    return jnp.sqrt(-jnp.expm1(-(0.1 * t + 9.95 * t**2)))  # σ = √(1 - exp(-B)), without cancellation at small t


sde = ss.VP(beta_min=0.1, beta_max=20.0, t_min=1e-3)  # t_min: where sampling and likelihood end, σ = 0.01
ours, theirs = (
    np.stack([each(times[1:]) for each in functions])
    for functions in ((alpha, sigma, f, g), (sde.alpha, sde.sigma, sde.drift, sde.diffusion))
)
kernel_difference = float(np.max(np.abs(ours - theirs)))
looked = np.array([50, 100, 200, 400, 999])  # steps at which the walkers are counted
counted = np.asarray(walks[looked])
expected = np.asarray(alpha(times[looked + 1]))[:, None] * np.asarray(start[0])[None]
standard_error = np.asarray(sigma(times[looked + 1]))[:, None] / np.sqrt(len(start))
kernel_z = (counted.mean(axis=1) - expected) / standard_error  # (simulated mean - α x_0)/(σ/√n)
print(f"α, σ, f, g: largest difference from the library's {kernel_difference:.1e}")
print(f"mean of the walkers, in standard errors from α x_0: {np.round(kernel_z, 1).tolist()}")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
left.plot(times[1:], walks[:, :30, 0], color=BLUE, lw=0.6, alpha=0.5)
center, spread = 1.5 * alpha(times), 2 * sigma(times)
left.fill_between(times, center - spread, center + spread, color=ORANGE, alpha=0.18, linewidth=0)
left.plot(times, center, color=ORANGE, lw=2, label=r"$\alpha(t)\,x_0 \pm 2\sigma(t)$")
left.set(xlabel="t", ylabel="first coordinate", title="Thirty walkers from one point, and the law of all")
left.legend(loc="upper right")
right.plot(times, alpha(times), color=BLUE, label=r"$\alpha$: what is left of the data")
right.plot(times, sigma(times), color=ORANGE, label=r"$\sigma$: the noise")
simulated = np.asarray(walks[49::100, :, 0]).std(axis=1)
right.plot(times[50::100], simulated, "o", ms=4, color=INK, label="spread of the walkers")
right.set(xlabel="t", title="The perturbation kernel", ylim=(0, 1.05))
right.legend(loc="center right")
plt.show()

# %% [markdown]
# ## 3. The score
#
# The law of $x_t$ over all data is $p_t(x)=\int p_0(x_0)\,\mathcal N(x;\alpha x_0,\sigma^2I)\,\mathrm dx_0$. For our
# mixture it is a mixture again, $p_t=\sum_k w_k\,\mathcal N(\alpha m_k,\,(\alpha^2s_k^2+\sigma^2)I)$, and the **score**
# is the gradient of its logarithm, $\nabla\log p_t(x)$: at each point the way uphill. `jax.grad` is all it takes here.


# %%
def log_p(x, t):
    """log p_t(x) of one point."""
    v = alpha(t) ** 2 * s**2 + sigma(t) ** 2  # α² s_k² + σ²
    square = jnp.sum((x[None] - alpha(t) * m) ** 2, axis=1)  # |x - α m_k|²
    return logsumexp(jnp.log(w) - square / (2 * v) - jnp.log(2 * jnp.pi * v))  # log Σ w_k N(x; α m_k, v_k I)


def true_score(x, t):
    """∇ log p_t(x) of points (B, 2) at one time or at times (B,)."""
    return jax.vmap(jax.grad(log_p))(x, jnp.broadcast_to(t, x.shape[:1]))


points, at = x_0[:500] * 1.3, jnp.linspace(0.01, 1, 500)
theirs = mixture.score(sde)(points, at)
score_difference = float(jnp.max(jnp.abs(sigma(at)[:, None] * (true_score(points, at) - theirs))))
print(f"σ ∇log p: largest difference from the library's {score_difference:.1e}")

side = np.linspace(-2.3, 2.3, 100)
pixels = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
arrows = jnp.asarray(np.stack(np.meshgrid(side[5::10], side[5::10]), axis=-1).reshape(-1, 2), jnp.float32)
density = jax.jit(jax.vmap(log_p, (0, None)))
view = {"xlim": (-2.3, 2.3), "ylim": (-2.3, 2.3), "xticks": [], "yticks": [], "aspect": "equal"}
figure, panels = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for panel, t in zip(panels, (0.02, 0.15, 0.3, 0.8), strict=True):
    image = np.exp(density(pixels, t)).reshape(100, 100)
    panel.imshow(image, extent=(-2.3, 2.3, -2.3, 2.3), origin="lower", cmap="Blues")
    field = sigma(t) * true_score(arrows, t)
    panel.quiver(*np.asarray(arrows).T, *np.asarray(field).T, color=ORANGE, width=0.006, scale=25)
    panel.set(title=f"t = {t}", **view)
figure.suptitle(r"The density $p_t$ (blue) and its score times $\sigma$ (orange)")
plt.show()

# %% [markdown]
# ## 4. Learning the score from data alone
#
# In practice $p_0$ is unknown: there are only examples. Three lines make the score learnable (Vincent 2011). Write
# $p_t(x)=\mathbb E_{x_0}\,p_t(x\mid x_0)$ and differentiate under the integral:
#
# $$\nabla\log p_t(x)=\frac{\int p_0(x_0)\,\nabla p_t(x\mid x_0)\,\mathrm dx_0}{p_t(x)}
# =\mathbb E\big[\nabla\log p_t(x_t\mid x_0)\,\big|\,x_t=x\big]
# =-\tfrac1\sigma\,\mathbb E\big[\varepsilon\,\big|\,x_t=x\big],$$
#
# since $\log p_t(x\mid x_0)=-|x-\alpha x_0|^2/2\sigma^2+\text{const}$ and $x-\alpha x_0=\sigma\varepsilon$. The score
# is a conditional mean, and a conditional mean is what least squares finds. So with any function $s_\theta$
#
# $$\underbrace{\mathbb E\,\big|\sigma s_\theta(x_t,t)+\varepsilon\big|^2}_{\text{denoising score matching: computable}}
# =\underbrace{\mathbb E\,\sigma^2\big|s_\theta-\nabla\log p_t\big|^2}_{\text{what we want}}
# +\underbrace{\mathbb E\,\big|\sigma\nabla\log p_t+\varepsilon\big|^2}_{\text{does not depend on }\theta}.$$
#
# The last term is not zero: the noise cannot be told from the noisy point. Both sides can be checked by simulation with
# a score that is wrong on purpose, that of the one Gaussian $\mathcal N(0, I)$: $s(x,t)=-x$.


# %%
def denoising_errors(score, key, x_0):
    """|σ s(x_t, t) + ε|² of each example, at random times."""
    key_time, key_noise = jax.random.split(key)
    t = jax.random.uniform(key_time, x_0.shape[:1], minval=1e-3)  # t ~ U[t_min, 1)
    epsilon = jax.random.normal(key_noise, x_0.shape)  # ε ~ N(0, I)
    x_t = alpha(t)[:, None] * x_0 + sigma(t)[:, None] * epsilon  # x_t = α x_0 + σ ε
    return jnp.sum((sigma(t)[:, None] * score(x_t, t) + epsilon) ** 2, axis=1), x_t, t


def wrong_score(x, t):
    return -x


of_wrong, x_t, t = denoising_errors(wrong_score, jax.random.key(2), x_0)
of_true, _, _ = denoising_errors(true_score, jax.random.key(2), x_0)  # the same draws
wanted = jnp.sum((sigma(t)[:, None] * (wrong_score(x_t, t) - true_score(x_t, t))) ** 2, axis=1)
gap, gap_error = ss.mean_with_error(of_wrong - wanted - of_true)
identity = [ss.mean_with_error(each) for each in (of_wrong, wanted, of_true)]
print("computable  {:.3f} ± {:.3f}".format(*identity[0]))
print("= wanted    {:.3f} ± {:.3f}".format(*identity[1]) + "  + constant  {:.3f} ± {:.3f}".format(*identity[2]))
print(f"difference of the two sides: {gap:.4f} ± {gap_error:.4f}")

batch = ss.training.noised(jax.random.key(3), sde, x_0)  # the library's draw of x_t, ε and t
theirs = 2 * ss.training.errors_of(sde, mixture.score(sde), batch).error  # its errors are per dimension
ours = jnp.sum((sigma(batch.t)[:, None] * true_score(batch.x_t, batch.t) + batch.noise) ** 2, axis=1)
loss_difference = float(jnp.max(jnp.abs(ours - theirs) / (1 + theirs)))
print(f"denoising error, largest relative difference from the library's {loss_difference:.1e}")

# %% [markdown]
# Now a network. It predicts the noise, $\hat\varepsilon=-\sigma s_\theta$, which has unit size at every $t$; it sees
# the point and waves of $\log(\sigma/\alpha)$, on which the noise level looks alike everywhere. Adam does the rest.


# %%
def new_network(key, widths):
    """Weights and biases of a multilayer perceptron, W ~ N(0, 2/fan-in)."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jnp.sqrt(2 / n) * jax.random.normal(key, (n, k)), jnp.zeros(k)) for key, n, k in pairs]


def network_score(params, x, t):
    """s_θ(x, t) = -ε̂/σ."""
    t = jnp.broadcast_to(t, x.shape[:1])
    c = jnp.log(sigma(t) / alpha(t))[:, None] * jnp.array([[0.25, 0.5, 1.0]])
    h = jnp.concatenate([x, jnp.sin(c), jnp.cos(c)], axis=1)
    for W, b in params[:-1]:
        h = jax.nn.silu(h @ W + b[None])
    W, b = params[-1]
    return -(h @ W + b[None]) / sigma(t)[:, None]


@partial(jax.jit, static_argnums=2)
def train(key, params, steps):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(state, key):
        params, moments = state
        key_batch, key_loss = jax.random.split(key)
        batch = x_0[jax.random.randint(key_batch, (512,), 0, len(x_0))]
        loss, gradient = jax.value_and_grad(
            lambda params: jnp.mean(denoising_errors(partial(network_score, params), key_loss, batch)[0])
        )(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params, losses


steps = 6000 if full else 1500
clock = time.monotonic()
params, losses = train(jax.random.key(4), new_network(jax.random.key(5), (8, 128, 128, 128, 2)), steps)
losses = np.asarray(losses, np.float64)
learned = partial(network_score, params)
print(f"{steps} steps in {time.monotonic() - clock:.0f} s")

fresh = mixture.sample(jax.random.key(6), 20_000)
_, x_t, t = denoising_errors(learned, jax.random.key(7), fresh)
error = jnp.sum((sigma(t)[:, None] * (learned(x_t, t) - true_score(x_t, t))) ** 2, axis=1)
score_error, score_error_error = ss.mean_with_error(error)  # E σ² |s_θ - ∇log p|²: what we wanted, on fresh data
print(
    f"σ² |s_θ - ∇log p|² of the network {score_error:.4f} ± {score_error_error:.4f}; of -x it was {identity[1][0]:.3f}"
)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
smooth = losses.reshape(-1, 50).mean(axis=1)
left.plot(25 + 50 * np.arange(len(smooth)), smooth, color=BLUE, lw=1)
left.axhline(identity[2][0], color=ORANGE, label="the constant: error of the exact score")
left.set(xlabel="training step", ylabel="denoising error", title="The loss ends near a value that is not zero")
left.legend()
edges = np.linspace(0, 1, 13)
cell = np.digitize(np.asarray(t), edges) - 1
by_time = [[float(np.mean(np.asarray(v)[cell == k])) for k in range(12)] for v in (error, wanted)]
right.semilogy((edges[1:] + edges[:-1]) / 2, by_time[0], "o-", color=GREEN, ms=4, label="network")
right.set(xlabel="t", ylabel=r"$\sigma^2\,|s_\theta-\nabla\log p_t|^2$", title="Where the network errs")
right.legend()
plt.show()

# %% [markdown]
# ## 5. From noise to data: the reverse SDE
#
# The densities obey the Fokker–Planck equation $\partial_t p=-\nabla\cdot(f x\,p)+\tfrac12g^2\Delta p$. Since
# $\Delta p=\nabla\cdot(p\,\nabla\log p)$, for any $\lambda$
#
# $$\partial_t p=-\nabla\cdot\Big(\big[f x-\tfrac{1+\lambda^2}{2}\,g^2\,\nabla\log p\big]\,p\Big)
# -\tfrac{\lambda^2}{2}g^2\Delta p:$$
#
# read backward in time, the last term is a diffusion with noise $\lambda g$. At $\lambda=1$ this is Anderson's (1982)
# reverse SDE, at $\lambda=0$ there is no noise at all, and the **densities at each time are the same**:
#
# $$\mathrm dx=\big[f x-g^2\nabla\log p_t\big]\mathrm dt+g\,\mathrm d\bar w
# \qquad\text{and}\qquad\frac{\mathrm dx}{\mathrm dt}=v(x,t)=f x-\tfrac12g^2\,\nabla\log p_t .$$
#
# The first is the same five lines as before with another drift, and a grid that runs backward.

# %%
backward = jnp.linspace(1.0, 1e-3, 501)
count = 4000
prior = jax.random.normal(jax.random.key(8), (count, 2))  # x_1 ~ N(0, I) up to α(1)² = 4e-5
way_back = euler_maruyama(
    jax.random.key(9),
    lambda x, t: f(t) * x - g(t) ** 2 * learned(x, t),  # f x - g² s_θ
    prior,
    backward,
)

table = ss.euler_maruyama(sde, np.asarray(backward, np.float64))  # the library's: numbers a, A, s for each step
t, delta = backward[:-1], jnp.diff(backward)
coefficients = {"a": 1 + f(t) * delta, "A": -(g(t) ** 2) * delta, "s": g(t) * jnp.sqrt(-delta)}
table_difference = max(
    float(np.max(np.abs(getattr(table.commit, name)[1:].reshape(-1) / np.asarray(ours) - 1)))
    for name, ours in coefficients.items()
)
print(f"x ← a x + A score + s z: largest relative difference from the library's table {table_difference:.1e}")

# %% [markdown]
# ## 6. The probability flow
#
# The second, an ordinary equation, needs an ordinary solver: here the classical Runge–Kutta method, four evaluations a
# step. The library takes adaptive steps in another variable, an angle, and arrives at the same points.


# %%
@partial(jax.jit, static_argnums=0)
def runge_kutta(velocity, state, times):
    """The state (a pytree) at times[-1] of d state/dt = velocity(state, t), by the classical method of order 4."""

    def step(state, now):
        t, h = now
        go = lambda slope, by: jax.tree.map(lambda x, k: x + by * k, state, slope)  # noqa: E731
        k1 = velocity(state, t)
        k2 = velocity(go(k1, h / 2), t + h / 2)
        k3 = velocity(go(k2, h / 2), t + h / 2)
        k4 = velocity(go(k3, h), t + h)
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
        return go(mean, h), state

    return jax.lax.scan(step, state, (times[:-1], jnp.diff(times)))


def flow(score):
    return lambda x, t: f(t) * x - g(t) ** 2 * score(x, t) / 2  # v = f x - g² s/2


down = jnp.linspace(1.0, 1e-3, 201)
ours, path = runge_kutta(flow(learned), prior, down)
theirs = ss.probability_flow(sde, learned, prior[:500], 1.0, 1e-3, rtol=1e-5, atol=1e-5)
distance = np.linalg.norm(np.asarray(ours[:500] - theirs.x), axis=1)
flow_difference = float(np.median(distance))
print(f"end points of the flow: median distance from the library's {flow_difference:.1e}, largest {distance.max():.1e}")

samples = {"data": fresh[:count], "reverse SDE": way_back[-1], "probability flow": ours}
keys = jax.random.split(jax.random.key(10))
distances = {
    name: float(ss.evaluation.sliced_wasserstein(keys[0], x, mixture.sample(keys[1], count)))
    for name, x in samples.items()
}
figure, panels = plt.subplots(1, 5, figsize=(15, 3.4), width_ratios=(1.25, 1.25, 1, 1, 1), layout="constrained")
for panel, line, grid, colour, name in (
    (panels[0], way_back[:, :25, 0], backward[1:], BLUE, "reverse SDE"),
    (panels[1], path[:, :25, 0], down[:-1], GREEN, "probability flow"),
):
    panel.plot(grid, line, color=colour, lw=0.8, alpha=0.8)
    panel.set(xlabel="t, from noise to data", ylabel="first coordinate", ylim=(-3, 3), title=f"25 paths of the {name}")
    panel.invert_xaxis()
for panel, (name, x), colour in zip(panels[2:], samples.items(), (INK, BLUE, GREEN), strict=True):
    panel.scatter(*np.asarray(x[:2000]).T, s=2, color=colour, alpha=0.4, linewidths=0)
    panel.set(title=f"{name}\ndistance to data {distances[name]:.3f}", **view)
plt.show()

# %% [markdown]
# ## 7. The likelihood of a point
#
# A flow carries volume along: where it spreads, density falls. Along a path
# $\frac{\mathrm d}{\mathrm dt}\log p_t(x_t)=-\nabla\cdot v(x_t,t)$, the instantaneous change of variables. From a data
# point up to the noise, where the density is that of a Gaussian,
#
# $$\log p_0(x)=\log\mathcal N(x_1;0,I)+\int_0^1\nabla\cdot v(x_t,t)\,\mathrm dt .$$
#
# In two dimensions the divergence is the trace of a Jacobian of two columns; in many, the library estimates it from
# random signs, with an error bar. The same Runge–Kutta lines carry the pair $(x,\int\nabla\cdot v)$.


# %%
def likelihood(score, x):
    """log p_0 of points (B, 2) under the probability flow of a score."""

    def velocity(state, t):
        v = lambda x: flow(score)(x[None], t)[0]  # noqa: E731
        divergence = lambda x: jnp.trace(jax.jacfwd(v)(x))  # ∇·v  # noqa: E731
        return flow(score)(state[0], t), jax.vmap(divergence)(state[0])

    (x_1, integral), _ = runge_kutta(velocity, (x, jnp.zeros(len(x))), jnp.linspace(1e-3**0.5, 1.0, 101) ** 2)
    return -jnp.sum(x_1**2, axis=1) / 2 - jnp.log(2 * jnp.pi) + integral  # log N(x_1; 0, I) + ∫ ∇·v dt


held_out = mixture.sample(jax.random.key(11), 1000)
exact = np.asarray(mixture.log_prob(held_out))
with_true, with_learned = (np.asarray(likelihood(score, held_out)) for score in (true_score, learned))
theirs = ss.log_likelihood(jax.random.key(12), sde, learned, held_out[:200], divergence=ss.exact_divergence)
likelihood_difference = float(np.median(np.abs(with_learned[:200] - np.asarray(theirs.log_prob))))
true_error = float(np.max(np.abs(with_true - exact)))
kl, kl_error = ss.mean_with_error(exact - with_learned)  # E log p/p_θ over data: KL(p ‖ p_θ)
print(f"with the exact score, largest error of log p {true_error:.1e} nats")
print(f"with the learned score, median difference from the library's {likelihood_difference:.1e} nats")
print(f"KL(data to model) {kl:.4f} ± {kl_error:.4f} nats")

grid = pixels.reshape(100, 100, 2)[::2, ::2].reshape(-1, 2)
maps = {"exact": mixture.log_prob(grid), "model": likelihood(learned, grid)}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
for panel, (name, values) in zip((left, middle), maps.items(), strict=True):
    image = np.exp(np.asarray(values)).reshape(50, 50)
    shades = PowerNorm(0.5, 0, 3)  # shades of the root: the wide component shows too
    panel.imshow(
        image, extent=(-2.3, 2.3, -2.3, 2.3), origin="lower", cmap="Blues", norm=shades, interpolation="bilinear"
    )
    panel.set(title=f"density, {name}", **view)
limits = [exact.min() - 0.3, exact.max() + 0.3]
right.plot(limits, limits, color=GREY, lw=1)
right.plot(exact, with_learned, "o", ms=2.5, color=ORANGE, alpha=0.5, mew=0, label="learned score")
right.plot(exact, with_true, "o", ms=1.5, color=BLUE, mew=0, label="exact score")
right.set(xlabel="exact log-density (nats)", ylabel="by the probability flow", title="The likelihood of data points")
right.legend(markerscale=3)
plt.show()

# %% [markdown]
# ## What is left to the library
#
# All of this fits on a page because the data have two dimensions. The library keeps the same formulas and adds what
# many dimensions need: networks and what they predict, weights and draws of $t$, solvers of higher order that need ten
# evaluations instead of five hundred, divergences by random probes with error bars, bits per dimension. Other SDEs are
# other pairs $\alpha,\sigma$. The next notebooks: `likelihood`, `solvers`, `ablation`, `predictor_corrector`.

# %%
facts = {
    "kernel_difference": kernel_difference,
    "kernel_z": kernel_z.tolist(),
    "score_difference": score_difference,
    "gap": gap,
    "gap_error": gap_error,
    "loss_difference": loss_difference,
    "score_error": score_error,
    "score_error_of_wrong": identity[1][0],
    "table_difference": table_difference,
    "flow_difference": flow_difference,
    "distances": list(distances.values()),
    "true_error": true_error,
    "likelihood_difference": likelihood_difference,
    "kl": kl,
    "kl_error": kl_error,
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
