"""What `info` says of a trace whose contents are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pterefd.source.info import describe, render
from tests.source.handmade import EXEC, Event, to_jsonl, to_parquet

FAULT = {"op": "fault", "pid": 1, "addr": 4096, "write": True}
EVENTS: list[Event] = [
    {**EXEC, "t": 1000},
    {**FAULT, "t": 2000},
    {"op": "fork", "pid": 1, "child": 2},
    {**FAULT, "pid": 2},
    {"op": "expect", "pid": 2, "VmPTE": 44, "t0": 5, "t1": 305},
    {"op": "exec", "pid": 2, "comm": "b"},
    {"op": "state", "pid": 2, "addr": 0, "len": 4096, "entry": "anon"},
    {"op": "expect", "pid": 2, "VmPTE": 40, "unlocated_pte_pages": 7},
    {"op": "expect", "pid": 2, "unlocated_pte_pages": 3, "t0": 5, "t1": 5},
    {"op": "exit", "pid": 2},
    {"op": "fork", "pid": 1, "child": 2},
    {"op": "cache", "path": "/x", "offset": 0, "len": 1},
    {"op": "expect", "pid": 1, "VmPTE": 100, "t": 3_000_001_000},
    {"op": "exit", "pid": 1},
]
META = {"format_version": 1, "thp": "seen", "kernel_config": {"PT_RECLAIM": "y"}, "command": ["a", "b"]}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_describe(form: str, tmp_path: Path) -> None:
    if form == "jsonl":
        path = to_jsonl(tmp_path / "x", [{"op": "trace", **META}, *EVENTS])
    else:
        path = to_parquet(tmp_path / "x", EVENTS, META, row_group_size=4)
    assert describe(path) == {
        "path": str(path),
        "form": form,
        "size_bytes": path.stat().st_size,
        "events": 14,
        "duration_ns": 3_000_000_000,
        "events_by_op": {"fault": 2, "state": 1, "cache": 1, "fork": 2, "exec": 2, "exit": 2, "expect": 4},
        "processes": [
            {"pid": 1, "parent": None, "comm": "a", "execs": 1, "events": 6, "peak_VmPTE_kB": 100},
            {"pid": 2, "parent": 1, "comm": "b", "execs": 1, "events": 7, "peak_VmPTE_kB": 44},
            {"pid": 2, "parent": 1, "comm": "a", "execs": 0, "events": 0, "peak_VmPTE_kB": None},
        ],
        "peak_VmPTE_kB": 100,
        "checkpoints": 4,
        "checkpoints_with_window": 1,
        "widest_window_ns": 300,
        "states": 1,
        "unlocated_pte_pages": 3,
        "huge_pages_seen": True,
        "metadata": META,
    }


def test_render(tmp_path: Path) -> None:
    text = render(describe(to_jsonl(tmp_path / "x", [{"op": "trace", **META}, *EVENTS])))
    assert text.endswith("\n")
    for line in (
        "duration      3 s",
        "peak VmPTE    100 kB",
        "checkpoints   4, 1 with a window (widest 3e-07 s)",
        "HUGE PAGES    were seen while recording: page tables are not exact where they were",
        "kernel_config PT_RECLAIM=y",
        "  expect                    4",
        "       2       1      1              7       44 kB  b",
    ):
        assert line in text.splitlines()


def test_what_a_process_was_given_does_not_break_the_lines(tmp_path: Path) -> None:
    head = {"op": "trace", "format_version": 1, "command": ["sh", "-c", "echo a\n\techo 'b'", "\x1b[2J"]}
    described = describe(to_jsonl(tmp_path / "x", [head, {**EXEC, "comm": "a\nb"}]))
    lines = render(described).splitlines()
    assert """command       sh -c 'echo a\\n\\techo '"'"'b'"'"'' '\\x1b[2J'""" in lines
    assert lines[-1].endswith("  a\\nb")
    assert described["metadata"]["command"] == head["command"]


def test_nothing_known(tmp_path: Path) -> None:
    described = describe(to_jsonl(tmp_path / "x", [EXEC]))
    assert (described["duration_ns"], described["peak_VmPTE_kB"], described["huge_pages_seen"]) == (None, None, None)
    assert "peak VmPTE    -" in render(described)
    assert "HUGE" not in render(described)
