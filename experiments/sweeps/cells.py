"""The cells of a sweep: a training and a measurement of it, described by settings, with results kept by content.

A cell is what the flags of ``experiments.run`` (a training) and of ``Measurement`` say, with every preset filled in.
Its place follows from that content alone, so that sweeps that share cells share their results:

    FOLDER/CODE/TRAINED/                    a run: config.json, checkpoint, metrics.jsonl
    FOLDER/CODE/TRAINED/MEASURED.json       a measurement of it

CODE is a digest of the sources, comments and docstrings aside, and of the versions of JAX and of what else computes,
since others may give other numbers, TRAINED one of the flags that the checkpoint depends on and of what was measured of
the data, MEASURED one of what the measurement depends on.
"""

import ast
import csv
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.machine import versions
from experiments.data.arrays import Options
from experiments.data.dataset import Data
from experiments.data.load import load
from experiments.measures.likelihoods import TOLERANCE, Settings
from experiments.models import solvers
from experiments.models.flags import Config
from experiments.models.targets import TARGETS

Setting = dict[str, Any]
KINDS = ("likelihood", "bound", "samples")
REFUSED = ("seed", "workdir", "resume", "dry_run", "coordinator", "processes", "process_id", "distributed")
OF_MEASURING = ("samples", "likelihood_examples", "likelihood_probes", "likelihood_repeats", "seed")
"""Flags of ``experiments.run`` that a measurement depends on and a training does not, and the seed of both."""
DIGITS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement(solvers.SolverFlags):
    """What is measured of a trained model."""

    measure: str = "likelihood+samples"
    """Some of likelihood, bound (the variational one of integer data) and samples (their distance to held-out data)."""
    tolerance: float = TOLERANCE
    """Of the likelihood in adaptive steps, relative and absolute."""
    likelihood_evaluations: int | None = None
    """Take a fixed grid of so many evaluations for the likelihood instead."""
    guidance: float = 1.0
    """Weight of the class in the samples of a model trained with --condition class."""
    raw: bool = False
    """Take the last parameters instead of their moving average."""
    ema_length: Annotated[float | None, tyro.conf.arg(metavar="SIGMA_REL")] = None
    """Take an average of this relative length, of a training with --ema-lengths."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        super().check()
        unknown = [word for word in self.kinds if word not in KINDS]
        if unknown or not self.kinds:
            raise InputError(f"--measure takes some of {'+'.join(KINDS)}, got {self.measure!r}")
        if not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance must be in (0, 1), got {self.tolerance}")
        self.at_least(likelihood_evaluations=4)
        if self.raw and self.ema_length is not None:
            raise InputError("--raw and --ema-length contradict each other: drop one")

    @property
    def kinds(self) -> list[str]:
        return [word for word in self.measure.split("+") if word]

    def settings(self, config: Config) -> Settings:
        """How the likelihood is measured."""
        how, grid = config.evaluation, self.likelihood_evaluations
        whole = Settings(how.likelihood_probes, how.likelihood_repeats, grid, self.tolerance)
        return whole if "bound" in self.kinds else dataclasses.replace(whole, bound_draws=0)


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Measurement)} | Config().flat()
"""Of every flag that a cell may have."""
OF_CONFIG = set(Config().flat())


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training and one measurement of it."""

    asked: Setting
    """What the sweep said of it, the seed included: what its row of the table is called by."""
    config: Config
    """With every preset filled in."""
    measurement: Measurement
    record: dict[str, Any] = dataclasses.field(repr=False)
    """What was measured of the data."""

    @functools.cached_property
    def trained(self) -> str:
        return digest({"flags": self.config.training(), "data": self.record})

    @functools.cached_property
    def measured(self) -> str:
        of_config = {name: value for name, value in self.config.flat().items() if name in OF_MEASURING}
        return digest(of_config | dataclasses.asdict(self.measurement) | self.measurement.chosen())

    @property
    def program(self) -> str:
        """What two cells have in common whose trainings differ in the seed alone."""
        return digest({"flags": self.config.training() | {"seed": None}, "data": self.record})

    def folder(self, root: Path) -> Path:
        return root / self.trained

    def path(self, root: Path) -> Path:
        """Of the result."""
        return self.folder(root) / f"{self.measured}.json"

    def result(self, root: Path) -> dict[str, Any] | None:
        """The figures of the cell, or {"error": message}; None while it is not done."""
        try:
            return json.loads(self.path(root).read_text())
        except FileNotFoundError:
            return None


