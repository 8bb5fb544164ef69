"""The source of likelihood.ipynb: log-densities by the probability flow, and every error bar checked for coverage."""
# ruff: noqa: E402

# %% [markdown]
# # Likelihood with error bars
#
# The probability flow gives the exact log-density of a model, *up to* the tolerance of a solver, the noise of a
# divergence estimate, the time at which it stops, a prior that is nearly that of the process, and for integer data the
# noise that makes them continuous. **Each of these has a number.** Here the score is the exact one of a mixture whose
# density is known, so that every number can be held against the truth, and every error bar can be asked how often it
# covers it.
#
# It takes about two minutes on two CPU cores.

# %% [install]
from experiments.notebooks.install import full

# isort: split

# %%
import math
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import scoresde as ss
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREEN, GREY, use

use()
started = time.monotonic()

# %% [markdown]
# ## The law, and one likelihood
#
# Six Gaussians in sixteen dimensions. With $v$ the velocity of the probability flow,
#
# $$\log p(x)=\log\mathcal N(x_T;0,\sigma_T^2I)+\int_{t_{\min}}^{t_{\max}}\nabla\cdot v(x_t,t)\,\mathrm dt,$$
#
# and with $\nabla\cdot v$ computed exactly and a tight tolerance one error is left: the model starts from $\mathcal
# N(0,\sigma_T^2I)$, the process arrives at a law that is only close to it. `ss.error_budget` solves once more at ten
# times the tolerance, and estimates this part, `prior`, from a sample of the data. With it the true log-density is met,
# and from here on `target` is the log-density of the flow with *its* prior, to which everything is compared.

# %%
dims, n = 16, 400 if full else 120
law = ss.GaussianMixture(
    1.5 * jax.random.normal(jax.random.key(0), (6, dims)), np.linspace(0.4, 0.8, 6), np.linspace(1, 2, 6)
)
sde, score = ss.VP(), law.score(ss.VP())
x = law.sample(jax.random.key(1), n)
exact = np.asarray(law.log_prob(x), np.float64)

data = law.sample(jax.random.key(12), 20_000)
settings: dict = {"rtol": 1e-4, "atol": 1e-4}
tight = ss.error_budget(jax.random.key(2), sde, score, x, data=data, **settings)
before, after = (float(np.max(np.abs(tight.log_prob + part - exact))) for part in (0.0, tight.prior))
target = exact - np.asarray(tight.prior, np.float64)
print(f"{n} points of {dims} dimensions, log-densities of {exact.min():.1f} to {exact.max():.1f} nats")
print(
    f"largest error {before:.1e} nats as it is, {after:.1e} with the prior's part; solver: {jnp.max(tight.solver):.1e}"
)

# %% [markdown]
# ## The divergence, exact or by probes
#
# The exact divergence needs a Jacobian of $D$ columns. Hutchinson's estimator needs one column a probe,
# $\nabla\cdot v=\mathbb E[z^\top J z]$ with random signs $z$, kept fixed along the path, so that $P$ probes give $P$
# independent estimates of $\log p(x)$: their spread is the standard error of each example, with Student's $t$ of $P-1$
# degrees of freedom. Hutch++ first takes out the directions that matter. Does the 95 % interval contain the exact value
# 95 times in a hundred? A little less often where the estimates are far from normal, which few signs make them.

# %%
ESTIMATORS = {  # name: (divergence, columns of the Jacobian per evaluation, colour)
    "exact": (ss.exact_divergence, dims, INK),
    "Hutchinson, 1 probe": (ss.hutchinson(1), 1, GREY),
    "Hutchinson, 4 probes": (ss.hutchinson(4), 4, BLUE),
    "Hutchinson, 16 probes": (ss.hutchinson(16), 16, GREEN),
    "Hutch++, sketch 6, 4 probes": (ss.likelihood.hutch_pp(6, 4), 16, ORANGE),
}
results, coverage = {}, {}
print(f"{'':28}{'columns':>8}{'rms error':>11}{'mean bar':>10}{'coverage of 95 %':>20}")
for name, (divergence, columns, _) in ESTIMATORS.items():
    result = ss.log_likelihood(jax.random.key(3), sde, score, x, divergence=divergence, **settings)
    error = np.asarray(result.log_prob) - target
    bar = np.asarray(result.std_error)
    results[name] = error, bar
    text = f"{name:28}{columns:8}{np.sqrt(np.mean(error**2)):11.4f}{np.mean(bar):10.4f}"
    if divergence.count > 1 and name != "exact":
        inside = np.abs(error) <= stats.t.ppf(0.975, divergence.count - 1) * bar
        coverage[name] = float(np.mean(inside))
        text += f"{100 * coverage[name]:13.1f} ± {100 * math.sqrt(0.05 * 0.95 / n):.1f} %"
    print(text)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), width_ratios=(1.5, 1), layout="constrained")
