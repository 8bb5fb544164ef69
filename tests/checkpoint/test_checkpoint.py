"""Checkpoints: bit-exact, atomic under kill, and clean errors instead of wrong numbers."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde.checkpoint.folder import Writer, read_arrays, read_metadata, restore, save


class Moments(NamedTuple):
    mu: Any
    nu: Any


def state(fill=1.0):
    return {
        "params": {"w": jnp.full((4, 3), fill), "b": jnp.full((3,), fill, jnp.bfloat16)},
        "opt": (Moments(jnp.full((5,), -fill), None), jnp.asarray(int(fill))),
        "key": jax.random.key(int(fill)),
    }


def bits(x):
    """Every bit of an array or key, as bytes."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))


def run(code, *args, check=True):
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True, text=True, check=check, timeout=120
    )


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip(tmp_path, abstract):
    tree = state(3.0)
    save(tmp_path / "new" / "ckpt", tree, {"step": 3, "name": "ünï", "nested": {"a": [1, 2.5, None, True]}})
    target = jax.eval_shape(lambda: state(0.0)) if abstract else state(0.0)
    got, metadata = restore(tmp_path / "new" / "ckpt", target)
    assert_same(got, tree)
    assert metadata == {"step": 3, "name": "ünï", "nested": {"a": [1, 2.5, None, True]}}
    assert read_metadata(tmp_path / "new" / "ckpt") == metadata
    assert isinstance(got["opt"][0], Moments)
    np.testing.assert_array_equal(jax.random.normal(got["key"], (3,)), jax.random.normal(tree["key"], (3,)))


DTYPES = [
    "bool",
    "int4",
    "int8",
    "uint16",
    "int32",
    "uint32",
    "float16",
    "bfloat16",
    "float32",
    "float8_e4m3fn",
    "complex64",
]


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 2)])
def test_every_bit_of_every_dtype(tmp_path, shape):
    """Random bit patterns: NaN payloads, infinities, subnormals and signed zeros among them."""
    rng = np.random.default_rng(0)
    tree = {}
    for name in DTYPES:
        dtype = jnp.dtype(name)
        raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
        raw = raw & 1 if name == "bool" else raw & 7 if name == "int4" else raw
        tree[name] = jnp.asarray(raw.view(dtype)[..., 0])
    tree["float64"], tree["int64"] = rng.normal(size=shape), rng.integers(0, 2**60, shape)
    tree["float64"] = np.asarray(tree["float64"])
    tree["int64"] = np.asarray(tree["int64"])
    tree["keys"] = jax.random.split(jax.random.key(1, impl="rbg"), shape)
    save(tmp_path / "c", tree, {})
    got, _ = restore(tmp_path / "c", tree)
    assert_same(got, tree)
    assert type(got["float64"]) is np.ndarray and isinstance(got["float32"], jax.Array)


