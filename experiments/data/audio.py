"""Sound: WAV files of one rate cut to windows, (n, window, 1).

8- and 16-bit PCM are levels (256, or 65,536 after adding 32,768), so that they have bits per sample; 24- and 32-bit PCM
and floats are measurements in [-1, 1). Channels are averaged, and rounded down where they are levels. The rest of a
file after its last whole window is left out. Windows of one file are not independent: a split keeps files whole.
"""

import io
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, existing, reading

FULL_SCALE = {"uint8": 1, "int16": 1, "int32": 2.0**31, "float32": 1, "float64": 1}


def read_audio(name: str, options: Options) -> Raw:
    """Windows of all WAV files of a folder (searched deeply), zip or tar, in the order of their names.

    Where every file lies in a folder and there are several folders, their names are the classes.
    """
    path, size = existing(name, folder=True), options.window
    if size < 1:
        raise InputError(f"--window must be at least 1, got {size}")
    windows, names, short, first = [], [], 0, ""
    rate, dtype = 0, np.dtype(np.uint8)
    with reading(path):
        for file, content in sorted(_members(path), key=lambda member: member[0]):
            this_rate, samples = _wave(content, f"{path}/{file}")
            rate, dtype, first = (rate, dtype, first) if first else (this_rate, samples.dtype, file)
            if (this_rate, samples.dtype) != (rate, dtype):
                raise InputError(
                    f"{path}/{file} has {this_rate} Hz {samples.dtype} samples, but {first} has {rate} Hz {dtype}; "
                    "resample or convert them all alike"
                )
            whole = len(samples) // size
            short += whole == 0
            windows.append(samples[: whole * size].reshape(whole, size, 1))
            names += [file] * whole
    if not first:
        raise InputError(f"{path} holds no WAV files")
    if not names:
        raise InputError(f"{path}: no file has {size} samples; choose a smaller --window")
    note = f"{rate} Hz, windows of {size} samples" + (f", {short} shorter file(s) left out" if short else "")
    folders = [file.rpartition("/")[0] for file in names]
    labelled = "" not in folders and 1 < len(set(folders)) < len(set(names))
    return Raw(
        np.concatenate(windows),
        levels={"uint8": 256, "uint16": 65536}.get(dtype.name),
        train_labels=np.array(folders) if labelled else None,
        groups=np.unique(names, return_inverse=True)[1],
        note=note,
    )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and content of every WAV file."""
    if path.is_dir():
        files: Any = ((p.relative_to(path).as_posix(), p.read_bytes) for p in path.rglob("*") if p.is_file())
        yield from ((name, read()) for name, read in files if name.lower().endswith(".wav"))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from ((n, archive.read(n)) for n in archive.namelist() if n.lower().endswith(".wav"))
    else:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    stream = tar.extractfile(member) if member.name.lower().endswith(".wav") else None
                    if stream is not None:
                        yield member.name, stream.read()
        except tarfile.TarError:
            raise ValueError("neither a folder, nor a zip, nor a whole tar") from None


def _wave(content: bytes, where: str) -> tuple[int, np.ndarray]:
    """Rate and samples (n,) of a WAV file: uint8, uint16 or float32."""
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that it does not know
        warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except (wavfile.WavFileWarning, struct.error) as error:
            raise ValueError(str(error)) from None
    if samples.dtype.name not in FULL_SCALE:
        raise InputError(f"{where} holds {samples.dtype} samples; expected 8 to 32-bit PCM or floats")
    channels = samples.reshape(len(samples), -1)
    if samples.dtype.itemsize > 2:
        return rate, checked(channels.mean(axis=1) / FULL_SCALE[samples.dtype.name], where)[:, 0]
    levels = channels.astype(np.int32).sum(axis=1) // channels.shape[1]
    return rate, (levels + 2**15).astype(np.uint16) if samples.dtype == np.int16 else levels.astype(np.uint8)
