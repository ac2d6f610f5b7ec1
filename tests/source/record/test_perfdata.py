"""The reader of perf.data against perf's own, and against damage."""

from __future__ import annotations

import struct
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pterefd.source.record import perf
from pterefd.source.record.perfdata import COMM, FORK, MMAP2, PerfData, PerfDataError, parse_format

pytestmark = pytest.mark.kernel

MMAP = "syscalls:sys_enter_mmap"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perf.data of a shell with children."""
    path = tmp_path_factory.mktemp("perf") / "perf.data"
    events = [*perf.FAULTS, MMAP, "syscalls:sys_exit_mmap", "syscalls:sys_exit_brk"]
    perf.tracefs()
    command = ["perf", "record", "-q", "-o", str(path), *perf.options(events), "--", "sh", "-c", "ls / | wc -l; true"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_agrees_with_perf_script(recorded: Path) -> None:
    data = PerfData(recorded)
    printed = subprocess.run(
        ["perf", "script", "-i", str(recorded), "--ns", "-F", "tid,time,event,trace"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    names = Counter(data.events[index] for index in data.samples.event.tolist())
    assert sum(names.values()) == len(printed)
    assert names == Counter(line.split()[2].rstrip(":") for line in printed)
    assert (np.diff(data.samples.t) >= 0).all()
    mine = sorted(
        (f"{t // 10**9}.{t % 10**9:09}", tid) for t, tid in zip(data.samples.t, data.samples.tid, strict=True)
    )
    assert mine == sorted((line.split()[1].rstrip(":"), int(line.split()[0])) for line in printed)
    rows = np.flatnonzero(data.samples.event == data.event_indices(MMAP)[0])
    theirs = [int(line.split("len: ")[1].split(",")[0], 16) for line in printed if MMAP in line]
    assert sorted(data.gather(MMAP, "len", rows).tolist()) == sorted(theirs)
    assert data.lost == 0
    assert data.has_clock_monotonic()
    assert data.texts["arch"] == "x86_64"


def test_records_beside_the_samples(recorded: Path) -> None:
    data = PerfData(recorded)
    kinds = Counter(side.kind for side in data.sides)
    assert kinds[FORK] == 2
    assert {side.text for side in data.sides if side.kind == COMM and side.exec} == {"sh", "ls", "wc"}
    libraries = [side for side in data.sides if side.kind == MMAP2 and "libc.so" in side.text]
    assert libraries
    assert all(side.inode and side.addr % 4096 == 0 and side.len > 0 for side in libraries)


def test_no_mapping_of_the_file_is_left(recorded: Path) -> None:
    data = PerfData(recorded)
    times = data.samples.t
    data.close()
    assert times[0] > 0
    assert str(recorded) not in Path("/proc/self/maps").read_text()


def test_truncated_anywhere(recorded: Path, tmp_path: Path) -> None:
    """One clear line; or, where only what is not needed is cut off, all there is."""
    good = PerfData(recorded)
    whole = recorded.read_bytes()
    cut = tmp_path / "cut.data"
    step = max(1, len(whole) // 60)
    for size in [*range(0, 2000, 101), *range(2000, len(whole), step)]:
        cut.write_bytes(whole[:size])
        try:
            found = len(PerfData(cut).samples)
        except PerfDataError as error:
            lines = str(error).splitlines()
        else:
            assert found == len(good.samples)
            continue
        assert len(lines) == 1
        assert lines[0].startswith(f"{cut}: ")


def test_killed_perf(recorded: Path, tmp_path: Path) -> None:
    """perf that was killed leaves a data size of 0, no features, and half a record at the end."""
    whole = bytearray(recorded.read_bytes())
    data_at, data_size = struct.unpack_from("<QQ", whole, 40)
    struct.pack_into("<Q", whole, 48, 0)
    killed = tmp_path / "killed.data"
    killed.write_bytes(whole[: data_at + data_size - 3])
    with pytest.raises(PerfDataError, match="does not describe its tracepoint"):
        PerfData(killed)
    good = PerfData(recorded)
    data = PerfData(killed, good.formats, copy=True)
    assert not data.complete
    assert data.truncated_at is not None
    assert len(good.samples) - 1 <= len(data.samples) <= len(good.samples)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "too short"),
        (b"PAR1" * 100, "is not a perf.data"),
        (b"2ELIFREP" + bytes(200), "other byte order"),
        (b"PERFILE2" + struct.pack("<Q", 16) + bytes(200), "pipe"),
        (b"PERFILE2" + b"\xff" * 200, "damaged"),
        (b"PERFILE2" + bytes(200), "damaged"),
    ],
)
def test_what_is_no_perf_data(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "bad.data"
    path.write_bytes(content)
    with pytest.raises(PerfDataError, match=why) as raised:
        PerfData(path)
    assert "\n" not in str(raised.value)


def test_random_damage(recorded: Path, tmp_path: Path) -> None:
    """Flipped bytes give an error or other numbers, never a crash."""
    whole = recorded.read_bytes()
    bad = tmp_path / "bad.data"
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 4).tolist() + random.integers(0, 3000, 2).tolist():
            damaged[at] = int(random.integers(256))
        bad.write_bytes(damaged)
        try:
            data = PerfData(bad)
            for event in set(data.events) - {""}:
                rows = np.flatnonzero(np.isin(data.samples.event, data.event_indices(event)))
                data.gather(event, "common_pid", rows[:10])
        except PerfDataError:
            pass


def test_format() -> None:
    text = "name: n\nID: 7\nformat:\n\tfield:char * name;\toffset:16;\tsize:8;\tsigned:0;\n"
    text += "\tfield:unsigned long a[2];\toffset:24;\tsize:16;\tsigned:1;\n\nprint fmt: x\n"
    fmt = parse_format(text, "s")
    assert (fmt.system, fmt.name, fmt.id) == ("s", "n", 7)
    assert (fmt.fields["name"].offset, fmt.fields["name"].size, fmt.fields["name"].signed) == (16, 8, False)
    assert fmt.fields["a"].signed
    with pytest.raises(ValueError, match="format"):
        parse_format("")
