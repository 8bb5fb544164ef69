"""The two sides of a distance: samples with what is known of how they were drawn, and a reference with its hash."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Examples, Options, existing, read_npz
from experiments.data.dataset import Data
from experiments.data.images import read_images
from experiments.data.load import load

PartWord = Literal["held-out", "train", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Without each of these a distance means nothing, so it is printed by ``line`` alone, with all of them."""

    examples: int
    features: str
    reference: str
    reference_examples: int
    reference_sha256: str
    solver: str
    evaluations: int
    seed: int

    def line(self, distance: str, examples: int, value: str, real: str = "") -> str:
        """A distance of so many samples or, where ``real`` names them, real examples."""
        whose = real or f"{self.solver}, {self.evaluations} evaluations, seed {self.seed}"
        reference = f"{self.reference}, {self.reference_examples} examples, sha256 {self.reference_sha256[:12]}"
        return f"{distance} distance @{examples}: {value} ({whose}; {self.features}; {reference})"


class Samples(NamedTuple):
    """Samples from disk."""

    x: np.ndarray
    """(n, *event), as stored."""
    png: bool
    """Whether they were pictures, scaled to 0..255."""
    manifest: dict[str, Any]
    """What ``experiments.sample`` wrote beside them; empty if there is nothing."""


def samples(path: Path) -> Samples:
    """The samples in a folder of pictures, or the only array of an .npz.

    Raises:
        InputError: they cannot be read, or their manifest speaks of another number.
    """
    path = existing(path, folder=True)
    if not path.is_dir() and path.suffix != ".npz":
        raise InputError(f"--samples {path} must be an .npz or a folder of PNGs, as experiments.sample writes them")
    whole = Options(in_memory_gib=math.inf)
    raw = read_images(path, whole) if path.is_dir() else read_npz(str(path), whole)
    beside = path.with_name(path.name + ".json")
    try:
        manifest = json.loads(beside.read_text()) if beside.exists() else {}
        count = manifest["plan"]["count"] if manifest else len(raw.train)
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{beside} is no manifest of experiments.sample; move it away, or draw the samples again"
        ) from None
    if count != len(raw.train):
        raise InputError(f"{path} holds {len(raw.train)} examples, {beside.name} says {count}: draw them again")
    return Samples(np.asarray(raw.train), path.is_dir(), manifest)


def drawn_by(flags: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """Solver, evaluations and seed, from the manifest or else the flags.

    Raises:
        InputError: one of them is unknown, or said twice and not alike.
    """
    known = {name: manifest.get("plan", {}).get(name) for name in ("solver", "evaluations", "seed")}
    for name, value in known.items():
        given = getattr(flags, name)
        if None not in (value, given) and given != value:
            raise InputError(f"--{name} {given}: the manifest of {flags.samples} says {value}; drop the flag")
        known[name] = given if value is None else value
    if missing := [name for name, value in known.items() if value is None]:
        raise InputError(
            f"{', '.join(missing)} of {flags.samples} unknown (no {flags.samples.name}.json says it), and no distance "
            f"is given without: add {' '.join(f'--{name}' for name in missing)}"
        )
    return known


class Reference(NamedTuple):
    """The examples that samples are compared with."""

    name: str
    data: Data
    parts: list[Examples]
    other: Examples
    """The part that it has nothing of, empty where there is none,"""
    other_name: str
    """and its name."""

    @property
    def size(self) -> int:
        """Examples in all."""
        return sum(map(len, self.parts))


def reference(spec: str, part: PartWord, data_dir: Path | None) -> Reference:
    """The training part, the held-out part or both of what --data would name ``spec``."""
    data = load(spec, data_dir=data_dir)
    parts: dict[str, Examples] = {"held-out": data.held_out, "train": data.train}
    if part == "all":
        return Reference(f"{data.name} all", data, list(parts.values()), data.held_out[:0], "")
    chosen = parts.pop(part)
    ((other, rest),) = parts.items()
    return Reference(f"{data.name} {part}", data, [chosen], rest, f"{data.name} {other}")


def levels_of(found: Samples, data: Data) -> int | None:
    """The integer levels of the samples, which are of the shape and kind of the data of the reference.

    Raises:
        InputError: they are not.
    """
    levels, x = found.manifest.get("levels", data.levels), found.x
    if (levels is None) != (data.levels is None):
        kinds = ["measurements" if n is None else f"{n} levels" for n in (levels, data.levels)]
        raise InputError(f"the samples are {kinds[0]}, the reference is {kinds[1]}: compare like with like")
    if found.png and levels is None:
        raise InputError("samples of measurements have lost their scale in PNGs: draw them to an .npz")
    if x.shape[1:] != data.event_shape:
        raise InputError(f"the samples have shape {x.shape[1:]}, those of the reference {data.name} {data.event_shape}")
    levels = 256 if found.png else levels
    if levels is not None and (x.dtype.kind == "f" or x.max() >= levels):
        raise InputError(
            f"the samples must be whole numbers in 0..{levels - 1}; they are {x.dtype} up to {x.max():.6g}"
        )
    return levels
