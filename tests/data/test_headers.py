"""Array files by their headers: what they promise is compared with what is there, and with a bound, before reading;
which arrays of an archive are read, and what is said of that and of the last axis."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data.arrays import Options
from experiments.data.load import load

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3))


def header(shape, descr="<f8", version=(1, 0)):
    stream = io.BytesIO()
    write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    write(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def save(folder, kind, content):
    """The bytes of a .npy, as one or inside an .npz."""
    if kind == "npy":
        (folder / "a.npy").write_bytes(content)
        return f"npy:{folder / 'a.npy'}"
    packing = zipfile.ZIP_STORED if kind == "npz" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(folder / "a.npz", "w", packing) as archive:
        archive.writestr("x.npy", content)
    return f"npz:{folder / 'a.npz'}"


def whole(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize("gib", [2.0, 0])
@pytest.mark.parametrize("kind", ["npy", "npz", "npz deflated"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header((10**12, 10**12)) + bytes(8), r"header promises the shape \(1000000000000, 10+\), 8\d+ bytes, but 8"),
        (header((10**30,), version=(2, 0)) + bytes(8), "bytes, but 8 follow; is it complete"),
        (header((2**62, 4)) + bytes(80), "its header promises"),
        (header((-5, 4)) + bytes(800), "its header promises"),
        (header((20, 3)), "480 bytes, but 0 follow"),
        (whole(X)[:-1], "480 bytes, but 479 follow"),
        (whole(np.array([object()] * 20)), "holds Python objects, which are not opened"),
        (header((20,), "|O") + b"cos\nsystem\n(S'false'\ntR.", "holds Python objects, which are not opened"),
        (header((20, 3), "|V2") + bytes(120), "two bytes without a type, as bfloat16 is stored; store float32"),
        (b"PNG and more", "cannot be read .*no array of NumPy|cannot be read"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\x09\x00" + bytes(100), r"cannot be read \(version \(9, 0\)"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': " + b"(" * 100, "cannot be read"),
        (header((20, 3)).replace(b"'<f8'", b"'<q8'") + bytes(480), "cannot be read"),
    ],
)  # fmt: skip
def test_headers_that_promise_what_is_not_there(tmp_path, kind, content, words, gib):
    with pytest.raises(InputError, match=words) as caught:
        load(save(tmp_path, kind, content), options=Options(in_memory_gib=gib))
    said = str(caught.value)
    assert "\n" not in said and "unsafely" not in said and "object at" not in said


def test_any_change_of_a_header_is_read_or_refused(tmp_path):
    good = whole(X)
    for _ in range(150):
        content = bytearray(good)
        for place in RNG.integers(0, 128, RNG.integers(1, 4)):
            content[place] = RNG.choice(np.frombuffer(b"0123456789(),'{}<>fiuOSVc \x00\xff", np.uint8))
        for kind in ("npy", "npz"):
            try:
                load(save(tmp_path, kind, bytes(content)))
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"no zip at all", whole(X)[:40], b"PK\x03\x04 and nothing"])
def test_what_is_no_archive_is_refused_without_advice_to_load_it_unsafely(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"a.npz (cannot be read \(no zip of arrays\)|is a single array; use npy:)"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_large_archive_is_refused_before_it_is_unpacked(tmp_path):
    """100 MB of zeros in 0.1 MB."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 2**20), np.uint8), unread=X)
    assert (tmp_path / "a.npz").stat().st_size < 2e5
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a.npz takes 0.0977 GiB of memory, more than --in-memory-gib 0.05; raise"):
        load(f"npz:{tmp_path / 'a.npz'}", options=Options(in_memory_gib=0.05))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "y": np.arange(20) % 2}, "read: x, y"),
        ({"X": X, "y": np.arange(20) % 2, "w": X}, "read: X, y; not read: w"),
        ({"data": X, "label": np.arange(20) % 2}, "read: data, label"),
        ({"x_train": X, "y_train": np.arange(20) % 2, "x_test": X, "y_test": np.arange(20) % 2}, "x_test, y_train"),
        ({"train_images": X, "test_images": X, "val_images": X}, "train_images, test_images; not read: val_im"),
        ({"train": X, "labels": np.arange(20) % 2}, "read: train, labels"),
        ({"y": X}, ""),
    ],
)  # fmt: skip
def test_which_arrays_are_read_is_said(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(f"npz:{tmp_path / 'a.npz'}")
    assert said in data.note and data.describe().endswith(data.note or f"{data.range[1]:.4g}")
    assert (data.labels is not None) == (len(arrays) > 1 and any("lab" in name or "y" in name for name in arrays))


@pytest.mark.parametrize("kind", ["npy", "npz", "streamed"])
@pytest.mark.parametrize(
    ("shape", "how", "event", "said"),
    [
        ((3, 16, 16), "last", (3, 16, 16), "3x16x16 are read as 3x16 positions of 16 channels (--channels first"),
        ((3, 16, 16), "first", (16, 16, 3), ""),
        ((28, 28), "last", (28, 28), "examples 28x28 are read as 28 positions of 28 channels (--channels none if"),
        ((28, 28), "none", (28, 28, 1), ""),
        ((2, 100), "first", (100, 2), ""),
        ((16, 16, 3), "last", (16, 16, 3), ""),
        ((100, 2), "last", (100, 2), ""),
        ((9,), "last", (9,), ""),
    ],
)  # fmt: skip
def test_where_the_channels_are_is_asked_or_said(tmp_path, kind, shape, how, event, said):
    x = RNG.integers(0, 256, (30, *shape), np.uint8)
    np.savez(tmp_path / "a.npz", x)
    np.save(tmp_path / "a.npy", x)
    spec = f"npz:{tmp_path / 'a.npz'}" if kind == "npz" else f"npy:{tmp_path / 'a.npy'}"
    data = load(spec, options=Options(channels=how, in_memory_gib=0 if kind == "streamed" else 2))
    assert data.event_shape == event and said in data.note and bool(said) == ("positions" in data.note)
    last = {"last": x, "first": np.moveaxis(x, 1, -1), "none": x[..., None]}[how]
    np.testing.assert_array_equal(data.train[:], last[np.random.default_rng(0).permutation(30)[:27]])


def test_channels_that_are_not_there(tmp_path):
    np.save(tmp_path / "a.npy", X)
    for how in ("first", "none"):
        with pytest.raises(InputError, match=rf"--channels {how}: .*a.npy has examples of shape \(3,\)"):
            load(f"npy:{tmp_path / 'a.npy'}", options=Options(channels=how))
