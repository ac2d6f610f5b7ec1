"""Every way in which a trace can be wrong: one line, with the line or row of the first event that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pterefd.errors import EXIT_BAD_INPUT, BadInput, PterefdError
from pterefd.source.trace import open_trace
from tests.source.handmade import EXEC, Event, to_jsonl, to_parquet

RANGE = {"pid": 1, "addr": 4096, "len": 4096}
FAULT = {"op": "fault", "pid": 1, "addr": 4096, "write": True}
MMAP = {"op": "mmap", **RANGE, "prot": "rw-", "flags": "private,anonymous"}
EXPECT = {"op": "expect", "pid": 1, "VmPTE": 4}

# the wrong event, and what the message says of it; both forms can hold these
WRONG_EVENTS = [
    ({"op": "mmmap", **RANGE}, "'mmmap' is not a known op"),
    ({"pid": 1}, "op is missing"),
    ({"op": "trace", "t": 1}, "op 'trace' may only stand in the first line"),
    ({**FAULT, "addr": 4097}, "fault: addr 0x1001 is not page-aligned (4096)"),
    ({**FAULT, "addr": 1 << 47}, "fault: addr 0x800000000000 is not a canonical user address (0 <= addr < 2^47)"),
    ({**FAULT, "addr": -4096}, "fault: addr -0x1000 is not a canonical user address"),
    ({**FAULT, "len": 0}, "fault: len is 0: it must be positive"),
    ({**MMAP, "len": 0}, "mmap: len is 0: it must be positive"),
    ({**MMAP, "len": -4096}, "mmap: len -4096 is not in 0.."),
    ({**MMAP, "len": 100}, "mmap: len 100 is not a multiple of the page size (4096)"),
    ({**MMAP, "addr": (1 << 47) - 4096, "len": 8192}, "addr 0x7ffffffff000 + len 8192 runs past the address space"),
    ({"op": "munmap", "pid": 1, "addr": 4096}, "munmap: len is missing"),
    ({"op": "fault", "pid": 1, "addr": 4096}, "fault: write is missing"),
    ({"op": "mmap", **RANGE, "prot": "rw-"}, "mmap: flags is missing"),
    ({"op": "exec", "pid": 1}, "exec: comm is missing"),
    ({"op": "fork", "pid": 1}, "fork: child is missing"),
    ({"op": "thread", "pid": 1}, "thread: tid is missing"),
    ({"op": "cache", "path": "/x", "len": 1}, "cache: offset is missing"),
    ({"op": "munmap", "addr": 4096, "len": 4096}, "munmap: pid is missing"),
    ({**FAULT, "prot": "rw-"}, "fault: has no field 'prot'"),
    ({"op": "truncate", "pid": 1, "path": "/x", "len": 1}, "truncate: has no field 'pid'"),
    ({**FAULT, "pid": 2}, "fault: pid 2 was never started here"),
    ({"op": "exit", "pid": 3}, "exit: pid 3 was never started here"),
    ({"op": "fork", "pid": 2, "child": 4}, "fork: pid 2 was never started here"),
    ({"op": "fork", "pid": 1, "child": 1}, "fork: child 1 is a pid that is still running"),
    ({"op": "exec", "pid": 2, "comm": "b", "errno": "ENOENT"}, "exec: pid 2 was never started here"),
    ({**FAULT, "pid": 0}, "fault: pid 0 is not in 1..4194304"),
    ({**FAULT, "pid": 4194305}, "fault: pid 4194305 is not in 1..4194304"),
    ({**FAULT, "t": 6}, "fault: t 6 is before the event above it (7)"),
    ({**FAULT, "t": -1}, "fault: t -1 is not in 0.."),
    ({**MMAP, "errno": "ENOROOM"}, "mmap: errno 'ENOROOM' is not known"),
    ({**MMAP, "prot": "rw"}, "mmap: prot 'rw': it must be three characters, as rw-"),
    ({**MMAP, "prot": "wr-"}, "mmap: prot 'wr-': it must be three characters"),
    ({**MMAP, "flags": "private,anonymus"}, "mmap: flags: 'anonymus' is not a known flag"),
    ({**MMAP, "flags": "anonymous"}, "mmap: flags: 'anonymous' must have one of private and shared"),
    ({**MMAP, "flags": "private,shared"}, "must have one of private and shared"),
    ({**MMAP, "flags": ""}, "mmap: flags: '' is not a known flag"),
    ({**MMAP, "offset": 5}, "mmap: offset 5 is not page-aligned (4096)"),
    ({**MMAP, "offset": -4096}, "mmap: offset -4096 is not in 0.."),
    ({"op": "madvise", **RANGE, "advice": "dont_need"}, "madvise: advice 'dont_need' is not known"),
    ({"op": "state", **RANGE, "entry": "huge"}, "state: entry 'huge' is not known"),
    ({"op": "expect", "pid": 1}, "expect: says nothing: it needs a field to compare"),
    ({"op": "expect", "pid": 1, "t0": 1, "t1": 2}, "expect: says nothing"),
    ({**EXPECT, "t0": 1}, "expect: t0 and t1 go together"),
    ({**EXPECT, "t1": 1}, "expect: t0 and t1 go together"),
    ({**EXPECT, "t0": 2, "t1": 1}, "expect: t0 2 is after t1 1"),
    ({**EXPECT, "VmPTE": -4}, "expect: VmPTE -4 is not in 0.."),
    ({"op": "brk", "pid": 1, "addr": 5000}, "brk: addr 0x1388 is not page-aligned (4096)"),
    ({"op": "brk", "pid": 1, "addr": 8192, "start": 1}, "brk: start 0x1 is not page-aligned (4096)"),
    ({"op": "cache", "path": "/x", "offset": 0, "len": 0}, "cache: len is 0: it must be positive"),
    ({"op": "cache", "path": "/x", "offset": -1, "len": 5}, "cache: offset -1 is not in 0.."),
    ({"op": "mremap", **RANGE, "new_addr": 1, "new_len": 4096}, "mremap: new_addr 0x1 is not page-aligned (4096)"),
    ({"op": "mremap", **RANGE, "new_addr": 4096, "new_len": 0}, "mremap: new_len is 0: it must be positive"),
    (
        {"op": "mremap", **RANGE, "new_addr": (1 << 47) - 4096, "new_len": 8192},
        "mremap: new_addr 0x7ffffffff000 + new_len 8192 runs past the address space (2^47)",
    ),
    ({"op": "exec", "pid": 1, "comm": "a", "uid": -1}, "exec: uid -1 is not in 0..4294967295"),
    ({"op": "exec", "pid": 1, "comm": "a", "oom_score_adj": 1001}, "exec: oom_score_adj 1001 is not in -1000..1000"),
]

# as raw lines: what Parquet's own types rule out
WRONG_LINES = [
    ('{"op":"fault","pid":1,"addr":4096,"write":1}', "fault: write must be true or false, not 1"),
    ('{"op":"fault","pid":1,"addr":4096.0,"write":true}', "fault: addr must be an integer, not 4096.0"),
    ('{"op":"fault","pid":1,"addr":"4096","write":true}', "fault: addr must be an integer, not the string '4096'"),
    ('{"op":"fault","pid":true,"addr":4096,"write":true}', "fault: pid must be an integer, not true"),
    ('{"op":"fault","pid":1,"addr":1e4,"write":true}', "fault: addr must be an integer"),
    ('{"op":"fault","pid":1,"addr":[4096],"write":true}', "fault: addr must be an integer, not [4096]"),
    ('{"op":"fault","pid":1,"addr":99999999999999999999,"write":true}', "fault: addr must be an integer, not 1e+20"),
    (
        '{"op":"fault","pid":1,"addr":18446744073709547520,"write":true}',
        "fault: addr 0xfffffffffffff000 is not a canon",
    ),
    ('{"op":"fault","pid":4294967297,"addr":4096,"write":true}', "fault: pid 4294967297 is not in 1..4194304"),
    ('{"op":"fault","pid":1,"adr":4096,"write":true}', "there is no field 'adr'"),
    ('{"op":"fault","pid":1,"addr":4096,"write":true,"x":null}', "there is no field 'x'"),
    ('{"op":"fault","pid":1,"addr":null,"write":true}', "fault: addr is missing"),
    ('{"op":"fault","pid":1,"addr":4096,"write":true,"pid":1}', "the field 'pid' is there twice"),
    ('{"op":"exec","pid":2,"comm":"b","cmdline":["a",1]}', "exec: cmdline must be a list of strings"),
    ('{"op":"exec","pid":2,"comm":"b","cmdline":["a",null]}', "exec: cmdline must be a list of strings"),
    ('{"op":7}', "op must be a string"),
    ('{"op":"exit","pid":1', "bad JSON: "),
    ('{"op":"exit","pid":1}}', "bad JSON: "),
    ('{"op":"free_ptes","pid":1} {"op":"free_ptes","pid":1}', "bad JSON: "),
    ('{"op":"free_ptes","pid":1}null{"op":"free_ptes","pid":1}', "bad JSON: "),
    ('{"op":"exit","pid":01}', "bad JSON: "),
    ('{"op":"exit","pid":NaN}', "bad JSON: "),
    ('{"op":"exit","pid":1,}', "bad JSON: "),
    ('{"op":"ex\tit","pid":1}', "bad JSON: "),
    ('{"op":"truncate","path":"\\ud800","len":1}', "bad JSON: "),
    ("exit 1", "bad JSON: "),
    ("null", "not a JSON object"),
    ("[]", "not a JSON object"),
    ("17", "not a JSON object"),
    ("{}", "op is missing"),
    (b'{"op":"truncate","path":"\xff","len":1}', "not UTF-8 (byte 26 of the line)"),
    ('{"op":"trace","format_version":1}', "op 'trace' may only stand in the first line"),
]


def read(path: Path) -> str:
    """The error of reading the whole trace."""
    with pytest.raises(PterefdError) as caught:
        for _ in open_trace(path).batches():
            pass
    text = str(caught.value)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert "\n" not in text
    return text


GOOD = {**FAULT, "t": 7}


# The first error is named, whether others follow (the second list) or it must be found for itself.
AFTER = [[FAULT], [FAULT, {"op": "nonsense"}]]


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize(("event", "message"), WRONG_EVENTS)
def test_json_lines(event: Event, message: str, after: list[Event], tmp_path: Path) -> None:
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, GOOD, event, *after])
    text = read(path)
    assert text.startswith(f"{path}:3: ")
    assert message in text


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize(("event", "message"), WRONG_EVENTS)
def test_parquet(event: Event, message: str, after: list[Event], tmp_path: Path) -> None:
    path = to_parquet(tmp_path / "x.parquet", [EXEC, GOOD, FAULT, event, *after], row_group_size=3)
    text = read(path)
    assert text.startswith(f"{path}: row 3: ")
    assert message in text


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize(("line", "message"), WRONG_LINES)
def test_lines(line: str | bytes, message: str, after: list[Event], tmp_path: Path) -> None:
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, "", GOOD, line, *after])
    text = read(path)
    assert text.startswith(f"{path}:4: ")
    assert message in text
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, GOOD, line, *after])
    assert read(path).startswith(f"{path}:3: ")


def test_objects_go_by_lines(tmp_path: Path) -> None:
    """Arrow reads objects wherever they begin: as many as there are lines here, but not one on each."""
    one = '{"op":"free_ptes","pid":1}'
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC, '{"op":"free_ptes",', '"pid":1}', one + one, one])
    assert read(path).startswith(f"{path}:2: bad JSON: ")


@pytest.mark.parametrize("line", ["null", "null\nnull", "[null]"])
def test_nothing_but_null(line: str, tmp_path: Path) -> None:
    """Arrow's reader crashes on a file of nulls."""
    path = to_jsonl(tmp_path / "x.jsonl", [{"op": "trace", "format_version": 1}, line])
    assert read(path) == f"{path}:2: not a JSON object"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_many_events_of_one_pid_that_has_gone(form: str, tmp_path: Path) -> None:
    """A long batch of a single pid takes a short cut."""
    events = [EXEC, {"op": "exit", "pid": 1}, *([FAULT] * 500)]
    if form == "jsonl":
        assert ":3: fault: pid 1 was never" in read(to_jsonl(tmp_path / "x", events))
    else:
        assert ": row 2: fault: pid 1 was never" in read(to_parquet(tmp_path / "x", events, row_group_size=2))


