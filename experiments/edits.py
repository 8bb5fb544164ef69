"""The edits of ``experiments.edit``: each a function of a Job to what is shown, stage by stage, and its figures.

All in model units, where data have unit standard deviation; a Stage holds raw units.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.data import Data, InputError
from experiments.setup import Model
from scoresde.editing.denoise import noise_range
from scoresde.sde import expand

TOLERANCE = 1e-3  # of the probability flow, relative and absolute
LEVELS, LEAST, MOST = 48, 0.01, 10.0  # noise levels looked at where it is unknown, in model units
COLUMNS, PROBES = 256, 64  # dimensions up to which the spread is exact; random probes above
KNOWN = 1e-3  # noise of a part that is kept, in model units


class Stage(NamedTuple):
    """Examples as they are at one step of an edit."""

    name: str
    title: str
    detail: str
    x: np.ndarray
    """(m, *event) in raw units."""
    ends: tuple[float, float] | None = None
    """What is black and white, where it is not as for the data."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What an edit needs: the examples, the model, and the settings of the command line."""

    key: jax.Array
    flags: Any
    data: Data
    """With its examples."""
    model: Model
    score: Partial
    raw: np.ndarray
    """(n, *event), what is edited."""
    numbers: list[int]
    """What each example is called."""
    classes: np.ndarray | None
    """(n,) of a model that knows classes."""
    table: Callable[[ss.SDE], ss.Table]
    """The table of --solver for an SDE that ends where it is to begin."""

    @property
    def sde(self) -> ss.SDE:
        return self.model.sde

    @property
    def x(self) -> jax.Array:
        return self.data.to_model(self.raw)

    @property
    def flow(self) -> dict[str, Any]:
        return {"rtol": TOLERANCE, "atol": TOLERANCE, "sigma_data": self.model.precond.sigma_data}

    def of_class(self, label: int | None, *, guided: bool = True) -> Partial:
        """The score of a class, with --guidance; without one that of all of them."""
        if label is None:
            return self.score
        w = self.flags.guidance if guided else 1.0
        return ss.given(ss.guidance.classifier_free(self.score, self.score, w), jnp.full(len(self.raw), label))

    def stage(self, name: str, title: str, detail: str, y: Any) -> Stage:
        """Of points y (m, *event) in model units; integers are rounded to their levels except under noise."""
        return Stage(name, title, detail, self.data.from_model(np.asarray(y), round_levels=name != "noisy"))

    def before(self) -> Stage:
        shown = ", ".join(map(str, self.numbers))
        return Stage("before", "Before", f"examples {shown}", self.raw)


