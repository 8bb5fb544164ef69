"""Sound: WAV files cut to windows, (n, window, 1), all of one rate or resampled to one.

8- and 16-bit PCM are levels (256, or 65,536 after adding 32,768), so that they have bits per sample; 24- and 32-bit PCM
and floats are measurements in [-1, 1). Channels are averaged, and rounded down where they are levels. The rest of a
file after its last whole window is left out. Windows of one file are not independent: a split keeps files whole.

Files of another rate than `--rate` pass a polyphase filter (``scipy.signal.resample_poly``); levels are rounded again.
"""

import contextlib
import io
import math
import struct
import warnings

import numpy as np
from scipy.io import wavfile

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, existing, reading
from experiments.data.headers import check_fits
from experiments.data.listing import folders, listing

FULL_SCALE = {"uint8": 1, "int16": 1, "int32": 2.0**31, "float32": 1, "float64": 1}
LEVELS = {"uint8": 256, "uint16": 65536}


def read_audio(name: str, options: Options) -> Raw:
    """Windows of all WAV files of a folder (searched deeply), zip or tar, in the order of their names.

    Where every file lies in a folder and there are several folders, their names are the classes.
    """
    path, size, wanted = existing(name, folder=True), options.window, options.rate
    for flag, value in (("window", size), ("rate", wanted)):
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")
    with reading(path), contextlib.closing(listing(path, tar=(".wav",), most_gib=options.in_memory_gib)) as found:
        files, hidden = found.ending((".wav",))
        if not files:
            raise InputError(f"{path} holds no WAV files" + (f"; {hidden}" if hidden else ""))
        check_fits(sum(found.files[file].size for file in files), path, options.in_memory_gib)
        waves = [_wave(found.files[file].read(), f"{path}/{found.top}{file}") for file in files]
    rate, dtype = wanted or waves[0][0], waves[0][1].dtype
    check_fits(sum(samples.nbytes * rate // max(old, 1) for old, samples in waves), path, options.in_memory_gib)
    windows, names, short, changed = [], [], 0, 0
    for file, (this_rate, samples) in zip(files, waves, strict=True):
        if samples.dtype != dtype or (this_rate != rate and wanted is None):
            advice = "use --rate 8000" if samples.dtype == dtype else "convert them all alike"
            first = f"{files[0]} has {waves[0][0]} Hz {dtype}"
            place = f"{path}/{found.top}{file}"
            raise InputError(f"{place} has {this_rate} Hz {samples.dtype} samples, but {first}; {advice}")
        if this_rate != rate:
            changed += 1
            samples = _resampled(samples, this_rate, rate, f"{path}/{found.top}{file}")
        whole = len(samples) // size
        short += whole == 0
        windows.append(samples[: whole * size].reshape(whole, size, 1))
        names += [file] * whole
    if not names:
        raise InputError(f"{path}: no file has {size} samples; choose a smaller --window")
    notes = [f"{rate} Hz, windows of {size} samples"]
    notes += [f"{changed} of {len(files)} files resampled to {rate} Hz"] * bool(changed)
    notes += [f"{short} shorter file(s) left out"] * bool(short)
    return Raw(
        np.concatenate(windows),
        levels=LEVELS.get(dtype.name),
        train_labels=folders(names),
        groups=np.unique(names, return_inverse=True)[1],
        note=", ".join(notes) + (f"; {hidden}" if hidden else ""),
    )


def _resampled(samples: np.ndarray, old: int, new: int, where: str) -> np.ndarray:
    """Samples (n,) of the rate `old` at the rate `new`, of the same type; about zero, so that no end of it rings."""
    from scipy.signal import resample_poly

    if old < 1:
        raise InputError(f"{where} has {old} Hz; expected a positive rate")
    common = math.gcd(old, new)
    middle = LEVELS.get(samples.dtype.name, 0) // 2
    x = resample_poly(samples.astype(np.float64) - middle, new // common, old // common) + middle
    levels = LEVELS.get(samples.dtype.name)
    return (x if levels is None else np.clip(np.rint(x), 0, levels - 1)).astype(samples.dtype)


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