few = np.argsort(exact)[:: max(1, n // 30)][:30]
for k, name in enumerate(list(ESTIMATORS)[2:]):
    error, bar = (v[few] for v in results[name])
    wide = stats.t.ppf(0.975, ESTIMATORS[name][0].count - 1) * bar
    left.errorbar(
        np.arange(len(few)) + 0.25 * (k - 1), error, wide, fmt="o", ms=3, lw=1.2, color=ESTIMATORS[name][2], label=name
    )
left.axhline(0, color=GREY, lw=1)
reach = 2 * float(np.quantile(np.abs(results["Hutchinson, 4 probes"][0]), 0.95))
left.set_ylim(-reach, reach)
left.set(xlabel="thirty points, from the least to the most likely", ylabel="error of log p, with 95 % interval (nats)")
left.set(xticks=[], title="Error bars against the truth")
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
level = np.linspace(0.02, 0.98, 49)
for name in coverage:
    error, bar = results[name]
    quantile = stats.t.ppf(0.5 + level / 2, ESTIMATORS[name][0].count - 1)
    right.plot(level, [np.mean(np.abs(error) <= q * bar) for q in quantile], color=ESTIMATORS[name][2])
right.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
right.set(xlabel="nominal", ylabel="observed", aspect="equal", title="Coverage of intervals of every level")
plt.show()

# %% [markdown]
# ## Two standard errors: over probes and over examples
#
# A mean over examples has its own standard error, $\mathrm{std}(\log\hat p)/\sqrt n$, and **it already contains the
# noise of the probes**, which is independent from example to example. At an equal number of Jacobian columns, more
# examples with one probe beat fewer examples with more. The mean of the truth is known from 400,000 exact draws; the
# examples are cut into batches, and each batch is asked whether its 95 % interval covers it.

# %%
truth = float(np.mean([np.mean(law.log_prob(law.sample(jax.random.key(100 + k), 50_000))) for k in range(8)]))
truth -= float(jnp.mean(tight.prior))  # of the flow with its own prior
cost = 16 * 24  # columns that we can pay for
print(f"{'':28}{'std over examples':>19}{'from the probes':>17}{f'bar of the mean, {cost} columns':>32}")
for name in ("Hutchinson, 1 probe", "Hutchinson, 4 probes", "Hutchinson, 16 probes", "exact"):
    error, _ = results[name]
    spread, share = float(np.std(error + target, ddof=1)), float(np.std(error, ddof=1))
    count = cost // ESTIMATORS[name][1]
    print(f"{name:28}{spread:19.3f}{share:17.3f}{f'n = {count}:':>22}{spread / math.sqrt(count):10.3f}")

size, batches = 40, 200 if full else 60
more = law.sample(jax.random.key(4), size * batches)
single = ss.log_likelihood(jax.random.key(5), sde, score, more, divergence=ss.hutchinson(1), rtol=1e-3, atol=1e-3)
groups = np.asarray(single.log_prob, np.float64).reshape(batches, size)
z = np.array([(mean - truth) / error for mean, error in map(ss.mean_with_error, groups)])
mean_coverage = float(np.mean(np.abs(z) <= stats.t.ppf(0.975, size - 1)))
print(f"{batches} batches of {size} examples, one probe: 95 % intervals cover the truth in {100 * mean_coverage:.1f} %")

# %% [markdown]
# ## The tolerance
#
# The relative and absolute tolerances bound each step, not the result. `ss.error_budget` solves twice, the second time
# ten times tighter, and reports the difference: the error of the coarser solve, and a cautious bound of the finer.

# %%
tolerances = 10.0 ** -np.arange(1, 6)
solver_errors = []
for tolerance in tolerances:
    result = ss.log_likelihood(
        jax.random.key(6), sde, score, x, divergence=ss.exact_divergence, rtol=tolerance, atol=tolerance
    )
    error = np.abs(np.asarray(result.log_prob) - target)
    solver_errors.append((float(np.median(error)), float(np.max(error)), float(jnp.mean(result.num_evals))))
budget = ss.error_budget(jax.random.key(7), sde, score, x, rtol=1e-2, atol=1e-2, data=data)
solver_actual = np.abs(np.asarray(budget.log_prob) - target)
solver_bounded = float(np.mean(solver_actual <= np.asarray(budget.solver) + after))
print(f"tolerance 1e-2: the reported bound holds for {100 * solver_bounded:.0f} % of the points")

# %% [markdown]
# ## The last time
#
# What is computed is the density at $t_{\min}$, where a little noise remains, not at 0. To first order in $\sigma^2$
# the difference follows from the score and its divergence, `budget.truncation`, signed:
# $\log p_0-\log p_t\approx-\tfrac{\sigma^2}2(\nabla\cdot s+|s|^2)+D\log\alpha-(1-\alpha)\,x\cdot s$.

# %%
times = np.array([1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4] if full else [1e-1, 1e-2])
offsets, predictions = [], []
for t_min in times:
    early = ss.VP(t_min=float(t_min))
    part = ss.error_budget(jax.random.key(8), early, law.score(early), x, data=data, **settings)
    offsets.append(exact - np.asarray(part.log_prob + part.prior))
    predictions.append(np.asarray(part.truncation))
rms = lambda v: float(np.sqrt(np.mean(np.square(v))))  # noqa: E731
truncation = [[float(t), rms(o), rms(o - p)] for t, o, p in zip(times, offsets, predictions, strict=True)]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.7), layout="constrained")
median, largest, evaluations = np.array(solver_errors).T
left.loglog(tolerances, largest, "o-", color=ORANGE, ms=4, label="largest error of all points")
left.loglog(tolerances, median, "o-", color=BLUE, ms=4, label="median error")
for tolerance, error, count in zip(tolerances, largest, evaluations, strict=True):
    left.annotate(
        f"{count:.0f}", (tolerance, error), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
    )
