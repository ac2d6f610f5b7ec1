"""Checkpoints: compared before they correct, exactly or within what is tolerated, at a time or in a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pterefd.errors import BadInput
from pterefd.quantities import size
from pterefd.session.check import (
    CheckOptions,
    FileResult,
    Tolerance,
    check_trace,
    exit_code,
    parse_fields,
    parse_tolerance,
    replay_files,
)
from tests.build import SMALL

B = 0x7000_0000_0000
M = 1 << 20
HEAD = [
    {"op": "trace", "format_version": 1, "kernel_release": "6.18.44", "kernel_config": {"PT_RECLAIM": "y"}},
    {"op": "exec", "pid": 1, "comm": "a", "t": 0},
    {"op": "mmap", "pid": 1, "addr": B, "len": 8 * M, "prot": "rw-", "flags": "private,anonymous", "t": 0},
]


def write(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in [*HEAD, *events]))
    return path


def fault(at: int, write: bool = True, t: int = 0, size: int = 4096) -> dict[str, Any]:
    return {"op": "fault", "pid": 1, "addr": B + at, "len": size, "write": write, "t": t}


def expect(t: int = 0, **fields: int) -> dict[str, Any]:
    return {"op": "expect", "pid": 1, "t": t, **fields}


def check(path: Path, **options: Any) -> FileResult:
    return check_trace(path, options=CheckOptions(**options), limits=SMALL)


def test_every_field_is_compared(tmp_path: Path) -> None:
    right = expect(VmPTE=16, RssAnon=4, RssFile=0, zero_entries=1, present_entries=2, vmas=1, reclaimable_pt_bytes=0)
    wrong = expect(VmPTE=20, RssAnon=4, vmas=2)
    path = write(tmp_path / "t.jsonl", fault(0), fault(2 * M, write=False), right, wrong)
    result = check(path)
    assert (result.checkpoints, result.differ, result.profile) == (2, 1, "v6.18")
    assert [str(difference) for difference in result.differences] == [
        f"{path}:7: pid 1: VmPTE is 20 in the kernel, 16 here",
        f"{path}:7: pid 1: vmas is 2 in the kernel, 1 here",
    ]
    assert check(path, fields=frozenset({"RssAnon"})).differ == 0
    assert check(path, fields=frozenset({"VmPTE"}), tolerances={"VmPTE": Tolerance(absolute=4)}).differ == 0
    assert check(path, fields=frozenset({"VmPTE"}), tolerances={"VmPTE": Tolerance(share=0.1)}).differ == 1
    assert check(path, fields=frozenset({"VmPTE"}), tolerances={"VmPTE": Tolerance(share=0.2)}).differ == 0


def test_what_large_folios_of_files_account_for_is_told_from_the_rest(tmp_path: Path) -> None:
    """RssFile, alone or with present entries, and no other field, and no correction."""
    right, file, entries, table = (
        expect(VmPTE=12, RssFile=0),
        expect(RssFile=64),
        expect(RssFile=64, present_entries=17),
        expect(VmPTE=16, RssFile=64),
    )
    state = {"op": "state", "pid": 1, "addr": B + M, "len": 4096, "entry": "anon", "t": 0}
    for events, told in (
        ([right], False),
        ([right, file], True),
        ([entries, file], True),
        ([expect(present_entries=17)], False),
        ([file, table], False),
        ([file, state], False),
    ):
        assert check(write(tmp_path / "t.jsonl", fault(0), *events)).by_large_folios is told, events


def test_a_state_in_the_middle_of_a_life_counts(tmp_path: Path) -> None:
    def state(entry: str) -> dict[str, Any]:
        return {"op": "state", "pid": 1, "addr": B, "len": 4096, "entry": entry, "t": 0}

    first = write(tmp_path / "a.jsonl", state("anon"), fault(4096), expect(RssAnon=8))
    assert (check(first).differ, check(first).corrections) == (0, 0)
    same = write(tmp_path / "b.jsonl", fault(0), state("anon"), expect(RssAnon=4))
    assert check(same).corrections == 0
    other = write(tmp_path / "c.jsonl", fault(0), state("swap"), expect(RssAnon=0, VmSwap=4))
    result = check(other)
    assert (result.checkpoints, result.corrections, result.differ) == (1, 1, 1)


def test_a_window_agrees_with_any_value_held_in_it(tmp_path: Path) -> None:
    faults = [fault(4096 * i, t=100 + 10 * i) for i in range(10)]
    for kernel, t0, t1, agrees in (
        (20, 115, 155, True),
        (28, 115, 155, False),
        (40, 115, 155, False),
        (40, 115, 900, True),
    ):
        path = write(tmp_path / "w.jsonl", *faults, expect(t=1000, t0=t0, t1=t1, RssAnon=kernel))
        result = check(path)
        assert (result.checkpoints, result.differ == 0) == (1, agrees), (kernel, t0, t1)
        assert result.widest_window_ns == t1 - t0
    first = write(tmp_path / "f.jsonl", expect(t=0, t0=100, t1=125, RssAnon=4), *faults)
    assert check(first).differ == 0


def test_an_access_outside_every_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "o.jsonl", fault(64 * M), fault(64 * M + 4096), expect(RssAnon=8, vmas=2))
    result = check(path)
    assert (result.differ, result.outside) == (0, 2)
    strict = check_trace(path, strict=True, limits=SMALL)
    assert str(strict.error) == f"{path}:4: access outside every mapping"
    assert exit_code([result, strict]) == 2


def test_rows_are_at_the_end_and_at_the_peak(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        fault(0, size=8 * M),
        *({"op": "madvise", "pid": 1, "addr": B + i * M, "len": M, "advice": "dontneed", "t": 0} for i in range(6)),
        {"op": "fork", "pid": 1, "child": 2, "t": 0},
        {"op": "free_ptes", "pid": 1, "t": 0},
        {"op": "munmap", "pid": 1, "addr": B, "len": 8 * M, "t": 0},
        {"op": "exec", "pid": 1, "comm": "b", "t": 0},
        {"op": "exit", "pid": 1, "t": 0},
    )
    rows = {(row.pid, row.exec_number): row for row in check_trace(path, limits=SMALL).rows}
    assert list(rows) == [(1, 0), (1, 1), (2, 0)]
    assert (rows[1, 0].VmPTE, rows[1, 0].peak_VmPTE, rows[1, 0].peak_reclaimable_pt_bytes) == (0, 24, 3 * 4096)
    assert (rows[2, 0].VmPTE, rows[2, 0].reclaimable_pt_bytes, rows[2, 0].RssAnon) == (24, 3 * 4096, 2048)
    assert (rows[1, 1].comm, rows[1, 1].VmPTE) == ("b", 0)


def test_every_file_is_tried(tmp_path: Path) -> None:
    good = write(tmp_path / "g.jsonl", expect(VmPTE=0))
    wrong = write(tmp_path / "w.jsonl", expect(VmPTE=4))
    results = replay_files([wrong, tmp_path / "none", good], options=CheckOptions())
    assert [(result.differ, result.error is None) for result in results] == [(1, True), (0, False), (0, True)]
    assert (exit_code(results), exit_code([results[0]]), exit_code([results[2]])) == (2, 1, 0)


def test_unlocated_pages_are_shown_and_never_freed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "u.jsonl", expect(VmPTE=28, unlocated_pte_pages=7), {"op": "free_ptes", "pid": 1}, expect(VmPTE=28)
    )
    result = check(path)
    assert (result.differ, result.rows[0].reclaimable_pt_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("text", "name", "tolerance"),
    [
        ("VmPTE=16kB", "VmPTE", Tolerance(absolute=16)),
        ("RssAnon=1%", "RssAnon", Tolerance(share=0.01)),
        ("zero_entries=3", "zero_entries", Tolerance(absolute=3)),
        ("reclaimable_pt_bytes=8kB", "reclaimable_pt_bytes", Tolerance(absolute=8192)),
    ],
)
def test_tolerances(text: str, name: str, tolerance: Tolerance) -> None:
    assert parse_tolerance(text, size) == (name, tolerance)


@pytest.mark.parametrize("text", ["VmPTE", "VmPTE=", "Vm=1kB", "VmPTE=x", "VmPTE=x%", "VmPTE=3parsec"])
def test_bad_tolerances(text: str) -> None:
    with pytest.raises(BadInput):
        parse_tolerance(text, size)


def test_fields() -> None:
    assert parse_fields("VmPTE, RssAnon") == {"VmPTE", "RssAnon"}
    for text in ("VmPTE,Foo", "", ","):
        with pytest.raises(BadInput):
            parse_fields(text)


@pytest.mark.parametrize(("profile", "counts"), [("percpu-2022", (1, 1, 1)), ("v5.19", (0, 1, 0))])
def test_a_row_counts_what_was_freed_and_made_again(tmp_path: Path, profile: str, counts: tuple[int, int, int]) -> None:
    """A span discarded whole and written to again, then one of zero entries, freed on request."""
    discard = {"op": "madvise", "pid": 1, "addr": B, "len": 2 * M, "advice": "dontneed", "t": 0}
    ask = {"op": "free_ptes", "pid": 1, "t": 0}
    events = [fault(0, size=4 * M), discard, fault(0), fault(4 * M, write=False, size=2 * M), ask]
    row = check_trace(write(tmp_path / "t.jsonl", *events), profile=profile, limits=SMALL).rows[0]
    assert (row.freed_by_itself, row.freed_on_request, row.allocated_again) == counts
