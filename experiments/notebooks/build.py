"""Make the notebooks from their plain Python sources: ``python -m experiments.notebooks.build``.

A source is a Python file in percent format. A line ``# %%`` opens a code cell and ``# %% [markdown]`` a cell of text,
each of whose lines is a comment. ``# %% [install]`` stands for the cells of ``install.py``, which all notebooks share;
below it the source imports what they define, so that it also runs as a plain file:

    # %% [install]
    from experiments.notebooks.install import full

    # isort: split

What stands before the first cell (the docstring, remarks for the linter) is not shown. The notebook has no outputs. A
cell's id is a digest of its content, so that editing one cell leaves the others alone.

Format: https://nbformat.readthedocs.io/en/latest/format_description.html, version 4.5.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INSTALL = FOLDER / "install.py"
REPOSITORY = "scoresde/scoresde"
KINDS = {"# %%": "code", "# %% [markdown]": "markdown", "# %% [install]": "install"}
IMPORTED = "from experiments.notebooks.install import"


def sources() -> list[Path]:
    """The Python files of this folder that hold cells of a notebook."""
    return [p for p in sorted(FOLDER.glob("*.py")) if p != INSTALL and any(_opens(line) for line in _lines(p))]


def cells(path: Path) -> list[tuple[str, str]]:
    """The cells of a source in order: ("code" or "markdown", text).

    Raises:
        ValueError: a marker that is none of the three, a line of a markdown cell that is not a comment, or one of an
            install cell that is not the import.
    """
    found: list[tuple[str, str]] = []
    for kind, lines in _parts(path):
        if kind == "install":
            shared = cells(INSTALL)
            found += [(k, text.replace("REPOSITORY", REPOSITORY).replace("NAME", path.stem)) for k, text in shared]
        else:
            found.append((kind, "\n".join(lines).strip("\n")))
    return found


def _parts(path: Path) -> list[tuple[str, list[str]]]:
    """The cells as the source has them: (kind, lines), each line checked and text without its '# '."""
    found: list[tuple[str, list[str]]] = []
    for number, line in enumerate(_lines(path), start=1):
        if _opens(line):
            if line not in KINDS:
                known = ", ".join(f"'{marker}'" for marker in KINDS)
                raise ValueError(f"{path.name}:{number}: a cell must open with one of {known}, got {line!r}")
            found.append((KINDS[line], []))
        elif found:
            kind, lines = found[-1]
            if kind == "markdown" and line and line != "#" and not line.startswith("# "):
                raise ValueError(f"{path.name}:{number}: a line of markdown must begin with '# ', got {line!r}")
            if kind == "install" and line and not line.startswith((IMPORTED, "# ")):
                raise ValueError(f"{path.name}:{number}: an install cell may hold '{IMPORTED}...', got {line!r}")
            lines.append(line[2:] if kind == "markdown" else line)
    return found


def notebook(path: Path) -> str:
    """The JSON text of the notebook made from the source ``path``."""
    seen: dict[str, int] = {}
    made = []
    for kind, text in cells(path):
        digest = hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell: dict[str, Any] = {"cell_type": kind, "id": digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"}
        cell |= {"metadata": {}, "source": text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    metadata = {
        "colab": {"name": path.with_suffix(".ipynb").name, "provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    content = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _lines(path: Path) -> list[str]:
    return [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]


def _opens(line: str) -> bool:
    return line.startswith("# %%")


def main() -> None:
    for path in sources():
        target = path.with_suffix(".ipynb")
        target.write_text(notebook(path), encoding="utf-8")
        print(f"{target.name}: {len(cells(path))} cells")


if __name__ == "__main__":
    main()
