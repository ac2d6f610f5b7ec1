"""The thread that moves goes before all others while it does: it would wait for a CPU at each of its moves.

It is its own list that undoes it, before anything else that takes long (mover.py): so that wherever the tracer ends,
the thread goes on as it was.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress

_SYS_SCHED_GETATTR = 315
_ATTR = struct.Struct("<IIQiIQ")  # of struct sched_attr: size, policy, flags, nice, priority, runtime
_libc = ctypes.CDLL(None, use_errno=True)


def may_be_boosted(tid: int) -> bool:
    """Whether all that tells its scheduling is SCHED_OTHER and a nice value, which come back by themselves.

    Not where it has a slice of its own (Linux 6.12), which setting a policy takes away: others' is that of our parent.
    """
    attributes, others = _attributes(tid), _attributes(os.getppid())
    if attributes is None or others is None:
        return False
    _, policy, flags, _, _, runtime = attributes
    return (policy, flags) == (os.SCHED_OTHER, 0) and runtime == others[5]


def boost(tid: int) -> None:
    """Make a thread SCHED_FIFO, whose list says how that ends. Nothing without CAP_SYS_NICE, or RLIMIT_RTPRIO."""
    with suppress(OSError):  # of a cgroup without a share of real time, too
        os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(1))


def unboost(tid: int) -> None:
    """SCHED_OTHER again, with the nice value that there was. Nothing where it has ended."""
    with suppress(OSError):
        os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))


def _attributes(tid: int) -> tuple[int, ...] | None:
    room = ctypes.create_string_buffer(64)
    number, size, zero = ctypes.c_long(_SYS_SCHED_GETATTR), ctypes.c_long(len(room)), ctypes.c_long(0)
    if _libc.syscall(number, ctypes.c_long(tid), room, size, zero):
        return None
    return _ATTR.unpack_from(room)
