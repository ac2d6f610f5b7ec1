"""The optimum that knows the future, and the outcomes of runs: small cases computed by hand, and all policies on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pterefd import paths
from pterefd.reclaim.plugins import Plugins
from pterefd.session import costs
from pterefd.session.bound import FOREVER, Needs
from pterefd.session.experiment import Setting, away_ns, run
from pterefd.session.outcome import BOUND, Combination, Outcome
from pterefd.source.source import Source
from pterefd.source.trace import open_trace
from tests.house import AT, SPAN, Event, dontneed, exec_, fault, mmap, write_trace

MIB = 1 << 20
MS = 1_000_000
QUANTUM = 10 * MS


def plugins() -> Plugins:
    loaded = Plugins()
    loaded.load([paths.share("plugins")])
    return loaded


def setting(trace: Path, **given: Any) -> Setting:
    def sources(_seed: int) -> Sequence[Source]:
        return [open_trace(trace)]

    given.setdefault("trigger_tunables", {})
    return Setting(
        sources=sources,
        memory=lambda _nbytes: None,
        plugins=plugins(),
        costs=costs.load(),
        policy_tunables={},
        policies_by_trigger={},
        quantum_ns=QUANTUM,
        **given,
    )


def outcome(trace: Path, policy: str, *triggers: str, profile: str = "rfc-2022", **given: Any) -> Outcome:
    return run(setting(trace, **given), Combination(profile, policy, triggers)).outcome


def at(ms: int, *events: Event) -> Iterable[Event]:
    return ({"t": ms * MS, **event} for event in events)


def empty(span: int) -> list[Event]:
    """One page of a span is written, then both halves are discarded: an empty PTE page stays, under every profile."""
    begin = AT + span * SPAN
    return [fault(1, begin, 4096, write=True), dontneed(1, begin, MIB), dontneed(1, begin + MIB, MIB)]


@pytest.fixture
def two_spans(tmp_path: Path) -> Path:
    """At 1 ms two spans are left with an empty PTE page each; span 0 is needed again at 25 ms; all ends at 39 ms.

    Tables: PUD page, PMD page, two PTE pages: 16 kB. At the end of a quantum (10, 20, 30 ms) the bound frees span 1 at
    10 ms, and span 0 at 30 ms, when it is needed no more.
    """
    events = [
        *at(1, exec_(1, "two"), mmap(1, AT, 3 * SPAN), *empty(0), *empty(1)),
        *at(25, fault(1, AT, 8192, write=True), dontneed(1, AT, MIB)),
        *at(39, {"op": "exit", "pid": 1}),
    ]
    return write_trace(tmp_path / "two.jsonl", events)


def test_the_bound_computed_by_hand(two_spans: Path) -> None:
    """Page tables in kB, before and after what is freed at the end of a quantum; the mean is over 40 ms.

    ms        10       20       30       40
    before    16       12       12        0
    after     12       12        8        0
    Mean of each quantum: (0 + 16) / 2, (12 + 12) / 2, (12 + 12) / 2, (8 + 0) / 2: 9 kB.
    """
    bound = outcome(two_spans, BOUND)
    assert bound.duration_ns == 40 * MS
    assert bound.peak_pgtables_bytes == 16 * 1024
    assert bound.mean_pgtables_bytes == 9 * 1024
    assert bound.freed_empty_bytes == 2 * 4096
    assert bound.allocated_again == 0


def test_nothing_is_freed_without_a_trigger(two_spans: Path) -> None:
    """(0 + 16) / 2, 16, 16, (16 + 0) / 2: 12 kB."""
    none = outcome(two_spans, "none")
    assert none.mean_pgtables_bytes == 12 * 1024
    assert none.freed_bytes == 0


def test_who_frees_all_at_once_makes_a_pte_page_again(two_spans: Path) -> None:
    """Every 10 ms: both at 10 ms, span 0 again at 30 ms, having made it at 25 ms, 15 ms after it was freed.

    before 16, 8, 12, 0; after 8, 8, 8, 0: (0 + 16) / 2, 8, (8 + 12) / 2, (8 + 0) / 2: 7.5 kB, below the bound.
    """
    often = outcome(two_spans, "largest_first", "interval", trigger_tunables={"interval": {"period_ms": 10}})
    assert often.allocated_again == 1
    assert often.freed_empty_bytes == 3 * 4096
    assert often.mean_pgtables_bytes == 7.5 * 1024
    assert often.away_mean_ns == 15 * MS
    assert often.away_p50_ns == 16 * MS
    assert often.freed_by_trigger == {"interval": 3 * 4096}
    # each PTE page costs a hold, and the one made again its making
    once = costs.load()
    hold = once.hold_ns(1)
    assert often.write_held_ns == round(3 * hold)
    assert often.cost_ns == pytest.approx(
        3 * hold
        + once.operations.pte_alloc.ns
        + often.refcount_updates * once.operations.refcount.ns
        + often.rmap_locks * once.operations.rmap_lock.ns,
        abs=1,
    )


def test_refaults_of_zero_pages_are_between_none_and_all(tmp_path: Path) -> None:
    """Three zero PTE pages: 1536 entries of which nobody knows whether they were read again."""
    events = [*at(1, exec_(1, "zero"), mmap(1, AT, 4 * SPAN), fault(1, AT, 3 * SPAN, write=False))]
    events += at(50, {"op": "free_ptes", "pid": 1})
    trace = write_trace(tmp_path / "zero.jsonl", events)
    freed = outcome(trace, "largest_first", "on_demand")
    assert freed.freed_zero_bytes == 3 * 4096
    assert freed.zero_refaults_most == 1536
    assert freed.zero_refaults_ns == round(1536 * costs.load().operations.zero_fault.ns)
    assert outcome(trace, "largest_first", "on_demand", reread=0.25).zero_refaults_most == 384
    assert outcome(trace, "empty_only", "on_demand").zero_refaults_most == 0


def churn(seed: int, spans: int = 40, steps: int = 400) -> list[Event]:
    """Random spans are used, discarded, mapped anew, moved; children are forked and end."""
    rng = np.random.default_rng(seed)
    events: list[Event] = [*at(0, exec_(1, "churn"), mmap(1, AT, spans * SPAN))]
    child = 100
    for step in range(steps):
        where, kind = AT + int(rng.integers(spans)) * SPAN, int(rng.integers(8))
        what: list[Event]
        if kind <= 2:
            what = [fault(1, where, int(rng.integers(1, 512)) * 4096, write=bool(rng.integers(2)))]
        elif kind <= 5:
            what = [dontneed(1, where, MIB), dontneed(1, where + MIB, MIB)]
        elif kind == 6:
            what = [{"op": "munmap", "pid": 1, "addr": where, "len": SPAN}, mmap(1, where, SPAN)]
        else:
            child += 1
            what = [{"op": "fork", "pid": 1, "child": child}, fault(child, where, 4096, write=True)]
            what += [dontneed(child, where, MIB), {"op": "exit", "pid": child}]
        events += at(1 + 3 * step, *what)
    return [*events, *at(3 * steps + 2, {"op": "exit", "pid": 1})]


@pytest.mark.parametrize("profile", ["rfc-2022", "v6.18", "rfc-2022-aligned"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_policy_without_remaking_has_less_than_the_bound(seed: int, profile: str, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "churn.jsonl", churn(seed))
    bound = outcome(trace, BOUND, profile=profile)
    by_itself = outcome(trace, "none", profile=profile).allocated_again
    assert bound.allocated_again <= by_itself  # what the kernel frees by itself and makes again is not the bound's
    everything = {}
    for policy, period in (("largest_first", 10), ("empty_only", 50), ("round_robin", 200), ("none", 10)):
        tunables = {"interval": {"period_ms": period, "kinds": "empty+zero"}}
        everything[policy] = outcome(trace, policy, "interval", "on_demand", profile=profile, trigger_tunables=tunables)
    assert everything["largest_first"].allocated_again > by_itself
    for policy, other in everything.items():
        if other.allocated_again <= by_itself:
            assert other.mean_pgtables_bytes >= bound.mean_pgtables_bytes, policy
    assert bound.mean_pgtables_bytes < everything["none"].mean_pgtables_bytes


def test_needs_are_over_when_their_last_time_has_gone_by() -> None:
    needs = Needs()
    life = (1, 0, 0)
    spans = np.array([10, 20, 30], dtype=np.int64)
    needs.add(life, spans[:2], 100)
    needs.add(life, spans[1:2], 50)
    needs.add(life, np.array([5], dtype=np.int64), FOREVER)
    assert needs.over(life, spans, 99).tolist() == [30]
    assert needs.over(life, spans, 100).tolist() == [10, 20, 30]
    assert needs.over(life, np.array([5, 40], dtype=np.int64), 1 << 60).tolist() == [40]
    assert needs.over((1, 0, 1), spans, 0).tolist() == [10, 20, 30]


@pytest.mark.parametrize(("share", "ms"), [(0.5, 1), (0.75, 4), (0.99, 16)])
def test_how_long_pte_pages_were_away_at_most(share: float, ms: int) -> None:
    assert away_ns([10, 0, 5, 0, 5], share) == ms * MS
    assert away_ns([0, 0], share) == 0


def test_equal_runs_have_equal_results(two_spans: Path) -> None:
    for combination in (
        Combination("rfc-2022", BOUND, ()),
        Combination("rfc-2022", "round_robin", ("interval",), seed=3),
    ):
        assert run(setting(two_spans), combination) == run(setting(two_spans), combination)
