"""Runs of accesses go a short way (mm/quick.py): it comes to the same as event by event, which the oracle holds to the
kernel. Each of its conditions is taken out once, and noticed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernel.plain import Change, plain_model

PAGE, SPAN, GIB = 1 << 12, 1 << 21, 1 << 30
BASE = 1 << 40
SIZE = 4 * SPAN
OTHER = 8 * GIB // PAGE  # where two mappings begin that share a PTE page
Event = dict[str, Any]


def access(page: int, write: bool, pid: int = 1, length: int = PAGE) -> Event:
    more = {"len": length} if length != PAGE else {}
    return {"op": "fault", "pid": pid, "addr": BASE + page * PAGE, "write": write, **more}


def in_order() -> Iterator[Event]:
    """Pages are read, filled, discarded, shared, one after the other: what is full, empty or alike on the way."""
    for first in (0, 512):
        yield from (access(first + i, False) for i in range(512))
    yield from (access(i, True) for i in range(512))
    yield from (access(1023 - i, True) for i in range(512))
    yield from (access(1024 + i, i % 3 == 0) for i in range(512))
    yield from (access(1024 + i, True) for i in range(512))
    yield {"op": "madvise", "pid": 1, "addr": BASE, "len": SPAN, "advice": "free"}
    yield from (access(i, i % 2 == 0) for i in range(512))
    yield {"op": "swap_out", "pid": 1, "addr": BASE + SPAN, "len": SPAN // 2}
    yield from (access(512 + i, i % 2 == 0) for i in range(512))
    yield from (access(1536 + i, i % 4 == 0) for i in range(200))
    yield {"op": "fork", "pid": 1, "child": 2}
    for pid in (1, 2):
        yield from (access(1536 + i, i % 3 == pid, pid) for i in range(300))
        yield from (access(i, True, pid) for i in range(0, 1024, 3))
        yield from (access(i, False, pid) for i in range(0, 2048, 5))
    yield from (access(4 * i, i % 5 == 0, length=6 * PAGE) for i in range(500))
    yield from (access(OTHER + i, i < 4 or 270 < i < 290) for i in range(300))


def at_random(seed: int) -> Iterator[Event]:
    rng = random.Random(seed)
    at = 0
    for _ in range(1500):
        if rng.random() < 0.06:
            begin = rng.randrange(2040)
            where = {"pid": 1, "addr": BASE + begin * PAGE, "len": min(rng.choice([1, 8, 512]), 2048 - begin) * PAGE}
            kind = rng.choice(["dontneed", "dontneed", "free", "guard_install", "guard_remove", "swap_out", "protect"])
            if kind == "swap_out":
                yield {"op": "swap_out", **where}
            elif kind == "protect":
                yield {"op": "mprotect", **where, "prot": rng.choice(["r--", "rw-", "rw-"])}
            else:
                yield {"op": "madvise", **where, "advice": kind}
        if rng.random() < 0.1:
            at = rng.randrange(2048)
        pages = min(rng.choice([1, 1, 1, 2, 7, 600]), 2048 - at % 2048)
        yield access(at % 2048, rng.random() < 0.5, length=pages * PAGE)
        at += rng.choice([0, 1, 1, 1, 512])


def written(path: Path, events: Iterator[Event]) -> Path:
    start: list[Event] = [{"op": "exec", "pid": 1, "comm": "a"}]
    for begin, length, flags in (
        (BASE, SIZE, "private,anonymous"),
        (BASE + OTHER * PAGE, SPAN // 2, "private,anonymous"),
        (BASE + OTHER * PAGE + SPAN // 2, SPAN, "private,anonymous,noreserve"),
    ):
        start.append({"op": "mmap", "pid": 1, "addr": begin, "len": length, "prot": "rw-", "flags": flags})
    path.write_text("\n".join(json.dumps(event) for event in [*start, *events]))
    return path


def states(path: Path, step: int) -> list[str]:
    """Everything known of all processes, once the events have been run, so many at a time."""
    from pterefd.engine import layout as lo
    from pterefd.engine.arena import Limits
    from pterefd.host.host import Host
    from pterefd.mm.profile import named
    from pterefd.session.feed import Feed
    from pterefd.source.trace import open_trace

    trace = open_trace(path)
    host = Host(named("v6.18"), limits=Limits(64, 1 << 12, 1 << 10, 1 << 14, 1 << 13, 1 << 10, 1 << 16))
    feed = Feed(trace, host)
    for batch in trace.batches():
        for begin in range(0, len(batch), step):
            feed.run(batch, begin, min(begin + step, len(batch)))
    s = host._s
    found = []
    for pid in host.pids():
        m = int(s.pids[pid])
        first, mappings = int(s.mm[m, lo.M_VMAS]), int(s.mm[m, lo.M_VMAS + 1])
        anon = [bool(s.vma[v, lo.V_ANON]) for v in s.val[first : first + mappings]]
        found.append(f"{pid} {host.counters(pid)} {host.vmas(pid)} {anon}")
        base, count = int(s.mm[m, lo.M_SLOTS]), int(s.mm[m, lo.M_SLOTS + 1])
        for slot, t in zip(s.key[base : base + count], s.val[base : base + count], strict=True):
            for i in np.flatnonzero(s.pmd[t, :512]):
                p = int(s.pmd[t, i])
                e = int(s.pte[p, lo.P_ENT])
                codes = np.asarray(s.ent[e] if e > 0 else np.full(512, -e))
                found.append(f"{slot} {i} {int(s.pte[p, lo.P_REF])} {codes.astype(np.uint8).tobytes().hex()}")
    return found


STREAMS = {"in order": in_order, **{f"seed {seed}": lambda seed=seed: at_random(seed) for seed in range(6)}}


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_is_as_event_by_event(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", STREAMS[name]())
    assert states(path, 1 << 20) == states(path, 1)


def broken(indent: int, condition: str) -> str:
    """Lines of the source that leave the short way."""
    return f"{' ' * indent}{condition}:\n{' ' * indent}    break\n"


CONDITIONS = (
    (broken(8, "if write and not writable"), "a mapping that was never written to"),
    (broken(20, "if mapped == 511 or (mapped == zero and (write or mapped == 0))"), "new pages"),
    (broken(20, "if mapped == zero or (mapped == 512 and j == 511)"), "zero pages go"),
    (broken(12, "elif old != E_ANON and (write or old != E_ZERO)"), "swap, guard markers, lazyfree"),
    ("or s.entref[x] != 1 ", "rows that fork shares"),
    ("a < low or stop > high or ", "another mapping"),
    ("        s.mm[m, M_E + E_ZERO] += new_zero - zero_anon\n", "the count of zero entries"),
)


@pytest.mark.parametrize(("condition", "about"), CONDITIONS, ids=[about for _, about in CONDITIONS])
def test_a_condition_that_is_taken_out_is_noticed(condition: str, about: str, tmp_path: Path) -> None:
    with plain_model(Change("mm.quick", condition, "", about, "")):
        for name, events in STREAMS.items():
            path = written(tmp_path / f"{name}.jsonl", events())
            if states(path, 1 << 20) != states(path, 1):
                return
    pytest.fail("nothing differs")
