"""PID/task/TID/: one directory per thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pterefd.errors import NoSuchMm
from pterefd.procfs.faces import Faces
from pterefd.procfs.stat import cgroup, io, limits, mounts, schedstat, stat, statm, wchan
from pterefd.procfs.status import owner, status
from pterefd.procfs.tree import Content, Dir, Family, File

_PID_DIGITS = 10


class Task(NamedTuple):
    """A thread of a process."""

    pid: int
    tid: int


def name_to_pid(name: str) -> int | None:
    """fs/proc/generic.c:name_to_int(): decimal digits without a leading zero."""
    if not (name.isascii() and name.isdecimal()) or name[0] == "0" or len(name) > _PID_DIGITS:
        return None
    return int(name)


def _of_process(read: Callable[[Faces, int], str]) -> Callable[[Faces, Task], str]:
    """What all threads of a process show alike."""
    return lambda faces, task: read(faces, task.pid)


def comm(faces: Faces, pid: int) -> str:
    """proc_pid_comm."""
    return faces.host.process(pid).comm + "\n"


def set_comm(_faces: Faces, _obj: object, _text: str) -> None:
    """fs/proc/base.c comm_write: only a thread of the process itself may."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def cmdline(faces: Faces, pid: int) -> str:
    """proc_pid_cmdline."""
    return "".join(arg + "\0" for arg in faces.host.process(pid).cmdline)


def _find(faces: Faces, pid: int, name: str) -> Task | None:
    tid = name_to_pid(name)
    try:
        process = faces.host.process(pid)
    except NoSuchMm:
        return None
    return Task(pid, tid) if tid is not None and (tid == pid or tid in process.tids) else None


def _names(faces: Faces, pid: int) -> Iterable[str]:
    return map(str, sorted({pid, *faces.host.process(pid).tids.copy()}))


def _owner(faces: Faces, task: Task) -> tuple[int, int]:
    return owner(faces.host.process(task.pid))


def _serial(faces: Faces, task: Task) -> int:
    """Its process's: a tid that is used anew within a process is not told apart."""
    return faces.host.process(task.pid).serial


def text(name: str, help: str, read: Callable[[Any, Any], str]) -> File:
    """A file that everybody may read."""
    return File(name, 0o444, help, read=read)


TASK = Dir(
    "TID",
    (
        text("stat", "As PID/stat.", lambda faces, task: stat(faces, task.pid, task.tid)),
        text("status", "As PID/status.", lambda faces, task: status(faces, task.pid, task.tid)),
        text("statm", "As PID/statm.", _of_process(statm)),
        File("comm", 0o644, "As PID/comm.", Content.STRING, read=_of_process(comm), write=set_comm),
        text("cmdline", "As PID/cmdline.", _of_process(cmdline)),
        text("cgroup", "As PID/cgroup.", _of_process(cgroup)),
        File("io", 0o400, "As PID/io.", read=_of_process(io)),
        text("limits", "As PID/limits.", _of_process(limits)),
        text("schedstat", "As PID/schedstat.", schedstat),
        text("wchan", "As PID/wchan.", wchan),
        text("mounts", "As PID/mounts.", mounts),
    ),
)

TASKS = Dir(
    "task",
    (Family("TID", "One directory per thread, named by its tid.", _names, _find, TASK, _owner, _serial),),
    "Threads of the process.",
)