left.set(xlabel="tolerance (numbers: evaluations a point)", ylabel="error of log p (nats)", title="The solver")
left.set_ylim(top=30 * largest.max())
left.legend()
right.loglog(
    *np.array(truncation)[:, :2].T, "o-", color=ORANGE, ms=4, label="log p at $t_{\\min}$ taken for log p at 0"
)
right.loglog(*np.array(truncation)[:, ::2].T, "o-", color=BLUE, ms=4, label="with the budget's truncation added")
right.set(xlabel="$t_{\\min}$", ylabel="root mean square error (nats)", title="The last time")
right.legend()
plt.show()

# %% [markdown]
# ## Integers, and bits per dimension
#
# A density is not a probability: integer data must be made continuous, $y=(k+u)\,w$ with $u\sim U[0,1)$ and $w$ the
# width of a level, or a model could gain without bound by putting spikes on the integers. Then
#
# $$\text{bits/dim}=-\frac{\log p(y)}{D\ln2}-\log_2w,$$
#
# and a model that knows nothing, uniform over 256 levels, needs exactly 8 of them in whatever units.

# %%
for width, low in ((2 / 256, -1.0), (1 / 256, 0.0), (1.0, 0.0)):
    log_prob = -dims * math.log(256 * width)  # log of the density 1/(256 w) in each dimension
    uniform_bits = float(ss.bits_per_dim(log_prob, dims, width))
    print(f"256 levels scaled to [{low:g}, {low + 256 * width:g}]: the uniform model has {uniform_bits:.6f} bits/dim")

# %% [markdown]
# The average of $\log p(y)$ over $u$ is a *lower bound* of $\log P(k)=\log w^D\!\int p\,\mathrm du$, by Jensen. Several
# draws averaged inside the logarithm come closer (importance weighting). Here bins are as coarse as the components of a
# mixture in two dimensions, so that the gap is large and the mass $P(k)$ of each bin is known from the error function.

# %%
centres = np.array([[-0.9, 0.2], [0.6, 0.8], [0.5, -0.7]])
plane = ss.GaussianMixture(centres, np.array([0.22, 0.3, 0.18]), np.array([0.4, 0.35, 0.25]))
width, count = 0.5, 300 if full else 100
levels = np.floor(np.asarray(plane.sample(jax.random.key(9), count)) / width).astype(int)
edges = (levels[:, None, :] + np.arange(2)[None, :, None]) * width  # (n, low and high, D)
parts = stats.norm.cdf((edges[:, :, None] - np.asarray(plane.means)) / np.asarray(plane.stds)[:, None])
log_mass = np.log(np.prod(parts[:, 1] - parts[:, 0], axis=-1) @ np.asarray(plane.weights))  # log P(k), exact

repeats = (1, 2, 4, 8, 16, 32) if full else (1, 8)
gaps = {}
for k in repeats:
    got = ss.dequantised_log_likelihood(
        jax.random.key(10),
        sde,
        plane.score(sde),
        levels,
        bin_width=width,
        repeats=k,
        divergence=ss.exact_divergence,
        rtol=1e-3,
        atol=1e-3,
    )
    bits = (ss.bits_per_dim(v, 2, width) for v in (got.log_prob, got.importance))
    gaps[k] = [ss.mean_with_error(np.asarray(v) + log_mass / (2 * math.log(2))) for v in bits]
