"""What a run leaves in its folder, read and checked: every mistake is one line that names the file."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import existing, reading

NUMBER, OPTIONAL = (int, float), (int, float, type(None))
DISTANCES = ("sliced_wasserstein", "mmd", "energy_distance")
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "data.name", "data.describe", "sde", "network.name", "likelihood.unit"), (str,)),
    **{"data.event_shape": (list,), "samples": (dict,)},
    **dict.fromkeys(("data.levels", "training.final_loss", "likelihood.exact"), OPTIONAL),
    **dict.fromkeys(("network.parameters", "training.steps", "training.seconds"), NUMBER),
    **{f"real.{distance}": NUMBER for distance in DISTANCES},
    **{f"likelihood.{key}": NUMBER for key in ("mean", "std_error", "examples", "repeats", "probes", "failed")},
    **{f"likelihood.{key}": NUMBER for key in ("num_evals", "seconds")},
}
SOLVER_KEYS = ("num_evals", "seconds", "ratio", *DISTANCES)
PATHS = ("forward", "reverse")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    with reading(existing(path)):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def check(path: Path, report: dict[str, Any]) -> None:
    """Raise InputError for the first key that is absent or of the wrong type."""
    keys = dict(KEYS)
    for solver in report.get("samples") or {}:
        keys |= {f"samples.{solver}.{key}": NUMBER for key in SOLVER_KEYS}
    for key, types in keys.items():
        value: Any = report
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(f"{path} has no {key}; run the job again")
            value = value[part]
        if not isinstance(value, types) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in types)
            raise InputError(f"{path}: {key} is {json.dumps(value)}; expected {expected}")


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    with reading(existing(path)):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), NUMBER) or "loss" not in entry:
            raise InputError(f"{path} line {number} has no step and loss; expected numbers for both")
        if not isinstance(entry["loss"], OPTIONAL):
            raise InputError(f"{path} line {number}: loss is {json.dumps(entry['loss'])}; expected a number")
    return entries


def levels(path: Path) -> list[dict[str, Any]]:
    """The lines of levels.jsonl, none where there is no such file."""
    with reading(path):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for number, entry in enumerate(entries, 1):
        if not all(isinstance(entry.get(name), list) for name in ("log_snr", "loss", "variance_explained")):
            raise InputError(f"{path} line {number}: no lists log_snr, loss and variance_explained; run the job again")
    return entries


def arrays(path: Path, report: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that the figures show, checked against the event's shape."""
    if not zipfile.is_zipfile(existing(path)):
        raise InputError(f"{path} cannot be read (no complete archive of arrays); run the job again")
    with reading(path), np.load(path) as stored:
        found = {name: stored[name] for name in stored.files}
    event = tuple(report["data"]["event_shape"])
    lead = {"real": 1, **{f"samples_{solver}": 1 for solver in report["samples"]}, **dict.fromkeys(PATHS, 2)}
    lead |= {f"classes_{weight}": 2 for weight in report.get("classes", {}).get("weights", [])}
    for name in (*lead, *(f"{way}_times" for way in PATHS), "log_prob"):
        if name not in found:
            raise InputError(f"{path} has no array {name}; run the job again")
        expected = event if name in lead else ()
        shape = found[name].shape
        if shape[lead.get(name, 1) :] != expected or math.prod(shape) == 0 or found[name].dtype.kind not in "buif":
            raise InputError(f"{path}: {name} is {found[name].dtype} {shape}; expected numbers, event {expected}")
    for way in PATHS:
        if len(found[way]) != len(found[f"{way}_times"]):
            raise InputError(f"{path}: {way} has {len(found[way])} frames and {len(found[f'{way}_times'])} times")
    return found
