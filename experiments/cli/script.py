"""The command ``scoresde``: every program of ``experiments`` by its name.

    scoresde --help
    scoresde run --sde vp

A file directly in ``experiments`` is a program; the first line of its docstring says what it does.
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from experiments.cli.errors import fail

# The order in which a newcomer meets them; what is not named here follows.
FIRST = ("run", "sample", "evaluate", "guide", "edit", "inverse", "distance", "classifier", "sweep")


def programs() -> dict[str, str]:
    """What each program does, in a line, by its name."""
    files = {path.stem: path for path in Path(__file__).parents[1].glob("*.py") if path.stem != "__init__"}
    names = [*FIRST, *sorted(set(files) - set(FIRST))]
    return {name: (ast.get_docstring(ast.parse(files[name].read_text())) or "").partition("\n")[0] for name in names}


def main() -> None:
    """Run the program that the first argument names, with the others."""
    name, known = (sys.argv[1] if len(sys.argv) > 1 else "--help"), programs()
    if name in ("-h", "--help"):
        print("usage: scoresde PROGRAM [OPTIONS]    (scoresde PROGRAM --help lists the options)\n")
        print("\n".join(f"  {word:12}{line}" for word, line in known.items()))
        return
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        fail(f"no program {name!r}; scoresde has {', '.join(known)}{hint}")
    sys.argv[:2] = [f"scoresde {name}"]
    try:
        program = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as error:
        fail(f"scoresde {name} needs {error.name}: pip install 'scoresde[experiments]'")
    program.main()


if __name__ == "__main__":
    main()
