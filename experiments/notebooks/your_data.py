"""The source of your_data.ipynb: a table, an array or a folder of images, from the command line and from Python."""
# ruff: noqa: E402

# %% [markdown]
# # Your own data
#
# A CSV file, an array or a folder of pictures: one command trains a score network on it, draws samples, measures
# the likelihood of the rows it held out, and writes a report. This notebook goes that way with a table of which the
# density is known, so that every number can be held against the truth, and then does the same from Python.
#
# 1. *The table*, and what the reader makes of its skewed, correlated columns.
# 2. *One command* to train and evaluate; the likelihood beside the exact one and that of a Gaussian.
# 3. *The same from Python*, in ten lines.
# 4. *Samples*, and *missing cells* filled in by draws from their law given the rest of the row.
# 5. *Arrays and pictures*, and where all the files are.
#
# To use your own table, replace `river.csv` by its path: a comma, semicolon or tab between numbers, one header row at
# most, columns that are not rounded to a few values.

# %% [install]
from experiments.notebooks.install import BUDGET, full

# isort: split

# %%
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.stats import multivariate_normal

import scoresde as ss
from experiments.data import load
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREY, use
from experiments.models.build import build
from experiments.models.flags import Config

use()
started = time.monotonic()
home = tempfile.TemporaryDirectory(prefix="scoresde-")  # all files of this notebook, gone when it is closed
folder = Path(home.name)
print(f"scoresde {ss.__version__}, jax {jax.__version__} on {jax.devices()[0].platform}, budget: {BUDGET}")


def run(*words):
    """``python -m WORDS`` as in a terminal, in the notebook's folder; shows what it prints."""
    print("$ python -m " + " ".join(words), flush=True)
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
    )
    print(done.stdout + ("" if done.returncode == 0 else done.stderr), flush=True)
    done.check_returncode()


# %% [markdown]
# ## 1. A table
#
# Rain, discharge, temperature and oxygen of a river that does not exist, in three kinds of weather. Behind the columns
# $x$ is a mixture of Gaussians $w$, mixed by a matrix, $z = M w$, and then bent column by column, $x_j = g_j(z_j)$: two
# columns are long-tailed, one is cut off above. So the exact density is
# $\log p(x) = \log p_w(M^{-1} z) - \log\lvert\det M\rvert - \sum_j \log\lvert g_j'(z_j)\rvert$.

# %%
NAMES = ("rain", "discharge", "temperature", "oxygen")
weather = ss.GaussianMixture(  # w: dry, changeable, flood
    means=np.array([[-1.2, -0.8, 0.9, 0.3], [0.3, 0.0, -0.2, -0.4], [1.6, 1.5, -1.0, 0.6]]),
    stds=np.array([[0.5, 0.4, 0.6, 0.4], [0.6, 0.5, 0.9, 0.5], [0.4, 0.6, 0.4, 0.3]]),
    weights=np.array([0.5, 0.35, 0.15]),
)
MIX = np.array([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, -0.3, 0.9, 0.0], [-0.2, 0.4, 0.5, 0.8]])  # M


def columns(z):
    """x of z, both (n, 4)."""
    bent = 5 * np.exp(0.9 * z[:, 0]), 20 * np.exp(0.7 * z[:, 1]), 12 + 6 * z[:, 2], 14 - 4 * np.exp(0.35 * z[:, 3])
    return np.stack(bent, axis=1)


def latent(x):
    """z of x, the inverse of ``columns``."""
    rain, discharge, temperature, oxygen = x.astype(np.float64).T
    straight = np.log(rain / 5) / 0.9, np.log(discharge / 20) / 0.7, (temperature - 12) / 6
    return np.stack([*straight, np.log((14 - oxygen) / 4) / 0.35], axis=1)


def exact_log_prob(x):
    """log p(x) in nats."""
    rain, discharge, _, oxygen = x.astype(np.float64).T
    slopes = np.log(0.9 * rain) + np.log(0.7 * discharge) + np.log(6) + np.log(0.35 * (14 - oxygen))
    w = latent(x) @ np.linalg.inv(MIX).T
    return np.asarray(weather.log_prob(w)) - np.linalg.slogdet(MIX)[1] - slopes


def write(path, x):
    """A CSV file with a header; NaN becomes an empty cell."""
    lines = [",".join("" if np.isnan(value) else f"{value:.7g}" for value in row) for row in x]
    path.write_text("\n".join([",".join(NAMES), *lines]) + "\n")


n = 5000 if full else 1000
rows = columns(np.asarray(weather.sample(jax.random.key(0), n), np.float64) @ MIX.T)
write(folder / "river.csv", rows)
print("".join((folder / "river.csv").read_text().splitlines(keepends=True)[:4]))