def test_the_line_is_right_far_into_a_file(tmp_path: Path) -> None:
    """Over several chunks, with blank lines and Windows line ends among them."""
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        file.write('\n{"op":"trace","format_version":1}\n{"op":"exec","pid":1,"comm":"a"}\n')
        for i in range(150_000):
            end = "\r\n" if i % 3 else "\n"
            file.write(f'{{"op":"fault","pid":1,"addr":{i * 4096},"write":true}}{end}')
            if i % 50_000 == 7:
                file.write(" \t\n")
        file.write('{"op":"fault","pid":1,"addr":5,"write":true}\n')
    line = 3 + 150_000 + 3 + 1
    trace = open_trace(path)
    assert trace.events == 150_002
    assert read(path).startswith(f"{path}:{line}: fault: addr 0x5 ")
    assert trace.where(0) == f"{path}:3"
    assert trace.where(8) == f"{path}:11"
    assert trace.where(9) == f"{path}:13"
    assert trace.where(150_001) == f"{path}:{line}"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format_version": 2}, "format_version 2 is not supported, only up to 1"),
        ({"format_version": 0}, "format_version 0 is not supported"),
        ({"arch": "x86_64"}, "trace: format_version is missing"),
        ({"format_version": "1"}, "trace: format_version must be an integer"),
        ({"format_version": 1, "page_size": 16384}, "page_size 16384 is not supported, only 4096"),
        ({"format_version": 1, "arch": "aarch64"}, "arch aarch64 is not supported, only x86_64"),
        ({"format_version": 1, "kernel": "6.1"}, "trace: there is no field 'kernel'"),
        ({"format_version": 1, "kernel_config": ["PT_RECLAIM"]}, "trace: kernel_config must be an object"),
        ({"format_version": 1, "memory_bytes": True}, "trace: memory_bytes must be an integer"),
        ({"format_version": 1, "command": [1]}, "trace: command must be a list of strings"),
    ],
)
def test_metadata(meta: Event, message: str, tmp_path: Path) -> None:
    path = to_jsonl(tmp_path / "x.jsonl", [{"op": "trace", **meta}, EXEC])
    assert read(path).startswith(f"{path}:1: {message}")
    path = to_parquet(tmp_path / "x.parquet", [EXEC], meta)
    assert read(path).startswith(f"{path}: {message}")


