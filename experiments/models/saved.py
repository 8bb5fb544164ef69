"""A trained model from disk: the folder of a run, or its checkpoint alone, as the objects that made it.

The checkpoint's metadata hold the configuration and, where it was written so, the record of the data: shape, range and
scaling. A run whose checkpoint has no such record measures its data again, which must then still be where they were.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.data.labels import SHOWN
from experiments.data.load import load
from experiments.models.build import Model, build
from experiments.models.flags import Config
from scoresde.checkpoint import folder as checkpoint


class Opened(NamedTuple):
    """What ``open_run`` gives."""

    config: Config
    """With every preset filled in; ``workdir`` is the folder of the run, or None for a bare checkpoint."""
    data: Data
    """Shape and scaling; no examples."""
    model: Model
    state: ss.State

    def parameters(self, *, raw: bool = False) -> tuple[Any, str]:
        """What is evaluated, the moving average or the last (``raw``) parameters, and its name."""
        return (self.state.params, "last parameters") if raw else (self.state.ema, "moving average of the parameters")


KINDS = {"score": "a score (experiments.run)", "class": "a classifier (experiments.classifier)"}


def open_run(path: str | Path, target: str = "score") -> Opened:
    """The run in the folder ``path`` (``runs/digits-vp``) or in its checkpoint folder, one of a ``target`` of KINDS.

    Raises:
        InputError: there is no such folder, it holds no run or one of another target, it is damaged, or another version
            wrote it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no folder {path}: expected that of a run, such as runs/digits-vp, or its checkpoint")
    folder = path / "checkpoint"
    folder = folder if folder.is_dir() else path
    try:
        metadata = checkpoint.read_metadata(folder)
    except FileNotFoundError:
        raise InputError(f"{path} is no run: no checkpoint in it; expected a folder like runs/digits-vp") from None
    except ValueError as error:
        raise InputError(str(error)) from None
    config = _config(folder, metadata)
    if config.target != target:
        raise InputError(f"{path} holds {KINDS[config.target]}; expected {KINDS[target]}")
    data = Data.from_record(metadata.get("data", {}))
    try:
        model = build(config, data)
        state = checkpoint.restore(folder, jax.eval_shape(model.init))[0]
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    return Opened(config, data, model, state)


def _config(folder: Path, metadata: dict[str, Any]) -> Config:
    """The configuration in the metadata, with the flags that do not change a checkpoint from config.json beside it."""
    beside = folder.parent / "config.json"
    fields = set(Config().flat())
    stored = metadata.get("config")
    unknown = set(stored) - fields if isinstance(stored, dict) else set()
    if not isinstance(stored, dict) or unknown:
        what = f"its configuration has {', '.join(sorted(unknown))}" if unknown else "no configuration"
        raise InputError(f"{folder} is of another version of scoresde: {what}; open it with the version that wrote it")
    flags: dict[str, Any] = {}
    if beside.is_file():
        try:
            flags = json.loads(beside.read_text())
        except ValueError:
            raise InputError(f"{beside} is damaged: no JSON; put back a copy or delete it") from None
    flags = {name: value for name, value in flags.items() if name in fields} | stored
    flags["data_dir"] = Path(flags["data_dir"]) if flags.get("data_dir") else None
    flags["workdir"] = folder.parent if beside.is_file() else None
    return Config.of(**flags)


def examples(opened: Opened, *, spec: str | None = None, data_dir: Path | None = None) -> Data:
    """The data of a run with their examples, or those that ``spec`` names; ``data_dir`` as for ``--data-dir``.

    Classes have the numbers that the run knows them by.

    Raises:
        InputError: the data cannot be read, or have classes that the run does not know.
    """
    config, known = opened.config, opened.data.labels
    own = spec is None or spec == config.data
    folder = data_dir or config.data_dir if own else data_dir
    data = load(spec or config.data, data_dir=folder, options=config.options, record=opened.data.record())
    if data.labels is not None and data.labels != known and (own or config.objective.condition == "class"):
        foreign = [word for word in data.labels.words if known is None or word not in known.words]
        others = f"the classes {', '.join(foreign[:SHOWN])}" if foreign else data.labels.describe()
        raise InputError(
            f"{data.name} has {others}, which the run did not know: {known.describe() if known else 'no labels'}"
        )
    return data


def digest(params: Any) -> str:
    """SHA-256 of names, shapes, dtypes and values of a tree of parameters: what says that two results share a model."""
    sha = hashlib.sha256()
    for name, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(name)} {array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
