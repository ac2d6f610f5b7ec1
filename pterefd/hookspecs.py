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
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pluggy
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

API_VERSION = 1
PROJECT = "pterefd"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

I64 = npt.NDArray[np.int64]


class Kinds(enum.Flag):
    """Which PTE pages may be freed.

    EMPTY: no entry set.  ZERO: 512 zero-page entries.  MIXED: zero-page entries and none, nothing else; beyond the
    mail, whose two tests miss it, and freed only when asked for: BOTH is the mail's two.
    """

    EMPTY = enum.auto()
    ZERO = enum.auto()
    MIXED = enum.auto()
    BOTH = EMPTY | ZERO

    @property
    def text(self) -> str:
        """As files and the configuration write it: `empty+zero`."""
        return "+".join(str(kind.name).lower() for kind in self)

    @classmethod
    def parse(cls, text: str) -> Kinds:
        """Kinds of `empty`, `zero`, `mixed`, plus signs between them. ValueError."""
        found = cls(0)
        for word in text.split("+"):
            name = word.strip().upper()
            if name not in ("EMPTY", "ZERO", "MIXED"):
                raise ValueError(f"{text!r} is not empty, zero, mixed or several of them with plus signs between")
            found |= cls[name]
        return found


KindsTunable = Annotated[
    Kinds,
    BeforeValidator(lambda value: Kinds.parse(value) if isinstance(value, str) else value),
    PlainSerializer(lambda kinds: kinds.text),
]


class Cause(enum.Enum):
    """What happened that a trigger is asked about."""

    WRITE = "write"  # somebody wrote a pid to sys/vm/free_ptes; Moment.pid, None for every mm
    RECLAIM = "reclaim"  # somebody wrote bytes to sys/vm/pt_reclaim/reclaim; Moment.bytes
    LOW = "low"  # free memory fell below the low watermark
    OOM = "oom"  # the last thing before an OOM kill
    TICK = "tick"  # the trace's time moved on, by about 10 ms


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment at which page tables might be reclaimed.

    time_ns: the host's clock, nanoseconds of the trace's time.  pid: the mm it is about, None for all.
    bytes: bytes that are wanted, 0 where the moment names none.  group: the group whose limit is near, None for the
    whole host.
    """

    cause: Cause
    time_ns: int
    pid: int | None = None
    bytes: int = 0
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ReclaimRequest:
    """A trigger's answer: free up to bytes_wanted (None: all there is) of these kinds, in pid, a group or any mm.

    A moment of a group is answered within the group, whether the request names it or not.
    """

    bytes_wanted: int | None = None
    kinds: Kinds = Kinds.BOTH
    pid: int | None = None
    group: str | None = None


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

    empty_bytes, zero_bytes, mixed_bytes: bytes of PTE pages freed, by kind.  freed: (pid, bytes) as chosen.
    seconds: wall time the act took.  outcome: "done", "partly" (less than was wanted), "nothing" or "failed".
    time_ns: the host's clock.
    """

    trigger: str
    policy: str
    request: ReclaimRequest
    empty_bytes: int
    zero_bytes: int
    freed: tuple[tuple[int, int], ...]
    seconds: float
    outcome: str
    mixed_bytes: int = 0
    time_ns: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of PTE pages freed, of every kind."""
        return self.empty_bytes + self.zero_bytes + self.mixed_bytes


class Usage(NamedTuple):
    """Memory of the host or of a group, in bytes. min, low, high: the host's watermarks of free.

    limit: a group's memory.max, 0 where there is none; its total is that, or else the host's.  All 0 on a host without
    accounts of memory.
    """

    total: int = 0
    free: int = 0
    anon: int = 0
    file: int = 0
    shmem: int = 0
    pgtables: int = 0
    swap_total: int = 0
    swap_free: int = 0
    min: int = 0
    low: int = 0
    high: int = 0
    limit: int = 0


class HostNumbers(Protocol):
    """The machine itself, read-only."""

    @property
    def total(self) -> int:
        """Bytes of memory; 0 where the host keeps no accounts of it."""

    @property
    def free(self) -> int:
        """Bytes that are free."""

    @property
    def min(self) -> int:
        """Watermark, bytes: below it whoever allocates reclaims."""

    @property
    def low(self) -> int:
        """Watermark, bytes: below it kswapd wakes."""

    @property
    def high(self) -> int:
        """Watermark, bytes: kswapd works up to it."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups; `View.group` holds indices in it."""

    def usage(self, group: str | None = None) -> Usage:
        """All numbers of the host, or of a group. KeyError where there is no such group."""


