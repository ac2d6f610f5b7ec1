"""What a stop does to the system call that a thread sleeps in (signal(7), "Interruption of system calls ...").

Most begin again by themselves. Some end with EINTR on a stop, and are begun again by who stops; where they have a
timeout that would begin again as well, so these are waited out. What would be cut short is waited out, too.
"""

from __future__ import annotations

import enum
import os
import socket
import struct
from contextlib import closing, suppress
from dataclasses import dataclass

from pterefd.live import ptrace

_READ, _WRITE, _IOCTL, _READV, _WRITEV, _SENDFILE = 0, 1, 16, 19, 20, 40
_CONNECT, _ACCEPT, _SENDTO, _RECVFROM, _SENDMSG, _RECVMSG = 42, 43, 44, 45, 46, 47
_CLONE, _VFORK, _SEMOP = 56, 58, 65
_RT_SIGTIMEDWAIT, _IO_GETEVENTS, _SEMTIMEDOP, _EPOLL_WAIT = 128, 208, 220, 232
_SPLICE, _TEE, _VMSPLICE, _EPOLL_PWAIT, _ACCEPT4, _PWRITEV, _RECVMMSG = 275, 276, 278, 281, 288, 296, 299
_SENDMMSG, _PROCESS_VM_READV, _PROCESS_VM_WRITEV, _GETRANDOM = 307, 310, 311, 318
_COPY_FILE_RANGE, _PWRITEV2, _IO_PGETEVENTS, _IO_URING_ENTER, _CLONE3, _EPOLL_PWAIT2 = 326, 328, 333, 426, 435, 441
_SELECT, _PSELECT6, _PPOLL, _FALLOCATE = 23, 270, 271, 285
_CLOSE, _FSYNC, _EXECVE, _FDATASYNC, _EXECVEAT = 3, 74, 59, 75, 322

# Of these a part may be done when they are interrupted, and they return that part.
_CUT_SHORT = {
    _WRITE: "write",
    _WRITEV: "writev",
    _PWRITEV: "pwritev",
    _PWRITEV2: "pwritev2",
    _SENDTO: "sendto",
    _SENDMSG: "sendmsg",
    _SENDMMSG: "sendmmsg",
    _RECVMMSG: "recvmmsg",
    _SENDFILE: "sendfile",
    _SPLICE: "splice",
    _TEE: "tee",
    _VMSPLICE: "vmsplice",
    _COPY_FILE_RANGE: "copy_file_range",
    _GETRANDOM: "getrandom",
    _PROCESS_VM_READV: "process_vm_readv",
    _PROCESS_VM_WRITEV: "process_vm_writev",
    # what these do when they are interrupted is for a driver, or a file system, to say
    _IOCTL: "ioctl",
    _CLOSE: "close",
    _FSYNC: "fsync",
    _FDATASYNC: "fdatasync",
    _IO_URING_ENTER: "io_uring_enter",
    # a thread that waits for its vfork child does not stop
    _VFORK: "vfork",
    _CLONE: "clone",
    _CLONE3: "clone3",
    _EXECVE: "execve",
    _EXECVEAT: "execveat",
}
# Calls that end with EINTR -> (number of the argument that is their timeout, whether that is a pointer).
_TIMEOUTS = {
    _EPOLL_WAIT: (3, False),
    _EPOLL_PWAIT: (3, False),
    _EPOLL_PWAIT2: (3, True),
    _RT_SIGTIMEDWAIT: (2, True),
    _SEMTIMEDOP: (3, True),
    _IO_GETEVENTS: (4, True),
    _IO_PGETEVENTS: (4, True),
}
_WITHOUT_TIMEOUT = frozenset({_SEMOP})
# On a socket with SO_RCVTIMEO or SO_SNDTIMEO these end with EINTR (net/core/sock.h sock_intr_errno()).
_RECEIVING = frozenset({_READ, _READV, _RECVFROM, _RECVMSG, _ACCEPT, _ACCEPT4})
_ON_SOCKETS = _RECEIVING | {_CONNECT}
_FLAGS = {_RECVFROM: 3, _RECVMSG: 2}
# Where what is left of their timeout cannot be written back (it lies in memory for reading) these end with EINTR, too
# (fs/select.c poll_select_finish()); fallocate(2) may, and does the same once more.
_RARELY = frozenset({_SELECT, _PSELECT6, _PPOLL, _FALLOCATE})
BEGUN_AGAIN = frozenset(_TIMEOUTS) | _WITHOUT_TIMEOUT | _ON_SOCKETS | _RARELY


