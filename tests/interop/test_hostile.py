"""Files of strangers, damaged and forged: each is read or refused in one line, nothing is executed, memory stays small.

Every reader is met by what ``hypothesis`` makes of good files and of opcodes, a few hundred examples by default and
thousands with ``-m slow``, from fixed seeds. An audit hook sees whatever Python would execute, import or write.
"""

import codecs
import contextlib
import json
import os
import sys
import tracemalloc
from functools import partial

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import streams
from flax.serialization import msgpack_serialize
from streams import Call, Named, Stored, tensor

from scoresde.interop import edm_file
from scoresde.interop.files.folders import read_diffusers, read_safetensors
from scoresde.interop.files.torch_files import read_torch
from scoresde.interop.originals import read_original
from scoresde.interop.projects.diffusers import diffusers

safetensors = pytest.importorskip("safetensors.numpy")
MOST_MEMORY = 2**24
EXECUTED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "pickle.find_class", "socket.connect")
watched: list[str] | None = None


def hook(event, arguments):
    if watched is not None and (
        event in EXECUTED or (event == "open" and str(arguments[1]).strip("rbt") not in "None")
    ):
        watched.append(f"{event} {arguments!r:.200}")


sys.addaudithook(hook)
for encoding in ("cp437", "raw_unicode_escape"):
    codecs.lookup(encoding)  # Python imports them when they are first met


@contextlib.contextmanager
def watching():
    """Nothing is executed, imported from a pickle or opened for writing, and little memory taken."""
    global watched
    tracemalloc.start()
    watched = []
    try:
        yield
    finally:
        seen, watched = watched, None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert not seen and peak < MOST_MEMORY, (seen, peak)


def read_or_refused(reader, path, guard=watching):
    """What a reader makes of a file; a refusal is one line. A maker of networks is not watched, as JAX writes."""
    with guard():
        try:
            return reader(path)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 12_000
            return error


def fuzz(examples, strategy, check):
    options = hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    options(hypothesis.given(strategy)(check))()


def sizes(few, many):
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def edited(content):
    """Strategies of damage to a file: bytes changed, runs repeated or cut out, the end missing."""
    place = st.integers(0, len(content) - 1)
    run = st.sampled_from(
        (b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f", b"(", b"\xdf\xff\xff\xff\xff", b"\xc6", b"R")
    )
    written = st.tuples(st.just("write"), place, st.one_of(st.binary(min_size=1, max_size=3), run))
    moved = st.tuples(st.just("move"), place, st.tuples(place, st.integers(0, 64)))
    cut = st.tuples(st.just("cut"), place, st.integers(1, 64))
    ended = st.tuples(st.just("end"), place, st.none())
    return st.lists(st.one_of(written, written, moved, cut, ended), min_size=1, max_size=4)


def damaged(content, edits):
    content = bytearray(content)
    for kind, place, what in edits:
        if kind == "write":
            content[place : place + len(what)] = what
        elif kind == "move":
            content[place:place] = content[what[0] : what[0] + what[1]]
        elif kind == "cut":
            del content[place : place + what]
        else:
            del content[place:]
    return bytes(content)


NUMBERS = {"0": np.arange(6, dtype=np.float32)}
MODEL = {f"all_modules.{i}.weight": tensor(Stored("Float", "0", 6), (2, 3)) for i in range(2)}
CHECKPOINT = {"model": MODEL, "ema": {"shadow_params": list(MODEL.values())}, "step": 3}
MODULE = streams.module("EDMPrecond", {"w": NUMBERS["0"]}, {"enc": streams.container({})}, {"img_resolution": 8})
WEIGHTS = {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float16)}
FLAX = {"params_ema": {"Dense_0": {"kernel": np.ones((2, 3), np.float32)}}, "step": 3, "lr": np.float32(2)}
GOOD = {
    "zip": (streams.zipped(CHECKPOINT, NUMBERS), partial(read_original, ema=True)),
    "legacy": (streams.legacy(CHECKPOINT, NUMBERS), partial(read_original, ema=False)),
    "module": (streams.stream({"ema": MODULE, "loss_fn": None, "sizes": {"a": (1, 2.5)}}), read_original),
    "safetensors": (safetensors.save(WEIGHTS), read_safetensors),
    "flax": (msgpack_serialize(FLAX), read_original),
}


@sizes(40, 3000)
@pytest.mark.parametrize("kind", GOOD)
def test_damaged_files_are_read_or_refused(tmp_path, kind, examples):
    content, reader = GOOD[kind]
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "file")

    def check(edits):
        path.write_bytes(damaged(content, edits))
        read_or_refused(reader, path)

    fuzz(examples, edited(content), check)


ALLOWED = (
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch.storage._load_from_bytes",
    "numpy.dtype",
)
FORBIDDEN = (
    "os.system", "posix.system", "builtins.exec", "builtins.eval", "builtins.getattr", "subprocess.Popen", "numpy.load",
    "torch.load", "pickle.loads", "importlib.import_module", "shutil.rmtree", "torch.hub.load", "functools.partial",
)  # fmt: skip
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.text(max_size=6), st.binary(max_size=6))
HUGE = st.integers(-1, 2**62) | st.integers(0, 4)


