"""Programs that are measured in processes of their own, in the peers' environment or in this one."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from experiments.cli.errors import InputError

SCRIPTS = Path(__file__).with_name("scripts")
INSTALL = (
    "python -m venv ENV && ENV/bin/pip install torch diffusers azula torchdiffeq torchsde scipy && "
    "ENV/bin/pip install --no-deps k-diffusion, then --peers-python ENV/bin/python"
)
PACKAGES = ("torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "scipy", "numpy")


def output(command: list[Any], environment: dict[str, str]) -> str:
    """What it prints; InputError with its last line of complaint if it fails."""
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{Path(command[1]).name} failed in the environment of {command[0]}: {last}")
    return done.stdout


def alone() -> dict[str, str]:
    """This environment without the path to this project."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def script(python: Path, name: str, *arguments: Any) -> Any:
    """The JSON in the last line that one of ``scripts/`` prints."""
    return json.loads(output([python, SCRIPTS / name, *arguments], alone()).strip().splitlines()[-1])


def check(python: Path | None) -> Path:
    """The peers' Python, or an InputError that says how to make one."""
    if python is None or not os.access(python, os.X_OK):
        raise InputError(f"no Python at --peers-python {python}; to make one: {INSTALL}")
    return python


def versions(python: Path) -> dict[str, str]:
    """Of the peers' Python and packages."""
    words = (
        "import importlib.metadata as m, json, platform, sys; print(json.dumps({'python': platform.python_version()} "
    )
    words += "| {n: m.version(n) for n in sys.argv[1:]}))"
    return json.loads(output([python, "-c", words, *PACKAGES], alone()))
