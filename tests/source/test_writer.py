"""Writing traces: order, names, what stays when something goes wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pterefd.errors import EXIT_MISSING, EXIT_PARTLY, BadInput, Missing, Partly
from pterefd.mm.events import OP_FAULT, OPS
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import open_trace
from pterefd.source.writer import ROW_GROUP, TraceWriter

META = TraceMeta(kernel_release="6.18.44", kernel_config={"PT_RECLAIM": "y"}, thp="never", command=["a", "b c"])


def faults(begin: int, end: int) -> dict[str, np.ndarray]:
    """Columns of read and write faults at ascending times."""
    number = np.arange(begin, end)
    return {
        "t": number,
        "pid": np.ones(len(number), dtype=np.int32),
        "op": np.full(len(number), OP_FAULT, dtype=np.uint8),
        "addr": number * 4096,
        "write": number % 2 == 0,
    }


def test_one_by_one_and_in_bulk_in_order(tmp_path: Path) -> None:
    """More events than a pending table and a row group take, single events between the bulks."""
    with TraceWriter(tmp_path / "x.parquet", META) as writer:
        writer.add("exec", pid=1, comm="a", cmdline=["a", "-v"], uid=None, t=0)
        for i in range(1, 40_001):
            writer.add("fault", t=i, pid=1, addr=i * 4096, write=i % 2 == 0)
        writer.add_columns(faults(40_001, 200_001))
        writer.add("brk", pid=1, addr=8192, t=200_001)
        writer.add_columns({"op": np.array(["free_ptes", "exit"]), "pid": np.array([1, 1]), "t": [200_002] * 2})
    trace = open_trace(tmp_path / "x.parquet")
    assert trace.meta == META
    assert trace.events == 200_004
    batches = list(trace.batches())
    t = np.concatenate([batch.t for batch in batches])
    assert t[:-1].tolist() == list(range(200_003))
    addr = np.concatenate([batch.addr for batch in batches])
    write = np.concatenate([batch.arg for batch in batches])
    assert np.array_equal(addr[1:200_001], np.arange(1, 200_001) * 4096)
    assert np.array_equal(write[1:200_001], (np.arange(1, 200_001) % 2 == 0))
    assert [OPS[op] for op in np.concatenate([batch.op for batch in batches])[-3:]] == ["brk", "free_ptes", "exit"]
    assert batches[0].side == [{"comm": "a", "cmdline": ["a", "-v"]}]


def test_rows_of_a_group_and_types(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.parquet", META) as writer:
        writer.add_columns(faults(0, ROW_GROUP + 5))
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP, 5]
    schema = file.schema_arrow
    assert schema.field("t").type == pa.int64()
    assert schema.field("pid").type == pa.int32()
    assert schema.field("op").type == pa.dictionary(pa.int8(), pa.string())
    assert schema.field("write").type == pa.bool_()
    assert schema.field("cmdline").type == pa.list_(pa.string())
    assert b"pterefd" in schema.metadata


def test_unknown_names_are_refused_at_once(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "x.parquet", META)
    with pytest.raises(KeyError, match="mmmap"):
        writer.add("mmmap", pid=1)
    with pytest.raises(KeyError, match="adr"):
        writer.add("fault", pid=1, adr=1)
    with pytest.raises(KeyError, match="adr"):
        writer.add_columns({"op": np.array(["fault"]), "adr": np.array([1])})
    with pytest.raises(ValueError, match="addr has 2 values, op has 1"):
        writer.add_columns({"op": np.array(["fault"]), "addr": np.array([1, 2])})
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """As os.fsdecode gives them: the odd bytes come out as escapes, nothing fails."""
    with TraceWriter(tmp_path / "x.parquet", META) as writer:
        writer.add("exec", pid=1, comm=os.fsdecode(b"a\xffb"), cmdline=[os.fsdecode(b"\xfe"), "\u00fc"])
        writer.add("truncate", path=os.fsdecode(b"/x\xff"), len=1)
    (batch,) = open_trace(tmp_path / "x.parquet").batches()
    assert batch.side == [{"comm": "a\\xffb", "cmdline": ["\\xfe", "\u00fc"]}]
    assert batch.paths == ["/x\\xff"]


# -- the target --------------------------------------------------------------------------------------


def test_an_existing_target_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("mine")
    with pytest.raises(BadInput, match=r"x\.parquet: exists already"):
        TraceWriter(path, META)
    assert path.read_text() == "mine"
    with TraceWriter(path, META, force=True) as writer:
        writer.add("truncate", path="/x", len=1)
        assert path.read_text() == "mine"  # until it is complete
    assert open_trace(path).events == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.parquet"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "x.parquet", META)
    (tmp_path / "x.parquet").write_text("theirs")
    with pytest.raises(BadInput, match="exists already"):
        writer.close()
    assert (tmp_path / "x.parquet").read_text() == "theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.parquet"]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        TraceWriter(tmp_path, META, force=True)
    with pytest.raises(BadInput, match=r"none/x\.parquet: cannot be written: No such file or directory"):
        TraceWriter(tmp_path / "none" / "x.parquet", META)


def test_an_exception_leaves_nothing_and_close_keeps(tmp_path: Path) -> None:
    def interrupted(keep: bool) -> None:
        with TraceWriter(tmp_path / "x.parquet", META) as writer:
            writer.add("truncate", path="/x", len=1)
            if keep:  # what a recorder does on Ctrl-C: it closes first
                writer.close()
                with pytest.raises(ValueError, match="closed"):
                    writer.add_columns(faults(0, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(keep=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted(keep=True)
    assert open_trace(tmp_path / "x.parquet").events == 1


def test_no_events(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "x.parquet", META).close()
    assert (open_trace(tmp_path / "x.parquet").events, open_trace(tmp_path / "x.parquet").meta) == (0, META)


# -- a full disk: a real small file system --------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def incompressible(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    columns = faults(0, n)
    del columns["t"]
    return {**columns, "addr": rng.integers(0, 1 << 35, n) * 4096, "write": rng.random(n) < 0.5}


def fill(writer: TraceWriter) -> None:
    """More than the small disk holds."""
    rng = np.random.default_rng(1)
    writer.add("exec", pid=1, comm="a")
    for _ in range(50):
        writer.add_columns(incompressible(rng, 50_000))


def test_a_full_disk_keeps_the_complete_row_groups(small_disk: Path) -> None:
    path = small_disk / "x.parquet"
    writer = TraceWriter(path, META)
    with pytest.raises(
        Partly, match=r"x\.parquet: no space left on the device: the first \d+ events are kept"
    ) as caught:
        fill(writer)
    assert caught.value.exit_code == EXIT_PARTLY
    trace = open_trace(path)
    assert trace.events > 300_000  # at some 5.3 bytes each: all but what the estimate of the next piece keeps free
    addr = np.concatenate([batch.addr for batch in trace.batches()])
    assert len(addr) == trace.events == writer.events
    rng = np.random.default_rng(1)
    added = np.concatenate([incompressible(rng, 50_000)["addr"] for _ in range(len(addr) // 50_000 + 1)])
    assert np.array_equal(addr[1:], added[: len(addr) - 1])  # all up to there, none left out
    assert [entry.name for entry in small_disk.iterdir()] == ["x.parquet"]
    writer.close()  # does nothing more


def test_a_disk_that_is_full_at_the_start(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as file, pytest.raises(OSError, match="No space"):
        os.posix_fallocate(file.fileno(), 0, 4 << 20)
    (small_disk / "ballast").write_bytes(bytes((3 << 20) - 8192))
    with pytest.raises(Missing, match="nothing written: no space left on the device") as caught:
        TraceWriter(small_disk / "x.parquet", META)
    assert caught.value.exit_code == EXIT_MISSING
    assert [entry.name for entry in small_disk.iterdir()] == ["ballast"]


def test_all_or_nothing(small_disk: Path) -> None:
    """As import wants it: no part of a file."""
    writer = TraceWriter(small_disk / "x.parquet", META, keep=False)
    with pytest.raises(Missing, match="nothing written: no space left on the device"):
        fill(writer)
    assert list(small_disk.iterdir()) == []


def test_the_end_of_the_file_has_room_reserved(tmp_path: Path) -> None:
    """The estimate that the full disk relies on holds for long names and many row groups."""
    path = tmp_path / "x.parquet"
    writer = TraceWriter(path, META)
    for i in range(30):
        writer.add("exec", pid=1, comm="c" * 5000, cmdline=["x" * 3000] * 3)
        writer.add("truncate", path=f"/{i}" + "p" * 4000, len=1)
        writer.add("mmap", pid=1, addr=0, len=4096, prot="rw-", flags="private,anonymous", path="q" * 4096)
        writer.add("expect", pid=1, VmPTE=1, RssAnon=2, vmas=4, t0=1, t1=2)
        writer._add_part(writer._pending.take())
        writer._write_waiting(writer._waiting)
    reserved = writer._end.size
    at = writer._file.tell()
    writer.close()
    assert path.stat().st_size - at < reserved


def test_a_recording_of_300_000_events_is_small(tmp_path: Path) -> None:
    """Random faults over 64 GiB with the clock of a real one: under 3 MB."""
    rng = np.random.default_rng(1)
    columns = incompressible(rng, 300_000)
    columns["t"] = np.cumsum(rng.exponential(1500, 300_000)).astype(np.int64)
    columns["addr"] = 0x7F0000000000 + rng.integers(0, 1 << 24, 300_000) * 4096
    with TraceWriter(tmp_path / "x.parquet", META) as writer:
        writer.add_columns(columns)
    assert (tmp_path / "x.parquet").stat().st_size < 3_000_000
