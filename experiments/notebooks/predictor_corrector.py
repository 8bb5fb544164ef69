"""The source of predictor_corrector.ipynb: the comparison of Song et al.'s Table 1, on digits, with one network."""
# ruff: noqa: E402

# %% [markdown]
# # Predictor–corrector: Song et al.'s Table 1 on digits
#
# Song et al. (2021) compare, on CIFAR-10, three *predictors* (discretisations of the reverse SDE or of the probability
# flow), each alone in $N$ and in $2N$ steps, with Langevin *corrector* steps between $N$ predictor steps, and the
# corrector alone. There a corrector helps VE much and VP little, Euler's probability flow is poor for VE and repaired
# by a corrector, and correctors alone are worst of all.
#
# Here the same comparison takes minutes: small digits, few steps, and **one network for both SDEs**. What a network
# sees and predicts depends on the noise level $\sigma/\alpha$ alone, so the same parameters give a score of VE and a
# score of VP: what differs below is the process and the solver, never the training. The last section says which parts
# of the paper's table come out, and which do not. It takes about five minutes on two CPU cores.

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
from jax.tree_util import Partial

import scoresde as ss
from experiments.data import load
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREEN, GREY, use
from scoresde.solvers.table import Nodes, single_step

use()
started = time.monotonic()

# %% [markdown]
# ## The network
#
# scikit-learn's 8×8 digits. VE runs from $\sigma=0.01$ to 50, which is wider than the data by far, as in the paper.

# %%
digits = load.load("digits")
SDES = {"VE": ss.VE(sigma_min=0.01, sigma_max=50.0), "VP": ss.VP()}
network = ss.nn.ResidualMLP(digits.event_shape, width=256, depth=3, dropout=0.2, key=jax.random.key(0))
apply, params = ss.nn.functional(network)


def loss(params, key, batch):
    """Denoising score matching with fresh dequantisation noise, EDM's weight, and times that reach far out."""
    key_uniform, key_dropout, key_loss = jax.random.split(key, 3)
    y = digits.to_model(batch, jax.random.uniform(key_uniform, batch.shape))
    precond = ss.Preconditioner(SDES["VE"], digits.sigma_data)
    score = precond.score(partial(apply, params, key=key_dropout))
    return ss.denoising_score_matching(
        key_loss, SDES["VE"], score, y, weight=precond.karras_weight(), times=ss.log_normal(-1.0, 1.6)
    )


steps = 3000 if full else 300
schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 20, steps)
trainer = ss.Trainer(loss, optax.adamw(schedule, b2=0.99, weight_decay=1e-2), averages=(ss.training.warmed(0.998),))
clock = time.monotonic()
state, metrics = jax.block_until_ready(
    trainer.run(trainer.init(jax.random.key(1), params), jnp.asarray(digits.train), steps=steps, batch_size=128)
)
print(f"{steps} steps in {time.monotonic() - clock:.0f} s, loss {np.mean(metrics['loss'][-100:]):.3f}")
scores = {
    name: ss.Preconditioner(sde, digits.sigma_data).score(Partial(apply, state.ema)) for name, sde in SDES.items()
}

# %% [markdown]
# ## The samplers
#
# All on the grid of the paper, uniform in $t$. With $r=\alpha_t/\alpha_s$ and $v=\sigma_t^2-r^2\sigma_s^2$ for a step
# from $t$ to $s$, and $s_\theta$ the score at $x$:
#
# | | |
# |---|---|
# | ancestral | the Gaussian posterior of $x_s$ given $x_t$ and $\mathbb E[x_0\mid x_t]$ |
# | reverse diffusion | $x_s=(2-r)\,x+v\,s_\theta+\sqrt v\,z$ |
# | probability flow | $x_s=(2-r)\,x+\tfrac12v\,s_\theta$: half the score, no noise |
# | corrector | $x\leftarrow x+\epsilon\,s_\theta+\sqrt{2\epsilon}\,z$ with $\epsilon=2\,(\mathrm{snr}\,\sigma_t)^2$ |
#
# A solver is a table of numbers, so two that the library does not have take three lines each. A corrector moves $x$ and
# leaves $t$: alone, it runs through the noise levels, $2N$ of them.


