"""Recording a process that runs already."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pterefd.errors import BadInput
from pterefd.source.record import recorder
from tests.source.record.conftest import PYTHON, Recording

pytestmark = pytest.mark.kernel

# Memory that is half discarded (empty PTE pages), zero pages, flags that decide merges, and threads that go on working.
BUSY = """
import ctypes, mmap, threading, time
libc = ctypes.CDLL(None)
kept = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 8 << 20, 4096): kept[at] = 1
for at in range(8 << 20, 12 << 20, 4096): kept[at]
for at in range(0, 4 << 20, 1 << 20): kept.madvise(mmap.MADV_DONTNEED, at, 1 << 20)
kept.madvise(mmap.MADV_DONTFORK, 14 << 20, 1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(kept))
libc.mprotect(ctypes.c_void_p(start + (5 << 20)), 1 << 20, 1)
libc.mlock(ctypes.c_void_p(start + (6 << 20)), 1 << 20)
end = time.monotonic() + 120  # killed before
def work():
    while time.monotonic() < end:
        m = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 4 << 20, 4096): m[at] = 1
        m.madvise(mmap.MADV_DONTNEED, 1 << 20, 2 << 20)
        m.close()
        time.sleep(0.01)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
print("ready", flush=True)
for thread in threads: thread.join()
"""


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*PYTHON, BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_attach_and_detach(busy: subprocess.Popen[str], tmp_path: Path) -> None:
    recording = Recording(tmp_path / "trace.parquet")
    options = recorder.Options(recording.path, duration=2.0, say=recording.said.append, checkpoint_every=0.1)
    recorder.record_pid(busy.pid, options)
    assert busy.poll() is None
    assert _state(busy.pid) in "SR"
    assert _tracer(busy.pid) == 0
    recording.assert_exact("VmPTE", "RssAnon", "VmSwap", "zero_entries", checkpoints=4)
    first = recording.events("expect")[0]
    assert first["unlocated_pte_pages"] >= 2  # the two spans that were discarded by halves
    assert any("hold nothing" in line for line in recording.said)
    assert len(recording.events("thread")) == 3
    assert recording.events("exit") == []
    assert {"zero", "anon", "file"} <= {event["entry"] for event in recording.events("state")}


HUGE = """
import mmap, time
m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, 4 << 20, 4096): m[at] = 1
m[6 << 20]
print("ready", flush=True)
end = time.monotonic() + 120  # killed before
while time.monotonic() < end:
    m.madvise(mmap.MADV_DONTNEED, 0, 5 << 20)
    for at in range(0, 5 << 20, 1 << 20): m[at] = 1
    time.sleep(0.02)
"""


def test_a_process_with_huge_pages(tmp_path: Path) -> None:
    """What PMD entries map is told as such, and goes on as the kernel has it."""
    process = subprocess.Popen([*PYTHON, HUGE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        recording = Recording(tmp_path / "trace.parquet")
        options = recorder.Options(recording.path, duration=2.0, say=recording.said.append, checkpoint_every=0.05)
        recorder.record_pid(process.pid, options)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    recording.assert_exact("VmPTE", "RssAnon", checkpoints=4)
    huge = [event["entry"] for event in recording.events("state") if event.get("huge")]
    enabled = "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert ({"anon", "zero"} <= set(huge)) == enabled


def test_until_it_ends(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "trace.parquet")
    program = (
        "import os, time\ntime.sleep(0.8)\nfor _ in range(2):\n    if os.fork() == 0: os._exit(0)\n    os.wait()\n"
    )
    process = subprocess.Popen([*PYTHON, program])
    recorder.record_pid(process.pid, recorder.Options(recording.path, say=recording.said.append))
    process.wait()
    recording.assert_exact("VmPTE", "RssAnon", checkpoints=3)
    assert len(recording.events("exit")) == 3
    assert len(recording.events("fork")) == 2


def test_ctrl_c_detaches(script: Path, busy: subprocess.Popen[str], tmp_path: Path) -> None:
    recording = Recording(tmp_path / "trace.parquet")
    run = subprocess.Popen(
        [script, "record", "-o", recording.path, "-p", str(busy.pid)], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    try:
        while "stood still" not in run.stderr.readline():
            assert run.poll() is None
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 0
    finally:
        run.kill()
        run.wait()
        run.stderr.close()
    assert busy.poll() is None
    assert recording.check("VmPTE").differ == 0


def test_a_killed_recorder_lets_go(script: Path, busy: subprocess.Popen[str], tmp_path: Path) -> None:
    out = tmp_path / "trace.parquet"
    run = subprocess.Popen([script, "record", "-o", out, "-p", str(busy.pid)], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "stood still" not in run.stderr.readline():
        assert run.poll() is None
    run.kill()
    run.wait()
    run.stderr.close()
    end = time.monotonic() + 5
    while _tracer(busy.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert _tracer(busy.pid) == 0
    assert _state(busy.pid) in "SR"
    assert busy.poll() is None


def test_what_cannot_be_attached_to(tmp_path: Path) -> None:
    options = recorder.Options(tmp_path / "trace.parquet")
    kernel_thread = 2  # kthreadd
    for pid, why in ((1 << 22, "there is no process"), (kernel_thread, "no memory"), (os.getpid(), "this one")):
        with pytest.raises(BadInput, match=why):
            recorder.record_pid(pid, options)
    assert list(tmp_path.iterdir()) == []


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def _tracer(pid: int) -> int:
    return int(_status(pid, "TracerPid"))


def _state(pid: int) -> str:
    return _status(pid, "State")
