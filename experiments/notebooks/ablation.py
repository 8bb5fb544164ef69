"""The source of ablation.ipynb: SDE x prediction x weight with trained networks, several seeds and the exact divergence
from the truth."""
# ruff: noqa: E402

# %% [markdown]
# # An ablation with error bars: SDE × prediction × weight
#
# Three choices that papers make together, taken apart: the process that adds noise, what the network predicts, and how
# the loss weighs the noise levels. Every combination is trained from several seeds, and judged by a number that needs
# no taste: the Kullback–Leibler divergence from the true law to the model's, of which both densities are known.
# Intervals are 95 %, by Student's $t$ over the seeds.
#
# To vary one thing at a time, everything else is the same in all cells: data, network, optimiser, number of steps, the
# noise levels drawn (uniform in the log-SNR, reweighted so that the objective is the one named), and the seeds. One
# compiled program trains all predictions, weights and seeds of an SDE at once. It takes about five minutes on two CPU
# cores, much less on an accelerator.

# %% [install]
from experiments.notebooks.install import full

# isort: split

# %%
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.tree_util import Partial
from matplotlib.ticker import LogFormatter
from scipy import stats

import scoresde as ss
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREEN, use

use()
started = time.monotonic()

# %% [markdown]
# ## The cells
#
# The SDEs differ in how $\alpha$ and $\sigma$ run with time; all three are cut to the same range of noise levels, that
# of VE from $\sigma=0.01$ to 50, for the range is a choice of its own. The network sees $u=x_t/\mathrm{std}(x_t)$ and
# $\log(\sigma/\alpha)$ and predicts the noise $\varepsilon$, the data $x_0$, or the velocity
# $\cos\varphi\,\varepsilon-\sin\varphi\,x_0/\sigma_d$. The loss is $\mathbb E_t\,w(t)\,|\hat\varepsilon-\varepsilon|^2$
# with $w=1$ ("simple", DDPM), $w=g^2/\sigma^2$ (the variational bound), or EDM's weight, a bump over the middle noise
# levels.
#
# Theory predicts a part of the result (Kingma et al. 2021). Written as integrals over the log-SNR, the bound and EDM's
# objective do not know the SDE any more: there the three SDEs must agree. And for VE, whose log-SNR is linear in time,
# $g^2/\sigma^2$ is constant: "simple" and bound must be the same.

# %%
SDES = {  # cut to log-SNR 9.2 to -7.8
    name: replace(sde, t_min=float(sde.time(9.2)), t_max=float(sde.time(-7.8)))
    for name, sde in {"VP": ss.VP(), "VE": ss.VE(), "flow": ss.RectifiedFlow()}.items()
}
PREDICTIONS = {"noise": ss.precond.noise, "data": ss.precond.data, "velocity": ss.precond.velocity}
seeds, steps = (5, 1500) if full else (3, 200)

angles = 2 * np.pi * np.arange(8) / 8
ring = ss.GaussianMixture(np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.15), np.ones(8))
x = ring.sample(jax.random.key(0), 8192)
sigma_data = ss.Preconditioner.from_data(SDES["VP"], x).sigma_data
held_out = ring.sample(jax.random.key(1), 1000 if full else 200)
exact = np.asarray(ring.log_prob(held_out), np.float64)


def weights(sde):
    """The three weights of an SDE."""
    return {
        "simple": ss.noise_weight,
        "bound": ss.likelihood_weight,
        "EDM": ss.Preconditioner(sde, sigma_data).karras_weight(),
    }


WEIGHTS = list(weights(SDES["VP"]))
networks = [
    ss.nn.functional(ss.nn.ResidualMLP((2,), width=48, depth=2, features=16, key=key))
    for key in jax.random.split(jax.random.key(2), seeds)
]
apply = networks[0][0]
starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in networks))  # one for each seed


def cell_score(sde, params, prediction, x, t):
    """The score of a network that predicts number ``prediction`` of PREDICTIONS; the number may be traced."""

    def chosen(alpha, sigma, sigma_data):
        pairs = [function(alpha, sigma, sigma_data) for function in PREDICTIONS.values()]
        p, q = (jnp.stack(each)[prediction] for each in zip(*pairs, strict=True))
        return p, q

    return ss.Preconditioner(sde, sigma_data, chosen).score(partial(apply, params))(x, t)


