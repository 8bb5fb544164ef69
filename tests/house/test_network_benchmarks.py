"""The benchmarks of networks and convolutions: their flags, their rows, and that what they compare is the same."""

import io
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks import convolutions, networks
from experiments.cli.errors import InputError


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"networks": "ddpmpp,unet"}, "--networks must be some of ddpmpp,ncsnpp"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"dtype": "f16"}, "--dtype must be f32 or bf16"),
        ({"peers_python": Path("none/python")}, "no Python at --peers-python none/python; to make one"),
    ],
)
def test_wrong_flags_of_the_networks_are_one_line(flags, match):
    with pytest.raises(InputError, match=match) as caught:
        networks.program(networks.Flags(**flags), Console(file=io.StringIO()))
    assert "\n" not in str(caught.value)


def test_a_row_of_the_networks_holds_what_was_measured():
    found = {"parameters": 2_500_000, "forward_compile_s": 1.0, "step_compile_s": 2.0}
    found |= {"forward_ms": 3.2, "step_ms": 4.6, "peak_mib": 5.0}
    assert networks.row("x, ours", found) == "| x, ours | 2.5 | 1.0 + 2.0 | 3 | 5 | 5 |"
    assert len(networks.TITLES) == 6


@pytest.mark.slow
def test_ways_to_write_a_convolution_agree():
    rng = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 5, 3), (3, 3, 3, 3), (2, 5, 5, 3)))
    passes = lambda way, *v: (way(*v[:2]), *jax.vjp(way, *v[:2])[1](v[2]))  # noqa: E731
    expected = passes(convolutions.lax_last, x, w, dy)
    for name, way in convolutions.WAYS.items():
        if way is convolutions.lax_first:
            turned = [jnp.moveaxis(v, -1, 1) for v in (x, dy)]
            y, dx, dw = passes(way, turned[0], w.transpose(3, 2, 0, 1), turned[1])
            found = jnp.moveaxis(y, 1, -1), jnp.moveaxis(dx, 1, -1), dw.transpose(2, 3, 1, 0)
        else:
            found = passes(way, x, w, dy)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_networks_and_convolutions_are_timed_in_processes_of_their_own():
    out = io.StringIO()
    convolutions.program(
        convolutions.Flags(batch=1, size=4, channels=2, repeats=1, loop=1, options=False), Console(file=out, width=200)
    )
    for way in convolutions.WAYS:
        row = rf"^\| {way} \| XLA's defaults \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$"
        assert re.search(row, out.getvalue(), re.MULTILINE), way
    with pytest.raises(InputError, match="none.py x failed: .*No such file"):
        networks.measured([sys.executable, "none.py", "x"], networks.Flags(), {})
