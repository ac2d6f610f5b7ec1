"""What each built-in policy frees, of mms whose PTE pages are counted by hand; and the triggers that ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pterefd.hookspecs import Cause, Kinds, Moment, ReclaimResult
from pterefd.host.host import Host
from pterefd.reclaim.reclaimer import Reclaimer
from tests.build import batch, host, run
from tests.host.test_host import waste
from tests.reclaim.built import PAGE, B, M, make, plugin, policy, read, trigger


def zoo() -> Host:
    """pid: empty + zero PTE pages: 1: 2+0, 2: 5+0, 3: 0+4, 4: 0+0."""
    machine = host("rfc-2022")
    waste(machine, 1, 2)
    waste(machine, 2, 5)
    read(machine, 3, 4)
    run(machine, ("exec", 4), ("mmap", 4, B, M), ("fault", 4, B, M, 1))
    return machine


def pages(result: ReclaimResult | None) -> list[tuple[int, int]]:
    """(pid, PTE pages) in the order of choice."""
    assert result is not None
    return [(pid, nbytes // PAGE) for pid, nbytes in result.freed]


@pytest.mark.parametrize(
    ("name", "tunables", "wanted", "expected"),
    [
        ("largest_first", {}, 99, [(2, 5), (3, 4), (1, 2)]),
        ("largest_first", {}, 6, [(2, 5), (3, 1)]),
        ("smallest_first", {}, 99, [(1, 2), (3, 4), (2, 5)]),
        ("smallest_first", {}, 3, [(1, 2), (3, 1)]),
        # 11 pages in all: 4 of them are 8/11, 20/11, 16/11 pages, so 0, 1, 1 and one more each for the largest rests
        ("proportional", {}, 4, [(2, 2), (1, 1), (3, 1)]),
        ("proportional", {}, 11, [(2, 5), (3, 4), (1, 2)]),
        ("proportional", {}, 99, [(2, 5), (3, 4), (1, 2)]),
        # tables: pid 1 has 2 PTE + PMD + PUD = 4 pages, 2 has 7, 3 has 6: of 4 pages 16/17, 28/17, 24/17
        ("proportional", {"by": "pgtables"}, 4, [(2, 2), (1, 1), (3, 1)]),
        ("empty_only", {}, 99, [(2, 5), (1, 2)]),
        ("round_robin", {}, 99, [(1, 2), (2, 5), (3, 4)]),
        ("round_robin", {"turn_bytes": PAGE}, 7, [(1, 1), (2, 1), (3, 1), (1, 1), (2, 1), (3, 1), (2, 1)]),
        ("none", {}, 99, []),
    ],
)
def test_what_a_policy_frees(name: str, tunables: dict[str, Any], wanted: int, expected: list[tuple[int, int]]) -> None:
    reclaimer, _ = make(zoo(), policy=name, policy_tunables={name: tunables})
    result = reclaimer.reclaim(wanted * PAGE)
    assert pages(result) == expected
    assert result is not None
    assert reclaimer.plugin_errors == {}
    number = sum(n for _, n in expected)
    assert result.outcome == ("nothing" if number == 0 else "done" if number == wanted else "partly")


def test_one_mm_is_what_every_policy_frees_when_asked_for_it() -> None:
    for name in make(zoo())[0].available_policies():
        reclaimer, _ = make(zoo(), policy=name)
        assert pages(reclaimer.free_ptes(2)) == ([] if name == "none" else [(2, 5)]), name
        assert reclaimer.plugin_errors == {}


def test_round_robin_goes_on_behind_who_gave_last() -> None:
    reclaimer, _ = make(zoo(), policy="round_robin")
    assert pages(reclaimer.reclaim(PAGE)) == [(1, 1)]
    assert pages(reclaimer.reclaim(PAGE)) == [(2, 1)]
    kept = json.loads(json.dumps(reclaimer.state()))
    assert pages(reclaimer.reclaim(PAGE)) == [(3, 1)]
    other, _ = make(zoo(), policy="round_robin")
    other.restore(kept)
    assert pages(other.reclaim(PAGE)) == [(3, 1)]
    assert pages(other.reclaim(PAGE)) == [(1, 1)]


def at(time_ms: int, *events: Any) -> Any:
    """Events at a time of the trace."""
    whole = batch(events)
    whole.t[:] = time_ms * 1_000_000
    return whole


def play(machine: Host, whole: Any) -> None:
    assert machine.run(whole, 0, len(whole)) == len(whole)


def test_idle_first_takes_who_has_not_faulted_for_longest() -> None:
    machine = zoo()
    for time_ms, pid in ((100, 2), (200, 1), (300, 3)):
        play(machine, at(time_ms, ("mmap", pid, B - 4 * M, M), ("fault", pid, B - 4 * M, PAGE, 1)))
    assert machine.view().last_fault_ns.tolist()[:3] == [200_000_000, 100_000_000, 300_000_000]
    reclaimer, _ = make(machine, policy="idle_first", policy_tunables={"idle_first": {"idle_ms": 150}})
    assert pages(reclaimer.free_ptes(None)) == [(2, 5)]
    reclaimer, _ = make(machine, policy="idle_first")
    assert pages(reclaimer.free_ptes(None)) == [(1, 2), (3, 4)]


def test_oom_score_first_goes_by_memory_and_by_the_adjustment() -> None:
    machine = host("rfc-2022")
    for pid, adj in ((1, 0), (2, 0), (3, 900), (4, -1000)):
        run(machine, ("exec", pid, 0, 0, {"comm": "x", "oom_score_adj": adj}), ("mmap", pid, B, 64 * M))
        run(machine, ("fault", pid, B, (8 if pid == 2 else 4) * M, 1), ("fault", pid, B + 32 * M, 2 * M, 0))
    reclaimer, _ = make(machine, policy="oom_score_first")
    assert pages(reclaimer.free_ptes(None)) == [(3, 1), (2, 1), (1, 1), (4, 1)]
    # 5125 pages of RSS, 8 + 4 + 4 + 4 pages of tables are all: an adjustment of 900 is 900 * 5 pages
    score = machine.view().oom_score.tolist()
    total = 4 * 1024 + 1024 + 4 + sum(2 + n for n in (2, 4, 2, 2)) - 4
    assert score[3] == 0
    assert score[2] > score[1] > score[0] > 666
    assert score[0] == (1000 + (1024 + 4) * 1000 // total) * 2 // 3


def test_mixed_pages_are_freed_only_when_asked_for(tmp_path: Path) -> None:
    machine = zoo()
    read(machine, 5, 3, pages=100)
    read(machine, 6, 2, pages=511)
    assert machine.counters(5).mixed_bytes == 3 * PAGE
    assert machine.free_ptes(5, Kinds.BOTH, None) == (0, 0, 0)
    reclaimer, _ = make(machine, policy_tunables={})
    assert sum(n for _, n in pages(reclaimer.free_ptes(None))) == 11
    reclaimer, log = make(machine, trigger_tunables={"on_demand": {"kinds": "mixed"}})
    before = machine.counters(5).pgtables_bytes
    assert pages(reclaimer.reclaim(4 * PAGE)) == [(5, 3), (6, 1)]
    assert machine.counters(5).pgtables_bytes == before - 3 * PAGE
    assert machine.counters(5).zero_entries == 0
    assert reclaimer.totals["on_demand", "largest_first", "mixed"] == 4 * PAGE
    assert (log.lines[-1][1]["mixed_bytes"], log.lines[-1][1]["kinds"]) == (4 * PAGE, "mixed")
    machine.validate()
    run(machine, ("fault", 5, B, PAGE, 0))
    assert machine.counters(5).allocated_again == 1


def test_mixed_pages_far_apart_are_found_in_order() -> None:
    """Three GiB slots; up to two of the four pages at a time."""
    machine = host("rfc-2022")
    run(machine, ("exec", 1), ("mmap", 1, B, 3 << 30))
    for offset in (0, 4 * M, 1 << 30, (2 << 30) + 6 * M):
        run(machine, ("fault", 1, B + offset, PAGE, 0))
    assert machine.free_ptes(1, Kinds.MIXED, 2 * PAGE) == (0, 0, 2 * PAGE)
    assert machine.free_ptes(1, Kinds.MIXED | Kinds.BOTH, None) == (0, 0, 2 * PAGE)
    assert machine.counters(1).pte_bytes == 0
    kept = host("percpu-2022")
    read(kept, 1, 1, pages=7)
    assert kept.free_ptes(1, Kinds.MIXED, None) == (0, 0, PAGE)


# -- what a view knows besides -----------------------------------------------------------------------


def test_fault_rates_are_per_second_of_the_trace_and_smoothed(tmp_path: Path) -> None:
    machine = host("rfc-2022")
    seen: list[float] = []
    body = policy("self.seen.append(view.fault_rate.tolist()); yield from ()", more="seen = []")
    plugin(tmp_path, "rates", body)
    reclaimer, _ = make(machine, tmp_path, policy="mine")
    play(machine, at(0, ("exec", 1), ("mmap", 1, B, 64 * M)))
    play(machine, at(2000, *(("fault", 1, B + i * PAGE, PAGE, 1) for i in range(1000))))
    reclaimer.free_ptes(None)
    play(machine, at(4000, *(("fault", 1, B + i * PAGE, PAGE, 1) for i in range(1000, 1200))))
    kept = reclaimer.state()
    reclaimer.free_ptes(None)
    reclaimer.free_ptes(None)
    seen = [rate for (rate,) in reclaimer._policies["mine"].seen]
    smoothed = 500 + (1 - np.exp(-2)) * (100 - 500)
    assert seen == pytest.approx([500, smoothed, smoothed])
    other, _ = make(machine, tmp_path, policy="mine")
    other.restore(json.loads(json.dumps(kept)))
    other.free_ptes(None)
    assert [rate for (rate,) in other._policies["mine"].seen] == pytest.approx([smoothed])


def test_the_rng_is_the_same_for_the_same_seed_and_another_for_each_decision(tmp_path: Path) -> None:
    plugin(tmp_path, "dice", policy("self.seen.append(view.rng.random()); yield from ()", more="seen = []"))

    def drawn(seed: int) -> list[float]:
        machine = zoo()
        machine.seed = seed
        reclaimer, _ = make(machine, tmp_path, policy="mine")
        for _ in range(3):
            reclaimer.free_ptes(None)
        return list(reclaimer._policies["mine"].seen)

    assert drawn(7) == drawn(7)
    assert len({*drawn(7), *drawn(8)}) == 6


def test_a_result_is_fed_back_to_those_who_made_it(tmp_path: Path) -> None:
    told = "def observe(self, result): self.seen.append((result.trigger, result.policy, result.bytes))"
    plugin(tmp_path, "p", policy("yield Choice(1)", more=f"seen = []\n    {told}"))
    plugin(tmp_path, "t", trigger("return ReclaimRequest()", more=f"seen = []\n    {told}"))
    reclaimer, _ = make(zoo(), tmp_path, policy="mine", triggers=("mine",))
    reclaimer.free_ptes(None)
    for seats in (reclaimer._policies, reclaimer._triggers):
        assert seats["mine"].seen == [("mine", "mine", 2 * PAGE)]


def test_freed_and_made_again_so_far() -> None:
    machine = zoo()
    machine.free_ptes(2, Kinds.BOTH, 3 * PAGE)
    run(machine, ("fault", 2, B, PAGE, 1))
    view = machine.view()
    assert view.pid.tolist() == [1, 2, 3, 4]
    assert view.freed_bytes.tolist() == [0, 3 * PAGE, 0, 0]
    assert view.again_bytes.tolist() == [0, PAGE, 0, 0]
    assert view.faults.tolist()[1] == machine.counters(2).faults
    assert view.sizes(Kinds.EMPTY | Kinds.ZERO).tolist() == [2 * PAGE, 2 * PAGE, 4 * PAGE, 0]
    assert view.group.tolist() == [-1] * 4


# -- triggers ------------------------------------------------------------------------------------------


def ticks(machine: Host, reclaimer: Reclaimer, *times_ms: int) -> list[int]:
    """The times at which something was freed, of ticks at these."""
    acted = []
    for time_ms in times_ms:
        before = sum(reclaimer.runs.values())
        play(machine, at(time_ms, ("thread", 4, 0, 0, time_ms)))
        reclaimer.tick()
        acted += [time_ms] * (sum(reclaimer.runs.values()) - before)
    return acted


def test_interval_acts_once_a_period_and_frees_empty_pages_only() -> None:
    machine = zoo()
    options = {"triggers": ("interval",), "trigger_tunables": {"interval": {"period_ms": 100}}}
    reclaimer, _ = make(machine, **options)
    assert reclaimer.ticking
    assert ticks(machine, reclaimer, 50, 90, 100, 150, 199, 230, 320, 330) == [100, 230, 330]
    assert machine.view().empty_bytes.sum() == 0
    assert machine.view().zero_bytes.sum() == 4 * PAGE
    other, _ = make(machine, **options)
    other.restore(reclaimer.state())
    assert ticks(machine, other, 400, 429, 430) == [430]


def test_triggers_are_asked_for_their_own_causes_alone(tmp_path: Path) -> None:
    plugin(tmp_path, "t", trigger("1/0", more="causes = frozenset({Cause.LOW})"))
    reclaimer, _ = make(zoo(), tmp_path, triggers=("mine", "on_demand"))
    assert reclaimer.free_ptes(None) is not None
    assert not reclaimer.ticking
    assert reclaimer.plugin_errors == {}
    assert reclaimer.pressure(Cause.OOM, None, PAGE) == 0
    assert reclaimer.plugin_errors == {}
    assert reclaimer.pressure(Cause.LOW, None, PAGE) == 0
    assert reclaimer.plugin_errors == {"mine": 1}


@pytest.mark.parametrize(
    ("cause", "trigger_", "tunables", "freed"),
    [
        (Cause.LOW, "watermark", {}, 3),
        (Cause.LOW, "watermark", {"target": "bytes", "bytes": 2 * PAGE}, 2),
        (Cause.LOW, "watermark", {"target": "all"}, 11),
        (Cause.LOW, "watermark", {"target": "all", "kinds": "zero"}, 4),
        (Cause.LOW, "pre_oom", {}, 0),
        (Cause.OOM, "watermark", {}, 0),
        (Cause.OOM, "pre_oom", {}, 3),
        (Cause.OOM, "pre_oom", {"more_bytes": 4 * PAGE}, 7),
        (Cause.OOM, "pre_oom", {"all": True}, 11),
        (Cause.OOM, "pre_oom", {"all": True, "kinds": "empty"}, 7),
    ],
)
def test_what_pressure_frees(cause: Cause, trigger_: str, tunables: dict[str, Any], freed: int) -> None:
    machine = zoo()
    reclaimer, _ = make(machine, triggers=(trigger_,), trigger_tunables={trigger_: tunables})
    assert machine.on_pressure is not None
    assert machine.on_pressure(cause, None, 3 * PAGE - 1) == freed * PAGE
    assert reclaimer.plugin_errors == {}


def test_a_trigger_may_have_a_policy_of_its_own() -> None:
    options = {"triggers": ("on_demand", "pre_oom"), "policies_by_trigger": {"pre_oom": "smallest_first"}}
    reclaimer, _ = make(zoo(), **options)
    assert pages(reclaimer.moment(Moment(Cause.OOM, 0, bytes=PAGE))) == [(1, 1)]
    assert pages(reclaimer.reclaim(PAGE)) == [(2, 1)]
    reclaimer.set_policy_of("pre_oom", None)
    assert pages(reclaimer.moment(Moment(Cause.OOM, 0, bytes=PAGE))) == [(2, 1)]
