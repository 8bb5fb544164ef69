"""No random key is used twice: JAX's own checker follows every key through loss, training, samplers and likelihood."""

import ast
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import gaussian

import scoresde as ss
from experiments.cli.keys import stream

SDE = ss.VP()
X = np.ones((4, 2), np.float32)


@pytest.fixture(autouse=True)
def checker():
    with jax.debug_key_reuse(True):
        yield


def test_the_checker_sees_a_key_used_twice():
    key = jax.random.key(0)
    jax.random.normal(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key)


@pytest.mark.parametrize("times", [ss.training.uniform, ss.training.stratified, ss.log_normal()])
def test_loss(times):
    ss.denoising_score_matching(jax.random.key(0), SDE, gaussian().score(SDE), jnp.asarray(X), times=times)


def test_training_with_dropout():
    apply, params = ss.nn.functional(ss.nn.ResidualMLP((2,), width=8, depth=2, dropout=0.1, key=jax.random.key(1)))
    precond = ss.Preconditioner.from_data(SDE, X + np.arange(2))

    def loss(params, key, batch):
        key_dropout, key_loss = jax.random.split(key)
        return ss.denoising_score_matching(key_loss, SDE, precond.score(partial(apply, params, key=key_dropout)), batch)

    trainer = ss.Trainer(loss, optax.adam(1e-3))
    trainer.run(trainer.init(jax.random.key(2), params), X, steps=2, batch_size=2)


@pytest.mark.parametrize("solver", [ss.ancestral, ss.predictor_corrector, partial(ss.heun, churn=1.0)])
def test_samplers(solver):
    ss.sample(jax.random.key(3), gaussian().score(SDE), solver(SDE, ss.log_snr_grid(SDE, 3)), (4, 2))


def test_likelihood():
    score = gaussian().score(SDE)
    ss.log_likelihood(jax.random.key(4), SDE, score, X, divergence=ss.hutchinson(2), rtol=1e-2, atol=1e-2)
    levels = X.astype(int)
    ss.dequantised_log_likelihood(jax.random.key(5), SDE, score, levels, bin_width=0.1, repeats=2, rtol=0.1, atol=0.1)


def test_named_streams_of_a_program_meet_neither_each_other_nor_rows_of_the_seed():
    """A source of experiments makes a key of a seed in keys.py alone, but for the training, of rows 0 and 1, and
    experiments.sample, whose rows are those of the seed itself."""
    root, names, makers = Path(__file__).parents[1] / "experiments", [], set()
    sources = [path for path in root.rglob("*.py") if not {"benchmarks", "notebooks"} & set(path.parts)]
    for path in sources:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            function, words = ast.unparse(call.func), [a.value for a in call.args if isinstance(a, ast.Constant)]
            names += words if function == "stream" else []
            if function == "jax.random.key" and "seed" in ast.unparse(call):
                makers.add(path.name)
    assert makers == {"keys.py", "build.py", "sample.py"}
    assert {"previews", "samples", "levels"} <= set(names)
    names = {*names, "samples", "trajectories", "likelihood", "classifier", "class sheets", "noise", "probe"}
    streams = {jax.random.key_data(stream(3, name)).tobytes() for name in names}
    rows = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(100_000))
    assert len(streams) == len(names)
    assert not streams & {row.tobytes() for row in np.asarray(jax.random.key_data(rows))}