# %% [markdown]
# ## Training
#
# A cell is a pair of numbers, and `jax.vmap` runs over cells and seeds: for each SDE one program, which trains all the
# networks side by side. Seeds share their first parameters, batches and noise across the cells, so that the cells are
# compared in pairs.

# %%
cells = [(i, j) for i in range(len(PREDICTIONS)) for j in range(len(WEIGHTS))]


@partial(jax.jit, static_argnums=0)
def train(sde, prediction, weight, key, params):
    """The averaged parameters of one network."""

    def loss(params, key, batch):
        chosen = lambda sde, t: jnp.stack([w(sde, t) for w in weights(sde).values()])[weight]  # noqa: E731
        score = partial(cell_score, sde, params, prediction)
        return ss.denoising_score_matching(key, sde, score, batch, weight=chosen, times=ss.training.uniform_log_snr)

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, steps))
    trainer = ss.Trainer(loss, optimizer, averages=(ss.training.warmed(0.99),), clip=float("inf"))
    state, _ = trainer.run(trainer.init(key, params), x, steps=steps, batch_size=128)
    return state.ema


@partial(jax.jit, static_argnums=0)
def log_likelihood(sde, prediction, params):
    """log p of the held-out points by the probability flow, with the exact divergence, in 40 evaluations."""
    score = Partial(cell_score, sde, params, prediction)
    grid = ss.angle_grid(sde, 39, rho=0.28 * sigma_data, share=0.25)
    solver = partial(ss.adams, order=4, correct_last=True, detail=0.04, sigma_data=sigma_data)
    key = jax.random.key(0)  # not used: nothing is random
    return ss.table_log_likelihood(key, sde, score, held_out, grid, solver=solver, estimate_error=False).log_prob


predictions, weight_numbers = map(jnp.asarray, zip(*cells, strict=True))
seed_keys = jax.random.split(jax.random.key(3), seeds)
kl = {}
for name, sde in SDES.items():
    clock = time.monotonic()
    by_seed = jax.vmap(partial(train, sde), (None, None, 0, 0))
    trained = jax.vmap(by_seed, (0, 0, None, None))(predictions, weight_numbers, seed_keys, starts)
    measured = jax.vmap(jax.vmap(partial(log_likelihood, sde), (None, 0)))(predictions, trained)
    kl[name] = exact.mean() - np.asarray(measured, np.float64).mean(axis=2)  # (cells, seeds), the same points for all
    print(f"{name}: {len(cells)} cells of {seeds} seeds, {steps} steps, {time.monotonic() - clock:.0f} s")

# %% [markdown]
# ## The table
#
# Kullback–Leibler divergence from the truth, in thousandths of a nat; smaller is better. Mean and interval are taken of
# its logarithm, for the seeds differ by factors. The held-out points are the same in all cells, so that their own
# sampling error moves all numbers together.


# %%
def interval(values):
    """Mean and half of the 95 % interval, by Student's t."""
    mean, error = ss.mean_with_error(values)
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * error


logs = np.log(np.maximum(1000 * np.stack([kl[name] for name in SDES]), 0.1))
logs = logs.reshape(len(SDES), len(PREDICTIONS), len(WEIGHTS), seeds)
table = {
    (name, prediction, weight): interval(logs[i, j, k])
    for i, name in enumerate(SDES)
    for j, prediction in enumerate(PREDICTIONS)
    for k, weight in enumerate(WEIGHTS)
}
print(f"KL × 1000, {seeds} seeds, {steps} steps: mean of the logarithm [95 % interval over seeds]")
print(f"{'weight':8}{'prediction':12}" + "".join(f"{name:>27}" for name in SDES))
for weight in WEIGHTS:
    for prediction in PREDICTIONS:
        row = (table[name, prediction, weight] for name in SDES)
        texts = (f"{np.exp(mean):9.1f} [{np.exp(mean - half):.1f}, {np.exp(mean + half):.1f}]" for mean, half in row)
        print(f"{weight:8}{prediction:12}" + "".join(f"{text:>27}" for text in texts))

