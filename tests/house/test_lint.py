"""Lint, format, types and spelling, as anybody has them who installed the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = {
    "lint": ("ruff", "check"),
    "format": ("ruff", "format", "--check"),
    "types": ("basedpyright", "--pythonpath", sys.executable),
    "spelling": (
        "codespell_lib",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs",
        "scoresde",
        "experiments",
        "tests",
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_clean(check):
    done = subprocess.run([sys.executable, "-m", *CHECKS[check]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
