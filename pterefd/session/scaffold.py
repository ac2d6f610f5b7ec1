"""A starting point for a plugin: an installable package with its entry point, a test and a page, all commented."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from string import Template

from pterefd.errors import BadInput
from pterefd.hookspecs import API_VERSION

TEMPLATES = Path(__file__).parent / "templates"
KINDS = ("policy", "trigger", "workload")
_USE = {
    "policy": "Choose it with `echo $name > mnt/sys/vm/pt_reclaim/policy`, or `policy` in `[plugins]`.",
    "trigger": "Switch it on with `echo on_demand $name > mnt/sys/vm/pt_reclaim/triggers`, or in `[plugins]`.",
    "workload": 'Run it by a table `[[mm]]` of the configuration with `workload = "$name"`.',
}


def write_package(name: str, kind: str, directory: Path) -> list[Path]:
    """Write the package of a new plugin into a directory of its name; the files. BadInput."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BadInput(f"{name!r} is no name for a plugin: small letters, digits and underscores, a letter first")
    root = directory / name
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput(f"{root}: is there already")
    module = f"pterefd_{name}"
    words = {
        "name": name,
        "kind": kind,
        "module": module,
        "dashed": name.replace("_", "-"),
        "cls": "".join(word.capitalize() for word in name.split("_")),
        "api": str(API_VERSION),
        "prefix": sys.prefix,
    }
    words["use"] = Template(_USE[kind]).substitute(words)
    files = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        f"{module}.py": f"{kind}.py.txt",
        f"tests/test_{name}.py": f"test_{kind}.py.txt",
    }
    for target, source in files.items():
        path = root / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template((TEMPLATES / source).read_text()).substitute(words))
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
    return [root / target for target in files]