# %%
def flow_euler(sde, grid):
    """Euler's probability flow as Song et al. discretise it: x_s = (2 - r) x + v score/2."""
    nodes = Nodes.of(sde, grid)
    r = nodes.alpha[:-1] / nodes.alpha[1:]
    v = nodes.sigma[:-1] ** 2 - (r * nodes.sigma[1:]) ** 2
    return single_step(nodes, a=2 - r, A=v / 2, s=0.0, c=0.0, d=1.0)


def corrector_only(sde, grid, snr):
    """Annealed Langevin dynamics: x <- x + eps score + sqrt(2 eps) z at each noise level."""
    nodes = Nodes.of(sde, grid)
    epsilon = 2 * (snr * nodes.sigma[:-1]) ** 2
    return single_step(nodes, a=1.0, A=epsilon, s=np.sqrt(2 * epsilon), c=0.0, d=1.0)


PREDICTORS = {"ancestral": ss.ancestral, "reverse diffusion": ss.reverse_diffusion, "probability flow": flow_euler}
N, snr = 24, 0.3


def tables(sde, predictor):
    """The three columns of the paper's table for one predictor: name -> table."""
    grid, fine = ss.uniform_grid(sde, N), ss.uniform_grid(sde, 2 * N)
    return {
        f"P, {N}": predictor(sde, grid),
        f"P, {2 * N}": predictor(sde, fine),
        f"PC, {N}": ss.predictor_corrector(sde, grid, predictor, snr=snr),
    }


# %% [markdown]
# ## The measure
#
# The unbiased estimate of the squared maximum mean discrepancy (MMD²) between samples and the training images, both
# with dequantisation noise: its expectation is zero for samples of the same law, so that no floor has to be known.
# Every number is a mean over sample seeds, with its standard error; all samplers get the same seeds. Held-out digits
# show what real images get.

# %%
count, seeds = (500, 4) if full else (160, 3)
shape = (count, *digits.event_shape)


def dequantised(key, levels):
    return digits.to_model(levels, jax.random.uniform(key, levels.shape))


real = dequantised(jax.random.key(2), digits.train)


def distance(score, table):
    """1000 MMD² from the training images, for every seed."""
    draws = (ss.sample(jax.random.key(100 + seed), score, table, shape) for seed in range(seeds))
    return 1000 * np.array([float(ss.evaluation.mmd(y, real)) for y in draws])


clock = time.monotonic()
held_out = 1000 * float(ss.evaluation.mmd(dequantised(jax.random.key(3), digits.held_out), real))
result = {}
for name, sde in SDES.items():
    for predictor_name, predictor in PREDICTORS.items():
        for column, each in tables(sde, predictor).items():
            result[name, predictor_name, column] = distance(scores[name], each)
    alone = corrector_only(sde, ss.uniform_grid(sde, 2 * N), snr)
    result[name, "corrector only", f"C, {2 * N}"] = distance(scores[name], alone)
columns = list(tables(SDES["VP"], ss.ancestral))
print(f"1000 MMD² ± standard error over {seeds} seeds of {count} samples, {time.monotonic() - clock:.0f} s")
print(f"{'':22}" + "".join(f"{column:>20}" for column in columns) + f"{f'C, {2 * N}':>20}")
print(f"{'evaluations':22}" + "".join(f"{n:>20}" for n in (N, 2 * N, 2 * N, 2 * N)))
for name in SDES:
    for predictor_name in PREDICTORS:
        row = [ss.mean_with_error(result[name, predictor_name, column]) for column in columns]
        print(f"{name}, {predictor_name:18}" + "".join(f"{mean:13.2f} ± {error:4.2f}" for mean, error in row))
    mean, error = ss.mean_with_error(result[name, "corrector only", f"C, {2 * N}"])
    print(f"{name}, {'corrector only':18}{'':60}{mean:13.2f} ± {error:4.2f}")
