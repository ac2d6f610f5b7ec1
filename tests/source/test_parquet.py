"""Parquet as others write it: filtered, other widths, plain strings, few columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pterefd.mm.events import OP_EXEC, OP_FAULT, Batch
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import open_trace
from pterefd.source.writer import TraceWriter
from tests.source.handmade import EXEC, Event, to_parquet

EVENTS: list[Event] = [
    {**EXEC, "t": 0, "cmdline": [], "uid": 7},
    {"op": "mmap", "t": 1, "pid": 1, "addr": 4096, "len": 4096, "prot": "rw-", "flags": "private", "path": "/a"},
    *({"op": "fault", "t": 2 + i, "pid": 1, "addr": 4096 * i, "write": i % 2 == 0} for i in range(20)),
    {"op": "expect", "t": 30, "pid": 1, "VmPTE": 12},
]


def contents(path: Path) -> list[list[object]]:
    """Every column of every batch, joined."""
    batches = list(open_trace(path).batches())
    names = ("t", "pid", "op", "addr", "len", "err")
    return [[value for batch in batches for value in getattr(batch, name).tolist()] for name in names] + [
        [item for batch in batches for item in batch.side]
    ]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with TraceWriter(tmp_path / "w.parquet", TraceMeta(kernel_release="6.18", memory_bytes=1 << 40)) as writer:
        for event in EVENTS:
            writer.add(**event)
    return tmp_path / "w.parquet"


def test_filtered_and_written_back(written: Path, tmp_path: Path) -> None:
    """Each row stands alone: some are left out with pyarrow, the rest still reads, metadata too."""
    table = pq.read_table(written)
    kept = table.filter(pc.invert(pc.and_kleene(pc.equal(table["op"], "fault"), table["write"])))
    pq.write_table(kept, tmp_path / "f.parquet")
    trace = open_trace(tmp_path / "f.parquet")
    assert trace.meta == TraceMeta(kernel_release="6.18", memory_bytes=1 << 40)
    assert trace.events == 13
    (batch,) = trace.batches()
    assert batch.addr[batch.op == OP_FAULT].tolist() == [4096 * i for i in range(1, 20, 2)]
    assert batch.side[0] == {"comm": "a", "cmdline": [], "uid": 7}


@pytest.mark.parametrize(
    "types",
    [
        {"pid": pa.int8(), "addr": pa.uint32(), "t": pa.uint64(), "len": pa.int16(), "VmPTE": pa.uint8()},
        {"pid": pa.int64(), "t": pa.int32(), "addr": pa.uint64()},
        dict.fromkeys(("op", "prot", "flags", "path", "comm"), pa.large_string()),
        dict.fromkeys(("op", "prot", "flags", "path", "comm"), pa.dictionary(pa.int8(), pa.string())),
        {
            "op": pa.string_view(),
            "cmdline": pa.large_list(pa.large_string()),
            "pid": pa.dictionary(pa.int8(), pa.int64()),
        },
        {"path": pa.null(), "errno": pa.null()},
    ],
)
def test_other_types(types: dict[str, pa.DataType], written: Path, tmp_path: Path) -> None:
    events = [{**event, "errno": None} for event in EVENTS]
    if types.get("path") == pa.null():
        events = [{**event, "path": None} for event in events]
    assert contents(to_parquet(tmp_path / "x.parquet", events, types=types)) == contents(written)


@pytest.mark.parametrize(
    "options",
    [
        {"write_statistics": False},
        {"use_dictionary": False, "compression": "gzip"},
        {"row_group_size": 1},
        {"version": "1.0", "data_page_version": "2.0"},
        {"store_schema": False},
    ],
)
def test_other_ways_to_write(options: dict[str, object], written: Path, tmp_path: Path) -> None:
    assert contents(to_parquet(tmp_path / "x.parquet", EVENTS, **options)) == contents(written)


def test_columns_in_another_order_and_empty_groups(written: Path, tmp_path: Path) -> None:
    table = pq.read_table(written)
    table = table.select(sorted(table.column_names, reverse=True))
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table.slice(0, 9))
        writer.write_table(table.slice(0, 0))
        writer.write_table(table.slice(9))
    assert contents(tmp_path / "x.parquet") == contents(written)


def test_unused_words_of_a_dictionary_do_no_harm(tmp_path: Path) -> None:
    """A filtered dictionary column still has the words of the rows that have gone."""
    words = pa.array(["nonsense", "exec", "mmap"])
    table = pa.table(
        {
            "op": pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int8()), words),
            "pid": [1, 2],
            "comm": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (batch,) = open_trace(tmp_path / "x.parquet").batches()
    assert batch.op.tolist() == [OP_EXEC] * 2


def test_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"op": pa.array([], pa.string())}), tmp_path / "x.parquet")
    trace = open_trace(tmp_path / "x.parquet")
    assert (trace.events, list(trace.batches())) == (0, [])


def test_where(written: Path) -> None:
    assert open_trace(written).where(5) == f"{written}: row 5"


def test_faults_alone_read_few_columns(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups that hold faults alone cost no more than the columns of a fault."""
    faults = [{**event, "len": None} for event in EVENTS[2:22]]
    path = to_parquet(tmp_path / "x.parquet", [EVENTS[0], *faults], row_group_size=1)
    asked: list[list[str]] = []
    plain = pq.ParquetFile.iter_batches

    def record(self: pq.ParquetFile, *args: object, **options: object) -> object:
        asked.append(options["columns"])  # type: ignore[arg-type]
        return plain(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record)
    batches: list[Batch] = list(open_trace(path).batches())
    assert len(batches) == 21
    assert asked[0] == ["t", "op", "pid", "comm", "cmdline", "uid"]
    assert asked[1:] == [["t", "op", "pid", "addr", "write"]] * 20
