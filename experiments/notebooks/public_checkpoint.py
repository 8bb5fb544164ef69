"""The source of public_checkpoint.ipynb: a published network as a score, its samples and its likelihood."""
# ruff: noqa: E402

# %% [markdown]
# # A public checkpoint
#
# Networks that others trained become scores, with the SDE they were trained on: every solver, likelihood, guidance
# and inverse method here takes them, in their own scaling of the data.
#
# | reader | what it reads |
# |---|---|
# | `ss.interop.diffusers(FOLDER)` | a folder of diffusers: U-Nets (DDPM, DDIM, NCSN++ with skips) and DiT |
# | `ss.interop.score_sde_file(FILE)` | a `.pth` of score_sde_pytorch, or a flax checkpoint of score_sde |
# | `ss.interop.edm_file(FILE)` | a `.pkl` of EDM or EDM2 |
#
# Files of the last two are pickles, which can run code when they are loaded; the readers here take the tensors out and
# execute nothing. `python -m experiments.convert SOURCE DEST` turns each into safetensors and JSON.
#
# With the full budget this notebook downloads `google/ddpm-cifar10-32`, the CIFAR-10 network of Ho, Jain and Abbeel
# (2020) in diffusers' layout, where `huggingface_hub` and a connection are there. Elsewhere it trains a small network
# of the same kind on digits, writes it in the same layout, reads it back, and goes on with the same cells.
#
# **Licence.** Weights are a work of their own, with a licence that need not be that of the code: the card of this model
# says Apache-2.0; EDM's weights, for example, are CC BY-NC-SA 4.0, not for commercial use. Read the card first.

# %% [install]
from experiments.notebooks.install import BUDGET, full

# isort: split

# %%
import dataclasses
import importlib
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import scoresde as ss
from experiments.data import load
from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import SAMPLE as BLUE
from experiments.figures.style import GREY, use

use()
started = time.monotonic()
platform = jax.devices()[0].platform
print(f"scoresde {ss.__version__}, jax {jax.__version__} on {platform}, budget: {BUDGET}")

# %% [markdown]
# ## 1. The folder
#
# A folder of diffusers holds a configuration and weights of the network, and the noise levels of its chain as a
# scheduler's configuration.

# %%
home = tempfile.TemporaryDirectory(prefix="scoresde-")
MODEL = "google/ddpm-cifar10-32"


def downloaded():
    """The folder of the published network, or None where it cannot be had."""
    if not full:
        return None
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(MODEL, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (ImportError, OSError) as error:
        print(f"no {MODEL} ({type(error).__name__}): going on with a small network trained here")
        return None


def trained(folder, data, steps, channels):
    """Train a small U-Net on digits as DDPM does, and write it to the folder as diffusers would."""
    chain = ss.interop.scheduler_sde({})  # 1000 levels, beta from 1e-4 to 0.02
    norm = partial(ss.nn.group_norm, group_size=1, most=8)  # one number of groups throughout, as diffusers has it
    layout = dataclasses.replace(ss.nn.presets.DDPM, norm=norm)
    sizes = {"channels": channels, "features": channels, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)}
    net = ss.nn.presets.ddpm((8, 8, 1), **sizes, layout=layout, dropout=0.0, key=jax.random.key(0))
    apply, params = ss.nn.functional(net)

    def loss(params, key, batch):
        """E_k ||eps_hat(x_k, k) - eps||^2, k uniform; digits in [-1, 1], with uniform noise within their levels."""
        key_uniform, key_loss = jax.random.split(key)
        x = (batch + jax.random.uniform(key_uniform, batch.shape) - 0.5) / 8 - 1

        def score(x, t):  # -eps_hat/sigma; the network is called with the step k = 1000 t - 1
            return -apply(params, x, chain.step(t)) / chain.sigma(t)[:, None, None, None]

        return ss.denoising_score_matching(key_loss, chain, score, x)

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 50, steps), b2=0.99)
    trainer = ss.Trainer(loss, optimizer, averages=(ss.training.warmed(0.995),))
    state, metrics = trainer.run(
        trainer.init(jax.random.key(1), params), jnp.asarray(data.train, jnp.float32), steps=steps, batch_size=32
    )
    losses = np.asarray(metrics["loss"])
    print(f"{steps} steps, loss {losses[:20].mean():.3f} -> {losses[-100:].mean():.3f}")
    made = ss.interop.from_unet(net, state.ema, chain)
    ss.interop.to_diffusers(made, folder)
    return made