def sdedit(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    sde, strength = job.sde, job.flags.strength
    log_snr = (1 - strength) * sde.log_snr(sde.t_min) + strength * sde.log_snr(sde.t_max)
    part = ss.editing.shortened(sde, min(float(sde.time(log_snr)), sde.t_max))
    table = job.table(part)
    path = ss.editing.sdedit(job.key, sde, job.of_class(job.flags.label), job.x, table, trajectory=True)
    rho = float(jnp.exp(-log_snr / 2))
    noisy = path[0] / sde.alpha(part.t_max)
    detail = f"strength {strength:g}: sigma/alpha = {rho:.3g} at t = {part.t_max:.3g}"
    to = "" if job.flags.label is None else f" as class {job.flags.label}"
    after = job.stage("after", "After", f"redrawn{to}, {table.num_evals} evaluations", path[-1])
    return [job.before(), job.stage("noisy", "With noise", detail, noisy), after], {"sigma_over_alpha": rho}


def translate(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    known = job.score if job.classes is None else ss.given(job.score, jnp.asarray(job.classes))
    target = job.of_class(job.flags.label)
    flow = _succeeded(ss.editing.translated(job.sde, known, target, job.x, **job.flow))
    detail = f"as class {job.flags.label}, guidance {job.flags.guidance:g}"
    return [job.before(), job.stage("after", "After", detail, flow.x)], {"num_evals": float(np.mean(flow.num_evals))}


def interpolate(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    a, b = job.x[::2], job.x[1::2]
    weights = np.linspace(0, 1, job.flags.between)
    way = np.asarray(ss.editing.interpolated(job.sde, job.score, a, b, weights, **job.flow))
    if not np.all(np.isfinite(way)):
        raise InputError("the probability flow of some examples did not reach its end: choose other --examples")
    pairs = zip(job.numbers[::2], job.numbers[1::2], strict=True)
    titles = [f"From example {first} to {second}" for first, second in pairs]
    return [job.stage(f"way_{i}", title, "slerp of the latents", way[:, i]) for i, title in enumerate(titles)], {}


def direction(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    flags, labels = job.flags, job.data.train_labels
    assert labels is not None
    rng = np.random.default_rng(flags.seed)
    pools = (
        np.flatnonzero(labels == flags.attribute),
        np.flatnonzero(labels != flags.attribute if flags.against is None else labels == flags.against),
    )
    rows = [rng.choice(pool, min(len(pool), flags.latents // 2), replace=False) for pool in pools]
    x = job.data.to_model(job.data.train[np.sort(np.concatenate(rows))])
    has = np.isin(np.sort(np.concatenate(rows)), rows[0])
    latents = _succeeded(ss.encode(job.sde, job.score, x, **job.flow)).x
    step = flags.amount * ss.editing.attribute_direction(latents, has, shrinkage=flags.shrinkage)
    stages, found = [job.before()], {"latents": [int(has.sum()), int((~has).sum())]}
    for share in (1 / 3, 2 / 3, 1.0):
        flow = _succeeded(
            ss.editing.edited(job.sde, job.score, job.x, lambda z, w=share: z + w * step[None], **job.flow)
        )
        amount = share * flags.amount
        where = f"{amount:.3g} of the direction of class {flags.attribute}"
        stages.append(job.stage(f"moved_{amount:.3g}", f"Moved by {amount:.3g}", where, flow.x))
    return stages, found


def denoise(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    key_noise, key_probes, key_draw = jax.random.split(job.key, 3)
    sde, x, s = job.sde, job.x, job.flags.noise

    def table_from(level: float) -> ss.Table:
        return job.table(ss.editing.shortened(sde, float(ss.editing.noise_time(sde, level))))

    if not np.any(table_from(s).commit.s):
        raise InputError(f"--solver {job.flags.solver} adds no noise: for draws given y take one that does: ancestral")
    n = jnp.stack([jax.random.normal(jax.random.fold_in(key_noise, i), x.shape[1:]) for i in range(len(x))])
    y = x + s * n
    levels, found = jnp.full(len(x), s), {"noise": s}
    if job.flags.blind:
        low, high = noise_range(sde)
        ladder = np.geomspace(max(LEAST, low), min(MOST, high), LEVELS)
        guess = ss.editing.noise_level(key_probes, sde, job.score, y, ladder)
        levels = guess.s
        found |= {"estimates": guess.s.tolist(), "posterior_std": guess.std.tolist()}
    mean = ss.editing.denoised(sde, job.score, y, levels)
    draws = []
    for i, level in enumerate(np.asarray(levels, float)):  # each with the table of its level, of one shape
        row, table = y[i : i + 1], table_from(level)
        draws.append(ss.editing.denoised_samples(key_draw, sde, job.score, row, level, table, first=i))
    stages, shown = [job.before()], [("noisy", "With noise", y), ("mean", "E[x | y]", mean)]
    shown.append(("draw", "A draw from p(x | y)", jnp.concatenate(draws)))
    for name, title, value in shown:
        found[f"rmse_{name}"] = float(jnp.sqrt(jnp.mean((value - x) ** 2)))
        stages.append(job.stage(name, title, f"rms error {found[f'rmse_{name}']:.3g}", value))
    std = np.asarray(
        ss.editing.denoised_std(key_probes, sde, job.score, y, levels, probes=None if x[0].size <= COLUMNS else PROBES)
    )
    top = float(std.max())
    if job.data.powers is None and job.data.whitening is None:
        raw = std * np.asarray(job.data.scale, np.float32)
        ends = 0.0, float(raw.max())
        stages.append(Stage("std", "Standard deviation given y", f"white: {top:.3g} in model units", raw, ends))
    return stages, found


def panorama(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    canvas, score, _ = _canvas(job)
    shape = len(job.raw), *canvas, *job.data.event_shape[len(canvas) :]
    table = ss.with_denoising(job.sde, job.table(job.sde))
    x = ss.sample(job.key, score, table, shape)
    detail = f"windows of {job.data.event_shape}, {table.num_evals} evaluations"
    return [_of_canvas(job, "after", "Panoramas", detail, x)], {"canvas": list(canvas)}


def outpaint(job: Job) -> tuple[list[Stage], dict[str, Any]]:
    canvas, score, offset = _canvas(job)
    window = job.data.event_shape[: len(canvas)]
    place = tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(canvas, window, strict=True))
    rest = job.data.event_shape[len(canvas) :]
    keep, y = np.zeros((*canvas, *rest), bool), np.zeros((len(job.raw), *canvas, *rest), np.float32)
    keep[place] = True
    y[(slice(None), *place)] = np.asarray(job.x + offset[None])
    posterior = ss.inverse.replacement(job.sde, score, ss.operators.mask(keep), y, KNOWN)
    table = ss.with_denoising(job.sde, job.table(job.sde))
    x = ss.sample(job.key, posterior, table, y.shape)
    stages = [job.before(), _of_canvas(job, "after", "After", f"{table.num_evals} evaluations", x)]
    return stages, {"canvas": list(canvas)}


def _canvas(job: Job) -> tuple[tuple[int, ...], Any, jax.Array]:
    """The canvas, its score, and what its units are above the model's at each place of a window.

    The model's units are centred place by place, by the mean of the data; the canvas has one shift for all places. An
    example moved by ``offset`` has the score of the model at x_t - alpha offset.
    """
    canvas, stride = job.flags.canvas_shape, job.flags.stride or max(1, min(job.data.event_shape[:1]) // 2)
    offset = jnp.asarray((job.data.shift - job.data.shift.mean()) / job.data.scale, jnp.float32)
    moved = Partial(partial(_moved, job.sde), offset, job.score)
    try:
        return canvas, ss.editing.panorama(moved, job.data.event_shape[: len(canvas)], stride), offset
    except ValueError as error:
        raise InputError(f"--stride {stride}: {error}") from None


def _moved(sde: ss.SDE, offset: jax.Array, score: Partial, x: jax.Array, t: jax.Array) -> jax.Array:
    return score(x - expand(sde.alpha(t), x) * offset[None], t)


def _of_canvas(job: Job, name: str, title: str, detail: str, x: Any) -> Stage:
    """Canvases in raw units: as the data, with one shift for all places."""
    data = job.data
    event = np.asarray(x).shape[1:]
    mean = np.full(event, data.mean.mean())
    wide = dataclasses.replace(data, train=np.empty((0, *event), data.train.dtype), mean=mean)
    return Stage(name, title, detail, wide.from_model(np.asarray(x)))


def _succeeded(flow: ss.Flow) -> ss.Flow:
    if flow.message:
        raise InputError(f"the probability flow: {flow.message}")
    return flow


EDITS: dict[str, Callable[[Job], tuple[list[Stage], dict[str, Any]]]] = {
    "sdedit": sdedit,
    "translate": translate,
    "interpolate": interpolate,
    "direction": direction,
    "denoise": denoise,
    "panorama": panorama,
    "outpaint": outpaint,
}