def digest(content: Any) -> str:
    """A name for JSON content: the beginning of its SHA-256."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def code_digest(root: Path = Path(__file__).parents[2]) -> str:
    """A name for what the library and the programs below ``root`` do, and for the packages that they compute with.

    Programs that only the repository has are left out.
    """
    files = sorted(path for package in ("scoresde", "experiments") for path in (root / package).rglob("*.py"))
    names = {file.relative_to(root): file for file in files}
    sources = {n.as_posix(): _syntax(f) for n, f in names.items() if n.parts[1] not in ("benchmarks", "notebooks")}
    return digest({"sources": sources, "versions": versions()})[:8]


def _syntax(file: Path) -> str:
    """What a source does: its syntax tree without the constants that stand as statements, docstrings above all."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return ast.dump(tree)


def parse_axes(words: Iterable[str]) -> dict[str, list[Any]]:
    """``("sde=vp,ve", "steps=500")`` as {"sde": ["vp", "ve"], "steps": [500]}."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not (equals and values):
            raise InputError(f"--grid takes NAME=VALUE,VALUE,... such as sde=vp,ve, got {word!r}")
        name = named(name)
        if name in axes:
            raise InputError(f"--grid names {name} twice: put its values into one list")
        axes[name] = list(dict.fromkeys(typed(name, value) for value in values.split(",")))
    return axes


def named(name: str) -> str:
    """The field that a name means; InputError unless a sweep may vary it."""
    field = name.strip().removeprefix("--").replace("-", "_")
    if field == "seed":
        raise InputError("the seed is not an axis: give --seeds 3 or --seeds 0,1,2")
    allowed = [flag for flag in DEFAULTS if flag not in (*REFUSED, "target")]
    if field not in allowed:
        close = difflib.get_close_matches(field, allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; python -m experiments.run --help lists the flags"
        raise InputError(f"{name!r} is no flag that a sweep can vary{hint}")
    return field


@functools.cache
def typed(name: str, text: str) -> Any:
    """The value of a flag as its command line would read it."""
    default, flag = DEFAULTS[name], f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        if (word := text.lower()) not in ("true", "false"):
            raise InputError(f"{flag} is true or false, got {text!r}")
        return word == "true"
    if text.lower() == "none" and default is None:
        return None
    if name in OF_CONFIG:
        return commands.read(Config, "sweep", [flag, text]).flat()[name]
    return getattr(commands.read(Measurement, "sweep", [flag, text]), name)


def read_list(path: Path) -> list[Setting]:
    """Settings from FILE.json, a list of objects, or FILE.csv, a row each below the names; empty fields are not set."""
    try:
        text = path.read_text()
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except OSError as error:
        raise InputError(f"cannot read --cells {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--cells {path} is no JSON: {error}") from None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise InputError(f'--cells {path} must hold a list of settings such as [{{"sde": "ve", "steps": 500}}]')
    return [
        {named(str(k)): typed(named(str(k)), str(v)) for k, v in row.items() if v not in ("", None)} for row in rows
    ]


def expand(listed: list[Setting], axes: dict[str, list[Any]], seeds: list[int]) -> list[Cell]:
    """A cell for each entry of the list, each point of the grid and each seed; equal cells once.

    Raises:
        InputError: a setting that a cell cannot have, named with the cell; nothing was compiled.
    """
    both = sorted({name for entry in listed for name in entry} & set(axes))
    if both:
        raise InputError(f"{', '.join(both)} is in the list of cells and in --grid: drop one")
    cells: dict[tuple[str, str], Cell] = {}
    for entry in listed or [{}]:
        for values in itertools.product(*axes.values()):
            setting = entry | dict(zip(axes, values, strict=True))
            for cell in _of_setting(setting, seeds):
                cells.setdefault((cell.trained, cell.measured), cell)
    return list(cells.values())


def _of_setting(setting: Setting, seeds: list[int]) -> list[Cell]:
    of_config = {name: value for name, value in setting.items() if name in OF_CONFIG}
    of_measurement = {name: value for name, value in setting.items() if name not in OF_CONFIG}
    try:
        config, measurement = Config.of(**of_config), Measurement(**of_measurement)
        config.check()
        measurement.check()
        data = _data(config.data, config.data_dir, config.options)
        config = config.resolve(data)
        TARGETS[config.target].check(config.objective, data)
        measurement.table(config.process(), data.sigma_data)
        if measurement.guidance != 1 and config.objective.condition == "none":
            raise InputError("--guidance is for models trained with --condition class")
        if measurement.ema_length is not None and not config.optimiser.ema_lengths:
            raise InputError("--ema-length is for trainings with --ema-lengths")
    except InputError as error:
        shown = " ".join(f"{name}={value}" for name, value in setting.items())
        raise InputError(f"cell {shown}: {error}" if setting else str(error)) from None
    record = json.loads(json.dumps(data.record()))
    seeded = ((seed, config.replace(seed=seed)) for seed in seeds)
    return [Cell(setting | {"seed": seed}, config, measurement, record) for seed, config in seeded]


@functools.lru_cache(maxsize=2)
def _data(spec: str, folder: Path | None, options: Options) -> Data:
    return load(spec, data_dir=folder, options=options)
