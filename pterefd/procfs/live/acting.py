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
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from pterefd.errors import Missing

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, CAP_SYS_NICE = 1, 2, 6, 7, 19, 23
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_SEES_ALL = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SYS_PTRACE
_THIS_THREAD = struct.pack("Ii", _CAPABILITY_VERSION, 0)
_HALF = struct.Struct("3I")  # struct __user_cap_data_struct
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81, "s390x": 206}
_NOBODY_KNOWN = 0xFFFFFFFF  # as fsuid it is not set: what it was is returned
_libc = ctypes.PyDLL(None, use_errno=True)  # none of these waits for anything
_libc.syscall.argtypes = ctypes.c_long, ctypes.c_size_t, ctypes.c_char_p
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = (ctypes.c_uint32,)
_libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint32


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of whoever asks, in the daemon's user namespace. uid, gid: of the file system.  capabilities: effective bits."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: int = 0


class Actor:
    """Who may act as others: this process, as it is when this is made."""

    def __init__(self) -> None:
        told = ctypes.create_string_buffer(2 * _HALF.size)
        _checked(_libc.capget(_THIS_THREAD, told))
        self._halves = list(_HALF.iter_unpack(told.raw))  # effective, permitted, inheritable: low 32 bits, high ones
        self._own = Credentials(
            _libc.setfsuid(_NOBODY_KNOWN), _libc.setfsgid(_NOBODY_KNOWN), tuple(os.getgroups()), self._bits(0)
        )
        self._permitted = self._bits(1)
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

    def _bits(self, which: int) -> int:
        low, high = self._halves
        return int(low[which] | high[which] << 32)

    def _is_like(self, other: Credentials) -> bool:
        """Whether that one sees what this process sees: with these capabilities groups make no difference."""
        equal = other.capabilities & self._permitted == self._own.capabilities
        of_root = equal and _SEES_ALL & ~self._own.capabilities == 0
        same = (other.uid, other.gid) == (self._own.uid, self._own.gid)
        return same and (of_root or (equal and other.groups == self._own.groups))

    @contextmanager
    def acting(self, as_: Credentials) -> Iterator[None]:
        """This thread acts as that one, with no capability that this process has not. EACCES where it may not.

        Without the right to it acts for its own user alone, as itself.
        """
        if self._is_like(as_):
            yield
            return
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
        _libc.setfsgid(as_.gid)
        _libc.setfsuid(as_.uid)
        if (_libc.setfsuid(_NOBODY_KNOWN), _libc.setfsgid(_NOBODY_KNOWN)) != (as_.uid, as_.gid):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        self._set_capabilities(as_.capabilities & self._permitted)

    def _put_back(self) -> None:
        """What is left of somebody else would be given to the next one who asks: it is not given up."""
        while True:
            try:
                self._set_capabilities(self._own.capabilities)
                _libc.setfsuid(self._own.uid)
                _libc.setfsgid(self._own.gid)
                self._set_groups(self._own.groups)
                self._set_capabilities(self._own.capabilities)
                return
            except OSError:
                time.sleep(0.01)  # ENOMEM: there is no other reason

    def _set_groups(self, groups: tuple[int, ...]) -> None:
        _checked(_libc.syscall(self._setgroups, len(groups), _as_array(groups)))

    def _set_capabilities(self, effective: int) -> None:
        _checked(_libc.capset(_THIS_THREAD, self._capabilities(effective)))

    def _capabilities(self, effective: int) -> bytes:
        return b"".join(
            _HALF.pack(effective >> 32 * number & 0xFFFFFFFF, permitted, inheritable)
            for number, (_, permitted, inheritable) in enumerate(self._halves)
        )


@lru_cache(maxsize=256)
def _as_array(groups: tuple[int, ...]) -> bytes:
    """gid_t[]."""
    return struct.pack(f"{len(groups)}I", *groups)


def _checked(answer: int) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
