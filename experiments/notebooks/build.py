"""Make the notebooks from their plain Python sources: ``python -m experiments.notebooks.build``.

A source is a Python file in percent format. A line ``# %%`` opens a code cell and ``# %% [markdown]`` a cell of text,
each of whose lines is a comment. What stands before the first cell (the docstring, remarks for the linter) is not
shown. The notebook has no outputs. A cell's id is a digest of its content, so that editing one cell leaves the others
alone.

Format: https://nbformat.readthedocs.io/en/latest/format_description.html, version 4.5.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CODE, TEXT = "# %%", "# %% [markdown]"


def sources() -> list[Path]:
    """The Python files of this folder that hold cells."""
    return [p for p in sorted(FOLDER.glob("*.py")) if any(_opens(line) for line in _lines(p))]


def cells(path: Path) -> list[tuple[str, str]]:
    """The cells of a source in order: ("code" or "markdown", text).

    Raises:
        ValueError: a line of a markdown cell that is not a comment, or a marker that is neither of the two.
    """
    found: list[tuple[str, list[str]]] = []
    for number, line in enumerate(_lines(path), start=1):
        if _opens(line):
            if line not in (CODE, TEXT):
                raise ValueError(f"{path.name}:{number}: a cell must open with '{CODE}' or '{TEXT}', got {line!r}")
            found.append(("code" if line == CODE else "markdown", []))
        elif found:
            kind, text = found[-1]
            if kind == "markdown" and line and line != "#" and not line.startswith("# "):
                raise ValueError(f"{path.name}:{number}: a line of markdown must begin with '# ', got {line!r}")
            text.append(line if kind == "code" else line[2:])
    return [(kind, "\n".join(text).strip("\n")) for kind, text in found]


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
    return line.startswith(CODE)


def main() -> None:
    for path in sources():
        target = path.with_suffix(".ipynb")
        target.write_text(notebook(path), encoding="utf-8")
        print(f"{target.name}: {len(cells(path))} cells")


if __name__ == "__main__":
    main()
