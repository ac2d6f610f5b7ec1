"""Events as written by hand, and the columns that replay is handed for them."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from pterefd.mm import events as ev
from pterefd.source.trace import BATCH_EVENTS, open_trace
from tests.source.handmade import EXEC, Event, to_jsonl, to_parquet, write_as

FORMS = ("jsonl", "parquet")
BASE = 0x7F0000000000

RANGE = {"pid": 1, "addr": BASE, "len": 8192}
SPANS = {"pid": 1, "addr": BASE, "len": 4 << 20}

# event, and of its row: op, pid, addr, len, arg
SIMPLE = [
    ({"op": "fault", "pid": 1, "addr": BASE, "write": True}, (ev.OP_FAULT, 1, BASE, 4096, 1)),
    ({"op": "fault", **RANGE, "write": False}, (ev.OP_FAULT, 1, BASE, 8192, 0)),
    ({"op": "munmap", **RANGE}, (ev.OP_MUNMAP, 1, BASE, 8192, 0)),
    ({"op": "mprotect", **RANGE, "prot": "r-x"}, (ev.OP_MPROTECT, 1, BASE, 8192, 5)),
    ({"op": "mprotect", **RANGE, "prot": "---"}, (ev.OP_MPROTECT, 1, BASE, 8192, 0)),
    ({"op": "brk", "pid": 1, "addr": BASE}, (ev.OP_BRK, 1, BASE, 0, 0)),
    ({"op": "brk", "pid": 1, "addr": BASE, "start": 4096}, (ev.OP_BRK, 1, BASE, 0, 4096)),
    ({"op": "madvise", **RANGE, "advice": "dontneed"}, (ev.OP_MADVISE, 1, BASE, 8192, 4)),
    ({"op": "madvise", **RANGE, "advice": "guard_remove"}, (ev.OP_MADVISE, 1, BASE, 8192, 19)),
    ({"op": "mlock", **RANGE}, (ev.OP_MLOCK, 1, BASE, 8192, 0)),
    ({"op": "mlock", **RANGE, "onfault": True}, (ev.OP_MLOCK, 1, BASE, 8192, 1)),
    ({"op": "munlock", **RANGE}, (ev.OP_MUNLOCK, 1, BASE, 8192, 0)),
    ({"op": "swap_out", **RANGE, "dropped": True}, (ev.OP_SWAP_OUT, 1, BASE, 8192, 1)),
    ({"op": "state", **RANGE, "entry": "zero"}, (ev.OP_STATE, 1, BASE, 8192, 1)),
    ({"op": "state", **RANGE, "entry": "guard", "tables": True}, (ev.OP_STATE, 1, BASE, 8192, 6 + 256)),
    ({"op": "state", **SPANS, "entry": "anon", "huge": True}, (ev.OP_STATE, 1, BASE, 4 << 20, 2 + 512)),
    ({"op": "thp", "pid": 1, "disabled": True}, (ev.OP_THP, 1, 0, 0, 1)),
    ({"op": "thp", "pid": 1, "disabled": False}, (ev.OP_THP, 1, 0, 0, 0)),
    ({"op": "mlockall", "pid": 1, "current": True, "onfault": True}, (ev.OP_MLOCKALL, 1, 0, 0, 5)),
    ({"op": "mlockall", "pid": 1, "current": False, "future": True}, (ev.OP_MLOCKALL, 1, 0, 0, 2)),
    ({"op": "mbind", **RANGE, "policy": True}, (ev.OP_MBIND, 1, BASE, 8192, 1)),
    ({"op": "mbind", **RANGE, "policy": False}, (ev.OP_MBIND, 1, BASE, 8192, 0)),
    ({"op": "munlockall", "pid": 1}, (ev.OP_MUNLOCKALL, 1, 0, 0, 0)),
    ({"op": "cache", "path": "/x", "offset": 5, "len": 7}, (ev.OP_CACHE, 0, 5, 7, 0)),
    ({"op": "truncate", "path": "/x", "len": 0}, (ev.OP_TRUNCATE, 0, 0, 0, 0)),
    ({"op": "fork", "pid": 1, "child": 9}, (ev.OP_FORK, 1, 0, 0, 9)),
    ({"op": "thread", "pid": 1, "tid": 77}, (ev.OP_THREAD, 1, 0, 0, 77)),
    ({"op": "thread_exit", "pid": 1, "tid": 77}, (ev.OP_THREAD_EXIT, 1, 0, 0, 77)),
    ({"op": "free_ptes", "pid": 1}, (ev.OP_FREE_PTES, 1, 0, 0, 0)),
    ({"op": "exit", "pid": 1}, (ev.OP_EXIT, 1, 0, 0, 0)),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("event", "expected"), SIMPLE)
def test_one_event(form: str, event: Event, expected: tuple[int, ...], tmp_path: Path) -> None:
    (batch,) = open_trace(write_as(form, tmp_path, [EXEC, event])).batches()
    row = tuple(int(column[1]) for column in (batch.op, batch.pid, batch.addr, batch.len, batch.arg))
    assert row == expected
    assert batch.t.tolist() == [-1, -1]


@pytest.mark.parametrize("form", FORMS)
def test_all_of_them_in_one_batch(form: str, tmp_path: Path) -> None:
    """Each op finds its own values when others stand around it."""
    batches = list(open_trace(write_as(form, tmp_path, [EXEC, *(event for event, _ in SIMPLE)])).batches())
    assert len(batches) == 1
    columns = (batches[0].op, batches[0].pid, batches[0].addr, batches[0].len, batches[0].arg)
    assert [tuple(row) for row in np.array(columns).T.tolist()][1:] == [expected for _, expected in SIMPLE]


@pytest.mark.parametrize("form", FORMS)
def test_mmap_mremap_exec_expect(form: str, tmp_path: Path) -> None:
    who = {"comm": "sh", "cmdline": ["sh", "-c", "x"], "uid": 0, "gid": 7, "oom_score_adj": -5}
    events = [
        {"op": "exec", "pid": 1, "t": 3, **who},
        {"op": "mmap", **RANGE, "prot": "rw-", "flags": "private,anonymous,noreserve", "t": 3},
        {"op": "mremap", **RANGE, "new_addr": BASE + 65536, "new_len": 4096, "dontunmap": True, "t": 9},
        {"op": "expect", "pid": 1, "VmPTE": 40, "vmas": 2, "t0": 4, "t1": 8},
        {"op": "mmap", **RANGE, "prot": "r--", "flags": "shared", "path": "/lib/a", "offset": 4096, "file_size": 5000},
        {"op": "mmap", **RANGE, "prot": "r--", "flags": "private", "path": "/lib/b", "errno": "ENOMEM"},
        {"op": "expect", "pid": 1, "RssAnon": 8},
        {"op": "cache", "path": "/lib/b", "offset": 0, "len": 1},
    ]
    (batch,) = open_trace(write_as(form, tmp_path, events)).batches()
    assert batch.t.tolist() == [3, 3, 9, -1, -1, -1, -1, -1]
    assert batch.arg.tolist() == [0, 0, 1, 1, 2, 3, 2, 1]
    assert batch.ext.tolist() == [
        [3, 2 + 4 + 16, -1, -1, -1],
        [BASE + 65536, 4096, 1, 0, 0],
        [1, 1, 0, 4096, 5000],
        [1, 2, 1, -1, -1],
    ]
    assert batch.err.tolist() == [0, 0, 0, 0, 0, errno.ENOMEM, 0, 0]
    assert batch.paths == ["/lib/a", "/lib/b"]
    assert batch.side == [
        who,
        {"VmPTE": 40, "vmas": 2, "t0": 4, "t1": 8},
        {"RssAnon": 8},
    ]


def test_types_and_layout_of_the_columns(tmp_path: Path) -> None:
    """What the kernels are compiled for: fresh, writable, contiguous arrays of fixed types, whatever the file holds."""
    faults = [{"op": "fault", "pid": 1, "addr": BASE + i * 4096, "write": i % 3 == 0, "t": i} for i in range(100)]
    path = to_parquet(tmp_path / "x.parquet", [{**EXEC, "t": 0}, *faults], row_group_size=50)
    for batch in open_trace(path).batches():
        types = {
            "t": "int64",
            "pid": "int32",
            "op": "uint8",
            "addr": "int64",
            "len": "int64",
            "arg": "int64",
            "err": "int16",
        }
        for name, dtype in types.items():
            column = getattr(batch, name)
            assert (column.dtype, column.shape) == (dtype, (len(batch),)), name
            assert column.flags.carray, name
        assert batch.ext.shape[1] == ev.EXT_COLUMNS


def test_paths_keep_their_index_from_batch_to_batch(tmp_path: Path) -> None:
    events = [{"op": "truncate", "path": name, "len": 1} for name in ("/a", "/b", "/b", "/c", "/a", "/d")]
    path = to_parquet(tmp_path / "x.parquet", events, row_group_size=2)
    batches = list(open_trace(path).batches())
    assert [batch.arg.tolist() for batch in batches] == [[0, 1], [1, 2], [0, 3]]
    assert batches[-1].paths == ["/a", "/b", "/c", "/d"]
    assert [batch.first for batch in batches] == [0, 2, 4]


def test_a_trace_can_be_read_twice(tmp_path: Path) -> None:
    trace = open_trace(to_jsonl(tmp_path / "x.jsonl", [EXEC, {"op": "truncate", "path": "/a", "len": 1}]))
    first, second = ([batch.arg.tolist() for batch in trace.batches()] for _ in range(2))
    assert first == second == [[0, 0]]


@pytest.mark.parametrize("text", ["a\0b\0", "a\0b"])
@pytest.mark.parametrize("form", FORMS)
def test_a_command_line_may_be_one_string(form: str, text: str, tmp_path: Path) -> None:
    import pyarrow as pa

    event = {**EXEC, "cmdline": text}
    if form == "jsonl":
        path = to_jsonl(tmp_path / "x.jsonl", [event])
    else:
        path = to_parquet(tmp_path / "x.parquet", [event], types={"cmdline": pa.string()})
    (batch,) = open_trace(path).batches()
    assert batch.side == [{"comm": "a", "cmdline": ["a", "b"]}]


def test_no_batch_is_longer_than_said(tmp_path: Path) -> None:
    """One long row group, and a chunk of lines with more events than a batch may have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 2 * BATCH_EVENTS + 7
    pq.write_table(
        pa.table({"op": ["truncate"] * n, "path": [f"/{i % 5}" for i in range(n)], "len": np.arange(n)}),
        tmp_path / "long.parquet",
        row_group_size=n,
    )
    batches = list(open_trace(tmp_path / "long.parquet").batches())
    assert [len(batch) for batch in batches] == [BATCH_EVENTS, BATCH_EVENTS, 7]
    assert np.array_equal(np.concatenate([batch.len for batch in batches]), np.arange(n))

    with (tmp_path / "short.jsonl").open("w") as file:
        file.write('{"op":"exec","pid":1,"comm":"a"}\n')
        file.writelines('{"op":"free_ptes","pid":1}\n' for _ in range(n - 1))
    batches = list(open_trace(tmp_path / "short.jsonl").batches())
    assert sum(len(batch) for batch in batches) == n
    assert max(len(batch) for batch in batches) <= BATCH_EVENTS


@pytest.mark.parametrize("form", FORMS)
def test_pids_live_from_exec_or_fork_to_exit(form: str, tmp_path: Path) -> None:
    """A pid may come again after its exit, an exec may repeat, and a failed fork starts nobody."""
    events = [
        EXEC,
        {"op": "fork", "pid": 1, "child": 2},
        {"op": "exec", "pid": 2, "comm": "b"},
        {"op": "fork", "pid": 2, "errno": "EAGAIN"},
        {"op": "exit", "pid": 2},
        {"op": "fork", "pid": 1, "child": 2},
        {"op": "expect", "pid": 2, "VmPTE": 1},
        {"op": "exit", "pid": 1},
        {"op": "exit", "pid": 2},
    ]
    (batch,) = open_trace(write_as(form, tmp_path, events)).batches()
    assert len(batch) == len(events)
