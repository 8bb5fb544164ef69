"""The source of anomalies.ipynb: anomaly detection with a likelihood, and where that misleads."""
# ruff: noqa: E402

# %% [markdown]
# # Anomalies, and where likelihood misleads
#
# A model that knows $\log p(x)$ seems made for finding anomalies: what is improbable is strange. It is not so simple,
# and this notebook shows why with a law that is known exactly, then on images:
#
# 1. *The mode is atypical.* In many dimensions the point of highest density is one that never occurs.
# 2. *Every statistic has a blind spot.* Surprise, typicality and score norms, each beside a point that it cannot see.
# 3. *Digits* against seven kinds of other images: the area under the ROC curve of each statistic, with its error.
# 4. *One photograph against another.* A model of one finds the other more probable (Nalisnick et al. 2019).

# %% [install]
from experiments.notebooks.install import BUDGET, full

# isort: split

# %%
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import scoresde as ss
from experiments.data import load
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import COLOURS, GREEN, GREY, use
from experiments.models.build import build
from experiments.models.flags import Config

use()
started = time.monotonic()
print(f"scoresde {ss.__version__}, jax {jax.__version__} on {jax.devices()[0].platform}, budget: {BUDGET}")

# %% [markdown]
# ## 1. The mode is atypical
#
# Of $\mathcal N(0, I)$ in $D$ dimensions the density is highest at 0. A sample has $\lVert x\rVert^2 \sim \chi^2_D$, so
# that its radius is $\sqrt D \pm 0.7$ and its surprise $-\log p(x) = \frac D2\log 2\pi + \frac12\lVert x\rVert^2$ lies
# $\frac D2 \pm \sqrt{D/2}$ nats above that of the mode. Density is not probability: there is next to no volume near 0.

# %%
dims, count = (1, 2, 10, 50, 200, 1000), 4000 if full else 1000
above = []  # surprise of samples minus that of the mode
for d in dims:
    law = ss.GaussianMixture(np.zeros((1, d)), np.ones(1), np.ones(1))
    above.append(np.asarray(law.log_prob(jnp.zeros((1, d))) - law.log_prob(law.sample(jax.random.key(d), count))))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
low, middle, high = np.quantile(above, [0.01, 0.5, 0.99], axis=1)
left.fill_between(dims, low, high, color=BLUE, alpha=0.25, lw=0, label="98 % of samples")
left.plot(dims, middle, "o-", color=BLUE, ms=4, label="median sample")
left.axhline(0.01, color=ORANGE, lw=1.5, label="the mode, 0 (drawn at 0.01)")
left.set(xscale="log", yscale="log", ylim=(6e-3, 1e3), xlabel="dimensions", title="How much less dense samples are")
left.set_ylabel("nats above the surprise of the mode")
left.legend(loc="upper left")
for d, excess, colour in zip(dims[2:], above[2:], COLOURS, strict=False):
    right.hist(np.sqrt(2 * excess / d), bins=40, density=True, histtype="stepfilled", color=colour, alpha=0.6)
    right.text(1.03 + 0.5 / np.sqrt(d), 0.38 * np.sqrt(d), f"D = {d}", color=colour, va="center")
right.axvline(0, color=ORANGE, lw=1.5)
right.text(0.02, 17, "the mode", color=ORANGE, va="top")
right.set(xlim=(0, 1.9), xlabel=r"radius$\,/\sqrt{D}$", ylabel="density", title="Where samples are")
plt.show()

# %% [markdown]
# ## 2. Every statistic has a blind spot
#
# Three answers to "does $x$ belong to this law?", each the larger the stranger:
#
# * **surprise**, $-\log p(x)$;
# * **typicality**, $\lvert -\log p(x) - H\rvert$ with the entropy $H$: too probable is as strange as too improbable
#   (Nalisnick et al. 2019), `ss.evaluation.typicality_test`;
# * **score norms**, $\lVert\sigma_t\nabla\log p_t(\alpha_t x)\rVert$ at several noise levels, and how far their
#   logarithms are from those of samples, in units of their covariance (Mahmood et al. 2021),
#   `ss.evaluation.score_norms` and `ss.evaluation.mahalanobis`.
#
# The p-value below is the share of exact samples that are at least as strange: 0.001 is a clear alarm, 0.5 is none.

