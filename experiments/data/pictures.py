"""One picture: what its header says, and its pixels as grey or colour, upright, without alpha, of 8 or 16 bits.

Of animations and documents the first picture is taken. Palettes, CMYK and YCbCr become RGB. Whatever a decoder would
change without a word, depths of colour that it cuts to 8 bits or levels that it stretches, is refused.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import reading, required
from experiments.data.listing import File

MOST_PIXELS = 2**26
"""In one picture, before it is cut or resized."""
MOST_BYTES = 2**28
"""Of its file."""
Alpha = Literal["white", "black", "drop"]
KINDS = {
    **dict.fromkeys(("1", "L", "LA", "La"), "L"),
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L"), "I"),
    **dict.fromkeys(("RGB", "RGBX", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr"), "RGB"),
}
"""What the modes of Pillow are read as."""
ORIENTATION = 0x0112


class Head(NamedTuple):
    """What is known of a picture before it is decoded."""

    kind: str
    """L, I (16 bits of grey) or RGB."""
    size: tuple[int, int]
    """Height and width, upright."""
    mode: str
    alpha: bool
    turned: bool
    frames: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, 3 if self.kind == "RGB" else 1)


def head(file: File, where: str) -> Head:
    """The header of a picture; InputError for one that cannot be read, is too large or would not be read as it is."""
    if file.size > MOST_BYTES:
        raise InputError(f"{where} has {file.size >> 20} MiB, more than the {MOST_BYTES >> 20} of a picture's file")
    with reading(where), file.open() as stream:
        return described(_opened(stream), where)


def described(picture: Any, where: str) -> Head:
    """What an open picture of Pillow is, from its header; InputError as for `head`."""
    with reading(where):
        (width, height), mode = picture.size, picture.mode
        if width * height > MOST_PIXELS:
            raise InputError(
                f"{where} has {width} x {height} pixels, more than the {MOST_PIXELS >> 20} Mi that are read"
            )
        if mode not in KINDS:
            raise InputError(f"{where} has mode {mode}; expected grey of 8 or 16 bits or RGB: convert it")
        turn = picture.getexif().get(ORIENTATION, 1) if picture.format != "PNG" or "exif" in picture.info else 1
        if 5 <= turn <= 8 and picture.format != "TIFF":  # whose size Pillow gives upright
            width, height = height, width
        for tile in getattr(picture, "tile", ()):
            _check_depth(tile, mode, where)
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        alpha = mode[-1] in "Aa" or "transparency" in picture.info
        return Head(KINDS[mode], (height, width), mode, alpha, 2 <= turn <= 8, frames)


def decoded(file: File, where: str, known: Head, alpha: Alpha, side: int | None) -> np.ndarray:
    """The pixels of a picture, as `pixels_of` gives them."""
    with reading(where), file.open() as stream:
        return pixels_of(_opened(stream), where, known, alpha, side)


def pixels_of(picture: Any, where: str, known: Head, alpha: Alpha, side: int | None) -> np.ndarray:
    """The pixels of a picture (height, width, channels), uint8 or uint16, cut to its middle and resized to `side`."""
    operations, pillow = (required(name, "reading images") for name in ("PIL.ImageOps", "PIL.Image"))
    with reading(where):
        picture = operations.exif_transpose(picture)
        if known.alpha:
            picture = _opaque(pillow, picture, known.kind, alpha)
        picture = picture.convert(known.kind) if picture.mode != known.kind else picture
        if side is not None:
            picture = operations.fit(picture, (side, side), method=pillow.Resampling.LANCZOS)
        pixels = np.asarray(picture)
    if known.kind == "I":
        pixels = np.clip(pixels, 0, 2**16 - 1) if side is not None else pixels
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise InputError(
                f"{where} has values in {pixels.min()}..{pixels.max()}; grey has at most 16 bits: convert it"
            )
        pixels = pixels.astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _opened(stream: Any) -> Any:
    pillow = required("PIL.Image", "reading images")
    try:
        return pillow.open(stream)
    except pillow.UnidentifiedImageError:
        raise ValueError("no image that Pillow knows") from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise ValueError(f"more pixels than the {MOST_PIXELS >> 20} Mi that are read") from None


def _check_depth(tile: Any, mode: str, where: str) -> None:
    """Raise InputError where Pillow would cut 16 bits to 8, or stretch the levels of a PGM or PPM to 8 or 16 bits."""
    codec, arguments = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    top = arguments[-1] if codec in ("ppm", "ppm_plain") and isinstance(arguments[-1], int) else None
    if KINDS[mode] != "I" and (";16" in repr(arguments) or (top or 0) > 255):
        raise InputError(f"{where} has 16 bits a channel, of which Pillow reads 8 in colour; convert it, or use npy")
    if top not in (None, 255, 2**16 - 1):
        raise InputError(f"{where} has the levels 0..{top}, which Pillow stretches; store 0..255, 0..65535, or npy")


def _opaque(pillow: Any, picture: Any, kind: str, alpha: Alpha) -> Any:
    """Without the alpha channel or the transparent colour: over white or black, or as if it were not there."""
    if alpha == "drop":
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode))
        return picture.convert(kind)
    over = picture.convert("LA" if kind == "L" else "RGBA")
    ground = pillow.new(kind, picture.size, "white" if alpha == "white" else "black")
    ground.paste(over.convert(kind), mask=over.getchannel("A"))
    return ground
