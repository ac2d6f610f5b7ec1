"""The place of the mount: what may be mounted on, what a killed daemon left, and unmounting."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pterefd.errors import BadInput, Missing

FSTYPE = "fuse.pterefd"
DEVICE = "/dev/fuse"
ANSWER_SECONDS = 2.0
BUSY_SECONDS = 0.5  # how long a mount that is in use may stay so before it is detached
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)  # nobody serves the mount any more
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo. options: the file system's own, such as user_id=0."""

    number: int
    point: str
    fstype: str
    source: str
    options: tuple[str, ...]


def mounts(mountinfo: str | None = None) -> list[MountEntry]:
    """What is mounted here, in order of mounting. The kernel writes blanks and the like as \\040."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    entries = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        number, _, _, _, point = before.split(" ")[:5]
        fstype, source, options = after.split(" ")[:3]
        entries.append(
            MountEntry(int(number), _unescaped(point), fstype, _unescaped(source), tuple(options.split(",")))
        )
    return entries


def topmost(point: str) -> MountEntry | None:
    """What is seen at point, where something is mounted there."""
    return next((entry for entry in reversed(mounts()) if entry.point == point), None)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def absolute(point: str | Path) -> str:
    """The path as mountinfo names it. Asks nothing of a mount of ours there: its daemon may be dead."""
    path = Path(os.path.abspath(point))
    plain = str(path.parent.resolve() / path.name)
    return plain if is_ours(plain) else str(path.resolve())


def is_ours(point: str) -> bool:
    """Whether the topmost mount at point is pterefd's."""
    there = topmost(point)
    return there is not None and there.fstype == FSTYPE


def prepare(point: str) -> bool:
    """See that the tree can be mounted at point; True where a dead daemon's mount was taken away first.

    BadInput for what is no empty directory. Missing where another daemon lives there, or FUSE is not
    to be had. Nothing is changed where it raises, but for a dead mount.
    """
    recovered = False
    while is_dead(point):
        unmount(point, detach=True)
        recovered = True
    _check_directory(point)
    check_fuse()
    return recovered


def is_dead(point: str) -> bool:
    """Whether a daemon that is gone has left its mount at point. Missing where it lives."""
    if not is_ours(point):
        return False
    if answer(point) not in DEAD:
        raise Missing(f"{point}: {_resident(point)} is mounted there")
    return True


def answer(point: str) -> int | None:
    """errno of stat(point), 0 where it works, None where nothing came (a stopped daemon)."""
    found = _in_time(lambda: os.stat(point))
    return 0 if isinstance(found, os.stat_result) else found


def _in_time(ask: Callable[[], Any]) -> Any:
    """What ask() gave, the errno of what it raised, None where nothing came: it is asked in a thread that may hang."""
    answers: list[Any] = []

    def asking() -> None:
        try:
            answers.append(ask())
        except OSError as e:
            answers.append(e.errno or errno.EIO)

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else None


def _resident(point: str) -> str:
    pid = _in_time(Path(point, "sys/pterefd/pid").read_text)  # stat may have been answered from the kernel's cache
    if pid is None:
        return "a pterefd that does not answer"
    return f"another pterefd (pid {pid.strip()})" if isinstance(pid, str) else "another pterefd"


def _check_directory(point: str) -> None:
    try:
        mode = os.stat(point).st_mode
    except FileNotFoundError:
        raise BadInput(f"{point}: mount point does not exist (mkdir it first)") from None
    except OSError as e:
        raise BadInput(f"{point}: mount point cannot be used: {e.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise BadInput(f"{point}: mount point is not a directory")
    try:
        if os.listdir(point):
            raise BadInput(f"{point}: mount point is not empty")
    except PermissionError:
        raise BadInput(f"{point}: mount point cannot be read") from None
    if not os.access(point, os.W_OK):
        raise BadInput(f"{point}: mount point cannot be written to, which fusermount3 asks for")


def check_fuse() -> None:
    """Missing where FUSE cannot be used here; says what to do about it."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise Missing(f"{DEVICE}: not there; load the fuse module, or let the container have the device") from None
    except OSError as e:
        raise Missing(f"{DEVICE}: {e.strerror}; run as root, or let this user open it") from None
    if os.geteuid() != 0 and _fusermount() is None:
        raise Missing("fusermount3: not found; install fuse3")


def check_allow_other() -> None:
    """Missing where fusermount3 would refuse allow_other to this user."""
    if os.geteuid() == 0:
        return
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise Missing("allow_other: /etc/fuse.conf has no user_allow_other, which users other than root need")


def _fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def unmount(point: str, *, detach: bool = False) -> bool:
    """Unmount point. Where somebody stays inside, end their connection and detach it: False.

    Whoever is only reading a file just now is waited for. detach: at once so, for a mount whose daemon is
    dead. A mount that is gone already is no error.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while not detach:
        if _umount(point, 0) or not is_ours(point):
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    _umount(point, MNT_FORCE | MNT_DETACH)
    return False


def _umount(point: str, flags: int) -> bool:
    if os.geteuid() == 0:
        return bool(_libc.umount2(os.fsencode(point), flags | UMOUNT_NOFOLLOW) == 0)
    program = _fusermount()
    if program is None:
        return False
    command = [program, "-u", *(["-z"] if flags else []), "--", point]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
