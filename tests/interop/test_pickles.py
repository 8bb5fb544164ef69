"""Files of torch.save and pickled modules, written by hand in ``streams`` and read without PyTorch; hostile ones."""

import io
import os
import pickle
import tracemalloc
import zipfile
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import streams
from streams import Call, Named, Stored, tensor

from scoresde.interop.checkpoints import read_edm, read_score_sde
from scoresde.interop.files.modules import DEEPEST
from scoresde.interop.files.torch_files import read_torch

ARRAYS = {
    "double": np.linspace(-1, 1, 6).reshape(2, 3),
    "float": np.arange(4, dtype=np.float32),
    "half": np.arange(4, dtype=np.float16).reshape(2, 2),
    "long": np.arange(-2, 3),
    "int": np.arange(3, dtype=np.int32),
    "short": np.arange(3, dtype=np.int16),
    "char": np.arange(-1, 2, dtype=np.int8),
    "byte": np.arange(3, dtype=np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
SMALL = {"model": {"a": tensor(Stored("Float", "0", 6), (2, 3))}, "step": 3, "name": "x", "sizes": [1, (2.5, None)]}
NUMBERS = {"0": np.arange(6, dtype=np.float32)}


def read(tmp_path, content, reader=read_torch):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    return reader(path)


def refused(tmp_path, content, match, reader=read_torch):
    with pytest.raises(ValueError, match=match) as caught:
        read(tmp_path, content, reader)
    assert "\n" not in str(caught.value) and str(tmp_path / "file.pth") in str(caught.value)


@pytest.mark.parametrize("write", [streams.zipped, streams.legacy])
def test_every_type_comes_back(tmp_path, write):
    storages = {}
    made = {name: streams.of(storages, str(i), array) for i, (name, array) in enumerate(ARRAYS.items())}
    found = read(tmp_path, write(made, storages))
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and not found[name].flags.writeable, name
        np.testing.assert_array_equal(found[name], array)


def test_bytes_in_the_other_order_are_turned_round(tmp_path):
    storages = {}
    made = {name: streams.of(storages, name, ARRAYS[name]) for name in ("double", "float", "long")}
    found = read(tmp_path, streams.zipped(made, storages, order="big"))
    for name in made:
        np.testing.assert_array_equal(found[name], ARRAYS[name])


def test_bfloat16_views_and_shared_storages(tmp_path):
    numbers = np.asarray(jnp.arange(24, dtype=jnp.bfloat16))
    whole = Stored("BFloat16", "0", 24)
    made = {
        "all": tensor(whole, (2, 3, 4)),
        "turned": tensor(whole, (4, 3), (1, 4), 12),
        "row": tensor(whole, (4,), (6,), 1),
    }
    content = streams.zipped(made, {"0": numbers.view(np.int16)})
    found = read(tmp_path, content)
    cube = np.arange(24.0).reshape(2, 3, 4)
    for name, array in {"all": cube, "turned": cube[1].T, "row": cube.ravel()[1::6]}.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), array)
    assert np.shares_memory(found["all"], found["turned"])


def test_plain_values_come_back_as_pickle_would_read_them(tmp_path):
    value = {"a": [1, -5, 2**70, 0.5, None, True], "b": ("x", b"y", {3: {"z"}}), "c": {1, 2}, "again": "x"}
    value["same"] = value["a"]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = read(tmp_path, pickle.dumps(value, protocol))
        assert found == value and found["same"] is found["a"]


def test_numbers_of_numpy_are_read(tmp_path):
    for protocol in (2, 4):
        assert read(tmp_path, pickle.dumps({"g": np.sqrt(0.2), "n": np.int32(3)}, protocol)) == {
            "g": np.sqrt(0.2),
            "n": 3,
        }


