"""The FUSE binding: mfusepy on libfuse3 where it works, else fusepy on libfuse2.

Both have one API: an object with the operations as methods, and a call that mounts it and serves
it until it is unmounted. `PTEREFD_FUSE=2` or `3` insists on one (the tests try both).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pterefd.errors import Missing

LIBFUSE3 = ("libfuse3.so.4", "libfuse3.so.3")
LIBFUSE2 = ("libfuse.so.2",)
MOUNTED_BEFORE = (3, 3)  # of libfuse: the first that takes /dev/fd/N, mounted by somebody else, for a mount point
THREADS = 64  # libfuse starts one only when all others are busy


@dataclass(frozen=True)
class Binding:
    """What was found. name: for the log.  version: of libfuse.  serve: mounts, and returns at unmount.

    caller: (uid, gid, pid) of the request being served, in a thread that serves one.
    """

    name: str
    version: tuple[int, int]
    serve: Callable[..., None]
    caller: Callable[[], tuple[int, int, int]]


def load() -> Binding:
    """The binding to use. Missing where neither library is there; names the packages to install."""
    wanted = os.environ.get("PTEREFD_FUSE", "")
    if wanted != "2" and (library := _loadable(LIBFUSE3)):
        return _mfusepy(library)
    if wanted != "3" and (library := _loadable(LIBFUSE2)):
        return _fusepy(library)
    raise Missing("no libfuse: install libfuse3-3 (or libfuse2), and fuse3 for fusermount3")


def _loadable(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def _import(module: str, library: str) -> Any:
    # Both choose their library while being imported, from this variable.
    before = os.environ.get("FUSE_LIBRARY_PATH")
    os.environ["FUSE_LIBRARY_PATH"] = library
    try:
        return importlib.import_module(module)
    finally:
        if before is None:
            del os.environ["FUSE_LIBRARY_PATH"]
        else:
            os.environ["FUSE_LIBRARY_PATH"] = before


def ignore_broken_pipes() -> None:
    """SIGPIPE is ignored again after a mount, as Python has it: libfuse 2 (fuse_remove_signal_handlers) sets its
    default, and a write that nobody reads would end the daemon. By the C library, for any thread.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    library.signal(signal.SIGPIPE, int(signal.SIG_IGN))


def _mfusepy(library: str) -> Binding:
    module = _import("mfusepy", library)
    version = (module.fuse_version_major, module.fuse_version_minor)
    limits: dict[str, Any] = {"max_idle_threads": THREADS}  # a thread that ended would leave its Python state behind
    if version >= (3, 12):
        limits["max_threads"] = THREADS

    def serve(operations: Any, mountpoint: str, **options: Any) -> None:
        module.FUSE(operations, mountpoint, **options, **limits)

    return Binding("mfusepy", version, serve, module.fuse_get_context)


def _fusepy(library: str) -> Binding:
    module = _import("fuse", library)

    class Called:
        """fusepy calls operations("getattr", path); mfusepy the method itself."""

        use_ns = True

        def __init__(self, operations: Any) -> None:
            self.operations = operations

        def __call__(self, op: str, *args: Any) -> Any:
            return getattr(self.operations, op)(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.operations, name)

    def serve(operations: Any, mountpoint: str, **options: Any) -> None:
        module.FUSE(Called(operations), mountpoint, **options)

    return Binding("fusepy", (2, 9), serve, module.fuse_get_context)