def test_signalling_nan_and_layouts(tmp_path):
    nan = np.array([0x7F800001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32)
    tree = {"nan": nan, "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "strided": np.arange(20)[::3]}
    save(tmp_path / "c", tree, {})
    got, _ = restore(tmp_path / "c", tree)
    assert got["nan"].view(np.uint32).tolist() == [0x7F800001, 0xFFC12345, 0x80000000]
    assert_same(got, tree)


def test_python_numbers_single_leaves_and_empty_trees(tmp_path):
    save(tmp_path / "a", {"step": 7, "lr": 0.1, "done": False}, {})
    got, _ = restore(tmp_path / "a", {"step": 0, "lr": 0.0, "done": True})
    assert got == {"step": 7, "lr": 0.1, "done": False}
    assert [type(got[name]) for name in ("step", "lr", "done")] == [int, float, bool]
    save(tmp_path / "b", jnp.arange(3), {})
    assert restore(tmp_path / "b", jnp.zeros(3, int))[0].tolist() == [0, 1, 2]
    save(tmp_path / "c", {"none": None, "empty": ()}, {"k": 1})
    assert restore(tmp_path / "c", {"none": None, "empty": ()}) == ({"none": None, "empty": ()}, {"k": 1})


def test_x64_leaves_are_not_silently_halved(tmp_path):
    save(tmp_path / "c", {"w": np.full(3, np.pi)}, {})
    with pytest.raises(ValueError, match=r"\['w'\] is float64: set jax_enable_x64, or give a NumPy target"):
        restore(tmp_path / "c", {"w": jax.ShapeDtypeStruct((3,), np.float64)})
    with jax.enable_x64(True):
        got, _ = restore(tmp_path / "c", {"w": jnp.zeros(3, np.float64)})
        assert got["w"].dtype == np.float64 and got["w"][0] == np.pi


def test_restored_arrays_may_be_donated_and_keep_the_placement(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"free": jnp.arange(4.0), "placed": jax.device_put(jnp.arange(4.0), sharding)}
    save(tmp_path / "c", tree, {})
    got, _ = restore(tmp_path / "c", tree)
    assert not got["free"].committed and got["placed"].committed
    first = jax.jit(lambda x: x + 1, donate_argnums=0)(got["free"])
    assert first.tolist() == [1, 2, 3, 4] and restore(tmp_path / "c", tree)[0]["free"].tolist() == [0, 1, 2, 3]


def test_relative_paths_and_strings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("runs/x", state(2.0), {"a": 1})
    monkeypatch.chdir(tmp_path / "runs")
    assert_same(restore("x", state())[0], state(2.0))


def test_saving_again_replaces_and_leaves_one_version_and_foreign_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for i in range(1, 13):
        save(tmp_path, state(float(i)), {"i": i})
    got, metadata = restore(tmp_path, state())
    assert metadata == {"i": 12}
    assert_same(got, state(12.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000012", "notes.txt"]


def test_a_snapshot_at_every_file_operation_restores_the_old_or_the_new(tmp_path):
    """What a kill would leave behind at each step of a save, not only where chance puts it."""
    path, snapshots, watching = tmp_path / "c", [], [False]

    def hook(event, _):
        if watching[0] and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            watching[0] = False
            copy = tmp_path / f"snapshot{len(snapshots)}"
            subprocess.run(["cp", "-r", str(path), str(copy)], capture_output=True, check=False)
            snapshots.append(copy)
            watching[0] = True

    save(path, state(1.0), {"step": 1})
    sys.addaudithook(hook)
    watching[0] = True
    try:
        save(path, state(2.0), {"step": 2})
    finally:
        watching[0] = False
    steps = []
    for copy in snapshots:
        got, metadata = restore(copy, state())
        assert_same(got, state(float(metadata["step"])))
        steps.append(metadata["step"])
    assert len(steps) > 20 and steps == sorted(steps) and set(steps) == {1, 2}
    for copy in snapshots[:: max(1, len(snapshots) // 6)]:
        save(copy, state(3.0), {"step": 3})
        assert restore(copy, state())[1] == {"step": 3}
        assert [p.name.isdecimal() for p in copy.iterdir()] == [True]


def test_a_writer_goes_on_at_once_keeps_what_was_saved_and_several_versions(tmp_path):
    """The tree is donated right after each save; what is on disk is what it was then."""
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"a": jnp.zeros((300, 300)), "b": jnp.zeros(7, jnp.int32)}
    with Writer(tmp_path / "c", keep=3) as writer:
        for i in range(5):
            writer.save(tree, {"i": i})
            tree = change(tree)
    assert [int(p.name) for p in sorted((tmp_path / "c").iterdir())] == [3, 4, 5]
    for i in (4, 3, 2):
        got, metadata = restore(tmp_path / "c", tree)
        assert metadata == {"i": i} and (np.asarray(got["a"]) == i).all() and (np.asarray(got["b"]) == i).all()
        shutil.rmtree(max((tmp_path / "c").iterdir()))


def test_what_a_writer_could_not_write_is_raised_by_the_next_save(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the checkpoint"), Writer(tmp_path / "file") as writer:
        writer.save(state(), {})
        writer.save(state(), {})
    with pytest.raises(OSError, match="cannot write the checkpoint"), Writer(tmp_path / "file") as writer:
        writer.save(state(), {})


@pytest.mark.parametrize("damaged", [1, 2])
def test_the_newest_whole_version_serves_with_a_warning(tmp_path, damaged):
    for i in (1, 2, 3):
        save(tmp_path, state(float(i)), {"i": i}, keep=3)
    for version in sorted(tmp_path.iterdir())[-damaged:]:
        data = max((p for p in version.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data.write_bytes(data.read_bytes()[:-1])
    words = rf"checkpoint .*0003 is damaged: .*truncated or altered; taking the older version 00000000000{3 - damaged}"
    with pytest.warns(UserWarning, match=words):
        got, metadata = restore(tmp_path, state())
    assert metadata == {"i": 3 - damaged}
    assert_same(got, state(3.0 - damaged))
    with pytest.warns(UserWarning, match=words), pytest.raises(ValueError, match="saved from another structure"):
        restore(tmp_path, {"a": 1})


def test_arrays_by_name_need_no_target(tmp_path):
    save(tmp_path, state(2.0), {"i": 1})
    arrays, metadata = read_arrays(tmp_path)
    assert metadata == {"i": 1} and arrays["['params']['w']"].tolist() == [[2.0] * 3] * 4
    assert arrays["['params']['b']"].dtype == jnp.bfloat16
    assert arrays["['key']"].tolist() == jax.random.key_data(jax.random.key(2)).tolist()


SAVER = """
import sys, numpy as np
from scoresde.checkpoint import save
path, i = sys.argv[1], int(sys.argv[2])
while True:
    i += 1
    save(path, {"a": np.full((300, 300), i), "b": np.full((7,), -i)}, {"i": i})
    print(i, flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_saves(tmp_path):
    path, target, last = tmp_path / "c", {"a": np.zeros((300, 300), int), "b": np.zeros((7,), int)}, 0
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    delays = np.random.default_rng(0).uniform(0.02, 0.25, 6)
    for delay in delays:
        command = [sys.executable, "-c", SAVER, str(path), str(last)]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline()]
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            said += process.stdout.readlines()
        acknowledged = max(int(line) for line in said if line.endswith("\n"))
        got, metadata = restore(path, target)
        assert metadata["i"] in (acknowledged, acknowledged + 1) and acknowledged > last
        assert (got["a"] == metadata["i"]).all() and (got["b"] == -metadata["i"]).all()
        last = metadata["i"]
    save(path, target, {"i": 0})
    assert len(list(path.iterdir())) == 1


@pytest.mark.slow
def test_reading_while_another_process_saves(tmp_path):
    path, target = tmp_path / "c", {"a": np.zeros((300, 300), int), "b": np.zeros((7,), int)}
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAVER, str(path), "0"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen, end = set(), time.monotonic() + 3
        while time.monotonic() < end:
            got, metadata = restore(path, target)
            assert (got["a"] == metadata["i"]).all()
            seen |= {metadata["i"], read_metadata(path)["i"]}
        process.kill()
    assert len(seen) > 3


@pytest.mark.parametrize("damage", ["half", "empty", "missing", "flipped", "last byte"])
def test_every_damaged_file_is_found_before_orbax_sees_it(tmp_path, damage, capfd):
    save(tmp_path / "c", state(5.0), {"step": 5})
    files = [p.relative_to(tmp_path / "c") for p in (tmp_path / "c").rglob("*") if p.is_file()]
    assert len(files) > 5
    for file in files:
        shutil.copytree(tmp_path / "c", tmp_path / "d", dirs_exist_ok=True)
        broken = tmp_path / "d" / file
        content = broken.read_bytes()
        if damage == "missing":
            broken.unlink()
        elif damage == "flipped":
            middle = len(content) // 2
            broken.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        else:
            keep = {"half": len(content) // 2, "empty": 0, "last byte": len(content) - 1}[damage]
            broken.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=rf"is damaged: .*{file.name} .*put back a copy") as caught:
            restore(tmp_path / "d", state())
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist; check the path"):
        restore(tmp_path / "nothing", state())
    (tmp_path / "c" / "tmp-000000000001").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        read_metadata(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a checkpoint folder, but .*file is a file"):
        restore(tmp_path / "file", state())


def without(tree, name):
    return {k: v for k, v in tree.items() if k != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s | {"params": {"w": jnp.zeros((4, 5)), "b": s["params"]["b"]}},
            r"leaf \['params'\]\['w'\]: float32\[4, 3\] where the target has \['params'\]\['w'\]: float32\[4, 5\]",
        ),
        (
            lambda s: s | {"params": {"w": s["params"]["w"], "b": jnp.zeros(3)}},
            r"\['params'\]\['b'\]: bfloat16\[3\] where the target has \['params'\]\['b'\]: float32\[3\]",
        ),
        (lambda s: s | {"key": jnp.zeros(2, jnp.uint32)}, r"\['key'\]: key<fry>\[\] where .* uint32\[2\]"),
        (lambda s: s | {"key": jax.random.key(0, impl="rbg")}, r"key<fry>\[\] where the target has .*key<rbg>\[\]"),
        (
            lambda s: s | {"opt": (s["opt"][0]._replace(nu=jnp.zeros(5)), s["opt"][1])},
            r"\['opt'\]\[1\]: int32\[\] where the target has \['opt'\]\[0\].nu",
        ),
        (lambda s: without(s, "params"), r"has 5 leaves, the target 3: only the checkpoint has \['params'\]\['b'\]"),
        (lambda s: s | {"z": jnp.zeros(1)}, r"has 5 leaves, the target 6: only the target has \['z'\]"),
        (lambda s: s | {"key": "text"}, r"leaf \['key'\] is a str, expected an array"),
    ],
)
def test_another_structure_names_the_first_leaf(tmp_path, change, words):
    save(tmp_path / "c", state(), {})
    with pytest.raises(ValueError, match=words) as caught:
        restore(tmp_path / "c", change(state()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "metadata", "words"),
    [
        ({"a": "text"}, {}, r"leaf \['a'\] is a str, expected an array or a number; put text"),
        ({"a": np.array(["x"])}, {}, r"\['a'\] has dtype <U1"),
        ({"a": np.array([object()])}, {}, r"\['a'\] has dtype object"),
        ({"a": jax.ShapeDtypeStruct((), np.float32)}, {}, "ShapeDtypeStruct without values"),
        ({}, {"a": np.float32(1)}, "must be JSON .*float32"),
        ({}, {"a": Path("x")}, "must be JSON"),
        ({}, [1], "must be a dict, got list"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_checkpoint(tmp_path, tree, metadata, words):
    save(tmp_path / "c", state(4.0), {"step": 4})
    with pytest.raises(ValueError, match=words):
        save(tmp_path / "c", tree, metadata)
    assert restore(tmp_path / "c", state())[1] == {"step": 4}


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the checkpoint .*: .*; choose another folder"):
        save(tmp_path / "file" / "c", state(), {})
    with pytest.raises(OSError, match="cannot write the checkpoint .*File exists; choose another folder"):
        save(tmp_path / "file", state(), {})
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="Permission denied; choose another folder"):
            save(tmp_path / "locked" / "c", state(), {})


FULL = """
import resource, sys, numpy as np
from scoresde.checkpoint import restore, save
small, large = {"a": np.arange(3)}, {"a": np.random.default_rng(0).normal(size=(1000, 1000))}
save(sys.argv[1], small, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(sys.argv[1], large, {"step": 2})
except OSError as error:
    print(error)
print(restore(sys.argv[1], small))
"""


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path):
    """A file-size limit stands in for the full disk."""
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        pytest.skip("a file-size limit is set already")
    result = run(FULL, tmp_path / "c")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"cannot write the checkpoint {tmp_path / 'c'}: ") and "free some space" in lines[0]
    assert lines[1:] == ["({'a': array([0, 1, 2])}, {'step': 1})"]
    assert result.stderr == ""
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["000000000001"]


def test_a_failed_restore_is_quiet_and_orbax_is_not_imported_before_use(tmp_path):
    save(tmp_path / "c", state(), {})
    version = next((tmp_path / "c").iterdir())
    shutil.rmtree(version / "arrays")
    code = """
import sys, jax
from scoresde.checkpoint import restore
for path in sys.argv[1:]:
    try:
        restore(path, {"a": 1})
    except (ValueError, OSError) as error:
        print(error)
print("orbax" in sys.modules)
"""
    result = run(code, tmp_path / "c", tmp_path / "none")
    assert result.stderr == ""
    damaged, missing, loaded = result.stdout.splitlines()
    assert "missing, truncated or altered" in damaged and "does not exist" in missing and loaded == "False"


def test_formats_of_the_future_are_refused(tmp_path):
    save(tmp_path / "c", state(), {})
    manifest = next((tmp_path / "c").iterdir()) / "checkpoint.json"
    outer = json.loads(manifest.read_text())
    outer["content"]["format_version"] = 99
    manifest.write_text(json.dumps(outer))
    with pytest.raises(ValueError, match="is damaged: checkpoint.json"):
        restore(tmp_path / "c", state())
    import hashlib

    outer["sha256"] = hashlib.sha256(json.dumps(outer["content"]).encode()).hexdigest()
    manifest.write_text(json.dumps(outer))
    with pytest.raises(ValueError, match="has format 99, this version reads 2: use the scoresde that wrote it"):
        restore(tmp_path / "c", state())


def test_two_megabytes_are_saved_in_a_third_of_a_second(tmp_path):
    tree = {f"layer_{i}": jax.random.normal(jax.random.key(i), (100, 100)) for i in range(50)}
    save(tmp_path / "c", tree, {})
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        save(tmp_path / "c", tree, {})
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


@pytest.mark.slow
def test_saving_does_not_copy_the_tree(tmp_path):
    code = """
import resource, sys, numpy as np, jax
from scoresde.checkpoint import save
save(sys.argv[1], {"a": np.ones(3)}, {})
tree = {"a": jax.random.normal(jax.random.key(0), (30_000_000,))}
jax.block_until_ready(tree)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save(sys.argv[1], tree, {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    assert float(run(code, tmp_path / "c").stdout) < 180
