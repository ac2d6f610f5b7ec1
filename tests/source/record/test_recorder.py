"""Real programs, recorded: what the trace says is what the kernel said when they stood still."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pterefd.errors import BadInput
from pterefd.live.machine import thp_setting
from pterefd.source.record import recorder
from pterefd.source.trace import open_trace
from tests.source.record.conftest import PYTHON, Record, Recording

pytestmark = pytest.mark.kernel

MIB = 1 << 20

FILLS = """
import mmap
m = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 32 << 20, 4096): m[at] = 1
for at in range(0, 16 << 20, 1 << 20): m.madvise(mmap.MADV_DONTNEED, at, 1 << 20)
m.madvise(mmap.MADV_DONTNEED, 16 << 20, 8 << 20)
sum(m[at] for at in range(0, 8 << 20, 4096))
m.madvise(mmap.MADV_FREE, 24 << 20, 1 << 20)
"""

THREADS = """
import mmap, threading
def work():
    for _ in range(12):
        m = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 4 << 20, 4096): m[at] = 1
        m.madvise(mmap.MADV_DONTNEED, 1 << 20, 2 << 20)
        m.close()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
for name in ("mmap", "mremap"): getattr(libc, name).restype = address
libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
libc.mremap.argtypes = [address, size, size, number]
for name in ("madvise", "mprotect"): getattr(libc, name).argtypes = [address, size, number]
for name in ("mlock", "munmap"): getattr(libc, name).argtypes = [address, size]
M = 1 << 20
a = libc.mmap(None, 16 * M, 3, 0x22, -1, 0); ctypes.memset(a, 1, 16 * M)
a = libc.mremap(a, 16 * M, 32 * M, 1); ctypes.memset(a + 20 * M, 1, M)
libc.madvise(a, 8 * M, 4); libc.madvise(a + 8 * M, 4 * M, 8); libc.madvise(a + 1, 4096, 4); libc.madvise(a, 0, 4)
libc.madvise(a + M, M, 102); libc.madvise(a + M, 4096, 103); libc.mprotect(a + 3 * M, M, 1)
libc.mlock(a + 24 * M, M); libc.mprotect(a - (100 << 30), 4096, 0)
b = libc.mmap(None, 4 * M, 3, 0x8022, -1, 0)
c = libc.mmap(None, 4 * M, 3, 0x4122, -1, 0); ctypes.memset(c + 2 * M, 1, 4096)
libc.madvise(b, 4 * M, 22); libc.munmap(b + M, M)
libc.madvise(b, 4 * M, 4)
for _ in range(2):
    if os.fork() == 0:
        ctypes.memset(a + 20 * M, 2, M); libc.munmap(a, 4 * M); os._exit(0)
    os.wait()
"""

SHARED = """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p; libc.shmdt.argtypes = [ctypes.c_void_p]
segment = libc.shmget(0, 6 << 20, 0o1600)
a = libc.shmat(segment, None, 0); libc.shmctl(segment, 0, None)
ctypes.memset(a, 1, 3 << 20)
if os.fork() == 0:
    ctypes.memset(a, 2, 6 << 20); os._exit(0)
os.wait(); libc.shmdt(ctypes.c_void_p(a))
m = mmap.mmap(-1, 4 << 20); m[0:1 << 20] = b"x" * (1 << 20)
fd = os.memfd_create("mine"); os.ftruncate(fd, 3 << 20); q = mmap.mmap(fd, 3 << 20); q[0:100] = b"y" * 100
z = mmap.mmap(os.open("/dev/zero", os.O_RDONLY), 2 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ); z[5000]
"""

LIBC = """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
for name in ("mmap", "shmat"): getattr(libc, name).restype = address
libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
for name in ("madvise", "mprotect"): getattr(libc, name).argtypes = [address, size, number]
libc.mlock.argtypes = [address, size]
libc.shmat.argtypes = [number, address, number]; libc.shmdt.argtypes = [address]
M = 1 << 20
def new(length, prot=3, flags=0x22): return libc.mmap(None, length, prot, flags, -1, 0)
"""

# What fails behind a part that was done, what fails at once, and flags that take others back.
PARTLY = """
a = new(8 * M); libc.mprotect(a + 4 * M, M, 0)
assert libc.madvise(a, 8 * M, 23) == -1  # POPULATE_WRITE up to PROT_NONE
b = new(8 * M); ctypes.memset(b, 1, 8 * M)
assert libc.mmap(b + 4 * M, M, 3, 0x31, -1, 0) == b + 4 * M
assert libc.madvise(b, 8 * M, 18) == -1  # WIPEONFORK up to what is shared
new(2 * M, 3, 0x18022); new(2 * M, 1, 0x18021)  # MAP_POPULATE | MAP_NONBLOCK: nothing is populated
if os.fork() == 0:
    ctypes.memset(b, 1, M); os._exit(0)