# %%
figure, panels = plt.subplots(1, len(WEIGHTS), figsize=(12, 3.9), sharey=True, layout="constrained")
for panel, weight in zip(panels, WEIGHTS, strict=True):
    for i, (name, colour, marker) in enumerate(zip(SDES, (BLUE, ORANGE, GREEN), "osD", strict=True)):
        at = np.arange(len(PREDICTIONS)) + 0.2 * (i - 1)
        mean, half = np.array([table[name, prediction, weight] for prediction in PREDICTIONS]).T
        single = np.exp(logs[i, :, WEIGHTS.index(weight)])
        panel.plot(np.repeat(at + 0.06, seeds), single.ravel(), ".", color=colour, ms=5, alpha=0.5, mew=0)
        mid, low, high = (np.exp(mean + k * half) for k in (0, -1, 1))
        panel.errorbar(at, mid, (mid - low, high - mid), fmt=marker, ms=6, lw=1.6, capsize=4, color=colour, label=name)
    panel.set(yscale="log", title=f"weight: {weight}", xlim=(-0.5, len(PREDICTIONS) - 0.5))
    panel.set_xticks(range(len(PREDICTIONS)), [f"{name}\nprediction" for name in PREDICTIONS])
    panel.grid(axis="y", alpha=0.2)
panels[0].set_ylabel("KL(truth ‖ model) × 1000, nats")
panels[0].yaxis.set_major_formatter(LogFormatter())
panels[0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
panels[-1].legend(title="SDE", loc="upper right")
figure.suptitle(f"Mean and 95 % interval over {seeds} seeds (small dots)")
plt.show()

# %% [markdown]
# ## Which choice matters
#
# The share of the variance of $\log\mathrm{KL}$ over the cells that each choice explains by itself, and the rest, in
# which choices act together; then the comparisons in pairs, seed by seed, of which only those count whose interval does
# not hold zero.

# %%
means = logs.mean(axis=3)
total = np.var(means)
shares = {}
for axis, name in enumerate(("SDE", "prediction", "weight")):
    shares[name] = float(np.var(means.mean(axis=tuple({0, 1, 2} - {axis}))) / total)
print(", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()), end=", ")
print(f"together {100 * (1 - sum(shares.values())):.0f} %")

pairs = {}
for axis, names in ((1, list(PREDICTIONS)), (2, WEIGHTS), (0, list(SDES))):
    for other in range(len(names) - 1):
        difference = np.take(logs, other, axis) - np.take(logs, -1, axis)
        pairs[names[other], names[-1]] = mean, half = interval(difference.reshape(-1, seeds).mean(axis=0))
        low, high = np.exp(mean - half), np.exp(mean + half)
        text = f"KL of {names[other]:6} over that of {names[-1]:9}"
        print(f"{text}: {np.exp(mean):5.2f}, 95 % interval {low:.2f} to {high:.2f}")

# %% [markdown]
# What theory predicts can be seen at once: in the panels of the bound and of EDM's weight the three SDEs stand side by
# side, VP and VE within two thousandths (flow carries the rounding of its times near 1), and VE has the same result
# under "simple" and bound. The choice of an SDE is a choice of weight, of the range of noise levels, and later of the
# sampler's steps; once these are fixed nothing of it is left: of the variance it explains 1 %, the weight 6 % and what
# the network predicts 78 %. Where there is little noise, an error of predicted data becomes an error of the score
# $\alpha/\sigma^2$ times as large, and the likelihood sees it: 1.9 times the divergence of velocity prediction, where
# that of noise prediction cannot be told from it (1.11, 0.98 to 1.26).

# %%
facts = {
    "table": [[*names, mean, half] for names, (mean, half) in table.items()],
    "kl": {name: values.tolist() for name, values in kl.items()},
    "points_error": float(np.std(exact, ddof=1) / np.sqrt(len(exact))),
    "shares": shares,
    "pairs": [[*names, mean, half] for names, (mean, half) in pairs.items()],
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
