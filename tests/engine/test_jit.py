"""How kernels are compiled: once, and whoever waits for it is told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pterefd.engine.jit import told_of_compiling

SOURCE = """
from pterefd.engine.jit import kernel

@kernel
def inner(a):
    return a + 1

@kernel
def outer(a):
    return inner(a) * 2
"""


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a new process has it: nothing compiled yet."""
    spec = importlib.util.spec_from_file_location("some_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "some_kernels", module)
    spec.loader.exec_module(module)
    return module


def test_it_is_told_once_where_kernels_are_compiled_and_not_where_they_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some_kernels.py"
    path.write_text(SOURCE)
    for expected in (["told"], []):
        told: list[str] = []
        with told_of_compiling(lambda told=told: told.append("told")):  # type: ignore[misc]
            assert load(path, monkeypatch).outer(20) == 42
        assert told == expected
