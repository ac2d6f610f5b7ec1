"""Several replays on one host in the daemon: in the order of session.mix, by the clock, however slow a source is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pterefd.errors import BadInput
from pterefd.host.host import Host
from pterefd.mm.events import Batch
from pterefd.session.conductor import Conductor
from pterefd.session.mix import Mix
from pterefd.session.replay import Replay
from pterefd.source.place import Placed
from pterefd.source.source import Source
from pterefd.source.trace import open_trace
from tests.build import host

B = 0x7000_0000_0000
MS = 1_000_000
MAPPED = {"op": "mmap", "addr": B, "len": 1 << 30, "prot": "rw-", "flags": "private,anonymous"}


class Slow(Placed):
    """A source whose batches, of five events each, take their time to be made."""

    def __init__(self, of: Source, seconds: float, **options: Any) -> None:
        super().__init__(of, **options)
        self._seconds = seconds

    def batches(self) -> Iterator[Batch]:
        for batch in super().batches():
            for begin in range(0, len(batch), 5):
                time.sleep(self._seconds)
                end = min(begin + 5, len(batch))
                columns = {
                    name: getattr(batch, name)[begin:end] for name in ("t", "pid", "op", "addr", "len", "arg", "err")
                }
                yield Batch(**{**vars_of(batch), **columns, "first": batch.first + begin})


def vars_of(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in batch.__dataclass_fields__}


class Freer:
    """Stands where the reclaimer stands; notes who asks, and when it is told of the time."""

    def __init__(self, machine: Host, *, ticking: bool = False) -> None:
        self.order: list[int | None] = []
        self.ticks: list[int] = []
        self.ticking = ticking
        self._machine = machine

    def free_ptes(self, pid: int | None) -> None:
        self.order.append(pid)

    def tick(self) -> None:
        self.ticks.append(self._machine.time_ns // MS)


def faults(path: Path, *times: int) -> Source:
    """A process that touches its i-th page at the i-th time (ms), asking to be freed each time; it does not exit."""
    events: list[dict[str, Any]] = [{"op": "exec", "comm": path.stem, "t": 0}, {**MAPPED, "t": 0}]
    for i, t in enumerate(times):
        events += [{"op": "fault", "addr": B + 4096 * i, "write": True, "t": t * MS}, {"op": "free_ptes", "t": t * MS}]
    path.write_text("".join(json.dumps({"pid": 1, **event}) + "\n" for event in events))
    return open_trace(path)


FIRST = (9, 10, 35, 36, 90, 1000)
SECOND = (1, 2, 19, 20, 39, 41, 42, 43, 90)
THIRD = (5, 15, 25, 35, 45, 999)


def three(directory: Path, seconds: float = 0.0) -> list[Source]:
    """Three sources, the second of which is slow."""
    return [
        Placed(faults(directory / "a.jsonl", *FIRST)),
        Slow(faults(directory / "b.jsonl", *SECOND), seconds, pid_base=1),
        Placed(faults(directory / "c.jsonl", *THIRD), pid_base=2),
    ]


def conducted(sources: list[Source], *, ticking: bool = False, **options: Any) -> tuple[Conductor, list[Replay], Freer]:
    machine = host()
    freer = Freer(machine, ticking=ticking)
    speed = options.pop("speed", 1.0)
    replays = [Replay(n, source, machine, freer, speed=speed) for n, source in enumerate(sources)]  # type: ignore[arg-type]
    return Conductor(replays, machine, freer, **options), replays, freer  # type: ignore[arg-type]


def mixed(directory: Path) -> tuple[list[int], list[int]]:
    """The order in which sources have their turn without a clock, and where the clock stands at each tick, in ms."""
    machine, order, ticks = host(), list[int](), list[int]()
    Mix(three(directory), machine, on_free_ptes=order.append, on_tick=lambda: ticks.append(machine.time_ns // MS)).run()
    return order, ticks


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("speed", [None, 10.0, 0.5])
@pytest.mark.parametrize("ticking", [False, True])
def test_the_order_is_that_of_a_run_without_a_clock_also_where_a_source_is_slow(
    tmp_path: Path, speed: float | None, ticking: bool
) -> None:
    order, ticks = mixed(tmp_path)
    assert len(order) == 21
    conductor, replays, freer = conducted(three(tmp_path, 0.03), speed=speed, ticking=ticking)
    conductor.run()
    assert freer.order == order
    assert [replay.state for replay in replays] == ["ended"] * 3
    assert [replay.position for replay in replays] == [2 + 2 * len(times) for times in (FIRST, SECOND, THIRD)]
    assert freer.ticks == (ticks[: len(freer.ticks)] if ticking else [])
    assert len(freer.ticks) >= (len(ticks) - 1 if ticking else 0)  # but for the one behind the last event


def test_the_clock_starts_when_the_first_events_of_all_are_there(tmp_path: Path) -> None:
    now = [0.0]
    conductor, replays, freer = conducted(three(tmp_path, 0.3), clock=lambda: now[0])
    thread = threading.Thread(target=conductor.run, daemon=True)
    thread.start()
    now[0] = 100.0  # while the slow one's first events are made
    until(lambda: replays[0]._anchor[0] == 100.0)
    assert freer.order == []
    now[0] = 100.0205
    until(lambda: len(freer.order) == 7)
    now[0] = 100.0405
    until(lambda: len(freer.order) == 13)
    assert freer.order == mixed(tmp_path)[0][:13]
    conductor.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert [replay.state for replay in replays] == ["running"] * 3


def test_one_that_is_paused_does_not_keep_the_others(tmp_path: Path) -> None:
    conductor, replays, freer = conducted(three(tmp_path), speed=None)
    replays[1].pause()
    thread = threading.Thread(target=conductor.run, daemon=True)
    thread.start()
    until(lambda: [replay.state for replay in replays] == ["ended", "paused", "ended"])
    assert 2 not in freer.order
    replays[1].resume()
    thread.join(20)
    assert (replays[1].state, freer.order.count(2)) == ("ended", len(SECOND))


def test_what_a_source_raises_is_raised_in_its_place(tmp_path: Path) -> None:
    sources = three(tmp_path, 0.01)
    path = tmp_path / "b.jsonl"
    path.write_text(path.read_text() + '{"op": "fault", "pid": 1, "t": 1}\n')
    conductor, _, freer = conducted(sources, speed=None)
    with pytest.raises(BadInput, match=r"b\.jsonl:21: "):
        conductor.run()
    assert freer.order == mixed_before(tmp_path, freer.order)


def mixed_before(directory: Path, order: list[int | None]) -> list[int | None]:
    """As many as there are, of the order without a clock."""
    (directory / "whole").mkdir()
    return list(mixed(directory / "whole")[0][: len(order)])