clock, folder, made, round_trip = time.monotonic(), downloaded(), None, None
published = folder is not None
data = load.load("cifar10" if published else "digits")
if folder is None:
    folder = Path(home.name) / "ddpm-digits"
    made = trained(folder, data, *((2000, 32) if full else (150, 16)))
print(f"{time.monotonic() - clock:.0f} s")
for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    print(f"{path.stat().st_size:12,}  {path.relative_to(folder)}")

# %% [markdown]
# ## 2. The chain as an SDE
#
# DDPM's chain $x_k = \sqrt{1-\beta_k}\,x_{k-1} + \sqrt{\beta_k}\,\varepsilon$ has
# $\alpha_k^2 = \prod_{j\le k}(1-\beta_j)$ and $\sigma_k^2 = 1 - \alpha_k^2$. `DiscreteVP` is a variance-preserving SDE
# that passes through all these levels, at $t = (k+1)/N$, smoothly between them: the network's step becomes a real
# number, $k = Nt - 1$. With the network's $\hat\varepsilon$ the score is $-\hat\varepsilon(x, Nt-1)/\sigma(t)$. Time
# ends at $t_\mathrm{min} = 1/N$, the first level that the network has seen.

# %%
found = ss.interop.diffusers(folder)
sde, low, high = found.sde, *found.data_range
assert isinstance(sde, ss.interop.DiscreteVP)  # the chain of DDPM; NCSN++ has a VE SDE
parameters = sum(leaf.size for leaf in jax.tree.leaves(found.params))
levels = len(sde.integrals)
beta = -np.expm1(-np.diff(np.asarray(sde.integrals), prepend=0.0))
times = (np.arange(levels) + 1) / levels
alpha = np.sqrt(np.cumprod(1 - beta))
gap = float(np.max(np.abs(np.asarray(sde.alpha(times)) - alpha)))
print(f"{parameters:,} parameters; data in [{low:g}, {high:g}]; {levels} levels, beta {beta[0]:.1e} to {beta[-1]:.3g}")
print(f"t_min {sde.t_min:g}, where sigma = {sde.sigma(sde.t_min):.4f}; largest |alpha(t_k) - alpha_k| {gap:.1e}")
if made is not None:
    x = jax.random.normal(jax.random.key(2), (4, *data.event_shape))
    written, read = (np.asarray(jax.jit(score)(x, 0.3)) for score in (made.score, found.score))
    round_trip = float(np.linalg.norm(written - read) / np.linalg.norm(written))
    print(f"the score before writing and after reading: relative difference {round_trip:.1e}")

t = np.linspace(sde.t_min, 1, 400)
vp = ss.VP(beta_min=levels * beta[0], beta_max=levels * beta[-1])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.1), layout="constrained")
left.plot(times, 2 * np.log(alpha) - np.log1p(-(alpha**2)), color=GREY, lw=5, alpha=0.5, label="levels of the chain")
left.plot(t, sde.log_snr(t), color=BLUE, lw=1.4, label="DiscreteVP")
left.set(xlabel="t = (k + 1)/N", ylabel="log-SNR", title="The SDE passes through the levels")
left.legend()
right.plot(times, np.asarray(sde.log_snr(times)) - np.asarray(vp.log_snr(times)), color=ORANGE, lw=1.4)
right.axhline(0, color=GREY, lw=0.8)
right.set(
    xlabel="t", ylabel="difference of log-SNR", title=rf"VP({vp.beta_min:g}, {vp.beta_max:g}) is not quite that SDE"
)
plt.show()

