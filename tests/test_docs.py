"""What the documentation shows is executed: the README's Python, and every doctest of the library."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (page,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(page, "README.md", "exec"), names)
    exact = float(names["ring"].log_prob(names["held_out"]).mean())
    assert abs(names["mean"] - exact) < 0.25  # a short training: close to the truth, and never above it by chance
    assert names["samples"].shape == (1000, 2)


def test_the_readme_links_to_files_that_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(scoresde.__path__, "scoresde.")])
def test_doctests(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_every_public_name_has_a_docstring():
    for name in dir(scoresde):
        if not name.startswith("_"):
            assert getattr(scoresde, name).__doc__, name
