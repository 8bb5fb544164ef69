"""Tables: the columns, the test part and the missing values that were asked for, parquet, and one-line errors."""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data.arrays import Options
from experiments.data.dataset import Data
from experiments.data.load import load

UCI = Path(__file__).parents[3] / "shared" / "data" / "uci"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)) * [1, 10, 100]


def refused(spec, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load(spec, options=Options(**options))
    assert "\n" not in str(caught.value)


def write(path, values, header="a,b,c"):
    rows = [",".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in values]
    path.write_text("\n".join([header, *rows]) + "\n")
    return f"csv:{path}"


def rows_of(data):
    """All rows, in a canonical order."""
    values = np.concatenate([data.train, data.held_out])
    return values[np.lexsort(values.T)]


def test_columns_by_name_and_number(tmp_path):
    spec, f = write(tmp_path / "t.csv", X), X.astype("f4")
    for options, kept in (
        ({"columns": "c,a"}, [2, 0]),
        ({"columns": "3, 1"}, [2, 0]),
        ({"drop_columns": "b"}, [0, 2]),
        ({"columns": "a,b", "drop_columns": "1"}, [1]),
        ({"columns": "all"}, [0, 1, 2]),
    ):
        data = load(spec, options=Options(**options))
        expected = f[:, kept]
        np.testing.assert_array_equal(rows_of(data), expected[np.lexsort(expected.T)])
    assert "without column(s) 2 (b)" in load(spec, options=Options(drop_columns="b")).describe()
    refused(spec, r"--columns: .*t.csv has no column 'd'; it has 3: a, b, c", columns="a,d")
    refused(spec, "--drop-columns: .*no column '4'", drop_columns="4")
    refused(spec, "no column is left of a, b, c", drop_columns="a,b,c")


def test_columns_that_are_left_out_may_hold_anything(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{a!r},Rome,{repr(c) * (i % 7 == 0)},{b!r}" for i, (a, b, c) in enumerate(X.tolist())]
    path.write_text("\n".join(["a,city,c,b", *lines]) + "\n")
    expected = X[:, :2].astype("f4")
    expected = expected[np.lexsort(expected.T)]
    for options in ({"columns": "a,b"}, {"drop_columns": "city,3"}, {"columns": "1,3,4", "drop_columns": "c"}):
        np.testing.assert_array_equal(rows_of(load(f"csv:{path}", options=Options(**options))), expected)
    refused(f"csv:{path}", r"column 2 \(city\) holds the text 'Rome'.*leave the column out with --drop-columns")
    refused(f"csv:{path}", r"column 3 \(c\) holds an empty cell", drop_columns="city")
    path.write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(rows_of(load(f"csv:{path}", options=Options(columns="1,4"))), expected)


def test_columns_whose_density_is_unbounded(tmp_path):
    few, atom = X.copy(), X.copy()
    few[:, 1] = RNG.integers(0, 9, 200) / 4
    atom[:60, 2] = 0.25
    for values, named in ((few, r"2 \(b\)"), (atom, r"3 \(c\)"), (np.c_[few[:, :2], atom[:, 2]], r"2 \(b\), 3 \(c\)")):
        spec = write(tmp_path / "t.csv", values)
        refused(spec, rf"column\(s\) {named} take few values.*--drop-columns few")
        kept = load(spec, options=Options(columns="all"))
        assert kept.event_shape == (3,) and "density is unbounded" in kept.describe()
        assert load(spec, options=Options(drop_columns="few")).event_shape == (3 - named.count("("),)
        assert load(spec, options=Options(columns="a")).event_shape == (1,)
    assert load(write(tmp_path / "t.csv", RNG.integers(0, 9, (200, 3)))).levels == 9


@pytest.mark.parametrize("beside", ["t.test_mask.csv", "t.test_mask.csv.gz", None])
def test_the_test_part_of_a_mask_file(tmp_path, beside):
    spec = write(tmp_path / "t.csv", X)
    (tmp_path / "t.csv").rename(tmp_path / "t.data.csv")
    spec, masks = spec.replace("t.csv", "t.data.csv"), RNG.random((200, 4)) < 0.2
    text = "".join(",".join(str(int(v)) for v in row) + "\n" for row in masks).encode()
    file = tmp_path / (beside or "elsewhere.csv")
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    named = {} if beside else {"test_mask": str(file)}
    for split in (0, 3):
        data = load(spec, options=Options(split=split, **named))
        np.testing.assert_array_equal(data.train, X[~masks[:, split]].astype("f4"))
        np.testing.assert_array_equal(data.held_out, X[masks[:, split]].astype("f4"))
        assert f"test part from {file.name}, split {split}" in data.describe()
    refused(spec, r"--split must be in 0..3, the columns of .*; got 4", split=4, **named)
    file = tmp_path / "bad.csv"
    for content, words in (
        ("1\n0\n", "has 2 rows for the 200 of"),
        ("2\n" * 200, "expected 0 or 1"),
        ("0\n" * 200, "0 of"),
    ):
        file.write_text(content)
        refused(spec, words, test_mask=str(file))
    refused(spec, "no.csv does not exist", test_mask=str(tmp_path / "no.csv"))
    if not beside:
        refused(spec, "--split 1 chooses a column of a test mask; give one", split=1)


def test_missing_values_are_masked_only_where_asked(tmp_path):
    values, seen = X.copy(), RNG.random(X.shape) > 0.1
    values[~seen] = np.nan
    spec = write(tmp_path / "t.csv", values)
    refused(spec, "holds an empty cell; .*use --missing mask")
    refused(spec, "--missing must be error or mask, got 'skip'", missing="skip")
    data = load(spec, options=Options(missing="mask"))
    order = np.random.default_rng(0).permutation(200)
    train, mask = values[order[:180]], seen[order[:180]]
    assert data.train_mask is not None and np.isfinite(data.held_out).all()
    np.testing.assert_array_equal(data.train_mask, mask)
    np.testing.assert_array_equal(data.train[mask], train[mask].astype("f4"))
    np.testing.assert_allclose(data.mean, np.nanmean(train, axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, np.nanstd(train, axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(data.to_model(data.train))[~mask], 0, atol=1e-6)
    complete = values[order[180:]][seen[order[180:]].all(axis=1)]
    np.testing.assert_array_equal(data.held_out, complete.astype("f4"))
    assert f"{20 - len(complete)} incomplete rows not held out" in data.describe() and data.record()["masked"]
    batch = data.batch(np.array([3, 1]))
    np.testing.assert_array_equal(batch["mask"], mask[[3, 1]])
    np.testing.assert_array_equal(batch["x"], data.train[[3, 1]])
    for word in ("NaN", "NA", "n/a", "null"):
        (tmp_path / "w.csv").write_text((tmp_path / "t.csv").read_text().replace(",,", f",{word},"))
        again = load(f"csv:{tmp_path / 'w.csv'}", options=Options(missing="mask"))
        np.testing.assert_array_equal(again.train, data.train)
    values[:, 1] = np.nan
    refused(write(tmp_path / "t.csv", values), "column b is missing in every row", missing="mask")
    assert load(write(tmp_path / "t.csv", X), options=Options(missing="mask")).train_mask is None


def test_parquet_is_the_same_table(tmp_path):
    if importlib.util.find_spec("pyarrow") is None:
        (tmp_path / "t.parquet").write_bytes(b"PAR1")
        refused(f"parquet:{tmp_path / 't.parquet'}", "reading parquet files needs pyarrow: pip install pyarrow")
        pytest.skip("pyarrow is not installed")
    import pyarrow
    from pyarrow import parquet

    def stored(**columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        return f"parquet:{tmp_path / 't.parquet'}"

    columns = dict(zip("abc", X.T, strict=True))
    spec, text = stored(**columns), write(tmp_path / "t.csv", X)
    for options in ({}, {"columns": "c,a"}):
        one, two = load(spec, options=Options(**options)), load(text, options=Options(**options))
        np.testing.assert_array_equal(one.train, two.train)
        assert one.record() | {"name": ""} == two.record() | {"name": ""}
    spec = stored(**columns, d=[None if i % 50 == 7 else i / 3 for i in range(200)])
    refused(spec, r"row 7 \(from 0\): column 4 \(d\) holds nan; .*--missing mask")
    data = load(spec, options=Options(missing="mask", columns="d"))
    assert data.train_mask is not None and (~data.train_mask).sum() + 20 - len(data.held_out) == 4
    refused(stored(**columns, d=["x"] * 200), r"column 4 \(d\) holds string values")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:100])
    refused(spec, "t.parquet cannot be read")


@pytest.mark.parametrize("name", ["airfoil", "concrete", "energy", "housing", "parkinsons", "protein", "wine", "yacht"])
@pytest.mark.slow
def test_the_real_tables(name):
    if not UCI.is_dir():
        pytest.skip("the data folder uci is not beside the repository")
    data = load(f"csv:{UCI / name}.data.csv.gz", options=Options(drop_columns="few", split=9))
    table = np.loadtxt(UCI / f"{name}.data.csv.gz", delimiter=",")
    test = np.loadtxt(UCI / f"{name}.test_mask.csv.gz", delimiter=",")[:, 9] == 1
    assert data.counts == ((~test).sum(), test.sum())
    np.testing.assert_array_equal(data.held_out[:, -1], table[test][:, -1].astype("f4"))
    assert data.event_shape == ({"parkinsons": 18, "protein": 10, "wine": 11}.get(name, data.event_shape[0]),)


def test_flags_of_tables_are_refused_elsewhere(tmp_path):
    refused("moons", "--columns is for csv, parquet; --data moons does not read it", columns="1")
    refused("digits", "--window is for audio; --data digits", window=3)
    refused(write(tmp_path / "t.csv", X), "--in-memory-gib is for images, npy", in_memory_gib=1.0)


def test_correlated_columns_are_whitened_and_come_back(tmp_path):
    """The covariance is the identity, and the log-determinant that of the Jacobian."""
    mixing = np.array([[1.0, 5.0, 0.0], [0.0, 0.1, 2.0], [0.0, 0.0, 3.0]])
    data = load(write(tmp_path / "t.csv", RNG.normal(size=(300, 3)) @ mixing + 4))
    y, x = np.asarray(data.to_model(data.train), float), data.held_out
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(3), atol=1e-4)
    again = Data.from_record(json.loads(json.dumps(data.record())))
    np.testing.assert_array_equal(again.to_model(x), data.to_model(x))
    np.testing.assert_allclose(again.from_model(data.to_model(x)), x, rtol=1e-4, atol=1e-4)
    jacobian = jax.vmap(jax.jacobian(lambda v: data.to_model(v[None])[0]))(jnp.asarray(x))
    np.testing.assert_allclose(data.log_det(x), np.linalg.slogdet(np.asarray(jacobian, float))[1], atol=1e-4)


def test_what_is_not_whitened(tmp_path):
    """Missing values, levels, too few rows; and a repeated column is not magnified beyond 1,000."""
    missing = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
    assert load(write(tmp_path / "m.csv", missing), options=Options(missing="mask")).whitening is None
    assert load(write(tmp_path / "l.csv", RNG.integers(0, 9, (60, 3)))).whitening is None
    assert load(write(tmp_path / "s.csv", X[:25])).whitening is None
    twice = load(write(tmp_path / "r.csv", np.concatenate([X[:, :2], 2 * X[:, :1]], 1))).whitening
    assert np.linalg.eigvalsh(twice).max() < 1001