def test_a_module_is_its_tensors_and_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight, bias = np.arange(6, dtype=np.float16).reshape(2, 3), np.zeros(2, np.float32)
    layer = streams.module("Linear", {"weight": weight, "bias": bias}, {}, {"in_features": 3})
    net = streams.module("SongUNet", {}, {"enc": streams.container({"8x8": layer}), "none": None}, {})
    ema = streams.module(
        "EDMPrecond", {"gain": np.float32([2])}, {"model": net}, {"img_resolution": 8, "rates": [1, 2]}
    )
    config, state = read(tmp_path, streams.stream({"ema": ema, "loss_fn": None}), read_edm)
    assert config == {"img_resolution": 8, "rates": [1, 2], "precond": "EDMPrecond"}
    assert list(state) == ["gain", "model.enc.8x8.weight", "model.enc.8x8.bias"]
    np.testing.assert_array_equal(state["model.enc.8x8.weight"], weight)
    assert not (tmp_path / "executed").exists()


HOSTILE = {
    "asks for os.system": Call("os.system", ("touch executed",)),
    "asks for builtins.eval": Call("builtins.eval", ("open('executed', 'w')",)),
    "asks for torch.nn.modules.linear.Linear": Call("torch.nn.modules.linear.Linear", (), {}, new=True),
    "asks for numpy.load": Named("numpy.load"),
    "type of a storage is called": Call("torch.FloatStorage", ("0",)),
    "does not fit its storage": tensor(Stored("Float", "0", 6), (2**20, 2**20)),
    r"does not fit its storage ": tensor(Stored("Float", "0", 6), (2**30,), (0,)),
    "does not fit its storage of 6": tensor(Stored("Float", "0", 6), (2, 3), (3, 2)),
    "offset must be a whole number": tensor(Stored("Float", "0", 6), (2,), (1,), -1),
    "stride must be a whole number": tensor(Stored("Float", "0", 6), (2,), (-1,), 3),
    "size must be a whole number": tensor(Stored("Float", "0", 6), ("x",), (1,)),
    "should have 4398046511104 bytes": tensor(Stored("Float", "0", 2**40), (2,)),
    "storage '../0' should have 24 bytes and is missing": tensor(Stored("Float", "../0", 6), (6,)),
    "storage of type torch.QInt8Storage|asks for torch.QInt8Storage": tensor(Stored("QInt8", "0", 6), (6,)),
    "a key that is a tuple": {("a",): 1},
    "without storage": tensor(1.0, (2,)),
    "made with arguments": Call("collections.OrderedDict", ([],)),
    "NumPy type": Call("numpy.dtype", ("O8",)),
    "does not take": Call("torch._utils._rebuild_parameter"),
    "of unknown form": Call("torch.storage._load_from_bytes", (b"\x80\x02cos\nsystem\n.",)),
}


