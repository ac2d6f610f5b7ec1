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


def status(faces: Faces, pid: int, tid: int | None = None) -> str:
    """The whole file, of a process or of its thread tid."""
    process, mm = faces.host.process(pid), faces.host.counters(pid)
    return _task(process, pid if tid is None else tid) + _memory(mm) + _signals(process)


def _task(process: Process, tid: int) -> str:
    """fs/proc/array.c:task_state(). A process of a trace sleeps: nothing here runs it."""
    pid = process.pid
    uid, gid = owner(process)
    return (
        f"Name:\t{escaped(process.comm)}\n"
        "Umask:\t0022\n"
        "State:\tS (sleeping)\n"
        f"Tgid:\t{pid}\n"
        "Ngid:\t0\n"
        f"Pid:\t{tid}\n"
        f"PPid:\t{process.ppid}\n"
        "TracerPid:\t0\n"
        f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        f"Gid:\t{gid}\t{gid}\t{gid}\t{gid}\n"
        "FDSize:\t0\n"
        "Groups:\t \n"
        f"NStgid:\t{pid}\n"
        f"NSpid:\t{tid}\n"
        f"NSpgid:\t{pid}\n"
        f"NSsid:\t{pid}\n"
        "Kthread:\t0\n"
    )


def owner(process: Process) -> tuple[int, int]:
    """uid and gid of a process; the daemon's own where the trace does not say."""
    uid = process.uid if process.uid >= 0 else os.geteuid()
    return uid, process.gid if process.gid >= 0 else os.getegid()


def escaped(comm: str) -> str:
    """fs/proc/array.c:proc_task_name() with escape: newline and backslash."""
    return comm.replace("\\", "\\\\").replace("\n", "\\n")


def memory_lines(mm: MmCounters) -> tuple[tuple[str, int], ...]:
    """(key, bytes) of the lines of fs/proc/task_mmu.c:task_mem(), in its order."""
    rss = mm.anon_bytes + mm.file_bytes + mm.shmem_bytes
    return (
        ("VmPeak", max(mm.hiwater_vm_bytes, mm.total_vm_bytes)),
        ("VmSize", mm.total_vm_bytes),
        ("VmLck", mm.locked_vm_bytes),
        ("VmPin", 0),
        ("VmHWM", max(mm.hiwater_rss_bytes, rss)),
        ("VmRSS", rss),
        ("RssAnon", mm.anon_bytes),
        ("RssFile", mm.file_bytes),
        ("RssShmem", mm.shmem_bytes),
        ("VmData", mm.data_vm_bytes),
        ("VmStk", mm.stack_vm_bytes),
        ("VmExe", mm.exec_vm_bytes),  # all that is executable: a trace does not say which part is the program's
        ("VmLib", 0),
        ("VmPTE", mm.pgtables_bytes),
        ("VmSwap", mm.swap_bytes),
        ("HugetlbPages", 0),
    )


def _memory(mm: MmCounters) -> str:
    lines = "".join(f"{key}:\t{value >> 10:8d} kB\n" for key, value in memory_lines(mm))
    return lines + "CoreDumping:\t0\nTHP_enabled:\t0\n"


def _signals(process: Process) -> str:
    """fs/proc/array.c:task_sig() and task_context_switch_counts(): no signals, no switches here."""
    masks = "".join(f"{key}:\t{NO_SIGNALS}\n" for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"))
    return (
        f"Threads:\t{process.threads}\n"
        "SigQ:\t0/0\n" + masks + "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
    )
