"""The house stands as DESIGN.md, section 4, draws it: a room imports only from floors below, and libraries stay in
their rooms. Read from the syntax trees of the files, imports inside functions included."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import scoresde as ss

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "scoresde": {
        "arrays": 0,
        "checkpoint": 0,
        "nn": 0,
        "sde": 1,
        "angle": 2,
        "checks": 2,
        "score": 2,
        "evaluation": 3,
        "flow": 3,
        "gaussian": 3,
        "grids": 3,
        "precond": 3,
        "training": 3,
        "units": 3,
        "guidance": 4,
        "interop": 4,
        "solvers": 4,
        "inverse": 5,
        "likelihood": 5,
        "editing": 6,
    },
    "experiments": {
        "cli": 0,
        "data": 1,
        "figures": 2,
        "models": 2,
        "guidance": 3,
        "measures": 3,
        "training": 3,
        "editing": 4,
        "sweeps": 4,
    },
}
COMMANDS = {
    *("run", "sample", "evaluate", "guide", "edit", "inverse", "distance", "classifier"),
    *("sweep", "ema", "convert", "export", "report", "doctor"),
}
BESIDE = {"benchmarks", "notebooks"}  # of experiments: programs of the repository, which the wheel leaves out
WALLS = {
    "flax": {"nn"},
    "optax": {"training"},
    "diffrax": {"flow", "likelihood"},
    "lineax": {"flow"},
    "orbax": {"checkpoint"},
    "scipy": {"grids", "solvers"},
    "safetensors": {"interop"},
    "msgpack": {"interop"},
}
DECLARED_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint", "cycler": "matplotlib"}
OPTIONAL = {"jaxlib", "ml_dtypes", "pandas", "pyarrow", "datasets", "tensorboardX", "tensorboard"}  # said by a message
EVERYWHERE = {"jax", "jaxlib", "numpy"} | set(sys.stdlib_module_names)
FILES = sorted((ROOT / "scoresde").rglob("*.py"))
WINGS = sorted(path for path in (ROOT / "experiments").rglob("*.py") if not BESIDE & set(path.parts))


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def room(path):
    """The room of a file: its module, or its folder, in its package."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def imports(path, *, at_once=False):
    """Every module that a file imports, in full: ``from scoresde import nn`` is ``scoresde.nn``.

    With ``at_once`` those alone that are imported with the file, outside of functions.
    """
    found, tree = [], ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_file_has_a_floor():
    assert {room(path) for path in FILES} - {"__init__"} == set(FLOORS["scoresde"])
    assert {room(path) for path in WINGS} - {"__init__"} == set(FLOORS["experiments"]) | COMMANDS


def test_a_file_directly_in_experiments_is_a_command():
    assert {path.stem for path in (ROOT / "experiments").glob("*.py")} == {"__init__"} | COMMANDS


@pytest.mark.parametrize("path", FILES + WINGS, ids=names(FILES + WINGS))
def test_a_room_imports_only_from_floors_below(path):
    package, here = path.relative_to(ROOT).parts[0], room(path)
    if here == "__init__":
        return
    floors = FLOORS[package]
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != package or parts[1] == here:
            continue
        assert parts[1] in floors, f"{path.name} imports {module}: import from a room, not the front or a command"
        assert here in COMMANDS or floors[parts[1]] < floors[here], (
            f"{path.name} (floor {floors[here]}) imports {module} (floor {floors[parts[1]]}): only floors below"
        )


def test_no_module_is_hidden_by_a_name_of_its_folder():
    """A function called like a module of its folder would be what ``from folder import name`` gives, or not."""
    for folder in {path.parent for path in FILES}:
        package = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
        for path in folder.iterdir():
            if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists():
                module = importlib.import_module(f"{package.__name__}.{path.stem}")
                assert getattr(package, path.stem) is module, module.__name__


def test_the_face_is_what_dir_shows():
    assert dir(ss) == sorted(ss.__all__) and len(ss.__all__) == len(set(ss.__all__)) < 70
    assert all(hasattr(ss, name) for name in ss.__all__)
    with pytest.raises(AttributeError, match=r"it is ss\.solvers\.lms$"):
        ss.lms  # noqa: B018
    with pytest.raises(AttributeError, match="no 'nonsense'$"):
        ss.nonsense  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_libraries_stay_within_their_walls(path):
    for module in imports(path):
        library = module.split(".")[0]
        if library in EVERYWHERE or library == "scoresde":
            continue
        assert library in WALLS, f"{path.name} imports {library}, which the library does not depend on"
        assert room(path) in WALLS[library], f"{path.name} imports {library}: only {sorted(WALLS[library])} may"


@pytest.mark.parametrize(
    ("files", "extras"),
    [(FILES, ("interop",)), (WINGS, ("interop", "experiments", "cluster"))],
    ids=["library", "programs"],
)
def test_every_library_imported_is_declared(files, extras):
    """That another one happens to bring it is no promise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    used = {module.split(".")[0] for path in files for module in imports(path)}
    used -= {"scoresde", "experiments"} | set(sys.stdlib_module_names) | OPTIONAL
    assert {DECLARED_AS.get(name, name) for name in used} <= declared


def test_the_library_does_not_know_its_experiments_or_tests():
    for path in FILES:
        assert not {"experiments", "tests"} & {module.split(".")[0] for module in imports(path)}, path


def test_the_networks_know_no_sde():
    for path in (ROOT / "scoresde" / "nn").rglob("*.py"):
        assert all(module.split(".")[1] == "nn" for module in imports(path) if module.startswith("scoresde.")), path


def test_no_formula_asks_which_sde_it_serves():
    """No isinstance(sde, VP): an SDE is two functions of time. Asking whether it is an SDE at all is allowed."""
    members = {"VP", "SubVP", "VE", "Cosine", "RectifiedFlow"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "type")
            ):
                named = {n.id for a in node.args for n in ast.walk(a) if isinstance(n, ast.Name)}
                named |= {n.attr for a in node.args for n in ast.walk(a) if isinstance(n, ast.Attribute)}
                assert not named & members, f"{path.name}:{node.lineno} asks for {named & members}"


def test_no_drawer_for_everything():
    names = {path.name for folder in ("scoresde", "experiments") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils.py", "common.py", "config.py", "helpers.py", "misc.py"}


def test_the_report_is_written_without_the_model():
    """experiments/report.py reads numbers and writes pages: neither it nor what it imports from here knows JAX."""
    report = ROOT / "experiments" / "report.py"
    queue, seen = [report], set()
    while queue:
        path = queue.pop()
        seen.add(path)
        for module in imports(path, at_once=True):
            parts = module.split(".")
            assert parts[0] not in {"scoresde", "jax", "flax", "optax", "diffrax", "orbax"}, f"{path.name}: {module}"
            if parts[0] == "experiments":
                places = [ROOT.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
                files = [place / "__init__.py" for place in places] + [place.with_suffix(".py") for place in places]
                queue += [file for file in files if file.exists() and file not in seen]
    assert {"report.py", "run_figures.py", "run_files.py", "errors.py", "arrays.py"} <= {path.name for path in seen}
