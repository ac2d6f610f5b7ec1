"""A thread that acts as somebody else, so that the kernel decides what that one may see.

Opening a file of /proc, and reading it, asks for the fsuid, the fsgid, the groups and the effective capabilities of the
thread that does (kernel/ptrace.c: PTRACE_MODE_FSCREDS). Each thread has its own, for the kernel; the C library's
setgroups() would set those of all threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pterefd.errors import Missing

CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE = 2, 6, 7, 19
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81, "s390x": 206}
_NOBODY_KNOWN = ctypes.c_uint32(-1)  # as fsuid it is not set: what it was is returned
_libc = ctypes.PyDLL(None, use_errno=True)  # none of these waits for anything


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of whoever asks, in the daemon's user namespace. uid, gid: of the file system.  capabilities: effective bits."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: int = 0


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Actor:
    """Who may act as others: this process, as it is when this is made."""

    def __init__(self) -> None:
        self._halves = (_Half * 2)()
        _checked(_libc.capget(ctypes.byref(_Header(_CAPABILITY_VERSION, 0)), ctypes.byref(self._halves)))
        self._own = Credentials(
            _libc.setfsuid(_NOBODY_KNOWN), _libc.setfsgid(_NOBODY_KNOWN), tuple(os.getgroups()), self._bits("effective")
        )
        self._permitted = self._bits("permitted")
        self._may = self._permitted >> CAP_SETUID & 1 and self._permitted >> CAP_SETGID & 1
        self._setgroups = _SETGROUPS.get(platform.machine(), 0)
        if self._may and not self._setgroups:
            raise Missing(f"a live host's mount: the number of setgroups on {platform.machine()} is not known")
        if self._may:
            try:
                self._set_groups(self._own.groups)
                self._set_capabilities(self._own.capabilities)
            except OSError as e:
                raise Missing(f"a live host's mount: acting as who asks: {e.strerror} (a filter?)") from None

    def _bits(self, which: str) -> int:
        low, high = (getattr(half, which) for half in self._halves)
        return int(low | high << 32)

    @contextmanager
    def acting(self, as_: Credentials) -> Iterator[None]:
        """This thread acts as that one, with no capability that this process has not. EACCES where it may not.

        Without the right to it acts for its own user alone, as itself.
        """
        if not self._may:
            if (as_.uid, as_.gid) != (self._own.uid, self._own.gid):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            yield
            return
        self._set_groups(as_.groups)
        try:
            self._take(as_)
            yield
        finally:
            self._put_back()

    def _take(self, as_: Credentials) -> None:
        _libc.setfsgid(ctypes.c_uint32(as_.gid))
        _libc.setfsuid(ctypes.c_uint32(as_.uid))
        if (_libc.setfsuid(_NOBODY_KNOWN), _libc.setfsgid(_NOBODY_KNOWN)) != (as_.uid, as_.gid):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        self._set_capabilities(as_.capabilities & self._permitted)

    def _put_back(self) -> None:
        """What is left of somebody else would be given to the next one who asks: it is not given up."""
        while True:
            try:
                self._set_capabilities(self._own.capabilities)
                _libc.setfsuid(ctypes.c_uint32(self._own.uid))
                _libc.setfsgid(ctypes.c_uint32(self._own.gid))
                self._set_groups(self._own.groups)
                self._set_capabilities(self._own.capabilities)
                return
            except OSError:
                time.sleep(0.01)  # ENOMEM: there is no other reason

    def _set_groups(self, groups: tuple[int, ...]) -> None:
        array = (ctypes.c_uint32 * len(groups))(*groups)
        _checked(_libc.syscall(ctypes.c_long(self._setgroups), ctypes.c_size_t(len(groups)), array))

    def _set_capabilities(self, effective: int) -> None:
        halves = (_Half * 2)(
            *(
                _Half(effective >> 32 * number & 0xFFFFFFFF, half.permitted, half.inheritable)
                for number, half in enumerate(self._halves)
            )
        )
        _checked(_libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION, 0)), ctypes.byref(halves)))


def _checked(answer: int) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
