"""How kernels are compiled: the only place that configures numba."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numba
from numba.core import event
from numba.core.types import unliteral

from pterefd.engine.cache import cache_directory

numba.config.CACHE_DIR = str(cache_directory())


def _without_literals(dispatcher: Any) -> Any:
    """Let calls from other kernels see plain types: numba would compile a kernel anew for every constant."""
    template = dispatcher.get_call_template

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return template(tuple(map(unliteral, args)), {name: unliteral(typ) for name, typ in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call. nogil: a replay's thread leaves the others alone; no test for division by zero."""
    return _without_literals(numba.njit(nogil=True, cache=True, error_model="numpy")(function))


# Small helpers on the path of every event, put in place before LLVM sees them.
inline = numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")


class _First(event.Listener):
    """Tells once that something has begun."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Any) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def on_end(self, event: Any) -> None:
        pass


def told_of_compiling(tell: Callable[[], None]) -> AbstractContextManager[Any]:
    """Within it, tell is called once where a kernel is not in the cache and has to be compiled."""
    return event.install_listener("numba:compile", _First(tell))
