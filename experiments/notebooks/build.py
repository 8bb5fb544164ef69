"""Make the notebooks from their plain Python sources: ``python -m experiments.notebooks.build``.

A source is a Python file in jupytext's percent format: ``# %%`` opens a code cell and ``# %% [markdown]`` a cell of
text, each of whose lines is a comment. ``# %% [install]`` stands for the cells of ``install.py``, which all notebooks
share; below it the source imports what they define, so that it also runs as a plain file:

    # %% [install]
    from experiments.notebooks.install import full

    # isort: split

What stands before the first cell (the docstring, remarks for the linter) is not shown. The notebook has no outputs. A
cell's id is a digest of its content, so that editing one cell leaves the others alone.
"""

import hashlib
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
INSTALL = FOLDER / "install.py"
REPOSITORY = "scoresde/scoresde"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The Python files of this folder from which a notebook is made."""
    return [path for path in sorted(FOLDER.glob("*.py")) if "\n# %% [install]\n" in path.read_text(encoding="utf-8")]


def cells(path: Path) -> list[tuple[str, str]]:
    """The cells of a source in order: ("code" or "markdown", text)."""
    found: list[tuple[str, str]] = []
    for cell in jupytext.read(path, fmt="py:percent").cells[1:]:
        if cell.metadata.get("title") == "[install]":
            shared = cells(INSTALL)
            found += [
                (kind, text.replace("REPOSITORY", REPOSITORY).replace("NAME", path.stem)) for kind, text in shared
            ]
        else:
            found.append((cell.cell_type, cell.source))
    return found


def notebook(path: Path) -> str:
    """The JSON text of the notebook made from the source ``path``."""
    new = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    made, ids = [], list[str]()
    for kind, text in cells(path):
        digest = hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()[:12]
        ids.append(digest)
        made.append(new[kind](text, id=digest if ids.count(digest) == 1 else f"{digest}-{ids.count(digest)}"))
    metadata = METADATA | {"colab": {"name": path.with_suffix(".ipynb").name, "provenance": []}}
    return nbformat.writes(nbformat.v4.new_notebook(cells=made, metadata=metadata)) + "\n"


def main() -> None:
    for path in sources():
        path.with_suffix(".ipynb").write_text(notebook(path), encoding="utf-8")
        print(path.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main()
