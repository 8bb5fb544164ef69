"""Labels: classes that a person knows by name, or real numbers.

The classes are the values that occur and no others: numbers in their order, words in that of a reader (`2` before
`10`). A network knows the i-th of them as i, a person by its name, which is the value as the source writes it. Whole
numbers are classes however they are stored: as integers, as floats, as a column (n, 1), one-hot (n, K).
"""

import difflib
import re
from typing import Any, NamedTuple

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Raw

SHOWN = 12  # names in a line


class Labels(NamedTuple):
    """What labels are: whole numbers 0..classes-1, or real numbers."""

    classes: int | None
    """None for real numbers."""
    names: tuple[str, ...] | None = None
    """The names of the classes; None where they are 0..classes-1 themselves."""

    @property
    def words(self) -> tuple[str, ...]:
        """The names of all classes."""
        return tuple(map(str, range(self.classes or 0))) if self.names is None else self.names

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What stands in a file for the classes `codes` of any shape: numbers if all names are, else the names."""
        if self.names is None:
            return codes
        numbers = all(re.fullmatch("0|[1-9][0-9]{,17}", name) for name in self.names)
        return np.array(self.names, np.int64 if numbers else None)[codes]

    def describe(self) -> str:
        """In a few words."""
        if self.classes is None:
            return "real labels"
        more = ", ..." if self.classes > SHOWN else ""
        return f"{self.classes} classes" + (f" ({', '.join(self.names[:SHOWN])}{more})" if self.names else "")


def class_of(flag: str, word: Any, labels: Labels | None, name: str) -> int | None:
    """The class of the data called `name` that a flag names, None where it is not given; InputError for no class."""
    if word is None:
        return None
    words = () if labels is None else labels.words
    if not words or labels is None:
        raise InputError(f"--{flag} {word}: {name} has no classes; drop it")
    if str(word) in words:
        return words.index(str(word))
    if labels.names is None:
        raise InputError(f"--{flag} must be in 0..{len(words) - 1}, the classes of {name}, got {word}")
    close = difflib.get_close_matches(str(word), words, n=1)
    listed = ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"--{flag} must be one of the {len(words)} classes of {name}, {listed}; got {word}{hint}")


def check_taught(labels: Labels, train_labels: np.ndarray | None, name: str) -> None:
    """Raise InputError where a class has no training example, so that a network could not know it."""
    if train_labels is None or labels.classes is None:
        return
    if lacking := np.flatnonzero(np.bincount(train_labels, minlength=labels.classes) == 0).tolist():
        listed = ", ".join(labels.words[i] for i in lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
        raise InputError(
            f"{name}: no training example of {len(lacking)} of its {labels.classes} classes ({listed}), which networks "
            "that know classes need: leave them out, or give more examples"
        )


def code(raw: Raw, name: str) -> tuple[Raw, Labels | None]:
    """Labels as int32 0..K-1 or as float32, and what they are; labels that do not match are an InputError."""
    parts = [(raw.train_labels, raw.train, "training")]
    parts += [] if raw.held_out is None else [(raw.held_out_labels, raw.held_out, "test")]
    given = [(np.asarray(labels), values, part) for labels, values, part in parts if labels is not None]
    if not given:
        return raw, None
    for labels, values, part in given:
        if labels.ndim == 0 or len(labels) != len(values):
            raise InputError(f"{name}: labels of shape {labels.shape} for {len(values)} {part} examples; give one each")
        if labels.dtype.kind not in "buifUS":
            raise InputError(f"{name}: labels must be whole numbers, words or finite real numbers, got {labels.dtype}")
    if len(given) < len(parts):
        raise InputError(f"{name}: only one of its training and test parts has labels; give both, or none")
    columns = [_column(labels) for labels, _, _ in given]
    if len({(column.shape[1:], column.dtype.kind in "US") for column in columns}) > 1:
        shapes = " and ".join(f"{labels.dtype} {labels.shape}" for labels, _, _ in given)
        raise InputError(f"{name}: the labels of its training and test parts are of two kinds: {shapes}")
    coded, kind = _coded(np.concatenate(columns), raw.label_names, name)
    n = len(columns[0])
    return raw._replace(train_labels=coded[:n], held_out_labels=coded[n:] if len(given) == 2 else None), kind


def _column(labels: np.ndarray) -> np.ndarray:
    """Labels (n,), also of (n, 1) and of one-hot (n, K); floats that are whole numbers become integers."""
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim == 2 and labels.dtype.kind in "buif" and np.isin(labels, (0, 1)).all():
        labels = labels.argmax(axis=1) if (labels.sum(axis=1) == 1).all() else labels
    whole = labels.dtype.kind == "f" and labels.ndim == 1 and np.all(np.abs(labels) < 2.0**53)
    return labels.astype(np.int64) if whole and np.all(labels == np.floor(labels)) else labels


def _coded(labels: np.ndarray, label_names: tuple[str, ...] | None, name: str) -> tuple[np.ndarray, Labels]:
    """The labels of all parts as int32 or float32, and what they are."""
    if labels.dtype.kind not in "US" and (labels.dtype.kind == "f" or labels.ndim > 1):
        if not np.isfinite(labels).all():
            raise InputError(f"{name}: labels must be whole numbers, words or finite real numbers; some are not finite")
        return labels.astype(np.float32), Labels(None)
    values, codes = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "US":
        order = np.array(sorted(range(len(values)), key=lambda i: _natural(str(values[i]))))
        return np.argsort(order)[codes].astype(np.int32), Labels(len(values), tuple(str(values[i]) for i in order))
    if values[0] < 0:
        raise InputError(f"{name}: label {values[0]} is negative; classes count from 0")
    if label_names is not None:
        if values[-1] >= len(label_names):
            raise InputError(f"{name}: label {values[-1]} is beyond its {len(label_names)} classes")
        names = tuple(label_names[int(value)] for value in values)
    else:
        names = None if values[-1] == len(values) - 1 else tuple(str(int(value)) for value in values)
    return codes.astype(np.int32), Labels(len(values), names)


def _natural(word: str) -> tuple[list[Any], str]:
    """Sorts the numbers in words as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", word))], word


def _place(word: str, words: tuple[str, ...]) -> int | None:
    """The class of that name, or of a folder that was called by all those above it too."""
    if word in words:
        return words.index(word)
    longer = [i for i, known in enumerate(words) if known.endswith(f"/{word}")]
    return longer[0] if len(longer) == 1 else None


def as_recorded(raw: Raw, kind: Labels | None, known: Labels | None) -> tuple[Raw, Labels | None]:
    """Labels of `code` in the classes that an earlier reading of these data, or of others like them, knew.

    Labels that were not read then are left out. Labels of classes that were not known stay as they are.
    """
    if kind is None or known is None:
        return raw._replace(train_labels=None, held_out_labels=None), None
    if kind.classes is None:
        return raw, kind
    if known.classes is not None:
        places = [_place(word, known.words) for word in kind.words]
        if None in places:
            return raw, kind
        now = np.array(places, np.int32)
    elif kind.values(np.zeros(0, int)).dtype.kind in "iu":
        now = kind.values(np.arange(kind.classes)).astype(np.float32)
    else:
        return raw, kind

    def again(labels: np.ndarray | None) -> np.ndarray | None:
        return None if labels is None else now[labels]

    return raw._replace(train_labels=again(raw.train_labels), held_out_labels=again(raw.held_out_labels)), known
