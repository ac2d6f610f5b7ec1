"""The caller's own directory: what `self` leads to, and what a process finds under its own pid.

A name N is the simulated process N for everybody but the process whose pid, in its own pid namespace, is N:
that one finds itself, as ps and top insist. It is a directory like PID, with files of the same names and sorts,
and what it shows is decided when it is read, by who reads; so what the kernel remembers of the path N (mode,
owner) is right for all. It is never listed. What it holds is the kernel's own /proc of the process, with its ids as
its own pid namespace has them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from pterefd.errors import NoSuchMm
from pterefd.procfs import ids
from pterefd.procfs.caller import NsIds, Own
from pterefd.procfs.faces import Faces
from pterefd.procfs.status import owner
from pterefd.procfs.tree import Dir, Family, File, Link

# `pterefd shell` mounts the kernel's own /proc here. Not below sys, where `sysctl -a` would walk through it.
KERNELS_PROC = "hostproc"


# -- files whose ids are rewritten -----------------------------------------------------------------


def _stat(faces: Faces, own: Own) -> bytes:
    text = faces.callers.read(own, "stat")
    return ids.stat(faces.callers, text, faces.callers.read(own, "status"), own.level)


def _status(faces: Faces, own: Own) -> bytes:
    return ids.status(faces.callers, faces.callers.read(own, "status"), own.level)


# -- what is passed through ------------------------------------------------------------------------


def _passed(name: str, help: str, mode: int = 0o444) -> File:
    return File(name, mode, help, read=lambda faces, own: faces.callers.read(own, name))


def _passed_link(name: str, help: str, target: str | None = None) -> Link:
    return Link(name, help, lambda faces, own: os.readlink(faces.callers.path(own, target or name)))


class Descriptor(NamedTuple):
    """An open descriptor of the caller."""

    own: Own
    name: str


def _descriptors(faces: Faces, own: Own) -> list[str]:
    return faces.callers.names(own, "fd")


def _find_descriptor(faces: Faces, own: Own, name: str) -> Descriptor | None:
    if not name.isdecimal():
        return None
    try:
        os.lstat(faces.callers.path(own, f"fd/{name}"))
    except FileNotFoundError:
        return None
    except PermissionError:
        pass  # the daemon is another user: whether it is there, the kernel's own link will tell
    return Descriptor(own, name)


def _descriptor(faces: Faces, descriptor: Descriptor) -> str:
    """What it reads as, if that is a path. A pipe's or a socket's name is none: that leads to the kernel's own link.

    Differs from Linux: that link can be opened in `pterefd shell` alone, which puts the kernel's /proc in its place.
    """
    own, name = descriptor
    target = ""
    with suppress(PermissionError):
        target = os.readlink(faces.callers.path(own, f"fd/{name}"))
    return openable(target, name)


def openable(target: str, name: str) -> str:
    """Where a link to what a descriptor of the caller's reads as leads: see _descriptor()."""
    if target.startswith("/") and not target.endswith(" (deleted)"):
        return target
    return f"../../{KERNELS_PROC}/self/fd/{name}"


def _threads(faces: Faces, own: Own) -> list[str]:
    tids = faces.callers.names(own, "task")
    return tids if not own.level else [str(task.thread) for task in _tasks(faces, own, tids)]


def _find_thread(faces: Faces, own: Own, name: str) -> Own | None:
    if not name.isdecimal():
        return None
    tids = [name] if not own.level else faces.callers.names(own, "task")
    return next((task for task in _tasks(faces, own, tids) if str(task.thread) == name), None)


def _tasks(faces: Faces, own: Own, tids: Iterable[str]) -> Iterator[Own]:
    """Threads of the caller, by their ids in the daemon's pid namespace; without those that have ended."""
    for tid in tids:
        directory = f"{own.tgid}/task/{tid}"
        try:
            thread = NsIds.of(faces.callers.slurp(f"{directory}/status")).pid[own.level]
        except OSError:
            continue
        yield replace(own, thread=thread, directory=directory)


