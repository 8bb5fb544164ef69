"""The house stands as DESIGN.md, section 4, draws it: a room imports only from floors below, and libraries stay in
their rooms. Read from the syntax trees of the files, imports inside functions included."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "sde": 0,
    "score": 0,
    "nn": 0,
    "metrics": 0,
    "features": 0,
    "leaves": 0,
    "checkpoint": 1,
    "divergence": 0,
    "average": 0,
    "augment": 0,
    "skipped": 0,
    "gaussian": 1,
    "tweedie": 1,
    "operators": 1,
    "precond": 1,
    "weights": 1,
    "uncertainty": 1,
    "grids": 1,
    "loss": 2,
    "denoising": 2,
    "typicality": 2,
    "solvers": 2,
    "flow": 2,
    "likelihood": 2,
    "guidance": 2,
    "inverse": 3,
    "sharding": 2,
    "train": 3,
    "interop": 3,
    "levels": 3,
    "classification": 3,
    "latents": 3,
    "bound": 3,
    "rate": 3,
    "optimise": 3,
    "stochastic": 3,
    "table_likelihood": 3,
    "dequantise": 3,
    "budget": 4,
    "editing": 4,
}
SAME_ROOM = {("likelihood", "flow")}  # one row of the table: "diffrax in the angle; divergence, log-density"
WALLS = {
    "flax": {"nn"},
    "optax": {"train"},
    "diffrax": {"flow", "likelihood", "stochastic", "budget"},
    "lineax": {"stochastic"},
    "orbax": {"checkpoint"},
    "safetensors": {"interop"},
    "msgpack": {"interop"},
}
EVERYWHERE = {"jax", "jaxlib", "numpy"} | set(sys.stdlib_module_names)
FILES = sorted((ROOT / "scoresde").rglob("*.py"))


def room(path):
    """The room of a file of the library: its module, or its folder."""
    return path.relative_to(ROOT / "scoresde").parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, in full: ``from scoresde import nn`` is ``scoresde.nn``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_file_of_the_library_has_a_floor():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= set(FLOORS), f"give these rooms a floor here and in the table: {rooms - set(FLOORS)}"
    assert {"sde", "nn", "solvers", "flow", "train"} <= rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    here = room(path)
    if here == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "scoresde":
            continue
        assert len(parts) > 1 and parts[1] in FLOORS, (
            f"{path.name} imports {module}: import from a module, not the front"
        )
        there = parts[1]
        if there == here or (here, there) in SAME_ROOM:
            continue
        assert FLOORS[there] < FLOORS[here], (
            f"{path.name} (floor {FLOORS[here]}) imports {module} (floor {FLOORS[there]}): only floors below"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_within_their_walls(path):
    for module in imports(path):
        library = module.split(".")[0]
        if library in EVERYWHERE or library == "scoresde":
            continue
        assert library in WALLS, f"{path.name} imports {library}, which the library does not depend on"
        assert room(path) in WALLS[library], f"{path.name} imports {library}: only {sorted(WALLS[library])} may"


def test_the_library_does_not_know_its_experiments_or_tests():
    for path in FILES:
        assert not {"experiments", "tests"} & {module.split(".")[0] for module in imports(path)}, path


def test_the_networks_know_no_sde():
    for path in (ROOT / "scoresde" / "nn").glob("*.py"):
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
    if not report.exists():
        pytest.skip("experiments/report.py is not there")
    queue, seen = [report], set()
    while queue:
        path = queue.pop()
        seen.add(path)
        for module in imports(path):
            parts = module.split(".")
            assert parts[0] not in {"scoresde", "jax", "flax", "optax", "diffrax", "orbax"}, f"{path.name}: {module}"
            if parts[0] == "experiments" and len(parts) > 1:
                target = ROOT / "experiments" / f"{parts[1]}.py"
                if target.exists() and target not in seen:
                    queue.append(target)
