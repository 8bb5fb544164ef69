"""The log-density by the peers' roads on an exact score of VP; run by ``experiments.benchmarks.peers``.

    ENVIRONMENT/bin/python experiments/benchmarks/peers/scripts/likelihood.py IN.npz OUT.npz

IN holds ``means``, ``stds``, ``weights``, ``x`` (B, D), ``t_min`` and ``tolerance``. Two solvers, each with the whole
batch as one state, so that one sequence of steps serves all examples:

    SciPy          solve_ivp, RK45, on one float64 vector of all states and log-densities, as score_sde does it
    torchdiffeq    odeint, dopri5, on the pair (states, log-densities)

and two divergences by reverse mode: exact (D products) or Hutchinson's with one Rademacher probe an example. OUT holds
the log-densities; the last line printed is JSON: for each road its evaluations and the seconds of the first and a later
call. Everything is float64.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from mixture import Mixture, vp  # pyright: ignore[reportMissingImports]
from scipy.integrate import solve_ivp
from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]


class Flow:
    """dx/dt and its divergence."""

    def __init__(self, mixture, probe):
        self.mixture, self.probe = mixture, probe

    def __call__(self, t, x):
        alpha, sigma, beta = vp(float(t))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = -0.5 * beta * (x + self.mixture.score(x, alpha, sigma))
            if self.probe is not None:
                pulled = torch.autograd.grad((v * self.probe).sum(), x)[0]
                divergence = (pulled * self.probe).sum(1)
            else:
                pulls = (torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1]))
                divergence = sum(pulled[:, i] for i, pulled in enumerate(pulls))
        return v.detach(), divergence


def by_scipy(flow, x, t_min, tolerance):
    shape, size = x.shape, x.numel()

    def field(t, y):
        v, divergence = flow(t, torch.from_numpy(y[:size]).reshape(shape))
        return np.concatenate([v.numpy().ravel(), divergence.numpy()])

    start = np.concatenate([x.numpy().ravel(), np.zeros(len(x))])
    y = solve_ivp(field, (t_min, 1.0), start, method="RK45", rtol=tolerance, atol=tolerance).y[:, -1]
    return torch.from_numpy(y[:size]).reshape(shape), torch.from_numpy(y[size:])


def by_torchdiffeq(flow, x, t_min, tolerance):
    times = torch.tensor([t_min, 1.0], dtype=x.dtype)
    start = (x, x.new_zeros(len(x)))
    states, integrals = odeint(
        lambda t, y: flow(t, y[0]), start, times, rtol=tolerance, atol=tolerance, method="dopri5"
    )
    return states[-1], integrals[-1]


ROADS = {"SciPy RK45": by_scipy, "torchdiffeq dopri5": by_torchdiffeq}


def timed(run, mixture):
    """Seconds, and what it found; the mixture counts from zero."""
    mixture.calls, started = 0, time.perf_counter()
    found = run()
    return time.perf_counter() - started, *found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs")
    parser.add_argument("outputs")
    flags = parser.parse_args()
    arrays = dict(np.load(flags.inputs))
    mixture, x = Mixture(arrays, torch.float64), torch.as_tensor(arrays["x"])
    spread, settings = vp(1.0)[1], (float(arrays["t_min"]), float(arrays["tolerance"]))
    probe = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype) * 2 - 1
    found, rows = {}, []
    for road, solve in ROADS.items():
        for name, chosen in (("exact", None), ("Hutchinson", probe)):
            (first, *_), (later, latent, integral) = (
                timed(partial(solve, Flow(mixture, chosen), x, *settings), mixture) for _ in range(2)
            )
            prior = -0.5 * ((latent / spread) ** 2 + np.log(2 * np.pi * spread**2)).sum(1)
            found[str(len(rows))] = (prior + integral).numpy()
            row = {"library": road, "divergence": name, "evaluations": mixture.calls}
            rows.append(row | {"first_s": first, "later_s": later})
    np.savez(flags.outputs, **found)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