print(f"held-out digits {held_out:.2f}")


# %%
def values(panel, at, tops, numbers, colour):
    """Numbers in small type above their markers."""
    for x, top, number in zip(at, tops, numbers, strict=True):
        panel.annotate(
            f"{number:.1f}", (x, top), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=colour
        )


figure, panels = plt.subplots(1, 2, figsize=(11, 4.1), sharey=True, layout="constrained")
for panel, name in zip(panels, SDES, strict=True):
    for k, (column, colour, marker) in enumerate(zip(columns, (GREY, BLUE, ORANGE), "osD", strict=True)):
        mean, error = np.array([ss.mean_with_error(result[name, each, column]) for each in PREDICTORS]).T
        at, cost = np.arange(len(PREDICTORS)) + 0.27 * (k - 1), N if k == 0 else 2 * N
        style = {"color": colour, "fmt": marker, "label": f"{column} steps: {cost} evaluations"}
        panel.errorbar(at, mean, 2 * error, ms=7, capsize=3, **style)
        values(panel, at, mean + 2 * error, mean, colour)
    mean, error = ss.mean_with_error(result[name, "corrector only", f"C, {2 * N}"])
    style = {"color": GREEN, "fmt": "v", "label": f"C alone: {2 * N} evaluations"}
    panel.errorbar([len(PREDICTORS)], [mean], [2 * error], ms=7, capsize=3, **style)
    values(panel, [len(PREDICTORS)], [mean + 2 * error], [mean], GREEN)
    panel.set(yscale="log", title=name, xlim=(-0.5, len(PREDICTORS) + 0.5))
    panel.set_xticks(range(len(PREDICTORS) + 1), [*(each.replace(" ", "\n") for each in PREDICTORS), "corrector\nonly"])
    panel.grid(axis="y", alpha=0.2)
panels[0].set_ylabel("1000 MMD² from training images (log)")
panels[1].legend(loc="upper left", fontsize=8.5)
figure.suptitle(
    f"P: predictor alone, PC: with a Langevin corrector, C: corrector alone (bars: two standard errors, {seeds} seeds)"
)
plt.show()

# %% [markdown]
# ## What a corrector is worth
#
# At the price of one more evaluation a step, a corrector can be compared with the same predictor in as many steps
# (`P, N`: twice as cheap) or in as many evaluations (`P, 2N`). A factor above one is a gain. On the right, the strength
# of the corrector.

# %%
gains = {}
for name in SDES:
    for predictor_name in PREDICTORS:
        p, p2, pc = (result[name, predictor_name, column] for column in columns)
        for against, other in (("same steps", p), ("same evaluations", p2)):
            # Pairs share their seed; the standard error of log of a ratio of means, by the delta method.
            spread = np.std(other / other.mean() - pc / pc.mean(), ddof=1) / np.sqrt(seeds)
            gains[name, predictor_name, against] = float(other.mean() / pc.mean()), float(spread)
for (name, predictor_name, against), (gain, spread) in gains.items():
    print(f"{name}, {predictor_name:18} against {against:17}: {gain:7.2f} times, ± {100 * spread:.0f} %")

strengths = (0.1, 0.2, 0.3, 0.5) if full else (0.1,)
swept = {}
for name, sde in SDES.items():
    for predictor_name in ("reverse diffusion", "probability flow"):
        grid = ss.uniform_grid(sde, N)
        corrected = [ss.predictor_corrector(sde, grid, PREDICTORS[predictor_name], snr=each) for each in strengths]
        swept[name, predictor_name] = [ss.mean_with_error(distance(scores[name], each)) for each in corrected]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9), width_ratios=(1, 1.1), layout="constrained")
