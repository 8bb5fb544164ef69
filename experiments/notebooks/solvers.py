"""The source of solvers.ipynb: every solver's error against its number of evaluations, with an exact score."""
# ruff: noqa: E402

# %% [markdown]
# # Solvers: error against evaluations
#
# Sampling costs evaluations of the score, so the question is what error a solver leaves after how many. Here the score
# is **exact** (a mixture of Gaussians), so that what is measured is the solver alone, in double precision:
#
# * solvers of the *probability flow* by the distance of their end points from those of the exact flow;
# * solvers of the *reverse SDE* by the distance of their law from the exact law, since their paths are random.
#
# On two axes of logarithms a solver of order $p$ is a line of slope $-p$. It takes about five minutes on two CPU
# cores.

# %% [install]
from experiments.notebooks.install import full

# isort: split

# %%
import time
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np

import scoresde as ss
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREEN, GREY, SKY, use
from experiments.measures.exact import flow_error, law_error

use()
jax.config.update("jax_enable_x64", True)
started = time.monotonic()

# %% [markdown]
# ## The problem
#
# A ring of eight Gaussians of standard deviation 0.3 and the VP SDE. The reference is the probability flow of diffrax'
# Tsit5 with tolerances of $10^{-10}$: another library and another method than any of the tables below, and itself
# checked against the table of highest order.

# %%
sde = ss.VP()
angles = 2 * np.pi * np.arange(8) / 8
ring = ss.GaussianMixture(np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.3), np.ones(8))
score = ring.score(sde)
starts = sde.prior_sample(jax.random.key(0), (64, 2))
reference = ss.probability_flow(sde, score, starts, sde.t_max, sde.t_min, rtol=1e-10, atol=1e-10)
error_after = partial(flow_error, sde, score, starts, reference.x)  # mean |x - x_exact| at t_min
reference_error = error_after(ss.unipc(sde, ss.log_snr_grid(sde, 800), 4))
print(f"the reference and UniPC-4 in 800 steps are {reference_error:.1e} apart on average")

# %% [markdown]
# ## The probability flow
#
# Each solver is a table of numbers on a grid of $n$ steps, equally spaced in the log-SNR, and one loop runs them all.
# Colours give the order that theory states: a first-order solver halves its error when the evaluations double, a
# fourth-order one divides it by sixteen, *once the steps are small*. Solvers of several evaluations a step take
# proportionally fewer steps.

# %%
FLOW = {  # name: (solver, evaluations a step, stated order, colour, line)
    "DDIM": (ss.ddim, 1, 1, INK, "-"),
    "Heun, midpoint": (partial(ss.heun, alpha=0.5), 2, 2, BLUE, "--"),
    "Heun, EDM's": (ss.heun, 2, 2, BLUE, ":"),
    "DPM-Solver++ 2M": (partial(ss.dpm_solver, order=2), 1, 2, BLUE, "-"),
    "iPNDM 4": (partial(ss.solvers.ipndm, order=4), 1, 2, BLUE, "-."),
    "DPM-Solver++ 3S": (partial(ss.solvers.dpm_solver_single, order=3), 3, 3, GREEN, "--"),
    "DPM-Solver++ 3M": (partial(ss.dpm_solver, order=3), 1, 3, GREEN, "-"),
    "DEIS 3": (partial(ss.deis, order=3), 1, 3, GREEN, ":"),
    "LMS 4": (partial(ss.solvers.lms, order=4), 1, 4, ORANGE, ":"),
    "UniPC 2": (partial(ss.unipc, order=2), 1, 3, GREEN, "-."),
    "UniPC 3": (partial(ss.unipc, order=3), 1, 4, ORANGE, "-"),
    "Adams 3": (partial(ss.adams, order=3), 1, 4, ORANGE, "--"),
}
budgets = (6, 12, 24, 48, 96, 192, 384) if not full else (6, 9, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288, 384)

