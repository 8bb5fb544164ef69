"""``experiments.distance``: the library's distances of what an extractor gives, never without what they depend on."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import save_run

import scoresde as ss
from experiments import sample
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.distance import Flags, program
from experiments.measures.extractors import extractor, seen
from experiments.measures.inputs import sha256
from experiments.measures.references import reference

PLAN = {"solver": "unipc", "evaluations": 12, "seed": 7}
DIGITS = load("digits")


def save(path, x, plan=PLAN, **about):
    np.savez(path, arr_0=x)
    if about:
        about = {"plan": plan | {"count": len(x)}} | about
        path.with_name(path.name + ".json").write_text(json.dumps(about))
    return path


def of_digits(path, n=60, plan=PLAN):
    return save(path, DIGITS.train[:n], plan, data="digits", levels=17)


def compare(samples, out, **flags):
    text = io.StringIO()
    program(Flags(samples=samples, out=out, **flags), Console(file=text, width=500))
    return json.loads(out.read_text()), text.getvalue()


def scaled(x):
    return (np.round(x.astype("f8") / 16 * 255) / 127.5 - 1).reshape(len(x), -1)


def test_the_distances_are_the_library_s_and_no_line_lacks_what_they_depend_on(tmp_path):
    path = of_digits(tmp_path / "a.npz")
    found, said = compare(path, tmp_path / "d.json", features="pixels")
    x, y = scaled(DIGITS.train[:60]), scaled(DIGITS.held_out)
    assert found["samples"]["frechet"] == pytest.approx(ss.evaluation.frechet_distance(x, y)._asdict(), rel=1e-3)
    assert found["samples"]["kernel"] == pytest.approx(ss.evaluation.kernel_distance(x, y)._asdict(), rel=1e-3)
    sha = found["facts"]["reference_sha256"]
    numbers = [line for line in said.splitlines() if "±" in line]
    assert len(numbers) == 4 == said.count("distance @60: ")
    assert all(f"pixels; digits held-out, 297 examples, sha256 {sha[:12]})" in line for line in numbers)
    assert all("(unipc, 12 evaluations, seed 7;" in line for line in numbers[:2])
    assert all("(real, of digits train;" in line for line in numbers[2:])
    assert "60 examples are not above 64 features" in said
    assert found["plan"] | PLAN == found["plan"] and found["manifest"]["plan"]["count"] == 60
    assert not list(tmp_path.glob(".*"))
    assert "is complete; nothing to do" in compare(path, tmp_path / "d.json", features="pixels")[1]


def test_a_part_of_the_reference_has_its_hash_and_another_part_to_be_compared_with():
    hashes = set()
    for part, size, rest in (("held-out", 297, 1500), ("train", 1500, 297), ("all", 1797, 0)):
        against = reference("digits", part, None)
        assert (against.size, len(against.other)) == (size, rest)
        sha = hashlib.sha256()
        for x in {"held-out": [DIGITS.held_out], "train": [DIGITS.train], "all": [DIGITS.held_out, DIGITS.train]}[part]:
            sha.update(f"uint8({len(x)}, 8, 8, 1)".encode() + x.tobytes())
        assert sha256(against.parts) == sha.hexdigest()
        hashes.add(sha.hexdigest())
    assert len(hashes) == 3


def test_without_another_part_there_are_no_real_examples_to_compare(tmp_path):
    found, said = compare(of_digits(tmp_path / "a.npz", 40), tmp_path / "d.json", part="all", features="pixels")
    assert found["real"] is None and said.count("distance @") == 2


def test_pictures_are_exported_as_samples_are_and_give_the_same_distance(tmp_path):
    path = of_digits(tmp_path / "a.npz", 30)
    found, _ = compare(path, tmp_path / "a.json", features="pixels", export=tmp_path / "out")
    folder = tmp_path / "out" / "samples"
    for name, x in (("samples", DIGITS.train[:30]), ("reference", DIGITS.held_out)):
        assert len(list((tmp_path / "out" / name).iterdir())) == len(x)
        for i in (0, len(x) - 1):
            with Image.open(tmp_path / "out" / name / f"{i:06d}.png") as picture:
                assert picture.mode == "L"
                np.testing.assert_array_equal(np.asarray(picture), np.round(x[i, ..., 0] / 16 * 255))
    same, _ = compare(folder, tmp_path / "b.json", features="pixels", reference="digits", **PLAN)
    assert same["samples"] == found["samples"]
    with pytest.raises(InputError, match="samples exists; choose another --export"):
        compare(path, tmp_path / "c.json", export=tmp_path / "out")


def test_points_are_measured_in_standard_deviations_of_the_reference(tmp_path):
    moons = load("moons")
    path = save(tmp_path / "p.npz", moons.train[:500] + np.float32(0.5), data="moons", levels=None)
    found, _ = compare(path, tmp_path / "p.json", features="pixels")
    shift = np.sum((0.5 / moons.std) ** 2)
    assert abs(found["samples"]["frechet"]["limit"] - shift) < 5 * found["samples"]["frechet"]["std_error"]
    assert abs(found["real"]["frechet"]["limit"]) < 5 * found["real"]["frechet"]["std_error"] + 0.01
    with pytest.raises(InputError, match="--export is for grey or RGB images"):
        compare(path, tmp_path / "q.json", export=tmp_path / "out")


def test_your_function_is_given_what_pictures_hold(tmp_path, monkeypatch):
    (tmp_path / "mine_of_test.py").write_text(
        "import numpy as np\n"
        "def means(x):\n"
        "    assert x.dtype == np.uint8 and x.shape[1:] == (8, 8, 1)\n"
        "    return x.mean(axis=2)[..., 0]\n"
        "def whole(x):\n    return x\n"
        "def nan(x):\n    return np.full((len(x), 2), np.nan)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = of_digits(tmp_path / "a.npz")
    flags = {"features": "python:mine_of_test:means", "extractor": "means of rows"}
    found, said = compare(path, tmp_path / "d.json", **flags)
    means = np.round(DIGITS.train[:60] / 16 * 255).mean(axis=2)[..., 0]
    expected = ss.evaluation.frechet_distance(means, np.round(DIGITS.held_out / 16 * 255).mean(axis=2)[..., 0])
    assert found["samples"]["frechet"]["distance"] == pytest.approx(expected.distance)
    assert "; means of rows (python:mine_of_test:means); " in said and found["plan"]["inputs"]["features"]["where"]
    for flags, message in (
        ({"features": "python:mine_of_test:means"}, "mine_of_test:means is, is unknown: give --extractor"),
        ({"features": "python:mine_of_test:other"}, "other.*must be a function in a file"),
        ({"features": "python:nothing_of_test:f"}, "No module named 'nothing_of_test'"),
        (
            {"features": "python:mine_of_test:whole"},
            r"must give features \(60, F\), it gave uint8 \(60, 8, 8, 1\)|\(149, F\)",
        ),
        ({"features": "python:mine_of_test:nan"}, "no distance: 60 of 60 examples have features that are not finite"),
    ):
        words = {} if "is unknown" in message else {"extractor": "mine"}
        with pytest.raises(InputError, match=message):
            compare(path, tmp_path / "e.json", **flags, **words)


def test_mistakes_are_one_line_each(tmp_path):
    of_digits(tmp_path / "a.npz", 30)
    of_digits(tmp_path / "few.npz", 19)
    of_digits(tmp_path / "half.npz", 30, {"solver": "unipc", "seed": 1})
    save(tmp_path / "bare.npz", DIGITS.train[:30])
    save(tmp_path / "floats.npz", np.ones((30, 8, 8, 1)), data="digits", levels=17)
    save(tmp_path / "measured.npz", np.ones((30, 8, 8, 1)), data="digits", levels=None)
    save(tmp_path / "high.npz", np.full((30, 8, 8, 1), 17), data="digits", levels=17)
    save(tmp_path / "small.npz", np.ones((30, 4, 4, 1), "u1"), data="digits", levels=17)
    np.savez(tmp_path / "lost.npz", arr_0=DIGITS.train[:29])
    (tmp_path / "lost.npz.json").write_text((tmp_path / "a.npz.json").read_text())
    np.savez(tmp_path / "odd.npz", arr_0=DIGITS.train[:29])
    (tmp_path / "odd.npz.json").write_text("{")
    for name, flags, message in (
        ("bare", {}, r"solver, evaluations, seed of .*bare.npz unknown .*: add --solver --evaluations --seed"),
        ("bare", {"solver": "mine", "seed": 3}, "evaluations of .* unknown .* no distance is given without"),
        ("bare", PLAN, "the reference is unknown .* add --reference"),
        ("half", {}, "evaluations of .*half.npz unknown"),
        ("a", {"seed": 8}, "--seed 8: the manifest of .* says 7; drop the flag"),
        ("a", {"features": "inception"}, "--features must be pixels, random, classifier:RUN or python"),
        ("a", {"extractor": "mine"}, "--features random is known: drop it"),
        ("a", {"features": "classifier:none"}, "no folder none"),
        ("a", {"batch": 0}, "--batch must be at least 1"),
        ("a", {"out": tmp_path / "d.txt"}, "must end in .json"),
        ("a", {"reference": "moons"}, "samples are 17 levels, the reference is measurements"),
        ("a", {"out": tmp_path / "none" / "d.json", "reference": "digitz"}, "did you mean digits"),
        ("few", {}, "needs 20 examples on both sides at least, got 19"),
        ("floats", {}, r"whole numbers in 0..16; they are float32 up to 1"),
        ("high", {}, r"whole numbers in 0..16; they are uint8 up to 17"),
        ("measured", {}, "samples are measurements, the reference is 17 levels"),
        ("small", {}, r"samples have shape \(4, 4, 1\)"),
        ("lost", {}, "holds 29 examples, lost.npz.json says 30"),
        ("odd", {}, "no manifest of experiments.sample"),
        ("absent", {}, "absent.npz does not exist"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            compare(tmp_path / f"{name}.npz", **{"out": tmp_path / "d.json"} | flags)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("d*")) and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_features_of_a_classifier_are_what_its_last_layer_sees(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(200, 3)).astype("f4"), labels=np.arange(200) % 2)
    for folder, spec in ((tmp_path / "images", "digits"), (tmp_path / "vectors", f"npz:{tmp_path / 'x.npz'}")):
        _, data, model = save_run(folder, spec, target="class", weight="noise")
        params, x = model.init().ema, data.held_out[:6]
        kernel, bias = (rng.normal(size=params["output"][name].shape).astype("f4") for name in ("kernel", "bias"))
        params["output"] |= {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        h = np.asarray(extractor(f"classifier:{folder}", data, None).of(seen(x, data.levels)))
        assert h.shape == (6, len(kernel)) and np.ptp(h) > 0
        logits = h @ kernel + bias
        log_p = model.log_probs(params)(data.to_model(x), model.sde.t_min)
        np.testing.assert_allclose(logits - np.log(np.exp(logits).sum(1, keepdims=True)), log_p, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_command_from_samples_to_distances(digits_run, tmp_path):
    quiet = Console(quiet=True)
    sample.program(sample.Flags(checkpoint=digits_run[0], out=tmp_path / "s", n=40, evaluations=4, seed=3), quiet)

    def command(*flags):
        words = [sys.executable, "-m", "experiments.distance", "--samples", str(tmp_path / "s"), *flags]
        return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)

    done = command("--out", str(tmp_path / "d.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best, 4 evaluations, seed 3; random, 128; digits held-out, 297 examples, sha256") == 2
    refused = command("--out", str(tmp_path / "e.json"), "--features", "python:numpy:mean")
    assert refused.returncode == 2 and refused.stderr.startswith("error: what numpy:mean is, is unknown")
    assert refused.stderr.count("\n") == 1
