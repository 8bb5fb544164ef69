"""Fréchet and kernel distance of samples to a reference, by any feature function, with all that they depend on.

    python -m experiments.sample --checkpoint runs/digits-vp --n 1000 --out FILE.npz
    python -m experiments.distance --samples FILE.npz --out FILE.json

No distance is printed without the number of samples, the reference and its hash, the features, the solver, its
evaluations and the seed; where one is unknown the program refuses. Each comes with its standard error, the Fréchet
distance also extrapolated to samples without end (``ss.evaluation``), and with the same distance of as many real
examples of the part that is not the reference, where there is one: what a perfect sampler would get.

``--features`` are described in ``experiments.measures.extractors``. For Inception's, either give a function of yours,

    python -m experiments.distance --samples FOLDER --features python:MODULE:FUNCTION \\
        --extractor "Inception-v3 of 2015-12-05, bilinear to 299" --out FILE.json

or hand pictures to the tools that define FID. ``--export FOLDER`` writes FOLDER/samples and FOLDER/reference, a PNG an
image, for torch-fidelity (without a GPU --cpu) and clean-fid (on a GPU):

    fidelity --gpu 0 --fid --kid --input1 FOLDER/samples --input2 FOLDER/reference
    python -c "from cleanfid import fid; print(fid.compute_fid('FOLDER/samples', 'FOLDER/reference', mode='clean'))"

Both make three equal channels of a grey picture and resize to 299 x 299, each in its own way, so that their numbers
compare with others of the same tool alone. With fewer than 1,000 pictures torch-fidelity's --kid needs
--kid-subset-size; clean-fid has fid.compute_kid.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.writing import write_pictures
from experiments.data.arrays import Examples
from experiments.figures import panels
from experiments.measures import references
from experiments.measures.extractors import Extractor, extractor, seen
from experiments.measures.inputs import Input, of_examples, sha256
from experiments.measures.jobs import Work, carry_out, rows
from experiments.measures.references import Facts, PartWord, Reference, Samples

LEAST, SIDES = 20, ("samples", "reference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginFlags:
    """How the samples were drawn, where no manifest says it."""

    HEADING: ClassVar[str] = "origin"

    solver: str | None = None
    """How the samples were drawn, where no manifest says it."""
    evaluations: int | None = None
    """Network evaluations of each, likewise."""
    seed: int | None = None
    """Likewise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(OriginFlags):
    """Compare samples with a reference: Fréchet and kernel distance by any feature function, PNGs for other tools."""

    samples: Path
    """FILE.npz or folder of PNGs by experiments.sample; or others of such form, with --solver --evaluations --seed."""
    out: Path
    """FILE.json to write."""
    reference: str | None = None
    """Data, as for --data of experiments.run; by default those that the samples' model was trained on."""
    part: PartWord = "held-out"
    """Which of its examples."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are."""
    features: str = "random"
    """pixels, random, classifier:RUN or python:MODULE:FUNCTION."""
    extractor: str | None = None
    """python: what your function is, in words: network, weights, resizing."""
    export: Path | None = None
    """Folder for PNGs of both sides, for torch-fidelity and clean-fid."""
    batch: int = 256
    """Examples given to the feature function at once."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        if self.batch < 1:
            raise InputError(f"--batch must be at least 1, got {self.batch}")
        if self.out.suffix != ".json":
            raise InputError(f"--out {self.out} must end in .json")


def _features(name: str, x: Examples, levels: int | None, by: Extractor, work: Work) -> np.ndarray:
    """(n, F) of examples in raw units."""

    def job(first: int, size: int) -> dict[str, np.ndarray]:
        found = np.asarray(by.of(seen(rows(x, first, size), levels)))
        if found.ndim != 2 or len(found) != size or found.dtype.kind not in "buif":
            raise InputError(f"{by.name} must give features ({size}, F), it gave {found.dtype} {found.shape}")
        return {"features": found}

    return work.run(name, job, len(x))["features"]


def _distances(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    try:
        frechet, kernel = ss.evaluation.frechet_distance(x, y), ss.evaluation.kernel_distance(x, y)
    except ValueError as error:
        raise InputError(f"no distance: {error}") from None
    return {"examples": len(x), "frechet": frechet._asdict(), "kernel": kernel._asdict()}


def _check_export(folder: Path, levels: int | None, against: Reference) -> None:
    """Raise InputError if the two sides cannot be PNGs in this folder."""
    shape = against.data.event_shape
    if levels is None or not panels.is_image(shape) or shape[2:] not in ((), (1,), (3,)):
        raise InputError(f"--export is for grey or RGB images of integer levels, not for {against.data.describe()}")
    for name in SIDES:
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists; choose another --export")


def _export(folder: Path, x: np.ndarray, levels: int | None, against: Reference) -> None:
    """Both sides as PNGs."""
    sides: list[tuple[list[Examples], int | None]] = [([x], levels), (against.parts, against.data.levels)]
    for name, (parts, top) in zip(SIDES, sides, strict=True):
        write_pictures(folder / name, (seen(p[i : i + 1], top)[0] for p in parts for i in range(len(p))))


def _real(against: Reference, count: int) -> np.ndarray | None:
    """So many examples of the part that is not the reference, at most all; None where there are too few."""
    if len(against.other) < LEAST:
        return None
    return against.other[np.sort(np.random.default_rng(0).permutation(len(against.other))[:count])]


def _compare(x: np.ndarray, levels: int | None, against: Reference, by: Extractor, work: Work) -> dict[str, Any]:
    """The distances of the samples and of as many real examples to the reference."""
    known = against.data.levels
    parts = [_features(f"reference-{i}", part, known, by, work) for i, part in enumerate(against.parts)]
    reference = np.concatenate(parts)
    result = {"samples": _distances(_features("samples", x, levels, by, work), reference), "real": None}
    if (real := _real(against, len(x))) is not None:
        result["real"] = _distances(_features("real", real, known, by, work), reference)
    return result | {"feature_length": reference.shape[1]}


def _reference(flags: Flags, found: Samples) -> Reference:
    """What the flags, or else the manifest, name."""
    spec = flags.reference or found.manifest.get("data")
    if not spec:
        raise InputError(f"the reference is unknown (no {flags.samples.name}.json names data): add --reference")
    against = references.reference(spec, flags.part, flags.data_dir)
    if (least := min(len(found.x), against.size)) < LEAST:
        raise InputError(f"a distance needs {LEAST} examples on both sides at least, got {least}")
    return against


def program(flags: Flags, console: Console) -> None:
    """Compare, write, and print the distances with all that they depend on."""
    flags.check()
    found = references.samples(flags.samples)
    drawn = references.drawn_by(flags, found.manifest)
    against = _reference(flags, found)
    levels = references.levels_of(found, against.data)
    by = extractor(flags.features, against.data, flags.extractor)
    facts = Facts(
        examples=len(found.x),
        features=by.name,
        reference=against.name,
        reference_examples=against.size,
        reference_sha256=sha256(against.parts),
        **drawn,
    )
    plan = drawn | {"levels": levels, "features": by.kind, "part": flags.part}
    inputs = {"samples": of_examples(str(flags.samples), found.x)}
    inputs |= {"reference": Input(against.name, facts.reference_sha256)}
    real = _real(against, len(found.x)), against.data.mean, against.data.std
    inputs |= {"real": of_examples(against.other_name or against.name, *real)}
    inputs |= {"features": by.made_of} if by.made_of else {}

    def make(work: Work) -> dict[str, Any]:
        if flags.export is not None:
            _check_export(flags.export, levels, against)
        compared = _compare(found.x, levels, against, by, work)
        if flags.export is not None:
            _export(flags.export, found.x, levels, against)
        return {"facts": dataclasses.asdict(facts), "manifest": found.manifest} | compared

    done = carry_out("distance", flags.out, plan, inputs, make, batch=flags.batch, console=console, manifest=flags.out)
    if done:
        _show(done, facts, against, console)
        console.print(f"{done['seconds']} s; {flags.out}", highlight=False)


def _show(result: dict[str, Any], facts: Facts, against: Reference, console: Console) -> None:
    """A line for each distance."""
    for figures, real in ((result["samples"], ""), (result["real"], f"real, of {against.other_name}")):
        if figures is None:
            continue
        n, frechet, kernel = figures["examples"], figures["frechet"], figures["kernel"]
        value = f"{frechet['distance']:.4g}, at infinite size {frechet['limit']:.4g} ± {frechet['std_error']:.2g}"
        console.print(facts.line("Fréchet", n, value, real), highlight=False)
        value = f"{kernel['distance']:.4g} ± {kernel['std_error']:.2g}"
        console.print(facts.line("kernel", n, value, real), highlight=False)
    if (least := min(facts.examples, facts.reference_examples)) <= result["feature_length"]:
        console.print(
            f"{least} examples are not above {result['feature_length']} features: the Fréchet distance is mostly "
            "bias, of which its extrapolation keeps a part",
            highlight=False,
        )


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "distance", program)


if __name__ == "__main__":
    main()