def _owner(faces: Faces, own: Own) -> tuple[int, int]:
    """Of the simulated process of that number, where there is one: the kernel remembers one owner for all who ask."""
    try:
        return owner(faces.host.process(own.number))
    except NoSuchMm:
        status = os.stat(f"{faces.callers.proc}/{own.tgid}")
        return status.st_uid, status.st_gid


_DESCRIPTORS = Family(
    "FD",
    "What a descriptor leads to.",
    _descriptors,
    _find_descriptor,
    Link("FD", "", _descriptor),
    lambda faces, descriptor: _owner(faces, descriptor.own),
)

_OF_A_THREAD = (
    File("stat", 0o444, "Ids, times and memory, in one line.", read=_stat),
    File("status", 0o444, "Names, ids and memory, in lines.", read=_status),
    _passed("statm", "Memory in pages."),
    _passed("comm", "Name."),
    _passed("cmdline", "Arguments, each ended by a NUL."),
    _passed("environ", "Environment, each variable ended by a NUL.", 0o400),
    _passed("maps", "Mappings."),
    _passed("smaps", "Mappings and what is resident of each."),
    _passed("smaps_rollup", "The sums of smaps."),
    _passed("io", "Bytes read and written.", 0o400),
    _passed("limits", "Resource limits."),
    _passed("cgroup", "Control group."),
    _passed("wchan", "Where in the kernel it waits."),
    _passed("schedstat", "Times on the CPU and waiting for it."),
    _passed("mounts", "Mounts of its mount namespace."),
    _passed("mountinfo", "Mounts of its mount namespace, with their ids."),
    _passed("oom_score", "How likely the kernel's OOM killer is to take it."),
    _passed("oom_score_adj", "What is added to its score."),
    _passed_link("exe", "Its program."),
    _passed_link("cwd", "Its working directory."),
    _passed_link("root", "Its root directory."),
)

OWN_DIRECTORY = Dir(
    "OWN",
    (
        *_OF_A_THREAD,
        Dir("fd", (_DESCRIPTORS,), "Open descriptors."),
        Dir("ns", (_passed_link("pid", "Its pid namespace.", "ns/pid"),), "Namespaces."),
        Dir(
            "task",
            (Family("TID", "One directory per thread.", _threads, _find_thread, Dir("TID", _OF_A_THREAD)),),
            "Threads.",
        ),
    ),
)


def _find(faces: Faces, _: object, name: str) -> Own | None:
    if not name.isdecimal():
        return None
    own = faces.callers.own()
    return own if own is not None and own.name == name else None


def _lowest(faces: Faces) -> int:
    """Where `self` leads who is not known."""
    pid = min(faces.host.pids(), default=None)
    if pid is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return pid


def _self(faces: Faces, _: object) -> str:
    own = faces.callers.own()
    return str(_lowest(faces)) if own is None else own.name


def _thread_self(faces: Faces, _: object) -> str:
    own = faces.callers.own()
    if own is None:
        pid = _lowest(faces)
        return f"{pid}/task/{pid}"
    return f"{own.name}/task/{own.thread}"


def _nobody(*_: object) -> Iterable[str]:
    return ()


OWN = (
    Link("self", "The caller's own directory; the lowest pid here where the caller cannot be seen.", _self),
    Link("thread-self", "The calling thread's own directory.", _thread_self),
    Link("mounts", "self/mounts", lambda *_: "self/mounts"),
    # Stands before the simulated pids: who finds a name first has it.
    Family(
        "OWN",
        "The caller's own pid: the real process that asks, for itself alone. Not listed.",
        _nobody,
        _find,
        OWN_DIRECTORY,
        _owner,
    ),
)

KERNELS_OWN = Family(
    KERNELS_PROC,
    "Empty, and not listed: `pterefd shell` mounts the kernel's own /proc here.",
    _nobody,
    lambda _, __, name: True if name == KERNELS_PROC else None,
    Dir(KERNELS_PROC, ()),
)