for i, (name, colour) in enumerate(zip(SDES, (ORANGE, BLUE), strict=True)):
    for k, (against, filled) in enumerate((("same steps", colour), ("same evaluations", "none"))):
        gain, spread = np.array([gains[name, each, against] for each in PREDICTORS]).T
        at = np.arange(len(PREDICTORS)) + 0.3 * (i - 0.5) + 0.12 * (k - 0.5)
        left.errorbar(
            at, gain, 2 * spread * gain, fmt="o", ms=7, capsize=3, color=colour, mfc=filled, label=f"{name}, {against}"
        )
left.axhline(1, color=GREY, lw=1)
left.set(yscale="log", ylabel="distance of P over that of PC", title="What a corrector gains", xlim=(-0.5, 2.5))
left.set_xticks(range(len(PREDICTORS)), [each.replace(" ", "\n") for each in PREDICTORS])
left.legend(loc="upper left")
for (name, predictor_name), row in swept.items():
    mean, error = np.array(row).T
    line = "-" if predictor_name == "probability flow" else "--"
    right.errorbar(
        strengths,
        mean,
        2 * error,
        fmt="o",
        ls=line,
        ms=4,
        capsize=2,
        color=ORANGE if name == "VE" else BLUE,
        label=f"{name}, {predictor_name}",
    )
right.set(xscale="log", yscale="log", xlabel="snr of the corrector", ylabel="1000 MMD²", title="How strong a corrector")
right.set_xticks(strengths, [f"{each:g}" for each in strengths])
right.minorticks_off()
right.legend()
plt.show()

# %%
shown = {
    f"P, {N}": lambda sde, predictor: predictor(sde, ss.uniform_grid(sde, N)),
    f"PC, {N}": lambda sde, predictor: ss.predictor_corrector(sde, ss.uniform_grid(sde, N), predictor, snr=snr),
}
figure, panels = plt.subplots(1, 5, figsize=(13, 2.9), layout="constrained")
pictures = {"real": digits.held_out[:36]}
for name, sde in SDES.items():
    for column, make in shown.items():
        y = ss.sample(jax.random.key(7), scores[name], make(sde, flow_euler), shape)
        pictures[f"{name}, flow, {column}"] = digits.from_model(y[:36])
for panel, (name, images) in zip(panels, pictures.items(), strict=True):
    tiles = np.pad(np.asarray(images).reshape(36, 8, 8), ((0, 0), (1, 1), (1, 1))).reshape(6, 6, 10, 10)
    panel.imshow(tiles.transpose(0, 2, 1, 3).reshape(60, 60), cmap="gray_r", vmin=0, vmax=16)
    panel.set_title(name, color=INK)
    panel.set_xlim(-4, 63)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## What comes out, and what does not
#
# *Comes out.* Euler's probability flow is the poorest predictor, and poorer for VE (14.5) than for VP (8.6); a
# corrector repairs it, and gains more for VE: the distance falls 20 times for VE, below that of the flow in twice the
# steps, and 6 times for VP. Correctors alone are far worse than anything for VE.
#
# *Comes out in part.* For predictors with noise of their own the corrector gains little over the same steps: with the
# ancestral predictor 1.43 times (± 13 %) for VE and 1.24 (± 16 %) for VP, which these errors cannot tell apart; with
# reverse diffusion it does VE harm (0.81 ± 6 %).
#
# *Does not come out.* For these predictors a second evaluation is worth more as a second, shorter step than as a
# corrector. In the paper doubling the steps changed nothing at $N=1000$: there the error of the network was left, which
# a corrector can mend; here, in 24 steps and with an easily learned score, it is the error of the step. And where the
# paper's VE and VP networks were trained apart, these are one.

# %%
facts = {
    "result": [[*names, *ss.mean_with_error(values)] for names, values in result.items()],
    "held_out": held_out,
    "gains": [[*names, *value] for names, value in gains.items()],
    "swept": [[*names, *map(list, rows)] for names, rows in swept.items()],
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
