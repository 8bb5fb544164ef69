"""Data for the command line: known counts and laws, exact way to model units and back, one-line errors."""

import gc
import gzip
import hashlib
import http.server
import io
import math
import pickle
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data import archives, toys
from experiments.data.dataset import Data
from experiments.data.load import load

SHARED = Path(__file__).parents[3] / "shared" / "data"
TOYS = ("mixture", "moons", "spirals", "checkerboard")


def shared(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the data folder {name} is not beside the repository")
    return SHARED / name


def refused(spec, words, **kwargs):
    with pytest.raises(InputError, match=words) as caught:
        load(spec, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.fixture
def ints(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "ints.npy", rng.integers(0, 7, (200, 3, 2)))
    return load(f"npy:{tmp_path / 'ints.npy'}")


@pytest.fixture
def floats(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "floats.npy", rng.normal([3, -200, 0.05], [1, 40, 0.01], (500, 3)))
    return load(f"npy:{tmp_path / 'floats.npy'}")


def test_digits_are_sklearns_in_the_stated_order():
    from sklearn.datasets import load_digits

    data, bunch = load("digits"), load_digits()
    order = np.random.default_rng(0).permutation(1797)
    assert data.train.dtype == np.uint8 and data.levels == 17 and data.event_shape == (8, 8, 1)
    np.testing.assert_array_equal(data.train[..., 0], bunch.images[order[:1500]])
    np.testing.assert_array_equal(data.held_out[..., 0], bunch.images[order[1500:]])
    assert data.train_labels is not None and data.held_out_labels is not None
    np.testing.assert_array_equal(np.r_[data.train_labels, data.held_out_labels], bunch.target[order])
    assert data.describe().startswith("digits: 1500 train + 297 held out, 8x8x1, 17 levels")
    assert load("digits", seed=5).train[7].tolist() == data.train[7].tolist()


@pytest.mark.parametrize("make", ["digits", "ints", "floats", *TOYS])
def test_model_units_have_zero_mean_and_unit_std_on_the_training_part(make, request):
    data = request.getfixturevalue(make) if make in ("ints", "floats") else load(make)
    u = np.random.default_rng(1).random((20, *data.train.shape), np.float32)
    y = np.stack([data.to_model(data.train, one) for one in u])
    axes = (0, 1) if data.scale.ndim else None
    tolerance = 4 / math.sqrt(12 * u.size) / float(np.min(data.scale)) if data.levels else 1e-4
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=tolerance + 1e-5)
    centred = y - y.mean(axis=(0, 1))
    np.testing.assert_allclose(np.sqrt((centred**2).mean(axis=axes)), data.sigma_data, rtol=3e-3)


@pytest.mark.parametrize("make", ["digits", "ints"])
def test_integers_come_back_exactly_with_any_noise(make, request):
    data = request.getfixturevalue(make) if make == "ints" else load(make)
    u = np.random.default_rng(2).random(data.held_out.shape, np.float32) * 0.999 + 0.0005
    for noise in (u, None):
        back = data.from_model(data.to_model(data.held_out, noise))
        assert back.dtype == data.train.dtype
        np.testing.assert_array_equal(back, data.held_out)
    middle = data.from_model(data.to_model(data.held_out), round_levels=False)
    np.testing.assert_allclose(middle, data.held_out, atol=1e-4)
    far = np.full((1, *data.event_shape), 1e6)
    assert data.from_model(far).max() == data.levels - 1 and data.from_model(-far).max() == 0
    assert data.from_model(far * np.nan).max() == 0


def test_bin_width_is_the_width_of_a_level_and_shift_is_in_levels(ints):
    u = np.random.default_rng(3).random(ints.train.shape, np.float32)
    assert ints.levels == 7
    step = ints.to_model(ints.train + 1, u) - ints.to_model(ints.train, u)
    np.testing.assert_allclose(step, ints.bin_width, rtol=1e-5)
    expected = (ints.train + u - ints.shift[None]) * ints.bin_width
    np.testing.assert_allclose(ints.to_model(ints.train, u), expected, atol=1e-6)
    exact = math.sqrt(ints.train.astype(float).var(axis=0).mean() + 1 / 12)
    assert ints.bin_width == pytest.approx(1 / exact)


def test_measurements_come_back_and_their_log_det_is_the_jacobians(floats):
    assert floats.bin_width is None and floats.scale.shape == (3,)
    np.testing.assert_allclose(floats.from_model(floats.to_model(floats.held_out)), floats.held_out, rtol=1e-5)
    jacobian = jax.jacobian(lambda x: floats.to_model(x[None])[0])(jnp.asarray(floats.train[0]))
    expected = np.linalg.slogdet(np.asarray(jacobian, "f8"))[1]
    np.testing.assert_allclose(floats.log_det(floats.held_out), np.full(len(floats.held_out), expected), rtol=1e-5)
    np.testing.assert_allclose(floats.mean, floats.train.mean(0, dtype="f8"), rtol=1e-6)
    assert floats.to_model(floats.train, np.ones_like(floats.train)).tolist() == floats.to_model(floats.train).tolist()


def test_measured_images_have_one_scale_and_its_log_det(tmp_path):
    x = np.random.default_rng(0).normal(2.0, 3.0, (50, 4, 4, 1))
    np.save(tmp_path / "x.npy", x)
    data = load(f"npy:{tmp_path / 'x.npy'}")
    assert data.scale.ndim == 0
    jacobian = jax.jacobian(lambda v: data.to_model(v[None])[0])(jnp.asarray(data.train[0])).reshape(16, 16)
    np.testing.assert_allclose(data.log_det(x[:3]), [np.linalg.slogdet(np.asarray(jacobian, "f8"))[1]] * 3, rtol=1e-5)


def test_statistics_use_the_training_part_only(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    np.savez(tmp_path / "a.npz", train=x, test=x + 100)
    np.savez(tmp_path / "b.npz", train=x, test=x)
    a, b = load(f"npz:{tmp_path / 'a.npz'}"), load(f"npz:{tmp_path / 'b.npz'}")
    assert a.mean.tolist() == b.mean.tolist() and a.std.tolist() == b.std.tolist()


def test_to_model_is_traceable_and_follows_x64(ints, x64):
    u = np.random.default_rng(0).random(ints.train.shape)
    y = jax.jit(ints.to_model)(ints.train, u)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, (ints.train + u - ints.shift) / ints.scale, rtol=1e-12)


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_seeded_and_sized(name):
    data, again, other = load(name), load(name), load(name, seed=1)
    assert data.train.shape == (100_000, 2) and data.held_out.shape == (2000, 2) and data.train.dtype == np.float32
    np.testing.assert_array_equal(data.train, again.train)
    assert not np.array_equal(data.train, other.train)
    assert (data.mixture is not None) == (name == "mixture")


def test_mixture_follows_its_stated_law():
    data = load("mixture")
    assert data.mixture is not None
    means, stds, weights = data.mixture
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1)
    nearest = np.linalg.norm(data.train[:, None] - means[None], axis=2)
    assert np.abs(np.bincount(nearest.argmin(1)) / 100_000 - weights).max() < 0.015
    np.testing.assert_allclose(np.sqrt((nearest.min(1) ** 2).mean() / 2), stds[0], rtol=0.02)
    log_normal = -(nearest**2) / (2 * stds**2) - 2 * np.log(stds) - math.log(2 * math.pi)
    log_prob = np.logaddexp.reduce(np.log(weights) + log_normal, axis=1)
    assert log_prob.mean() == pytest.approx(-(math.log(8) + 1 + math.log(2 * math.pi * 0.01)), abs=0.05)


