"""One combination of a comparison: its events on a host of its own, start to end, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pterefd import log
from pterefd.engine.layout import PAGE
from pterefd.errors import PterefdError
from pterefd.host.counters import MmCounters
from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.host.process import Process
from pterefd.mm.profile import PF_LAST_REF, PF_PERCPU_REF, PF_TRACK, named
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.bound import MOST_PASSES, PATIENT_PASSES, BoundReclaimer, Needs
from pterefd.session.costs import Costs
from pterefd.session.holds import Holds
from pterefd.session.mix import Mix
from pterefd.session.outcome import BOUND, Combination, Killed, Outcome, Result, Series

if TYPE_CHECKING:
    from pterefd.hookspecs import ReclaimResult
    from pterefd.reclaim.plugins import Plugins
    from pterefd.source.source import Source

ENTRIES = 512  # of a PTE page
QUANTUM_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What all combinations of a comparison share.

    sources: made anew for every run, which goes through them once.  memory: of this many bytes; 0: none is accounted.
    reread: share of the entries of freed zero PTE pages that is assumed to be read again, 0 to 1.
    """

    sources: Callable[[int], Sequence[Source]]  # seed ->
    memory: Callable[[int], Memory | None]  # bytes ->
    plugins: Plugins
    costs: Costs
    policy_tunables: dict[str, dict[str, object]]
    trigger_tunables: dict[str, dict[str, object]]
    policies_by_trigger: dict[str, str]
    reread: float = 1.0
    quantum_ns: int = QUANTUM_NS


