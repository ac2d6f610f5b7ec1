"""Replay in the daemon: clock, pause, speed, hold. The clock is the test's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pterefd.session.conductor import Conductor
from pterefd.session.replay import Replay
from pterefd.source.place import Placed
from pterefd.source.trace import open_trace
from tests.build import host

B = 0x7000_0000_0000


class Freer:
    """Stands where the reclaimer stands; notes what is asked."""

    def __init__(self) -> None:
        self.pids: list[int | None] = []
        self.ticking = False
        self.tick: Callable[[], None] = lambda: None

    def free_ptes(self, pid: int | None) -> None:
        self.pids.append(pid)


def trace(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def life(pid: int = 1, seconds: int = 10) -> list[dict[str, Any]]:
    """An mm that touches a page a second, asks to be freed, and exits."""
    return [
        {"op": "exec", "pid": pid, "comm": "a", "t": 0},
        {"op": "mmap", "pid": pid, "addr": B, "len": 1 << 20, "prot": "rw-", "flags": "private,anonymous", "t": 0},
        *(
            {"op": "fault", "pid": pid, "addr": B + i * 4096, "write": True, "t": i * 10**9}
            for i in range(1, seconds + 1)
        ),
        {"op": "free_ptes", "pid": pid, "t": seconds * 10**9},
        {"op": "exit", "pid": pid, "t": seconds * 10**9},
    ]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Started:
    """A replay that runs in a thread of its own."""

    def __init__(
        self, path: Path, pid_base: int = 0, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        self.machine, self.freer = host(), Freer()
        source = Placed(open_trace(path), pid_base=pid_base)
        self.replay = Replay(0, source, self.machine, self.freer, **options)  # type: ignore[arg-type]
        self.conductor = Conductor([self.replay], self.machine, self.freer, clock=clock)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.conductor.run, daemon=True)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.replay, self.machine, self.freer))

    def end(self) -> None:
        """By itself, or after stop()."""
        self.thread.join(20)
        assert not self.thread.is_alive()

    def stop(self) -> None:
        self.conductor.stop()
        self.end()


def start(path: Path, **options: Any) -> Started:
    started = Started(path, **options)
    started.thread.start()
    return started


def test_it_follows_the_clock_and_is_held_before_pid_1_exits(tmp_path: Path) -> None:
    now = [0.0]
    started = start(trace(tmp_path / "t.jsonl", *life()), clock=lambda: now[0])
    replay, machine, freer = started
    until(lambda: replay.position == 2)
    now[0] = 3.5
    until(lambda: replay.position == 5)
    assert machine.counters(1).anon_bytes == 3 * 4096
    replay.set_speed(2.0)
    now[0] = 4.5  # two seconds of the trace more
    until(lambda: replay.position == 7)
    replay.pause()
    until(lambda: replay.state == "paused")
    now[0] = 100.0
    time.sleep(0.05)
    assert replay.position == 7
    replay.resume()
    now[0] = 101.0
    until(lambda: replay.position == 9)
    replay.set_speed(None)
    until(lambda: replay.state == "held")
    assert (replay.position, replay.events, freer.pids) == (13, 14, [1])
    assert machine.pids() == [1]
    replay.resume()
    started.end()
    assert (replay.state, replay.position, machine.pids()) == ("ended", 14, [])


class Stuck:
    """A source that gives its events, then waits for something that is the test's to give."""

    name, pid_base, events = "stuck", 0, None

    def __init__(self, path: Path) -> None:
        self.go_on = threading.Event()
        self._of = open_trace(path)
        self.meta = self._of.meta

    def batches(self) -> Iterator[Any]:
        yield from self._of.batches()
        self.go_on.wait(60)


def test_it_is_stalled_while_an_event_is_due_and_none_comes(tmp_path: Path) -> None:
    """Neither a pause nor a quiet minute of the trace is a stall; a source that gives nothing is."""
    now = [0.0]
    source, machine = Stuck(trace(tmp_path / "t.jsonl", *life()[:-2])), host()
    freer = Freer()
    replay = Replay(0, source, machine, freer)  # type: ignore[arg-type]
    conductor = Conductor([replay], machine, freer, clock=lambda: now[0])  # type: ignore[arg-type]
    now[0] = 500.0
    assert replay.stalled_seconds == 0  # nobody runs it yet
    thread = threading.Thread(target=conductor.run)
    thread.start()
    until(lambda: replay.position == 2)
    now[0] = 503.5
    until(lambda: replay.position == 5)
    now[0] = 503.75
    until(lambda: replay.stalled_seconds == 0)  # it has seen that nothing is due
    replay.pause()
    now[0] = 600.0
    assert replay.stalled_seconds == 0
    replay.set_speed(None)
    replay.resume()
    until(lambda: replay.position == 12)
    assert (replay.state, replay.time_ns) == ("running", 10 * 10**9)
    now[0] = 690.0
    assert replay.stalled_seconds == 90
    source.go_on.set()
    thread.join(20)
    assert (replay.state, replay.stalled_seconds) == ("ended", 0)