# %% [markdown]
# ## 3. Samples in 20 evaluations
#
# The chain was made for 1000 steps. `ss.best_solver` takes 20 evaluations of the same network, without any training:
# a multistep solver of the probability flow on a grid that suits the data's scale. The pictures are cut to their range
# and rounded to levels.

# %%
last = int(data.levels or 0) - 1  # levels 0..last lie evenly from low to high
width = (high - low) / last
shift = 0.5 - low / width  # level k is at (k + 1/2 - shift) width: DDPM's own scaling, k/127.5 - 1 for bytes
train = np.asarray(data.train[:1000])
sigma_data = float(np.std(train * width + low))
count = 64 if platform != "cpu" or not published else 16
table = ss.best_solver(sde, 20, sigma_data=sigma_data)
clock = time.monotonic()
x = ss.sample(jax.random.key(3), found.score, table, (count, *data.event_shape))
samples = np.clip(np.rint((np.asarray(x) - low) / width), 0, last)
print(f"{count} samples, {table.num_evals} evaluations each, {time.monotonic() - clock:.1f} s")
key_metric, real, other = jax.random.key(4), data.held_out[:count] / last, train[:count] / last
distance = float(
    ss.evaluation.sliced_wasserstein(key_metric, jnp.asarray(samples / last, float), jnp.asarray(real, float))
)
floor = float(ss.evaluation.sliced_wasserstein(key_metric, jnp.asarray(other, float), jnp.asarray(real, float)))
print(f"sliced Wasserstein to {count} real images {distance:.4f}, where as many other real ones have {floor:.4f}")


