"""Sets of the Hugging Face hub, through its `datasets` package where that is installed.

`train` (or the only split) is the training part; `test`, or else `validation`, is held out. Images are the first image
feature, otherwise the examples are the numeric columns; a class feature gives the labels.
"""

from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, required


def read_hub(name: str, options: Options) -> Raw:
    """The set NAME as arrays in memory."""
    del options
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

    def read(split: str) -> np.ndarray:
        if picture is None:
            return checked(
                np.stack([np.asarray(parts[split][k], np.float64) for k in columns], 1), f"hf:{name} {split}"
            )
        return _images(parts[split], picture, f"hf:{name} {split}")

    def labels(split: str) -> np.ndarray | None:
        return None if classes is None else np.asarray(parts[split][classes])

    return Raw(
        read(first),
        None if second is None else read(second),
        None if picture is None else 256,
        labels(first),
        None if second is None else labels(second),
        None if classes is None else tuple(features[classes].names),
    )


def _images(part: Any, key: str, where: str) -> np.ndarray:
    """8-bit images of one size."""
    images: list[np.ndarray] = []
    for row, example in enumerate(part):
        image = np.asarray(example[key])
        image = image if image.ndim == 3 else image[:, :, None]
        if image.dtype != np.uint8 or image.shape[-1] not in (1, 3) or image.shape != (images or [image])[0].shape:
            raise InputError(
                f"{where} row {row} holds an image {image.shape} of {image.dtype}; "
                "expected 8-bit grey or RGB of one size"
            )
        images.append(image)
    return np.stack(images)
