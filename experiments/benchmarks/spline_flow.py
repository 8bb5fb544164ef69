"""A neural spline flow (Durkan et al. 2019) of the package flowjax, trained for a given processor time.

    ENVIRONMENT/bin/python experiments/benchmarks/spline_flow.py ARRAYS.npz OUT.npz --seconds 300

is what ``experiments.benchmarks.tables`` runs in an environment of its own, which holds flowjax and not scoresde.
ARRAYS.npz holds ``train``, ``validation`` and ``test``, each (n, D); OUT.npz gets ``log_prob`` of the test part in
nats, ``validation``, the mean over the validation part, ``seconds`` and what was ``chosen`` in words.

Layers of masked autoregressive rational-quadratic splines with permutations between, a Gaussian as base. Adam with
clipped gradients; the learning rate falls as a cosine of the processor time spent; what is kept is the moment of the
best mean over the validation part.
"""

import argparse
import math
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax import bijections, distributions, flows  # pyright: ignore[reportMissingImports]

STEPS_PER_CALL = 50
CHECKS = 60  # of the validation part, over the time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--knots", type=int, default=8)
    parser.add_argument("--interval", type=float, default=5.0, help="half-width of the splines; the identity beyond")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with np.load(flags.arrays) as stored:
        train, validation, test = (jnp.asarray(stored[k], jnp.float32) for k in ("train", "validation", "test"))
    key_flow, key_train = jax.random.split(jax.random.key(flags.seed))
    flow = flows.masked_autoregressive_flow(
        key_flow,
        base_dist=distributions.Normal(jnp.zeros(train.shape[1])),
        transformer=bijections.RationalQuadraticSpline(knots=flags.knots, interval=flags.interval),
        flow_layers=flags.layers,
        nn_width=flags.width,
        nn_depth=flags.depth,
    )
    best, result = fit(flow, key_train, train, validation, flags)
    size = f"{flags.layers} layers of {flags.depth} x {flags.width}, {flags.knots} knots"
    result["chosen"] = f"{size}, {result['steps']} steps of {flags.batch}, best at {result['best_step']}"
    np.savez(flags.out, log_prob=by_parts(best, test), **result)
    print(f"{result['chosen']}, {result['seconds']:.0f} s, validation {result['validation']:.3f}", flush=True)


def by_parts(flow, x: jax.Array) -> np.ndarray:
    """The log-density of each row, nats."""
    log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
    return np.concatenate([np.asarray(log_prob(flow, x[i : i + 1024])) for i in range(0, len(x), 1024)])


def fit(flow, key: jax.Array, train: jax.Array, validation: jax.Array, flags: argparse.Namespace):
    """The flow at its best on the validation part, and what is to be said of the training."""
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.scale_by_adam())
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    opt_state = optimizer.init(params)

    @jax.jit
    def advance(params, opt_state, key, rate):
        def step(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (flags.batch,), 0, len(train))
            loss = lambda params: -jnp.mean(eqx.combine(params, static).log_prob(train[rows]))  # noqa: E731
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, opt_state), None

        return jax.lax.scan(step, (params, opt_state), jax.random.split(key, STEPS_PER_CALL))[0]

    started, steps, checked = time.process_time(), 0, 0
    best, best_value, best_step, spent = params, -math.inf, 0, 0.0
    while spent < flags.seconds:
        share = spent / flags.seconds
        rate = flags.learning_rate * min(1.0, 50 * share + 0.02) * 0.5 * (1 + math.cos(math.pi * share))
        params, opt_state = advance(params, opt_state, jax.random.fold_in(key, steps), rate)
        steps += STEPS_PER_CALL
        jax.block_until_ready(params)
        spent = time.process_time() - started
        if spent >= flags.seconds or int(CHECKS * spent / flags.seconds) > checked:
            checked = int(CHECKS * spent / flags.seconds)
            value = float(by_parts(eqx.combine(params, static), validation).mean())
            if value > best_value:
                best, best_value, best_step = params, value, steps
    result = {
        "validation": best_value,
        "steps": steps,
        "best_step": best_step,
        "seconds": time.process_time() - started,
    }
    return eqx.combine(best, static), result


if __name__ == "__main__":
    main()
