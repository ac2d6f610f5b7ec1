"""Whose mm is whose, over forks, vforks, threads, execs and exits."""

from __future__ import annotations

import numpy as np

from pterefd.source.record.lives import NOBODY, Lives
from pterefd.source.record.marks import CheckpointMark, CloneMark, ExecMark, ExitMark, Marks, Snapshot
from pterefd.source.record.perfdata import COMM, EXIT, FORK, Side


def _exec(t: int, tgid: int, comm: str = "p") -> ExecMark:
    return ExecMark(t, tgid, tgid, Snapshot(comm, [], 0, 0, 0, [], []))


def _rows(lives: Lives) -> list[tuple[object, ...]]:
    return [(row.t, row.op, row.pid, *row.fields.values()) for row in sorted(lives.rows, key=lambda row: row.t)]


def _booked(lives: Lives, *samples: tuple[int, int]) -> list[int]:
    tids = np.array([tid for tid, _ in samples], dtype=np.int32)
    times = np.array([t for _, t in samples], dtype=np.int64)
    order = np.argsort(times, kind="stable")
    booked = np.empty(len(samples), dtype=np.int32)
    booked[order] = lives.pids(tids[order], times[order])
    return booked.tolist()


def test_fork_exec_exit() -> None:
    marks = Marks(execs=[_exec(10, 100), _exec(40, 200)], clones=[CloneMark(31, 100, 200, 200, False)])
    sides = [
        Side(COMM, 5, 100, 100, exec=True),
        Side(FORK, 30, 200, 200, 100, 100),
        Side(COMM, 35, 200, 200, exec=True),
        Side(EXIT, 50, 200, 200),
        Side(EXIT, 60, 100, 100),
    ]
    lives = Lives(marks, sides, [100])
    assert _rows(lives) == [(30, "fork", 1, 2), (50, "exit", 2), (60, "exit", 1)]
    assert [(new.t, new.pid) for new in lives.execs] == [(10, 1), (40, 2)]
    before, loading, running, child, loading_child, program, gone = _booked(
        lives, (100, 3), (100, 7), (100, 20), (200, 31), (200, 37), (200, 45), (200, 55)
    )
    assert (before, loading, running) == (NOBODY, NOBODY, 1)
    assert (child, loading_child, program, gone) == (2, NOBODY, 2, NOBODY)
    assert lives.untraced == 0
    assert lives.alive() == []


def test_a_vfork_child_acts_on_its_parents_mm() -> None:
    marks = Marks(
        execs=[_exec(10, 100), _exec(40, 200)],
        clones=[CloneMark(30, 100, 200, 200, True), CloneMark(70, 100, 300, 300, True)],
        checkpoints=[CheckpointMark(35, 100, {"VmPTE": 4}), CheckpointMark(45, 200, {"VmPTE": 8})],
    )
    sides = [Side(EXIT, 50, 200, 200), Side(EXIT, 80, 300, 300), Side(EXIT, 90, 100, 100)]
    lives = Lives(marks, sides, [100])
    assert _rows(lives) == [(50, "exit", 2), (90, "exit", 1)]
    assert _booked(lives, (200, 32), (200, 41), (300, 75), (300, 85)) == [1, 2, 1, NOBODY]
    assert [(checkpoint.t, checkpoint.pid) for checkpoint in lives.checkpoints] == [(35, 1), (45, 2)]


def test_threads_and_exec_by_one_of_them() -> None:
    marks = Marks(
        execs=[_exec(10, 100), ExecMark(50, 100, 102, Snapshot("q", [], 0, 0, 0, [], []))],
        clones=[CloneMark(20, 100, 101, 100, True), CloneMark(21, 100, 102, 100, True)],
    )
    sides = [Side(EXIT, 30, 100, 101), Side(EXIT, 45, 100, 100), Side(EXIT, 60, 100, 100)]
    lives = Lives(marks, sides, [100])
    assert _rows(lives) == [
        (20, "thread", 1, 2),
        (21, "thread", 1, 3),
        (30, "thread_exit", 1, 2),
        (45, "thread_exit", 1, 1),
        (49, "thread_exit", 1, 3),
        (60, "exit", 1),
    ]
    assert _booked(lives, (101, 25), (101, 35), (102, 40), (102, 55), (100, 55)) == [1, NOBODY, 1, NOBODY, 1]


def test_an_mm_ends_with_its_last_user() -> None:
    """The parent is killed while its vfork child still has the mm."""
    marks = Marks(execs=[_exec(10, 100), _exec(60, 200)], clones=[CloneMark(20, 100, 200, 200, True)])
    lives = Lives(marks, [Side(EXIT, 40, 100, 100), Side(EXIT, 70, 200, 200)], [100])
    assert _rows(lives) == [(60, "exit", 1), (70, "exit", 2)]
    assert _booked(lives, (200, 50), (200, 65)) == [1, 2]


def test_an_exec_of_the_owner_strands_who_shares() -> None:
    marks = Marks(execs=[_exec(10, 100), _exec(60, 100)], clones=[CloneMark(20, 100, 200, 200, True)])
    lives = Lives(marks, [Side(EXIT, 80, 200, 200)], [100])
    assert lives.stranded == 1
    assert _booked(lives, (200, 50), (200, 65), (100, 70)) == [1, NOBODY, 1]
    assert lives.alive() == [1]


def test_what_perf_lost_is_taken_from_the_tracer() -> None:
    marks = Marks(execs=[_exec(10, 100)], clones=[CloneMark(20, 100, 200, 200, False)])
    marks.exits = [ExitMark(30, 200), ExitMark(40, 100)]
    lives = Lives(marks, [], [100])
    assert _rows(lives) == [(20, "fork", 1, 2), (30, "exit", 2), (40, "exit", 1)]


def test_a_tid_that_is_used_again() -> None:
    marks = Marks(
        execs=[_exec(10, 100)], clones=[CloneMark(20, 100, 200, 200, False), CloneMark(50, 100, 200, 200, False)]
    )
    sides = [Side(FORK, 19, 200, 200, 100, 100), Side(EXIT, 30, 200, 200), Side(FORK, 49, 200, 200, 100, 100)]
    lives = Lives(marks, sides, [100])
    assert _rows(lives) == [(19, "fork", 1, 2), (30, "exit", 2), (49, "fork", 1, 3)]
    assert _booked(lives, (200, 25), (200, 35), (200, 55)) == [2, NOBODY, 3]


def test_a_task_that_was_made_untraced_is_counted() -> None:
    lives = Lives(Marks(execs=[_exec(10, 100)]), [Side(FORK, 20, 200, 200, 100, 100)], [100])
    assert lives.untraced == 1
    assert _booked(lives, (200, 25)) == [NOBODY]