@pytest.mark.parametrize("match", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_never_executed(tmp_path, monkeypatch, match):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    refused(tmp_path, streams.zipped({"model": HOSTILE[match]}, NUMBERS), match)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 and not (tmp_path / "executed").exists()


def test_pickles_that_python_would_execute_are_refused(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    monkeypatch.chdir(tmp_path)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        refused(tmp_path, pickle.dumps(Bomb(), protocol), "asks for posix.mkdir|asks for nt.mkdir")
    assert not (tmp_path / "executed").exists()


def test_deep_nests_and_shared_references_stay_cheap(tmp_path):
    doubled = b"\x80\x02" + b"N" + b"2\x86" * 200 + b"."  # ((..), (..)) of 2^200 leaves
    assert isinstance(read(tmp_path, doubled), tuple)
    refused(tmp_path, b"\x80\x02}N" + b"2\x86" * 200 + b"Ns.", "a key that is a tuple")
    read(tmp_path, b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    refused(tmp_path, b"\x80\x02" + b"N" * 1_000_100 + b".", "operations")
    inner = streams.container({})
    for _ in range(DEEPEST + 2):
        inner = streams.container({"a": inner})
    top = streams.module("EDMPrecond", {}, {"model": inner}, {})
    refused(tmp_path, streams.stream(top), "beyond depth", read_edm)
    name = b"ctorch.nn.modules.container\nModuleDict\n)\x81q\x05"  # remembered, and then its own child
    itself = name + b"}" + streams.body("_modules") + b"}" + streams.body("a") + b"h\x05ssb"
    meta = streams.body({"type": "class", "class_name": "EDMPrecond"})
    state = b"}" + streams.body("_modules") + b"}" + streams.body("model") + itself + b"ss"
    call = (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + streams.body("state") + state + b"s\x85R."
    )
    refused(tmp_path, b"\x80\x02" + call, "beyond depth", read_edm)
    refused(tmp_path, streams.stream({"ema": 3}), "expected a pickle", read_edm)


def test_damaged_files_are_refused(tmp_path):
    good, old = streams.zipped(SMALL, NUMBERS), streams.legacy(SMALL, NUMBERS)
    for content, match in [
        (b"", "wrong magic"),
        (b"hello", "wrong magic"),
        (b"PK\x03\x04", "not a zip"),
        (good[: len(good) // 2], "not a zip"),
        (old[:-3], "truncated"),
        (old[:40], "file.pth"),
        (streams.zipped(SMALL, {"0": NUMBERS["0"][:5]}), "should have 24 bytes and is 20"),
        (streams.zipped(SMALL, NUMBERS, order="middle"), "neither little nor big"),
        (streams.zipped(SMALL, NUMBERS, extra={"/etc/x": b""}), "leads out"),
        (streams.zipped(SMALL, NUMBERS, extra={"archive/../../x": b""}), "leads out"),
        (streams.zipped(SMALL, NUMBERS, extra={"other/data.pkl": b""}), "no data.pkl"),
        (streams.legacy(SMALL, {}), "not those that its tensors ask for"),
    ]:  # fmt: skip
        refused(tmp_path, content, match)


def test_compressed_members_and_links_in_a_zip_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", streams.stream(SMALL))
        archive.writestr("archive/data/0", bytes(2**24))
    refused(tmp_path, file.getvalue(), "compressed")
    link = zipfile.ZipInfo("archive/data/0")
    link.external_attr = 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", streams.stream(SMALL))
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path, file.getvalue(), "symbolic link")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, match in (("none", "No such file"), ("loop", "symbolic"), ("pipe", "no regular"), ("zero", "no regular")):
        with pytest.raises(ValueError, match=match):
            read_torch(tmp_path / name)
    with pytest.raises(ValueError, match="a folder"):
        read_torch(tmp_path)


def test_what_is_small_in_the_file_stays_small(tmp_path):
    """Values and tensors shared by reference, which copies or messages would multiply."""
    doubled = b"N" + b"2\x86" * 60
    arguments = b"}" + streams.body("img_resolution") + doubled + b"s"
    state = b"}" + streams.body("_init_kwargs") + arguments + b"s"
    meta = streams.body({"type": "class", "class_name": "EDMPrecond"}) + streams.body("state") + state + b"s"
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R."
    refused(tmp_path, b"\x80\x02" + call, "more than 10000 values", read_edm)
    old = streams.legacy(SMALL, NUMBERS)
    keys = streams.stream(["0"])
    refused(tmp_path, old.replace(keys, b"\x80\x02](" + doubled + b"e."), "not those that its tensors ask for")
    for name, value in (("num_blocks", 10**9), ("img_resolution", 2**40)):
        module = streams.stream(streams.module("EDMPrecond", {}, {}, {name: value}))
        refused(tmp_path, module, f"{name} is far beyond", read_edm)
    whole = {"0": np.ones(1000, np.float32)}
    shared = {f"all_modules.{i}.w": tensor(Stored("Float", "0", 1000), (1000,)) for i in range(100)}
    refused(tmp_path, streams.zipped({"model": shared}, whole), "4 times", partial(read_score_sde, ema=False))