class _Run:
    """One host and what is counted on it."""

    def __init__(self, setting: Setting, combination: Combination) -> None:
        self.setting = setting
        self.combination = combination
        memory = setting.memory(combination.memory_bytes)
        self.host = Host(named(combination.profile), seed=combination.seed, memory=memory)
        self.accounted = memory is not None
        self.holds = Holds(self.host, setting.costs, setting.quantum_ns)
        self.series = Series()
        self.freed: Counter[str] = Counter()  # by kind
        self.by_trigger: Counter[str] = Counter()
        self.acts = 0
        self.sums: Counter[str] = Counter()  # counters of mms that have ended
        self._peak = [0, 0]  # page tables, reclaimable
        self._integral = [0, 0]  # ... bytes times ns
        self._last = (0, 0, 0)  # time, page tables, reclaimable
        self.host.on_teardown = self._ended

    # ---- as the run goes ----------------------------------------------------------------------

    def look(self) -> tuple[int, int]:
        """Bytes of page tables and of reclaimable ones, now: the peak is held against them."""
        view = self.host.view()
        now = (int(view.pgtables_bytes.sum()), int(view.reclaimable_bytes.sum()))
        self._peak = [max(pair) for pair in zip(self._peak, now, strict=True)]
        return now

    def tick(self, act: Callable[[], object]) -> None:
        """A quantum has ended: what it came to, then the triggers' turn."""
        host = self.host
        before = self.look()
        time_ns, *values = self._last
        for k in range(2):
            self._integral[k] += (values[k] + before[k]) * (host.time_ns - time_ns)
        self.series.time_ns.append(host.time_ns)
        self.series.pgtables_bytes.append(before[0])
        self.series.reclaimable_bytes.append(before[1])
        if self.accounted:
            self.series.free_bytes.append(host.usage().free)
        self.holds.settle(host.time_ns)
        act()
        self._last = (host.time_ns, *self.look())

    def acted(self, trigger: str, kinds: dict[str, int], freed: Sequence[tuple[int, int]]) -> None:
        """An act of reclaim is done. freed: (pid, bytes)."""
        self.acts += 1
        self.freed.update(kinds)
        self.by_trigger[trigger] += sum(kinds.values())
        for pid, nbytes in freed:
            self.holds.freed(pid, nbytes // PAGE)

    def _ended(self, _process: Process, counters: MmCounters) -> None:
        self._add(counters)

    def _add(self, c: MmCounters) -> None:
        self.sums.update(
            freed_by_itself=c.freed_by_itself,
            allocated_again=c.allocated_again,
            refcount_updates=c.refcount_updates,
            walker_pairs=c.walker_pairs,
            rmap_locks=c.rmap_locks,
            write_holds=c.mmap_write_holds,
            away_ns=c.away_ns,
        )

    # ---- at its end ---------------------------------------------------------------------------

    def result(self, events: int, plugin_errors: int) -> Result:
        """What it came to."""
        host = self.host
        for pid in host.pids():
            self._add(host.counters(pid))
        duration = max(host.time_ns, 1)
        kills = tuple(Killed(k.time_ns, k.pid, k.comm, k.group) for k in host.kills)
        if self.accounted:
            usage = host.usage()
            self.series.min_bytes, self.series.low_bytes, self.series.high_bytes = usage.min, usage.low, usage.high
        again = self.sums["allocated_again"]
        outcome = Outcome(
            duration_ns=host.time_ns,
            events=events,
            lost=host.lost,
            peak_pgtables_bytes=self._peak[0],
            mean_pgtables_bytes=round(self._integral[0] / 2 / duration),
            peak_reclaimable_bytes=self._peak[1],
            mean_reclaimable_bytes=round(self._integral[1] / 2 / duration),
            acts=self.acts,
            freed_empty_bytes=self.freed["empty"],
            freed_zero_bytes=self.freed["zero"],
            freed_mixed_bytes=self.freed["mixed"],
            freed_by_trigger=dict(sorted(self.by_trigger.items())),
            freed_by_itself=self.sums["freed_by_itself"],
            kills=len(kills),
            first_kill_ns=kills[0].time_ns if kills else None,
            killed=kills,
            panicked=host.panicked is not None,
            **{name: host.vmstat.get(name, 0) for name in ("pswpin", "pswpout", "pgmajfault")},
            allocated_again=again,
            away_mean_ns=self.sums["away_ns"] // again if again else 0,
            away_p50_ns=away_ns(host.away_classes, 0.5),
            away_p99_ns=away_ns(host.away_classes, 0.99),
            plugin_errors=plugin_errors,
            **self._counts(),
            **self._costs(),
        )
        return Result(self.combination, outcome, self.series)

    def _counts(self) -> dict[str, int]:
        """What the profile's way of freeing keeps count of; a kernel without it pays nothing (docs/costs.md)."""
        flags = self.host.profile.flags
        counts = bool(flags & (PF_TRACK | PF_LAST_REF | PF_PERCPU_REF))
        walks = bool(flags & (PF_LAST_REF | PF_PERCPU_REF))
        return {
            "refcount_updates": counts * self.sums["refcount_updates"],
            "walker_pairs": walks * self.sums["walker_pairs"],
            "rmap_locks": self.sums["rmap_locks"],
            "write_holds": self.sums["write_holds"],
        }

    def _costs(self) -> dict[str, Any]:
        """What it all took, by the table of costs."""
        once = self.setting.costs.operations
        sums, vmstat, counts = self.sums, self.host.vmstat, self._counts()
        atomic = self.host.profile.flags & PF_LAST_REF
        update = once.atomic_refcount if atomic else once.refcount
        walk = once.walker.ns if atomic else 2 * once.refcount.ns  # a percpu_ref's get and put are plain additions
        overhead = (
            counts["refcount_updates"] * update.ns
            + counts["walker_pairs"] * walk
            + counts["rmap_locks"] * once.rmap_lock.ns
        )
        held = self.holds.held_ns
        again = sums["allocated_again"] * once.pte_alloc.ns
        refaults = round(self.freed["zero"] // PAGE * ENTRIES * self.setting.reread)
        swap = 0.0
        if once.swap_in is not None and once.swap_out is not None:
            swap = vmstat.get("pswpin", 0) * once.swap_in.ns + vmstat.get("pswpout", 0) * once.swap_out.ns
        return {
            "swap_ns": round(swap),
            "zero_refaults_most": refaults,
            "zero_refaults_ns": round(refaults * once.zero_fault.ns),
            "write_held_ns": round(held),
            "faults_in_hold": round(self.holds.faults, 3),
            "wait_p50_ns": round(self.holds.wait_ns(0.5)),
            "wait_p99_ns": round(self.holds.wait_ns(0.99)),
            "overhead_ns": round(overhead),
            "cost_ns": round(overhead + held + again),
        }


def away_ns(classes: Sequence[int], share: float) -> int:
    """The time that this share of the PTE pages made again was away at most: the upper end of its class."""
    total, so_far = sum(classes), 0
    for c, number in enumerate(classes):
        so_far += number
        if total and so_far >= share * total:
            return (1 << c) * 1_000_000
    return 0


def run(setting: Setting, combination: Combination) -> Result:
    """Run one combination. BadInput: no such profile, policy or trigger, or events that cannot be run."""
    if combination.policy == BOUND:
        return _run_bound(setting, combination)
    one = _Run(setting, combination)
    reclaimer = Reclaimer(
        one.host,
        setting.plugins,
        log.silent(),
        policy=combination.policy,
        triggers=combination.triggers,
        policy_tunables=setting.policy_tunables,
        trigger_tunables=setting.trigger_tunables,
        policies_by_trigger=setting.policies_by_trigger,
        deadline=None,  # by the wall clock: a busy machine would change the outcome
    )

    def note(result: ReclaimResult) -> None:
        kinds = {"empty": result.empty_bytes, "zero": result.zero_bytes, "mixed": result.mixed_bytes}
        one.acted(result.trigger, kinds, result.freed)

    reclaimer.on_result(note)

    def pressed(*about: object) -> int:
        one.look()
        return reclaimer.pressure(*about)  # type: ignore[arg-type]

    def asked(pid: int) -> None:
        one.look()
        reclaimer.free_ptes(pid)

    one.host.on_pressure = pressed
    mix = Mix(
        setting.sources(combination.seed),
        one.host,
        on_free_ptes=asked,
        on_tick=lambda: one.tick(reclaimer.tick),
        quantum_ns=setting.quantum_ns,
    )
    return one.result(mix.run(), sum(reclaimer.plugin_errors.values()))


def _run_bound(setting: Setting, combination: Combination) -> Result:
    """The optimum: passes until one makes no PTE page again."""
    needs = Needs()
    for number in range(MOST_PASSES):
        result, again = _bound_pass(setting, combination, needs, number)
        if not again:
            return result
    raise PterefdError(f"the bound under {combination.profile} is not found in {MOST_PASSES} passes")


def _bound_pass(setting: Setting, combination: Combination, needs: Needs, number: int) -> tuple[Result, int]:
    """One pass, and the PTE pages that it freed and had to make again."""
    one = _Run(setting, combination)

    def freed(pid: int, empty: int, zero: int) -> None:
        one.acted(BOUND, {"empty": empty, "zero": zero}, [(pid, empty + zero)])

    optimum = BoundReclaimer(one.host, needs, freed, forgive=number < PATIENT_PASSES)

    def ended(process: Process, counters: MmCounters) -> None:
        optimum.ended(process, counters)
        one._add(counters)

    def pressed(*about: object) -> int:
        one.look()
        return optimum.tick()

    one.host.on_teardown = ended
    one.host.on_pressure = pressed
    mix = Mix(
        setting.sources(combination.seed),
        one.host,
        on_free_ptes=optimum.free_ptes,
        on_tick=lambda: one.tick(optimum.tick),
        quantum_ns=setting.quantum_ns,
    )
    events = mix.run()
    optimum.close()
    return one.result(events, 0), optimum.again
