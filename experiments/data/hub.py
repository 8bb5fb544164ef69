"""Sets of the Hugging Face hub, through its `datasets` package where that is installed.

`train` (or the only split) is the training part; `test`, or else `validation`, is held out. Images are the first image
feature, otherwise the examples are the numeric columns; a class feature gives the labels.
"""

from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, required
from experiments.data.headers import check_fits
from experiments.data.images import said_of, shape_of
from experiments.data.pictures import described, pixels_of


def read_hub(name: str, options: Options) -> Raw:
    """The set NAME as arrays in memory."""
    datasets = required("datasets", "--data hf:")
    try:
        parts = datasets.load_dataset(name)
    except Exception as error:  # whatever the network, the hub or the set itself may raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"hf:{name} cannot be loaded ({reason}); check the name and the connection") from None
    splits = list(parts)
    first = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
    if first is None:
        raise InputError(f"hf:{name} has the splits {', '.join(splits)}; expected `train`, or just one")
    second = next((s for s in ("test", "validation") if s in splits and s != first), None)
    features = parts[first].features
    classes = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    picture = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    columns = [k for k, f in features.items() if isinstance(f, datasets.Value) and f.dtype[:3] in ("int", "flo", "uin")]
    if picture is None and not columns:
        raise InputError(f"hf:{name} has the features {', '.join(features)}; expected images or columns of numbers")

    notes: list[str] = []

    def read(split: str) -> np.ndarray:
        if picture is None:
            return checked(
                np.stack([np.asarray(parts[split][k], np.float64) for k in columns], 1), f"hf:{name} {split}"
            )
        pixels, said = _images(parts[split], picture, f"hf:{name} {split}", options)
        notes.extend(f"{split}: {note}" for note in said)
        return pixels

    def labels(split: str) -> np.ndarray | None:
        return None if classes is None else np.asarray(parts[split][classes])

    train, test = read(first), None if second is None else read(second)
    return Raw(
        train,
        test,
        None if picture is None or train.dtype != np.uint8 else 256,
        labels(first),
        None if second is None else labels(second),
        None if classes is None else tuple(features[classes].names),
        note="; ".join(notes),
    )


def _images(part: Any, key: str, where: str, options: Options) -> tuple[np.ndarray, list[str]]:
    """Images of one size, and what was done to them."""
    names = [f"row {row}" for row in range(len(part))]
    heads = [described(_picture(e[key]), f"{where} {name}") for e, name in zip(part, names, strict=True)]
    shape = shape_of(heads, names, f"{where} ", options.size)
    check_fits(len(heads) * int(np.prod(shape)), where, options.in_memory_gib)
    rows = [
        pixels_of(_picture(example[key]), f"{where} {name}", known, options.alpha, options.size)
        for example, name, known in zip(part, names, heads, strict=True)
    ]
    return np.stack(rows), said_of(heads, options)


def _picture(example: Any) -> Any:
    """An example as a picture of Pillow, which a set may hold as an array."""
    return required("PIL.Image", "reading images").fromarray(example) if isinstance(example, np.ndarray) else example