# %%
D = 200
LAWS = {"round": np.ones(D), "flat": np.where(np.arange(D) < D // 2, 1.0, 0.1)}  # standard deviations
mode, spike = np.full(D, 1e-3), np.eye(D)[0] * np.sqrt(D)
POINTS = {  # (law, point)
    "round: the mode": ("round", mode),
    "round: 14 sigma in one coordinate, 0 in the others": ("round", spike),
    "flat: the mode": ("flat", mode),
    "flat: 14 sigma in one wide coordinate, 0 in the others": ("flat", spike),
}
ve = ss.VE(sigma_min=0.01, sigma_max=20.0)
levels = ss.log_snr_grid(ve, 5)
p_values = {}
for name, stds in LAWS.items():
    law = ss.GaussianMixture(np.zeros((1, D)), stds[None], np.ones(1))
    x = np.asarray(law.sample(jax.random.key(10), 2000))
    here = [point for which, point in POINTS.values() if which == name]
    log_prob = np.asarray(law.log_prob(np.concatenate([x, here])))
    norms = np.log(ss.evaluation.score_norms(ve, law.score(ve), np.concatenate([x, here]), levels))
    entropy = -np.mean(log_prob[: len(x)])
    strange = {"surprise": -log_prob, "typicality": np.abs(-log_prob - entropy)}
    strange["score norms"] = ss.evaluation.mahalanobis(norms[: len(x)], norms)
    p = {k: np.mean(v[None, : len(x)] >= v[len(x) :, None], axis=1) for k, v in strange.items()}
    for row, point in enumerate(point for point, (which, _) in POINTS.items() if which == name):
        p_values[point] = {k: float(v[row]) for k, v in p.items()}
print(f"{'p-value':56}" + "".join(f"{name:>13}" for name in ("surprise", "typicality", "score norms")))
for point, p in p_values.items():
    print(f"{point:56}" + "".join(f"{value:13.3f}" for value in p.values()))

# %% [markdown]
# *Round* is $\mathcal N(0, I)$; *flat* has standard deviations 1 in half of its 200 dimensions and 0.1 in the others.
# Surprise calls the mode the most normal point of all. Typicality sees the mode, but not a point whose density happens
# to be that of a sample. Score norms see that one where the coordinates differ in scale, and are blind where
# the radius is all there is to know. No statistic of a density sees everything: a density does not know what you call
# strange.
#
# ## 3. Digits against other images
#
# A network is trained on the 1,500 training digits. Half of the held-out digits say what is usual (the entropy, the
# norms of the score); the other half is to be told from images of other kinds.

# %%
digits = load.load("digits")
steps, width = (3000, 256) if full else (200, 128)


def trained(data, config):
    """The model of ``python -m experiments.run`` for this data, and its score after training."""
    model, clock = build(config.resolve(data), data), time.monotonic()
    state, _ = model.trainer.run(model.init(), data.train, steps=steps, batch_size=128)
    jax.block_until_ready(state)
    print(f"{data.name[:24]}: {config.optimiser.steps} steps in {time.monotonic() - clock:.0f} s")
    return model, model.score(state.ema)


digits_model, digits_score = trained(digits, Config.of(steps=steps, width=width))

# %%
rng = np.random.default_rng(0)
china, flower = (np.rint(image.mean(axis=2)).astype(np.uint8) for image in load_sample_images().images)


def patches(image):
    """All 8 x 8 patches of a grey image that do not overlap, in random order: (n, 8, 8, 1)."""
    height, width = (8 * (n // 8) for n in image.shape)
    cut = image[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
    return np.random.default_rng(1).permutation(cut.reshape(-1, 8, 8, 1))


usual, normal = np.split(digits.held_out[: 296 if full else 120], 2)
n = len(normal)


def blurred(images):
    """Each pixel half itself and half its four neighbours, rounded to a level."""
    p = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:]
    return np.rint(images / 2 + around / 8).astype(int)


OTHERS = {
    "noise": rng.integers(0, 17, normal.shape),  # every level as likely
    "photograph": patches(china)[:n] // 15,  # 8 x 8 pixels of a photograph, in 17 levels
    "upside down": normal[:, ::-1, ::-1],
    "mirrored": normal[:, :, ::-1],
    "half contrast": normal // 2,
    "blurred": blurred(normal),
    "mean of eight": np.rint(normal[rng.integers(0, n, (n, 8))].mean(axis=1)).astype(int),
}


def log_probs(model, score, data, images, probes):
    """log p of integer images made continuous by uniform noise, in nats: 40 evaluations on a fixed grid."""
    y = data.to_model(images, np.random.default_rng(2).random(images.shape))
    grid = ss.angle_grid(model.sde, 39, rho=0.28 * data.sigma_data, share=0.25)
    found = ss.table_log_likelihood(
        jax.random.key(11), model.sde, score, y, grid, divergence=ss.hutchinson(probes), estimate_error=False
    )
    return np.asarray(found.log_prob)


clock = time.monotonic()
images = np.concatenate([usual, normal, *OTHERS.values()])
parts = np.cumsum([n, n, *(len(x) for x in OTHERS.values())])[:-1]
log_prob = np.split(log_probs(digits_model, digits_score, digits, images, 2), parts)
times = ss.log_snr_grid(digits_model.sde, 11)[1:-1]  # ten levels between noise and data
norms = np.split(
    np.log(ss.evaluation.score_norms(digits_model.sde, digits_score, digits.to_model(images), times)), parts
)
nearest = NearestNeighbors(n_neighbors=1).fit(np.asarray(digits.train, float).reshape(-1, 64))
neighbour = np.split(nearest.kneighbors(images.reshape(-1, 64).astype(float))[0][:, 0], parts)
print(f"{len(images)} likelihoods, norms and nearest neighbours in {time.monotonic() - clock:.0f} s")

tested = [
    ss.evaluation.typicality_test(jax.random.key(12), log_prob[0], lp[:, None], alpha=0.05) for lp in log_prob[1:]
]
STATISTICS = {  # of the normal digits, then of each other kind
    "surprise": [-lp for lp in log_prob[1:]],
    "typicality": [test.statistic for test in tested],
    "score norms": [ss.evaluation.mahalanobis(norms[0], each) for each in norms[1:]],
    "nearest neighbour": neighbour[1:],  # distance to the nearest training image: no model at all
}


def auc(normal, strange, bootstraps=300):
    """Area under the ROC curve, and its standard error by a bootstrap over both sets."""
    rng = np.random.default_rng(3)

    def area(normal, strange):
        return roc_auc_score(np.repeat([0, 1], [len(normal), len(strange)]), np.concatenate([normal, strange]))

    again = [area(rng.choice(normal, len(normal)), rng.choice(strange, len(strange))) for _ in range(bootstraps)]
    return float(area(normal, strange)), float(np.std(again, ddof=1))


areas = {k: {kind: auc(v[0], v[1 + i]) for i, kind in enumerate(OTHERS)} for k, v in STATISTICS.items()}
print(f"\n{'area under the ROC curve':26}" + "".join(f"{name:>20}" for name in areas))
for kind in OTHERS:
    print(f"{kind:26}" + "".join(f"{areas[k][kind][0]:13.3f} ± {areas[k][kind][1]:.3f}" for k in areas))
print(f"called atypical at 5 %: normal digits {100 * tested[0].atypical.mean():.0f} %")

# %%
figure = plt.figure(figsize=(13, 5.6), layout="constrained")
sides: Any = figure.subfigures(1, 2, width_ratios=(1, 1.35))
left, right = sides
for line, (kind, x) in zip(left.subplots(8, 6), {"digits": normal, **OTHERS}.items(), strict=True):
    for panel, image in zip(line, x, strict=False):
        panel.imshow(image[:, :, 0], cmap="gray_r", vmin=0, vmax=16)
        panel.set(xticks=[], yticks=[])
    line[0].set_ylabel(kind, rotation=0, ha="right", va="center")
panel = right.subplots()
kinds, offsets = list(OTHERS)[::-1], np.linspace(0.27, -0.27, len(areas))
for offset, (name, row), colour in zip(offsets, areas.items(), (ORANGE, GREEN, BLUE, INK), strict=True):
    mean, error = np.array([row[kind] for kind in kinds]).T
    panel.errorbar(mean, np.arange(len(kinds)) + offset, xerr=error, fmt="o", ms=5, color=colour, capsize=2, label=name)
panel.axvline(0.5, color=GREY, lw=1, ls=":")
panel.set_yticks(range(len(kinds)), kinds)
panel.set(
    xlabel="area under the ROC curve (0.5: chance, 0: the stranger, the more normal it seems)", xlim=(-0.03, 1.03)
)
panel.legend(loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.1))
for k in range(len(kinds) - 1):
    panel.axhline(k + 0.5, color=GREY, lw=0.4)
plt.show()

# %%
figure, panel = plt.subplots(figsize=(9.5, 3.2), layout="constrained")
kinds = ("digits", *OTHERS)
bits = {k: ss.bits_per_dim(lp, 64, digits.bin_width) for k, lp in zip(kinds, log_prob[1:], strict=True)}
low, high = np.quantile(np.concatenate(list(map(np.asarray, bits.values()))), [0, 0.7])
bins = np.linspace(low, high, 30)
panel.hist(np.asarray(bits["digits"]), bins=bins, color=GREY, alpha=0.6, label="digits")
for kind, colour in (("blurred", GREEN), ("mean of eight", ORANGE), ("upside down", BLUE)):
    panel.hist(np.asarray(bits[kind]), bins=bins, histtype="step", lw=1.8, color=colour, label=kind)
panel.set(xlabel="bits per dimension", ylabel="images")
panel.set_title("Surprise alone: digits and images that are none overlap")
panel.set_ylim(0, 1.2 * panel.get_ylim()[1])
panel.legend(ncols=5, loc="upper right")
plt.show()

# %% [markdown]
# Noise and patches of a photograph are found by anything. In the other rows no column is the best everywhere. Score
# norms and surprise find blurred images (0.998 and 0.986), which the nearest neighbour nearly misses (0.68 ± 0.03). The
# nearest neighbour knows no density and needs no training; it finds half the contrast best (0.993, the others 0.87 to
# 0.92), and digits upside down or mirrored as well as surprise does (0.89 to 0.91), where score norms are behind (0.78
# and 0.83). Typicality is no better than surprise in any row here: these images are, if anything, too improbable, not
# too probable. A model-free baseline is the line that an anomaly score has to beat.
#
# ## 4. One photograph against another
#
# scikit-learn brings two photographs: a Chinese temple among trees, whose sky is left out here so that there is fine
# detail everywhere, and a flower before a blurred background. A network is trained on 8×8 grey patches of the first;
# then patches of the first that it has not seen are compared with patches of the second, of which it has seen nothing.

# %%
with tempfile.TemporaryDirectory() as folder:
    path, below = Path(folder) / "temple.npz", patches(china[200:])
    np.savez(path, train=below[:1760], test=below[1760:])
    temple = load.load(f"npz:{path}")
    config = Config.of(data=f"npz:{path}", network="mlp", steps=steps, width=width, batch=128)
    temple_model, temple_score = trained(temple, config)

m = 240 if full else 100
GROUPS = {
    "seen in training": np.asarray(temple.train[:m]),
    "reference": temple.held_out[:m],
    "the temple": temple.held_out[-m:],
    "the flower": patches(flower)[:m],
}
clock = time.monotonic()
found = log_probs(temple_model, temple_score, temple, np.concatenate(list(GROUPS.values())), 2)
found = dict(zip(GROUPS, np.split(found, len(GROUPS)), strict=True))
print(f"{len(GROUPS) * m} likelihoods in {time.monotonic() - clock:.0f} s\n")
photograph_bits = {name: ss.bits_per_dim(lp, 64, temple.bin_width) for name, lp in found.items()}
for name, bits in photograph_bits.items():
    mean, error = ss.mean_with_error(bits)
    print(f"{name:18}{mean:7.3f} ± {error:.3f} bits/dim")

typical = {
    name: ss.evaluation.typicality_test(jax.random.key(13), found["reference"], found[name][:, None]).statistic
    for name in ("the temple", "the flower")
}
photograph_areas = {
    "surprise": auc(-found["the temple"], -found["the flower"]),
    "typicality": auc(typical["the temple"], typical["the flower"]),
}
size = 10  # patches that are known to come from one photograph
together = {
    name: ss.evaluation.typicality_test(
        jax.random.key(14), found["reference"], found[name][: m // size * size].reshape(-1, size), alpha=0.05
    ).atypical.mean()
    for name in ("the temple", "the flower")
}
for name, (area, error) in photograph_areas.items():
    print(f"area under the ROC curve of {name:12}{area:6.3f} ± {error:.3f}")
print("groups of 10 called atypical at 5 %: " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in together.items()))

# %%
figure = plt.figure(figsize=(13, 3.6), layout="constrained")
halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.5))
left, right = halves
for side, (name, colour) in zip(left.subfigures(1, 2), (("the temple", INK), ("the flower", ORANGE)), strict=True):
    for panel, image in zip(side.subplots(5, 5).flat, GROUPS[name], strict=False):
        panel.imshow(image[:, :, 0], cmap="gray", vmin=0, vmax=255)
        panel.axis("off")
    side.suptitle(name, color=colour)
panel = right.subplots()
low, high = np.quantile(np.concatenate(list(photograph_bits.values())), [0.002, 0.995])
bins = np.linspace(low, high, 50)
for name, colour in (("the temple", INK), ("the flower", ORANGE)):
    panel.hist(np.asarray(photograph_bits[name]), bins=bins, histtype="stepfilled", color=colour, alpha=0.5, label=name)
panel.set(xlabel="bits per dimension under the model of the temple", ylabel="patches")
panel.set_title(f"Surprise tells them apart with an area of {photograph_areas['surprise'][0]:.2f}")
panel.legend()
plt.show()

# %% [markdown]
# A smooth patch is cheap to describe: under a model of detailed ones it lies nearer the mode than they do themselves.
# Surprise tells the photographs apart with an area of 0.22 ± 0.02, that is, mostly the wrong way round: the unknown one
# is the *more* normal. This is not a failure of training but section 1 again, and it was no better after the 200 steps
# of the smoke budget (0.08 ± 0.02). Typicality asks on both sides, since too little surprise is strange too. It cannot
# tell single patches (0.44 ± 0.03), because those of the temple differ as much among themselves, from shade to twigs.
# Of several patches together the mean has a smaller spread: of groups of ten it called 54 % of the flower's atypical,
# and 8 % of the temple's.
#
# **What to do.** Report more than one statistic, with the errors of their areas; put a model-free baseline beside them;
# choose between them on anomalies of the kind that you expect, since no density knows what you mean by strange; and if
# you can name the alternative, model it too: a likelihood *ratio* of two models has the guarantee that the likelihood
# of one has not (Neyman and Pearson 1933).

# %%
facts = {
    "above_the_mode": [float(np.median(excess)) for excess in above],
    "p_values": p_values,
    "areas": areas,
    "normal_called_atypical": float(tested[0].atypical.mean()),
    "photograph_bits": {name: ss.mean_with_error(bits) for name, bits in photograph_bits.items()},
    "photograph_areas": photograph_areas,
    "groups_called_atypical": {name: float(share) for name, share in together.items()},
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
