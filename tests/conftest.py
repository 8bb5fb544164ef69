"""Shared by all tests: implicit broadcasting is an error, and mathematics is tested in float64 (fixture ``x64``).

Most of the time goes into compiling small programs that run once, so XLA and LLVM are told not to optimise them, and
all processes, those that a test starts too, share what they compile.
"""

import functools
import os
import tempfile
from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if version("jaxlib").startswith("0.10."):  # a version that does not know a flag ends the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # a quarter of the time of all tests
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["GIVEN_XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([os.environ["GIVEN_XLA_FLAGS"], *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The dearest files first, so that none is left over at the end for one process alone."""
    dear = ("test_run.py", "test_docs.py", "test_likelihood.py", "test_orders.py", "test_flow.py", "test_nn.py")
    items.sort(key=lambda item: dear.index(item.path.name) if item.path.name in dear else len(dear))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run folder on digits, its configuration, data and model; no test may write to it."""
    from small import save_run

    folder = tmp_path_factory.mktemp("runs") / "digits-vp"
    return folder, *save_run(folder, likelihood_probes=1, likelihood_repeats=1, samples=12)


@pytest.fixture(scope="module")
def opened_once():
    """Each opening of a run makes a new network, which compiles anew."""
    from experiments import edit, evaluate, inverse, sample
    from experiments.models import saved

    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(saved.open_run)
        for command in (edit, evaluate, inverse, sample):
            patch.setattr(command, "open_run", cached)
        yield