def sheet(images, columns=16):
    """Images (n, H, W, C) as one picture, ``columns`` in a row."""
    n, height, width, channels = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=last if published else 0)
    tiles = padded.reshape(n // columns, columns, height + 2, width + 2, channels).swapaxes(1, 2)
    return (tiles.reshape(n // columns * (height + 2), columns * (width + 2), channels) / last).squeeze()


figure, panels = plt.subplots(2, 1, figsize=(10, 2 * 10 / 16 * count / 16 + 0.8), layout="constrained")
for panel, images, title in zip(
    panels, (samples, data.held_out[:count]), (f"Samples, {table.num_evals} evaluations", "Real, held out"), strict=True
):
    panel.imshow(sheet(images), cmap="gray_r" if not published else None, vmin=0, vmax=1)
    panel.set_title(title)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## 4. Likelihood in bits per dimension
#
# A density of images that are integers is a question of how they are made continuous. Level $k$ becomes
# $y = (k + u - s)\,w$ with $u \sim U[0,1)$, $w$ the width of a level in the network's units, and
# $-\log_2 p(y)/D - \log_2 w$ is in expectation an upper bound on the bits that a lossless code needs (Theis et al.
# 2016). Two numbers for the same images:
#
# * **probability flow**: the log-density of $y$ by the instantaneous change of variables, on a fixed grid of 40
#   evaluations, with Hutchinson probes for the divergence (Song et al. 2021);
# * **variational bound** of the chain on the integers themselves, in its own steps, as DDPM reports it: what the
#   reverse *chain* gives, another law than that of the flow.

# %%
images = np.asarray(data.held_out[: (64 if platform != "cpu" else 2) if published else (48 if full else 12)], int)
dims = images[0].size
y = (images + np.random.default_rng(5).random(images.shape) - shift) * width
clock = time.monotonic()
grid = ss.angle_grid(sde, 39, rho=0.28 * sigma_data, share=0.25)
flow = ss.table_log_likelihood(
    jax.random.key(6), sde, found.score, jnp.asarray(y, jnp.float32), grid, divergence=ss.hutchinson(2)
)
flow_bits = np.asarray(ss.bits_per_dim(flow.log_prob, dims, width))
per_nat = 1 / (dims * np.log(2))
probe_error = float(np.linalg.norm(flow.std_error) / len(images) * per_nat)
grid_error = float(np.mean(flow.error) * per_nat)

rho = np.asarray(sde.sigma(times) / sde.alpha(times))
steps = times[::-1][rho[::-1] >= width / 2]  # the chain's own steps, down to half a level: nothing is known below
bound = ss.likelihood.discrete_bound(
    jax.random.key(7), sde, found.score, images, bin_width=width, shift=shift, num_levels=last + 1,
    grid=steps, draws=16 if full else 8, repeats=4, sigma_data=sigma_data,
)  # fmt: skip
bound_bits = np.asarray(ss.bits_per_dim(bound.bound, dims, 1.0))
bound_error = float(np.linalg.norm(bound.std_error) / len(images) * per_nat)
(flow_mean, flow_error), (bound_mean, image_error) = ss.mean_with_error(flow_bits), ss.mean_with_error(bound_bits)
print(f"{len(images)} images of {data.name}, {time.monotonic() - clock:.0f} s")
print(f"{'probability flow':20}{flow_mean:7.3f} ± {flow_error:.3f} bits/dim over images", end="")
print(f"; ± {probe_error:.4f} of the probes, grid off by at most about {grid_error:.4f}")
print(f"{'variational bound':20}{bound_mean:7.3f} ± {image_error:.3f} bits/dim over images", end="")
print(f"; ± {bound_error:.4f} of its Monte Carlo, {len(steps) - 1} of {levels} steps")

# %%
figure, panel = plt.subplots(figsize=(10, 3.2), layout="constrained")
order = np.argsort(flow_bits)
at = np.arange(len(images))
for values, error, name, colour, marker in (
    (flow_bits, np.asarray(flow.std_error) * per_nat, "probability flow, dequantised", BLUE, "o"),
    (bound_bits, np.asarray(bound.std_error) * per_nat, "variational bound of the chain, integers", ORANGE, "s"),
):
    panel.errorbar(at, values[order], error[order], fmt=marker, ms=4, lw=1, capsize=2, color=colour, label=name)
    panel.axhline(values.mean(), color=colour, lw=0.8, ls=":")
panel.set(xlabel="held-out images, sorted", ylabel="bits per dimension", xticks=[])
panel.set_title("Each image by both; bars: standard errors of the estimate")
panel.legend()
plt.show()

# %% [markdown]
# **What may be compared with what.** Bits per dimension of other papers are comparable if the data, their resolution
# and their split agree, and the same thing was done to the integers:
#
# * for the DDPM of CIFAR-10, Ho et al. (2020) give at most 3.75 bits/dim, a variational bound on integers; Song et al.
#   (2021) give 3.28 for the probability flow of a DDPM, with uniform dequantisation: two numbers for one kind of
#   network, neither of them wrong;
# * a mean over few images has the error over images that is printed, and only that over all of the test set is small;
# * the flow ends at $t_\mathrm{min}$: it is the density of data with that little noise. A network that was trained on
#   the integers themselves, as DDPM was, knows the density between them only as far as $\sigma(t_\mathrm{min})$ blurs
#   them: 1.3 levels for bytes. The digits here have 17 levels, $\sigma(t_\mathrm{min})$ is a twelfth of one, and
#   so the small network is trained on dequantised digits.

# %%
facts = {
    "published": published,
    "parameters": parameters,
    "gap": gap,
    "round_trip": round_trip,
    "distance": distance,
    "floor": floor,
    "flow": [flow_mean, flow_error, probe_error, grid_error],
    "bound": [bound_mean, image_error, bound_error],
    "evaluations": table.num_evals,
    "files": sorted(path.name for path in folder.rglob("*") if path.is_file()),
    "scheduler": json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"],
}
print(f"the whole notebook: {time.monotonic() - started:.0f} s")