class Silent(Stuck):
    """A source that gives nothing before it is told to."""

    def batches(self) -> Iterator[Any]:
        self.go_on.wait(60)
        yield from self._of.batches()


def test_it_is_stalled_where_the_first_events_do_not_come(tmp_path: Path) -> None:
    now = [500.0]
    source, machine, freer = Silent(trace(tmp_path / "t.jsonl", *life())), host(), Freer()
    replay = Replay(0, source, machine, freer)  # type: ignore[arg-type]
    conductor = Conductor([replay], machine, freer, clock=lambda: now[0])  # type: ignore[arg-type]
    thread = threading.Thread(target=conductor.run)
    thread.start()
    until(lambda: replay._beat is not None)
    now[0] = 625.0
    assert replay.stalled_seconds == 125
    source.go_on.set()
    until(lambda: replay.position == 2)
    until(lambda: replay.stalled_seconds == 0)  # what was waited for is not behind the clock
    conductor.stop()
    thread.join(20)


def test_without_pid_1_the_last_mm_is_held(tmp_path: Path) -> None:
    child = [{"op": "fork", "pid": 4, "child": 6, "t": 0}, {"op": "exit", "pid": 6, "t": 0}]
    events = life(4)
    started = start(trace(tmp_path / "t.jsonl", *events[:2], *child, *events[2:]), speed=None)
    replay, machine, _ = started
    until(lambda: replay.state == "held")
    assert machine.pids() == [4]
    started.stop()
    assert machine.pids() == [4]


def test_pids_of_a_further_trace_are_shifted(tmp_path: Path) -> None:
    path = trace(tmp_path / "t.jsonl", *life()[:3], {"op": "fork", "pid": 1, "child": 7, "t": 10**9}, *life()[3:])
    assert open_trace(path).highest_pid() == 7
    started = start(path, speed=None, pid_base=7)
    replay, machine, freer = started
    until(lambda: replay.state == "held")
    assert (machine.pids(), freer.pids) == ([8, 14], [8])
    started.stop()


def test_stop_ends_a_replay_that_waits(tmp_path: Path) -> None:
    started = start(trace(tmp_path / "t.jsonl", *life()), clock=lambda: 0.0)
    replay, _, _ = started
    until(lambda: replay.position == 2)
    started.stop()
    assert replay.state == "running"


def test_what_outlives_pid_1_is_not_held_again(tmp_path: Path) -> None:
    fork = {"op": "fork", "pid": 1, "child": 2, "t": 0}
    path = trace(tmp_path / "t.jsonl", *life()[:2], fork, *life()[2:], {"op": "exit", "pid": 2, "t": 10**10})
    started = start(path, speed=None)
    replay, machine, _ = started
    until(lambda: replay.state == "held")
    assert machine.pids() == [1, 2]
    replay.resume()
    started.end()
    assert replay.state == "ended"


def test_triggers_are_told_of_the_time_every_10_ms_where_one_wants_to_know(tmp_path: Path) -> None:
    """An event a millisecond; the host's clock at each tick."""
    events = [{**event, "t": i * 10**6} for i, event in enumerate([*life()[:2], *(life()[2:-2] * 5), life()[-1]])]
    started = Started(trace(tmp_path / "t.jsonl", *events), speed=None)
    seen: list[int] = []
    started.freer.ticking = True
    started.freer.tick = lambda: seen.append(started.machine.time_ns // 10**6)
    started.thread.start()
    until(lambda: started.replay.state == "held")
    started.stop()
    assert seen == [10, 20, 30, 40, 50]


def test_it_need_not_be_held(tmp_path: Path) -> None:
    started = start(trace(tmp_path / "t.jsonl", *life()), speed=None, hold=False)
    started.end()
    assert (started.replay.state, started.machine.pids()) == ("ended", [])
