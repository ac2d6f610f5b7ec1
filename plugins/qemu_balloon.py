"""A QEMU guest whose balloon is inflated, and whose memory is then all read: migrated, or dumped by its kdump kernel.

Two workloads of one guest. The guest has used all its memory. Its balloon driver (drivers/virtio/virtio_balloon.c)
takes pages of 4 KiB from wherever the guest has free ones and tells them in arrays of up to 256 numbers; for each QEMU
(hw/virtio/virtio-balloon.c, ram_block_discard_range) calls MADV_DONTNEED of 4 KiB: PTE pages become empty, one by one.
Migration (migration/ram.c) reads every page of guest memory to see whether it is zero, and a kdump kernel in the guest
reads all memory that is not its own (makedumpfile; EPT faults for reading): the inflated pages get the host's zero page
then, and empty PTE pages become zero ones. The second case of the mail. Huge pages are off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from pterefd.hookspecs import Emit, Tunables, Workload, hookimpl

PTEREFD_API = 1

PAGE, MIB, SPAN, SECOND = 1 << 12, 1 << 20, 1 << 21, 1_000_000_000
CHUNK = 1 << 16


class BalloonTunables(Tunables):
    """Parameters of both."""

    ram_mib: int = Field(default=2048, ge=4, le=1 << 18, description="Memory of the guest, MiB.")
    kept_mib: int = Field(
        default=256, ge=0, le=1 << 18, description="What the balloon leaves, from its beginning, MiB."
    )
    scattered_pages: int = Field(
        default=16, ge=0, le=1 << 26, description="Pages that the guest keeps at random places beyond."
    )
    inflate_rate: int = Field(default=250_000, ge=1, le=SECOND, description="Pages that the balloon takes a second.")
    read_mib: int = Field(default=1024, ge=1, le=1 << 20, description="How fast guest memory is read, MiB/s.")
    hold_s: float = Field(default=5.0, ge=0, le=86_400, description="Time after each step, s.")


class Balloon(Workload):
    """What both guests do first."""

    Tunables = BalloonTunables
    tunables: BalloonTunables

    def inflated(self, emit: Emit, rng: np.random.Generator) -> Iterator[int]:
        """A guest that has used all its memory, and inflates its balloon. Yields the address of its memory."""
        p = self.tunables
        emit.exec(
            1, "qemu-system-x86", cmdline=("qemu-system-x86_64", "-m", f"{p.ram_mib}M", "-device", "virtio-balloon")
        )
        ram = emit.mmap(1, p.ram_mib * MIB)
        emit.fault(1, ram + MIB * np.arange(p.ram_mib), MIB, spacing=SECOND // p.read_mib)
        emit.sleep(int(p.hold_s * SECOND))
        first = min(p.kept_mib, p.ram_mib) * MIB // PAGE
        taken = rng.permutation(np.arange(first, p.ram_mib * MIB // PAGE))[p.scattered_pages :]
        for begin in range(0, len(taken), CHUNK):
            pages = taken[begin : begin + CHUNK]
            emit.madvise(1, ram + PAGE * pages, PAGE, "dontneed", spacing=SECOND // p.inflate_rate)
            yield ram
        emit.sleep(int(p.hold_s * SECOND))
        yield ram

    def read(self, emit: Emit, ram: int, begin_mib: int) -> None:
        """All guest memory from begin_mib on is read, MiB by MiB."""
        p = self.tunables
        starts = ram + MIB * np.arange(begin_mib, p.ram_mib)
        emit.fault(1, starts, MIB, write=False, spacing=SECOND // p.read_mib)
        emit.sleep(int(p.hold_s * SECOND))


class BalloonMigration(Balloon):
    """The guest is migrated: QEMU reads all its memory."""

    name = "balloon_migration"

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """One process, which ends when the migration is done."""
        ram = 0
        for ram in self.inflated(emit, rng):  # noqa: B007 - the last one is used
            yield
        self.read(emit, ram, 0)
        emit.exit(1)


class KdumpTunables(BalloonTunables):
    """Parameters."""

    crashkernel_mib: int = Field(default=64, ge=1, le=1 << 18, description="What the kdump kernel has to itself, MiB.")


class BalloonKdump(Balloon):
    """The guest crashes, and its kdump kernel reads all memory but its own."""

    name = "balloon_kdump"
    Tunables = KdumpTunables
    tunables: KdumpTunables

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        """One process. The kdump kernel lies at the beginning of guest memory."""
        ram = 0
        for ram in self.inflated(emit, rng):  # noqa: B007 - the last one is used
            yield
        own = min(self.tunables.crashkernel_mib, self.tunables.ram_mib)
        emit.fault(1, ram, own * MIB)
        self.read(emit, ram, own)
        emit.exit(1)


@hookimpl
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Called by pterefd when the plugin is loaded."""
    register(BalloonMigration)
    register(BalloonKdump)
