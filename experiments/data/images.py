"""Images of one size from a folder (searched deeply) or a zip: (n, height, width, channels) of 256 levels, or 16 bits.

All headers are read before any image is decoded. Labels come from `dataset.json`, {"labels": [[file, label], ...]}, the
layout of EDM; without that file, where every image lies in a folder and there are several folders, their names are the
classes.
"""

import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, Rows, existing, reading, required
from experiments.data.headers import GIB, check_fits
from experiments.data.listing import File, Listing, folders, listing
from experiments.data.pictures import Head, decoded, head
from experiments.data.statistics import MOST_HELD_OUT

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MOST_VALUES = 2**22
"""In one example, whatever the network."""
MOST_RATIO, FROM = 500, GIB // 4
"""Of bytes of pixels, where they are more than FROM, to those of the files: beyond it nearly all have one value."""
AT_ONCE = 4096  # headers
BYTES_A_PIXEL = 16  # at most, while a picture is decoded, turned and freed of its alpha


def read_images(name: str | Path, options: Options) -> Raw:
    """The images in the order of their names, decoded by one thread a core; streamed from disk where they are many."""
    path = existing(name, folder=True)
    if options.size is not None and options.size < 1:
        raise InputError(f"--size must be at least 1, got {options.size}")
    with reading(path):
        found = listing(path)
    streamed = False
    try:
        raw = _read(path, found, options)
        streamed = isinstance(raw.train, Rows)
        return raw
    finally:
        if not streamed:
            found.close()


