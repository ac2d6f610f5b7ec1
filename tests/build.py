"""Events as batches, for tests of the floors that know no trace file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pterefd.engine.arena import Limits
from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm import events as ev
from pterefd.mm.profile import named

SMALL = Limits(
    mms=256,
    mappings=1 << 14,
    pmd_pages=1 << 10,
    pte_pages=1 << 16,
    own_entries=1 << 14,
    files=1 << 10,
    blocks=1 << 18,
    pid_max=1 << 15,
    shared_pages=1 << 18,
)
PROT = {"r": ev.PROT_READ, "w": ev.PROT_WRITE, "x": ev.PROT_EXEC, "-": 0}

Event = tuple[Any, ...]  # (op, pid, addr, len, arg): arg as Batch.arg says, for mmap (prot, flags), for mremap a tuple


def host(profile: str = "v6.18", memory: Memory | None = None) -> Host:
    """A small empty host."""
    return Host(named(profile), limits=SMALL, memory=memory)


def batch(events: Iterable[Event]) -> ev.Batch:
    """Events as (op, pid, addr, len, arg), trailing ones left out where 0."""
    rows = [tuple(event) + (0,) * (5 - len(event)) for event in events]
    ext: list[tuple[int, ...]] = []
    side: list[dict[str, Any]] = []
    args = []
    for op, _, _, _, arg in rows:
        if op == "mmap":
            prot, flags = arg or ("rw-", "private,anonymous")
            bits = sum(ev.MAP_FLAG_BIT[name] for name in flags.split(","))
            ext.append((sum(PROT[c] for c in prot), bits, -1, 0, -1))
            args.append(len(ext) - 1)
        elif op == "mremap":
            ext.append((*arg, 0, 0, 0)[:5])
            args.append(len(ext) - 1)
        elif op in ("exec", "expect"):
            side.append(arg or {"comm": "test"})
            args.append(len(side) - 1)
        elif op == "madvise":
            args.append(ev.ADVICE_CODE[arg])
        elif op == "mprotect":
            args.append(sum(PROT[c] for c in arg))
        elif op == "state":
            args.append(ev.ENTRY_CODE[arg])
        else:
            args.append(int(arg))
    n = len(rows)
    return ev.Batch(
        t=np.full(n, ev.NO_TIME, dtype=np.int64),
        pid=np.array([row[1] for row in rows], dtype=np.int32),
        op=np.array([ev.OP_CODE[row[0]] for row in rows], dtype=np.uint8),
        addr=np.array([row[2] for row in rows], dtype=np.int64),
        len=np.array([row[3] or (4096 if row[0] == "fault" else 0) for row in rows], dtype=np.int64),
        arg=np.array(args, dtype=np.int64),
        err=np.zeros(n, dtype=np.int16),
        ext=np.array(ext, dtype=np.int64).reshape(-1, ev.EXT_COLUMNS),
        side=side,
    )


def run(machine: Host, *events: Event) -> None:
    """Run events to the end; each must be the host's own."""
    whole = batch(events)
    assert machine.run(whole, 0, len(whole)) == len(whole)
