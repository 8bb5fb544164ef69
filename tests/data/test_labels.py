"""Labels: the classes that occur, by the names that a person sees, whatever form they are stored in."""

import dataclasses
import json

import numpy as np
import pytest
from small import save_run

from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.data.labels import Labels, class_of
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.saved import examples, open_run
from scoresde.checkpoint import folder as checkpoint

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
THREE = np.arange(60) % 3


def npz(folder, labels, name="a.npz", x=X):
    np.savez(folder / name, x=x, labels=labels)
    return f"npz:{folder / name}"


def labels_of(data):
    """In the order of the file."""
    found = np.empty(60, data.train_labels.dtype)
    found[np.random.default_rng(0).permutation(60)] = np.concatenate([data.train_labels, data.held_out_labels])
    return found


@pytest.mark.parametrize(
    ("labels", "names", "coded"),
    [
        (THREE, None, THREE),
        (THREE.astype(np.uint8), None, THREE),
        (THREE.astype(np.float32), None, THREE),
        (THREE[:, None], None, THREE),
        (np.eye(3)[THREE], None, THREE),
        (np.eye(3, dtype=bool)[THREE], None, THREE),
        (np.eye(5)[2 + THREE], ("2", "3", "4"), THREE),
        (THREE > 0, None, THREE > 0),
        (1 + THREE, ("1", "2", "3"), THREE),
        (999_999 * (THREE > 0), ("0", "999999"), THREE > 0),
        (np.array([5.0, 7.0, 1e9])[THREE], ("5", "7", "1000000000"), THREE),
        (np.array(["dog", "ant", "cat"])[THREE], ("ant", "cat", "dog"), np.array([2, 0, 1])[THREE]),
        (np.array(["10", "9", "2"])[THREE], ("2", "9", "10"), 2 - THREE),
        (np.array(["n02/c10", "n02/c9", "n1/c11"])[THREE], ("n1/c11", "n02/c9", "n02/c10"), 2 - THREE),
        (np.array([b"b", b"a", b"\xc3\xa9"])[THREE], ("a", "b", "é"), np.array([1, 0, 2])[THREE]),
    ],
)
def test_every_form_of_classes_is_the_values_that_occur(tmp_path, labels, names, coded):
    """Their names too are found again: in the record, and in a file of what the classes stand for."""
    data = load(npz(tmp_path, labels))
    kind, found = data.labels, labels_of(data)
    assert kind == Labels(len(np.unique(coded)), names) and f"{kind.classes} classes" in data.describe()
    assert data.train_labels.dtype == np.int32 and (names is None or names[-1] in data.describe())
    np.testing.assert_array_equal(found, coded)
    again = load(npz(tmp_path, kind.values(found)))
    assert again.labels == kind and labels_of(again).tolist() == found.tolist()
    assert Data.from_record(json.loads(json.dumps(data.record()))).labels == kind
    assert [class_of("label", word, kind, "a") for word in kind.words] == list(range(kind.classes))


@pytest.mark.parametrize(
    "labels", [np.linspace(0, 1, 60), np.linspace(0, 1, 60)[:, None], np.eye(60)[:, :4], RNG.normal(size=(60, 2))]
)
def test_real_labels_are_no_classes(tmp_path, labels):
    data = load(npz(tmp_path, labels))
    assert data.labels == Labels(None) and "real labels" in data.describe() and data.train_labels.dtype == np.float32
    np.testing.assert_array_equal(np.sort(data.train_labels, axis=0)[0], np.sort(data.train_labels, axis=0).min(axis=0))
    with pytest.raises(InputError, match="needs data with classes; .* has real labels: store whole numbers or words"):
        build(Config.of(data=data.name, condition="class").resolve(data), data)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(59), r"labels of shape \(59,\) for 60 .*examples; give one each"),
        (np.array(1), r"labels of shape \(\) for 60"),
        (THREE - 1, "label -1 is negative"),
        (np.where(THREE, np.nan, 1), "some are not finite"),
        (THREE * 1j, "whole numbers, words or finite real numbers, got complex128"),
    ],
)
def test_labels_that_cannot_be(tmp_path, labels, words):
    with pytest.raises(InputError, match=words):
        load(npz(tmp_path, labels))


