"""Damaged Parquet: nothing of it crashes the process, and nothing of the project's own files goes unseen."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pterefd.errors import TraceError
from pterefd.source.footer import BadFooter, seal, sealed_footer, used_columns
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import open_trace
from pterefd.source.writer import TraceWriter
from tests.source.handmade import EXEC, Event, to_parquet

EVENTS: list[Event] = [
    {**EXEC, "cmdline": ["a", "b"]},
    {"op": "mmap", "pid": 1, "addr": 0, "len": 1 << 20, "prot": "rw-", "flags": "private", "path": "/a"},
    *({"op": "fault", "t": i, "pid": 1, "addr": i * 7919 % 256 * 4096, "write": i % 3 == 0} for i in range(400)),
    {"op": "expect", "pid": 1, "VmPTE": 4},
]
COLUMNS = ("t", "pid", "op", "addr", "len", "arg", "err", "ext")


def contents(path: Path) -> list[object]:
    batches = list(open_trace(path).batches())
    return [[getattr(batch, name).tolist() for name in COLUMNS] + [batch.side, batch.paths] for batch in batches]


def own(path: Path) -> Path:
    with TraceWriter(path, TraceMeta(kernel_release="6.18")) as writer:
        for event in EVENTS:
            writer.add(**event)
    return path


def read(path: Path) -> list[object] | str:
    """Contents, or the error's text."""
    try:
        return contents(path)
    except TraceError as error:
        return str(error)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to five bytes changed, half of them in the second half, where the footer is."""
    bad = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        bad[rng.randrange(rng.choice((0, len(bad) // 2)), len(bad))] = rng.randrange(256)
    return bytes(bad)


def test_own_files_with_changed_bytes(tmp_path: Path) -> None:
    """Refused in one line, or (where the bytes mean nothing) read as before; never read as something else."""
    path = own(tmp_path / "x.parquet")
    data, good = path.read_bytes(), contents(path)
    rng = random.Random(7)
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(data, rng))
        now = read(path)
        assert now == good or (isinstance(now, str) and "\n" not in now)
        refused += isinstance(now, str)
    assert refused > 300


def test_others_files_with_changed_bytes(tmp_path: Path) -> None:
    """No checksum of the footer there: what is read may be wrong, but the process lives and errors are one line."""
    path = to_parquet(tmp_path / "x.parquet", EVENTS, {"format_version": 1}, row_group_size=100)
    data = path.read_bytes()
    rng = random.Random(8)
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(data, rng))
        now = read(path)
        assert isinstance(now, list) or "\n" not in now
        refused += isinstance(now, str)
    assert refused > 200


def test_the_footer_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    path = to_parquet(tmp_path / "x.parquet", EVENTS, row_group_size=100)
    with pq.ParquetFile(path) as file:
        expected = []
        for index in range(file.num_row_groups):
            table = file.read_row_group(index)
            expected.append({name for name in table.column_names if table[name].null_count < len(table)})
        assert used_columns(path, file) == expected
        assert expected[1] == {"op", "t", "pid", "addr", "write"}


def test_own_footers_have_a_checksum(tmp_path: Path) -> None:
    path = own(tmp_path / "x.parquet")
    assert sealed_footer(path)[1]
    assert not sealed_footer(to_parquet(tmp_path / "y.parquet", EVENTS))[1]
    footer = b"a footer" + (8).to_bytes(4, "little") + b"PAR1"
    (tmp_path / "z").write_bytes(seal(footer) + footer)
    assert sealed_footer(tmp_path / "z") == (footer, True)
    (tmp_path / "z").write_bytes(seal(footer) + b"A" + footer[1:])
    with pytest.raises(BadFooter, match="checksum is wrong"):
        sealed_footer(tmp_path / "z")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff\xff\xff\x7fPAR1"])
def test_too_short_for_a_footer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TraceError, match="cut off or damaged Parquet"):
        open_trace(tmp_path / "x")
