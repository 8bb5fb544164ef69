"""The public image sets, read from a folder or downloaded once with a checked SHA-256, and any IDX file.

digits          scikit-learn's 1,797 images of 8x8, 17 grey levels; the first 1,500 of
                `numpy.random.default_rng(0).permutation(1797)` train, the last 297 are held out
mnist, fashion-mnist    60,000 + 10,000 images of 28x28 in four IDX files (.gz or unpacked)
cifar10         50,000 + 10,000 images of 32x32x3: the authors' binary archive, or their Python archive (a
                pickle, opened only if its SHA-256 is theirs), or two zips or folders of images whose
                names contain `train` and `test`
"""

import gzip
import hashlib
import math
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, existing, reading, required
from experiments.data.headers import check_fits
from experiments.data.images import read_images

IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR_BINARY, CIFAR_PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
HOSTS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
SHA256 = {
    "mnist": dict(
        zip(
            IDX_FILES,
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
            strict=True,
        )
    ),
    "fashion-mnist": dict(
        zip(
            IDX_FILES,
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            strict=True,
        )
    ),
    "cifar10": {
        CIFAR_BINARY: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        CIFAR_PYTHON: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    },
}


def digits() -> Raw:
    """scikit-learn's digits with the fixed split of the module docstring."""
    bunch = required("sklearn.datasets", "the digits data").load_digits()
    images, labels = bunch.images.astype(np.uint8)[..., None], bunch.target
    order = np.random.default_rng(0).permutation(1797)
    train, held_out = order[:1500], order[1500:]
    return Raw(images[train], images[held_out], 17, labels[train], labels[held_out])


def mnist(name: str, folder: Path | None) -> Raw:
    """MNIST or Fashion-MNIST, from `folder` (or its subfolder of that name) or the download cache."""
    arrays = [read_idx(path, Options().in_memory_gib) for path in _located(name, folder, IDX_FILES)]
    train, train_labels, held_out, held_out_labels = arrays
    for images, labels, part in ((train, train_labels, "train"), (held_out, held_out_labels, "t10k")):
        if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
            raise InputError(
                f"{name}: the {part} files hold images {images.shape} and labels {labels.shape}; "
                "fetch the originals again"
            )
    return Raw(train[..., None], held_out[..., None], 256, train_labels, held_out_labels)


def read_idx_pair(name: str, options: Options) -> Raw:
    """Any IDX file, with the labels beside it where it is called *-images-idx3-ubyte and they *-labels-idx1-ubyte."""
    path = existing(name)
    values = read_idx(path, options.in_memory_gib)
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = read_idx(beside, options.in_memory_gib) if beside != path and beside.is_file() else None
    examples = checked(values[..., None] if values.ndim == 3 else values, str(path))
    return Raw(examples, levels=256 if values.dtype == np.uint8 else None, train_labels=labels)