def values(names):
    """Trees of what a pickle can hold: plain values, tensors of any declared shape, calls of these names."""
    views = st.lists(st.tuples(HUGE, HUGE), max_size=4).map(
        lambda v: [tuple(x) for x in zip(*v, strict=True)] or [(), ()]
    )
    tensors = st.builds(lambda v, size, at: tensor(Stored("Float", "0", size), *v, at), views, st.just(6) | HUGE, HUGE)
    named = st.sampled_from(names).map(Named)
    return st.recursive(
        PLAIN | tensors | named,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=4),
            st.builds(
                Call, st.sampled_from(names), st.lists(inner, max_size=3).map(tuple), st.none() | inner, st.booleans()
            ),
        ),
        max_leaves=12,
    )


def asked_for(value):
    """The names that a value mentions, in the order of the stream."""
    match value:
        case Named(name):
            yield name
        case Call(name, arguments, state, _):
            yield name
            yield from asked_for(arguments)
            yield from asked_for(state)
        case tuple() | list():
            for item in value:
                yield from asked_for(item)
        case dict():
            yield from asked_for(list(value.values()))


WRAPPED = {
    "zip": lambda value: streams.zipped({"model": value}, NUMBERS),
    "legacy": lambda value: streams.legacy({"model": value}, NUMBERS),
    "pickle": lambda value: streams.stream({"ema": value}),
}


@sizes(40, 3000)
@pytest.mark.parametrize("kind", WRAPPED)
def test_pickles_that_ask_for_code_are_refused_by_name(tmp_path, kind, examples):
    path = tmp_path / "file"
    reader = partial(read_original, ema=False)

    def check(value):
        path.write_bytes(WRAPPED[kind](value))
        found = read_or_refused(reader, path)
        evil = [name for name in asked_for(value) if name in FORBIDDEN]
        if evil:
            assert isinstance(found, ValueError)
        if len(evil) == len(list(asked_for(value))) > 0 and "Float" not in repr(value):
            assert f"asks for {evil[0]}" in str(found)

    fuzz(examples, values(ALLOWED + FORBIDDEN), check)


OPCODES = [
    bytes([n]) for n in b"NI0(2tlde]}ahqb.Qs)RuX\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x8f\x90\x93\x94\x95\x96"
]
PIECES = [
    *OPCODES, b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"X\x01\0\0\0x", b"K\x05", b"q\x01", b"h\x01", b"P1\n",
    b"r\xff\xff\xff\xff", b"\x8c\x02os\x8c\x06system\x93", b"cbuiltins\nset\n", b"c_codecs\nencode\n", b"ios\nsystem\n",
    b"X\x06\0\0\0latin1", b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"U\x02ab",
    b"V\\u0041\n", b"I01\n", b"L5L\n", b"F1.5\n",
]  # fmt: skip


@sizes(120, 10_000)
def test_any_opcodes_are_read_or_refused(tmp_path, examples):
    path = tmp_path / "file"

    def check(pieces):
        path.write_bytes(b"\x80\x02" + b"".join(pieces))
        read_or_refused(read_torch, path)

    fuzz(examples, st.lists(st.sampled_from(PIECES), max_size=30), check)


CONFIG = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": [32], "layers_per_block": 1, "add_attention": False,
    "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
}  # fmt: skip
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 10}
INDEX = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
ODD = [
    None,
    -1,
    0,
    3,
    10**9,
    2**80,
    1e300,
    float("nan"),
    True,
    "x",
    "SkipDownBlock2D",
    [],
    [[]],
    {},
    [10**6] * 3,
    ["x"] * 99,
]


def pipeline(folder):
    for name, content in {"unet/config.json": CONFIG, "scheduler/scheduler_config.json": SCHEDULER}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(safetensors.save(WEIGHTS))
    return folder


FILES = [
    "unet/config.json", "scheduler/scheduler_config.json", "model_index.json",
    "unet/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@sizes(40, 3000)
def test_damaged_folders_are_read_or_refused(tmp_path, examples):
    folder = pipeline(tmp_path / "in")
    secret = tmp_path / "secret"
    secret.write_text("{}")

    def check(drawn):
        name, kind, edits = drawn
        path, content = folder / name, (folder / name).read_bytes()
        path.unlink()
        if kind == "damaged":
            path.write_bytes(damaged(content, edits))
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind != "gone":
            path.symlink_to({"outside": secret, "loop": path, "device": "/dev/zero", "hanging": "nothing"}[kind])
        found = read_or_refused(read_diffusers, folder)
        assert isinstance(found, ValueError) or kind in ("damaged", "gone", "hanging", "loop")
        path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)
        path.write_bytes(content)

    kinds = st.sampled_from(["damaged"] * 4 + ["folder", "pipe", "gone", "outside", "loop", "device", "hanging"])
    edits = edited(b"x" * 200)
    fuzz(examples, st.tuples(st.sampled_from(FILES), kinds, edits), check)


