"""The house: every import inside pterefd points down, and what must not know of each other does not."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pterefd"

# The floor of every part, by the first name after `pterefd.`. Imports go to a lower floor or stay in the part.
RANK = {
    # At the bottom: these import nothing of the house.
    "": -3,  # pterefd/__init__.py: the version
    "errors": -3,
    "hookspecs": -3,
    "paths": -3,
    "names": -3,
    "log": -3,
    "service": -3,
    # ... these the errors, to name what is wrong with a value.
    "quantities": -2,
    "privileged": -2,
    "outputs": -2,
    "views": -2,  # ... and these the contract
    "config": -1,
    "engine": 0,
    "mm": 1,
    "host": 2,
    "live": 2,
    "freeing": 3,
    "source": 3,
    "reclaim": 4,
    "session": 5,
    "reenact": 6,
    "calibrate": 7,
    "procfs": 6,
    "metrics": 6,
    "statusline": 6,
    "metrics_live": 7,
    "mounthelper": 7,
    "reload": 7,
    "shell": 7,
    "top": 7,
    "daemon": 8,
    "doctor": 8,
    "cli": 9,
    "__main__": 10,
}

# Third-party modules that only some files may import, and why.
ONLY_IN = {
    # Options of every kernel in one file, the type of the state that they share in another; the reader of perf.data has
    # loops of its own, far from the engine.
    "numba": ("pterefd/engine/jit.py", "pterefd/engine/state.py", "pterefd/source/record/perfdata.py"),
    "click": ("pterefd/cli/",),
    "rich": ("pterefd/cli/", "pterefd/doctor.py", "pterefd/statusline.py", "pterefd/source/info.py", "pterefd/top/"),
    "fuse": ("pterefd/procfs/fuse_impl.py",),  # the binding is chosen in one place
    "mfusepy": ("pterefd/procfs/fuse_impl.py",),
    "fusepy": ("pterefd/procfs/fuse_impl.py",),
    "prometheus_client": ("pterefd/metrics.py", "pterefd/metrics_live.py", "pterefd/daemon.py"),
    "sdnotify": ("pterefd/service.py",),
    "matplotlib": ("pterefd/session/plots.py",),
    "distributed": ("pterefd/session/cluster.py",),  # an extra: whoever asks for no scheduler does without
    "pluggy": ("pterefd/hookspecs.py", "pterefd/reclaim/"),
}


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of every module and every name that the file imports, also inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                # `from pterefd import daemon` imports a part, `from pterefd import __version__` a name of the root.
                yield node.lineno, f"{module}.{alias.name}" if module == "pterefd" else module


def part_of(module: str) -> str:
    """The part of the house that a full name lies in: "engine" of pterefd.engine.tables."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return "" if first in ("", "__init__", "__version__") else first


def part_of_file(path: Path) -> str:
    return part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_every_part_has_a_floor() -> None:
    parts = {part_of_file(path) for path in sources()}
    assert parts <= set(RANK), f"no floor for {sorted(parts - set(RANK))}: give each one in RANK"


def test_imports_point_down() -> None:
    wrong = []
    for path in sources():
        part = part_of_file(path)
        for line, module in imports(path):
            if module.partition(".")[0] != "pterefd":
                continue
            target = part_of(module)
            if target != part and RANK[target] >= RANK[part]:
                wrong.append(f"{name_of(path)}:{line}: {part or 'pterefd'} imports {module}, which is not below it")
    assert wrong == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_is_imported_where_it_belongs(library: str) -> None:
    wrong = [
        f"{name_of(path)}:{line}"
        for path in sources()
        for line, module in imports(path)
        if module.partition(".")[0] == library and not name_of(path).startswith(ONLY_IN[library])
    ]
    assert wrong == []


def test_plugins_know_the_contract_alone() -> None:
    files = sorted((ROOT / "plugins").rglob("*.py"))
    assert files, "the built-in triggers and policies are files in plugins/"
    allowed = {"pterefd.hookspecs", "numpy", "pydantic", *sys.stdlib_module_names}
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for path in files
        for line, module in imports(path)
        if module not in allowed and module.partition(".")[0] not in allowed
    ]
    assert wrong == []


def test_no_file_is_called_utils() -> None:
    vague = {"utils", "util", "helpers", "misc", "common"}
    named = [path for root in ("pterefd", "plugins", "tests", "bench") for path in (ROOT / root).rglob("*.py")]
    assert [name_of(path) for path in named if path.stem in vague] == []


def test_the_fuse_file_is_small() -> None:
    """It maps paths and errnos; whatever is longer is logic and belongs into the tree."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in PACKAGE.glob("procfs/*mount*.py")}
    assert lengths, "pterefd/procfs/mount.py binds the tree to FUSE"
    assert {name: length for name, length in lengths.items() if length > 200} == {}
