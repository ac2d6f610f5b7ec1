"""A swap file for as long as a block runs."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def _header(pages: int) -> bytes:
    """The first page of a swap area, union swap_header of include/linux/swap.h, version 1."""
    return struct.pack("<III", 1, pages - 1, 0).rjust(1024 + 12, b"\0").ljust(4086, b"\0") + b"SWAPSPACE2"


@contextmanager
def swap_file(megabytes: int = 512, directory: Path | None = None) -> Iterator[Path]:
    """Make a swap file, swap to it, and take it away again. Raises OSError where that is not allowed."""
    fd, name = tempfile.mkstemp(prefix="pterefd-oracle-swap-", dir=directory)
    path = Path(name)
    try:
        os.fchmod(fd, 0o600)
        os.posix_fallocate(fd, 0, megabytes << 20)
        os.pwrite(fd, _header((megabytes << 20) // 4096), 0)
        os.fsync(fd)
        if _LIBC.swapon(os.fsencode(path), 0):
            raise OSError(ctypes.get_errno(), f"swapon {path}: {os.strerror(ctypes.get_errno())}")
        try:
            yield path
        finally:
            if _LIBC.swapoff(os.fsencode(path)):
                raise OSError(ctypes.get_errno(), f"swapoff {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
        path.unlink()
