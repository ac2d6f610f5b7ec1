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
from collections.abc import Callable, Iterator
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
