"""A client that asks a mounted tree and the kernel's /proc the same, as some user, and says where the answers differ.

    as_kernel.py WHO MOUNT PROC PATH...     PATH: a file or directory below both; self is the client itself

Prints JSON: differences, how many answers there were, and how often each errno was one. Standard library only. What
moves may answer as the kernel does before or after it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

PR_SET_DUMPABLE, CLONE_NEWUSER, SYS_CAPSET_VERSION = 4, 0x10000000, 0x20080522
CAP_SYS_PTRACE = 19
NOBODY, SOMEBODY = 65534, 1234
libc = ctypes.CDLL(None, use_errno=True)
# Not passed through: they change the process, or are its memory.
NOT_THERE = {"mem", "clear_refs", "reclaimable_pt_bytes", "pt_reclaim"}
# Times and counts of what runs all the time, the one who asks among them.
MOVING = {"arch_status", "net", "io", "oom_score", "sched", "schedstat", "numa_maps", "smaps", "smaps_rollup"}
MOVING |= {"statm", "stat", "status", "pagemap"}


def become(who: str) -> None:
    """Be that one from now on."""
    os.chdir("/")
    if who == "weak root":
        _drop(CAP_SYS_PTRACE)
        return
    if who != "root":
        uid = SOMEBODY if who == "somebody" else NOBODY
        os.setgroups([uid + 1])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if who != "undumpable":  # as whoever changed his user is
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if who == "root of a user namespace" and libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def _drop(capability: int) -> None:
    header = struct.pack("Ii", SYS_CAPSET_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    libc.capget(header, data)
    words = list(struct.unpack("6I", data.raw))
    for word in (0, 1):  # effective, permitted
        words[word] &= ~(1 << capability)
    if libc.capset(header, struct.pack("6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")


def answer(ask: Callable[[], Any]) -> Any:
    """What it gives, or the errno's name."""
    try:
        return ask()
    except OSError as e:
        return errno.errorcode[e.errno or 0]


def look(path: str) -> tuple[str, Any]:
    """The sort of a file, and what it says: mode and owner, and target, names or content, or an errno."""
    status = answer(lambda: os.lstat(path))
    if isinstance(status, str):
        return "none", [status]
    shown = [oct(status.st_mode), status.st_uid, status.st_gid]
    name = os.path.basename(path)
    if stat.S_ISLNK(status.st_mode):
        return "link", [*shown, answer(lambda: os.readlink(path))]
    if stat.S_ISDIR(status.st_mode):
        names = answer(lambda: sorted(set(os.listdir(path)) - NOT_THERE))
        return "directory", [*shown, names]
    moving = name in MOVING or "/net/" in path
    return "file", [*shown, answer(lambda: read(path, 4096 if moving else 1 << 20, moving))]


def read(path: str, size: int, moving: bool) -> Any:
    """All of a file, or of one that moves whether there is something."""
    fd = os.open(path, os.O_RDONLY)
    try:
        text = b""
        while part := answer(lambda: os.read(fd, size)):
            if isinstance(part, str):
                return f"read: {part}"
            text += part
            if moving:
                break
        return bool(text) if moving else text.decode("latin-1")
    finally:
        os.close(fd)


def main(who: str, mount: str, proc: str, *paths: str) -> None:
    become(who)
    differences: list[Any] = []
    answers: Counter[str] = Counter()

    def compare(path: str) -> None:
        before, ours = look(f"{proc}/{path}"), look(f"{mount}/{path}")
        if ours != before and ours != (after := look(f"{proc}/{path}")):
            differences.append([path, ours, after])
        sort, said = before
        answers[said[-1] if isinstance(said[-1], str) and said[-1] in errno.errorcode.values() else sort] += 1
        if sort == "directory" and not isinstance(said[-1], str):
            for name in said[-1]:
                compare(f"{path}/{name}")

    for path in paths:
        compare(str(os.getpid()) if path == "self" else path)
    print(json.dumps({"differences": differences, "answers": answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