def test_moons_spirals_and_checkerboard_lie_where_their_formulas_say():
    x, y = load("moons").train.astype("f8").T
    upper, lower = np.hypot(x, y) - 1, np.hypot(x - 1, y - 0.5) - 1
    distance = np.minimum(np.abs(upper), np.abs(lower))
    assert np.sqrt((distance**2).mean()) == pytest.approx(0.1, rel=0.1) and 0.45 < (y > 0.25).mean() < 0.55
    x, y = load("spirals").train.astype("f8").T
    assert np.hypot(x, y).max() < 1.1 and (np.hypot(x, y) ** 2).mean() == pytest.approx(0.5, abs=0.02)
    turn = np.angle((x + 1j * y) ** 2 * np.exp(-2j * 3 * np.pi * np.hypot(x, y)))
    assert np.median(np.abs(turn)) < 0.5
    x, y = load("checkerboard").train.astype("f8").T
    assert ((np.floor(x) + np.floor(y)) % 2 == 0).all() and np.abs([x, y]).max() <= 2
    cells = np.histogram2d(x, y, bins=4, range=[[-2, 2], [-2, 2]])[0]
    assert (cells > 0).sum() == 8 and np.abs(cells[cells > 0] / 100_000 - 1 / 8).max() < 0.015


def test_a_source_without_a_test_part_holds_out_the_last_tenth_of_a_permutation(tmp_path):
    x = np.arange(57.0)[:, None] + np.array([[0.5, 0.25]])
    np.save(tmp_path / "x.npy", x)
    for seed in (0, 3):
        data, order = load(f"npy:{tmp_path / 'x.npy'}", seed=seed), np.random.default_rng(seed).permutation(57)
        np.testing.assert_array_equal(data.train, x[order[:52]])
        np.testing.assert_array_equal(data.held_out, x[order[52:]])


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
@pytest.mark.slow
def test_the_real_idx_sets(name, mean, std):
    folder = shared(name)
    for data_dir in (folder, folder.parent):
        data = load(name, data_dir=data_dir)
    assert data.train.shape == (60000, 28, 28, 1) and data.held_out.shape == (10000, 28, 28, 1)
    assert data.train.dtype == np.uint8 and data.levels == 256
    assert data.train.mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert data.train.std() / 255 == pytest.approx(std, abs=1e-4)
    assert data.held_out_labels is not None and data.held_out_labels[:4].tolist() == (
        [7, 2, 1, 0] if name == "mnist" else [9, 2, 1, 1]
    )
    for file, digest in archives.SHA256[name].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_the_real_cifar_zips():
    data = load("cifar10", data_dir=shared("cifar10"))
    assert data.train.shape == (10000, 32, 32, 3) and data.held_out.shape == (9979, 32, 32, 3)
    assert data.train_labels is not None and data.held_out_labels is not None
    assert np.bincount(data.train_labels).tolist() == [1000] * 10
    assert np.bincount(data.held_out_labels).tolist() == [1000, 1000, 1000, 1000, 1000, 1000, 1000, 999, 980, 1000]
    assert data.train.mean() / 255 == pytest.approx(0.4734, abs=0.01)


