"""The program that a stopped thread runs: system calls from a list, then its registers as they were.

It ends by itself wherever its tracer ends: it waits for the tracer in ppoll(2) with a timeout, goes on where nobody
comes, and gives back what it mapped. No stack is used, and nothing but general registers is changed.

stub.s is its source, held to the bytes here by a test.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pterefd.live.ptrace import Regs

# next: a call's number and arguments are at rbx; -1: restore, -2: go on at the address that follows.
CODE = bytes.fromhex(
    "488b034883f8ff74384883f8fe742c488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f05488b4b384885c974034889014883c3"
    "40ebc5488b5b08ebbf4c8b3d700000004c8b35710000004c8b2d720000004c8b2573000000488b2d74000000488b1d750000004c8b1d7600"
    "00004c8b15770000004c8b0d780000004c8b0579000000488b057a000000488b0d7b000000488b157c000000488b357d000000488b3d7e00"
    "0000488d257f00000048cf0f1f440000"
)
_SAVED = ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi")
_FRAME = ("rip", "cs", "eflags", "rsp", "ss")  # what iretq takes
_SAVED_BYTES = 8 * (len(_SAVED) + len(_FRAME))
RECORD = 64  # number, six arguments, where the result is put (0: nowhere)

SYS_MMAP, SYS_MUNMAP, SYS_RT_SIGPROCMASK, SYS_MREMAP, SYS_MADVISE, SYS_PPOLL, SYS_RESTART = 9, 11, 14, 25, 28, 271, 219
SYS_GETPPID, SYS_SCHED_SETSCHEDULER = 110, 144
_END, _JUMP = -1, -2
_SIG_SETMASK = 2
_SCHED_OTHER = 0
PROT_NONE, PROT_RW = 0, 3
MAP_FIXED_NOREPLACE = 0x100000
_PRIVATE_ANONYMOUS = 0x22
_MAP_NORESERVE = 0x4000
_MADV_DONTFORK, _MADV_DOFORK = 10, 11
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4

# A wait's number is its first argument, which ppoll does not look at where there are no descriptors.
READY, LOOK, BACK, DONE = 1, 2, 3, 4

# include/linux/errno.h: what a call that a stop has interrupted returns, for the kernel alone.
EINTR, ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 4, 512, 513, 514, 516


def record(number: int, *arguments: int, result: int = 0) -> bytes:
    """One system call of the list."""
    return struct.pack("<8q", number, *arguments, *(0,) * (6 - len(arguments)), result)


def jump(address: int) -> bytes:
    """Go on with the record at an address."""
    return record(_JUMP, address)


def move(source: int, target: int, length: int, *, result: int = 0, back: bool = False) -> bytes:
    """Move the entries of a range, tables and all, and leave its mapping; or a mapping back to where it came from.

    It is a call without effect until the tracer makes it mremap(2), when the thread enters it: where the tracer is
    gone, others run, and nothing may be moved from under them.
    """
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED | (0 if back else _MREMAP_DONTUNMAP)
    return record(SYS_GETPPID, source, length, length, flags, target, result=result)


def unmap(address: int, length: int) -> bytes:
    """Unmap a range."""
    return record(SYS_MUNMAP, address, length)


def fork_copies(address: int, length: int, copies: bool) -> bytes:
    """Whether a range of mappings is to be in the children of fork(2)."""
    return record(SYS_MADVISE, address, length, _MADV_DOFORK if copies else _MADV_DONTFORK)


def reserve(address: int, length: int) -> bytes:
    """Keep a range from being taken by somebody else."""
    flags = _PRIVATE_ANONYMOUS | _MAP_NORESERVE | MAP_FIXED_NOREPLACE
    return record(SYS_MMAP, address, length, PROT_NONE, flags, -1)


def as_others(parameter: int) -> bytes:
    """SCHED_OTHER, with the nice value that there was. parameter: the address of a struct sched_param, 0."""
    return record(SYS_SCHED_SETSCHEDULER, 0, _SCHED_OTHER, parameter)


def as_restarted(regs: Regs) -> Regs:
    """The registers with which the interrupted call, if there is one, begins again (arch_do_signal_or_restart())."""
    again = regs.copy()
    if regs.call >= 0 and -regs.result in (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK):
        again.rax = SYS_RESTART if -regs.result == ERESTART_RESTARTBLOCK else regs.orig_rax
        again.rip -= 2
    return again


class Placed(NamedTuple):
    """A stub for one place. image: its bytes.  entry, first: where the thread begins, and with which record.

    after_ready: where the address lies of the record that follows READY.  end: the record that leads home.
    timeout: where the struct timespec of its waits lies.
    """

    image: bytes
    entry: int
    first: int
    after_ready: int
    end: int
    timeout: int


def placed(
    address: int, regs: Regs, mask: int, table: int, table_bytes: int, seconds: float, *, boosted: bool
) -> Placed:
    """The stub for a thread, to be written at an address that is a multiple of 8.

    regs: as it shall go on.  mask: its signal mask.  table: where it maps the list that it is given next.
    seconds: that it waits for its tracer.  boosted: it is to be SCHED_OTHER again at the end.
    """
    saved = struct.pack("<15Q5Q", *(getattr(regs, name) for name in (*_SAVED, *_FRAME)))
    data = address + len(CODE) + _SAVED_BYTES
    timeout, first = data + 8, data + 24
    flags = _PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE
    end = first + 3 * RECORD
    records = (
        record(SYS_MMAP, table, table_bytes, PROT_RW, flags, -1),
        wait_at(READY, timeout),
        jump(end),
        as_others(end + 4 * RECORD - 8) if boosted else jump(end + RECORD),
        unmap(table, table_bytes),
        record(SYS_RT_SIGPROCMASK, _SIG_SETMASK, data, 0, 8),
        wait_at(DONE, timeout),
        struct.pack("<q", _END),
    )
    image = CODE + saved + struct.pack("<Qqq", mask, *divmod(round(seconds * 1e9), 10**9)) + b"".join(records)
    return Placed(image, address, first, first + 2 * RECORD + 8, end, timeout)


def wait_at(number: int, timeout: int) -> bytes:
    """Wait for the tracer. timeout: where the stub's struct timespec is."""
    return record(SYS_PPOLL, number, 0, timeout, 0, 8)


STUB_BYTES = len(CODE) + _SAVED_BYTES + 24 + 7 * RECORD + 8