river = load.load(f"csv:{folder / 'river.csv'}")  # what the command line reads, too
print(river.describe().replace(str(folder), "."))

# %% [markdown]
# A table is standardised, each column is unskewed by a monotone power map, and the columns are made uncorrelated; the
# network sees the result, and every log-density is given back per unit of your columns, by the logarithm of the exact
# determinant. A tenth of the rows is held out and never used for any of this.

# %%
train = np.asarray(river.train, np.float64)
seen = np.asarray(river.to_model(train))
figure, panels = plt.subplots(2, 4, figsize=(12, 4.2), layout="constrained")
normal = np.linspace(-4, 4, 100)
for j, (above, below) in enumerate(panels.T):
    above.hist(train[:, j], bins=50, range=tuple(np.quantile(train[:, j], [0, 0.99])), color=GREY)
    above.set(title=NAMES[j], yticks=[])
    below.hist(seen[:, j], bins=50, range=(-4, 4), density=True, color=BLUE, alpha=0.8)
    below.plot(normal, np.exp(-(normal**2) / 2) / np.sqrt(2 * np.pi), color=INK, lw=1)
    below.set(xlim=(-4, 4), yticks=[])
panels[0, 0].set_ylabel("as in the file")
panels[1, 0].set_ylabel("as the network sees it")
figure.suptitle(
    "The columns, before and after; the line is N(0, 1), and what it leaves over is for the network to learn"
)
plt.show()

# %% [markdown]
# ## 2. One command
#
# `--likelihood-probes 4` makes the divergence exact in four dimensions; without `--steps` the preset for small tables
# is 20,000, which takes a few minutes. Stop it whenever you like: the same command continues.

# %%
steps = 3000 if full else 300
size = () if full else ("--width", "64", "--samples", "100", "--likelihood-examples", "60")
run(
    "experiments.run",
    "--data",
    "csv:river.csv",
    "--workdir",
    "runs/river",
    "--steps",
    str(steps),
    "--likelihood-probes",
    "4",
    *size,
)

# %%
report = json.loads((folder / "runs/river/report.json").read_text())["likelihood"]
with np.load(folder / "runs/river/arrays.npz") as stored:
    held_out, log_prob = stored["real"], stored["log_prob"]
held_out = held_out[: len(log_prob)]
truth = exact_log_prob(held_out)


def gaussian_log_prob(train, x):
    """log p(x) under the Gaussian with the mean and covariance of the training rows."""
    covariance: Any = np.cov(train.T)
    return multivariate_normal(train.mean(axis=0), covariance).logpdf(x)


seen_held_out, log_det = np.asarray(river.to_model(held_out)), river.log_det(held_out)
found = {
    "the truth": truth,
    "score network": log_prob,
    "Gaussian of unskewed columns": gaussian_log_prob(seen, seen_held_out) + log_det,
    "Gaussian": gaussian_log_prob(train, held_out.astype(np.float64)),
}
print(f"{len(truth)} rows held out, nats a row; below the truth: of the same rows, so with a smaller error")
below = {name: ss.mean_with_error(truth - values) for name, values in found.items()}
for name, values in found.items():
    mean, error = ss.mean_with_error(values)
    print(f"{name:30}{mean:8.3f} ± {error:.3f}{below[name][0]:10.3f} ± {below[name][1]:.3f}")