class View(Protocol):
    """The host as last published: read-only arrays over all mms, row i of each is the same mm.

    All are 1-D and of one length n; sizes are bytes, times nanoseconds of the trace's time. A policy over many mms is
    an expression over these, or a walk of the first few of `ranking`. A policy that serves a request for one mm or for
    one group is handed a view of those mms alone.
    """

    @property
    def time_ns(self) -> int:
        """The host's clock, nanoseconds of the trace's time."""

    @property
    def rng(self) -> random.Random:
        """This decision's own generator, seeded by the host's: the only randomness that a plugin may use."""

    @property
    def host(self) -> HostNumbers:
        """Memory of the machine and of its groups."""

    @property
    def pid(self) -> npt.NDArray[np.int32]:
        """Ascending."""

    @property
    def group(self) -> npt.NDArray[np.int32]:
        """Index of the mm's group in `host.groups`, -1 for none."""

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
    def total_vm_bytes(self) -> I64:
        """VmSize."""

    @property
    def oom_score(self) -> I64:
        """/proc/PID/oom_score: 0 to 1333, 666 for a small idle process. Of a host without accounts of memory as if what
        its mms use were all there is."""

    @property
    def faults(self) -> I64:
        """Faults so far."""

    @property
    def major_faults(self) -> I64:
        """Faults that had to read a page from swap or a file."""

    @property
    def fault_rate(self) -> npt.NDArray[np.float64]:
        """Faults per second of the trace's time: a moving average over the decisions that looked, of about a second."""

    @property
    def last_fault_ns(self) -> I64:
        """Time of the last fault."""

    @property
    def oldest_reclaimable_ns(self) -> I64:
        """Since when the mm has had reclaimable PTE pages without a break; 0 where it has none, or unknown."""

    @property
    def freed_bytes(self) -> I64:
        """PTE pages freed so far, on request and by the profile itself."""

    @property
    def again_bytes(self) -> I64:
        """PTE pages that were made again where one had been freed so."""

    def sizes(self, kinds: Kinds) -> I64:
        """What could be freed of these kinds."""

    def comm(self, pid: int) -> str:
        """The name of the mm's process, up to 15 characters."""

    def ranking(self, kinds: Kinds) -> Iterator[int]:
        """Pids by falling reclaimable bytes of these kinds, those with none left out. O(1) an item for BOTH."""


class Tunables(BaseModel):
    """Base of a plugin's tunables: fields with ranges; each becomes a file."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Trigger:
    """When to reclaim. Subclasses have a `name` ([a-z][a-z0-9_]*) and may declare Tunables.

    causes: the moments it is asked about; others cost nothing.
    """

    name: ClassVar[str]
    causes: ClassVar[frozenset[Cause]] = frozenset(Cause)
    Tunables: ClassVar[type[Tunables]] = Tunables

    def __init__(self, tunables: Tunables) -> None:
        self.tunables = tunables

    def request(self, view: View, moment: Moment) -> ReclaimRequest | None:
        """Answer a moment: what to free now, or None for nothing. Called without the host's lock."""
        raise NotImplementedError

    def observe(self, result: ReclaimResult) -> None:
        """What came of a request of this trigger's."""

    def state(self) -> dict[str, Any]:
        """What it remembers, as JSON has it: taken for checkpoints and replays on other machines."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state() of another instance."""


class Policy:
    """Which mms, in what order, which kinds and how much. Subclasses have a `name` and may declare Tunables."""

    name: ClassVar[str]
    Tunables: ClassVar[type[Tunables]] = Tunables

    def __init__(self, tunables: Tunables) -> None:
        self.tunables = tunables

    def choose(self, view: View, request: ReclaimRequest) -> Iterator[Choice]:
        """Yield choices in order; asked no further than the request needs. Called without the host's lock."""
        raise NotImplementedError

    def observe(self, result: ReclaimResult) -> None:
        """What came of this policy's choices."""

    def state(self) -> dict[str, Any]:
        """What it remembers, as JSON has it: taken for checkpoints and replays on other machines."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state() of another instance."""


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
