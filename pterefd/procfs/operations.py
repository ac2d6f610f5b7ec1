"""What libfuse calls, on a tree: paths and errnos, nothing else. What files hold is in tree.py.

Threads: libfuse serves each request in a thread of its pool, so that a reader does not wait behind
a long write. A thread that libfuse made gets a new Python thread state for every call into Python,
which costs more than the call (measured: 120 to 240 us for open, read and close against 47); `served`
keeps each thread's state alive instead.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from pterefd.errors import PterefdError
from pterefd.procfs.tree import Opened, Tree

_keep_thread_state = ctypes.pythonapi.PyGILState_Ensure
_kept = threading.local()


def served(method: Callable[..., Any]) -> Callable[..., Any]:
    """Around each operation: house errors become errnos, and the thread's Python state is kept."""

    @functools.wraps(method)
    def call(self: Operations, *args: Any) -> Any:
        if not hasattr(_kept, "state"):
            _kept.state = _keep_thread_state()
        try:
            return method(self, *args)
        except PterefdError as e:
            raise OSError(e.errno, str(e)) from e
        except OSError:
            raise
        except Exception as e:
            self.fault(e)
            raise OSError(errno.EIO, "a fault of pterefd") from e

    return call


def refused(code: int) -> Callable[..., Any]:
    """An operation that proc answers with an errno, whatever its arguments."""

    def call(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


class Operations:
    """What libfuse calls. Paths are absolute in the tree; fh is a number that open gave."""

    use_ns = True

    def __init__(
        self,
        tree: Tree,
        mounted: Callable[[], None],
        fault: Callable[[Exception], None],
        whoever: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.tree = tree
        self.fault = fault
        self._mounted = mounted
        self._whoever = whoever
        self._files: dict[int, Opened] = {}
        self._numbers = itertools.count(1)
        self._time_ns = time.time_ns()

    def init(self, _: str) -> None:
        self._mounted()

    @served
    def getattr(self, path: str, _fh: int | None = None) -> dict[str, int]:
        at = self.tree.attributes(path)
        now = self._time_ns
        return {
            "st_mode": at.mode,
            "st_nlink": at.nlink,
            "st_uid": at.uid,
            "st_gid": at.gid,
            "st_mtime": now,
            "st_ctime": now,
            "st_atime": now,
        }

    @served
    def readdir(self, path: str, _fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        entries = [(".", 0o040555), ("..", 0o040555), *self.tree.listing(path)]
        return ((name, {"st_mode": mode}, 0) for name, mode in entries)

    @served
    def readlink(self, path: str) -> str:
        return self.tree.readlink(path)

    @served
    def open(self, path: str, flags: int) -> int:
        opened = self.tree.open(path, flags)
        number = next(self._numbers)
        self._files[number] = opened
        return number

    @served
    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        return self._files[fh].read(size, offset)

    @served
    def write(self, _path: str, data: bytes, offset: int, fh: int) -> int:
        with self._whoever():
            return self._files[fh].write(data, offset)

    @served
    def release(self, _path: str, fh: int) -> int:
        opened = self._files.pop(fh, None)
        if opened is not None:
            opened.close()
        return 0

    @served
    def truncate(self, path: str, _length: int, _fh: int | None = None) -> int:
        self.tree.truncate(path)
        return 0

    def utimens(self, _path: str, _times: tuple[int, int] | None = None) -> int:
        return 0  # as proc: taken, without effect

    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    # What proc answers root (tests/procfs/test_mount.py asks both); others the kernel refuses by the modes.
    chmod = chown = unlink = rmdir = refused(errno.EPERM)
    create = mknod = mkdir = symlink = link = rename = refused(errno.ENOENT)