print(f"the report says {report['mean']:.3f} ± {report['std_error']:.3f} {report['unit']}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(1, 1.3))
limits = np.quantile(truth, [0, 1]) + np.array([-0.5, 0.5])
for name, colour in (("Gaussian", GREY), ("score network", BLUE)):
    left.scatter(truth, found[name], s=8, color=colour, alpha=0.6, linewidths=0, label=name)
left.plot(limits, limits, color=ORANGE, lw=1.2, label="the truth")
left.set(xlabel="exact log-density, nats", ylabel="log-density", xlim=limits, ylim=(limits[0] - 3, limits[1] + 0.5))
left.set_title("Held-out rows")
left.legend(loc="lower right")
names = list(below)[:0:-1]
means, errors = np.array([below[name] for name in names]).T
right.barh(names, means, xerr=errors, color=[BLUE if name == "score network" else GREY for name in names], capsize=3)
right.set(xlabel="nats a row below the truth: the Kullback–Leibler divergence", title="What each model does not know")
plt.show()

# %% [markdown]
# The mean of $\log p - \log\hat p$ over fresh rows estimates the Kullback–Leibler divergence from the truth to the
# model; it cannot be negative but by chance. A Gaussian fitted to raw columns pays for their skew, one fitted to the
# unskewed columns for the three kinds of weather, and the network for what it had not the rows or steps to learn.
#
# ## 3. The same from Python
#
# The data object, the model that the presets describe, a compiled training loop, samples in 20 evaluations, and the
# likelihood, with `log_det` to give it back in the units of the file. The folder of the run above is opened in one
# line, `experiments.models.saved.open_run("runs/river")`.

# %%
data = load.load(f"csv:{folder / 'river.csv'}")
config = Config.of(data=data.name, steps=steps, width=256 if full else 64).resolve(data)
model = build(config, data)
state, _ = model.trainer.run(model.init(), data.train, steps=steps, batch_size=256)
score = model.score(state.ema)  # (x, t) -> ∇ log p_t(x), in the units of the model
y = ss.sample(jax.random.key(1), score, ss.best_solver(model.sde, 20), (1000, 4))
drawn = data.from_model(y)  # in those of the file
x = data.to_model(held_out)
result = ss.log_likelihood(jax.random.key(2), model.sde, score, x, divergence=ss.exact_divergence, rtol=1e-4, atol=1e-4)
python_mean, python_error = ss.mean_with_error(np.asarray(result.log_prob) + data.log_det(held_out))
print(f"{python_mean:.3f} ± {python_error:.3f} nats a row, where the command had {report['mean']:.3f}")

# %% [markdown]
# ## 4. Samples and missing cells
#
# Any solver, any number of samples, from the folder of the run. Here as points: samples that fall where rows of
# the file do.

# %%
run(
    "experiments.sample",
    "--checkpoint",
    "runs/river",
    "--n",
    "1000",
    "--solver",
    "unipc",
    "--evaluations",
    "20",
    "--out",
    "samples.npz",
)
samples = np.load(folder / "samples.npz")["arr_0"]

figure, panels = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for panel, (i, j) in zip(panels, ((0, 1), (1, 3), (2, 3)), strict=True):
    for x, colour, name in ((rows[:1000], GREY, "rows of the file"), (samples, BLUE, "samples")):
        panel.scatter(x[:, i], x[:, j], s=5, color=colour, alpha=0.45, linewidths=0, label=name)
    panel.set(
        xlabel=NAMES[i], ylabel=NAMES[j], xscale="log" if i < 2 else "linear", yscale="log" if j < 2 else "linear"
    )
panels[0].legend(loc="upper left", markerscale=3)
figure.suptitle("1000 rows and 1000 samples, 20 evaluations of the network each")
plt.show()

# %% [markdown]
# A second file has holes: one or two cells of each row are missing. `experiments.inverse` fills them by draws from
# their law given the rest of the row, and writes the file with the means of the draws in the empty cells and all draws
# beside it. What can be known is known here: given some columns the mixture is a mixture again.

# %%
holes = 60 if full else 8
complete = columns(np.asarray(weather.sample(jax.random.key(3), holes), np.float64) @ MIX.T)
missing = np.random.default_rng(4).permuted(np.tile([True, True, False, False], (holes, 1)), axis=1)
missing[::2] &= np.cumsum(missing[::2], axis=1) < 2  # every second row lacks one cell, the others two
write(folder / "holes.csv", np.where(missing, np.nan, complete))
print("\n".join((folder / "holes.csv").read_text().splitlines()[:4]) + "\n")
each = "64" if full else "16"
run(
    "experiments.inverse", "--checkpoint", "runs/river", "--input", "holes.csv", "--out", "filled", "--each", each,
    "--evaluations", "60" if full else "20", "--noise", "0.02",
)  # fmt: skip
filled = np.load(folder / "filled/draws.npz")["draws"]
print("\n".join((folder / "filled/filled.csv").read_text().splitlines()[:4]))


def exact_fill(row, gone):
    """Exact draws of a row given the cells that are there: (2000, 4)."""
    law = weather.posterior(MIX[~gone], latent(row[None])[0, ~gone], 1e-2)
    return columns(np.asarray(law.sample(jax.random.key(5), 2000), np.float64) @ MIX.T)


exact = [exact_fill(row, gone) for row, gone in zip(complete, missing, strict=True)]
scale = rows.std(axis=0)
typical = np.median(rows, axis=0)
fills = {
    "median of the column": np.broadcast_to(typical, complete.shape),
    "score network": np.median(filled, axis=1),
    "exact": np.stack([np.median(x, axis=0) for x in exact]),
}
print("\nmean absolute error of the missing cells, in standard deviations of their column")
fill_errors = {k: ss.mean_with_error((np.abs(v - complete) / scale)[missing]) for k, v in fills.items()}
for name, (mean, error) in fill_errors.items():
    print(f"{name:24}{mean:8.3f} ± {error:.3f}")
inside = (np.quantile(filled, 0.1, axis=1) <= complete) & (complete <= np.quantile(filled, 0.9, axis=1))
covered, covered_error = ss.mean_with_error(inside[missing].astype(float))
print(f"80 % intervals of the draws hold the truth in {100 * covered:.0f} ± {100 * covered_error:.0f} % of the cells")

# %%
figure, panels = plt.subplots(1, 4, figsize=(12.5, 3.4), layout="constrained")
for j, panel in enumerate(panels):
    these = np.flatnonzero(missing[:, j])
    true_spread = np.array([np.quantile(exact[i][:, j], [0.1, 0.5, 0.9]) for i in these])
    order = np.argsort(true_spread[:, 1])
    low, middle, high = true_spread[order].T
    at = np.arange(len(these))
    panel.vlines(at, low, high, color=ORANGE, alpha=0.4, lw=5, label="exact, 80 %")
    low, middle, high = np.quantile(filled[these[order], :, j], [0.1, 0.5, 0.9], axis=1)
    panel.errorbar(at, middle, [middle - low, high - middle], fmt="o", ms=3, lw=0.9, color=BLUE, label="draws, 80 %")
    panel.scatter(at, complete[these[order], j], s=14, marker="x", color=INK, zorder=3, label="what was there")
    panel.set(title=NAMES[j], xlabel="rows that lack it, sorted", xticks=[], yscale="log" if j < 2 else "linear")
panels[0].legend(loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# A table with holes can also be trained on: `--missing mask` leaves the empty cells out of the loss, and holds out only
# complete rows. What the reader makes of any source is one line in Python, too.

# %%
gaps = np.random.default_rng(6).random(rows.shape) < 0.05
write(folder / "gaps.csv", np.where(gaps, np.nan, rows))
print(load.load(f"csv:{folder / 'gaps.csv'}", options=load.Options(missing="mask")).describe())

# %% [markdown]
# ## 5. Arrays and pictures
#
# `npy:FILE` and `npz:FILE` take arrays `(n, ...)`: unsigned integers are levels and give bits per dimension, floats are
# measurements and give nats. An `.npz` may hold `train` and `test`, with `train_labels` and `test_labels`, or `x`, `y`.
# `images:FOLDER` takes pictures of one size (any with `--size 64`), in folders whose names are their classes if there
# are several, or beside a `dataset.json`; a zip will do as well. With classes, `--condition class` learns the score of
# each.
# `--dry-run` says what would be done and stops.

# %%
np.save(folder / "river.npy", rows.astype(np.float32))
print(load.load(f"npy:{folder / 'river.npy'}").describe(), "\n")

digits = load.load("digits")
labelled = zip(np.asarray(digits.train)[:200], np.asarray(digits.train_labels), strict=False)
for number, (image, label) in enumerate(labelled):
    path = folder / "pictures" / f"digit{label}" / f"{number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image[:, :, 0] * 15).astype(np.uint8)).save(path)
run("experiments.run", "--data", "images:pictures", "--condition", "class", "--network", "unet", "--dry-run")

# %% [markdown]
# A mistake is one line that says what to do, here as from the command line:

# %%
(folder / "words.csv").write_text("name,height\nanna,1.71\n")
refused = ""
try:
    load.load(f"csv:{folder / 'words.csv'}")
except load.InputError as mistake:
    refused = str(mistake)
    print(refused.replace(str(folder), "."))

# %% [markdown]
# And this is where everything is. `report.md` is the place to begin; `experiments.report FOLDER` makes it again from
# the other files, `experiments.evaluate`, `sample`, `inverse` and `edit` take the folder as their `--checkpoint`.

# %%
for path in sorted(folder.rglob("*")):
    parts = path.relative_to(folder).parts
    if path.is_file() and "checkpoint" not in parts and "pictures" not in parts:
        print(f"{path.stat().st_size:10,}  {'/'.join(parts)}")
print("\n" + "".join((folder / "runs/river/report.md").read_text().splitlines(keepends=True)[:24]))

# %%
facts = {
    "below": below,
    "report": [report["mean"], report["std_error"]],
    "python": [python_mean, python_error],
    "network_mean": float(np.mean(log_prob)),
    "truth_mean": float(np.mean(truth)),
    "fill_errors": fill_errors,
    "covered": [covered, covered_error],
    "sample_medians": latent(np.median(samples, axis=0)[None])[0].tolist(),
    "row_medians": latent(np.median(rows, axis=0)[None])[0].tolist(),
    "refused": refused,
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
