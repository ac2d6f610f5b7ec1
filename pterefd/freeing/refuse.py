"""Which processes are left alone, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from pterefd.freeing.errors import PutOff, Refused
from pterefd.freeing.spans import Run
from pterefd.live import procmem, ptrace
from pterefd.live.scan import pids, with_memory

# Whoever has one of these can have its memory written while it stands: label -> beginnings of what descriptors lead to.
WRITERS = {
    "io_uring": ("anon_inode:[io_uring]",),
    "userfaultfd": ("anon_inode:[userfaultfd]", "/dev/userfaultfd"),
    "kvm": ("/dev/kvm", "anon_inode:kvm-"),
    "vhost": ("/dev/vhost",),
    "vfio": ("/dev/vfio/", "anon_inode:[vfio"),
    "iommufd": ("/dev/iommu",),
    "rdma": ("/dev/infiniband/", "anon_inode:[infinibandevent]"),
    "aio": (),  # told by its ring, a mapping
}
_AIO_RING = "/[aio]"
_SPARE_MAPPINGS = 16


def living(pid: int) -> int:
    """A thread of a process that has its memory: the first one may have ended. ProcessLookupError: there is none."""
    tid = with_memory(pid)
    if tid is None:
        raise ProcessLookupError(pid)
    return tid


def check(pid: int, accepted: Iterable[str]) -> None:
    """Refused, PutOff; ProcessLookupError, FileNotFoundError where it is gone. accepted: writers that may be there."""
    living_tid = with_memory(pid)
    if living_tid is None:
        raise PutOff("no memory", f"{pid}: has no memory of its own: a kernel thread, or about to end")
    if procmem.is_32bit(living_tid):
        raise Refused("32bit", f"{pid}: a 32-bit program")
    for tid in procmem.tasks(pid):
        with suppress(*procmem.GONE):
            _check_thread(pid, _status(pid, tid))
    if found := set(_writers(living_tid)) - set(accepted):
        names = ", ".join(sorted(found))
        raise Refused("writers", f"{pid}: {names}: may write to its memory while it stands (`writers` accepts it)")


def _status(pid: int, tid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="surrogateescape") as file:
        return dict(line.rstrip("\n").partition(":\t")[::2] for line in file)


def _check_thread(pid: int, status: dict[str, str]) -> None:
    if status["State"][0] in "ZX":
        raise ProcessLookupError(pid)
    if status.get("Seccomp", "0") != "0":
        raise Refused("seccomp", f"{pid}: a seccomp filter may end it for calls that it does not make itself")
    if status.get("TracerPid", "0") != "0":
        raise Refused("traced", f"{pid}: is traced by {status['TracerPid']}")
    if "shstk" in status.get("x86_Thread_features", ""):
        raise Refused("shadow stack", f"{pid}: has a shadow stack")
    if status["State"][0] in "Tt":
        raise PutOff("stopped", f"{pid}: is stopped")


def _writers(tid: int) -> Iterable[str]:
    for fd in os.listdir(f"/proc/{tid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{tid}/fd/{fd}")
            yield from (name for name, begins in WRITERS.items() if target.startswith(begins))
    with open(f"/proc/{tid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        if any(line.rstrip("\n").endswith(_AIO_RING) or f"{_AIO_RING} " in line for line in file):
            yield "aio"


def sharers(pid: int) -> list[int]:
    """The processes that have this very mm, pid first: it and those of clone(CLONE_VM)."""
    found, tid = [pid], living(pid)
    for other in pids():
        if other == pid:
            continue
        shares = ptrace.shares_mm(tid, other)
        if shares is None and os.path.exists(f"/proc/{pid}") and not _KCMP:
            raise Refused("kcmp", "this kernel does not tell who shares memory (CONFIG_KCMP)")
        if shares:
            found.append(other)
    return found


_KCMP = ptrace.shares_mm(os.getpid(), os.getpid()) is not None


def check_limits(pid: int, mappings: int, runs: Sequence[Run], length: int) -> None:
    """That there is room for as many mappings, and bytes of address space, as it takes for the moment. PutOff."""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        most = int(file.read())
    if mappings + 2 * len(runs) + _SPARE_MAPPINGS > most:
        raise PutOff("mappings", f"{pid}: has {mappings} mappings, too near to vm.max_map_count ({most})")
    moved = length + sum(run.end - run.start for run in runs)
    # Not by prlimit(2), which takes CAP_SYS_RESOURCE for other users' processes.
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        limits = [line[_LIMIT_AT:].split()[0] for line in file if line.startswith(_LIMITS)]
    if any(soft != "unlimited" and _vm_size(pid) + moved > int(soft) for soft in limits):
        raise PutOff("limits", f"{pid}: its limit of address space leaves no room")


_LIMITS = ("Max address space", "Max data size")
_LIMIT_AT = 26  # fs/proc/base.c proc_pid_limits(): behind the names


def _vm_size(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * procmem.PAGE
