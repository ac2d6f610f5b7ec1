"""From one form into the other and back: nothing is lost, and nothing is left when it fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pterefd.errors import BadInput, Missing, TraceError
from pterefd.source.convert import export_jsonl, import_jsonl
from pterefd.source.trace import open_trace
from tests.source.handmade import EXEC, Event, to_jsonl
from tests.source.test_rules import event, first_wrong

META = {
    "op": "trace",
    "format_version": 1,
    "arch": "x86_64",
    "page_size": 4096,
    "kernel_release": "6.18.44",
    "kernel_config": {"PT_RECLAIM": "y", "LRU_GEN": False},
    "thp": "never",
    "memory_bytes": 1 << 34,
    "fault_around_bytes": 65536,
    "command": ["redis-server", "--port", "0"],
    "perf_version": "6.1.52",
}
FAULT = {"op": "fault", "pid": 1, "addr": 4096, "write": True}


def lines(path: Path) -> list[Event]:
    """Every line as an object, null fields left out, without regard for the order of fields."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in event.items() if value is not None} for event in read]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(event(odd=False), max_size=30))
def test_there_and_back(tmp_path_factory: Any, events: list[Event]) -> None:
    base = tmp_path_factory.getbasetemp()
    good: list[Event] = [META, EXEC]
    for row in events:
        if first_wrong([*good[1:], row]) is None:
            good.append(row)
    source = to_jsonl(base / "there.jsonl", good)
    assert import_jsonl(source, base / "there.parquet", force=True) == len(good) - 1
    export_jsonl(base / "there.parquet", base / "back.jsonl", force=True)
    expected = [{name: value for name, value in row.items() if value is not None} for row in good]
    assert lines(base / "back.jsonl") == expected
    columns = ("t", "pid", "op", "addr", "len", "arg", "err", "ext", "side", "paths")
    for before, after in zip(open_trace(source).batches(), open_trace(base / "there.parquet").batches(), strict=True):
        for name in columns:
            one, other = getattr(before, name), getattr(after, name)
            assert one == other if isinstance(one, list) else one.tolist() == other.tolist(), name


def test_every_op_and_field_there_and_back(tmp_path: Path) -> None:
    """One event of each op with all that it may have, in a fixed text, so that nothing depends on what is generated."""
    text = """\
{"op":"trace","format_version":1}
{"t":1,"op":"exec","pid":1,"comm":"a","cmdline":["a",""],"uid":4294967295,"gid":0,"oom_score_adj":-1000}
{"t":1,"op":"mmap","pid":1,"addr":0,"len":4096,"prot":"rw-","flags":"private,growsdown","path":"/ü","offset":0,"file_size":5}
{"op":"mremap","pid":1,"addr":0,"len":4096,"new_addr":4096,"new_len":8192,"dontunmap":false}
{"op":"fault","pid":1,"addr":0,"len":8192,"write":false}
{"op":"brk","pid":1,"addr":8192,"start":4096}
{"op":"madvise","pid":1,"addr":0,"len":4096,"advice":"free","errno":"EINVAL"}
{"op":"mlock","pid":1,"addr":0,"len":4096,"onfault":true}
{"op":"swap_out","pid":1,"addr":0,"len":4096,"dropped":true}
{"op":"state","pid":1,"addr":0,"len":4096,"entry":"anon","tables":true}
{"op":"cache","len":1,"path":"/x","offset":4611686018427387904}
{"op":"fork","pid":1,"child":4194304}
{"op":"thread","pid":1,"tid":2}
{"op":"expect","pid":1,"VmPTE":0,"RssAnon":1,"RssFile":2,"RssShmem":3,"VmSwap":4,"zero_entries":5,"present_entries":6,\
"swap_entries":7,"guard_entries":8,"vmas":9,"reclaimable_pt_bytes":10,"unlocated_pte_pages":9223372036854775807,\
"t0":1,"t1":2}
{"t":9223372036854775807,"op":"exit","pid":1}
"""
    (tmp_path / "x.jsonl").write_text(text)
    import_jsonl(tmp_path / "x.jsonl", tmp_path / "x.parquet")
    out = io.BytesIO()
    export_jsonl(tmp_path / "x.parquet", out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        json.loads(line) for line in text.splitlines()
    ]


def test_export_to_standard_output(tmp_path: Path) -> None:
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, {"write": True, "addr": 4096, "pid": 1, "op": "fault", "t": 3}])
    program = "import pathlib, sys, pterefd.source.convert as c; c.export_jsonl(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == (
        '{"op":"trace","format_version":1}\n'
        '{"op":"exec","pid":1,"comm":"a"}\n'
        '{"t":3,"op":"fault","pid":1,"addr":4096,"write":true}\n'
    )


def test_progress(tmp_path: Path) -> None:
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, *([FAULT] * 9)])
    told: list[tuple[int, int | None]] = []
    import_jsonl(path, tmp_path / "x.parquet", progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 10)]


def test_import_of_a_bad_trace_leaves_no_file(tmp_path: Path) -> None:
    """Also when the error comes long after the first row group has been written."""
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, *([FAULT] * 300_000), {"op": "exit", "pid": 2}])
    with pytest.raises(TraceError, match=r"x\.jsonl:300002: exit: pid 2 was never started"):
        import_jsonl(path, tmp_path / "x.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


def test_existing_targets_are_kept(tmp_path: Path) -> None:
    source = to_jsonl(tmp_path / "x.jsonl", [EXEC])
    target = tmp_path / "y"
    for convert in (import_jsonl, export_jsonl):
        target.write_text("mine")
        with pytest.raises(BadInput, match="exists already"):
            convert(source, target)
        assert target.read_text() == "mine"
        with pytest.raises(BadInput, match="is a file that is read"):
            convert(source, source, force=True)
        with pytest.raises(BadInput, match="cannot be written"):
            convert(source, tmp_path / "none" / "y")
        convert(source, target, force=True)
        assert open_trace(target).events == 1


def test_export_to_a_full_disk(tmp_path: Path) -> None:
    source = to_jsonl(tmp_path / "x.jsonl", [EXEC, *([FAULT] * 100)])
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", disk], check=True)
    try:
        with pytest.raises(Missing, match="nothing written: No space left on device"):
            export_jsonl(source, disk / "y.jsonl")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