os.wait()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); os.setuid(65534)
assert libc.mlock(b, 2 * M) == -1 and libc.mlock(a + 5 * M, 32768) == 0
assert libc.mlock(a + 6 * M, M) == -1  # beyond the limit
"""

DROPPABLE = """
a = new(4 * M, 3, 0x28)
if a == 2 ** 64 - 1: os._exit(77)
ctypes.memset(a, 1, 3 * M); new(M)
if os.fork() == 0:
    ctypes.memset(a, 1, M); os._exit(0)
os.wait()
"""

# Policies split mappings: MADV_DONTNEED of a whole span frees its table only within one of them.
BOUND = """
libc.syscall.argtypes = [ctypes.c_long, address, size, number, address, size, number]
node = ctypes.c_ulong(1)
def mbind(start, length, mode):
    return libc.syscall(237, start, length, mode, mode and ctypes.addressof(node), 64 * (mode > 0), 0)
a = new(18 * M); a = (a + 2 * M - 1) & -2 * M; ctypes.memset(a, 1, 16 * M)
assert mbind(a + M, 4 * M, 2) == 0 and mbind(a + 9 * M, M, 2) == 0 and mbind(a + 9 * M, M, 0) == 0
libc.madvise(a, 6 * M, 4); libc.madvise(a + 8 * M, 4 * M, 4)
libc.mprotect(a + 4 * M, 2 * M, 1); libc.mprotect(a + 4 * M, 2 * M, 3)
assert mbind(a + 17 * M, 1 << 40, 2) == -1
if os.fork() == 0:
    libc.madvise(a, 6 * M, 4); ctypes.memset(a, 1, 4096); os._exit(0)