@pytest.mark.parametrize("labels", [(THREE, np.eye(3)[THREE][:, :2]), (THREE, np.array(["a", "b", "c"])[THREE])])
def test_parts_with_labels_of_two_kinds(tmp_path, labels):
    np.savez(tmp_path / "a.npz", train=X, test=X, train_labels=labels[0], test_labels=labels[1])
    with pytest.raises(InputError, match="the labels of its training and test parts are of two kinds: int64"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize(
    ("recorded", "labels", "coded"),
    [
        ({"classes": 4, "names": None}, 1 + THREE, 1 + THREE),  # 1..K were 0..K once
        ({"classes": 3, "names": ["10", "2", "9"]}, np.array(["2", "9", "10"])[THREE], np.array([1, 2, 0])[THREE]),
        ({"classes": 4, "names": ["a", "b", "c", "d"]}, np.array(["b", "d", "c"])[THREE], np.array([1, 3, 2])[THREE]),
        ({"classes": None, "names": None}, 4.0 + THREE, (4 + THREE).astype("f4")),
        (None, THREE, None),
    ],
)
def test_classes_keep_the_numbers_that_a_run_knows_them_by(tmp_path, recorded, labels, coded):
    """Those of earlier versions, which took 0..max for classes, sorted words as text and did not read all labels."""
    spec = npz(tmp_path, labels)
    record = json.loads(json.dumps(load(spec).record())) | {"labels": recorded}
    data = load(spec, record=record)
    assert json.loads(json.dumps(data.record())) == record
    if coded is None:
        assert data.train_labels is None and data.held_out_labels is None
    else:
        np.testing.assert_array_equal(labels_of(data), coded)


def test_a_run_opens_its_own_data_and_others_by_the_names_of_classes(tmp_path):
    spec = npz(tmp_path, np.array(["ant", "bee", "cat"])[THREE])
    save_run(tmp_path / "run", spec, condition="class")
    opened = open_run(tmp_path / "run")
    assert opened.data.labels == Labels(3, ("ant", "bee", "cat"))
    other = npz(tmp_path, np.array(["cat", "bee"])[THREE // 2], "b.npz")
    np.testing.assert_array_equal(labels_of(examples(opened, spec=other)), np.array([2, 1])[THREE // 2])
    foreign = npz(tmp_path, np.array(["cat", "emu"])[THREE // 2], "c.npz")
    with pytest.raises(InputError, match=r"c.npz has the classes emu, which the run did not know: 3 classes \(ant, b"):
        examples(opened, spec=foreign)
    plain = opened._replace(config=opened.config.replace(condition="none"))
    assert examples(plain, spec=foreign).labels.classes == 2
    npz(tmp_path, np.array(["ant", "bee", "emu"])[THREE])
    with pytest.raises(InputError, match="a.npz has the classes emu, which the run did not know"):
        examples(plain)


def test_a_class_without_a_training_example_is_refused_where_classes_are_learned(tmp_path):
    np.savez(tmp_path / "a.npz", train=X, test=X, y_train=THREE, y_test=THREE + 1)
    data = load(f"npz:{tmp_path / 'a.npz'}")
    for flags in ({"condition": "class"}, {"target": "class"}):
        with pytest.raises(InputError, match=r"no training example of 1 of its 4 classes \(3\), which networks"):
            build(Config.of(data=data.name, steps=1, **flags).resolve(data), data)
    assert build(Config.of(data=data.name, steps=1).resolve(data), data)


def test_a_flag_names_a_class_as_a_person_sees_it():
    kind = Labels(3, ("ant", "china", "10"))
    assert class_of("label", None, None, "d") is None and class_of("label", 10, kind, "d") == 2
    for word, labels, words in (
        ("chin", kind, r"--label must be one of the 3 classes of d, ant, china, 10; got chin; did you mean china\?"),
        ("1", kind, "--label must be one of the 3 classes of d"),
        ("3", Labels(3), r"--label must be in 0..2, the classes of d, got 3"),
        ("1_0", Labels(11), r"--label must be in 0..10, the classes of d, got 1_0"),
        ("0", Labels(None), "--label 0: d has no classes; drop it"),
        ("0", None, "--label 0: d has no classes; drop it"),
    ):
        with pytest.raises(InputError, match=words):
            class_of("label", word, labels, "d")


def test_a_run_of_before_continues_with_its_classes(tmp_path):
    """Its checkpoint's record of 0..K for the labels 1..K is what its data are read by."""
    from rich.console import Console

    from experiments.training.session import train

    spec = npz(tmp_path, 1 + THREE)
    config, data, _ = save_run(tmp_path / "run", spec)
    record = data.record() | {"labels": {"classes": 4, "names": None}, "note": "other words"}
    state, _ = checkpoint.restore(tmp_path / "run" / "checkpoint", build(config, data).init())
    checkpoint.save(tmp_path / "run" / "checkpoint", state, {"config": config.training(), "data": record})
    trained = train(dataclasses.replace(config, dry_run=True), Console(quiet=True), "run")
    assert trained is None
    opened = open_run(tmp_path / "run")
    np.testing.assert_array_equal(labels_of(examples(opened)), 1 + THREE)
