"""The script for other machines, run here, and what becomes of its files."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from pterefd.errors import BadInput, Partly
from pterefd.source.record.perf_import import import_perf
from pterefd.source.record.script import read_notes, script_text
from pterefd.source.trace import open_trace
from tests.source.record.conftest import PYTHON, Recording

pytestmark = pytest.mark.kernel

FILLS = """
import ctypes
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault for each page
import mmap, os
m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 8 << 20, 4096): m[at] = 1
m.madvise(mmap.MADV_DONTNEED, 1 << 20, 4 << 20)
os.system("true")
os.posix_spawn("/bin/true", ["true"], {}); os.wait()
if os.fork() == 0: os._exit(0)
os.wait()
"""


BUSY = """
import mmap, time
end = time.monotonic() + 9
while time.monotonic() < end:
    with mmap.mmap(-1, 1 << 20) as m:
        m[:] = bytes(1 << 20)
    time.sleep(0.02)
"""


def _run(directory: Path, *arguments: str) -> None:
    script = directory / "record.sh"
    script.write_text(script_text())
    subprocess.run(["sh", "-n", str(script)], check=True)
    subprocess.run(["sh", str(script), *arguments], check=True, cwd=directory, capture_output=True)


def _touched(recording: Recording) -> int:
    """Bytes of memory that faults are for."""
    return sum(event.get("len", 4096) for event in recording.events("fault"))


def test_a_command(tmp_path: Path) -> None:
    _run(tmp_path, "--", *PYTHON, FILLS)
    recording = Recording(tmp_path / "trace.parquet")
    import_perf(tmp_path / "perf.data", recording.path, maps=tmp_path / "notes.txt", say=recording.said.append)
    execs = recording.events("exec")
    assert [event["comm"] for event in execs] == ["python3", "sh", "true"]
    assert len(recording.events("fork")) == 1
    assert len(recording.events("exit")) == 4
    assert _touched(recording) > 2048 * 4096
    discarded = recording.events("madvise")
    assert [(event["len"], event["advice"]) for event in discarded] == [(4 << 20, "dontneed")]
    result = recording.check("VmPTE")
    assert result.error is None
    assert result.outside == 0
    meta = open_trace(recording.path).meta
    assert isinstance(meta.kernel_config["PT_RECLAIM"], bool)
    assert meta.perf_version


def test_a_running_process(tmp_path: Path) -> None:
    process = subprocess.Popen([*PYTHON, BUSY])
    try:
        time.sleep(0.3)
        _run(tmp_path, str(process.pid), "1")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    recording = Recording(tmp_path / "trace.parquet")
    import_perf(tmp_path / "perf.data", recording.path, maps=tmp_path / "notes.txt", say=recording.said.append)
    assert any("before is not known" in line for line in recording.said)
    checkpoints = recording.events("expect")
    assert len(checkpoints) == 2
    assert all(event["t0"] < event["t1"] and event["VmPTE"] > 0 for event in checkpoints)
    assert _touched(recording) > 100 * 4096
    assert any(event.get("path") == "[stack]" for event in recording.events("mmap"))
    other = Recording(tmp_path / "other.parquet")  # without the notes: by what perf itself wrote down
    import_perf(tmp_path / "perf.data", other.path, say=other.said.append)
    assert _touched(other) >= _touched(recording)
    assert any(event.get("path") == "[stack]" for event in other.events("mmap"))


def test_lost_events_are_told(tmp_path: Path) -> None:
    events = ",".join(["exceptions:page_fault_user", "exceptions:page_fault_kernel"])
    options = ["-m", "1", "-k", "CLOCK_MONOTONIC", "-d", "-e", events]
    data = tmp_path / "perf.data"
    command = ["perf", "record", "-q", "-o", str(data), *options, "--", *PYTHON, FILLS * 4]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(Partly, match=r"perf lost \d+ events"):
        import_perf(data, tmp_path / "trace.parquet", say=lambda text: None)
    assert _touched(Recording(tmp_path / "trace.parquet")) > 100 * 4096


def test_notes_that_are_none(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("== maps 5\nnot a mapping\n")
    with pytest.raises(BadInput, match=r"notes\.txt:2"):
        read_notes(notes)
    notes.write_text("== what 5\n")
    with pytest.raises(BadInput, match=r"notes\.txt:1"):
        read_notes(notes)
    notes.write_bytes(Path("/proc/self/maps").read_bytes())
    assert read_notes(notes).moments[0].maps


def test_by_the_command_line(pterefd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert pterefd("record", "--script").stdout == script_text()
    (tmp_path / "perf.data").write_bytes(b"PERFILE2" + bytes(300))
    failed = pterefd("import", "perf.data", "-o", "out.parquet")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()
