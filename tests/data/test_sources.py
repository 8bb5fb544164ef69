"""What every source shares: the record, moments in blocks, labels, data left on disk; IDX files, labels, the hub."""

import gzip
import json
import os
import sys
import types

import jax
import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data import arrays
from experiments.data.arrays import Options
from experiments.data.dataset import Data, flipped
from experiments.data.load import load
from experiments.data.statistics import measure

RNG = np.random.default_rng(0)


def refused(spec, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load(spec, options=Options(**options))
    assert "\n" not in str(caught.value)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def picture(path, pixels):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("make", ["digits", "mixture", "table", "audio"])
def test_a_record_is_json_and_gives_the_same_scaling_back(make, tmp_path):
    """Bit for bit: model units, raw units, log-determinant and bin width need nothing but the record."""
    if make == "table":
        make = npz(tmp_path / "a.npz", x=RNG.normal([3, -200], [1, 40], (60, 2)), labels=RNG.normal(size=60))
    elif make == "audio":
        make = npz(tmp_path / "a.npz", x=RNG.integers(0, 999, (60, 8, 1)), labels=np.array(["a", "b"] * 30))
    data = load(make)
    text = json.dumps(data.record(), allow_nan=False)
    again = Data.from_record(json.loads(text))
    assert again.record() == data.record() and again.describe() == data.describe()
    assert len(again.train) == 0 and again.train.dtype == data.train.dtype and again.labels == data.labels
    u = RNG.random(data.held_out.shape, np.float32)
    y = data.to_model(data.held_out, u)
    np.testing.assert_array_equal(again.to_model(data.held_out, u), y)
    np.testing.assert_array_equal(again.from_model(y), data.from_model(y))
    assert again.from_model(y).dtype == data.from_model(y).dtype
    np.testing.assert_array_equal(again.log_det(data.held_out), data.log_det(data.held_out))
    assert (again.bin_width, again.event_shape) == (data.bin_width, data.event_shape)
    if data.mixture is not None:
        for one, two in zip(data.mixture, again.mixture or (), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_record_states_what_was_measured(tmp_path):
    x, y = RNG.integers(3, 9, (50, 2, 2)), RNG.integers(3, 9, (7, 2, 2))
    labels = RNG.integers(0, 4, 50)
    labels[0] = 4
    spec = npz(tmp_path / "a.npz", train=x, test=y, train_labels=labels, test_labels=np.zeros(7, int))
    record = load(spec).record()
    assert record["event_shape"] == [2, 2] and record["dtype"] == "uint8" and record["counts"] == [50, 7]
    assert record["range"] == [x.min(), x.max()] and record["levels"] == max(x.max(), y.max()) + 1
    assert record["labels"] == {"classes": 5, "names": None} and record["name"] == spec
    np.testing.assert_allclose(record["mean"], x.mean(axis=0))
    assert record["std"] == pytest.approx(np.sqrt(x.var(axis=0).mean()))
    assert record["bin_width"] == pytest.approx(1 / np.sqrt(x.var(axis=0).mean() + 1 / 12))
    without = {k: v for k, v in record.items() if k != "mean"}
    for damaged in ({}, without, record | {"counts": 3}, record | {"std": float("nan")}):
        with pytest.raises(InputError, match="the data record is incomplete or damaged"):
            Data.from_record(damaged)


@pytest.mark.parametrize("masked", [False, True])
def test_moments_do_not_depend_on_the_blocks(monkeypatch, masked):
    x = RNG.normal(300, [0.01, 1, 30], (101, 3)).astype("f4")
    mask = RNG.random(x.shape) < 0.7 if masked else None
    for block_bytes in (1, 12 * 17, 2**24):
        monkeypatch.setattr(arrays, "BLOCK_BYTES", block_bytes)
        moments = measure(x, "x", mask)
        kept = np.where(mask, x, np.nan).astype("f8") if masked else x.astype("f8")
        np.testing.assert_allclose(moments.mean, np.nanmean(kept, axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, np.nanvar(kept, axis=0), rtol=1e-9)
        assert (moments.low, moments.high) == (np.nanmin(kept), np.nanmax(kept)) and not moments.whole


@pytest.mark.parametrize("kind", ["images", "zip", "uint8", "int64", "float64", "whole floats"])
def test_data_left_on_disk_are_the_data_in_memory(tmp_path, kind):
    """The same split, moments, levels, labels and examples; only where the examples lie differs."""
    if kind in ("images", "zip"):
        for i in range(40):
            picture(tmp_path / "p" / str(i % 4) / f"{i}.png", RNG.integers(0, 256, (5, 4), np.uint8))
        if kind == "zip":
            import shutil

            shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "p")
        spec = f"images:{tmp_path / ('z.zip' if kind == 'zip' else 'p')}"
    else:
        dtype = "float64" if kind == "whole floats" else kind
        values = RNG.normal(size=(40, 3)) if kind == "float64" else RNG.integers(0, 11, (40, 3))
        np.save(tmp_path / "a.npy", values.astype(dtype))
        spec = f"npy:{tmp_path / 'a.npy'}"
    memory, disk = load(spec), load(spec, options=Options(in_memory_gib=0))
    assert disk.streamed and not memory.streamed and "streamed from disk" in disk.describe()
    assert disk.record() == memory.record()
    np.testing.assert_array_equal(disk.train[:], memory.train)
    np.testing.assert_array_equal(disk.held_out, memory.held_out)
    index = RNG.integers(0, 36, (2, 5))
    jax.tree.map(np.testing.assert_array_equal, disk.batch(index), memory.batch(index))
    np.testing.assert_array_equal(disk.train[index], memory.train[index])
    assert disk.train[index].dtype == memory.train.dtype and disk.train.shape == memory.train.shape
    if memory.train_labels is not None:
        np.testing.assert_array_equal(disk.train_labels, memory.train_labels)
    known = disk.record() | {"mean": (disk.mean + 1).tolist()}  # not what would be measured
    again = load(spec, options=Options(in_memory_gib=0), record=known)
    assert again.record() == known
    np.testing.assert_array_equal(again.train[:], memory.train)
    assert again.train[index].dtype == again.held_out.dtype == memory.train.dtype
    for other in ({"name": "npy:b"}, {"counts": [1, 2]}, {"event_shape": [9]}):
        assert load(spec, options=Options(in_memory_gib=0), record=known | other).record() == disk.record()


def test_mistakes_on_disk_are_found_before_training(tmp_path):
    values = RNG.normal(size=(40, 3))
    values[33, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    refused(f"npy:{tmp_path / 'a.npy'}", r"a.npy has NaN, .* row 33 \(from 0\)", in_memory_gib=0)
    np.save(tmp_path / "a.npy", np.where(np.isnan(values), -5, 3).astype(int))
    refused(f"npy:{tmp_path / 'a.npy'}", "integers from -5 to 3; levels must lie in", in_memory_gib=0)
    for i in range(20):
        picture(tmp_path / "p" / f"{i:02d}.png", RNG.integers(0, 256, (5, 4), np.uint8))
    whole = (tmp_path / "p" / "13.png").read_bytes()
    (tmp_path / "p" / "13.png").write_bytes(whole[:60])
    refused(f"images:{tmp_path / 'p'}", "p/13.png cannot be read", in_memory_gib=0)
    picture(tmp_path / "p" / "13.png", np.zeros((4, 4), np.uint8))
    refused(f"images:{tmp_path / 'p'}", r"p/13.png has shape \(4, 4, 1\), but 00.png has", in_memory_gib=0)
    (tmp_path / "p" / "13.png").write_bytes(whole)
    data = load(f"images:{tmp_path / 'p'}", options=Options(in_memory_gib=0))
    os.remove(tmp_path / "p" / "13.png")
    with pytest.raises(InputError, match=r"13.png cannot be read \(.*No such file"):
        data.train[:]


@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
@pytest.mark.parametrize("packed", [False, True])
def test_any_idx_file_with_its_labels(tmp_path, code, dtype, packed):
    values = RNG.integers(0, 99, (20, 3, 4)) if code < 13 else RNG.normal(size=(20, 3, 4))
    labels = RNG.integers(0, 5, 20)
    for name, array, number, kind in (("images-idx3", values, code, dtype), ("labels-idx1", labels, 8, "u1")):
        content = (
            bytes([0, 0, number, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(kind).tobytes()
        )
        file = tmp_path / (f"my-{name}-ubyte" + ".gz" * packed)
        file.write_bytes(gzip.compress(content) if packed else content)
    spec = f"idx:{tmp_path}/my-images-idx3-ubyte" + ".gz" * packed
    data, order = load(spec), np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(data.train[..., 0], values[order[:18]].astype(data.train.dtype))
    np.testing.assert_array_equal(data.train_labels, labels[order[:18]])
    assert data.levels == (256 if code == 8 else None if code > 12 else values.max() + 1)
    labels_file = tmp_path / ("my-labels-idx1-ubyte" + ".gz" * packed)
    assert load(f"idx:{labels_file}").event_shape == (1,)
    content = bytes([0, 0, 8, 1]) + np.array([19], ">i4").tobytes() + bytes(19)
    labels_file.write_bytes(gzip.compress(content) if packed else content)
    refused(spec, "labels of shape .19,. for 20 .*examples")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_by_their_headers(tmp_path, packed):
    """Sizes that are not there, or are beyond the bound, are refused before anything is read."""
    file = tmp_path / ("a-idx3-ubyte" + ".gz" * packed)
    for shape, rest, words in (
        ((2**31, 2**31, 2**31), b"", "takes 9.22e.18 GiB of memory, more than --in-memory-gib 0.01"),
        ((20, 1000, 1000), bytes(2 * 10**7), "takes 0.0186 GiB of memory, more than --in-memory-gib 0.01; raise it"),
        ((20, 3, 3), bytes(100), r"holds 100 values, its header says \[20, 3, 3\]"),
        ((20, 3, 3), bytes(200), r"holds more than 180 values, its header says \[20, 3, 3\]"),
        ((20, 3), b"", r"holds 0 values, its header says \[20, 3\]; fetch it again"),
    ):
        content = bytes([0, 0, 8, 3]) + np.array(shape, ">u4").tobytes() + rest
        file.write_bytes(gzip.compress(content) if packed else content)
        refused(f"idx:{file}", words, in_memory_gib=0.01)


class Feature:
    def __init__(self, dtype="", names=()):
        self.dtype, self.names = dtype, names


class Split(list):
    """Rows that can also be asked for a column, as a set of the hub."""

    features: dict

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.fixture
def hub(monkeypatch):
    """A `datasets` package whose only set is what the test puts there."""
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.Value = (type(n, (Feature,), {}) for n in ("Image", "ClassLabel", "Value"))
    sets = {}

    def load_dataset(name):
        return sets[name]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)

    def put(features, **splits):
        sets["a/b"] = {k: Split(v) for k, v in splits.items()}
        for split in sets["a/b"].values():
            split.features = features

    return module, put


def test_sets_of_the_hub(hub):
    from PIL import Image

    module, put = hub
    images = RNG.integers(0, 256, (30, 4, 4), np.uint8)
    rows = [{"image": image, "label": i % 3} for i, image in enumerate(images)]
    features = {"image": module.Image(), "label": module.ClassLabel("int64", ("x", "y", "z"))}
    put(features, train=rows[:20], test=rows[20:])
    data = load("hf:a/b")
    np.testing.assert_array_equal(data.train[..., 0], images[:20])
    np.testing.assert_array_equal(data.held_out_labels, np.arange(20, 30) % 3)
    assert data.levels == 256 and data.labels == (3, ("x", "y", "z"))
    rows[7] = {"image": images[7][:3], "label": 0}
    put(features, train=rows)
    refused("hf:a/b", r"hf:a/b train row 7 has shape \(3, 4, 1\), but row 0 has \(4, 4, 1\), and there are 2 sizes")
    refused("hf:a/b", "hf:a/b train takes 4.47e-07 GiB of memory", in_memory_gib=1e-9, size=4)
    data = load("hf:a/b", options=Options(size=4))
    assert data.note == "train: 1 of 30 images of 2 sizes cut to their middle and resized to 4x4, 1 of them enlarged"
    clear = [{"image": Image.merge("LA", [Image.fromarray(v)] * 2), "label": 0} for v in images]
    put(features, train=clear[:20], test=clear[20:])
    np.testing.assert_array_equal(load("hf:a/b", options=Options(alpha="drop")).held_out[..., 0], images[20:])
    assert load("hf:a/b").note == "train: alpha over white: 20 of 20 images; test: alpha over white: 10 of 10 images"
    numbers = RNG.normal(size=(30, 2)).tolist()
    put(
        {"name": module.Value("string"), "u": module.Value("float64"), "v": module.Value("float32")},
        all=[{"name": "n", "u": u, "v": v} for u, v in numbers],
    )
    np.testing.assert_array_equal(
        load("hf:a/b").train, np.array(numbers, "f4")[np.random.default_rng(0).permutation(30)[:27]]
    )
    put({"name": module.Value("string")}, train=[{"name": "n"}])
    refused("hf:a/b", "has the features name; expected images or columns of numbers")
    put({}, one=[], two=[])
    refused("hf:a/b", "has the splits one, two; expected `train`, or just one")
    refused("hf:no", r"hf:no cannot be loaded \('no'\); check the name")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:a/b", "--data hf: needs datasets: pip install datasets")


def test_flips_mirror_half_of_the_images():
    import jax

    x = RNG.integers(0, 256, (4000, 2, 3, 1), np.uint8)
    y = np.asarray(jax.jit(flipped)(jax.random.key(0), x))
    mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
    same = (y == x).all((1, 2, 3))
    assert (mirrored | same).all() and y.dtype == np.uint8
    assert abs(mirrored[~same].sum() - (~same | ~mirrored).sum() / 2) < 5 * np.sqrt(4000) / 2


def test_prepared_batches_are_model_units_with_noise_in_every_bin():
    import jax

    data, key = load("digits"), jax.random.key(0)
    x = data.train[:50]
    u = jax.random.uniform(key, (50, 64)).reshape(x.shape)
    y, mask = jax.jit(data.prepare)(key, x)
    np.testing.assert_allclose(y, data.to_model(x, u), atol=1e-6)
    assert mask is None
    key, key_flip = jax.random.split(key)
    u = jax.random.uniform(key, (50, 64)).reshape(x.shape)
    y, _ = data.prepare(jax.random.key(0), x, flip=True)
    np.testing.assert_allclose(y, data.to_model(flipped(key_flip, x), u), atol=1e-6)


def test_every_option_is_a_flag():
    import dataclasses

    from experiments.models.flags import Config

    assert Config().options == Options()
    changed = Options(columns="a", missing="mask", split=3, window=7, channels="none", size=8, alpha="drop", rate=9)
    assert Config.of(**dataclasses.asdict(changed)).options == changed
    with pytest.raises(InputError, match=r"--flip is for images; the examples of mixture have shape \(2,\)"):
        Config.of(data="mixture", flip=True).resolve(load("mixture"))
    assert Config.of(flip=True).resolve(load("digits")).training()["flip"]
