"""The solvers of diffusers, k-diffusion and azula on an exact score; run by ``experiments.benchmarks.peers``.

    ENVIRONMENT/bin/python experiments/benchmarks/peers/scripts/solvers.py IN.npz OUT.npz

IN holds ``means``, ``stds``, ``weights``, ``noise`` (n, D) and ``budgets``. Each library starts from the same noise and
integrates the probability flow with at most so many evaluations on the grids it offers. OUT holds the end states
divided by alpha; the last line printed is JSON: for each of them library, solver, grid, budget, evaluations counted and
sigma/alpha at its end. With ``--seconds N`` one solver of each library draws from N(0, 1) in float32 instead, N times.
"""

import argparse
import importlib.util
import json
import sys
import time
import types
import warnings
from functools import partial
from unittest import mock

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from mixture import Mixture  # pyright: ignore[reportMissingImports]

LEVELS, BETAS = 1000, {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
TIMED = 20
torch.set_grad_enabled(False)


def chain():
    """log(sigma/alpha) of DDPM's levels, which the network knows by their number."""
    kept = np.cumprod(1 - np.linspace(BETAS["beta_start"], BETAS["beta_end"], LEVELS))
    return 0.5 * np.log((1 - kept) / kept)


def chained(make, mixture, noise, steps):
    """A scheduler of diffusers on DDPM's chain, called as its pipelines call it."""
    scheduler, levels = make(), chain()
    scheduler.set_timesteps(steps)
    exploding = float(scheduler.init_noise_sigma) > 1.5  # its state is x / alpha
    x = noise * np.sqrt(1 + np.exp(2 * levels[-1])) if exploding else noise
    for k in scheduler.timesteps:
        rho = np.exp(np.interp(float(k), np.arange(LEVELS), levels))
        alpha = 1 / np.sqrt(1 + rho**2)
        x = scheduler.step(mixture.noise(scheduler.scale_model_input(x, k), alpha, rho * alpha), k, x).prev_sample
    final = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else float(np.exp(levels[0]))
    return x if exploding else x * np.sqrt(1 + final**2), final


def edm(make, mixture, noise, steps):
    """A scheduler of diffusers for EDM's networks, whose output F gives D = c_skip x + c_out F."""
    scheduler = make()
    scheduler.set_timesteps(steps)
    data, x = scheduler.config.sigma_data, SIGMA_MAX * noise
    for i, k in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        scheduler.scale_model_input(x, k)  # diffusers asks for the call
        D = mixture.denoised(x, 1.0, sigma)
        F = (D - data**2 / (sigma**2 + data**2) * x) * np.sqrt(sigma**2 + data**2) / (sigma * data)
        x = scheduler.step(F, k, x).prev_sample
    return x, float(scheduler.sigmas[-1])


def of_diffusers():
    """(chain or VE, solver, grid, run(mixture, noise, n), steps for n evaluations)."""
    import diffusers as hf  # pyright: ignore[reportMissingImports]

    sigmas = {"Karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
    linspace = {"linspace": {"timestep_spacing": "linspace"}}
    to_end = {"linspace, to the last level": linspace["linspace"] | {"final_sigmas_type": "sigma_min"}}
    lu = {"lu": {"use_lu_lambdas": True}}
    trailing = {"trailing": {"timestep_spacing": "trailing"}}
    kept = {"clip_sample": False, "set_alpha_to_one": False}
    multistep = linspace | to_end | sigmas
    families = [
        ("DDIM", hf.DDIMScheduler, kept, trailing),
        *((f"DPM-Solver++ {p}M", hf.DPMSolverMultistepScheduler, {"solver_order": p}, multistep | lu) for p in (2, 3)),
        *((f"UniPC {p}", hf.UniPCMultistepScheduler, {"solver_order": p}, multistep) for p in (2, 3)),
        ("DEIS 3", hf.DEISMultistepScheduler, {"solver_order": 3}, linspace | sigmas),
        ("LMS 4", hf.LMSDiscreteScheduler, {}, linspace | sigmas),
        ("Heun", hf.HeunDiscreteScheduler, {}, linspace | trailing | sigmas),
    ]
    for name, scheduler, options, grids in families:
        for grid, more in grids.items():
            run = partial(chained, partial(scheduler, **BETAS, **options, **more))
            yield "chain", name, grid, run, (lambda n: (n + 1) // 2) if name == "Heun" else int
    ve = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": 0.5}
    for grid in ("karras", "exponential"):
        for name, scheduler, options in (
            ("EDM Euler", hf.EDMEulerScheduler, {}),
            *((f"EDM DPM-Solver++ {p}M", hf.EDMDPMSolverMultistepScheduler, {"solver_order": p}) for p in (2, 3)),
        ):
            make = partial(scheduler, **ve, **options, sigma_schedule=grid)
            yield "VE", name, {"karras": "Karras"}.get(grid, grid), partial(edm, make), int


def sampling_of_k_diffusion():
    """Its module of samplers alone: the package imports data loading and evaluation, not needed and heavy."""
    found = importlib.util.find_spec("k_diffusion")
    assert found is not None and found.submodule_search_locations is not None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    pictures = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in pictures}):
        import k_diffusion.sampling as sampling  # pyright: ignore[reportMissingImports]
    return sampling


def of_k_diffusion():
    K = sampling_of_k_diffusion()

    def walk(sampler, grid, mixture, noise, steps):
        sigmas = grid(steps, SIGMA_MIN, SIGMA_MAX).to(noise.dtype)
        return sampler(lambda x, sigma: mixture.denoised(x, 1.0, sigma), SIGMA_MAX * noise, sigmas, disable=True), 0.0

    def fast(mixture, noise, n):
        def denoised(x, sigma):
            return mixture.denoised(x, 1.0, sigma)

        return K.sample_dpm_fast(denoised, SIGMA_MAX * noise, SIGMA_MIN, SIGMA_MAX, n, disable=True), SIGMA_MIN

    single = {"Euler": K.sample_euler, "LMS 4": K.sample_lms, "DPM-Solver++ 2M": K.sample_dpmpp_2m}
    double = {"Heun": K.sample_heun, "DPM2": K.sample_dpm_2}
    double["DPM-Solver++ 2S"] = partial(K.sample_dpmpp_2s_ancestral, eta=0.0)
    for grid, make in (("Karras", K.get_sigmas_karras), ("exponential", K.get_sigmas_exponential)):
        for name, sampler in (single | double).items():
            yield "VE", name, grid, partial(walk, sampler, make), (lambda n: (n + 1) // 2) if name in double else int
    yield "VE", "DPM fast", "exponential", fast, int


def of_azula():
    import azula.sample as S  # pyright: ignore[reportMissingImports]
    from azula.denoise import Denoiser, DiracPosterior  # pyright: ignore[reportMissingImports]
    from azula.noise import VESchedule  # pyright: ignore[reportMissingImports]

    class Exact(Denoiser):
        def __init__(self, mixture):
            super().__init__()
            self.mixture, self.schedule = mixture, VESchedule(SIGMA_MIN, SIGMA_MAX)

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(self.mixture.denoised(x_t, *self.schedule(t)))

    def walk(sampler, options, karras, mixture, noise, steps):
        if karras:  # its times are equally spaced; a subclass may choose others
            ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
            sigma = torch.linspace(*ends, steps + 1, dtype=noise.dtype) ** RHO
            times = (sigma / SIGMA_MIN).log() / np.log(SIGMA_MAX / SIGMA_MIN)
            sampler = type("Karras", (sampler,), {"timesteps": property(lambda self: times)})
        sampler = sampler(Exact(mixture), steps=steps, silent=True, dtype=noise.dtype, **options)
        return sampler(SIGMA_MAX * noise), SIGMA_MIN

    adams = {f"{name} 3": getattr(S, f"{name}Sampler") for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB")}
    for name, sampler in ({"DDIM": S.DDIMSampler, "Heun": S.HeunSampler} | adams).items():
        options = {"order": 3} if name in adams else {}
        for grid in ("exponential", "Karras"):
            run = partial(walk, sampler, options, grid == "Karras")
            yield "VE", name, grid, run, (lambda n: n // 2) if name == "Heun" else int


LIBRARIES = {"diffusers": of_diffusers, "k-diffusion": of_k_diffusion, "azula": of_azula}
TIMES = {
    ("diffusers", "DPM-Solver++ 2M", "linspace"),
    ("diffusers", "UniPC 3", "linspace"),
    ("k-diffusion", "DPM-Solver++ 2M", "Karras"),
    ("azula", "xEAB 3", "exponential"),
}


def errors(arrays):
    """The end states and what they are."""
    mixture, noise = Mixture(arrays, torch.float64), torch.as_tensor(arrays["noise"])
    ends, rows = {}, []
    for library, solvers in LIBRARIES.items():
        for process, solver, grid, run, steps in solvers():
            for budget in arrays["budgets"].tolist():
                mixture.calls = 0
                x, final = run(mixture, noise, steps(budget))
                row = {"process": process, "library": library, "solver": solver, "grid": grid, "budget": budget}
                ends[str(len(rows))] = x.numpy().astype(np.float64)
                rows.append(row | {"evaluations": mixture.calls, "end": final})
    return ends, rows


def seconds(arrays, repeats):
    """Wall time of the first call and of later ones, and of as many bare evaluations."""
    mixture, noise, rows = Mixture(arrays, torch.float32), torch.randn(arrays["noise"].shape), []

    def timed(run):
        taken = []
        for _ in range(1 + repeats):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
        return {"first_s": taken[0], "later_s": float(np.median(taken[1:]))}

    def bare():
        for _ in range(TIMED):
            mixture.noise(noise, 0.5, 0.5)

    rows.append({"library": "torch", "solver": "the score alone"} | timed(bare))
    for library, solvers in LIBRARIES.items():
        for _, solver, grid, run, steps in solvers():
            if (library, solver, grid) in TIMES:
                found = timed(partial(run, mixture, noise, steps(TIMED)))
                rows.append({"library": library, "solver": f"{solver}, {grid}"} | found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs")
    parser.add_argument("outputs")
    parser.add_argument("--seconds", type=int, default=0)
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    arrays = dict(np.load(flags.inputs))
    if flags.seconds:
        print(json.dumps(seconds(arrays, flags.seconds)))
        return
    torch.set_num_threads(1)  # small arrays
    ends, rows = errors(arrays)
    np.savez(flags.outputs, **ends)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
