"""The contract that plugin files see: hooks, the view they read, requests, choices, results.

A plugin is a .py file (or a package's entry point in the group `pterefd`) that names the version of
this contract it was written for and registers classes by name:

    from pterefd.hookspecs import API_VERSION, Choice, Policy, hookimpl

    PTEREFD_API = 1

    class LargestFirst(Policy):
        name = "largest_first"

        def choose(self, view, request):
            for pid in view.ranking(request.kinds):
                yield Choice(pid)

    @hookimpl
    def pterefd_register_policies(register):
        register(LargestFirst)

This module imports nothing of pterefd; everything that it names is public and stable within a version.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pluggy
from pydantic import BaseModel, ConfigDict

API_VERSION = 1
PROJECT = "pterefd"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

I64 = npt.NDArray[np.int64]


class Kinds(enum.Flag):
    """Which PTE pages may be freed: with no entry set, or with 512 zero-page entries."""

    EMPTY = enum.auto()
    ZERO = enum.auto()
    BOTH = EMPTY | ZERO


class Cause(enum.Enum):
    """What happened that a trigger is asked about."""

    WRITE = "write"  # somebody wrote a pid to sys/vm/free_ptes; Moment.pid, None for every mm
    RECLAIM = "reclaim"  # somebody wrote bytes to sys/vm/pt_reclaim/reclaim; Moment.bytes
    LOW = "low"  # free memory fell below the low watermark
    OOM = "oom"  # the last thing before an OOM kill
    TICK = "tick"  # the trace's time moved on


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment at which page tables might be reclaimed.

    time_ns: the host's clock, nanoseconds of the trace's time.  pid: the mm it is about, None for all.
    bytes: bytes that are wanted, 0 where the moment names none.
    """

    cause: Cause
    time_ns: int
    pid: int | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ReclaimRequest:
    """A trigger's answer: free up to bytes_wanted (None: all there is) of these kinds, in pid or in any mm."""

    bytes_wanted: int | None = None
    kinds: Kinds = Kinds.BOTH
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy's next choice: free up to `bytes` (None: all) of these kinds in the mm of pid.

    kinds None takes the request's.
    """

    pid: int
    kinds: Kinds | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ReclaimResult:
    """What one act freed, told to every plugin and counted in the metrics.

    empty_bytes, zero_bytes: bytes of PTE pages freed, by kind.  freed: (pid, bytes) in the order of choice.
    seconds: wall time the act took.  outcome: "done", "partly" (less than was wanted), "nothing" or "failed".
    """

    trigger: str
    policy: str
    request: ReclaimRequest
    empty_bytes: int
    zero_bytes: int
    freed: tuple[tuple[int, int], ...]
    seconds: float
    outcome: str

    @property
    def bytes(self) -> int:
        """Bytes of PTE pages freed, both kinds."""
        return self.empty_bytes + self.zero_bytes


class View(Protocol):
    """The host as last published: read-only arrays over all mms, row i of each is the same mm.

    All are 1-D and of one length n; sizes are bytes. A policy over many mms is an expression over
    these, or a walk of the first few of `ranking`.
    """

    @property
    def time_ns(self) -> int:
        """The host's clock, nanoseconds of the trace's time."""

    @property
    def rng(self) -> random.Random:
        """The host's own generator, seeded: the only randomness that a plugin may use."""

    @property
    def pid(self) -> npt.NDArray[np.int32]:
        """Ascending."""

    @property
    def empty_bytes(self) -> I64:
        """PTE pages with no entry set."""

    @property
    def zero_bytes(self) -> I64:
        """PTE pages with 512 zero-page entries."""

    @property
    def reclaimable_bytes(self) -> I64:
        """Empty and zero PTE pages that free_ptes would free now: some profiles keep some of them."""

    @property
    def mixed_bytes(self) -> I64:
        """PTE pages with zero-page entries and none, nothing else: kept by the mail's rule."""

    @property
    def unlocated_bytes(self) -> I64:
        """PTE pages that a snapshot could not place."""

    @property
    def pgtables_bytes(self) -> I64:
        """All page-table pages: PTE, PMD, PUD."""

    @property
    def anon_bytes(self) -> I64:
        """RssAnon."""

    @property
    def file_bytes(self) -> I64:
        """RssFile."""

    @property
    def shmem_bytes(self) -> I64:
        """RssShmem."""

    @property
    def swap_bytes(self) -> I64:
        """VmSwap."""

    @property
    def last_fault_ns(self) -> I64:
        """Time of the last fault, in the trace's time."""

    @property
    def total_vm_bytes(self) -> I64:
        """VmSize."""

    def comm(self, pid: int) -> str:
        """The name of the mm's process, up to 15 characters."""

    def ranking(self, kinds: Kinds) -> Iterator[int]:
        """Pids by falling reclaimable bytes of these kinds, those with none left out. O(1) an item for BOTH."""


