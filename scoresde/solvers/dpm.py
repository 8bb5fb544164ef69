"""DPM-Solver and DPM-Solver++: exponential integrators in the noise and in the data; see ``exponential``.

A step of order p integrates, with h = lambda_s - lambda_t,

    multistep      the polynomial through the last p values; for p = 2 the midpoint form, in which the line through them
                   is replaced by its value half way, v_0 + (v_0 - v_-1) h / (2 h_-1);
    single step    p = 2: the value at lambda_t + h/2, reached by a step of order 1;
                   p = 3: the line through the values at 0 and 2h/3, the second reached with the line through 0 and h/3.

Published codes of multistep DPM-Solver++(3M) halve its last coefficient and have order 2; the integrals give it whole.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import on_host
from scoresde.sde import SDE
from scoresde.solvers.exponential import Form, check_order, kept, predictor
from scoresde.solvers.table import Commit, Look, Nodes, Table, single_step, stages


def dpm_solver(sde: SDE, grid: ArrayLike, order: int = 2, eta: float = 0.0, *, noise_prediction: bool = False) -> Table:
    """Multistep DPM-Solver++, of order 1 (DDIM), 2 (2M, midpoint form) or 3 (3M); one evaluation a step.

    In the data, ``eta`` multiplies the standard deviation of the fresh noise as in ``ddim``: order 1 is ``ddim(eta)``,
    eta = 1 solves the reverse SDE ("SDE-DPM-Solver++"). Lu et al., "DPM-Solver++" (2022b), algorithm 2.
    With fresh noise the weak order, measured on Gaussians, is 1 for ``order`` 1 and 2 for both others.

    Args:
        order: 1, 2 or 3.
        eta: from 0 to 1.
        noise_prediction: extrapolate the noise instead of the data ("DPM-Solver", Lu et al. 2022a; order 3 is then
            ``deis`` of order 3). ``eta`` is then the noise level tau; at eta = 1 it is "SDE-DPM-Solver", whose
            noise grows as e^h: it needs small steps.

    Raises:
        ValueError: order not 1, 2 or 3, or eta outside [0, 1].
    """
    check_order("order", order, 1, 3)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")
    nodes = Nodes.of(sde, grid)
    lam = nodes.log_snr / 2
    h = np.diff(lam)
    # tau of the step whose fresh variance is eta^2 that of the reverse SDE: e^(-2 tau^2 h) = 1 - eta^2 (1 - e^(-2h))
    tau = eta if noise_prediction else np.sqrt(np.maximum(-np.log(1 - eta**2 + eta**2 * np.exp(-2 * h)), 0) / (2 * h))
    form = Form.of(nodes[:-1], nodes[1:], noise=noise_prediction, tau=tau)

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        if len(past) != 2:
            return form.weights(i, past)
        lean = h[i] / (2 * h[i - 1])
        return form.weights(i, past[:1]) * np.array([1 + lean, -lean])

    c, d = kept(nodes[:-1], noise=noise_prediction)
    return single_step(nodes, a=form.a, A=predictor(lam, order, weights), s=form.s, c=c, d=d)


def dpm_solver_single(sde: SDE, grid: ArrayLike, order: int = 2, *, noise_prediction: bool = False) -> Table:
    """Single-step DPM-Solver++ of order 2 (2S) or 3 (3S): ``order`` evaluations a step, no values kept between steps.

    The inner times are equally spaced in the log-SNR: one half, or one and two thirds of the step.
    Lu et al., "DPM-Solver++" (2022b), algorithm 1.

    Args:
        order: 2 or 3.
        noise_prediction: integrate the noise instead ("DPM-Solver-2" and "-3", Lu et al. 2022a, algorithms 1 and 2).

    Raises:
        ValueError: order not 2 or 3.
    """
    check_order("order", order, 2, 3)
    nodes = Nodes.of(sde, grid)
    start, end = nodes[:-1], nodes[1:]
    inner = [between(sde, start, end, j / order) for j in range(1, order)]
    at = [start, *inner]  # where each row looks
    through = {2: [[0], [1]], 3: [[0], [1, 0], [2, 0]]}[order]  # the values, newest first, that take x_t to each target
    n, zero = len(start.t), np.zeros((len(start.t), order))
    b, B = [np.ones(n)], [zero]
    for row, (target, values) in enumerate(zip([*inner, end], through, strict=True)):
        form = Form.of(start, target, noise=noise_prediction)
        weights = zero.copy()
        for i in range(n):
            weights[i, [row - v for v in values]] = form.weights(i, np.array([at[v].log_snr[i] / 2 for v in values]))
        b.append(form.a)
        B.append(weights)
    c, d = (np.stack(v, 1) for v in zip(*(kept(place, noise=noise_prediction) for place in at), strict=True))
    look = Look(np.stack([place.t for place in at], 1), np.stack(b[:-1], 1), np.stack(B[:-1], 1), c, d)
    stay = [np.ones(n)] * (order - 1), [zero] * (order - 1)
    commit = Commit(
        np.stack([start.t] * (order - 1) + [end.t], 1),
        np.stack([*stay[0], b[-1]], 1),
        np.stack([*stay[1], B[-1]], 1),
        zero,
        zero,
    )
    return stages(nodes, look, commit)


def between(sde: SDE, start: Nodes, end: Nodes, share: float) -> Nodes:
    """The nodes at this share of the way from start to end in the log-SNR."""
    t = on_host(sde.time, start.log_snr + share * (end.log_snr - start.log_snr))
    return Nodes.at(sde, np.clip(t, end.t, start.t))