def is_cut_short(number: int, length: int, result: int) -> bool:
    """Whether a call that was stopped while it ran, which nobody saw it in, did a part only, and may do all anew."""
    return number == _GETRANDOM and 0 <= result < length


_LOOKED_AT = frozenset(_CUT_SHORT) | frozenset(_TIMEOUTS) | _ON_SOCKETS


class Kind(enum.Enum):
    """What a stop does to a call: nothing that is seen, or what has to be waited out."""

    FREE = "free"
    TIMED = "timed"  # begins again with the whole of its timeout
    CUT_SHORT = "cut short"


@dataclass(frozen=True, slots=True)
class Call:
    """What a thread sleeps in. number: -1 for none.  text: for people.  sleeps: not where it runs."""

    kind: Kind
    number: int = -1
    text: str = ""
    sleeps: bool = True


_NONE = Call(Kind.FREE, sleeps=False)


def call_of(tgid: int, file: int) -> Call:
    """What a thread is in. file: a descriptor of its /proc/PID/task/TID/syscall. ProcessLookupError: it is gone."""
    words = os.pread(file, 256, 0).split()
    if len(words) < 7:  # "running", or -1 with stack and program counter
        return _NONE
    number = int(words[0])
    if number not in _LOOKED_AT:
        return Call(Kind.FREE, number)
    arguments = tuple(int(word, 16) for word in words[1:7])
    kind, text = _judged(tgid, number, arguments)
    return Call(kind, number, text)


def _judged(tgid: int, number: int, arguments: tuple[int, ...]) -> tuple[Kind, str]:
    if number in _CUT_SHORT:
        return Kind.CUT_SHORT, _CUT_SHORT[number]
    if number in _TIMEOUTS:
        place, is_pointer = _TIMEOUTS[number]
        value = arguments[place]
        endless = value == 0 if is_pointer else value & 0x80000000 != 0
        return (Kind.FREE, "") if endless else (Kind.TIMED, f"call {number} with a timeout")
    if number in _ON_SOCKETS:
        if number in _FLAGS and arguments[_FLAGS[number]] & socket.MSG_WAITALL:
            return Kind.CUT_SHORT, "recv with MSG_WAITALL"
        if _has_timeout(tgid, arguments[0], number in _RECEIVING):
            return Kind.TIMED, "a call on a socket with a timeout"
    return Kind.FREE, ""


def _has_timeout(tgid: int, fd: int, receiving: bool) -> bool:
    """Whether a descriptor is a socket with SO_RCVTIMEO, or SO_SNDTIMEO where something is not to be received."""
    with suppress(OSError):
        if not os.readlink(f"/proc/{tgid}/fd/{fd}").startswith("socket:"):
            return False
        pidfd = os.pidfd_open(tgid)
        try:
            copy = ptrace.copied_descriptor(pidfd, fd)
        finally:
            os.close(pidfd)
        if copy is None:
            return True
        with closing(socket.socket(fileno=copy)) as connection:
            option = socket.SO_RCVTIMEO if receiving else socket.SO_SNDTIMEO
            return any(struct.unpack("ll", connection.getsockopt(socket.SOL_SOCKET, option, 16)))
    return False


def switches(tgid: int, tid: int) -> int:
    """How often a thread was given a CPU: while that is the same, it sleeps in the same call."""
    return _schedstat(tgid, tid)[2]


def cpu_time(tgid: int, tid: int) -> int:
    """Nanoseconds for which a thread has run, as of the last tick."""
    return _schedstat(tgid, tid)[0]


def _schedstat(tgid: int, tid: int) -> list[int]:
    with open(f"/proc/{tgid}/task/{tid}/schedstat", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
