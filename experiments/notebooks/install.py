"""The opening cells of every notebook, where its source says ``# %% [install]``: the badge, and Colab's installation.

``build`` writes REPOSITORY and NAME in; see there.
"""

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/experiments/notebooks/NAME.ipynb)
#
# **In Colab** the next cell installs the package beside the JAX that is there, built for its accelerator, which a
# constraints file keeps pip from replacing; anywhere else it installs nothing.

# %%
import importlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

SOURCE = "scoresde[experiments,interop] @ git+https://github.com/REPOSITORY"
BUDGET = os.environ.get("SCORESDE_BUDGET", "full")  # "full", or "smoke" to see in a minute that everything runs

if BUDGET not in ("full", "smoke"):
    raise ValueError(f"SCORESDE_BUDGET must be full or smoke, got {BUDGET!r}")
full = BUDGET == "full"

try:
    importlib.import_module("google.colab")
except ImportError:
    print(f"not in Colab: using the installed scoresde; budget: {BUDGET}")
else:
    constraints = Path(tempfile.mkdtemp()) / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in ("jax", "jaxlib")))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), SOURCE], check=True)
