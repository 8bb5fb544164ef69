"""Work in batches: row i is example first + i of the whole, and a job killed at any batch ends with the same bits."""

import dataclasses
import hashlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import gaussian
from rich.console import Console

import scoresde as ss
from experiments.cli.errors import InputError, Interrupted
from experiments.data.arrays import Rows
from experiments.measures import inputs
from experiments.measures.inputs import Input
from experiments.measures.jobs import Parts, Work, carry_out, finished, parts_of, rows
from experiments.models.saved import open_run

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
    "prior_sample": lambda part, first: SDE.prior_sample(KEY, part.shape, first=first),
    "mixture": lambda part, first: gaussian().sample(KEY, len(part), first=first),
    "reverse_sde": lambda part, first: ss.reverse_sde(KEY, SDE, score(), part, 1.0, 0.5, steps=3, first=first).x,
    "error_budget": lambda part, first: (
        ss.error_budget(KEY, SDE, score(), part, divergence=NORMAL, **LOOSE, first=first).log_prob
    ),
    "sample": lambda part, first: ss.sample(
        KEY, score(), ss.ancestral(SDE, ss.log_snr_grid(SDE, 4)), part.shape, first=first
    ),
    "table_log_likelihood": lambda part, first: (
        ss.table_log_likelihood(KEY, SDE, score(), part, ss.angle_grid(SDE, 9), divergence=NORMAL, first=first).log_prob
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
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow if name == "error_budget" else ()) for name in METHODS),
        pytest.param("dequantised_log_likelihood", marks=pytest.mark.slow),
        "discrete_bound",
    ],
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


@pytest.mark.parametrize("batch, asked", [(2, [(6, 2), (8, 2), (10, 2)]), (5, [(6, 4), (10, 4)]), (11, [(6, 11)])])
def test_another_batch_does_only_the_rows_that_are_missing(tmp_path, batch, asked):
    parts, called = Parts(tmp_path / "p", {}), []

    def job(first, size, last=99):
        called.append((first, size))
        if first >= last:
            raise KeyboardInterrupt
        return noise(first, size)

    with pytest.raises(Interrupted):
        Work(3, parts).run("x", lambda first, size: job(first, size, 6), 11)
    called.clear()
    np.testing.assert_array_equal(Work(batch, parts).run("x", job, 11)["x"], noise(0, 11)["x"])
    assert called == asked
    (tmp_path / "p" / "x-000003.npz").write_bytes(b"")  # what follows begins elsewhere now
    np.testing.assert_array_equal(Work(2, parts).run("x", job, 11)["x"], noise(0, 11)["x"])


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


def carried(out, make, console=None, **read):
    found = {role: Input(where, content) for role, (where, content) in read.items()}
    console = console or Console(quiet=True)
    return carry_out("sample", out, {"seed": 0}, found, make, batch=3, console=console)


def test_a_job_is_carried_out_once(tmp_path):
    out, text, made = tmp_path / "a.npz", io.StringIO(), []

    def make(work):
        made.append(work.run("x", noise, 7)["x"])
        np.savez(out, x=made[-1])
        return {"rows": 7}

    about = carried(out, make, data=("d", "1"))
    assert about["rows"] == 7 and about["plan"]["inputs"] == {"data": {"where": "d", "sha256": "1"}}
    assert json.loads((tmp_path / "a.npz.json").read_text())["versions"] == about["versions"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.npz.json"]
    for where in ("d", "elsewhere"):
        assert carried(out, make, Console(file=text, width=500), data=(where, "1")) is None
    assert text.getvalue() == f"{out} is complete; nothing to do\n" * 2 and len(made) == 1
    for read, message in (
        ({"data": ("d", "2")}, "^d has changed since .*a.npz was made; choose another --out, or delete it$"),
        ({"data": ("e", "2")}, "^e is not what d was when .*a.npz was made; choose another --out"),
        ({}, "a.npz was made with d; choose another --out"),
        ({"data": ("d", "1"), "weaker": ("w", "3")}, "a.npz was made without w; choose another --out"),
    ):
        with pytest.raises(InputError, match=message):
            carried(out, make, **read)
    out.unlink()
    carried(out, make, data=("d", "1"))
    assert len(made) == 2


def test_what_a_job_refuses_leaves_no_parts_and_what_cannot_be_written_keeps_them(tmp_path):
    def make(work, error):
        work.run("x", noise, 7)
        raise error

    with pytest.raises(InputError, match="^not finite$"):
        carried(tmp_path / "a.npz", lambda work: make(work, InputError("not finite")))
    assert not list(tmp_path.iterdir())
    full = OSError(28, "No space left on device", "a.npz")
    with pytest.raises(InputError, match="^cannot write a.npz: No space left on device; choose another --out$"):
        carried(tmp_path / "a.npz", lambda work: make(work, full))
    assert len(list((tmp_path / ".a.npz.parts").glob("x-*.npz"))) == 3


def test_inputs_are_their_content(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype("f4")
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, x)
    a, b = (inputs.of_file(tmp_path / name) for name in ("a.npy", "b.npy"))
    assert a.sha256 == b.sha256 == hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()
    assert (a.where, b.where) == tuple(str(tmp_path / name) for name in ("a.npy", "b.npy"))
    on_disk = Rows(lambda rows: x[rows], np.arange(9), (4,), "f4")
    same, *others = (
        inputs.of_examples("d", *parts).sha256
        for parts in ((x, None), (x.reshape(4, 9),), (x.astype("f8"),), (x, x), (x[::-1],))
    )
    assert inputs.of_examples("d", on_disk).sha256 == same and len({same, *others}) == 5
    with pytest.raises(InputError, match="c.npy does not exist"):
        inputs.of_file(tmp_path / "c.npy")


def test_a_model_is_its_parameters_its_sde_and_the_record_of_its_data(digits_run):
    opened = open_run(digits_run[0])
    params, record = opened.state.ema, opened.model.record
    other = jax.tree.map(lambda p: p + 1, params)
    of_ve = opened._replace(model=dataclasses.replace(opened.model, record=record | {"sde": {"name": "VE"}}))
    scaled = opened._replace(data=dataclasses.replace(opened.data, note="other"))
    found = [inputs.of_model("run", *pair) for pair in ((opened, params), (opened, other), (of_ve, params))]
    found.append(inputs.of_model("run", scaled, params))
    assert len({one.sha256 for one in found}) == 4
    assert inputs.of_model("moved", opened, params).sha256 == found[0].sha256


def test_rows_past_the_end_repeat_the_last():
    np.testing.assert_array_equal(rows(np.arange(5), 3, 4), [3, 4, 4, 4])
