"""PID/status, in the kernel's lines and spacing: fs/proc/array.c and fs/proc/task_mmu.c.

Lines about what is not simulated (capabilities, seccomp, CPUs, speculation) are left out rather
than made up; a test compares every other line with the running kernel's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pterefd.host.counters import MmCounters
    from pterefd.host.process import Process
    from pterefd.procfs.faces import Faces

NO_SIGNALS = "0" * 16


# fs/proc/array.c:task_state(). A process of a trace sleeps: nothing here runs it.
_TASK = (
    "Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t%d\nNgid:\t0\nPid:\t%d\nPPid:\t%d\nTracerPid:\t0\n"
    "Uid:\t%d\t%d\t%d\t%d\nGid:\t%d\t%d\t%d\t%d\nFDSize:\t0\nGroups:\t \n"
    "NStgid:\t%d\nNSpid:\t%d\nNSpgid:\t%d\nNSsid:\t%d\nKthread:\t0\n"
)
# fs/proc/task_mmu.c:task_mem(), in its order
MEMORY_KEYS = (
    *("VmPeak", "VmSize", "VmLck", "VmPin", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"),
    *("VmData", "VmStk", "VmExe", "VmLib", "VmPTE", "VmSwap", "HugetlbPages"),
)
_MEMORY = "".join(f"{key}:\t%8d kB\n" for key in MEMORY_KEYS) + "CoreDumping:\t0\nTHP_enabled:\t%d\n"
# fs/proc/array.c:task_sig() and task_context_switch_counts(): no signals, no switches here
_SIGNALS = (
    "Threads:\t%d\nSigQ:\t0/0\n"
    + "".join(f"{key}:\t{NO_SIGNALS}\n" for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"))
    + "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
)
_ALL = _TASK + _MEMORY + _SIGNALS


def status(faces: Faces, pid: int, tid: int | None = None) -> str:
    """The whole file, of a process or of its thread tid: read most of all files, so made in one go."""
    process, mm = faces.host.process(pid), faces.host.counters(pid)
    uid, gid = owner(process)
    thread = pid if tid is None else tid
    return _ALL % (
        *(escaped(process.comm), pid, thread, process.ppid, uid, uid, uid, uid, gid, gid, gid, gid),
        *(pid, thread, pid, pid),
        *memory_sizes(mm),
        not mm.thp_disabled,
        process.threads,
    )


def owner(process: Process) -> tuple[int, int]:
    """uid and gid of a process; the daemon's own where the trace does not say."""
    uid = process.uid if process.uid >= 0 else os.geteuid()
    return uid, process.gid if process.gid >= 0 else os.getegid()


def escaped(comm: str) -> str:
    """fs/proc/array.c:proc_task_name() with escape: newline and backslash."""
    return comm.replace("\\", "\\\\").replace("\n", "\\n")


def memory_sizes(mm: MmCounters) -> tuple[int, ...]:
    """kB of the lines of memory, in their order."""
    rss = mm.anon_bytes + mm.file_bytes + mm.shmem_bytes
    return (
        max(mm.hiwater_vm_bytes, mm.total_vm_bytes) >> 10,
        mm.total_vm_bytes >> 10,
        mm.locked_vm_bytes >> 10,
        0,
        max(mm.hiwater_rss_bytes, rss) >> 10,
        rss >> 10,
        mm.anon_bytes >> 10,
        mm.file_bytes >> 10,
        mm.shmem_bytes >> 10,
        mm.data_vm_bytes >> 10,
        mm.stack_vm_bytes >> 10,
        mm.exec_vm_bytes >> 10,  # all that is executable: a trace does not say which part is the program's
        0,
        mm.pgtables_bytes >> 10,
        mm.swap_bytes >> 10,
        0,
    )
