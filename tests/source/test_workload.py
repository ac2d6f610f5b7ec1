"""Workloads as sources: what Emit makes of each call, where mmap places, what is refused, and the way into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from pterefd.errors import EXIT_BAD_INPUT, BadInput
from pterefd.hookspecs import Emit, Tunables, Workload
from pterefd.mm import events as ev
from pterefd.mm.events import Batch
from pterefd.source.decode import Decoder
from pterefd.source.encode import arrays_of
from pterefd.source.place import Placed, pid_bases
from pterefd.source.source import BATCH_EVENTS, Source
from pterefd.source.space import HEAP_START, MMAP_BASE, Space
from pterefd.source.trace import open_trace
from pterefd.source.workload import WorkloadSource
from tests.conftest import ROOT

MIB = 1 << 20
SPAN = 2 * MIB


def workload(
    work: Callable[[Emit, np.random.Generator], Iterator[None] | None], highest: int = 9, **parameters: Any
) -> WorkloadSource:
    """A source of what one function emits."""

    class Parameters(Tunables):
        rounds: int = Field(default=3, ge=1, le=10)

    class Made(Workload):
        name = "made"
        Tunables = Parameters

        def highest_pid(self) -> int:
            return highest

        def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None] | None:
            return work(emit, rng)

    return WorkloadSource(Made, parameters)


def rows(source: Source) -> list[tuple[int, int, str, int, int, int]]:
    """(t, pid, op, addr, len, arg) of every event."""
    columns = ("t", "pid", "op", "addr", "len", "arg")
    return [
        (t, pid, ev.OPS[op], addr, length, arg)
        for batch in source.batches()
        for t, pid, op, addr, length, arg in zip(*(getattr(batch, c).tolist() for c in columns), strict=True)
    ]


def same(a: Batch, b: Batch) -> None:
    """All columns are equal, and what Python looks at is."""
    for name in ("t", "pid", "op", "addr", "len", "arg", "err", "ext"):
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.side, a.paths, a.first) == (b.side, b.paths, b.first)


def test_every_call_is_its_event() -> None:
    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a name that is too long", uid=7)
        at = emit.mmap(1, 5000)
        assert at == MMAP_BASE - 8192
        emit.at(100)
        emit.fault(1, at)
        emit.fault(1, np.array([at, at + 4096]), write=np.array([False, True]), spacing=10)
        emit.sleep(5)
        emit.madvise(1, at, 8192, "dontneed", spacing=1)
        emit.mprotect(1, at, 4096, "r--")
        emit.mlock(1, at, 4096, onfault=True)
        emit.munlock(1, at, 4096)
        emit.thread(1, 3)
        emit.thread_exit(1, 3)
        emit.fork(1, 2)
        emit.thp(2, True)
        emit.cache("/f", 4096, 8192)
        emit.truncate("/f", 5)
        emit.swap_out(1, at, dropped=True)
        emit.free_ptes(1)
        emit.munmap(1, at, 8192)
        emit.exit(2)

    at = MMAP_BASE - 8192
    assert rows(workload(work)) == [
        (0, 1, "exec", 0, 0, 0),
        (0, 1, "mmap", at, 8192, 0),
        (100, 1, "fault", at, 4096, 1),
        (100, 1, "fault", at, 4096, 0),
        (110, 1, "fault", at + 4096, 4096, 1),
        (125, 1, "madvise", at, 8192, ev.ADVICE_CODE["dontneed"]),
        (126, 1, "mprotect", at, 4096, ev.PROT_READ),
        (126, 1, "mlock", at, 4096, 1),
        (126, 1, "munlock", at, 4096, 0),
        (126, 1, "thread", 0, 0, 3),
        (126, 1, "thread_exit", 0, 0, 3),
        (126, 1, "fork", 0, 0, 2),
        (126, 2, "thp", 0, 0, 1),
        (126, 0, "cache", 4096, 8192, 0),
        (126, 0, "truncate", 0, 5, 0),
        (126, 1, "swap_out", at, 4096, 1),
        (126, 1, "free_ptes", 0, 0, 0),
        (126, 1, "munmap", at, 8192, 0),
        (126, 2, "exit", 0, 0, 0),
    ]
    (batch,) = workload(work).batches()
    assert batch.side == [{"comm": "a name that is ", "uid": 7}]
    assert batch.ext.tolist() == [[3, ev.MAP_PRIVATE | ev.MAP_ANONYMOUS, -1, -1, -1]]


def test_mmap_goes_from_the_top_down_and_into_the_highest_gap() -> None:
    space = Space()
    assert space.place(4096, False) == MMAP_BASE - 4096
    space.take(MMAP_BASE - 4 * 4096, MMAP_BASE)
    assert space.place(4096, False) == MMAP_BASE - 5 * 4096
    space.free(MMAP_BASE - 3 * 4096, MMAP_BASE - 4096)
    assert (space.place(8192, False), space.place(3 * 4096, False)) == (MMAP_BASE - 3 * 4096, MMAP_BASE - 7 * 4096)
    high = (MMAP_BASE - 4 * 4096) & -SPAN
    assert (space.place(SPAN, True), space.place(SPAN, False)) == (high - SPAN, MMAP_BASE - 4 * 4096 - SPAN)
    assert space.place(SPAN + 4096, True) == MMAP_BASE - 5 * 4096 - SPAN, "only a whole multiple of 2 MiB is aligned"
    assert space.place(1 << 47, False) is None


def test_taking_and_freeing_keeps_ranges_apart() -> None:
    space = Space()
    for start in (40, 20, 30, 10):
        space.take(start, start + 10)
    assert (space.starts, space.ends) == ([10], [50])
    space.free(20, 30)
    space.free(45, 99)
    assert (space.starts, space.ends) == ([10, 30], [20, 45])
    assert (space.is_free(20, 30), space.is_free(20, 31), space.is_free(19, 20)) == (True, False, False)
    child = space.copy()
    child.free(0, 99)
    assert (space.starts, child.starts) == ([10, 30], [])


def test_mremap_grows_in_place_where_there_is_room_and_moves_else() -> None:
    seen: list[int] = []

    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a")
        low = emit.mmap(1, 4096, addr=0x10000)
        seen.append(emit.mremap(1, low, 4096, 8192))
        emit.mmap(1, 4096, addr=0x12000)
        seen.append(emit.mremap(1, low, 8192, 12288))
        assert emit.mmap(1, 8192, addr=0x10000) == 0x10000
        seen.append(emit.mremap(1, 0x12000, 4096, 4096, new_addr=0x20000, dontunmap=True))

    source = workload(work)
    batches = list(source.batches())
    assert seen == [0x10000, MMAP_BASE - 12288, 0x20000]
    assert [row[2] for row in rows(source)] == ["exec", "mmap", "mremap", "mmap", "mremap", "mmap", "mremap"]
    moves = batches[0].ext[[1, 3, 5]]
    assert moves[:, : ev.X_DONTUNMAP + 1].tolist() == [
        [0x10000, 8192, 0],
        [MMAP_BASE - 12288, 12288, 0],
        [0x20000, 4096, 1],
    ]


def test_the_heap_begins_where_a_small_program_has_it() -> None:
    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a")
        start = emit.brk(1)
        assert start == emit.brk(1) == HEAP_START
        assert emit.brk(1, start + 5000) == start + 8192
        emit.fork(1, 2)
        assert emit.brk(2, start + 4096) == start + 4096
        assert emit.brk(1) == start + 8192

    brks = [row[3:] for row in rows(workload(work)) if row[2] == "brk"]
    assert brks == [(HEAP_START, 0, HEAP_START), (HEAP_START + 8192, 0, 0), (HEAP_START + 4096, 0, 0)]


def refused(*steps: Callable[[Emit], object]) -> str:
    """The line for the last of the steps, which is refused; the others are not."""
    done: list[int] = []

    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a")
        for step in steps:
            done.append(1)
            step(emit)

    with pytest.raises(BadInput) as error:
        list(workload(work).batches())
    assert len(done) == len(steps)
    assert error.value.exit_code == EXIT_BAD_INPUT
    return str(error.value)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda e: e.fault(1, 4097), "fault: addr 0x1001 and length 0x1000 are no range of whole pages below 2^47"),
        (lambda e: e.fault(1, np.array([4096, 8193])), "fault: addr 0x2001 and length 0x1000 are no range"),
        (lambda e: e.fault(1, np.array([4096.0])), "fault: addr holds float64, it must be integers"),
        (lambda e: e.fault(2, 4096), "fault: pid 2 was never started here"),
        (lambda e: e.fault(1, 4096, spacing=-1), "fault: spacing -1 is negative"),
        (lambda e: e.fault(1, 4096, spacing=0.5), "it raised TypeError: 'float' object"),
        (lambda e: e.madvise(1, 4096, 4096, "DONTNEED"), "madvise: advice 'DONTNEED' is none"),
        (lambda e: e.madvise(1, (1 << 47) - 4096, 8192, "free"), "madvise: addr 0x7ffffffff000 and length 0x2000"),
        (lambda e: e.mmap(1, 0), "mmap: addr 0x0 and length 0x0 are no range"),
        (lambda e: e.mmap(1, 1 << 47), "mmap: no 140737488355328 bytes of address space are free in one piece"),
        (lambda e: e.mmap(1, 4096, prot="rw"), "mmap: prot 'rw' is not three of rwx or -"),
        (lambda e: e.mmap(1, 4096, flags="anonymous"), "flags: 'anonymous' must have one of private and shared"),
        (lambda e: e.fork(1, 10), "fork: child 10 is not in 1..9, the workload's highest_pid"),
        (lambda e: e.fork(1, 1), "fork: child 1 is a pid that is still running"),
        (lambda e: e.exec(0, "a"), "exec: pid 0 is not in 1..9"),
        (lambda e: e.at(-1), "at(-1): it is 0 ns already"),
        (lambda e: e.brk(1, 4096), "brk: the heap cannot end at 0x1000"),
        (lambda e: {}["x"], "it raised KeyError: 'x'"),
    ],
)
def test_what_no_recording_could_hold_is_one_line(step: Callable[[Emit], object], reason: str) -> None:
    message = refused(lambda e: e.sleep(0), step)
    assert message.startswith(f"workload made: event 1: {reason}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"round": 1}, "round: there is no such parameter; there are: rounds"),
        ({"rounds": 11}, "rounds: should be at most 10, not 11"),
        ({"rounds": "many"}, "rounds: should be an integer, not 'many'"),
    ],
)
def test_a_bad_parameter_is_one_line(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=f"^workload made: {reason}"):
        workload(lambda emit, rng: None, **parameters)


def test_what_is_emitted_is_taken_away_at_each_yield() -> None:
    waiting: list[int] = []

    def work(emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        emit.exec(1, "a")
        at = emit.mmap(1, 1 << 30)
        for _ in range(3):
            emit.fault(1, at + 4096 * rng.integers(0, 1 << 18, BATCH_EVENTS))
            waiting.append(emit.waiting)  # type: ignore[attr-defined]
            yield

    source = workload(work)
    assert source.events is None
    batches = list(source.batches())
    assert [len(batch) for batch in batches] == [BATCH_EVENTS, BATCH_EVENTS, BATCH_EVENTS, 2]
    assert [batch.first for batch in batches] == [0, BATCH_EVENTS, 2 * BATCH_EVENTS, 3 * BATCH_EVENTS]
    assert max(waiting) == BATCH_EVENTS + 2
    assert source.events == 3 * BATCH_EVENTS + 2
    for first, second in zip(batches, source.batches(), strict=True):
        same(first, second)


def test_a_plain_method_may_not_emit_without_end() -> None:
    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a")
        for _ in range(5):
            emit.fault(1, 4096 * np.arange(1, 1 + MIB))

    with pytest.raises(BadInput, match="workload made: event 5242881: more than 4194304 events without a yield"):
        list(workload(work).batches())


def test_equal_seeds_give_equal_events_and_others_do_not() -> None:
    def work(emit: Emit, rng: np.random.Generator) -> None:
        emit.exec(1, "a")
        emit.fault(1, 4096 * rng.permutation(100) + 4096)

    source = workload(work)
    again, other = WorkloadSource(source._class, seed=0), WorkloadSource(source._class, seed=1)
    assert rows(source) == rows(again)
    assert rows(source) != rows(other)


@pytest.mark.parametrize("path", ["python", "redis", "programs/gcc", "programs/java"])
def test_encoding_is_decoding_the_other_way_round(path: str) -> None:
    """Of real recordings, which have every op that a program causes."""
    trace, decoder = open_trace(ROOT / "etc" / "traces" / f"{path}.parquet"), Decoder(0)
    for batch in trace.batches():
        again = decoder.decode(arrays_of(batch), len(batch))
        batch.side = [{name: value for name, value in fields.items() if value is not None} for fields in batch.side]
        same(batch, again)


def test_the_events_of_a_hand_written_trace_survive_encoding(tmp_path: Path) -> None:
    lines = (
        '{"op":"exec","pid":1,"comm":"a","cmdline":["a","b"],"uid":1,"oom_score_adj":-5,"t":1}',
        '{"op":"mmap","pid":1,"addr":65536,"len":4194304,"prot":"r-x","flags":"shared","path":"/f","offset":4096}',
        '{"op":"state","pid":1,"addr":2097152,"len":2097152,"entry":"anon","huge":true,"tables":true}',
        '{"op":"madvise","pid":1,"addr":65536,"len":4096,"advice":"free","errno":"EINVAL"}',
        '{"op":"brk","pid":1,"addr":8192,"start":4096}',
        '{"op":"swap_out","pid":1,"addr":65536,"len":4096,"dropped":true}',
        '{"op":"fork","pid":1,"errno":"ENOMEM"}',
        '{"op":"expect","pid":1,"VmPTE":12,"t0":1,"t1":2}',
        '{"op":"fault","pid":1,"addr":65536,"len":8192,"write":false,"t":9}',
    )
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines) + "\n")
    (batch,) = open_trace(path).batches()
    same(batch, Decoder(0).decode(arrays_of(batch), len(batch)))


# ---- placed -------------------------------------------------------------------------------------


def two_processes(emit: Emit, rng: np.random.Generator) -> None:
    emit.exec(1, "a", oom_score_adj=3)
    emit.thread(1, 3)
    emit.sleep(1000)
    emit.fork(1, 2)
    emit.cache("/f", 0, 4096)


def test_a_placed_source_is_shifted() -> None:
    placed = Placed(
        workload(two_processes), pid_base=10, start_ns=500, pace=2.0, group="web", oom_score_adj=900, name="w#1"
    )
    assert rows(placed) == [
        (500, 11, "exec", 0, 0, 0),
        (500, 11, "thread", 0, 0, 13),
        (1000, 11, "fork", 0, 0, 12),
        (1000, 0, "cache", 0, 4096, 0),
    ]
    (batch,) = placed.batches()
    assert (batch.group, batch.side) == ("web", [{"comm": "a", "oom_score_adj": 900}])
    assert (placed.highest_pid(), placed.pid_base, placed.name, placed.where(3)) == (19, 10, "w#1", "w#1: event 3")
    with pytest.raises(BadInput, match="made: pids shifted by 4194302 are beyond 4194304"):
        list(Placed(workload(two_processes), pid_base=4194302).batches())


def test_events_without_times_get_them(tmp_path: Path) -> None:
    def trace(*times: int | None) -> Source:
        events = [f'{{"op":"exec","pid":1,"comm":"a","t":{"null" if t is None else t}}}' for t in times]
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(events) + "\n")
        return open_trace(path)

    def times(source: Source) -> list[int]:
        return [row[0] for row in rows(source)]

    assert times(Placed(trace(None, None, None))) == [-1, -1, -1]
    assert times(Placed(trace(None, None, None), untimed_ns=10)) == [0, 10, 20]
    assert times(Placed(trace(None, None, None), start_ns=7)) == [7, 7, 7]
    assert times(Placed(trace(None, 5, None, None, 12, None), untimed_ns=10)) == [0, 5, 15, 25, 25, 25]
    assert times(Placed(trace(3, None, 9), start_ns=100)) == [103, 103, 109]


def test_pids_never_collide() -> None:
    sources: list[Source] = [workload(lambda emit, rng: None, highest) for highest in (3, 5, 2)]
    assert pid_bases(sources, [None, None, None]) == [0, 3, 8]
    assert pid_bases(sources, [None, 100, None]) == [0, 100, 105]
    with pytest.raises(BadInput, match=r"made: pids 3\.\.7 are partly those of made \(1\.\.3\)"):
        pid_bases(sources, [None, 2, None])
