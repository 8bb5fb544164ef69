"""Pictures of every mode, depth, turn and size; folders, zips and their labels; what cannot be read as it is."""

import json
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.cli.errors import InputError
from experiments.data import images
from experiments.data.arrays import Options
from experiments.data.load import load
from experiments.data.pictures import Alpha

RNG = np.random.default_rng(0)
N, SIZE = 12, (5, 6)
ORDER = np.random.default_rng(0).permutation(N)
RGB, GREY = RNG.integers(0, 256, (N, *SIZE, 3), np.uint8), RNG.integers(0, 256, (N, *SIZE), np.uint8)
A = RNG.integers(0, 256, (N, *SIZE), np.uint8)
DEEP = RNG.integers(0, 2**16, (N, *SIZE)).astype(np.uint16)


def refused(folder, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load(f"images:{folder}", options=Options(**options))
    said = str(caught.value)
    assert "\n" not in said and "object at" not in said


def save(folder, pictures, ending="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:02d}.{ending}", **options)
    return folder


def read(folder, **options):
    """The images in the order of their names, and the data."""
    data = load(f"images:{folder}", options=Options(**options))
    found = np.empty((N, *data.event_shape), data.train.dtype)
    found[ORDER] = np.concatenate([data.train[:], data.held_out])
    return found, data


def png(shape, colour, depth=8, rows=None):
    """The bytes of a PNG by its definition, with rows or with a header alone."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    body = b"" if rows is None else zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    start = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def palettes(**info):
    made = []
    for i in range(N):
        picture = Image.fromarray(GREY[i] % 4).convert("P")
        picture.putpalette(RGB[0].reshape(-1)[:12].tolist())
        made.append(picture)
    return made


PALETTE = RGB[0].reshape(-1)[:12].reshape(4, 3)[GREY % 4]


@pytest.mark.parametrize("alpha", Alpha.__args__)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "P transparent", "L transparent", "1", "CMYK", "I;16"])
def test_every_mode(tmp_path, mode, alpha):
    """Over white or black each pixel is a colour + (1 - a) ground; all that was done is said."""
    over, options = None, {}
    match mode.split(" "):
        case ["L"] | ["RGB"] | ["I;16"]:
            x = {"L": GREY, "RGB": RGB, "I;16": DEEP}[mode]
            pictures = map(Image.fromarray, x)
        case ["LA"] | ["RGBA"]:
            x, over = GREY if mode == "LA" else RGB, A
            pictures = (
                Image.merge(mode, [*Image.fromarray(c).split(), Image.fromarray(a)]) for c, a in zip(x, A, strict=True)
            )
        case ["P", *transparent]:
            x, pictures = PALETTE, palettes()
            over, options = (255 * (GREY % 4 != 1), {"transparency": 1}) if transparent else (None, {})
        case ["L", _]:
            x, pictures, over, options = GREY, map(Image.fromarray, GREY), 255 * (GREY != 7), {"transparency": 7}
        case ["1"]:
            x, pictures = 255 * (GREY > 127), (Image.fromarray(g).convert("1", dither=0) for g in GREY)
        case ["CMYK"]:
            pictures = [Image.fromarray(x).convert("CMYK") for x in RGB]
            x, options = RGB, {"compression": None}
    save(tmp_path / "p", pictures, "tif" if mode == "CMYK" else "png", **options)
    found, data = read(tmp_path / "p", alpha=alpha)
    x = x if x.ndim == 4 else x[..., None]
    if over is not None and alpha != "drop":
        share = over[..., None] / 255
        x = share * x + (1 - share) * (255 if alpha == "white" else 0)
    np.testing.assert_allclose(found.astype(int), x, atol=0 if over is None or alpha == "drop" else 1)
    assert found.shape == (N, *SIZE, 3 if mode[0] in "RPC" else 1)
    assert data.levels == (DEEP.max() + 1 if mode == "I;16" else 256) and found.dtype == data.train.dtype
    said = f"alpha {'dropped' if alpha == 'drop' else f'over {alpha}'}: {N} of {N} images"
    assert data.note == (
        "" if over is None and mode != "CMYK" else "CMYK made RGB: 12 of 12 images" if mode == "CMYK" else said
    )


@pytest.mark.parametrize(
    ("ending", "content", "words"),
    [
        ("png", png(SIZE, 2, 16, np.zeros((5, 18))), "00.png has 16 bits a channel, of which Pillow reads 8 in colour"),
        ("png", png(SIZE, 6, 16, np.zeros((5, 24))), "has 16 bits a channel"),
        ("png", png(SIZE, 4, 16, np.zeros((5, 12))), "has 16 bits a channel"),
        ("ppm", b"P6 2 2 65535\n" + bytes(24), "has 16 bits a channel"),
        ("ppm", b"P6 2 2 15\n" + bytes(12), "has the levels 0..15, which Pillow stretches"),
        ("pgm", b"P5 2 2 4095\n" + bytes(8), "has the levels 0..4095, which Pillow stretches"),
        ("pgm", b"P2 2 2 15\n0 1 2 3", "has the levels 0..15, which Pillow stretches"),
        ("png", png((30_000, 30_000), 2), r"cannot be read \(more pixels than the 64 Mi"),
        ("png", png((10_000, 10_000), 2), "cannot be read .more pixels than the 64 Mi"),
        ("png", png((9_000, 9_000), 0), "has 9000 x 9000 pixels, more than the 64 Mi that are read"),
        ("png", png((5_000, 5_000), 0), r"has shape \(5000, 5000, 1\), more than 4,194,304 values an example"),
        ("png", b"", r"00.png cannot be read \(no image that Pillow knows\); is it complete"),
        ("png", b"no image", r"00.png cannot be read \(no image that Pillow knows\)"),
        ("png", png(SIZE, 2, 8)[:40], "00.png cannot be read"),
        ("png", png(SIZE, 2, 8), "00.png cannot be read"),
        ("jpg", b"\xff\xd8\xff\xe0" + bytes(50), "00.jpg cannot be read"),
    ],
)  # fmt: skip
def test_pictures_that_would_not_be_read_as_they_are(tmp_path, ending, content, words):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / f"00.{ending}").write_bytes(content)
    refused(tmp_path / "p", words)


@pytest.mark.parametrize("values", [GREY[0].astype("f4"), GREY[0].astype("i4") + 70_000, -1 - GREY[0].astype("i4")])
def test_grey_of_more_than_16_bits(tmp_path, values):
    save(tmp_path / "p", [Image.fromarray(values)] * N, "tif")
    refused(tmp_path / "p", "has mode F; expected grey of 8 or 16 bits|grey has at most 16 bits: convert it")


TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
def test_pictures_are_upright(tmp_path, turn, ending):
    """As EXIF defines its eight orientations, of the stored picture."""
    exif = Image.Exif()
    exif[0x0112] = turn
    lossy = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ending, {})
    ramp = np.linspace(0, 230, 30).reshape(1, *SIZE, 1) + np.arange(N).reshape(N, 1, 1, 1)
    flat = RGB if ending != "jpg" else np.broadcast_to(ramp, RGB.shape).astype(np.uint8)
    save(tmp_path / "p", map(Image.fromarray, flat), ending, exif=exif, **lossy)
    found, data = read(tmp_path / "p")
    np.testing.assert_allclose(found.astype(int), [TURNS[turn](x) for x in flat], atol=3 if ending == "jpg" else 0)
    assert data.note == ("" if turn == 1 else "turned as their EXIF says: 12 of 12 images")


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_the_first_of_several_frames_or_pages_is_read_and_said(tmp_path, ending):
    more = [Image.fromarray(x) for x in GREY[:2]]
    whole = {"webp": {"lossless": True}}.get(ending, {})
    save(tmp_path / "p", map(Image.fromarray, GREY), ending, save_all=True, append_images=more, **whole)
    found, data = read(tmp_path / "p")
    assert data.note.endswith("only their first frame or page: 12 of 12 images")
    np.testing.assert_allclose(found[..., 0].astype(int), GREY, atol=2 if ending == "webp" else 0)


@pytest.mark.parametrize("deep", [False, True])
def test_pictures_of_many_sizes_are_cut_to_their_middle_and_resized(tmp_path, deep):
    """The middle square of each is a ramp, which resizing keeps; left and right of it is another colour."""
    top, pictures = (60_000, []) if deep else (240, [])
    for i in range(N):
        side = 6 + 3 * i
        ramp = np.linspace(0, top, side)[:, None].repeat(side, axis=1)
        wide = np.pad(ramp, ((0, 0), (i, i)), constant_values=top)
        pictures.append(Image.fromarray(wide.astype(np.uint16 if deep else np.uint8)))
    save(tmp_path / "p", pictures)
    refused(
        tmp_path / "p", r"p/01.png has shape \(9, 11, 1\), but 00.png has \(6, 6, 1\), and there are 12 sizes; conv"
    )
    refused(tmp_path / "p", "--size must be at least 1, got 0", size=0)
    found, data = read(tmp_path / "p", size=8)
    assert found.shape == (N, 8, 8, 1) and found.dtype == (np.uint16 if deep else np.uint8)
    assert data.note == "12 of 12 images of 12 sizes cut to their middle and resized to 8x8, 1 of them enlarged"
    sides = 6 + 3 * np.arange(N)[:, None]
    ramps = ((np.arange(8)[None] + 0.5) / 8 * sides - 0.5) / (sides - 1)  # at the middle of each new pixel
    inner = found[:, :, 1:-1].astype(float)  # what lies beside the middle shines through at the edges
    np.testing.assert_allclose(inner, np.broadcast_to(top * ramps[:, :, None, None], inner.shape), atol=0.05 * top)
    same, data = read(save(tmp_path / "q", map(Image.fromarray, RGB[:, :5, :5])), size=5)
    np.testing.assert_array_equal(same, RGB[:, :5, :5])
    assert data.note == ""


def test_pictures_of_two_kinds_are_refused(tmp_path):
    for pair, words in (
        ((RGB, GREY), "is grey, but 00.png is colour"),
        ((DEEP, GREY), "is grey, but 00.png is grey of 16"),
    ):
        save(tmp_path / "p", [Image.fromarray(pair[i == 7][i]) for i in range(N)])
        refused(tmp_path / "p", f"p/07.png {words}.*; convert them all alike", size=4)


def test_headers_come_first(tmp_path, monkeypatch):
    """What is refused is refused before any picture is decoded, here of 4 million pixels each in few bytes."""
    monkeypatch.setattr(images, "decoded", None)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for i in range(2600):
            archive.writestr(f"{i:04d}.png", png((2048, 2048), 0, 16))
    refused(
        tmp_path / "z.zip", "z.zip: holding out 260 images takes 2.03 GiB of memory, more than --in-memory-gib 2; ra"
    )
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for i in range(100):
            archive.writestr(f"{i:02d}.png", png((2048, 2048), 0))
    refused(tmp_path / "z.zip", "z.zip: 5,700 bytes of images become 0.391 GiB, more than 500 times as many")
    with zipfile.ZipFile(tmp_path / "z.zip", "a") as archive:
        archive.writestr("999.png", png((9, 9), 0))
    refused(tmp_path / "z.zip", "z.zip/999.png has shape")


def labelled(folder, names=("cat", "ant"), each=6):
    for i, name in enumerate(f"{word}/{i:03d}.png" for word in names for i in range(each)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB[i % N]).save(folder / name)
    return folder


def packed(folder, out):
    with zipfile.ZipFile(out, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return out


@pytest.mark.parametrize("top", ["", "a/", "a/b c/"])
@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("listed", [True, False])
def test_one_top_folder_changes_nothing(tmp_path, top, form, listed):
    source = labelled(tmp_path / "s" / top, ("ant", "cat"))
    if listed:
        labels = [[f"{w}/{i:03d}.png", 7 if w == "cat" else 3] for w in ("cat", "ant") for i in range(6)]
        (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    found, data = read(packed(tmp_path / "s", tmp_path / "z.zip") if form == "zip" else tmp_path / "s")
    assert data.labels == (2, ("3", "7") if listed else ("ant", "cat")) and data.note == ""
    np.testing.assert_array_equal(found, RGB)
    assert np.concatenate([data.train_labels, data.held_out_labels]).tolist() == (ORDER >= 6).astype(int).tolist()


def test_folders_that_are_numbers_stand_in_their_order(tmp_path):
    data = load(f"images:{labelled(tmp_path / 's', map(str, range(12)), 2)}")
    assert data.labels == (12, tuple(map(str, range(12))))


def test_hidden_files_are_left_out_and_said(tmp_path):
    source = labelled(tmp_path / "s")
    for name in (".thumbnails/x.png", "cat/._000.png", "__MACOSX/cat/._001.png", ".git/config", "cat/.DS_Store"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"nothing")
    for place in (source, packed(source, tmp_path / "z.zip")):
        _, data = read(place)
        assert data.labels == (2, ("ant", "cat"))
        assert data.note.startswith("hidden, left out: .git/, .thumbnails/, __MACOSX/ and 1 more")
    shutil.rmtree(source / "cat"), shutil.rmtree(source / "ant")
    refused(source, "holds no images .*; hidden, left out: .git/, .thumb")


def test_links_are_followed_and_never_vanish(tmp_path):
    source = labelled(tmp_path / "s", ("ant",))
    labelled(tmp_path / "elsewhere", ("cat",))
    (source / "cat").symlink_to(tmp_path / "elsewhere" / "cat", target_is_directory=True)
    _, data = read(source)
    assert data.labels == (2, ("ant", "cat"))
    (source / "cat" / "back").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    refused(source, "back/cat is a link to a folder that it lies in|back is a link to a folder")
    (source / "cat" / "back").unlink()
    (source / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    refused(source, "gone.png is a link to .*gone.png, which is not there; remove or mend it")


def test_forms_of_dataset_json(tmp_path):
    source = labelled(tmp_path / "s", ("ant", "cat"))
    names = [f"{w}/{i:03d}.png" for w in ("ant", "cat") for i in range(6)]
    listed = source / "dataset.json"
    for good, kind in (
        ({"labels": [[n, n[:3]] for n in names]}, (2, ("ant", "cat"))),
        ({"labels": {n: len(n) for n in names}}, (1, ("11",))),
        ({"labels": [[n, [1.5, 2]] for n in names]}, (None, None)),
    ):
        listed.write_text(json.dumps(good))
        assert load(f"images:{source}").labels == kind
    for none in ({"labels": None}, {"labels": []}, {}):
        listed.write_text(json.dumps(none))
        data = load(f"images:{source}")
        assert data.labels is None and data.note == "no labels in dataset.json"
    pairs = [[n, 0] for n in names]
    for bad, words in (
        (pairs, "dataset.json is of another form; expected {.labels.: .*file, label"),
        ({"labels": 3}, "dataset.json is of another form"),
        ({"labels": "abc"}, "dataset.json is of another form"),
        (3, "dataset.json is of another form"),
        ({"labels": [["a.png", 0, 1], *pairs]}, r'dataset.json has the entry \["a.png", 0, 1\]; expected'),
        ({"labels": [[["a"], 0], *pairs]}, "has the entry"),
        ({"labels": [*names]}, "has the entry"),
        ({"labels": [None, *pairs]}, "has the entry null"),
        ({"labels": [*pairs, [names[3], 1]]}, "dataset.json labels ant/003.png twice"),
        ({"labels": pairs[1:]}, "dataset.json has no label for ant/000.png; label every image"),
        ({"labels": [*pairs, ["x.png", 0]]}, "dataset.json labels x.png, which is not there"),
        ({"labels": [*pairs[1:], [names[0], [1, 2]]]}, "labels differ in length"),
        ({"labels": [*pairs[1:], [names[0], "a"]]}, "labels must be numbers, words or vectors, all of one kind"),
        ({"labels": [*pairs[1:], [names[0], None]]}, "labels must be numbers, words or vectors, all of one kind"),
        ({"labels": [*pairs[1:], [names[0], {"a": 1}]]}, "labels must be numbers, words or vectors, all of one kind"),
    ):
        listed.write_text(json.dumps(bad))
        refused(source, words)
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        listed.write_bytes(content)
        refused(source, "cannot be read")
    listed.rename(source / "ant" / "dataset.json")
    assert load(f"images:{source}").note == "ant/dataset.json not read: it is not beside all images"


def test_no_folder_and_no_zip(tmp_path):
    refused(tmp_path / "p", "p does not exist")
    refused(tmp_path, "holds no images")
    for content in (b"PK nothing", b"", b"PK\x05\x06" + bytes(10)):
        (tmp_path / "x.zip").write_bytes(content)
        refused(tmp_path / "x.zip", r"x.zip cannot be read \(neither a folder nor a whole zip\)")
