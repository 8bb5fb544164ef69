"""What the wheel holds: the library and the programs, which run from it alone; benchmarks, notebooks, pictures stay."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"assets", "benchmarks", "notebooks"}
IMPORT_ALL = """
import importlib, pkgutil, experiments, scoresde
for package in (scoresde, experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(scoresde.__file__, experiments.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked; built in this process, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "built"), versions=["standard"])
    zipfile.ZipFile(built).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_every_module_but_those_of_the_repository_alone(wheel):
    held = {
        path.relative_to(wheel).as_posix()
        for name in ("scoresde", "experiments")
        for path in wheel.glob(f"{name}/**/*")
    }
    sources = [path.relative_to(ROOT) for name in ("scoresde", "experiments") for path in (ROOT / name).rglob("*.py")]
    expected = {path.as_posix() for path in sources if path.parts[1] not in LEFT_OUT}
    assert {path for path in held if Path(path).suffix} == expected | {"scoresde/py.typed"}
    assert not LEFT_OUT & {path.name for path in (wheel / "experiments").iterdir()}


def test_everything_in_the_wheel_is_imported_from_it_alone(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(wheel) for file in done.stdout.split())


@pytest.mark.slow
def test_a_run_from_the_wheel(wheel, tmp_path):
    flags = ["--sde", "vp", "--data", "mixture", "--steps", "20", "--samples", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/report.md"))
