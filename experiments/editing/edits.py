"""The edits of ``experiments.edit``: each a function of a Job to its Result. All work in model units."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.editing.denoising import denoise
from experiments.editing.job import Job, Result, succeeded
from experiments.figures.stages import Stage
from experiments.measures.jobs import Arrays, rows
from experiments.measures.likelihoods import of_rows
from scoresde.arrays import expand

KNOWN = 1e-3  # noise of a part that is kept, in model units


def sdedit(job: Job) -> Result:
    sde, strength = job.sde, job.flags.strength
    log_snr = (1 - strength) * sde.log_snr(sde.t_min) + strength * sde.log_snr(sde.t_max)
    part = ss.editing.shortened(sde, min(float(sde.time(log_snr)), sde.t_max))
    table = job.table(part)

    def edit(first: int, size: int) -> Arrays:
        x, score = job.x(first, size), job.of_class(size)
        path = ss.editing.sdedit(job.key, sde, score, x, table, trajectory=True, first=first)
        return {"noisy": np.asarray(path[0] / sde.alpha(part.t_max)), "after": np.asarray(path[-1])}

    done, rho = job.run(edit), float(jnp.exp(-log_snr / 2))
    detail = f"strength {strength:g}: sigma/alpha = {rho:.3g} at t = {part.t_max:.3g}"
    to = "" if job.flags.label is None else f" as class {job.flags.label}"
    after = job.stage("after", "After", f"redrawn{to}, {table.num_evals} evaluations", done["after"])
    return [job.before(), job.stage("noisy", "With noise", detail, done["noisy"]), after], {"sigma_over_alpha": rho}


def translate(job: Job) -> Result:
    known = of_rows(job.score, job.classes)

    def edit(first: int, size: int) -> Arrays:
        x, source, target = job.x(first, size), known(first, size), job.of_class(size)
        flow = succeeded(ss.editing.translated(job.sde, source, target, x, **job.flow))
        return {"x": np.asarray(flow.x), "num_evals": np.asarray(flow.num_evals)}

    done, detail = job.run(edit), f"as class {job.flags.label}, guidance {job.flags.guidance:g}"
    stages = [job.before(), job.stage("after", "After", detail, done["x"])]
    return stages, {"num_evals": float(np.mean(done["num_evals"]))}


def interpolate(job: Job) -> Result:
    weights = np.linspace(0, 1, job.flags.between)
    pairs = list(zip(job.numbers[::2], job.numbers[1::2], strict=True))

    def edit(first: int, size: int) -> Arrays:
        a, b = (job.data.to_model(rows(job.raw[end::2], first, size)) for end in (0, 1))
        way = np.asarray(ss.editing.interpolated(job.sde, job.score, a, b, weights, **job.flow))
        if not np.all(np.isfinite(way)):
            raise InputError("the probability flow of some examples did not reach its end: choose other --examples")
        return {"way": np.moveaxis(way, 1, 0)}

    ways = job.run(edit, len(pairs))["way"]
    titles = [f"From example {first} to {second}" for first, second in pairs]
    return [job.stage(f"way_{i}", title, "slerp of the latents", ways[i]) for i, title in enumerate(titles)], {}


def direction(job: Job) -> Result:
    assert job.measured is not None
    flags, (raw, has) = job.flags, job.measured

    def encode(first: int, size: int) -> Arrays:
        x = job.data.to_model(rows(raw, first, size))
        return {"x": np.asarray(succeeded(ss.encode(job.sde, job.score, x, **job.flow)).x)}

    latents = job.run(encode, len(raw), "latents")["x"]
    step = flags.amount * ss.editing.attribute_direction(latents, has, shrinkage=flags.shrinkage)
    stages, found = [job.before()], {"latents": [int(has.sum()), int((~has).sum())]}
    for share in (1 / 3, 2 / 3, 1.0):
        amount = share * flags.amount

        def edit(first: int, size: int, share: float = share) -> Arrays:
            x = job.x(first, size)
            flow = ss.editing.edited(job.sde, job.score, x, lambda z: z + share * step[None], **job.flow)
            return {"x": np.asarray(succeeded(flow).x)}

        where = f"{amount:.3g} of the direction of class {flags.attribute}"
        moved = job.run(edit, name=f"moved-{3 * share:.0f}")["x"]
        stages.append(job.stage(f"moved_{amount:.3g}", f"Moved by {amount:.3g}", where, moved))
    return stages, found


def panorama(job: Job) -> Result:
    canvas, score, _ = _canvas(job)
    event = *canvas, *job.data.event_shape[len(canvas) :]
    table = ss.with_denoising(job.sde, job.table(job.sde))
    x = job.run(lambda first, size: {"x": np.asarray(ss.sample(job.key, score, table, (size, *event), first=first))})
    detail = f"windows of {job.data.event_shape}, {table.num_evals} evaluations"
    return [_of_canvas(job, "after", "Panoramas", detail, x["x"])], {"canvas": list(canvas)}


def outpaint(job: Job) -> Result:
    canvas, score, offset = _canvas(job)
    window = job.data.event_shape[: len(canvas)]
    place = tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(canvas, window, strict=True))
    event = *canvas, *job.data.event_shape[len(canvas) :]
    keep, table = np.zeros(event, bool), ss.with_denoising(job.sde, job.table(job.sde))
    keep[place] = True

    def edit(first: int, size: int) -> Arrays:
        y = np.zeros((size, *event), np.float32)
        y[(slice(None), *place)] = np.asarray(job.x(first, size) + offset[None])
        posterior = ss.inverse.replacement(job.sde, score, ss.inverse.operators.mask(keep), y, KNOWN)
        return {"x": np.asarray(ss.sample(job.key, posterior, table, y.shape, first=first))}

    after = _of_canvas(job, "after", "After", f"{table.num_evals} evaluations", job.run(edit)["x"])
    return [job.before(), after], {"canvas": list(canvas)}


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
    wide = dataclasses.replace(job.data.units, shift=job.data.shift.mean())
    return Stage(name, title, detail, wide.from_model(np.asarray(x)))


EditWord = Literal["sdedit", "translate", "interpolate", "direction", "denoise", "panorama", "outpaint"]
EDITS: dict[EditWord, Callable[[Job], Result]] = {
    "sdedit": sdedit,
    "translate": translate,
    "interpolate": interpolate,
    "direction": direction,
    "denoise": denoise,
    "panorama": panorama,
    "outpaint": outpaint,
}
