"""Files of a process whose ids are rewritten: as the pid namespace of whoever reads has them."""

from __future__ import annotations

import re

from pterefd.procfs.caller import Callers, NsIds

_STATE = re.compile(rb"\nState:\t.*\n")


def stat(callers: Callers, text: bytes, status: bytes, level: int) -> bytes:
    """fs/proc/array.c:do_task_stat(), fields 1, 4, 5, 6 and 8 as a pid namespace `level` below the daemon's has them.

    status: of the same task, which tells its ids.
    """
    ids = NsIds.of(status)
    before, _, after = text.rpartition(b")")
    fields = after.split(b" ")  # "", state, ppid, pgrp, session, tty_nr, tpgid, ...
    if callers.is_calling(ids.pid[0]):
        fields[1] = b"R"  # it sleeps for this answer alone
    if not level:
        return b"%s)%s" % (before, b" ".join(fields))
    seen = [callers.as_seen(int(fields[2]), level), ids.pgid[level], ids.sid[level]]
    fields[2:5] = [b"%d" % number for number in seen]
    if int(fields[6]) > 0:
        fields[6] = b"%d" % callers.as_seen(int(fields[6]), level)
    return b"%d %s)%s" % (ids.pid[level], before.partition(b" ")[2], b" ".join(fields))


def status(callers: Callers, text: bytes, level: int) -> bytes:
    """fs/proc/array.c:task_state(), its ids as stat() has them."""
    ids = NsIds.of(text)
    if callers.is_calling(ids.pid[0]):
        text = _STATE.sub(b"\nState:\tR (running)\n", text, count=1)
    if not level:
        return text
    seen = {
        b"Tgid": ids.tgid[level : level + 1],
        b"Pid": ids.pid[level : level + 1],
        b"NStgid": ids.tgid[level:],
        b"NSpid": ids.pid[level:],
        b"NSpgid": ids.pgid[level:],
        b"NSsid": ids.sid[level:],
    }
    lines = text.split(b"\n")
    for i, line in enumerate(lines):
        key, _, value = line.partition(b":\t")
        if key in (b"PPid", b"TracerPid"):
            lines[i] = b"%s:\t%d" % (key, callers.as_seen(int(value), level))
        elif key in seen:
            lines[i] = b"%s:\t%s" % (key, b"\t".join(b"%d" % number for number in seen[key]))
    return b"\n".join(lines)


def children(callers: Callers, text: bytes, level: int) -> bytes:
    """fs/proc/array.c:children_seq_show(), without those that are not seen there."""
    if not level:
        return text
    seen = (callers.as_seen(int(pid), level) for pid in text.split())
    return b"".join(b"%d " % pid for pid in seen if pid)
