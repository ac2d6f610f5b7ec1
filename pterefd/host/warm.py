"""Compile, or load from the cache, every kernel that a host calls: before somebody waits for one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pterefd.engine.arena import Limits
from pterefd.engine.jit import told_of_compiling
from pterefd.hookspecs import Kinds
from pterefd.host.host import Host
from pterefd.mm import events as ev
from pterefd.mm.profile import named

_LIMITS = Limits(
    mms=16,
    mappings=64,
    pmd_pages=16,
    pte_pages=64,
    own_entries=64,
    files=16,
    blocks=1 << 10,
    pid_max=16,
)
_BASE = 1 << 40


def warm(compiling: Callable[[], None] = lambda: None) -> None:
    """Load the kernels. compiling: called once where they have to be compiled first, which takes minutes."""
    with told_of_compiling(compiling):
        _live()


def _live() -> None:
    """A short life on a small host: whatever a host calls is called once."""
    ops = (ev.OP_EXEC, ev.OP_MMAP, ev.OP_FAULT, ev.OP_MLOCKALL, ev.OP_MBIND, ev.OP_FORK, ev.OP_EXIT)
    n = len(ops)
    batch = ev.Batch(
        t=np.zeros(n, dtype=np.int64),
        pid=np.ones(n, dtype=np.int32),
        op=np.array(ops, dtype=np.uint8),
        addr=np.array([0, _BASE, _BASE, 0, _BASE, 0, 0], dtype=np.int64),
        len=np.array([0, 1 << 21, 1 << 21, 0, 1 << 20, 0, 0], dtype=np.int64),
        arg=np.array([0, 0, 0, ev.MCL_CURRENT, 1, 2, 0], dtype=np.int64),
        err=np.zeros(n, dtype=np.int16),
        ext=np.array([[ev.PROT_READ, ev.MAP_PRIVATE | ev.MAP_ANONYMOUS, -1, 0, -1]], dtype=np.int64),
        side=[{"comm": "warm"}],
        paths=["/"],
    )
    host = Host(named("v6.18"), limits=_LIMITS)
    host.run(batch, 0, n - 1)
    host.free_ptes(1, Kinds.BOTH | Kinds.MIXED, None)
    host.walks.warm()
    host.run(batch, n - 1, n)
