"""What the documentation shows is executed: the README's Python, every page of the site, every doctest of the library;
and what it points at is there."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))
MEASURED = sorted((ROOT / "experiments" / "benchmarks").glob("*.md"))
IGNORED = "ignore:Error reading persistent compilation cache entry"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS, *MEASURED]


def place(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text):
    """The Python of a page, but for blocks under a comment that says why they are not run."""
    return re.findall(r"(?<!-->\n)^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    plain = (unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode() for heading in headings)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


def test_the_readme_page_runs(tmp_path):
    """As a user has it: in a process of its own, with XLA's optimisations, which this page needs more than others."""
    (page,) = blocks(README)
    page += "\nprint(float(mean), float(ring.log_prob(held_out).mean()), *samples.shape)\n"
    environment = os.environ | {"XLA_FLAGS": os.environ["GIVEN_XLA_FLAGS"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-W", IGNORED, "-c", page]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    mean, exact, *shape = map(float, done.stdout.split()[-4:])
    assert abs(mean - exact) < 0.25  # a short training: close to the truth, and never above it by chance
    assert shape == [1000, 2]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page.read_text())], ids=place)
def test_a_page_runs_as_one_program(page, tmp_path):
    """In a fresh process and an empty folder, within two minutes."""
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks(page.read_text())))
    command = [sys.executable, "-W", "error", "-W", IGNORED, program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_to_files_and_headings_that_exist(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^()#\s]*)#?([^()\s]*)\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def test_every_page_is_in_the_navigation_once():
    found = re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(found) == sorted(place(page).removeprefix("docs/") for page in PAGES)


def test_every_module_has_its_page():
    """Once, by its own name or with the folder that it is in."""
    documented = re.findall(r"^::: (scoresde[.\w]+)$", "".join(page.read_text() for page in DOCS), flags=re.MULTILINE)
    for module in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        pages = [name for name in documented if f"{module.name}.".startswith(f"{name}.")]
        assert module.ispkg or len(pages) == 1, f"{module.name} is on {len(pages)} pages"
    assert all(importlib.import_module(name) for name in documented)


def test_the_readme_shows_every_room():
    tree = re.search(r"^```\n(scoresde/ .*?)^```", README, flags=re.DOTALL | re.MULTILINE)[1]
    rooms = {path.parent.name for name in ("scoresde", "experiments") for path in (ROOT / name).glob("*/__init__.py")}
    assert len(rooms) > 15 and not [room for room in rooms if f" {room}/" not in tree]


def test_the_citation_is_of_this_version():
    assert f"\nversion: {scoresde.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{scoresde.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason='the site needs pip install -e ".[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(scoresde.__path__, "scoresde.")])
def test_doctests(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_every_public_name_has_a_docstring():
    for name in dir(scoresde):
        if not name.startswith("_"):
            assert getattr(scoresde, name).__doc__, name
