"""Several sources on one host: in what order, what the clock does, and that the machine makes no difference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pterefd.errors import BadInput
from pterefd.hookspecs import Kinds
from pterefd.host.host import Host
from pterefd.session.mix import Mix
from pterefd.session.report import Report
from pterefd.source.place import Placed, pid_bases
from pterefd.source.source import Source
from pterefd.source.trace import open_trace
from tests.build import host
from tests.conftest import ROOT

B = 0x7000_0000_0000
MS = 1_000_000
MAPPED = {"op": "mmap", "addr": B, "len": 1 << 30, "prot": "rw-", "flags": "private,anonymous"}


def trace(path: Path, *events: dict[str, Any]) -> Source:
    path.write_text("".join(json.dumps({"pid": 1, **event}) + "\n" for event in events))
    return open_trace(path)


def faults(path: Path, *times: int | None) -> Source:
    """A process that touches its i-th page at the i-th time, asking to be freed (which a session sees) each time."""
    events: list[dict[str, Any]] = [{"op": "exec", "comm": path.stem, "t": 0}, {**MAPPED, "t": 0}]
    for i, t in enumerate(times):
        events += [{"op": "fault", "addr": B + 4096 * i, "write": True, "t": t}, {"op": "free_ptes", "t": t}]
    return trace(path, *events)


def placed(*sources: Source, **options: Any) -> list[Source]:
    bases = pid_bases(list(sources), [None] * len(sources))
    return [Placed(source, pid_base=base, **options) for source, base in zip(sources, bases, strict=True)]


def digest(machine: Host, report: Report) -> str:
    """Of every mm that ended, its row; of every other its published numbers and its mappings."""
    found = hashlib.sha256(repr(report.rows()).encode())
    for pid in machine.pids():
        found.update(repr((machine.counters(pid), machine.process(pid).comm, machine.vmas(pid))).encode())
    found.update(repr((machine.time_ns, machine.events_total)).encode())
    return found.hexdigest()


def test_sources_take_turns_in_quanta(tmp_path: Path) -> None:
    """Of 10 ms each: within one, the first source's events come before the second's, whatever their times."""
    first = faults(tmp_path / "a.jsonl", 9 * MS, 10 * MS, 35 * MS)
    second = faults(tmp_path / "b.jsonl", 1 * MS, 2 * MS, 19 * MS, 20 * MS, 39 * MS)
    machine = host()
    order: list[int] = []
    clock: list[int] = []
    mix = Mix(
        placed(first, second),
        machine,
        on_free_ptes=order.append,
        on_tick=lambda: clock.append(machine.time_ns),
    )
    assert mix.run() == mix.events == 20
    assert order == [1, 2, 2, 1, 2, 2, 1, 2]
    assert clock == [10 * MS, 20 * MS, 30 * MS, 40 * MS]


def test_without_a_tick_the_order_is_the_same(tmp_path: Path) -> None:
    """Stretches of one source alone are run at once, up to the quantum in which another has an event."""
    first = faults(tmp_path / "a.jsonl", *range(0, 500 * MS, 7 * MS))
    second = faults(tmp_path / "b.jsonl", 100 * MS, 205 * MS, 209 * MS, 900 * MS)
    orders = []
    for on_tick in (None, lambda: None):
        order: list[int] = []
        Mix(placed(first, second), host(), on_free_ptes=order.append, on_tick=on_tick).run()
        orders.append(order)
    assert orders[0] == orders[1]
    assert orders[0].index(2) == 16, "the first ends its quantum, at 105 ms, before the second begins"


def test_a_quantum_without_events_is_ticked_too(tmp_path: Path) -> None:
    machine = host()
    clock: list[int] = []
    source = faults(tmp_path / "a.jsonl", 5 * MS, 10_000 * MS)
    Mix([source], machine, on_tick=lambda: clock.append(machine.time_ns)).run()
    assert clock == [10 * MS * i for i in range(1, 1002)]


def test_events_without_times_are_a_microsecond_apart(tmp_path: Path) -> None:
    """So that 10,000 of them are a quantum."""
    first = faults(tmp_path / "a.jsonl", *[None] * 6000)
    second = faults(tmp_path / "b.jsonl", 1 * MS, 11 * MS)
    order: list[int] = []
    machine = host()
    Mix(placed(first, second), machine, on_free_ptes=order.append).run()
    assert order.index(2) == (10_000 - 2) // 2, "events 0 to 9999 lie in the first quantum"
    assert order[-1] == 2
    assert machine.time_ns == 11_999_000, "the last fault's; the write after it is the session's"


def test_start_and_group_and_pids(tmp_path: Path) -> None:
    first, second = faults(tmp_path / "a.jsonl", MS), faults(tmp_path / "b.jsonl", MS)
    order: list[int] = []
    machine = host()
    sources = [Placed(first, start_ns=1000 * MS, group="web"), Placed(second, pid_base=100)]
    Mix(sources, machine, on_free_ptes=order.append).run()
    assert (order, machine.pids(), machine.time_ns) == ([101, 1], [1, 101], 1001 * MS)
    assert next(iter(sources[0].batches())).group == "web"


def test_an_event_that_cannot_be_run_is_named_by_its_source(tmp_path: Path) -> None:
    first = faults(tmp_path / "a.jsonl", MS)
    second = trace(tmp_path / "b.jsonl", {"op": "exec", "comm": "b"}, {"op": "fault", "addr": B, "write": True})
    machine = host()
    machine.strict = True
    with pytest.raises(BadInput, match=r"b\.jsonl:2: access outside every mapping"):
        Mix(placed(first, second), machine).run()


def test_checkpoints_name_their_source(tmp_path: Path) -> None:
    plain = faults(tmp_path / "a.jsonl", MS)
    checked = trace(tmp_path / "b.jsonl", {"op": "exec", "comm": "b"}, {"op": "expect", "VmPTE": 0})
    seen: list[tuple[Any, ...]] = []
    Mix(placed(plain, checked), host(), on_expect=lambda *what: seen.append(what)).run()
    assert seen == [(1, 1, 2, {"VmPTE": 0})]


def recordings() -> list[Source]:
    return [open_trace(ROOT / "etc" / "traces" / f"{name}.parquet") for name in ("redis", "python")]


def mixed(*sources: Source, **options: Any) -> tuple[Host, Report]:
    machine = Host(host("rfc-2022").profile)
    report = Report(machine)
    Mix(placed(*sources), machine, **options).run()
    return machine, report


def test_equal_runs_give_equal_digests_and_a_mix_changes_no_mm_of_its_parts() -> None:
    redis, python = recordings()
    first = mixed(redis, python, redis)
    assert digest(*first) == digest(*mixed(redis, python, redis))
    assert digest(*first) != digest(*mixed(python, redis, redis))
    ticked = mixed(redis, python, redis, on_tick=lambda: None)
    assert sorted(ticked[1].rows()) == sorted(first[1].rows())
    alone = mixed(redis)[1].rows()
    assert {row.pid: row for row in alone}.items() <= {row.pid: row for row in first[1].rows()}.items()


def test_what_frees_at_a_tick_sees_the_same_host_each_time() -> None:
    def run() -> tuple[list[tuple[int, ...]], str]:
        machine = Host(host("rfc-2022").profile)
        report = Report(machine)
        freed: list[tuple[int, ...]] = []

        def tick() -> None:
            freed.extend(machine.free_ptes(pid, Kinds.BOTH, None) for pid in machine.pids())

        Mix(placed(*recordings()), machine, on_tick=tick).run()
        return freed, digest(machine, report)

    freed, first = run()
    assert (freed, first) == run()
    assert sum(map(sum, freed)) > 0