def read_idx(path: Path, most_gib: float) -> np.ndarray:
    """The values of an IDX file, packed or not: 0 0 type rank, big-endian sizes, big-endian values."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES:
            raise InputError(f"{path} is no IDX file of bytes or other numbers; fetch the original again")
        shape, dtype = np.frombuffer(file.read(4 * start[3]), ">u4").tolist(), np.dtype(IDX_TYPES[start[2]])
        size = math.prod(shape) * dtype.itemsize
        check_fits(size, path, most_gib)
        content = file.read(size + 1)
        if len(shape) != start[3] or len(content) != size:
            more = "more than " if len(content) > size else ""
            held = min(len(content), size) // dtype.itemsize
            raise InputError(f"{path} holds {more}{held} values, its header says {shape}; fetch it again")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def cifar10(folder: Path | None) -> Raw:
    """CIFAR-10 in any of the forms of the module docstring."""
    base = None if folder is None else _subfolder("cifar10", folder)
    if base is None:
        return _cifar_binary(fetch("cifar10", CIFAR_BINARY))
    if (base / CIFAR_BINARY).is_file():
        return _cifar_binary(base / CIFAR_BINARY)
    if (base / CIFAR_PYTHON).is_file():
        return _cifar_python(base / CIFAR_PYTHON)
    found = [p for p in sorted(base.iterdir()) if p.is_dir() or p.suffix == ".zip"]
    parts = [next((p for p in found if word in p.name.lower()), None) for word in ("train", "test")]
    if parts[0] is None or parts[1] is None:
        raise InputError(
            f"{base} holds neither {CIFAR_BINARY} nor image zips or folders named *train* and *test*; "
            "put them there, or leave out --data-dir to download"
        )
    in_memory = Options(in_memory_gib=math.inf)
    train, held_out = read_images(parts[0], in_memory), read_images(parts[1], in_memory)
    assert isinstance(held_out.train, np.ndarray)
    for raw, path in ((train, parts[0]), (held_out, parts[1])):
        if raw.train.shape[1:] != (32, 32, 3):
            raise InputError(f"{path} holds images of shape {raw.train.shape[1:]}; CIFAR-10 is 32x32 RGB")
    return Raw(train.train, held_out.train, 256, train.train_labels, held_out.train_labels)


def _cifar_binary(path: Path) -> Raw:
    """Records of one label byte and 3 x 32 x 32 bytes."""

    def batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        return records[:, 0], records[:, 1:]

    return _cifar(path, "data_batch_{}.bin", "test_batch.bin", batch)


def _cifar_python(path: Path) -> Raw:
    _check_hash(path, SHA256["cifar10"][CIFAR_PYTHON])

    def batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
        record = pickle.loads(content, encoding="bytes")
        return np.array(record[b"labels"], np.uint8), record[b"data"]

    return _cifar(path, "data_batch_{}", "test_batch", batch)


def _cifar(path: Path, train: str, test: str, batch: Callable[[bytes], tuple[np.ndarray, np.ndarray]]) -> Raw:
    wanted = [train.format(i) for i in range(1, 6)] + [test]
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with reading(path):
        for name, content in _members(path, wanted):
            labels, rows = batch(content)
            parts[name] = labels, np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    if missing := [name for name in wanted if name not in parts]:
        raise InputError(f"{path} lacks {', '.join(missing)}; fetch the original again")
    images, labels = (np.concatenate([parts[n][k] for n in wanted[:-1]]) for k in (1, 0))
    return Raw(images, parts[test][1], 256, labels, parts[test][0])


def _members(path: Path, wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                stream: Any = archive.extractfile(member) if member.isfile() and name in wanted else None
                if stream is not None:
                    yield name, stream.read()
    except tarfile.TarError as error:
        raise ValueError(str(error)) from None


def _subfolder(name: str, folder: Path) -> Path:
    base = existing(folder, folder=True)
    if not base.is_dir():
        raise InputError(f"--data-dir {folder} is a file; give the folder that holds {name}")
    return base / name if (base / name).is_dir() else base


def _located(name: str, folder: Path | None, files: tuple[str, ...]) -> list[Path]:
    """The files in the folder, packed or unpacked, or downloaded."""
    if folder is None:
        return [fetch(name, file) for file in files]
    base, paths = _subfolder(name, folder), []
    for file in files:
        path = next((p for p in (base / file, base / file.removesuffix(".gz")) if p.is_file()), None)
        if path is None:
            raise InputError(f"{base} lacks {file}; put it there, or leave out --data-dir to download")
        paths.append(path)
    return paths


def fetch(name: str, file: str) -> Path:
    """A file of a public set from the cache (SCORESDE_DATA, or the user's cache folder), downloaded if need be."""
    pooch = required("pooch", f"downloading {name}")
    cache = Path(os.environ.get("SCORESDE_DATA") or pooch.os_cache("scoresde")) / name
    expected = SHA256[name][file]
    try:
        return Path(pooch.retrieve(HOSTS[name] + file, known_hash=expected, fname=file, path=cache))
    except Exception as error:
        if isinstance(error, ValueError) and "hash" in str(error):
            reason = f"what came is not the original (SHA-256 differs from {expected[:12]}...)"
        else:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{name}: {HOSTS[name]}{file} could not be downloaded to {cache}: {reason}; fetch it by "
            "other means and give its folder with --data-dir"
        ) from None


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise InputError(
                f"{path} is not the original (SHA-256 differs from {expected[:12]}...), and a pickle is "
                f"not opened unchecked; use {CIFAR_BINARY}"
            )
