"""What each operation on page tables takes, in nanoseconds, as `pterefd calibrate` measured it on some kernel.

A file of them is one JSON object, the one that `pterefd calibrate -o FILE` writes. The default is costs.json beside
this file; it says where it was measured. docs/compare.md says what each figure is and how it was measured.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pterefd.config import reason
from pterefd.errors import BadInput

DEFAULT = Path(__file__).with_name("costs.json")
FORMAT_VERSION = 1

Nanoseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Table):
    """Nanoseconds: the median of several runs, and the least and the most of them."""

    ns: Nanoseconds
    low: Nanoseconds
    high: Nanoseconds


class Operations(_Table):
    """What one operation takes. None: could not be measured there (no swap); the reports then leave it out.

    fault: a write to an untouched page whose PTE page is there.  zero_fault: a read of one.  pte_alloc: a PTE page
    made, beyond the fault that needs it.  pte_free: a PTE page freed (512 entries looked at, pmd_clear, TLB flush).
    lock: mmap_lock taken for writing and let go, the mapping looked up.  swap_out, swap_in: a page.
    refcount, atomic_refcount: one update of a PTE page's count, plain and atomic.  walker: a walker's get and put.
    rmap_lock: one taken and let go, not contended.  span_*: the call over a span with 512 anonymous pages.
    """

    fault: Figure
    zero_fault: Figure
    pte_alloc: Figure
    pte_free: Figure
    lock: Figure
    swap_out: Figure | None = None
    swap_in: Figure | None = None
    refcount: Figure
    atomic_refcount: Figure
    walker: Figure
    rmap_lock: Figure
    span_mprotect: Figure
    span_dontneed: Figure
    span_munmap: Figure


class Latency(_Table):
    """How long a write fault takes, one by one, while another thread of the process does something in a loop."""

    p50: Figure
    p99: Figure


class Threads(_Table):
    """What depends on how many threads the process has.

    fault, zero_fault: a fault of each while all of them fault.  pte_free, lock: while the others run, so that a flush
    of the TLB has to reach them.  latency: of faults in `threads` threads, by what one more of them does: none,
    mprotect (holds mmap_lock for writing), dontneed (frees PTE pages, on a kernel with PT_RECLAIM), munmap.
    """

    threads: Annotated[int, Field(ge=1)]
    fault: Figure
    zero_fault: Figure
    pte_free: Figure
    lock: Figure
    latency: dict[str, Latency]


class Costs(_Table):
    """A table of costs. kernel, machine: where it was measured.  runs: of which the figures are medians."""

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    kernel: str
    machine: str
    runs: Annotated[int, Field(ge=1)]
    pte_freed_by: str
    operations: Operations
    threads: Annotated[tuple[Threads, ...], Field(min_length=1)]

    @property
    def about(self) -> str:
        """Where they were measured, in a few words."""
        return f"Linux {self.kernel}, {self.machine}, medians of {self.runs} runs"

    def of_threads(self, threads: int) -> Threads:
        """The figures of the most threads that were measured and are no more than these; else of the fewest."""
        fitting = [row for row in self.threads if row.threads <= threads]
        return max(fitting, key=lambda row: row.threads) if fitting else min(self.threads, key=lambda row: row.threads)

    def hold_ns(self, threads: int) -> float:
        """How long mmap_lock is held for writing to free one PTE page of a process with so many threads.

        mm/pte_ref.c kfreeptd_pmd_entry of the RFC takes it for each PTE page.
        """
        row = self.of_threads(threads)
        return row.lock.ns + row.pte_free.ns


@cache
def load(path: Path = DEFAULT) -> Costs:
    """Read a file of costs. BadInput says in one line what is wrong with it."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return Costs.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        why = first["msg"] if first["type"] == "json_invalid" else reason(first)
        raise BadInput(f"{path}: not a file of costs: {why}") from None
