"""PID/ of a live host: the kernel's own directory of the process, and what pterefd knows of its page tables."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from pterefd.errors import NoSuchMm
from pterefd.live.host import LiveHost
from pterefd.live.scan import start_time
from pterefd.procfs import ids
from pterefd.procfs.caller import Own
from pterefd.procfs.live.caller import LiveCallers, Task
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.live.passed import Place, Rendered, check_reading, directory, file, link, mirrored
from pterefd.procfs.own import openable
from pterefd.procfs.task import name_to_pid
from pterefd.procfs.tree import Attributes, Dir, Family, File, Link, Opened

PAGEMAP = "pagemap"  # what the numbers are made of: who may not open it does not see them either

# -- what a watch knows ----------------------------------------------------------------------------


def _is_watched(faces: LiveFaces, task: Task) -> bool:
    """Whether it has memory, and the configuration matches it."""
    try:
        faces.host.process(task.tgid)
    except NoSuchMm:
        return False
    return True


def _pagemap(faces: LiveFaces, task: Task) -> Attributes:
    return faces.callers.stat(task, PAGEMAP)


def _known(name: str, help: str, tell: Callable[[LiveHost, int], object], unit: str = "bytes") -> File:
    """tell: of the host and a pid what is known; None: nothing, which reads as ENODATA."""

    def opened(faces: LiveFaces, task: Task, flags: int) -> Opened:
        check_reading(flags)
        began = start_time(task.tgid)
        os.close(faces.callers.open(task, PAGEMAP))

        def render() -> bytes:
            if faces.host.process(task.tgid).start_time != began:
                raise NoSuchMm(f"{task.tgid}: not the process that was opened")
            known = tell(faces.host, task.tgid)
            if known is None:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
            return f"{known}\n".encode()

        return Rendered(render)

    return File(name, 0o400, help, unit=unit, exists=_is_watched, stat=_pagemap, open=opened)


def _scanned(field: str, *, of_zero_pages: bool = False) -> Callable[[LiveHost, int], int | None]:
    def tell(host: LiveHost, pid: int) -> int | None:
        numbers = host.numbers(pid)
        if numbers.age_seconds is None or (of_zero_pages and not numbers.told):
            return None
        return int(getattr(numbers, field))

    return tell


def _age_ms(host: LiveHost, pid: int) -> int | None:
    age = host.numbers(pid).age_seconds
    return None if age is None else int(1000 * age)


def _why(host: LiveHost, pid: int) -> str:
    return host.process(pid).why


RECLAIMABLE = _known(
    "reclaimable_pt_bytes",
    "PTE pages that free_ptes could free: empty, zero.",
    _scanned("reclaimable_pt_bytes"),
)

PT_RECLAIM = Dir(
    "pt_reclaim",
    (
        _known(
            "pgtables_bytes",
            "Page-table pages of the mm: PTE, PMD and PUD pages, 4096 bytes each.",
            lambda host, pid: host.numbers(pid).pgtables_bytes,
        ),
        _known("empty_bytes", "Tables without any entry.", _scanned("empty_bytes")),
        _known(
            "zero_bytes",
            "PTE pages whose 512 entries all map the shared zero page; ENODATA where the kernel does not tell them.",
            _scanned("zero_bytes", of_zero_pages=True),
        ),
        _known(
            "mixed_bytes",
            "PTE pages whose entries are zero-page ones and none, both kinds.",
            _scanned("mixed_bytes", of_zero_pages=True),
        ),
        _known(
            "unlocated_bytes",
            "Tables that may belong to mappings which the kernel does not show. Never freed.",
            _scanned("unlocated_bytes"),
        ),
        _known("age_ms", "How long ago it was scanned; pgtables_bytes is as of the last look.", _age_ms, "ms"),
        _known(
            "not_freed",
            "Why nothing was freed the last time that it was to be; an empty line where that went well, or never was.",
            lambda host, pid: host.why_not_freed(pid),
            "",
        ),
        _known("not_seen", "Why it could not be scanned; an empty line where it was.", _why, ""),
    ),
    "Page-table memory of the mm, by kind, as of the last scan; ENODATA before that.",
    exists=_is_watched,
    mode=0o500,
)

# -- the kernel's own ------------------------------------------------------------------------------


def _links_of(directory: str, label: str, help: str) -> Family:
    def names(faces: LiveFaces, task: Task) -> Iterable[str]:
        return faces.callers.names_of(task, directory)

    def find(faces: LiveFaces, task: Task, name: str) -> Place | None:
        path = f"{directory}/{name}"
        return Place(task, path) if faces.callers.has(task, path) else None

    def target(faces: LiveFaces, place: Place) -> str:
        task, path = place
        assert task is not None
        reads = faces.callers.readlink(task, path)
        is_descriptor = directory == "fd" and task.is_own and "/" not in task.directory
        return openable(reads, path.removeprefix("fd/")) if is_descriptor else reads

    def stat(faces: LiveFaces, place: Place) -> Attributes:
        return faces.callers.stat(*place)

    return Family(label, help, names, find, Link(label, help, target, stat=stat))


def _stat(them: LiveCallers, text: bytes, task: Task) -> bytes:
    return ids.stat(them, text, them.slurp(f"{task.directory}/status"), task.level)


def _status(them: LiveCallers, text: bytes, task: Task) -> bytes:
    return ids.status(them, text, task.level)


def _children(them: LiveCallers, text: bytes, task: Task) -> bytes:
    return ids.children(them, text, task.level)


_OF_A_THREAD = (
    file("stat", "Ids, times and memory, in one line.", rewrite=_stat),
    file(
        "status",
        "Names, ids and memory, in lines.",
        rewrite=_status,
    ),
    file("statm", "Memory in pages."),
    file("comm", "Name.", 0o644),
    file("cmdline", "Arguments, each ended by a NUL."),
    file("environ", "Environment, each variable ended by a NUL.", 0o400),
    file("auxv", "What the kernel told the program at its start.", 0o400),
    file("maps", "Mappings."),
    file("smaps", "Mappings and what is resident of each."),
    file("smaps_rollup", "The sums of smaps."),
    file("numa_maps", "Mappings and the nodes that hold them."),
    file("pagemap", "An entry of 64 bits for each page.", 0o400),
    file("io", "Bytes read and written.", 0o400),
    file("limits", "Resource limits."),
    file("cgroup", "Control groups."),
    file("cpuset", "Path of its cpuset."),
    file("wchan", "Where in the kernel it waits."),
    file("stack", "Its stack in the kernel.", 0o400),
    file("syscall", "The system call it is in.", 0o400),
    file("personality", "Execution domain.", 0o400),
    file("sched", "Of the scheduler.", 0o644),
    file("schedstat", "Times on the CPU and waiting for it."),
    file("mounts", "Mounts of its mount namespace."),
    file("mountinfo", "Mounts of its mount namespace, with their ids."),
    file("mountstats", "Mounts of its mount namespace, with their statistics.", 0o400),
    file("oom_score", "How likely the kernel's OOM killer is to take it."),
    file("oom_score_adj", "What is added to its score.", 0o644),
    file("oom_adj", "The same on an older scale.", 0o644),
    file("uid_map", "Users of its user namespace.", 0o644),
    file("gid_map", "Groups of its user namespace.", 0o644),
    file("projid_map", "Projects of its user namespace.", 0o644),
    file("setgroups", "Whether its user namespace may set groups.", 0o644),
    file("loginuid", "The user who logged in.", 0o644),
    file("sessionid", "The audit session."),
    file("ksm_stat", "Of merging same pages.", 0o400),
    file("ksm_merging_pages", "Pages that are merged.", 0o400),
    file("arch_status", "Of the processor."),
    file("children", "Children of the thread.", rewrite=_children),
    link("exe", "Its program."),
    link("cwd", "Its working directory."),
    link("root", "Its root directory."),
    directory("fd", "Open descriptors.", _links_of("fd", "FD", "What a descriptor leads to."), mode=0o500),
    mirrored("fdinfo", "Of open descriptors.", "Position and flags of a descriptor."),
    directory("ns", "Namespaces.", _links_of("ns", "KIND", "A namespace."), mode=0o511),
    mirrored("attr", "Of security modules.", "A label."),
    mirrored("net", "Its network namespace.", "Of its network namespace."),
)

_OF_A_PROCESS = (
    file("autogroup", "Scheduling group of its session.", 0o644),
    file("coredump_filter", "What a core dump holds.", 0o644),
    file("timens_offsets", "Clocks of its time namespace.", 0o644),
    file("timers", "POSIX timers."),
    file("timerslack_ns", "How late its timers may be.", 0o666),
    directory(
        "map_files", "Mapped files, by address.", _links_of("map_files", "RANGE", "What is mapped there."), mode=0o500
    ),
)


def _thread_names(faces: LiveFaces, task: Task) -> Iterable[str]:
    return [str(thread.thread) for thread in faces.callers.threads(task)]


def _find_thread(faces: LiveFaces, task: Task, name: str) -> Task | None:
    tid = name_to_pid(name)
    return None if tid is None else faces.callers.thread(task, tid)


def _itself(faces: LiveFaces, task: Task) -> Attributes:
    return faces.callers.stat(task)


PID = Dir(
    "PID",
    (
        RECLAIMABLE,
        PT_RECLAIM,
        *_OF_A_THREAD,
        *_OF_A_PROCESS,
        directory(
            "task",
            "Threads.",
            Family(
                "TID",
                "One directory per thread.",
                _thread_names,
                _find_thread,
                Dir("TID", _OF_A_THREAD, stat=_itself),
            ),
        ),
    ),
    stat=_itself,
)


def _names(faces: LiveFaces, _: object) -> Iterable[str]:
    return [str(number) for number, pid in faces.callers.numbers().items() if faces.shows(pid)]


def _find(faces: LiveFaces, _: object, name: str) -> Task | None:
    number = name_to_pid(name)
    task = None if number is None else faces.callers.task(number)
    return task if task is not None and (task.is_own or faces.shows(task.tgid)) else None


PIDS = Family("PID", "One directory per process that the caller sees, named by its pid for him.", _names, _find, PID)


# -- whoever asks ----------------------------------------------------------------------------------


def _own(faces: LiveFaces) -> Own:
    own = faces.callers.caller().own
    if own is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return own


SELF = (
    Link("self", "The caller's own directory; none where he cannot be seen.", lambda faces, _: _own(faces).name),
    Link(
        "thread-self",
        "The calling thread's own directory.",
        lambda faces, _: f"{_own(faces).name}/task/{_own(faces).thread}",
    ),
    Link("mounts", "self/mounts", lambda *_: "self/mounts"),
    Link("net", "self/net", lambda *_: "self/net"),
)
