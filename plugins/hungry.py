"""A neighbour that is hungry for memory: it brings the pressure.

It grows at a rate, holds what it has, gives it all back, and does so again: a batch job beside a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

MIB, SECOND = 1 << 20, 1_000_000_000
CHUNK = 1 << 16


class HungryTunables(Tunables):
    """Parameters."""

    size_mib: int = Field(default=1024, ge=1, le=1 << 24, description="What it grows to, MiB.")
    rate_mib: int = Field(default=256, ge=1, le=1 << 20, description="How fast it grows, MiB/s.")
    hold_s: float = Field(default=5.0, ge=0, le=86_400, description="How long it holds what it has, s.")
    rest_s: float = Field(default=5.0, ge=0, le=86_400, description="How long it rests before it begins again, s.")
    cycles: int = Field(default=1, ge=1, le=100_000, description="How often it grows.")


class Hungry(Workload):
    """One mapping a cycle, written MiB by MiB, then unmapped."""

    name = "hungry"
    Tunables = HungryTunables
    tunables: HungryTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """One process."""
        p = self.tunables
        emit.exec(1, "hungry")
        for cycle in range(p.cycles):
            if cycle:
                emit.sleep(int(p.rest_s * SECOND))
            start = emit.mmap(1, p.size_mib * MIB)
            for begin in range(0, p.size_mib, CHUNK):
                written = np.arange(begin, min(begin + CHUNK, p.size_mib))
                emit.fault(1, start + MIB * written, MIB, spacing=SECOND // p.rate_mib)
                yield
            emit.sleep(int(p.hold_s * SECOND))
            emit.munmap(1, start, p.size_mib * MIB)
            yield
        emit.exit(1)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(Hungry)
