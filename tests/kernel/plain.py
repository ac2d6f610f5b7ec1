"""The model as plain Python: its modules imported without compilation, and with a changed line where one asks.

A rule that is switched off in the source shows whether the oracle would notice. Compiled, each such model would take
most of a minute; uncompiled it runs small traces at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "pterefd"


@dataclass(frozen=True, slots=True)
class Change:
    """One rule switched off: in the module's source, `old` (there exactly once) becomes `new`.

    module: without "pterefd.".  about: the rule.  shown_by: the directed case, or the file in regressions, that differs
    without it.
    """

    module: str
    old: str
    new: str
    about: str
    shown_by: str


def changed_source(change: Change) -> str:
    """The module's source with the change. ValueError where `old` is not there exactly once."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{change.module}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    if source.count(change.old) != 1:
        raise ValueError(f"{change.module}: {change.old!r} is there {source.count(change.old)} times, not once")
    return source.replace(change.old, change.new)


def _plain_jit() -> types.ModuleType:
    """engine.jit without a compiler."""
    module = types.ModuleType(f"{PACKAGE}.engine.jit")
    module.kernel = module.inline = lambda function: function  # type: ignore[attr-defined]
    return module


class Table(np.ndarray):
    """A table of the model's whose numbers are Python's: 64 bits when stored, as compiled code stores them."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value.item() if isinstance(value, np.generic) else value

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(value) is int and not -(1 << 63) <= value < 1 << 63:
            value = (value + (1 << 63)) % (1 << 64) - (1 << 63)
        super().__setitem__(key, value)


@contextmanager
def plain_model(change: Change | None = None) -> Iterator[Callable[..., Any]]:
    """Give check_trace of a model of its own, uncompiled. The modules that were loaded are back afterwards."""
    source = None if change is None else changed_source(change)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE}
    kept = (f"{PACKAGE}.errors", f"{PACKAGE}.hookspecs", f"{PACKAGE}.source", f"{PACKAGE}.engine.state")
    for name in before:
        if name != PACKAGE and not name.startswith(kept):
            del sys.modules[name]
    root = importlib.import_module(PACKAGE)
    attributes = dict(vars(root))  # a package's modules are its attributes too
    sys.modules[f"{PACKAGE}.engine.jit"] = _plain_jit()
    try:
        if change is not None and source is not None:
            _load(f"{PACKAGE}.{change.module}", source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's scalars overflow aloud, compiled ones in silence
            check = importlib.import_module(f"{PACKAGE}.session.check").check_trace
            arena: Any = importlib.import_module(f"{PACKAGE}.engine.arena")
            arena._reserve = lambda shape, dtype, **_: np.zeros(shape, dtype=np.int64).view(Table)
            quick: Any = importlib.import_module(f"{PACKAGE}.mm.quick")
            quick.prefetch = lambda *_: None  # nothing but compiled code can
            arena.State = types.SimpleNamespace
            yield check
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(root).clear()
        vars(root).update(attributes)


def _load(name: str, source: str) -> None:
    """Import a module from this source under its own name."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, str(spec.origin), "exec"), module.__dict__)