def test_a_real_table():
    data = load(f"csv:{shared('uci') / 'protein.data.csv.gz'}")
    assert len(data.train) + len(data.held_out) == 45730 and data.event_shape == (10,) and data.levels is None


@pytest.fixture
def idx_server(tmp_path, monkeypatch):
    """Four tiny IDX files behind a loopback server, with their hashes."""
    site = tmp_path / "site"
    site.mkdir()
    rng, digests, arrays = np.random.default_rng(0), {}, {}
    for file in archives.IDX_FILES:
        shape = (30 if file.startswith("train") else 20, *((28, 28) if "images" in file else ()))
        arrays[file] = rng.integers(0, 10, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        (site / file).write_bytes(gzip.compress(header + arrays[file].tobytes()))
        digests[file] = hashlib.sha256((site / file).read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(archives.HOSTS, "mnist", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setitem(archives.SHA256, "mnist", digests)
        monkeypatch.setenv("SCORESDE_DATA", str(tmp_path / "cache"))
        yield site, arrays
        server.shutdown()


def test_download_check_and_cache(idx_server):
    site, arrays = idx_server
    data = load("mnist")
    np.testing.assert_array_equal(data.train[..., 0], arrays[archives.IDX_FILES[0]])
    np.testing.assert_array_equal(data.held_out_labels, arrays[archives.IDX_FILES[3]])
    for file in site.iterdir():
        file.unlink()
    np.testing.assert_array_equal(load("mnist").train, data.train)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_wrong_or_missing_download_is_refused(idx_server):
    """pooch leaves the answer to a failed request open, which the collector must find inside this test."""
    site, _ = idx_server
    (site / archives.IDX_FILES[1]).write_bytes(b"something else")
    refused("mnist", "train-labels.* could not be downloaded .*not the original .*--data-dir")
    (site / archives.IDX_FILES[1]).unlink()
    refused("mnist", "train-labels.* could not be downloaded .*404.*--data-dir")
    gc.collect()


def test_idx_files_that_are_cut_or_foreign(tmp_path, idx_server):
    site, arrays = idx_server
    first = site / archives.IDX_FILES[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    refused("mnist", f"{first.name} cannot be read .*is it complete", data_dir=site)
    first.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    refused("mnist", r"holds 23519 values, its header says \[30, 28, 28\]", data_dir=site)
    first.write_bytes(gzip.compress(b"\x89PNG and more"))
    refused("mnist", "no IDX file of bytes", data_dir=site)
    first.unlink()
    refused("mnist", "lacks train-images-idx3-ubyte.gz; put it there, or leave out --data-dir", data_dir=site)
    first.with_suffix("").write_bytes(gzip.decompress(whole))
    np.testing.assert_array_equal(load("mnist", data_dir=site).train[..., 0], arrays[first.name])
    first.with_suffix("").write_bytes(gzip.decompress((site / archives.IDX_FILES[1]).read_bytes()))
    refused("mnist", "the train files hold images", data_dir=site)
    refused("mnist", "nowhere does not exist", data_dir=tmp_path / "nowhere")
    refused("mnist", "is a file; give the folder that holds mnist", data_dir=site / archives.IDX_FILES[1])


def cifar_archive(path, form, batches):
    with tarfile.open(path, "w:gz") as archive:
        for i, (labels, images) in enumerate(batches):
            rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
            if form == "binary":
                name, content = name + ".bin", np.concatenate([labels[:, None], rows], axis=1).tobytes()
            else:
                content = pickle.dumps({b"labels": labels.tolist(), b"data": rows})
            info = tarfile.TarInfo(f"cifar-10-batches/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar_archives(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 10, 4, np.uint8), rng.integers(0, 256, (4, 32, 32, 3), np.uint8)) for _ in range(6)]
    path = tmp_path / f"cifar-10-{form}.tar.gz"
    cifar_archive(path, form, batches)
    if form == "python":
        refused("cifar10", "is not the original .*not opened unchecked", data_dir=tmp_path)
        monkeypatch.setitem(archives.SHA256["cifar10"], path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    data = load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train, np.concatenate([images for _, images in batches[:5]]))
    np.testing.assert_array_equal(data.held_out, batches[5][1])
    told = np.array(data.labels.words)[data.train_labels].astype(int)
    np.testing.assert_array_equal(told, np.concatenate([labels for labels, _ in batches[:5]]))
    if form == "binary":
        cifar_archive(path, form, batches[:5])
        refused("cifar10", "lacks test_batch.bin", data_dir=tmp_path)
        path.write_bytes(path.read_bytes()[:2000])
        refused("cifar10", "cannot be read|lacks", data_dir=tmp_path)
        path.unlink()
        refused("cifar10", "neither cifar-10-binary.tar.gz nor image zips", data_dir=tmp_path)


def test_npz_names(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    file = tmp_path / "a.npz"
    for arrays, train in (({"x": x, "z": y}, None), ({"anything": x}, None), ({"train": x, "test": y}, x)):
        np.savez(file, **arrays)
        data = load(f"npz:{file}")
        assert (len(data.train), len(data.held_out)) == ((18, 2) if train is None else (20, 20))
    np.savez(file, a=x, b=y)
    refused(f"npz:{file}", r"holds the arrays \['a', 'b'\]; expected `train`")
    np.savez(file, train=x, test=y[:, :2])
    refused(f"npz:{file}", r"train has examples of shape \(3,\), test of \(2,\)")
    np.savez(file, train=x, test=(y > 0))
    refused(f"npz:{file}", "train is float64 and test is bool")


def test_levels_of_arrays(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "a.npy"
    for values, levels in (
        (rng.integers(0, 9, (50, 2), np.uint8), 256),
        (np.r_[rng.integers(0, 9, (50, 2)), [[11, 0]]], 12),
        (rng.integers(0, 1000, (50, 2)), None),
        (rng.random((50, 2)) < 0.5, 2),
        (rng.integers(0, 5, (50, 2)).astype("f4"), 5),
        (rng.normal(size=50), -1),
    ):
        np.save(file, values)
        data = load(f"npy:{file}")
        assert data.levels == {None: int(values.max()) + 1, -1: None}.get(levels, levels)
        assert data.event_shape == ((2,) if values.ndim == 2 else (1,))
        storage = np.float32 if data.levels is None else np.uint8 if data.levels <= 256 else np.uint16
        assert data.train.dtype == storage


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((20, 2), complex), "holds complex128 values"),
        (np.array(["a"] * 20), "holds <U1 values"),
        (np.ones(()), r"shape \(\); expected \(examples, ...\)"),
        (np.ones((0, 3)), r"shape \(0, 3\)"),
        (np.arange(9)[:, None], "holds 9 example.*at least 10"),
        (np.arange(20)[:, None] - 3, "integers from -3 to 16; levels must lie in 0..65535"),
        (np.arange(20)[:, None] * 9999, "integers from 0 to 189981"),
        (np.where(np.arange(40).reshape(20, 2) == 7, np.nan, 0.5), r"in 1 example.* row 3 \(from 0\)"),
        (np.where(np.arange(40).reshape(20, 2) > 37, 1e39, 0.5), r"infinite or too large .* row 19"),
        (np.stack([np.linspace(0, 1, 20), np.full(20, 0.5)], 1), "column 2 has one value only"),
        (np.full((20, 2, 2), 3), "all training examples have one value only"),
        (1.6e9 + np.random.default_rng(0).normal(size=(20, 1)) * 100, "far from zero .*subtract the mean"),
    ],
)
def test_array_mistakes(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values)
    refused(f"npy:{tmp_path / 'a.npy'}", words)


TABLE = "a,b\n" + "".join(f"{i + 0.5},{i * i}\n" for i in range(20))


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        TABLE[4:],
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        "\ufeff" + TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\n\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_tables(tmp_path, text, packed):
    file = tmp_path / ("t.csv.gz" if packed else "t.csv")
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    data, order = load(f"csv:{file}"), np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(data.train, np.array([[i + 0.5, i * i] for i in order[:18]], "f4"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no rows of numbers"),
        ("a,b\n", "holds no rows of numbers"),
        (TABLE + "7,x\n", r"t.csv line 22: column 2 \(b\) holds the text 'x'"),
        (TABLE + "7,\n", r"line 22: column 2 \(b\) holds an empty cell"),
        (TABLE[4:] + "nan,1\n", "line 21: column 1 holds the text 'nan'"),
        (TABLE + "7,8,9\n", "line 22: 3 columns, expected 2"),
        ("a,1\n" + TABLE[4:], "line 1: column 1 holds the text 'a'"),
        (TABLE[:16], "at least 10"),
    ],
)
def test_table_mistakes(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    refused(f"csv:{tmp_path / 't.csv'}", words)


def test_broken_table_files(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-12])
    refused(f"csv:{tmp_path / 't.csv.gz'}", "t.csv.gz cannot be read")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    refused(f"csv:{tmp_path / 't.csv'}", "t.csv cannot be read .*decode")
    refused(f"csv:{tmp_path}", "is a folder; give a file")
    refused(f"csv:{tmp_path / 'no.csv'}", "no.csv does not exist; check the path")


def test_names_and_flags(tmp_path):
    refused("digit", "--data digit is unknown; did you mean digits.*expected one of digits, mixture")
    refused("zzzz", "zzzz is unknown; expected one of")
    refused("fashionmnist", "did you mean fashion-mnist")
    refused("npz", "npz needs a path: npz:PATH")
    refused("csv:", "csv needs a path")
    refused("digits:x", "a path follows only npz:, npy:, images:, csv:")
    refused("moons", "--data-dir is for mnist, fashion-mnist, cifar10; --data moons", data_dir=tmp_path)
    np.savez(tmp_path / "a.npz", np.ones(3))
    refused(f"npy:{tmp_path / 'a.npz'}", "use npz:")
    np.save(tmp_path / "a.npy", np.ones(3))
    refused(f"npz:{tmp_path / 'a.npy'}", "use npy:")


@pytest.mark.parametrize(
    ("module", "spec", "package"),
    [("sklearn.datasets", "digits", "scikit-learn"), ("PIL.Image", "images:{}", "pillow"), ("pooch", "mnist", "pooch")],
)
def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, module, spec, package):
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    refused(spec.format(tmp_path), rf"needs {package}: pip install 'scoresde\[experiments\]'")


def test_data_is_immutable_and_ring_is_the_toys():
    data = load("mixture")
    assert isinstance(data, Data) and data.mixture is toys.RING
    with pytest.raises(AttributeError):
        data.levels = 3  # pyright: ignore[reportAttributeAccessIssue]
