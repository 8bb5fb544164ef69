"""What the exact log-density costs and how far it is off, by four roads, on a ring of 8 modes with the exact score.

    python -m experiments.benchmarks.likelihood

prints the table and writes it to ``experiments/benchmarks/likelihood.md``. Modes of std 0.1 on a circle of radius 1,
samples of the law at t_min, exact divergence, float64, rtol = atol = 1e-5 where there is a tolerance:

    angle         ``ss.log_likelihood``: Tsit5 in the angle, steps of each example's own
    t             the same solver, controller and tolerance on the flow in t, started by diffrax's own rule
    SciPy         RK45 on the flattened batch in t, one sequence of steps for all (Song et al. 2021)
    fixed grid    ``ss.table_log_likelihood``: an Adams table on ``ss.angle_grid``, no tolerance

The error is that of log p against the exact density at t_min, prior mismatch included: its mean (what an average over a
data set is off by), its mean modulus and its greatest modulus. ``solver`` is the mean modulus without that mismatch,
against the same flow solved to 1e-9; ``estimate`` is the mean of the method's own estimate.
Steps are accepted ones, evaluations are those of the score: the mean over the examples where each has its own.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.integrate import solve_ivp

import scoresde as ss
from scoresde.angle import angle, radius
from scoresde.flow.probability import FIRST_STEP, velocity

PAGE = Path(__file__).with_suffix(".md")
TOLERANCE = 1e-5
Field = Callable[[jax.Array, jax.Array], jax.Array]


def eight_modes() -> ss.GaussianMixture:
    angles = 2 * np.pi * np.arange(8) / 8
    return ss.GaussianMixture(np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.1), np.ones(8))


def augmented(field: Field, time: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """d(u, log-density per dimension) for one example: field (time, u (1, D)) -> (1, D)."""
    v, div = ss.exact_divergence(lambda u: field(time, u[None])[0], state[0][0], jnp.zeros((1, 2)))
    return v[None], div / 2


def adaptive(field: Field, start: Any, end: Any, first: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """The end states, integrals of the divergence and diffrax's statistics of Tsit5, example by example."""

    def solve(x: jax.Array) -> Any:
        solution: Any = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda time, state, _: augmented(field, time, state)),
            diffrax.Tsit5(),
            start,
            end,
            first,
            (x[None], jnp.zeros(1)),
            stepsize_controller=diffrax.PIDController(TOLERANCE, TOLERANCE, norm=_worst),
            max_steps=1000,
        )
        u, integral = solution.ys
        return u[-1, 0], 2 * integral[-1, 0], solution.stats

    return jax.jit(jax.vmap(solve))(x)


def _worst(error: Any) -> jax.Array:
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(e**2)) for e in jax.tree.leaves(error)]))


def flow_in_t(sde: ss.SDE, score: Callable, t: Any, x: jax.Array) -> jax.Array:
    return sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * score(x, t)


def in_angle(sde: ss.SDE, score: Callable, x: jax.Array) -> dict[str, Any]:
    span = jnp.asarray(sde.t_min), jnp.asarray(sde.t_max)
    field, (start, end) = velocity(sde, score, 1.0, span), (angle(sde, t, 1.0) for t in span)
    stats = adaptive(field, start, end, FIRST_STEP, x / radius(sde, sde.t_min, 1.0))[2]
    got = ss.log_likelihood(
        jax.random.key(0), sde, score, x, divergence=ss.exact_divergence, rtol=TOLERANCE, atol=TOLERANCE
    )
    return {"log_prob": got.log_prob, "steps": stats["num_accepted_steps"], "evals": got.num_evals}


def in_t(sde: ss.SDE, score: Callable, x: jax.Array) -> dict[str, Any]:
    latent, integral, stats = adaptive(partial(flow_in_t, sde, score), sde.t_min, sde.t_max, None, x)
    evals = 6 * stats["num_steps"] + 2  # the choice of the first step evaluates once more
    return {"log_prob": sde.prior_log_prob(latent) + integral, "steps": stats["num_accepted_steps"], "evals": evals}


