"""A host for tests of what stands on one: a short trace, run to its end, and the parts around it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pterefd import __version__, log, paths
from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm import profile
from pterefd.procfs.faces import Faces
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.conductor import Conductor
from pterefd.session.replay import Replay
from pterefd.source.trace import open_trace

Event = dict[str, Any]
MIB = 1 << 20
SPAN = 2 * MIB
AT = 0x7F0000000000  # aligned to a PMD slot


def exec_(pid: int, comm: str, **fields: Any) -> Event:
    return {"op": "exec", "pid": pid, "comm": comm, **fields}


def mmap(pid: int, addr: int, length: int, **fields: Any) -> Event:
    fields = {"prot": "rw-", "flags": "private,anonymous", **fields}
    return {"op": "mmap", "pid": pid, "addr": addr, "len": length, **fields}


def fault(pid: int, addr: int, length: int, *, write: bool) -> Event:
    return {"op": "fault", "pid": pid, "addr": addr, "len": length, "write": write}


def dontneed(pid: int, addr: int, length: int) -> Event:
    return {"op": "madvise", "pid": pid, "addr": addr, "len": length, "advice": "dontneed"}


def spans(pid: int, *, full: int, zero: int, empty: int, comm: str = "server", **fields: Any) -> list[Event]:
    """A process with so many PTE pages of each kind, in that order from AT; each kind may be 0."""
    events = [exec_(pid, comm, **fields), mmap(pid, AT, (full + zero + empty + 1) * SPAN)]
    at = AT
    if full:
        events.append(fault(pid, at, full * SPAN, write=True))
    at += full * SPAN
    if zero:
        events.append(fault(pid, at, zero * SPAN, write=False))
    at += zero * SPAN
    for span in range(empty):
        # In two halves, so that the span's PTE page stays under every profile.
        begin = at + span * SPAN
        events += [fault(pid, begin, 4096, write=True), dontneed(pid, begin, MIB), dontneed(pid, begin + MIB, MIB)]
    return events


# pid 1 has every kind of PTE page and a thread; pid 2 was forked and has a strange name; pid 7 has most to free.
EVENTS: list[Event] = [
    *spans(1, full=3, zero=2, empty=5, comm="redis-server", cmdline=["redis-server", "*:6379"], uid=33, gid=34),
    mmap(1, 0x400000, 8192, prot="r-x", flags="private", path="/usr/bin/redis-server", offset=4096, file_size=65536),
    {"op": "thread", "pid": 1, "tid": 3},
    {"op": "fork", "pid": 1, "child": 2},
    exec_(2, "sim web) x\\y"),
    *spans(7, full=1, zero=0, empty=9, comm="largest"),
]


def write_trace(path: Path, events: Iterable[Event] = EVENTS, **meta: Any) -> Path:
    """The events as a JSON Lines file; each gets a time, a microsecond after the one before."""
    lines: list[Event] = [{"op": "trace", "format_version": 1, "page_size": 4096, **meta}]
    lines += [{"t": 1000 * i, **event} for i, event in enumerate(events)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass
class House:
    """What the faces show."""

    host: Host
    reclaimer: Reclaimer
    replays: list[Replay]
    faces: Faces


def house(directory: Path, events: Iterable[Event] = EVENTS, memory: Memory | None = None) -> House:
    """A host on which the events have been replayed, to their end or the hold, with the plugins of pterefd."""
    trace = open_trace(write_trace(directory / "trace.jsonl", events))
    host = Host(profile.named("rfc-2022"), memory=memory)
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    reclaimer = Reclaimer(host, plugins, log.get())
    replay = Replay(0, trace, host, reclaimer, speed=None)
    thread = threading.Thread(target=Conductor([replay], host, reclaimer).run, daemon=True)
    thread.start()
    while thread.is_alive() and replay.state == "running":
        time.sleep(0.001)
    return House(host, reclaimer, [replay], Faces(host, reclaimer, [replay], __version__, "rfc-2022"))