clock = time.monotonic()
errors = {
    name: [error_after(solver(sde, ss.log_snr_grid(sde, n // cost))) for n in budgets]
    for name, (solver, cost, *_) in FLOW.items()
}
halves, last = budgets.index(192), budgets.index(384)
measured = {name: float(np.log2(values[halves] / values[last])) for name, values in errors.items()}
print(f"{'':18}{'stated':>8}{'measured':>10}" + "".join(f"{n:>10}" for n in (6, 12, 24, 48, 96)))
for name, (_, _, stated, _, _) in FLOW.items():
    shown = "".join(f"{errors[name][budgets.index(n)]:10.1e}" for n in (6, 12, 24, 48, 96))
    print(f"{name:18}{stated:8}{measured[name]:10.2f}{shown}")
print(f"measured between 192 and 384 evaluations; {time.monotonic() - clock:.0f} s")


# %%
def labelled(panel, ends):
    """Names beside the right ends of lines, moved apart where they would overlap; ends {name: (value, colour)}."""
    low, high = np.log10(panel.get_ylim())
    names = sorted(ends, key=lambda name: ends[name][0])
    exact = np.array([(np.log10(ends[name][0]) - low) / (high - low) for name in names])
    heights, least = exact.copy(), 0.05
    for _ in range(200):
        for k in range(1, len(heights)):
            overlap = max(0.0, least - (heights[k] - heights[k - 1])) / 2
            heights[k - 1 : k + 1] += -overlap, overlap
    for name, end, height in zip(names, exact, heights, strict=True):
        colour, share = ends[name][1], panel.transAxes
        panel.plot([1, 1.035], [end, height], color=colour, lw=0.7, transform=share, clip_on=False)
        panel.text(1.045, height, name, color=colour, va="center", transform=share)


figure, panel = plt.subplots(figsize=(9.5, 5.4), layout="constrained")
for name, (_, _, _, colour, line) in FLOW.items():
    panel.loglog(budgets, errors[name], line, color=colour, lw=1.6, marker="o", ms=3)
panel.set(ylim=(1e-8, 3), xlim=(budgets[0], budgets[-1]), xlabel="evaluations of the score")
panel.set(
    ylabel="mean distance from the exact end point", title="Probability flow, exact score; colours by stated order"
)
for order, colour in enumerate((INK, BLUE, GREEN, ORANGE), start=1):
    n = np.array([7.0, 17.0])
    panel.loglog(n, 2e-5 * (n / n[0]) ** -order, color=colour, lw=2.5, alpha=0.35)
    panel.text(17.6, 2e-5 * (17 / 7) ** -order, f"order {order}", color=colour, fontsize=8, va="center")
panel.set_xticks(ticks := [6, 12, 24, 48, 96, 192, 384], [str(n) for n in ticks])
panel.minorticks_off()
panel.grid(alpha=0.15)
labelled(panel, {name: (max(errors[name][-1], 1e-8), FLOW[name][3]) for name in FLOW})
plt.show()

# %% [markdown]
# Three lessons of this problem. *Order pays late*: with six evaluations UniPC 3 and DPM-Solver++ 3M, of orders four and
# three, err more than first-order DDIM, and EDM's Heun passes DDIM only between 24 and 48. *Old evaluations are worth
# keeping, mostly*: 3M leaves less error than 3S, which spends three evaluations a step, from twelve on; but the
# midpoint rule, with two a step, beats 2M from 24 on. *A name is no order*: iPNDM "4" extrapolates with the
# coefficients of equal steps in another variable, and its slope is 2.
#
# ## The grid
#
# The same solver on five grids of the same number of steps. The log-SNR has no preferred scale; the grid in the
# *angle* spends its steps where data of unit size and noise are alike.

# %%
GRIDS = {
    "uniform in t": (ss.uniform_grid, GREY),
    "quadratic in t": (ss.grids.quadratic_grid, SKY),
    "Karras, ρ = 7": (ss.karras_grid, GREEN),
    "log-SNR": (ss.log_snr_grid, BLUE),
    "angle": (ss.angle_grid, ORANGE),
}
coarse = [n for n in budgets if n <= 96]
by_grid = {
    name: [error_after(ss.unipc(sde, grid(sde, n), order=2)) for n in coarse] for name, (grid, _) in GRIDS.items()
}
figure, panel = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for name, (_, colour) in GRIDS.items():
    panel.loglog(coarse, by_grid[name], color=colour, lw=1.6, marker="o", ms=3)
panel.set(xlim=(6, 96), xlabel="evaluations of the score", ylabel="mean distance from the exact end point")
panel.set_title("One solver (UniPC 2), five grids")
panel.set_xticks(ticks := [6, 12, 24, 48, 96], [str(n) for n in ticks])
panel.minorticks_off()
panel.grid(alpha=0.15)
labelled(panel, {name: (by_grid[name][-1], GRIDS[name][1]) for name in GRIDS})
plt.show()

# %% [markdown]
# ## The reverse SDE
#
# Random paths have no exact end point, but their law has. Left: data from one Gaussian, $\mathcal N(0.7, 0.4^2)$; every
# solver is linear there, so mean and standard deviation of its result follow from the table **without sampling**, and
# slopes can be read (this is the weak order). Right: samples of the ring, by their sliced Wasserstein distance to exact
# samples; below the grey band (two exact sets) nothing can be told apart.

# %%
STOCHASTIC = {  # name: (solver, evaluations a step, stated weak order, colour, line)
    "Euler–Maruyama": (ss.euler_maruyama, 1, 1, INK, "-"),
    "reverse diffusion": (ss.reverse_diffusion, 1, 1, INK, "--"),
    "ancestral (DDPM)": (ss.ancestral, 1, 1, INK, ":"),
    "predictor–corrector": (ss.predictor_corrector, 2, 1, GREY, "-"),
    "DPM-Solver++ 2M SDE": (partial(ss.dpm_solver, order=2, eta=1.0), 1, 2, BLUE, "-"),
    "SEEDS 2, data": (partial(ss.solvers.seeds, noise_prediction=False), 2, 2, GREEN, "-"),
    "SA-Solver 3": (ss.solvers.sa_solver, 1, 2, ORANGE, "-"),
}
law_errors = {
    name: [law_error(sde, solver(sde, ss.log_snr_grid(sde, n // cost))) for n in budgets]
    for name, (solver, cost, *_) in STOCHASTIC.items()
}
law_orders = {name: float(np.log2(values[halves] / values[last])) for name, values in law_errors.items()}

sampled_budgets = (6, 12, 24, 48, 96) if full else (6, 24, 96)
samples, seeds = (20_000, 5) if full else (2000, 3)


def distances(draw):
    """Sliced Wasserstein distances of ``draw(key)`` to exact samples, one for each seed."""
    found = []
    for seed in range(seeds):
        key_draw, key_truth, key_slices = jax.random.split(jax.random.key(seed), 3)
        truth = ring.sample(key_truth, samples)
        found.append(float(ss.evaluation.sliced_wasserstein(key_slices, draw(key_draw), truth, projections=64)))
    return ss.mean_with_error(np.array(found))


clock = time.monotonic()
floor = distances(lambda key: ring.sample(key, samples))
sampled = {}
for name, (solver, cost, *_) in STOCHASTIC.items():
    tables = [ss.solvers.padded(solver(sde, ss.log_snr_grid(sde, n // cost)), history=4) for n in sampled_budgets]
    sampled[name] = [distances(partial(ss.sample, score=score, table=table, shape=(samples, 2))) for table in tables]
print(f"{seeds} seeds of {samples} samples; {time.monotonic() - clock:.0f} s")
print(f"{'sliced Wasserstein':20}" + "".join(f"{n:>20}" for n in sampled_budgets) + f"{'weak order':>12}")
for name, row in sampled.items():
    print(f"{name:20}" + "".join(f"{m:12.4f} ± {e:.4f}" for m, e in row) + f"{law_orders[name]:12.2f}")
print(f"{'exact samples':20}{floor[0]:12.4f} ± {floor[1]:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
for k, (name, (_, _, _, colour, line)) in enumerate(STOCHASTIC.items()):
    left.loglog(budgets, law_errors[name], line, color=colour, lw=1.6, marker="o", ms=3)
    mean, error = np.array(sampled[name]).T
    at = np.array(sampled_budgets) * (1 + 0.02 * (k - 3))
    right.errorbar(at, mean, error, color=colour, ls=line, lw=1.4, marker="o", ms=4, capsize=2)
left.set(xlabel="evaluations of the score", xlim=(6, 384), title="Error of mean and deviation, exact (one Gaussian)")
labelled(left, {name: (law_errors[name][-1], STOCHASTIC[name][3]) for name in STOCHASTIC})
right.axhspan(floor[0] - 2 * floor[1], floor[0] + 2 * floor[1], color=GREY, alpha=0.3, linewidth=0)
right.annotate("exact samples", (6, floor[0]), color=GREY, va="center", xytext=(0, -9), textcoords="offset points")
right.set(xlabel="evaluations of the score", xscale="log", yscale="log", title="Sliced Wasserstein distance (the ring)")
for panel, ticks in ((left, [6, 12, 24, 48, 96, 192, 384]), (right, sampled_budgets)):
    panel.set_xticks(ticks, [str(n) for n in ticks])
    panel.minorticks_off()
    panel.grid(alpha=0.15)
plt.show()

# %% [markdown]
# ## Which to choose
#
# For each budget the solver of the flow that came out best here, and what the library's `best_solver` proposes without
# knowing the score:

# %%
best = {n: min(FLOW, key=lambda name: errors[name][budgets.index(n)]) for n in (6, 12, 24, 48, 96)}
proposed = {n: error_after(ss.best_solver(sde, n)) for n in best}
print(f"{'evaluations':>12}  {'best of the table, log-SNR grid':34}{'error':>9}{'best_solver':>14}{'DDIM':>10}")
for n, name in best.items():
    k = budgets.index(n)
    print(f"{n:12}  {name:34}{errors[name][k]:9.1e}{proposed[n]:14.1e}{errors['DDIM'][k]:10.1e}")

# %% [markdown]
# * **Likelihoods, latents, interpolation** need the flow itself: a solver of high order, or `probability_flow`, whose
#   steps are adaptive.
# * **Samples in few evaluations** (5 to 50): `best_solver`; by hand, UniPC or DPM-Solver++ 2M on the log-SNR or angle
#   grid.
# * **Samples from a score that is not exact**, with evaluations to spare: the reverse SDE; its noise forgets the errors
#   that the flow carries along. In the figure SA-Solver needs about half of Euler–Maruyama's evaluations from 12 on,
#   and fails with 6.
# * A network's own error is a floor below which no solver gets: measure it before paying for order four.
#
# [All solvers with their stated and measured orders](../benchmarks/solvers.md) are in the benchmarks.

# %%
facts = {
    "reference_error": reference_error,
    "orders": [[name, FLOW[name][2], measured[name]] for name in FLOW],
    "errors": [[name, *errors[name]] for name in FLOW],
    "law_orders": [[name, STOCHASTIC[name][2], law_orders[name]] for name in STOCHASTIC],
    "floor": list(floor),
    "sampled": [[name, *map(list, sampled[name])] for name in STOCHASTIC],
    "proposed": [[n, proposed[n], errors["DDIM"][budgets.index(n)]] for n in proposed],
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
