"""The first samples of a fresh process by a peer; run by ``experiments.benchmarks.peers``, which times the process.

    ENVIRONMENT/bin/python experiments/benchmarks/peers/scripts/first_sample.py diffusers|k-diffusion|azula

4,096 samples of the ring, 20 evaluations of its exact score, float32; see ``first_sample.py`` one folder up for ours.
"""

import sys
import warnings

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from mixture import Mixture  # pyright: ignore[reportMissingImports]
from solvers import LIBRARIES, TIMED, TIMES  # pyright: ignore[reportMissingImports]


def main() -> None:
    warnings.simplefilter("ignore")
    angles, library = 2 * np.pi * np.arange(8) / 8, sys.argv[1]
    ring = {
        "means": np.stack([np.cos(angles), np.sin(angles)], 1),
        "stds": np.full(8, 0.1),
        "weights": np.full(8, 1 / 8),
    }
    for _, solver, grid, run, steps in LIBRARIES[library]():
        if (library, solver, grid) in TIMES:
            run(Mixture(ring, torch.float32), torch.randn(4096, 2), steps(TIMED))[0].numpy()
            break


if __name__ == "__main__":
    main()
