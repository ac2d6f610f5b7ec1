"""PID/stat, statm and the other small files of a process: fs/proc/array.c, fs/proc/base.c.

Nothing here runs, so times, switches, signals and I/O are 0; what the mm holds and did is the host's.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pterefd.errors import NoSuchMm

if TYPE_CHECKING:
    from pterefd.procfs.faces import Faces

TICKS_PER_SECOND = 100  # USER_HZ
NO_LIMIT = (1 << 64) - 1
SIGCHLD = 17
PF_RANDOMIZE = 0x00400000
PRIORITY = 20

# (name, soft, hard, unit) of fs/proc/base.c lnames, as a fresh process has them
_UNLIMITED = "unlimited"
_LIMITS = (
    ("Max cpu time", _UNLIMITED, _UNLIMITED, "seconds"),
    ("Max file size", _UNLIMITED, _UNLIMITED, "bytes"),
    ("Max data size", _UNLIMITED, _UNLIMITED, "bytes"),
    ("Max stack size", "8388608", _UNLIMITED, "bytes"),
    ("Max core file size", "0", _UNLIMITED, "bytes"),
    ("Max resident set", _UNLIMITED, _UNLIMITED, "bytes"),
    ("Max processes", "{tasks}", "{tasks}", "processes"),
    ("Max open files", "1024", "4096", "files"),
    ("Max locked memory", "8388608", "8388608", "bytes"),
    ("Max address space", _UNLIMITED, _UNLIMITED, "bytes"),
    ("Max file locks", _UNLIMITED, _UNLIMITED, "locks"),
    ("Max pending signals", "{tasks}", "{tasks}", "signals"),
    ("Max msgqueue size", "819200", "819200", "bytes"),
    ("Max nice priority", "0", "0", ""),
    ("Max realtime priority", "0", "0", ""),
    ("Max realtime timeout", _UNLIMITED, _UNLIMITED, "us"),
)
_IO = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes")
_MOUNTS = "rootfs / rootfs rw 0 0\nproc /proc proc rw,relatime 0 0\n"


def stat(faces: Faces, pid: int, tid: int | None = None) -> str:
    """The 52 fields of fs/proc/array.c do_task_stat, of a process or of its thread tid."""
    process, mm = faces.host.process(pid), faces.host.counters(pid)
    thread = pid if tid is None else tid
    major = mm.major_faults
    # pgrp and session are the process's own; no terminal
    head = f"{thread} ({process.comm}) S {process.ppid} {pid} {pid} 0 -1 {PF_RANDOMIZE}"
    faults = f"{mm.faults - major} 0 {major} 0"
    times = f"0 0 0 0 {PRIORITY} 0 {process.threads} 0 {process.start_ns * TICKS_PER_SECOND // 10**9}"
    sizes = f"{mm.total_vm_bytes} {mm.rss_bytes >> 12} {NO_LIMIT}"
    code = f"0 0 {faces.host.walks.start_stack(pid)} 0 0"
    signals = "0 0 0 0 0 0 0"
    rest = f"{SIGCHLD if thread == pid else -1} 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
    return f"{head} {faults} {times} {sizes} {code} {signals} {rest}\n"


def statm(faces: Faces, pid: int) -> str:
    """fs/proc/task_mmu.c task_statm: seven numbers, in pages."""
    mm = faces.host.counters(pid)
    sizes = (
        *(mm.total_vm_bytes, mm.rss_bytes, mm.file_bytes + mm.shmem_bytes),
        *(mm.exec_vm_bytes, 0, mm.data_vm_bytes + mm.stack_vm_bytes, 0),
    )
    return " ".join(str(size >> 12) for size in sizes) + "\n"


def io(faces: Faces, pid: int) -> str:
    """do_io_accounting. What was read from swap is all that there is of I/O."""
    known = {"read_bytes": faces.host.counters(pid).swap_ins << 12}
    return "".join(f"{name}: {known.get(name, 0)}\n" for name in _IO)


def limits(faces: Faces, pid: int) -> str:
    """proc_pid_limits."""
    faces.host.process(pid)
    tasks = faces.host.limits.pid_max // 2
    head = f"{'Limit':25} {'Soft Limit':20} {'Hard Limit':20} {'Units':10}\n"
    return head + "".join(
        f"{name:25} {soft.format(tasks=tasks):20} {hard.format(tasks=tasks):20} {unit:10}\n"
        for name, soft, hard, unit in _LIMITS
    )


def cgroup(faces: Faces, pid: int) -> str:
    """proc_cgroup_show, of the unified hierarchy: the process's group."""
    group = faces.host.process(pid).group
    return f"0::/{group}\n"


def mounts(_faces: Faces, _obj: object) -> str:
    """show_vfsmnt: the machine has nothing but its root and proc."""
    return _MOUNTS


def schedstat(_faces: Faces, _obj: object) -> str:
    """proc_pid_schedstat, of what never ran."""
    return "0 0 0\n"


def wchan(_faces: Faces, _obj: object) -> str:
    """proc_pid_wchan, of what waits nowhere that is known."""
    return "0"


def exe(faces: Faces, pid: int) -> str:
    """proc_exe_link: the program; / where none of its files is mapped. ENOENT where the process is gone."""
    try:
        return faces.host.walks.program(pid) or "/"
    except NoSuchMm:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
