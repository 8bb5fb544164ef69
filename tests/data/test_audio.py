"""WAV files: every sample format against the bytes of its definition, windows, splits by file, one-line errors."""

import io
import struct
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data.arrays import Options
from experiments.data.load import load

FSDD = Path(__file__).parents[3] / "shared" / "data" / "fsdd" / "fsdd_3speakers_wav.tar.xz"
RNG = np.random.default_rng(0)


def refused(path, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load(f"audio:{path}", options=Options(**options))
    assert "\n" not in str(caught.value)


def pcm(samples, width, rate=8000):
    """The bytes of a WAV file of integers (n,) or (n, channels), little-endian; 8-bit samples are unsigned."""
    samples, stream = np.asarray(samples), io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in samples.ravel()))
    return stream.getvalue()


def floats(samples, rate=8000):
    """The bytes of a WAV file of 32-bit floats, by the RIFF definition."""
    body = np.asarray(samples, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files(data, n):
    """The set of files (numbered in the high digits of their samples) in an array of windows."""
    return {int(v) // 1000 for v in data.ravel()} & set(range(n))


def test_windows_never_straddle_the_split_and_leave_out_rests(tmp_path):
    """File i holds the samples 1000 i + 0, 1, ... as 16-bit integers, so that each window tells where it is from."""
    write(tmp_path / "s", {f"{i:02d}.wav": pcm(1000 * i + np.arange(i * 7 + 5), 2) for i in range(20)})
    data = load(f"audio:{tmp_path / 's'}", options=Options(window=10))
    train, held_out = data.train.astype(int)[..., 0] - 2**15, data.held_out.astype(int)[..., 0] - 2**15
    assert data.levels == 65536 and data.event_shape == (10, 1) and data.train.dtype == np.uint16
    assert not files(train, 20) & files(held_out, 20) and len(files(held_out, 20)) == 1
    both = np.concatenate([train, held_out])
    starts = {1000 * i + 10 * k for i in range(20) for k in range((i * 7 + 5) // 10)}
    assert {int(v) for v in both[:, 0]} == starts and len(both) == len(starts)
    assert (np.diff(both, axis=1) == 1).all()
    assert "8000 Hz, windows of 10 samples, 1 shorter file(s) left out" in data.describe()


@pytest.mark.parametrize("packed", ["zip", "tar", "tar.gz", "tar.xz"])
def test_archives_hold_what_folders_hold(tmp_path, packed):
    contents = {f"{i % 2}/{i}.wav": pcm(RNG.integers(-99, 99, 25), 2) for i in range(6)}
    source, path = write(tmp_path / "s", contents), tmp_path / f"s.{packed}"
    if packed == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + packed.partition(".")[2]) as archive:
            archive.add(source, ".")
    one, two = (load(f"audio:{p}", options=Options(window=5)) for p in (source, path))
    np.testing.assert_array_equal(one.train, two.train)
    assert one.labels is not None and one.labels.classes == 2 and one.labels.names == ("0", "1")
    assert two.labels is not None and len(two.train_labels) == len(two.train)


def test_every_sample_format(tmp_path):
    """8 and 16 bits are levels; 24, 32 and floats measurements; two channels become their mean."""
    u8, i16 = RNG.integers(0, 256, (12, 8)), RNG.integers(-(2**15), 2**15, (12, 8))
    i24, i32 = RNG.integers(-(2**23), 2**23, (12, 8)), RNG.integers(-(2**31), 2**31, (12, 8))
    stereo, f32 = RNG.integers(-(2**15), 2**15, (12, 8, 2)), RNG.normal(size=(12, 8)).astype("f4")
    for values, encode, expected, levels in (
        (u8, lambda v: pcm(v, 1), u8, 256),
        (i16, lambda v: pcm(v, 2), i16 + 2**15, 65536),
        (stereo, lambda v: pcm(v, 2), np.floor(stereo.mean(axis=2)) + 2**15, 65536),
        (i24, lambda v: pcm(v, 3), i24 / 2.0**23, None),
        (i32, lambda v: pcm(v, 4), i32 / 2.0**31, None),
        (f32, floats, f32, None),
    ):
        write(tmp_path / "s", {f"{i:02d}.wav": encode(v) for i, v in enumerate(values)})
        data = load(f"audio:{tmp_path / 's'}", options=Options(window=8))
        rows = np.concatenate([data.train, data.held_out])[..., 0]
        expected = np.asarray(expected, rows.dtype)
        assert data.levels == levels and data.scale.ndim == 0
        np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "floats"])
@pytest.mark.parametrize("rates", [(16_000, 8_000, 4_000), (44_100, 8_000, 11_025)])
def test_files_of_other_rates_are_resampled(tmp_path, kind, rates):
    """Tones below the lowest Nyquist frequency are those that would have been sampled at the rate asked for."""
    top, middle = {"8 bits": (100, 128), "16 bits": (20_000, 2**15), "floats": (0.7, 0)}[kind]
    for i in range(12):
        rate = rates[i % 3]
        tone = top * np.sin(2 * np.pi * (300 + 50 * i) * np.arange(rate // 4) / rate)
        whole = np.rint(tone).astype(int)
        content = pcm(whole + 128, 1, rate) if kind == "8 bits" else pcm(whole, 2, rate)
        write(tmp_path / "s", {f"{i:02d}.wav": floats(tone, rate) if kind == "floats" else content})
    refused(tmp_path / "s", "01.wav has 8000 Hz .* samples, but 00.wav has .* Hz .*; use --rate 8000", window=2000)
    data = load(f"audio:{tmp_path / 's'}", options=Options(window=2000, rate=8000))
    assert data.note == "8000 Hz, windows of 2000 samples, 8 of 12 files resampled to 8000 Hz"
    assert data.levels == {"8 bits": 256, "16 bits": 65536, "floats": None}[kind]
    rows = np.concatenate([data.train, data.held_out])[..., 0].astype(float) - middle
    files = np.random.default_rng(0).permutation(12)
    files = np.concatenate([np.sort(files[:11]), files[11:]])
    for row, i in zip(rows, files, strict=True):
        exact = top * np.sin(2 * np.pi * (300 + 50 * i) * np.arange(2000) / 8000)
        assert np.abs(row - exact)[100:-100].max() < 0.005 * top + (0.5 + 0.5 * (i % 3 != 1)) * (kind != "floats")
        assert i % 3 != 1 or np.abs(row - exact).max() < 0.5 * (kind != "floats") + 1e-6


def test_silence_stays_silence(tmp_path):
    """Levels are resampled about their middle, so that the ends of a file do not ring."""
    quiet = {f"{i:02d}.wav": pcm(np.full(400, 7 * i - 30), 2, 16_000) for i in range(12)}
    data = load(f"audio:{write(tmp_path / 's', quiet)}", options=Options(window=100, rate=8000))
    rows = data.train[..., 0].astype(int) - 2**15
    assert np.ptp(rows[:, 5:-5], axis=1).max() <= 1 and np.abs(rows).max() < 80


def test_sound_is_known_by_its_size_before_it_is_read(tmp_path):
    quiet = {f"a/{i}.wav": pcm(np.zeros(2000, int), 2) for i in range(9)}
    source = write(tmp_path / "s", quiet)
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in quiet:
            archive.write(source / name, name)
    with tarfile.open(tmp_path / "s.tar.xz", "w:xz") as archive:
        archive.add(source, ".")
    for place in (source, tmp_path / "s.zip", tmp_path / "s.tar.xz"):
        refused(place, r"takes [1-9.]+e-05 GiB of memory, more than --in-memory-gib 1e-05;", in_memory_gib=1e-5)
        refused(place, "takes 0.0335 GiB of memory", in_memory_gib=1e-3, rate=8_000_000)


def test_hidden_and_linked_sound(tmp_path):
    source = write(tmp_path / "s", {f"b/{i}.wav": pcm(RNG.integers(-9, 9, 30), 2) for i in range(6)})
    write(tmp_path / "t", {f"{i}.wav": pcm(RNG.integers(-9, 9, 30), 2) for i in range(6)})
    (source / "a").symlink_to(tmp_path / "t", target_is_directory=True)
    write(source, {"b/._0.wav": b"", ".trash/0.wav": b""})
    data = load(f"audio:{source}", options=Options(window=10))
    assert data.labels == (2, ("a", "b")) and data.note.endswith("; hidden, left out: .trash/, b/._0.wav")


def test_mistakes(tmp_path):
    folder = tmp_path / "s"
    refused(folder, "s does not exist")
    folder.mkdir()
    refused(folder, "holds no WAV files")
    good = {f"{i}.wav": pcm(RNG.integers(-9, 9, 30), 2) for i in range(4)}
    write(folder, {"0.wav": good["0.wav"]})
    refused(folder, "one usable file; at least 2", window=10)
    write(folder, good)
    refused(folder, "no file has 1024 samples; choose a smaller --window")
    refused(folder, "--window must be at least 1, got 0", window=0)
    refused(folder, "--rate must be at least 1, got 0", rate=0)
    for content, words in (
        (good["3.wav"][:70], "3.wav cannot be read"),
        (good["3.wav"][:20], "3.wav cannot be read"),
        (b"", "3.wav cannot be read"),
        (b"not sound at all", "3.wav cannot be read"),
        (pcm(np.zeros(30), 2, rate=16000), "3.wav has 16000 Hz uint16 samples, but 0.wav has 8000 Hz uint16"),
        (pcm(np.zeros(30), 1), "3.wav has 8000 Hz uint8 samples, but 0.wav has 8000 Hz uint16"),
        (pcm(np.zeros(30), 3), "3.wav has 8000 Hz float32 samples"),
    ):
        write(folder, {"3.wav": content})
        refused(folder, words, window=10)
    write(folder, {f"{i}.wav": floats([0.5, np.nan if i == 2 else i, 1]) for i in range(4)})
    refused(folder, r"2.wav has NaN, .* row 1 \(from 0\)", window=2)
    (tmp_path / "s.tar").write_bytes(b"no archive")
    refused(tmp_path / "s.tar", "s.tar cannot be read .*neither a folder, nor a zip")


def test_the_real_recordings():
    if not FSDD.is_file():
        pytest.skip("the data folder fsdd is not beside the repository")
    data = load(f"audio:{FSDD}")
    with tarfile.open(FSDD) as archive:
        lengths = [(m.size - 44) // 2 for m in archive if m.name.endswith(".wav")]  # 16-bit samples after a header
    assert len(lengths) == 1500 and sum(data.counts) == sum(n // 1024 for n in lengths)
    assert data.event_shape == (1024, 1) and data.levels == 65536
