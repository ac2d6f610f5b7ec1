"""How long a kernel takes for a trace's operations, and how long the model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from pterefd.engine.arena import Limits
from pterefd.host.host import Host
from pterefd.mm import events as ev
from pterefd.mm.profile import Profile
from pterefd.reenact.kernel import Kernel
from pterefd.reenact.operations import Survey, operations
from pterefd.reenact.run import Reenactment, agents_for
from pterefd.session.feed import Feed
from pterefd.source.trace import Trace

RUNS = 5
# What is timed: system calls and accesses. Not forks, execs and exits, of which the agent makes more than the trace.
TIMED = np.array([ev.OP_CODE[name] for name in ("fault", "mmap", "munmap", "mremap", "mprotect", "brk", "madvise")])
TIMED = np.append(TIMED, [ev.OP_MLOCK, ev.OP_MUNLOCK])


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds of each run, for the same events."""

    events: int
    kernel_ns: list[int]
    model_ns: list[int]

    @property
    def ratio(self) -> float:
        """How many times as long the kernel takes, by the medians."""
        return median(self.kernel_ns) / max(median(self.model_ns), 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "events": self.events,
            "kernel_ns": self.kernel_ns,
            "model_ns": self.model_ns,
            "kernel_median_ns": median(self.kernel_ns),
            "model_median_ns": median(self.model_ns),
            "ratio": self.ratio,
        }

    def __str__(self) -> str:
        kernel, model = median(self.kernel_ns), median(self.model_ns)
        each = max(self.events, 1)
        return (
            f"{self.events:,} calls and accesses: kernel {kernel / 1e6:.3g} ms ({kernel / each:.3g} ns each), "
            f"model {model / 1e6:.3g} ms ({model / each:.3g} ns each), {self.ratio:.3g} times as long; "
            f"medians of {len(self.kernel_ns)} runs"
        )


def time_both(trace: Trace, kernel: Kernel, found: Survey, profile: Profile, runs: int = RUNS) -> Timing:
    """Run the trace's operations on both, so many times, after one run that is not counted.

    The kernel's time is taken in the agent, around its batches; no counters are read.
    """
    here, model, events = [], [], 0
    for _ in range(runs + 1):
        here.append(_kernel_ns(trace, kernel, found))
        events, nanoseconds = _model_ns(trace, profile)
        model.append(nanoseconds)
    return Timing(events, here[1:], model[1:])


def _kernel_ns(trace: Trace, kernel: Kernel, found: Survey) -> int:
    with agents_for(kernel, found) as (group, slot):
        run = Reenactment(group, found, slot, lambda row, index: None, swap=kernel.swap, counting=False)
        return run.run(operations(trace)).kernel_ns


def _model_ns(trace: Trace, profile: Profile) -> tuple[int, int]:
    """(events, time) of the same on a host: without decoding, and without what is not timed."""
    feed = Feed(trace, Host(profile, limits=Limits()))
    events = spent = 0
    for batch in trace.batches():
        timed = np.isin(batch.op, TIMED)
        cuts = np.flatnonzero(np.diff(timed)) + 1
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(batch)], strict=True):
            began = time.perf_counter_ns()
            feed.run(batch, begin, end)
            if begin < end and timed[begin]:
                spent += time.perf_counter_ns() - began
                events += end - begin
    return events, spent
