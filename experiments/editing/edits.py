"""The edits of ``experiments.edit``: each a function of a Job to its Result. All work in model units."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.editing.denoising import denoise
from experiments.editing.job import Job, Result, succeeded
from experiments.figures.stages import Stage
from scoresde.arrays import expand

KNOWN = 1e-3  # noise of a part that is kept, in model units


def sdedit(job: Job) -> Result:
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


def translate(job: Job) -> Result:
    known = job.score if job.classes is None else ss.given(job.score, jnp.asarray(job.classes))
    target = job.of_class(job.flags.label)
    flow = succeeded(ss.editing.translated(job.sde, known, target, job.x, **job.flow))
    detail = f"as class {job.flags.label}, guidance {job.flags.guidance:g}"
    return [job.before(), job.stage("after", "After", detail, flow.x)], {"num_evals": float(np.mean(flow.num_evals))}


def interpolate(job: Job) -> Result:
    a, b = job.x[::2], job.x[1::2]
    weights = np.linspace(0, 1, job.flags.between)
    way = np.asarray(ss.editing.interpolated(job.sde, job.score, a, b, weights, **job.flow))
    if not np.all(np.isfinite(way)):
        raise InputError("the probability flow of some examples did not reach its end: choose other --examples")
    pairs = zip(job.numbers[::2], job.numbers[1::2], strict=True)
    titles = [f"From example {first} to {second}" for first, second in pairs]
    return [job.stage(f"way_{i}", title, "slerp of the latents", way[:, i]) for i, title in enumerate(titles)], {}


def direction(job: Job) -> Result:
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
    latents = succeeded(ss.encode(job.sde, job.score, x, **job.flow)).x
    step = flags.amount * ss.editing.attribute_direction(latents, has, shrinkage=flags.shrinkage)
    stages, found = [job.before()], {"latents": [int(has.sum()), int((~has).sum())]}
    for share in (1 / 3, 2 / 3, 1.0):
        flow = succeeded(
            ss.editing.edited(job.sde, job.score, job.x, lambda z, w=share: z + w * step[None], **job.flow)
        )
        amount = share * flags.amount
        where = f"{amount:.3g} of the direction of class {flags.attribute}"
        stages.append(job.stage(f"moved_{amount:.3g}", f"Moved by {amount:.3g}", where, flow.x))
    return stages, found


def panorama(job: Job) -> Result:
    canvas, score, _ = _canvas(job)
    shape = len(job.raw), *canvas, *job.data.event_shape[len(canvas) :]
    table = ss.with_denoising(job.sde, job.table(job.sde))
    x = ss.sample(job.key, score, table, shape)
    detail = f"windows of {job.data.event_shape}, {table.num_evals} evaluations"
    return [_of_canvas(job, "after", "Panoramas", detail, x)], {"canvas": list(canvas)}


def outpaint(job: Job) -> Result:
    canvas, score, offset = _canvas(job)
    window = job.data.event_shape[: len(canvas)]
    place = tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(canvas, window, strict=True))
    rest = job.data.event_shape[len(canvas) :]
    keep, y = np.zeros((*canvas, *rest), bool), np.zeros((len(job.raw), *canvas, *rest), np.float32)
    keep[place] = True
    y[(slice(None), *place)] = np.asarray(job.x + offset[None])
    posterior = ss.inverse.replacement(job.sde, score, ss.inverse.operators.mask(keep), y, KNOWN)
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


EDITS: dict[str, Callable[[Job], Result]] = {
    "sdedit": sdedit,
    "translate": translate,
    "interpolate": interpolate,
    "direction": direction,
    "denoise": denoise,
    "panorama": panorama,
    "outpaint": outpaint,
}