class Tunables(BaseModel):
    """Base of a plugin's tunables: fields with ranges; each becomes a file."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Trigger:
    """When to reclaim. Subclasses have a `name` ([a-z][a-z0-9_]*) and may declare Tunables."""

    name: ClassVar[str]
    Tunables: ClassVar[type[Tunables]] = Tunables

    def __init__(self, tunables: Tunables) -> None:
        self.tunables = tunables

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a moment: what to free now, or None for nothing. Called without the host's lock."""
        raise NotImplementedError


class Policy:
    """Which mms, in what order, which kinds and how much."""

    name: ClassVar[str]
    Tunables: ClassVar[type[Tunables]] = Tunables

    def __init__(self, tunables: Tunables) -> None:
        self.tunables = tunables

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Yield choices in order; asked no further than the request needs. Called without the host's lock."""
        raise NotImplementedError


@hookspec
def pterefd_register_triggers(register: Callable[[type[Trigger]], Any]) -> None:
    """Register trigger classes: call `register(cls)` for each. Called once when the plugin is loaded."""


@hookspec
def pterefd_register_policies(register: Callable[[type[Policy]], Any]) -> None:
    """Register policy classes: call `register(cls)` for each. Called once when the plugin is loaded."""


@hookspec
def pterefd_reclaimed(result: ReclaimResult) -> None:
    """Something was reclaimed (or tried to be). Called after the fact, without the host's lock.

    An exception is logged with the plugin's name, counted, and changes nothing.
    """


# ---- workloads: simulated mms ---------------------------------------------------------------

Addresses = int | I64  # one address, or int64[n] of them


