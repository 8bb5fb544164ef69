"""Likelihoods in batches against the library's own, exact laws, and the command that writes them."""

import dataclasses
import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.evaluate import Flags, program
from experiments.measures import likelihoods
from experiments.measures.jobs import Work
from experiments.measures.likelihoods import Settings, likelihood

KEY = jax.random.key(1)


pytestmark = pytest.mark.usefixtures("opened_once")


@pytest.mark.slow
def test_batches_of_integers_add_up_to_the_library_s_call(digits_run):
    _, _, data, model = digits_run
    score, x, settings = model.score(model.init().ema), data.held_out[:5], Settings(1, 2, tolerance=1e-2, bound_draws=0)
    values, figures = likelihood(KEY, data, model, score, x, settings, Work(3))
    bins = {"bin_width": data.bin_width, "shift": data.shift}
    key = jax.random.split(KEY)[0]
    tolerance = {"divergence": ss.hutchinson(1), "rtol": 1e-2, "atol": 1e-2}
    whole = ss.dequantised_log_likelihood(key, model.sde, score, x, repeats=2, **bins, **tolerance)
    bits = ss.bits_per_dim(whole.log_prob, 64, data.bin_width)
    np.testing.assert_allclose(values["log_prob"], bits, rtol=1e-5)
    assert figures["mean"] == pytest.approx(float(np.mean(bits)), rel=1e-5)
    assert figures["std_error"] == pytest.approx(float(np.std(bits, ddof=1)) / math.sqrt(5), rel=1e-4)
    error = float(np.linalg.norm(whole.std_error)) / 5 / (64 * math.log(2))
    assert figures["probe_std_error"] == pytest.approx(error, rel=1e-3)
    assert figures["num_evals"] == pytest.approx(float(np.mean(whole.num_evals)))
    assert (figures["unit"], figures["examples"], figures["failed"], figures["bound"]) == ("bits/dim", 5, 0, None)


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [None, 60])
def test_the_exact_score_gives_the_exact_likelihood(digits_run, evaluations):
    data = load("mixture")
    model = dataclasses.replace(digits_run[3], sde=ss.VP())
    means, stds, weights = data.mixture
    scaled = ss.GaussianMixture((means - data.mean) / data.std, stds / data.std[0], weights)  # its columns are alike
    settings, x = Settings(0, 1, evaluations), data.held_out[:6]
    values, figures = likelihood(KEY, data, model, scaled.score(model.sde), x, settings, Work(4))
    np.testing.assert_allclose(values["log_prob"], values["exact_log_prob"], atol=0.03)
    assert figures["exact"] == pytest.approx(float(values["exact_log_prob"].mean()))
    assert figures["unit"] == "nats" and figures["probes"] == 0 and figures["probe_std_error"] == 0
    if evaluations:
        assert figures["num_evals"] == 60 + 31 and 0 < figures["grid_error"] < 0.1
        assert figures["method"] == "fixed grid"


def evaluate(folder, out, **flags):
    text = io.StringIO()
    settings = {"examples": 7, "evaluations": 5, "bound_draws": 0, "samples": 0, "batch": 4}
    program(Flags(folder, out, **settings | flags), Console(file=text, width=500))
    return text.getvalue()


@pytest.mark.parametrize("bound_draws", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_the_command_writes_everything_and_continues(digits_run, tmp_path, monkeypatch, bound_draws):
    folder = digits_run[0]
    flags = {"samples": 12, "sample_evaluations": 3, "bound_draws": bound_draws}
    flags |= {"flow_examples": 6} if bound_draws else {}
    said = evaluate(folder, tmp_path / "whole.json", **flags)
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert f"held-out likelihood {whole['likelihood']['mean']:.4f} bits/dim" in said
    assert "error of the grid" in said and "12 samples, 3 evaluations" in said
    assert ("variational bound" in said) == bool(bound_draws)
    assert whole["samples"]["examples"] == [12, 7] and whole["real"]["examples"] == [12, 7]
    distances = [whole[name]["sliced_wasserstein"] for name in ("samples", "real")]
    assert whole["samples"]["ratio"] == pytest.approx(distances[0] / distances[1])
    assert whole["plan"]["examples"] == 7 and "command" in whole
    with np.load(tmp_path / "whole.json.npz") as values:
        assert values["log_prob"].shape == ((6,) if bound_draws else (7,))
        assert ("bound" in values and values["bound"].shape == (7,)) == bool(bound_draws)
        assert float(values["log_prob"].mean()) == pytest.approx(whole["likelihood"]["mean"], rel=1e-6)

    calls, on_grid = [], likelihoods._on_grid

    def stopping(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return on_grid(*arguments)

    monkeypatch.setattr(likelihoods, "_on_grid", stopping)
    with pytest.raises(Exception, match="likelihood [34] of [67]; the same command continues"):
        evaluate(folder, tmp_path / "parts.json", **flags)
    evaluate(folder, tmp_path / "parts.json", **flags)
    assert calls == ([0, 3, 3] if bound_draws else [0, 4, 4])
    parts = json.loads((tmp_path / "parts.json").read_text())
    for content in (whole, parts):
        content.pop("seconds")
        content["samples"].pop("seconds")
        content["likelihood"].pop("seconds")
        (content["likelihood"]["bound"] or {"seconds": 0}).pop("seconds")
    assert parts == whole
    assert (tmp_path / "parts.json.npz").read_bytes() == (tmp_path / "whole.json.npz").read_bytes()
    assert "nothing to do" in evaluate(folder, tmp_path / "parts.json", **flags)
    assert not list(tmp_path.glob(".*"))


def test_mistakes_are_one_line_each(digits_run, tmp_path):
    folder, out = digits_run[0], tmp_path / "e.json"
    np.save(tmp_path / "many.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8))
    for flags, message in (
        ({"examples": 1}, "--examples must be at least 2, got 1"),
        ({"samples": 1}, "--samples must be 0 or at least 2"),
        ({"evaluations": 20, "tolerance": 1e-3}, "give one of them"),
        ({"tolerance": 0.0}, "--tolerance must be positive"),
        ({"out": tmp_path / "e.txt"}, "must end in .json"),
        ({"data": "moons"}, r"--data moons has examples of shape \(2,\), measurements; .* \(8, 8, 1\), 17 levels"),
        ({"data": f"npy:{tmp_path / 'many.npy'}"}, "256 levels; the model was trained on .* 17 levels"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            program(dataclasses.replace(Flags(folder, out), **flags), Console(quiet=True))
        assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["many.npy"]
