"""What one combination of a comparison came to: plain numbers, and how they went over the trace's time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

BOUND = "bound"  # in the place of a policy: the optimum that knows the future
NO_TRIGGER = "none"


@dataclass(frozen=True, slots=True)
class Combination:
    """What is compared. triggers: () for none, and the policy is "none" then.  memory_bytes: 0 for no limit."""

    profile: str
    policy: str
    triggers: tuple[str, ...]
    memory_bytes: int = 0
    seed: int = 0

    @property
    def trigger(self) -> str:
        """The triggers in one word: `watermark+pre_oom`."""
        return "+".join(self.triggers) or NO_TRIGGER

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {
            "profile": self.profile,
            "policy": self.policy,
            "trigger": self.trigger,
            "memory_bytes": self.memory_bytes,
            "seed": self.seed,
        }


class Killed(NamedTuple):
    """One kill: the trace's time, of whom, and the group whose limit it was ("" the host's)."""

    time_ns: int
    pid: int
    comm: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Bytes, nanoseconds, PTE pages and events as the names say; times are the trace's, costs the table's.

    peak_*, mean_*: over the trace's time, looked at after every quantum and before every act.
    freed_*_bytes: by triggers and requests.  freed_by_trigger: the same by trigger.  freed_by_itself: PTE pages that
    the profile frees short of munmap and exit.  lost: events of mms that were killed, or of mappings refused.
    allocated_again: PTE pages made where one had been freed; away_*: for how long it was missing (0 where none was).
    zero_refaults_most: of the entries of zero PTE pages that were freed, how many may have been read again, which no
    recording shows: between 0 and this.  zero_refaults_ns: what so many take.
    write_held_ns: mmap_lock held for writing by freeing.  faults_in_hold: faults of the same mm that are expected to
    have met a hold; wait_*: for how long.
    refcount_updates, walker_pairs, rmap_locks, write_holds: docs/costs.md.  overhead_ns: what they take.
    cost_ns: all that freeing took: write_held_ns, overhead_ns, and the PTE pages made again.
    """

    duration_ns: int = 0
    events: int = 0
    lost: int = 0
    peak_pgtables_bytes: int = 0
    mean_pgtables_bytes: int = 0
    peak_reclaimable_bytes: int = 0
    mean_reclaimable_bytes: int = 0
    acts: int = 0
    freed_empty_bytes: int = 0
    freed_zero_bytes: int = 0
    freed_mixed_bytes: int = 0
    freed_by_trigger: dict[str, int] = field(default_factory=dict)
    freed_by_itself: int = 0
    kills: int = 0
    first_kill_ns: int | None = None
    killed: tuple[Killed, ...] = ()
    panicked: bool = False
    pswpin: int = 0
    pswpout: int = 0
    pgmajfault: int = 0
    swap_ns: int = 0
    allocated_again: int = 0
    away_mean_ns: int = 0
    away_p50_ns: int = 0
    away_p99_ns: int = 0
    zero_refaults_most: int = 0
    zero_refaults_ns: int = 0
    write_held_ns: int = 0
    faults_in_hold: float = 0.0
    wait_p50_ns: int = 0
    wait_p99_ns: int = 0
    refcount_updates: int = 0
    walker_pairs: int = 0
    rmap_locks: int = 0
    write_holds: int = 0
    overhead_ns: int = 0
    cost_ns: int = 0
    plugin_errors: int = 0

    @property
    def freed_bytes(self) -> int:
        """All kinds."""
        return self.freed_empty_bytes + self.freed_zero_bytes + self.freed_mixed_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: keys in the order above."""
        given = asdict(self)
        given["killed"] = [kill._asdict() for kill in self.killed]
        given["freed_by_trigger"] = dict(sorted(self.freed_by_trigger.items()))
        return given


def outcome_from_dict(given: dict[str, Any]) -> Outcome:
    """The outcome that as_dict() made the dictionary of."""
    return Outcome(**{**given, "killed": tuple(Killed(**kill) for kill in given["killed"])})


NUMBERS = tuple(f.name for f in fields(Outcome) if f.name not in ("killed", "freed_by_trigger"))


@dataclass(slots=True)
class Series:
    """How the host went, a value at the end of every quantum of the trace's time; one list a column.

    free, low, min: empty where the host's memory has no limit.
    """

    time_ns: list[int] = field(default_factory=list)
    pgtables_bytes: list[int] = field(default_factory=list)
    reclaimable_bytes: list[int] = field(default_factory=list)
    free_bytes: list[int] = field(default_factory=list)
    min_bytes: int = 0
    low_bytes: int = 0
    high_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One combination, done."""

    combination: Combination
    outcome: Outcome
    series: Series