class Emit(Protocol):
    """Where a workload's events go: in order, those of a recording and nothing that one could not hold.

    Addresses and lengths are bytes, multiples of 4096 (an mmap's length is rounded up); times are integers,
    nanoseconds since the workload's start. An event stands at `now`. Where addr or length may be an array, one call
    emits an event for each element, in its order, `spacing` ns apart; `now` is then behind the last one. Nothing here
    fails as a system call would: what a kernel refuses (for want of memory, say) the host refuses later. A call that no
    process could make (a pid that was never started, an address beyond 2^47) ends the workload with one line.
    """

    @property
    def now(self) -> int:
        """The time of the next event, ns."""

    def at(self, time_ns: int) -> None:
        """Go on to a time that is not before `now`."""

    def sleep(self, ns: int) -> None:
        """Let so much time pass."""

    def exec(
        self,
        pid: int,
        comm: str,
        *,
        cmdline: Sequence[str] = (),
        uid: int | None = None,
        gid: int | None = None,
        oom_score_adj: int | None = None,
    ) -> None:
        """A fresh, empty mm for pid; comm has up to 15 characters."""

    def fork(self, pid: int, child: int) -> None:
        """The child's mm is a copy of pid's by the kernel's rules."""

    def exit(self, pid: int) -> None:
        """The mm is torn down."""

    def thread(self, pid: int, tid: int) -> None:
        """One thread more."""

    def thread_exit(self, pid: int, tid: int) -> None:
        """One thread less."""

    def mmap(
        self,
        pid: int,
        length: int,
        *,
        addr: int | None = None,
        prot: str = "rw-",
        flags: str = "private,anonymous",
        path: str | None = None,
        offset: int = 0,
        file_size: int | None = None,
    ) -> int:
        """Map length bytes and return the address.

        addr: there, over whatever was there (MAP_FIXED). None: the highest place with room, from the top down, at a
        multiple of 2 MiB where the length of private anonymous memory is one, as the kernel does (address space layout
        randomization off).  prot, flags: words of the trace format.
        """

    def munmap(self, pid: int, addr: int, length: int) -> None:
        """Unmap a range."""

    def mremap(
        self, pid: int, addr: int, length: int, new_length: int, *, new_addr: int | None = None, dontunmap: bool = False
    ) -> int:
        """Grow, shrink or move a mapping and return where it is.

        new_addr: there (MREMAP_FIXED). None: where it is if there is room, else where mmap would put it.
        """

    def mprotect(self, pid: int, addr: int, length: int, prot: str) -> None:
        """Other protection for a range."""

    def brk(self, pid: int, addr: int | None = None) -> int:
        """Let the heap end at addr (rounded up to a page) and return its end; None asks for it alone."""

    def madvise(self, pid: int, addr: Addresses, length: Addresses, advice: str, *, spacing: int = 0) -> None:
        """advice: in lower case without MADV_."""

    def mlock(self, pid: int, addr: int, length: int, *, onfault: bool = False) -> None:
        """Lock a range."""

    def munlock(self, pid: int, addr: int, length: int) -> None:
        """Unlock a range."""

    def fault(
        self,
        pid: int,
        addr: Addresses,
        length: Addresses = 4096,
        *,
        write: bool | npt.NDArray[np.bool_] = True,
        spacing: int = 0,
    ) -> None:
        """Access every page of [addr, addr + length), for writing or for reading."""

    def swap_out(self, pid: int, addr: Addresses, length: Addresses = 4096, *, dropped: bool = False) -> None:
        """Present anonymous pages of the range go to swap; with dropped, clean MADV_FREE pages vanish."""

    def cache(self, path: str, offset: int, length: int) -> None:
        """Pages of a file that are in the page cache."""

    def truncate(self, path: str, length: int) -> None:
        """A file's new size."""

    def thp(self, pid: int, disabled: bool) -> None:
        """prctl(PR_SET_THP_DISABLE)."""

    def free_ptes(self, pid: int) -> None:
        """Somebody writes pid to sys/vm/free_ptes."""


class Workload:
    """A simulated program. Subclasses have a `name` ([a-z][a-z0-9_]*) and may declare Tunables, its parameters.

    Deterministic: whatever is random comes from the rng that `events` is given, which is made from the seed. Its
    `integers`, `random`, `permutation`, `shuffle` and `choice` are the same on every machine; `normal`, `exponential`
    and their like go through the machine's libm, and sums of floats through its vector width: leave both.
    """

    name: ClassVar[str]
    Tunables: ClassVar[type[Tunables]] = Tunables

    def __init__(self, tunables: Tunables) -> None:
        self.tunables = tunables

    def highest_pid(self) -> int:
        """The highest pid or tid that is used; the first process is 1. Further sources' pids begin above it."""
        return 1

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None] | None:
        """Emit the events, in order.

        As a generator: what was emitted is taken away at each `yield`, so yield now and then (every 100,000 events or
        so) and memory stays bounded. A plain method may emit up to 4 Mi events.
        """
        raise NotImplementedError


@hookspec
def pterefd_register_workloads(register: Callable[[type[Workload]], Any]) -> None:
    """Register workload classes: call `register(cls)` for each. Called once when the plugin is loaded."""