def test_parquet_metadata_that_is_no_json(tmp_path: Path) -> None:
    for text, message in (("{", "the metadata is not JSON"), ("[]", "the metadata must be a JSON object")):
        table = pa.table({"op": ["x"]}).replace_schema_metadata({"pterefd": text})
        pq.write_table(table, tmp_path / "x.parquet")
        assert message in read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"op": ["exit"], "pid": [1], "adr": [1]}, "column 'adr' is no field of the format"),
        ({"op": ["exit"], "pid": [1.0]}, "column pid holds double, it must be an integer"),
        ({"op": ["exit"], "pid": ["1"]}, "column pid holds string, it must be an integer"),
        ({"op": [1], "pid": [1]}, "column op holds int64, it must be a string"),
        ({"op": ["exit"], "write": [1]}, "column write holds int64, it must be true or false"),
        ({"op": ["exit"], "pid": [{"a": 1}]}, "column pid holds struct<a: int64>, it must be an integer"),
        ({"pid": [1]}, "Parquet without the column op: no trace"),
    ],
)
def test_parquet_columns(columns: dict[str, list[object]], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == f"{tmp_path}/x.parquet: {message}"


def test_unsigned_addresses_of_the_kernel_half(tmp_path: Path) -> None:
    events = [EXEC, {**FAULT, "addr": 0xFFFFFFFFFF600000}]
    path = to_parquet(tmp_path / "x.parquet", events, types={"addr": pa.uint64()})
    assert read(path).startswith(f"{path}: row 1: fault: addr 0xffffffffff600000 is not a canonical user address")


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    """A text that is no UTF-8, which only binary columns can hold, and a number of rows that is not so."""
    names = pa.array([b"/\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"op": ["truncate"], "path": names, "len": [1]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").startswith(f"{tmp_path}/x.parquet: row 0 and following: not UTF-8: ")


# -- files that are no traces ------------------------------------------------------------------------


def test_files_that_are_none(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == f"{tmp_path}/none: no such file"
    assert read(tmp_path) == f"{tmp_path}: is a directory, not a trace"
    os.mkfifo(tmp_path / "fifo")
    assert read(tmp_path / "fifo") == f"{tmp_path}/fifo: is not a regular file"


@pytest.mark.parametrize("content", [b"", b"\n", b"\n  \n\t\r\n", b"\n" * 10_000])
def test_empty(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x") == f"{tmp_path}/x: empty: no events"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x7fELF", "neither Parquet nor JSON Lines"),
        (b"op,pid\nexit,1\n", "neither Parquet nor JSON Lines"),
        (b"PERFILE2" + bytes(96), "a perf recording, not a trace: import it first"),
        (b"PAR1", "cut off or damaged Parquet: "),
        (b"PAR1" + bytes(100), "cut off or damaged Parquet: "),
        (b'\xef\xbb\xbf{"op":"exit"}', "neither Parquet nor JSON Lines"),
    ],
)
def test_other_content(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x").startswith(f"{tmp_path}/x: {message}")


def test_only_metadata_is_a_trace_without_events(tmp_path: Path) -> None:
    trace = open_trace(to_jsonl(tmp_path / "x.jsonl", [{"op": "trace", "format_version": 1}]))
    assert (trace.events, list(trace.batches())) == (0, [])


def test_no_permission(tmp_path: Path) -> None:
    """As another user than root, who may read everything."""
    path = to_jsonl(tmp_path / "x.jsonl", [EXEC])
    path.chmod(0)
    # imported before the rights go: the environment may lie where nobody else can read
    program = (
        "import os, sys; from pathlib import Path; import pterefd.source.jsonl, pterefd.source.parquet;"
        "from pterefd.source.trace import open_trace; os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "try: open_trace(Path('x.jsonl'))\nexcept Exception as e: print(type(e).__name__, e)"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout == "BadInput x.jsonl: cannot be read: Permission denied\n", done.stderr


def test_truncated_anywhere(tmp_path: Path) -> None:
    """A Parquet trace cut off at any length is an error of one line, or (never) the whole of it."""
    whole = to_parquet(tmp_path / "x.parquet", [EXEC, *([FAULT] * 1000)], {"format_version": 1})
    data = whole.read_bytes()
    for length in {0, 3, 4, 11, 12, 100, len(data) // 2, len(data) - 9, len(data) - 8, len(data) - 4, len(data) - 1}:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(BadInput):
            list(open_trace(tmp_path / "cut").batches())


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"op":"exec","pid":1,"comm":"a"}\n{"op":"exec","comm":"' + b"a" * (17 << 20))
    assert read(path) == f"{path}:2: the line is longer than 16777216 bytes"
