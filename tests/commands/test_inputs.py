"""The six commands that keep what they did: their inputs known by content, their draws by number, whatever the batch.

One small run on four-step series of two classes serves all.
"""

import contextlib
import functools
import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console
from small import save_run

from experiments import distance, edit, evaluate, guide, inverse, sample
from experiments.cli.errors import InputError, Interrupted
from experiments.measures import extractors
from experiments.measures.jobs import Parts
from experiments.models import saved

RNG = np.random.default_rng(0)
PROGRAMS = {"sample": sample, "evaluate": evaluate, "guide": guide, "edit": edit, "inverse": inverse}
slow = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def opened_by_content():
    """Each opening of a run makes a new network, which compiles anew: once for each content of a folder."""
    opened, real = {}, saved.open_run

    def open_run(path, target="score"):
        sha = hashlib.sha256(target.encode())
        for file in sorted(path.rglob("*")):
            sha.update(file.read_bytes() if file.is_file() else b"")
        if (key := sha.digest()) not in opened:
            opened[key] = real(path, target)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (*PROGRAMS.values(), extractors):
            patch.setattr(module, "open_run", open_run)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the data, the runs and the files that the commands are given."""
    folder = tmp_path_factory.mktemp("world")
    labels = np.arange(240) % 2
    np.savez(folder / "data.npz", x=series(240) + labels[:, None, None], labels=labels)
    for name, flags in (("run", {"condition": "class"}), ("classifier", {"target": "class"}), ("plain", {})):
        for seed in (0, 1):
            save_run(folder / f"{name}-{seed}", f"npz:{folder / 'data.npz'}", seed=seed, **flags)
    np.savez(folder / "mine.npz", x=series(6))
    holes = series(4)
    holes[:, 1] = np.nan
    np.save(folder / "holes.npy", holes)
    np.savez(folder / "samples.npz", arr_0=series(30))
    (folder / "features_of_test.py").write_text("def flat(x):\n    return x.reshape(len(x), -1)\n")
    return folder


def series(n):
    return RNG.normal(size=(n, 4, 1)).astype(np.float32)


def job(command, world, out, **flags):
    """What one command says, run on the files of the world."""
    text = io.StringIO()
    if command == "distance":
        known = {"reference": f"npz:{world / 'data.npz'}", "solver": "unipc", "evaluations": 4, "seed": 0}
        flags = distance.Flags(**{"samples": world / "samples.npz", "out": out} | known | flags)
        distance.program(flags, Console(file=text, width=500))
    else:
        program = PROGRAMS[command]
        flags = program.Flags(**{"checkpoint": world / "run-0", "out": out} | flags)
        program.program(flags, Console(file=text, width=500))
    return text.getvalue()


def arrays(out):
    """Every array and figure that a job left."""
    found = {}
    for path in [out, *out.parent.glob(f"{out.name}.npz"), *(out.iterdir() if out.is_dir() else [])]:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                found |= {f"{path.name}/{name}": stored[name] for name in stored.files}
        elif path.suffix == ".json":
            text = json.loads(path.read_text())
            found |= {f"{part}/{k}": v for part in ("samples", "real") for k, v in numbers(text.get(part)).items()}
    assert found
    return {name.partition("/")[2] if "/" in name else name: value for name, value in found.items()}


def numbers(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in numbers(part, f"{name}.{key}").items()}
    return {name: value} if isinstance(value, float) and not name.endswith("seconds") else {}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=2e-3, atol=2e-3, err_msg=name)


@contextlib.contextmanager
def changed(path):
    """Other content at the same place."""
    aside = path.with_name("aside")
    path.rename(aside)
    if aside.is_dir():
        name, _, seed = path.name.rpartition("-")
        shutil.copytree(path.with_name(f"{name}-{1 - int(seed)}"), path)
    elif path.suffix == ".py":
        path.write_text(aside.read_text() + "# changed\n")
    else:
        stored = np.load(aside)
        if path.suffix == ".npz":
            first = stored.files[0]
            np.savez(path, **dict(stored) | {first: stored[first] + np.float32(0.25)})
        else:
            np.save(path, stored + np.float32(0.25))
    try:
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        aside.rename(path)


@contextlib.contextmanager
def stopped_after_the_first_part():
    def save(self, *arguments, real=Parts.save):
        real(self, *arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="the same command continues"):
        patch.setattr(Parts, "save", save)
        yield


FEW = {"evaluations": 3}
CASES = {  # command, ending of --out, flags, and what is read: the flag that names it, and the name in the world
    "sample": ("sample", ".npz", {"n": 5, **FEW}, {"checkpoint": "run-0"}),
    "evaluate": (
        "evaluate",
        ".json",
        {"examples": 5, "evaluations": 4, "samples": 0},
        {"checkpoint": "plain-0", "data": "data.npz"},
    ),
    "guide": (
        "guide",
        "",
        {"method": "classifier", "weights": "0,2", "each": 2, **FEW},
        {"checkpoint": "run-0", "classifier": "classifier-0", None: "data.npz"},
    ),
    "edit": ("edit", ".npz", {"edit": "sdedit", "n": 3, **FEW}, {"checkpoint": "run-0", None: "data.npz"}),
    "inverse": (
        "inverse",
        "",
        {"method": "replacement", "each": 2, **FEW},
        {"checkpoint": "run-0", "input": "holes.npy"},
    ),
    "distance": (
        "distance",
        ".json",
        {"features": "python:features_of_test:flat", "extractor": "itself"},
        {"samples": "samples.npz", "reference": "data.npz", None: "features_of_test.py"},
    ),
    "evaluate-classes": (
        "evaluate",
        ".json",
        {"examples": 5, "evaluations": 4, "samples": 4, "sample_evaluations": 3},
        {"checkpoint": "run-0", "data": "data.npz"},
    ),
    "guide-weaker": (
        "guide",
        "",
        {"method": "autoguidance", "weights": "0,2", "each": 2, **FEW},
        {"checkpoint": "run-0", "weaker": "run-1"},
    ),
    "edit-input": ("edit", ".npz", {"edit": "denoise", "noise": 0.5, "n": 3, **FEW}, {"input": "mine.npz"}),
    "edit-direction": (
        "edit",
        ".npz",
        {"edit": "direction", "attribute": 1, "latents": 20, "n": 3, "input": "mine.npz"},
        {None: "data.npz"},
    ),
    "inverse-data": ("inverse", "", {"operator": "half", "n": 3, "each": 2, **FEW}, {None: "data.npz"}),
    "distance-classifier": ("distance", ".json", {}, {"features": "classifier-0"}),
}
CHEAP = ("sample", "evaluate", "guide", "edit", "inverse", "distance")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in CHEAP else slow) for c in CASES])
def test_a_job_is_known_by_the_content_of_its_inputs_and_continues_in_any_batch(case, world, tmp_path, monkeypatch):
    command, ending, flags, read = CASES[case]
    monkeypatch.syspath_prepend(world)

    def named(flag, path):
        if flag in ("data", "reference"):
            return {flag: f"npz:{path}"}
        return {} if flag is None else {flag: f"classifier:{path}" if flag == "features" else path}

    given = flags | {k: world / v for k, v in flags.items() if k == "input"}
    given |= {k: v for flag, name in read.items() for k, v in named(flag, world / name).items()}
    out, run = tmp_path / f"out{ending}", functools.partial(job, command, world)

    def check_refused(since):
        for name in read.values():
            with changed(world / name), pytest.raises(InputError) as refused:
                run(out, **given)
            message = str(refused.value)
            assert f"{name} has changed since {since}" in message.replace(" train", "").replace(" held-out", ""), name
            assert message.endswith("; choose another --out, or delete it") and "\n" not in message

    with stopped_after_the_first_part():
        run(out, **given, batch=3)
    assert not out.is_file() and (tmp_path / f".{out.name}.parts").is_dir()
    check_refused(f"the unfinished job in {tmp_path / f'.{out.name}.parts'} began")
    run(out, **given)
    run(tmp_path / f"whole{ending}", **given)
    assert_same(arrays(out), {k.replace("whole", "out"): v for k, v in arrays(tmp_path / f"whole{ending}").items()})
    assert not list(tmp_path.glob(".*"))
    check_refused(f"{out} was made")
    for flag, name in read.items():
        moved = tmp_path / f"moved-{name}"
        if flag is not None:
            (shutil.copytree if (world / name).is_dir() else shutil.copy)(world / name, moved)
        assert "nothing to do" in run(out, **given | named(flag, moved), batch=4)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m == "diffpir" else slow) for m in (*inverse.METHODS, *inverse.SAMPLERS)],
)
def test_restored_draws_do_not_depend_on_the_batch(world, tmp_path, method):
    flags = {"method": method, "operator": "half", "n": 2, "each": 3, "evaluations": 4}
    for batch in (6, 4):
        job("inverse", world, tmp_path / str(batch), **flags, batch=batch)
    whole, halves = (arrays(tmp_path / str(batch))["draws"] for batch in (6, 4))
    free = whole[:, :, 2:]
    assert len(np.unique(free)) == free.size
    np.testing.assert_allclose(halves, whole, rtol=1e-3, atol=1e-3)


EDITED = {
    "sdedit": {"label": 1, "guidance": 2.0},
    "translate": {"label": 1},
    "interpolate": {"between": 3, "n": 4},
    "direction": {"attribute": 1, "latents": 20},
    "denoise": {"noise": 0.5, "blind": True},
    "panorama": {"canvas": "7"},
    "outpaint": {"canvas": "6"},
}


@pytest.mark.parametrize("kind", [pytest.param(e, marks=() if e == "outpaint" else slow) for e in EDITED])
def test_edits_do_not_depend_on_the_batch(world, tmp_path, kind):
    for batch in (4, 2):
        flags = {"edit": kind, "n": 3, **FEW} | EDITED[kind]
        job("edit", world, tmp_path / f"{batch}.npz", **flags, batch=batch)
    assert_same(*(arrays(tmp_path / f"{batch}.npz") for batch in (4, 2)))


@pytest.mark.parametrize("plan", [{"seed": 0, "batch": 256, "parameters_sha256": "ab", "step": 3}, {"inputs": "x"}, {}])
def test_a_manifest_without_the_content_of_its_inputs_is_refused_in_one_line(world, tmp_path, plan):
    (tmp_path / "a.npz").touch()
    (tmp_path / "a.npz.json").write_text(json.dumps({"plan": plan}))
    with pytest.raises(InputError, match="a.npz was made by a version that did not record the content of its inputs;"):
        job("sample", world, tmp_path / "a.npz", n=3, **FEW)
    (tmp_path / ".b.npz.parts").mkdir()
    (tmp_path / ".b.npz.parts" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="unfinished job by a version that did not record the content of its inputs;"):
        job("sample", world, tmp_path / "b.npz", n=3, **FEW)