def _read(path: Path, found: Listing, options: Options) -> Raw:
    """The images of a folder or an open zip, which must stay open where they are streamed."""
    side = options.size
    with reading(path):
        names, hidden = found.ending(SUFFIXES)
        if not names:
            raise InputError(
                f"{path} holds no images ({' '.join(SUFFIXES[:3])} ...)" + (f"; {hidden}" if hidden else "")
            )
        labels, listed = _labels(path, found.files, names)
    files = [found.files[name] for name in names]
    heads = heads_of(files, names, f"{path}/{found.top}")
    shape = shape_of(heads, names, f"{path}/{found.top}", side)
    largest = max(one.size[0] * one.size[1] for one in heads) * BYTES_A_PIXEL
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, max(1, GIB // largest)))

    def one(row: int) -> np.ndarray:
        where = f"{path}/{found.top}{names[row]}"
        pixels = decoded(files[row], where, heads[row], options.alpha, side)
        if pixels.shape != shape:
            raise InputError(f"{where} has shape {pixels.shape}, but its header said {shape}: it has changed")
        return pixels

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack(list(pool.map(one, rows.tolist())))

    deep = heads[0].kind == "I"
    rows = Rows(read, np.arange(len(names)), shape, np.uint16 if deep else np.uint8)
    size = int(np.prod(shape)) * rows.dtype.itemsize
    whole, stored = len(names) * size, sum(file.size for file in files)
    large = whole > options.in_memory_gib * GIB
    if large:
        held_out = min(len(names) // 10, MOST_HELD_OUT)
        check_fits(
            held_out * size, f"{path}: holding out {held_out} images", max(options.in_memory_gib, Options.in_memory_gib)
        )
    if whole > max(FROM, MOST_RATIO * stored):
        of = f"{stored:,} bytes of images become {whole / GIB:.3g} GiB, more than {MOST_RATIO} times as many"
        raise InputError(f"{path}: {of}, so that nearly all pixels have one value; is it what you mean?")
    notes = [note for note in (hidden, listed, *said_of(heads, options)) if note]
    return Raw(rows if large else rows.load(), levels=None if deep else 256, train_labels=labels, note="; ".join(notes))


def read_image(path: Path, options: Options) -> np.ndarray:
    """One image file, (height, width, channels), cut and made opaque as the options say."""
    file = File(lambda: path.open("rb"), path.stat().st_size)
    return decoded(file, str(path), head(file, str(path)), options.alpha, options.size)


def heads_of(files: list[File], names: list[str], place: str) -> list[Head]:
    """The headers of all files, which messages call by their names after `place`."""
    pillow, known, found = required("PIL.Image", "reading images"), dict[Head, Head](), list[Head]()
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        for i in track(
            range(0, len(files), AT_ONCE),
            f"headers of {place}",
            console=Console(stderr=True),
            transient=True,
            disable=len(files) <= AT_ONCE,
        ):
            some = slice(i, i + AT_ONCE)
            heads = pool.map(head, files[some], [place + name for name in names[some]])
            found += [known.setdefault(one, one) for one in heads]
    return found


def shape_of(heads: list[Head], names: list[str], place: str, side: int | None) -> tuple[int, int, int]:
    """The shape of every example."""
    first, name = heads[0], names[0]
    for one, this in zip(heads, names, strict=True):
        if one.kind != first.kind:
            kinds = [{"L": "grey", "I": "grey of 16 bits", "RGB": "colour"}[k.kind] for k in (one, first)]
            raise InputError(f"{place}{this} is {kinds[0]}, but {name} is {kinds[1]}; convert them all alike")
        if side is None and one.size != first.size:
            sizes = len({one.size for one in heads})
            raise InputError(
                f"{place}{this} has shape {one.shape}, but {name} has {first.shape}, and there are {sizes} sizes; "
                "convert them all alike, or use --size 64, which cuts each to its middle square and resizes it"
            )
    shape = first.shape if side is None else (side, side, first.shape[2])
    if np.prod(shape) > MOST_VALUES:
        raise InputError(f"{place}{name} has shape {shape}, more than {MOST_VALUES:,} values an example; use --size 64")
    return shape


def said_of(heads: list[Head], options: Options) -> list[str]:
    """What was done to the images, a line each."""
    notes, sizes = [], {one.size for one in heads}
    if (side := options.size) is not None and sizes != {(side, side)}:
        small = sum(min(one.size) < side for one in heads)
        of = f"{len(sizes)} sizes" if len(sizes) > 1 else "{}x{}".format(*heads[0].size)
        changed = sum(one.size != (side, side) for one in heads)
        larger = f", {small} of them enlarged" if small else ""
        notes.append(
            f"{changed} of {len(heads)} images of {of} cut to their middle and resized to {side}x{side}{larger}"
        )
    counts = {
        f"alpha {'dropped' if options.alpha == 'drop' else f'over {options.alpha}'}": [one.alpha for one in heads],
        "turned as their EXIF says": [one.turned for one in heads],
        "only their first frame or page": [one.frames > 1 for one in heads],
        "CMYK made RGB": [one.mode == "CMYK" for one in heads],
    }
    return notes + [f"{what}: {sum(which)} of {len(heads)} images" for what, which in counts.items() if any(which)]


def _labels(path: Path, files: dict[str, File], names: list[str]) -> tuple[np.ndarray | None, str]:
    """Labels of the images, by dataset.json or by their folders, and a note."""
    place, form = f"{path}/dataset.json", 'expected {"labels": [[file, label], ...]}'
    if "dataset.json" not in files:
        deeper = next((name for name in files if name.endswith("/dataset.json")), None)
        return folders(names), f"{deeper} not read: it is not beside all images" if deeper else ""
    content = json.loads(files["dataset.json"].read())
    listed = content.get("labels") if isinstance(content, dict) else content
    if isinstance(content, dict) and not listed:
        return None, "no labels in dataset.json"
    pairs = list(listed.items()) if isinstance(listed, dict) else listed
    if not isinstance(content, dict) or not isinstance(pairs, list):
        raise InputError(f"{place} is of another form; {form}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(f"{place} has the entry {json.dumps(pair)[:60]}; {form}")
    label = dict(pairs)
    if len(label) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise InputError(f"{place} labels {twice} twice; keep one")
    if absent := next((n for n in names if n not in label), None):
        raise InputError(f"{place} has no label for {absent}; label every image, or none")
    if foreign := next((n for n in label if n not in files), None):
        raise InputError(f"{place} labels {foreign}, which is not there; remove it from the list")
    values = [label[n] for n in names]
    if len({isinstance(value, str) for value in values}) > 1:
        raise InputError(f"{place}: labels must be numbers, words or vectors, all of one kind")
    try:
        found = np.array(values)
    except ValueError:
        raise InputError(f"{place}: labels differ in length; give numbers or vectors of one size") from None
    if found.dtype.kind not in "buifU":
        raise InputError(f"{place}: labels must be numbers, words or vectors, all of one kind")
    return found, ""