@sizes(10, 600)
def test_odd_configurations_are_refused_in_one_line(tmp_path, examples):
    """Each is in good JSON, and the network is made from it as far as its shapes."""
    folder = pipeline(tmp_path / "in")

    def check(drawn):
        for name, good in zip(FILES[:2], (CONFIG, SCHEDULER), strict=True):
            change = {k: v for k, v in drawn.items() if k in good or (name == FILES[0]) == (k not in SCHEDULER)}
            (folder / name).write_text(json.dumps(good | change))
        found = read_or_refused(diffusers, folder, contextlib.nullcontext)
        assert isinstance(found, ValueError)  # its tensors are none of the network's

    names = [
        *CONFIG, *SCHEDULER, "time_embedding_type", "norm_num_groups", "norm_eps", "attention_head_dim", "dropout",
        "sample_size", "time_embedding_dim", "num_class_embeds", "freq_shift", "trained_betas", "act_fn",
    ]  # fmt: skip
    fuzz(examples, st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), min_size=1, max_size=2), check)


DOUBLED = b"N" + b"2\x86" * 60


def repeated(name, argument, times=100_000):
    """A list of calls of one name with one remembered argument."""
    call = b"h\x01" + argument + b"R"
    return (
        b"\x80\x02c"
        + "\n".join(name.rsplit(".", 1)).encode()
        + b"\nq\x01"
        + b"X\x00\x00\x10\x00"
        + b"a" * 2**20
        + (b"q\x02](" + call * times + b"e.")
    )


BOMBS = {
    "bytes made again and again": repeated("_codecs.encode", b"h\x02X\x06\0\0\0latin1\x86"),
    "sets of one list": b"\x80\x02cbuiltins\nset\nq\x01]q\x02(" + b"K\x01" * 9_000 + b"e](" + (
        b"h\x01h\x02\x85R" * 9_000 + b"e."
    ),
    "storages of one text": b"\x80\x02ctorch.storage\n_load_from_bytes\nq\x01" + streams.body(
        streams.legacy(Stored("Float", "0", 2**16), {"0": np.zeros(2**16, np.float32)})
    ) + b"q\x02](" + b"h\x01h\x02\x85R" * 10_000 + b"e.",
    "a dict of nested keys": b"\x80\x02cdnnlib.util\nEasyDict\n](" + DOUBLED + b"K\x01\x86e\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_become_large(tmp_path, name):
    (tmp_path / "file").write_bytes(BOMBS[name])
    found = read_or_refused(read_original, tmp_path / "file")
    assert isinstance(found, ValueError) and ("so often" in str(found) or "made with arguments" in str(found))


def test_storages_of_another_byte_order_are_turned_round_once(tmp_path):
    whole = {"0": np.arange(2.0**14)}
    many = [tensor(Stored("Double", "0", 2**14), (2**14,)) for _ in range(2000)]
    (tmp_path / "file").write_bytes(streams.zipped(many, whole, order="big"))
    found = read_or_refused(read_torch, tmp_path / "file")
    np.testing.assert_array_equal(found[-1], whole["0"])


def test_long_names_do_not_multiply(tmp_path):
    """Names of parts are joined, so that a long one above many would be copied as often."""
    long = {"params_ema": {"x" * 10**6: {str(i): 1 for i in range(2000)}}}
    (tmp_path / "flax").write_bytes(msgpack_serialize(long))
    assert "a name of more than 200 letters" in str(read_or_refused(read_original, tmp_path / "flax"))
    module = streams.module("EDMPrecond", {}, {"x" * 10**6: streams.container({})}, {})
    (tmp_path / "module").write_bytes(streams.stream({"ema": module}))
    assert "no text of at most 200 letters" in str(read_or_refused(read_original, tmp_path / "module"))
    (tmp_path / "many").write_bytes(b"\x81\xa1a" + (b"\xdc\x00\x40" + b"\x90" * 64) * 1 + b"")
    nest = b"\x90"
    for _ in range(3):
        nest = b"\xdc\x00\x40" + nest * 64
    (tmp_path / "many").write_bytes(b"\x81\xa1a" + nest)
    assert "more than 100000 entries" in str(read_or_refused(read_original, tmp_path / "many"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_channels": 2**20, "embedding_type": "fourier", "channel_mult_noise": 2**20}, "features"),
        ({"channel_mult": [1] * 5000}, "5000 levels"),
        ({"num_blocks": 10**6}, "num_blocks is far beyond"),
        ({"model_channels": "x"}, "cannot be read"),
    ],
)
def test_configurations_of_huge_networks_are_refused(tmp_path, change, match):
    arguments = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"} | change
    (tmp_path / "file").write_bytes(streams.stream({"ema": streams.module("EDMPrecond", {}, {}, arguments)}))
    for reader in (edm_file, lambda path: read_original(path).pretrained()):
        assert match in str(read_or_refused(reader, tmp_path / "file", contextlib.nullcontext))