os.wait()
"""

# Segments one after the other at one place, of several sizes; reads of what is in the page cache; names in common.
SEGMENTS = """
at = 0x100000000000
small, large, other = (libc.shmget(0, length, 0o1600) for length in (M // 16, 8 * M, M))
beside = libc.shmat(large, at + M // 16, 0); ctypes.memset(beside, 1, 8 * M)
for _ in range(2):
    libc.shmat(small, at, 0); ctypes.memset(at, 1, M // 16)
    if os.fork() == 0:
        libc.shmdt(at); os._exit(0)
    os.wait(); libc.shmdt(at)
libc.shmdt(beside); libc.shmat(large, at, 0)
for page in (0, 3, 40): ctypes.string_at(at + page * 4096, 1)
a = libc.shmat(other, None, 0); ctypes.string_at(a + 4096, 1)
for segment in (small, large, other): libc.shmctl(segment, 0, None)
full, sparse = os.memfd_create("one name"), os.memfd_create("one name")
for fd in (full, sparse): os.ftruncate(fd, M)
a = libc.mmap(None, M, 3, 1, full, 0); ctypes.memset(a, 1, M)
b = libc.mmap(None, M, 3, 1, sparse, 0); ctypes.memset(b + 3 * 4096, 1, 1)
c = libc.mmap(None, M, 1, 1, sparse, 0); ctypes.string_at(c, 1)
"""

LOCKED = """
import sys
a = new(M); ctypes.string_at(a + 4096, 1); b = new(M, 1)
file = os.open(sys.executable, os.O_RDONLY); c = libc.mmap(None, 200000, 3, 2, file, 0)
def deep(n): return n and deep(n - 1)
for how in (HOW):
    assert libc.mlockall(how) == 0
    deep(300)
    d, e = new(3 * M), new(M, 0); libc.mprotect(e, M // 2, 3); new(M, 1); libc.mmap(None, 200000, 1, 1, file, 0)
    libc.madvise(d, 3 * M, 4)
    if os.fork() == 0:
        ctypes.memset(new(M), 1, 4096); os._exit(0)
    os.wait()
    assert libc.munlockall() == 0
    libc.madvise(d, 3 * M, 4); new(M)
assert libc.mlockall(4) == -1
"""

REFUSED = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
read, write = os.pipe()
assert libc.write(write, ctypes.c_void_p(0x10000), ctypes.c_size_t(10)) == -1  # EFAULT
none = libc.mmap(None, 8 << 20, 0, 0x22, -1, 0)
for address in (0x7000, none + 5000):
    if os.fork() == 0: ctypes.string_at(address)
    assert os.wait()[1] & 127 == 11
"""


def test_fills_reads_and_discards(record: Record) -> None:
    recording = record([*PYTHON, FILLS])
    assert recording.code == 0
    assert recording.said == []
    recording.assert_exact()
    advice = [event["advice"] for event in recording.events("madvise")]
    assert advice.count("dontneed") == 17
    assert advice.count("free") == 1
    meta = open_trace(recording.path).meta
    assert meta.thp == "never"
    assert meta.kernel_release == os.uname().release
    assert meta.command == [*PYTHON, FILLS]
    assert isinstance(meta.kernel_config["PT_RECLAIM"], bool)


def test_four_threads(record: Record) -> None:
    recording = record([*PYTHON, THREADS], checkpoint_every=0.02)
    recording.assert_exact("VmPTE", "RssAnon", "zero_entries", checkpoints=4)
    assert sorted(event["tid"] for event in recording.events("thread")) == [2, 3, 4, 5]
    assert len(recording.events("thread_exit")) == 4  # the fifth to go, whichever it was, took the process with it


def test_threads_that_map_and_fork_at_once(record: Record) -> None:
    program = """
import ctypes, mmap, os, threading
libc = ctypes.CDLL(None)
def work():
    for turn in range(6):
        m = mmap.mmap(-1, 3 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(m))
        libc.memset(ctypes.c_void_p(start), 1, ctypes.c_size_t(3 << 20))
        if turn % 3 == 0:
            child = os.fork()
            if child == 0: os._exit(0)
            os.waitpid(child, 0)
        m = None
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    recording = record([*PYTHON, program], checkpoint_every=0.02)
    recording.assert_exact("VmPTE", "zero_entries", checkpoints=9)
    assert len(recording.events("fork")) == 8


def test_a_page_that_goes_and_comes_again(record: Record) -> None:
    """The fault before a stop is no repeated one where the next on that page comes after a munmap (tar does so)."""
    program = """
import mmap, time
for turn in range(200):
    with mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        time.sleep(0.002)
"""
    recording = record([*PYTHON, program], checkpoint_every=0.01)
    recording.assert_exact(checkpoints=5)


@pytest.mark.parametrize("program", [CALLS, SHARED, REFUSED], ids=["calls", "shared", "refused"])
def test_calls(record: Record, program: str) -> None:
    recording = record([*PYTHON, program], checkpoint_every=0.01)
    assert recording.code == 0
    assert recording.said == []
    recording.assert_exact(checkpoints=2)


@pytest.mark.parametrize("program", [PARTLY, SEGMENTS, BOUND], ids=["partly", "segments", "bound"])
def test_calls_of_libc(record: Record, program: str) -> None:
    recording = record([*PYTHON, LIBC + program], checkpoint_every=0.02)
    assert recording.code == 0
    assert recording.said == []
    recording.assert_exact(checkpoints=2)


def test_droppable_memory(record: Record) -> None:
    recording = record([*PYTHON, LIBC + DROPPABLE])
    assert recording.said == []
    if recording.code == 77:  # before 6.11
        assert tuple(map(int, os.uname().release.split(".")[:2])) < (6, 11)
        return
    assert recording.code == 0
    recording.assert_exact(checkpoints=2)


@pytest.mark.parametrize("how", [1, 2, 3, 5, 6, 7])
def test_all_memory_is_locked(record: Record, how: int) -> None:
    recording = record([*PYTHON, LIBC + LOCKED.replace("HOW", f"{how}, 2, 1")], checkpoint_every=0.02)
    assert recording.code == 0
    assert recording.said == []
    recording.assert_exact("VmPTE", "RssAnon", "RssShmem", "vmas", "zero_entries", checkpoints=4)
    assert recording.events("mlockall")[0] == {
        "op": "mlockall",
        "pid": 1,
        "current": bool(how & 1),
        "future": bool(how & 2),
        "onfault": bool(how & 4),
        "t": recording.events("mlockall")[0]["t"],
    }
    assert len(recording.events("munlockall")) == 3


def test_failed_calls_are_kept_only_where_they_acted(record: Record) -> None:
    recording = record([*PYTHON, CALLS])
    refused = [event for event in recording.events() if "errno" in event]
    assert [(event["op"], event["errno"]) for event in refused] == [("mprotect", "ENOMEM"), ("madvise", "ENOMEM")]


def test_a_shell_pipeline(record: Record) -> None:
    recording = record(["sh", "-c", "ls -l / | wc -l > /dev/null; seq 2000 | sort -n | tail -1 > /dev/null; true"])
    assert recording.code == 0
    recording.assert_exact(checkpoints=6)
    names = {event["comm"] for event in recording.events("exec")}
    assert {"sh", "ls", "wc", "seq", "sort", "tail"} <= names
    assert len(recording.events("exit")) == 6


def test_children_with_vfork(record: Record) -> None:
    """posix_spawn, and subprocess where it uses vfork: the child has no mm of its own before its exec."""
    program = "import os, subprocess\nfor _ in range(3): subprocess.run(['true'])\n"
    program += "os.posix_spawn('/bin/true', ['true'], {}); os.wait(); os.system('exit 3')\n"
    recording = record([*PYTHON, program])
    recording.assert_exact(checkpoints=6)
    assert recording.events("fork") == []
    assert len(recording.events("exec")) == 6
    numbers = [event["pid"] for event in recording.events("exec")]
    assert numbers[0] == 1
    assert len(set(numbers)) == 6


def test_exec_by_a_thread(record: Record) -> None:
    program = "import os, sys, threading, time\n"
    program += f"def run(): os.execv({PYTHON[0]!r}, [{PYTHON[0]!r}, '-S', '-c', 'raise SystemExit(7)'])\n"
    program += "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    program += "threading.Thread(target=run).start(); time.sleep(9)\n"
    recording = record([*PYTHON, program])
    assert recording.code == 7
    recording.assert_exact()
    assert [event["pid"] for event in recording.events("exec")] == [1, 1]


def test_stopped_and_continued(record: Record) -> None:
    program = """
import os, signal, time
child = os.fork()
if child == 0:
    a = bytearray(3 << 20); os.kill(os.getpid(), signal.SIGSTOP); a += bytearray(3 << 20); os._exit(5)
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
time.sleep(0.1)
assert open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0] in "tT"
os.kill(child, signal.SIGCONT)
assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 5
"""
    recording = record([*PYTHON, program], checkpoint_every=0.02)
    assert recording.code == 0
    recording.assert_exact(checkpoints=2)


def test_children_that_outlive_the_command(record: Record) -> None:
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        data = bytearray(5 << 20); time.sleep(0.4); os._exit(0)
    os._exit(0)
os.wait()
"""
    recording = record([*PYTHON, program])
    recording.assert_exact(checkpoints=3)
    assert len(recording.events("exit")) == 3
    assert recording.events()[-1]["t"] > 300_000_000
    only = record([*PYTHON, program], follow="command")
    only.assert_exact(checkpoints=3)
    assert only.events()[-1]["t"] < 300_000_000


def test_killed(record: Record) -> None:
    recording = record([*PYTHON, "import os; a = bytearray(4 << 20); os.kill(os.getpid(), 9)"])
    assert recording.code == 128 + signal.SIGKILL
    recording.assert_exact()


def test_sleepers_are_not_woken(record: Record) -> None:
    """A checkpoint leaves who sleeps in a call alone: epoll_wait would end with EINTR."""
    program = """
import ctypes, select, threading, time
ended = []
libc = ctypes.CDLL(None, use_errno=True)
events = ctypes.create_string_buffer(12)
def sleep():
    poll = select.epoll()
    ended.append((libc.epoll_wait(poll.fileno(), events, 1, 600), ctypes.get_errno()))
thread = threading.Thread(target=sleep); thread.start()
end = time.monotonic() + 0.4
while time.monotonic() < end: a = bytearray(1 << 20)
thread.join()
raise SystemExit(ended != [(0, 0)])
"""
    recording = record([*PYTHON, program], checkpoint_every=0.02)
    assert recording.code == 0
    recording.assert_exact("VmPTE", "RssAnon", checkpoints=8)


def test_anonymized(record: Record) -> None:
    recording = record(["sh", "-c", "ls / > /dev/null; true"], anonymize=True)
    recording.assert_exact(checkpoints=2)
    meta = open_trace(recording.path).meta
    assert meta.command is None
    raw = b" ".join(str(event).encode() for event in recording.events())
    for name in (b"'ls'", b"libc", b"/usr", b"cmdline", b"uid"):
        assert name not in raw
    assert all(event["comm"] == "process" for event in recording.events("exec"))
    assert max(event["addr"] for event in recording.events("fault")) < 8 << 39


SWAPS = """
import mmap, time
m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 8 << 20, 4096): m[at] = 1 + at % 5
m.madvise(21, 0, 4 << 20); time.sleep(0.05)  # MADV_PAGEOUT
for at in range(0, 1 << 20, 4096): m[at]
m.madvise(mmap.MADV_FREE, 6 << 20, 1 << 20); m.madvise(21, 6 << 20, 1 << 20); time.sleep(0.05)
m.madvise(mmap.MADV_DONTNEED, 2 << 20, 1 << 20)
"""


def test_swap_and_pages_that_vanish(record: Record, tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    subprocess.run(["fallocate", "-l", "32M", str(swap)], check=True)
    swap.chmod(0o600)
    subprocess.run(["mkswap", "-q", str(swap)], check=True)
    subprocess.run(["swapon", str(swap)], check=True)
    try:
        recording = record([*PYTHON, SWAPS], checkpoint_every=0.02)
    finally:
        subprocess.run(["swapoff", str(swap)], check=True)
    recording.assert_exact(checkpoints=3)
    gone = recording.events("swap_out")
    assert any(event.get("dropped") for event in gone)
    assert any(event["VmSwap"] > 2048 for event in recording.events("expect"))


def test_huge_pages(record: Record) -> None:
    program = "import mmap\nm = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    program += "m.madvise(mmap.MADV_HUGEPAGE)\nfor at in range(0, 8 << 20, 4096): m[at] = 1\n"
    program += "import time; time.sleep(0.1)\n"
    off = record([*PYTHON, program])
    assert open_trace(off.path).meta.thp == "never"
    off.assert_exact()
    kept = record([*PYTHON, program], thp="keep", checkpoint_every=0.02)
    enabled = "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert open_trace(kept.path).meta.thp == thp_setting()
    kept.assert_exact()
    # four huge pages, or 2,048 small ones: what the kernel had, the replay has
    faults = [event for event in kept.events("fault") if event["write"]]
    assert (len(faults) < 1500) == enabled


def test_prctl_keeps_huge_pages_away(record: Record) -> None:
    program = "import ctypes, mmap\nctypes.CDLL(None).prctl(41, 1, 0, 0, 0)\n"
    program += "m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    program += "m.madvise(mmap.MADV_HUGEPAGE)\nfor at in range(0, 8 << 20, 4096): m[at] = 1\n"
    recording = record([*PYTHON, program], thp="keep", checkpoint_every=0.02)
    assert [event["disabled"] for event in recording.events("thp")] == [True]
    recording.assert_exact()


def test_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    there = tmp_path / "there.parquet"
    there.write_text("mine")
    mark = tmp_path / "ran"
    for output, why in (
        (there, "exists already"),
        (tmp_path, "is a directory"),
        (tmp_path / "no/x", "cannot be written"),
    ):
        with pytest.raises(BadInput, match=why):
            recorder.record_command(["touch", str(mark)], recorder.Options(output))
    assert not mark.exists()
    assert there.read_text() == "mine"


def test_a_file_that_is_mapped_has_path_offset_and_size(record: Record, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(3 * 4096 + 5))
    program = f"import mmap, os\nfd = os.open({str(data)!r}, os.O_RDWR)\n"
    program += "mmap.mmap(fd, 2 * 4096, offset=4096)[0] = 1\n"
    recording = record([*PYTHON, program])
    mapped = [event for event in recording.events("mmap") if event.get("path") == str(data)]
    assert [(m["len"], m["offset"], m["file_size"], m["flags"], m["prot"]) for m in mapped] == [
        (8192, 4096, 3 * 4096 + 5, "shared", "rw-")
    ]


def test_mappings_that_the_kernel_refused_are_left_out(record: Record) -> None:
    limit = resource.RLIMIT_AS
    program = f"import mmap, resource\nresource.setrlimit({limit}, (1 << 30, 1 << 30))\n"
    program += "try: mmap.mmap(-1, 1 << 40)\nexcept OSError: pass\n"
    recording = record([*PYTHON, program])
    assert max(event["len"] for event in recording.events("mmap")) < 1 << 30
    recording.assert_exact()


# ---- the command line ----------------------------------------------------------------------------


def test_exit_codes(pterefd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = pterefd("record", "-o", "a.parquet", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (ended.returncode, ended.stdout, ended.stderr) == (9, "out\n", "err\n")
    missing = pterefd("record", "-o", "b.parquet", "--", "no-such-command")
    assert missing.returncode == 127
    assert "no-such-command" in missing.stderr
    assert pterefd("record", "-o", "a.parquet", "--", "true").returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


@pytest.mark.parametrize("asks", ["the command", "the recorder twice"])
def test_interrupted(script: Path, tmp_path: Path, asks: str) -> None:
    """Ctrl-C reaches the command too; what it does then is its own affair. A second one ends the recording."""
    trace = tmp_path / "trace.parquet"
    ignore = "trap '' INT; " if asks != "the command" else ""
    child = f"{ignore}echo ready; while :; do sleep 0.05; done"
    run = subprocess.Popen(
        [str(script), "record", "-o", str(trace), "--", "sh", "-c", child],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    assert run.stdout.readline() == "ready\n"
    os.killpg(run.pid, signal.SIGINT)
    if asks != "the command":
        assert "interrupted" in run.stderr.readline()
        os.killpg(run.pid, signal.SIGINT)
        assert "left running" in run.stderr.readline()
    assert run.wait(timeout=30) == 130
    run.stdout.close()
    run.stderr.close()
    assert sum(len(batch) for batch in open_trace(trace).batches()) > 50
    left = _processes_of_session(run.pid)
    assert bool(left) == (asks != "the command")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == [trace]


def _processes_of_session(session: int) -> list[int]:
    """Living processes of a session, once those that are about to end had time to."""
    end = time.monotonic() + 0.3
    while True:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(name))
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.02)


def test_perf_that_dies_leaves_a_readable_trace(record: Record) -> None:
    """The recording ends there; the command goes on to its end."""
    program = """
import os, signal, time
a = bytearray(4 << 20)
for name in os.listdir("/proc"):
    if name.isdigit():
        try: words = open(f"/proc/{name}/cmdline").read().split("\\0")
        except OSError: continue
        if words[1:2] == ["record"] and f"{os.getpid()}" in words: os.kill(int(name), signal.SIGKILL)
time.sleep(0.5)
"""
    recording = record([*PYTHON, program])
    assert recording.code == 4
    assert any("perf ended early" in line for line in recording.said)
    assert [event["op"] for event in recording.events()][:2] == ["exec", "mmap"]
    assert recording.check().differ == 0


def test_a_full_disk_leaves_a_readable_trace(record: Record, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", str(small)], check=True)
    try:
        run = recorder.Options(small / "trace.parquet", say=(said := []).append)
        assert recorder.record_command([*PYTHON, FILLS * 4], run) == 4
        assert any("No space left" in line for line in said)
        assert [path.name for path in small.iterdir()] == ["trace.parquet"]
        assert Recording(run.output).check().differ == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