exact_bits = ss.mean_with_error(-log_mass / (2 * math.log(2)))
print(f"exact: {exact_bits[0]:.3f} ± {exact_bits[1]:.3f} bits/dim over {count} examples; above it, in bits/dim:")
for k, ((plain, plain_error), (weighted, weighted_error)) in gaps.items():
    print(f"{k:4} draws: plain average {plain:.4f} ± {plain_error:.4f}, weighted {weighted:.4f} ± {weighted_error:.4f}")

# %% [markdown]
# ## The variational bound
#
# Without any differential equation, denoising errors bound the log-density from below: `ss.likelihood_bound`, an
# integral over the log-SNR by random times, with its own standard error over repeats. With an exact score almost
# nothing is lost, so that it must agree with the truth within its bars. A learned score loses more.

# %%
bound = ss.likelihood_bound(jax.random.key(11), sde, score, x, draws=16, repeats=16)
lost = exact - np.asarray(bound.bound)
bound_coverage = float(np.mean(np.abs(lost) <= stats.t.ppf(0.975, 15) * np.asarray(bound.std_error)))
lost_mean, lost_error = ss.mean_with_error(lost)
print(f"exact minus bound: {lost_mean:.4f} ± {lost_error:.4f} nats; 95 % intervals cover {100 * bound_coverage:.1f} %")
print(
    f"{int(bound.num_evals[0])} evaluations a point without derivatives, "
    f"mean bar {float(jnp.mean(bound.std_error)):.3f} nats"
)

# %% [markdown]
# ## The budget of one likelihood
#
# All at once, and all wrong on purpose: an SDE that ends too early ($\alpha(1)=0.36$, so that its prior is not the law
# of $x_T$), starts too late ($t_{\min}=0.01$), a tolerance of 0.01 and four probes. Each error is reported, those with
# a sign can be added back, and what is left must lie within the bars.

# %%
poor = ss.VP(beta_max=4.0, t_min=0.01)
budget = ss.error_budget(
    jax.random.key(13), poor, law.score(poor), x, divergence=ss.hutchinson(4), rtol=1e-2, atol=1e-2, data=data
)
print(budget.report())
raw = np.asarray(budget.log_prob) - exact
repaired = raw + np.asarray(budget.truncation) + np.asarray(budget.prior)
bar = np.asarray(budget.solver) + stats.t.ppf(0.975, 3) * np.asarray(budget.probes)
budget_coverage = float(np.mean(np.abs(repaired) <= bar))
bias, bias_error = ss.mean_with_error(repaired)
print(f"mean error {raw.mean():.3f} nats as it is, {bias:.3f} ± {bias_error:.3f} with the signed parts added")
print(f"bars (95 % of the probes, plus the solver) cover what is left for {100 * budget_coverage:.1f} % of the points")

figure, panel = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
bins = np.linspace(min(raw.min(), repaired.min()), max(raw.max(), repaired.max()), 45)
panel.hist(raw, bins.tolist(), color=ORANGE, alpha=0.75, label="as it is")
panel.hist(repaired, bins.tolist(), color=BLUE, alpha=0.75, label="truncation and prior added")
panel.axvline(0, color=INK, lw=1)
panel.set(xlabel="error of log p (nats)", ylabel="points", title="The parts of the error with a sign can be repaired")
panel.set_ylim(0, 1.15 * max(np.histogram(v, bins)[0].max() for v in (raw, repaired)))
panel.legend()
plt.show()

# %% [markdown]
# ## What to report
#
# The mean log-density (nats for continuous data, bits per dimension for integers, with the bin width), its standard
# error **over examples**, one probe; the tolerance, and the budget's `solver` to show that it is small beside the bar;
# `t_min`; for integers how they were made continuous and how many draws. And whether the number is a density of the
# flow or a variational bound: the two are likelihoods of two different models, unless the score is exact.

# %%
facts = {
    "points": n,
    "before": before,
    "after": after,
    "coverage": [[name, value] for name, value in coverage.items()],
    "batches": batches,
    "mean_coverage": mean_coverage,
    "solver_bounded": solver_bounded,
    "solver_errors": [list(row) for row in solver_errors],
    "truncation": truncation,
    "uniform_bits": uniform_bits,
    "gaps": [[k, *map(list, rows)] for k, rows in gaps.items()],
    "bound_coverage": bound_coverage,
    "lost": [lost_mean, lost_error],
    "raw_bias": float(raw.mean()),
    "bias": [bias, bias_error],
    "budget_coverage": budget_coverage,
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