def by_scipy(sde: ss.SDE, score: Callable, x: jax.Array) -> dict[str, Any]:
    shape, field = x.shape, partial(flow_in_t, sde, score)

    @jax.jit
    def flat(t: Any, y: jax.Array) -> jax.Array:
        x = y[:x_size].reshape(shape)
        v, div = jax.vmap(lambda x: ss.exact_divergence(lambda x: field(t, x[None])[0], x, jnp.zeros((1, 2))))(x)
        return jnp.concatenate([v.reshape(-1), div[:, 0]])

    x_size, start = x.size, np.concatenate([np.asarray(x).reshape(-1), np.zeros(len(x))])
    solution = solve_ivp(flat, (sde.t_min, sde.t_max), start, method="RK45", rtol=TOLERANCE, atol=TOLERANCE)
    states = np.asarray(solution.y)
    latent, integral = states[:x_size, -1].reshape(shape), states[x_size:, -1]
    log_prob = sde.prior_log_prob(jnp.asarray(latent)) + integral
    return {"log_prob": log_prob, "steps": len(solution.t) - 1, "evals": solution.nfev}


def on_grid(sde: ss.SDE, score: Callable, x: jax.Array, evals: int) -> dict[str, Any]:
    grid = ss.angle_grid(sde, evals - 1, rho=0.28, share=0.25)
    got = ss.table_log_likelihood(jax.random.key(0), sde, score, x, grid)
    return {"log_prob": got.log_prob, "steps": evals - 1, "evals": got.num_evals, "estimate": jnp.mean(got.error)}


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "angle, Tsit5": in_angle,
    "t, Tsit5": in_t,
    "t, SciPy RK45 on the batch": by_scipy,
    "fixed grid, Adams, 30": partial(on_grid, evals=30),
    "fixed grid, Adams, 40": partial(on_grid, evals=40),
    "fixed grid, Adams, 60": partial(on_grid, evals=60),
}


def main(out: Path = PAGE, examples: int = 1024) -> None:
    """Print the table and write it.

    Args:
        out: the file.
        examples: how many points are evaluated.
    """
    lines = [
        "| SDE | method | steps | evaluations | mean error | mean modulus | greatest | solver | estimate |",
        "|---" * 9 + "|",
    ]
    with jax.enable_x64(True):
        mixture = eight_modes()
        for sde in (ss.VP(), ss.VE()):
            law = mixture.marginal(sde, sde.t_min)
            x, score = law.sample(jax.random.key(1), examples), mixture.score(sde)
            exact: dict[str, Any] = {"divergence": ss.exact_divergence, "rtol": 1e-9, "atol": 1e-9}
            flow = ss.log_likelihood(jax.random.key(0), sde, score, x, **exact).log_prob
            for name, method in METHODS.items():
                got = method(sde, score, x)
                error = np.asarray(got["log_prob"] - law.log_prob(x))
                row = [type(sde).__name__, name, *(f"{np.mean(got[key]):.1f}" for key in ("steps", "evals"))]
                row += [f"{v:.1e}" for v in (error.mean(), np.abs(error).mean(), np.abs(error).max())]
                row.append(f"{np.mean(np.abs(got['log_prob'] - flow)):.1e}")
                row.append(f"{got['estimate']:.1e}" if "estimate" in got else "")
                lines.append("| " + " | ".join(row) + " |")
                print(lines[-1], flush=True)
    page = [
        "# The exact log-density, measured",
        "",
        "Written by `python -m experiments.benchmarks.likelihood`, which says what is measured: a ring of 8 modes of",
        f"std 0.1, {examples} points, nats. The fixed grid costs half its evaluations more where its estimate is asked",
        "for.",
        "",
        *lines,
    ]
    out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
