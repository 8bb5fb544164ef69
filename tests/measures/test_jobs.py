"""Work in batches: row i is example first + i of the whole, and a job killed at any batch ends with the same bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import gaussian

import scoresde as ss
from experiments.cli.errors import InputError, Interrupted
from experiments.measures.jobs import Parts, Work, finished, parts_of, rows

SDE = ss.VP()
KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
LEVELS = np.random.default_rng(1).integers(0, 5, (7, 2))
BINS = {"bin_width": 0.4, "shift": 2.5}
NORMAL = ss.hutchinson(1, jax.random.normal)  # signs are exact for this law
LOOSE = {"rtol": 1e-2, "atol": 1e-2}


def score():
    return gaussian().score(SDE)


METHODS = {
    "sample": lambda part, first: ss.sample(
        KEY, score(), ss.ancestral(SDE, ss.log_snr_grid(SDE, 4)), part.shape, first=first
    ),
    "table_log_likelihood": lambda part, first: (
        ss.table_log_likelihood(KEY, SDE, score(), ss.angle_grid(SDE, 9), part, divergence=NORMAL, first=first).log_prob
    ),
}
OF_LEVELS = {
    "dequantised_log_likelihood": lambda part, first: (
        ss.dequantised_log_likelihood(KEY, SDE, score(), part, **BINS, **LOOSE, first=first).log_prob
    ),
    "discrete_bound": lambda part, first: (
        ss.likelihood.discrete_bound(KEY, SDE, score(), part, **BINS, draws=2, repeats=2, first=first).bound
    ),
}


@pytest.mark.parametrize(
    "name", [*METHODS, pytest.param("dequantised_log_likelihood", marks=pytest.mark.slow), "discrete_bound"]
)
def test_a_later_batch_holds_the_rows_of_the_whole(name):
    method, x = (METHODS | OF_LEVELS)[name], LEVELS if name in OF_LEVELS else X
    whole, later, other = (np.asarray(method(part, first)) for part, first in ((x[:4], 0), (x[2:6], 2), (x[2:6], 1)))
    np.testing.assert_allclose(later[:2], whole[2:], rtol=2e-5, atol=2e-5)
    assert np.all(np.abs(other[:2] - whole[2:]) > 1e-6)  # other numbers, other noise


def noise(first, size):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(KEY, jnp.arange(first, first + size))
    return {"x": np.asarray(jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys))}


def test_batches_make_the_whole_whatever_their_size():
    whole = noise(0, 11)["x"]
    for batch in (1, 3, 4, 11, 100):
        np.testing.assert_array_equal(Work(batch).run("x", noise, 11)["x"], whole)


def test_every_call_asks_for_one_size():
    asked = []

    def job(first, size):
        asked.append((first, size))
        return noise(first, size)

    Work(4).run("x", job, 9)
    assert asked == [(0, 3), (3, 3), (6, 3)]
    asked.clear()
    Work(4).run("x", job, 10)
    assert asked == [(0, 4), (4, 4), (8, 4)]


@pytest.mark.parametrize("stop", [MemoryError, KeyboardInterrupt])
def test_a_stopped_job_does_only_what_is_missing(tmp_path, stop):
    called = []

    def job(first, size, last=99):
        called.append(first)
        if first >= last:
            raise stop()
        return noise(first, size)

    plan = {"seed": 0, "shape": (3,)}
    with pytest.raises((MemoryError, Interrupted)) as raised:
        Work(3, Parts(tmp_path / "p", plan)).run("x", lambda first, size: job(first, size, 6), 11)
    if stop is KeyboardInterrupt:
        assert str(raised.value) == "stopped: x 6 of 11; the same command continues from there"
    assert called == [0, 3, 6]
    called.clear()
    again = Work(3, Parts(tmp_path / "p", plan)).run("x", job, 11)["x"]
    assert called == [6, 9]
    np.testing.assert_array_equal(again, noise(0, 11)["x"])


def test_a_damaged_part_is_done_again(tmp_path):
    parts = Parts(tmp_path / "p", {})
    Work(3, parts).run("x", noise, 6)
    part = tmp_path / "p" / "x-000003.npz"
    for content in (part.read_bytes()[:-40], b"", b"no archive"):
        part.write_bytes(content)
        np.testing.assert_array_equal(Work(3, parts).run("x", noise, 6)["x"], noise(0, 6)["x"])
        assert parts.load("x", 3) is not None


def test_parts_of_another_job_are_refused_or_replaced(tmp_path):
    folder = tmp_path / "p"
    Work(3, Parts(folder, {"seed": 0})).run("x", noise, 6)
    with pytest.raises(InputError, match="unfinished job with seed 0, not 1"):
        Parts(folder, {"seed": 1})
    assert Parts(folder, {"seed": 0}).load("x", 0) is not None
    assert Parts(folder, {"seed": 1}, replace=True).load("x", 0) is None
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        Parts(tmp_path / "file" / "p", {})


def test_a_plan_may_hold_paths(tmp_path):
    Work(3, Parts(tmp_path / "p", {"data_dir": tmp_path})).run("x", noise, 6)
    assert Parts(tmp_path / "p", {"data_dir": tmp_path}).load("x", 0) is not None


def test_what_is_there_is_kept(tmp_path):
    out, manifest = tmp_path / "a.npz", tmp_path / "a.npz.json"
    assert not finished(out, manifest, {"seed": 0})
    out.touch()
    with pytest.raises(InputError, match=r"a.npz exists and has no a.npz.json"):
        finished(out, manifest, {"seed": 0})
    parts_of(out).mkdir()
    assert not finished(out, manifest, {"seed": 0})  # killed between the file and its manifest
    manifest.write_text(json.dumps({"plan": {"seed": 0}}))
    assert finished(out, manifest, {"seed": 0})
    with pytest.raises(InputError, match="was made with seed 0, not 1"):
        finished(out, manifest, {"seed": 1})
    manifest.write_text("[]")
    with pytest.raises(InputError, match="not of this program"):
        finished(out, manifest, {"seed": 0})


def test_rows_past_the_end_repeat_the_last():
    np.testing.assert_array_equal(rows(np.arange(5), 3, 4), [3, 4, 4, 4])
