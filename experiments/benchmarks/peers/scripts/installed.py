"""What packages take on disk with all that they require; run by ``experiments.benchmarks.peers`` in each environment.

    ENVIRONMENT/bin/python experiments/benchmarks/peers/scripts/installed.py torch,diffusers torch,azula

prints JSON {names: {"bytes": b, "packages": n}}: the files that pip recorded (compiled bytecode included) of the named
distributions and of those that they require, without extras.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

from packaging.requirements import Requirement


def required(name, found):
    """The distribution and those that it needs, added to ``found`` by name."""
    key = name.lower().replace("_", "-").replace(".", "-")
    if key not in found:
        found[key] = importlib.metadata.distribution(name)
        for text in found[key].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name, found)
    return found


def size(distribution):
    """Bytes of its files; of one installed in place (pip install -e) those of its folder."""
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        spec = importlib.util.find_spec(distribution.metadata["Name"])
        assert spec is not None and spec.origin is not None
        files += Path(spec.origin).parent.rglob("*.py*")
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    found = {}
    for names in sys.argv[1:]:
        all_of_them = {}
        for name in names.split(","):
            required(name, all_of_them)
        found[names] = {"bytes": sum(map(size, all_of_them.values())), "packages": len(all_of_them)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
