"""Freeing from running processes: what is known by construction goes, and nothing else changes."""

from __future__ import annotations

import codecs
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pterefd.errors import PterefdError
from pterefd.freeing import stop, stub
from pterefd.freeing.errors import PutOff
from pterefd.freeing.mover import Mover
from pterefd.freeing.proof import _Unwatched
from pterefd.freeing.refuse import WRITERS
from pterefd.freeing.stop import Target, Wanted, one_stop
from pterefd.freeing.threads import Stopped, Threads
from pterefd.freeing.work import KINDS, Request, free, prove_apart
from pterefd.live import procmem
from pterefd.live.scan import scan, start_time
from tests.freeing.programs import PAGE, SPAN, Known, begun, built, compiled
from tests.live.grower_process import Asked
from tests.systemd.installed import NOBODY

pytestmark = pytest.mark.kernel
Run = Callable[..., "subprocess.CompletedProcess[str]"]

NODE_PAGE_KB = 4  # the stub's page of program text becomes the process's own


@contextmanager
def known(*spans: int, busy: bool = False) -> Iterator[Known]:
    one = Known(*spans, busy=busy)
    try:
        yield one
    except BaseException:
        one.process.kill()
        raise
    one.close()


def maps(pid: int) -> list[procmem.Map]:
    return procmem.read_maps(pid)


def test_the_stub_is_what_its_source_says(tmp_path: Path) -> None:
    objects = tmp_path / "stub.o"
    subprocess.run(["as", "-o", objects, Path(stub.__file__).with_suffix(".s")], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", objects, tmp_path / "stub.bin"], check=True)
    code = (tmp_path / "stub.bin").read_bytes()
    assert code[: len(stub.CODE)] == stub.CODE
    assert code[len(stub.CODE) :] == bytes(8 * 20)


@pytest.mark.parametrize("busy", [False, True])
def test_frees_what_is_known_and_nothing_else(busy: bool) -> None:
    with known(300, 40, 5, 20, busy=busy) as one:
        before, mappings = one.kb(), maps(one.pid)
        freed = one.free()
        after = one.kb()
        assert (freed.refused, freed.put_off) == ("", "")
        assert before["VmPTE"] - after["VmPTE"] == 4 * (300 + 40)
        assert (freed.freed, freed.empty, freed.zero, freed.mixed) == (340 * PAGE, 300 * PAGE, 40 * PAGE, 0)
        assert (freed.before, freed.after) == (before["VmPTE"] << 10, after["VmPTE"] << 10)
        assert after["RssAnon"] - before["RssAnon"] in (0, NODE_PAGE_KB)
        assert maps(one.pid) == mappings
        one.check(read=True)


def test_kinds_are_freed_apart() -> None:
    with known(20, 20, 20, 3) as one:
        for kind, other in (("zero", "empty"), ("mixed", "zero"), ("empty", "mixed")):
            before = one.kb()["VmPTE"]
            freed = one.free([kind])
            assert before - one.kb()["VmPTE"] == 80
            assert (getattr(freed, kind), getattr(freed, other)) == (20 * PAGE, 0)
        one.check(read=True)


def test_a_scan_says_the_number_that_goes() -> None:
    with known(100, 30, 7, 9) as one:
        use = scan(one.pid).use  # type: ignore[union-attr]
        freed = one.free()
        assert (freed.empty, freed.zero) == (use.empty, use.zero)
        assert scan(one.pid).use.reclaimable == 0  # type: ignore[union-attr]


def test_no_more_than_is_wanted_where_that_can_be() -> None:
    with known(3000, 0, 0, 3) as one:
        freed = one.free(most=500 * PAGE, stop=0.005)
        assert 500 * PAGE <= freed.freed < 3000 * PAGE
        one.check()


def test_only_where_it_is_wanted() -> None:
    with known(40, 40, 0, 0) as one:
        first = one.start, one.start + 20 * SPAN
        before = one.kb()["VmPTE"]
        freed = one.free(spans=(first,))
        assert freed.freed == 20 * PAGE
        assert before - one.kb()["VmPTE"] == 80


def test_one_thread_is_enough_and_a_hundred_are_not_too_many() -> None:
    """Threads that all sleep, and threads that begin and end all the time."""
    program = (
        "import threading, time, mmap\n"
        "m = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for at in range(0, 256 << 20, 1 << 20):\n"
        "    m[at] = 1; m.madvise(mmap.MADV_DONTNEED, at, 4096)\n"
        "for _ in range(100): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "def come_and_go():\n"
        "    while True: t = threading.Thread(target=lambda: None); t.start(); t.join()\n"
        "threading.Thread(target=come_and_go, daemon=True).start()\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    process = begun(sys.executable, "-c", program)
    freed = free(Request(process.pid, start_time(process.pid), patience=10.0, stop=0.05))
    assert (freed.refused, freed.put_off) == ("", "")
    assert freed.freed >= 127 * PAGE
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_a_process_whose_first_thread_has_ended() -> None:
    source = (
        "#define _GNU_SOURCE\n#include <pthread.h>\n#include <stdio.h>\n#include <sys/mman.h>\n#include <unistd.h>\n"
        "static char *m; static void *goes_on(void *_) { char c; for (int i = 0; i < 64; i++) { m[i << 20] = 1;\n"
        'madvise(m + (i << 20), 4096, MADV_DONTNEED); } m[0] = 7; puts("ready"); fflush(stdout); read(0, &c, 1);\n'
        "_exit(m[0] == 7 ? 0 : 1); }\n"
        "int main(void) { pthread_t t;\n"
        "m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"
        "pthread_create(&t, NULL, goes_on, NULL); pthread_exit(NULL); }\n"
    )
    process = begun(compiled("headless", source))
    while procmem.read_status(process.pid).state != "Z":
        time.sleep(0.01)
    freed = free(Request(process.pid, start_time(process.pid), stop=0.5, patience=10.0))
    assert freed.freed >= 30 * PAGE, freed
    process.communicate("x")
    assert process.returncode == 0


def test_the_proof_holds_here_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_apart()
    monkeypatch.setattr(stub, "_MREMAP_DONTUNMAP", 0)  # the mapping goes with its pages, as nothing keeps it
    with pytest.raises(Exception, match="does not work here"):
        prove_apart()


def test_the_command(pterefd: Run) -> None:
    with known(50, 10, 2, 4) as one:
        before = one.kb()["VmPTE"]
        half = pterefd("free", str(one.pid), "4194304")
        assert (half.returncode, one.kb()["VmPTE"]) == (2, before)
        assert "4194304: no such process; nothing was done" in half.stderr
        for wrong in ("5", "0", "2s"):
            done = pterefd("free", str(one.pid), "--stop", wrong)
            assert done.returncode == 2
            assert f"'{wrong}': from 1ms to 1s" in done.stderr
        done = pterefd("free", str(one.pid))
        assert done.returncode == 0, done.stderr
        assert "freed 240 kB of page tables (empty 200, zero 40, mixed 0)" in done.stdout
        assert pterefd("free", str(one.pid)).stdout == f"{one.pid}: there is nothing to free\n"
        one.check(read=True)
    gone = pterefd("free", str(one.pid))
    assert gone.returncode == 2
    assert "no such process" in gone.stderr


# ---- what is left alone -------------------------------------------------------------------------


def asleep(setup: str) -> Asked:
    """A Python process that has done something and sleeps."""
    program = (
        f"import ctypes, mmap, os, time\nlibc = ctypes.CDLL(None)\n{setup}\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    return begun(sys.executable, "-c", program)


@contextmanager
def sleeping(setup: str) -> Iterator[int]:
    process = asleep(setup)
    try:
        yield process.pid
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


REFUSED = {
    # PR_SET_NO_NEW_PRIVS, then a filter that allows everything
    "seccomp": (
        "libc.prctl(38, 1, 0, 0, 0)\n"
        "class F(ctypes.Structure): _fields_ = [('code', ctypes.c_ushort), ('jt', ctypes.c_ubyte),"
        " ('jf', ctypes.c_ubyte), ('k', ctypes.c_uint)]\n"
        "class P(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.POINTER(F))]\n"
        "f = F(6, 0, 0, 0x7fff0000)\n"
        "assert libc.prctl(22, 2, ctypes.byref(P(1, ctypes.pointer(f))), 0, 0) == 0"
    ),
    "io_uring": "assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
    "userfaultfd": "assert libc.syscall(323, 0) >= 0",
    "aio": "ring = ctypes.c_ulong(0); assert libc.syscall(206, 8, ctypes.byref(ring)) == 0",
}


# Empty PTE pages, after what a process is set up with.
HAS_EMPTY = (
    "\nm = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "for at in range(0, 64 << 20, 1 << 20): m[at] = 1; m.madvise(mmap.MADV_DONTNEED, at, 4096)"
)


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses(kind: str) -> None:
    label = "writers" if kind in WRITERS else kind
    with sleeping(REFUSED[kind]) as pid:
        freed = free(Request(pid, start_time(pid)))
        assert freed.label == label
        assert kind in freed.refused
        assert freed.stops == 0
        if kind in WRITERS:
            assert free(Request(pid, start_time(pid), writers=(kind,))).refused == ""


def test_refuses_what_somebody_else_traces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with sleeping("") as pid:
        assert libc.ptrace(0x4206, pid, 0, 0) == 0  # PTRACE_SEIZE, by the test
        freed = free(Request(pid, start_time(pid)))
        assert freed.label == "traced"
        assert libc.ptrace(0x4207, pid, 0, 0) == 0
        os.waitpid(pid, 0x40000000)
        assert libc.ptrace(17, pid, 0, 0) == 0


def test_refuses_others_processes() -> None:
    with sleeping("") as pid:
        reader, writer = os.pipe()
        codecs.lookup("ascii")  # whose file that user may not be able to read
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as after an exec
                os.write(writer, free(Request(pid, start_time(pid))).label.encode())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 1000) == b"rights"


def test_another_process_of_that_pid_is_not_touched() -> None:
    with known(20, 0, 0, 0) as one:
        before = one.kb()["VmPTE"]
        freed = free(Request(one.pid, start_time(one.pid) - 1))
        assert (freed.label, freed.stops, one.kb()["VmPTE"]) == ("gone", 0, before)


@pytest.mark.parametrize(
    "setup",
    [
        "m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)",
        "m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m.madvise(mmap.MADV_HUGEPAGE)",
        "m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m)); assert libc.mlock2(ctypes.c_void_p(a), 16 << 20, 1) == 0",
    ],
    ids=["shared", "huge", "mlocked"],
)
def test_leaves_mappings_alone(setup: str) -> None:
    """Their spans hold nothing, and had PTE pages."""
    touch = (
        "\nfor at in range(0, 16 << 20, 1 << 20): m[at] = 1\n"
        "try: m.madvise(mmap.MADV_DONTNEED)\n"
        "except OSError: pass"  # of locked memory
    )
    with sleeping("libc.prctl(41, 1, 0, 0, 0)\n" + setup + touch) as pid:
        text = Path(f"/proc/{pid}/maps").read_text()
        before = procmem.read_status(pid).kb["VmPTE"]
        freed = free(Request(pid, start_time(pid)))
        assert freed.refused == ""
        assert before - procmem.read_status(pid).kb["VmPTE"] <= 8  # of the interpreter's own heap
        assert Path(f"/proc/{pid}/maps").read_text() == text


def test_a_process_that_has_ended_and_is_not_waited_for() -> None:
    process = asleep("")
    process.kill()
    while procmem.read_status(process.pid).state != "Z":
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        Threads([process.pid]).stop(1.0)
    process.communicate()


def test_puts_off_a_stopped_process() -> None:
    with known(20, 0, 0, 0) as one:
        one.process.send_signal(signal.SIGSTOP)
        while procmem.read_status(one.pid).state != "T":
            time.sleep(0.01)
        freed = one.free(patience=0.1)
        assert (freed.label, freed.stops) == ("stopped", 0)
        assert procmem.read_status(one.pid).state == "T"
        one.process.send_signal(signal.SIGCONT)
        one.check()


def test_stops_and_continues_as_it_is_told_meanwhile() -> None:
    """SIGSTOP and SIGCONT at random moments of a stop: the process is stopped, and goes on, when it should."""
    with known(2000, 0, 0, 3, busy=True) as one:
        began = start_time(one.pid)
        child = os.fork()
        if child == 0:
            try:
                end = time.monotonic() + 4
                while time.monotonic() < end:
                    free(Request(one.pid, began, stop=0.05, patience=0.1))
            finally:
                os._exit(0)
        for number in range(100):
            one.process.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 10
            while procmem.read_status(one.pid).state not in "Tt":
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(number % 7 * 0.001)
            one.process.send_signal(signal.SIGCONT)
            one.check()
        os.waitpid(child, 0)
        one.check(read=True)


def test_puts_off_a_vfork_parent() -> None:
    source = (
        "#define _GNU_SOURCE\n#include <unistd.h>\n#include <stdio.h>\n#include <sys/mman.h>\n"
        "int main(void) { char *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"
        "for (int i = 0; i < 64; i++) { m[i << 20] = 1; madvise(m + (i << 20), 4096, MADV_DONTNEED); }\n"
        'puts("ready"); fflush(stdout); if (vfork() == 0) { sleep(3); _exit(0); } return 0; }\n'
    )
    process = begun(compiled("vforks", source))
    time.sleep(0.2)
    freed = free(Request(process.pid, start_time(process.pid), patience=0.1))
    assert freed.stops == 0
    assert "vfork" in freed.put_off
    process.communicate()
    assert process.returncode == 0


def test_puts_off_where_there_is_no_room_for_mappings() -> None:
    """max_map_count is the machine's: the process comes near to it."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    setup = (
        f"base = mmap.mmap(-1, {most} * 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(base)); libc.mprotect.argtypes = [ctypes.c_ulong] * 3\n"
        f"n = ({most} - len(open('/proc/self/maps').readlines())) // 2 - 4\n"
        "for i in range(n): assert libc.mprotect(a + i * 8192, 4096, 1) == 0\n"
        "m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for at in range(0, 16 << 20, 1 << 20): m[at] = 1; m.madvise(mmap.MADV_DONTNEED, at, 4096)\n"
    )
    with sleeping(setup) as pid:
        freed = free(Request(pid, start_time(pid), stop=0.5))
        assert freed.label == "mappings", freed


def test_puts_off_where_the_address_space_is_limited() -> None:
    with known(20, 0, 0, 0) as one:
        size = int(Path(f"/proc/{one.pid}/statm").read_text().split()[0]) * PAGE
        resource.prlimit(one.pid, resource.RLIMIT_AS, (size + (4 << 20), resource.RLIM_INFINITY))
        freed = one.free(patience=0.1)
        assert freed.label == "limits"
        one.check()


def test_a_32_bit_program(tmp_path: Path) -> None:
    """Told by its file: an ELF of class 1 that calls pause(2)."""
    code = bytes.fromhex("b81d000000cd80ebf7")
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += (2).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    header += b"".join(word.to_bytes(4, "little") for word in (0x8048054, 52, 0, 0))
    header += b"".join(half.to_bytes(2, "little") for half in (52, 32, 1, 0, 0, 0))
    size = 84 + len(code)
    words = (1, 0, 0x8048000, 0x8048000, size, size, 5, 4096)
    program = tmp_path / "pauses"
    program.write_bytes(header + b"".join(word.to_bytes(4, "little") for word in words) + code)
    program.chmod(0o755)
    process = subprocess.Popen([program])
    try:
        time.sleep(0.1)
        freed = free(Request(process.pid, start_time(process.pid)))
        assert freed.label == "32bit", freed
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


# ---- who writes meanwhile ------------------------------------------------------------------------


def test_a_byte_that_somebody_else_writes_is_not_lost() -> None:
    """process_vm_writev(2) from outside, all the time: what came before the look is moved back."""
    spans = 4096
    with known(spans, 0, 0, 0) as one:
        words = [built("writer"), str(one.pid), hex(one.start), str(spans * SPAN), "3"]
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        back = stops = 0
        while writer.poll() is None:
            freed = one.free(patience=0.2)
            back += freed.back
            stops += freed.stops
        text = writer.communicate()[0]
        print(text, back, stops)
        written, lost = int(text.split()[0]), int(text.split()[2])
        assert (lost, stops > 0, written > 1000) == (0, True, True)


# ---- torture -------------------------------------------------------------------------------------

LENGTHENED = ("epoll_timed", "sigtimedwait", "semtimedop", "recv_timed")
CUT_SHORT = ("recv_all", "write")


@pytest.mark.parametrize("words", [(), ("single",), *((word,) for word in (*LENGTHENED, *CUT_SHORT))])
def test_nobody_notices(words: tuple[str, ...]) -> None:
    """Memory with checksums, and calls that sleep, in many threads, freed from again and again: torture.c."""
    process = begun(built("torture"), "4", *words)
    stops = 0
    end = time.monotonic() + 3.5
    while time.monotonic() < end and process.poll() is None:
        freed = free(Request(process.pid, start_time(process.pid), kinds=KINDS, stop=0.05, patience=0.5))
        stops += freed.stops
        assert not freed.refused
    text = process.communicate()[0]
    assert (process.returncode, text.startswith("fine")) == (0, True), text
    if words == () or words[0] in ("single", "epoll_timed"):
        assert stops > 0


@pytest.mark.parametrize("words", [(), ("epoll_timed",), ("semtimedop",)])
def test_nobody_notices_a_stop_that_is_given_up(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """Some threads stand, one does not in time: who is told of signals is not to be traced while others go on."""
    monkeypatch.setattr(stop, "_STOPPING", 0.05)
    process = begun(built("torture"), "4", *words)
    labels = Counter[str]()
    end = time.monotonic() + 3.5
    while time.monotonic() < end and process.poll() is None:
        labels[free(Request(process.pid, start_time(process.pid), kinds=KINDS, patience=0.5)).label] += 1
    text = process.communicate()[0]
    assert (process.returncode, text.startswith("fine")) == (0, True), text
    if not words:  # the others' calls are mostly what it is put off for, before it is begun
        assert labels["sleep"] > 0, labels


@pytest.mark.parametrize("words", [(), ("single",)])
def test_goes_on_however_the_helper_ends(words: tuple[str, ...]) -> None:
    """kill -9 at random moments of a stop. Only memory is held to what it was: a call may end with EINTR then."""
    process = begun(built("torture"), "5", *(words or ("memory",)))
    began = start_time(process.pid)
    killed = 0
    for number in range(60):
        if process.poll() is not None:
            break
        child = os.fork()
        if child == 0:
            try:
                free(Request(process.pid, began, kinds=KINDS, stop=0.05, patience=0.3))
            except PterefdError:  # its worker is killed
                pass
            finally:
                os._exit(0)
        time.sleep(0.02 + number % 30 * 0.002)
        for worker in Path(f"/proc/{child}/task/{child}/children").read_text().split():
            os.kill(int(worker), signal.SIGKILL)
            killed += 1
        os.waitpid(child, 0)
    text = process.communicate()[0]
    assert (process.returncode, text.startswith("fine")) == (0, True), text
    assert killed > 0


@pytest.mark.parametrize("ended", [False, True])
def test_scheduled_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: bool) -> None:
    """The thread that moves is SCHED_FIFO meanwhile, and as it was behind that, also where its tracer is killed."""
    look = Mover.entries_moved
    meanwhile = tmp_path / "policy"

    def looks(mover: Mover) -> procmem.Entries:
        if mover.thread.tid in tids:
            meanwhile.write_text(str(os.sched_getscheduler(mover.thread.tid)))
            if ended:
                os.kill(os.getpid(), signal.SIGKILL)
        return look(mover)

    with known(50, 0, 0, 3) as one:
        tids = procmem.tasks(one.pid)
        for tid in tids:
            os.setpriority(os.PRIO_PROCESS, tid, 7)
        with monkeypatch.context() as patch:
            patch.setattr(Mover, "entries_moved", looks)
            with pytest.raises(PterefdError) if ended else nullcontext():
                one.free()
        assert meanwhile.read_text() == str(os.SCHED_FIFO)
        time.sleep(0.5)  # a stub ends by itself within 0.2 seconds
        for tid in tids:
            assert (os.sched_getscheduler(tid), os.getpriority(os.PRIO_PROCESS, tid)) == (os.SCHED_OTHER, 7)
        one.check(read=True)


def test_a_stub_that_a_worker_left_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are of the thread that is still in it: another's registers must not be put there."""
    look = Mover.entries_moved

    def ends(mover: Mover) -> procmem.Entries:
        if mover.thread.tid in tids:
            os.kill(os.getpid(), signal.SIGKILL)
        return look(mover)

    with known(50, 0, 0, 3, busy=True) as one:
        tids = procmem.tasks(one.pid)
        with monkeypatch.context() as patch:
            patch.setattr(Mover, "entries_moved", ends)
            with pytest.raises(PterefdError):
                one.free()
        target = Target(one.pid, start_time(one.pid))
        threads = Threads([one.pid])
        try:
            threads.stop(0.1)
            with pytest.raises(PutOff):
                threads.check_outside(target.cave.address, stub.STUB_BYTES)
        finally:
            threads.let_go()
            target.close()
        assert one.free(patience=10.0).label == ""
        assert scan(one.pid).use.reclaimable == 0  # type: ignore[union-attr]
        one.check(read=True)


@pytest.mark.parametrize("continued", [False, True])
def test_a_process_that_is_stopped_inside_the_stub_stays_so(continued: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Mover.entries_moved

    def stops(mover: Mover) -> procmem.Entries:
        if mover.thread.tid == one.pid:
            os.kill(one.pid, signal.SIGSTOP)
            if continued:
                os.kill(one.pid, signal.SIGCONT)
        return look(mover)

    with known(50, 0, 0, 3) as one:
        monkeypatch.setattr(Mover, "entries_moved", stops)
        assert one.free(stop=0.1).freed == 50 * PAGE
        if not continued:
            assert os.waitpid(one.pid, os.WUNTRACED)[0] == one.pid
            assert procmem.read_status(one.pid).state == "T"
            one.process.send_signal(signal.SIGCONT)
        one.check(read=True)


def test_a_filter_that_comes_meanwhile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before the stop, and there in it: the thread that would run the stub would be ended."""
    monkeypatch.setattr("pterefd.freeing.refuse._check_thread", lambda *_: None)
    with sleeping(REFUSED["seccomp"] + HAS_EMPTY) as pid:
        freed = free(Request(pid, start_time(pid), stop=0.5))
        assert (freed.label, freed.stops) == ("seccomp", 0), freed


def test_threads_whose_calls_become_signals_are_left_alone() -> None:
    """prctl(PR_SET_SYSCALL_USER_DISPATCH), with a selector that lets calls through now."""
    setup = "selector = ctypes.c_char(0); assert libc.prctl(59, 1, 0, 0, ctypes.byref(selector)) == 0"
    with sleeping(setup + HAS_EMPTY) as pid:
        freed = free(Request(pid, start_time(pid), stop=0.5))
        assert (freed.label, freed.stops) == ("dispatch", 0), freed


def test_refuses_for_who_shares_its_memory() -> None:
    """A process of clone(CLONE_VM) with a filter of its own; the thread of the other is busy."""
    source = (
        "#define _GNU_SOURCE\n#include <linux/seccomp.h>\n#include <sched.h>\n#include <signal.h>\n#include <stdio.h>\n"
        "#include <sys/mman.h>\n#include <sys/prctl.h>\n#include <unistd.h>\n"
        "static char stack[65536]; static volatile int ready;\n"
        "static int other(void *_) { prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT); ready = 1; char c; read(0, &c, 1);\n"
        "for (;;); }\n"
        "int main(void) { char *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"
        "for (int i = 0; i < 64; i++) { m[i << 20] = 1; madvise(m + (i << 20), 4096, MADV_DONTNEED); }\n"
        "int pid = clone(other, stack + sizeof stack, CLONE_VM | SIGCHLD, 0); while (!ready);\n"
        'printf("%d\\n", pid); fflush(stdout); alarm(60); for (;;); }\n'
    )
    process = Asked([str(compiled("shares", source))])
    other = int(process.stdout.readline())
    freed = free(Request(process.pid, start_time(process.pid), stop=0.5))
    assert (freed.label, freed.stops) == ("seccomp", 0), freed
    assert procmem.read_status(other).state not in "ZX"
    os.kill(other, signal.SIGKILL)
    process.kill()
    process.communicate()


def test_what_had_data_is_back_before_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of the process may be told by the writer, and read or write there at once."""
    seen = []
    look, let_go = Mover.entries_moved, Threads.let_go

    def looks(mover: Mover) -> procmem.Entries:
        if mover.thread.tid == one.pid:
            os.pwrite(mover._memory, b"there", mover._runs[0].start + mover._shift)  # as one that had come before
        return look(mover)

    def goes(threads: Threads, but: int = 0) -> None:
        if but == one.pid:
            with Path(f"/proc/{one.pid}/mem").open("rb") as memory:
                memory.seek(one.start)
                os.write(writer, memory.read(5))
        let_go(threads, but)

    with known(20, 0, 0, 0) as one:
        reader, writer = os.pipe()
        monkeypatch.setattr(Mover, "entries_moved", looks)
        monkeypatch.setattr(Threads, "let_go", goes)
        freed = one.free(stop=0.5, spans=((one.start, one.start + 20 * SPAN),))
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            seen = said.read()
        assert (freed.back, seen[:5]) == (1, b"there"), freed
        with Path(f"/proc/{one.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(one.start)
            assert memory.read(5) == b"there"


@pytest.mark.parametrize("event", ["comes", "execs"])
def test_who_shares_its_memory_is_known_in_the_stop(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes after the look is not stopped; one that runs another program has not the stub in its memory."""
    source = (
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <signal.h>\n#include <stdio.h>\n#include <sys/mman.h>\n"
        "#include <unistd.h>\nstatic char stack[65536];\n"
        'static int other(void *_) { char c; read(0, &c, 1); execl("/bin/sleep", "sleep", "60", NULL); return 1; }\n'
        "int main(int argc, char **argv) {\n"
        "char *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), c;\n"
        "for (int i = 0; i < 64; i++) { m[i << 20] = 1; madvise(m + (i << 20), 4096, MADV_DONTNEED); }\n"
        'if (argc > 1) { puts("ready"); fflush(stdout); read(0, &c, 1); }\n'
        'printf("%d\\n", clone(other, stack + sizeof stack, CLONE_VM | SIGCHLD, 0)); fflush(stdout);\n'
        "alarm(60); for (;;); }\n"
    )
    process = Asked([str(compiled("comes", source)), *(["x"] if event == "comes" else [])])
    first = process.stdout.readline()
    target = Target(process.pid, start_time(process.pid))
    process.stdin.write("x")
    process.stdin.flush()
    other = int(process.stdout.readline() if event == "comes" else first)
    while event == "execs" and procmem.read_status(other).name != "sleep":
        time.sleep(0.01)
    with pytest.raises(PutOff, match="its memory"):
        one_stop(target, target.ranges[:1], Wanted(True, True, True), _Unwatched(), patience=1.0, seconds=0.5)
    target.close()
    for pid in (other, process.pid):
        assert procmem.read_status(pid).state not in "ZX"
        os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "call",
    [
        "static const struct timespec t = {0, 100000000}; if (syscall(SYS_ppoll, 0, 0, &t, 0, 8)) return 1;",
        "static char b[8 << 20]; if (getrandom(b, sizeof b, 0) != sizeof b) return 1;",
        'int f = memfd_create("x", 0); if (fallocate(f, 0, 0, 64 << 20)) return 1; close(f);',
    ],
    ids=["ppoll", "getrandom", "fallocate"],
)
def test_calls_that_a_stop_ends_or_cuts_short_while_they_run(call: str) -> None:
    source = (
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stdio.h>\n#include <sys/mman.h>\n#include <sys/random.h>\n"
        "#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n"
        'int main(void) { puts("ready"); fflush(stdout);\n'
        f"for (time_t end = time(0) + 4; time(0) < end;) {{ {call} }} }}\n"
    )
    process = begun(compiled("calls", source))
    stopped = 0
    while process.poll() is None:
        threads = Threads([process.pid])
        try:
            threads.stop(1.0)
            stopped += 1
        except (PutOff, ProcessLookupError):
            pass
        threads.let_go()
        threads.linger()
        time.sleep(0.15)  # longer than its timeout, which begins anew
    process.communicate()
    assert (process.returncode, stopped > 3) == (0, True)


def test_a_thread_is_home_before_the_stub_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed when it has taken the stub away leaves nobody in it."""
    release = Threads.release

    def ends(threads: Threads, thread: Stopped) -> None:
        if thread.tid in tids and thread.changed:
            os.kill(os.getpid(), signal.SIGKILL)
        release(threads, thread)

    with known(50, 0, 0, 3, busy=True) as one:
        tids = procmem.tasks(one.pid)
        with monkeypatch.context() as patch:
            patch.setattr(Threads, "release", ends)
            with pytest.raises(PterefdError):
                one.free()
        time.sleep(0.3)  # longer than the stub's waits
        one.check(read=True)


def test_a_child_has_nothing_of_what_is_moved() -> None:
    """fork(2) all the time: in the moment, too, in which others go on and the spans are still to be unmapped."""
    source = (
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <pthread.h>\n#include <stdio.h>\n#include <string.h>\n"
        "#include <stdlib.h>\n#include <sys/mman.h>\n#include <sys/wait.h>\n#include <time.h>\n#include <unistd.h>\n"
        'static char b[1 << 16]; static int lines(void) { int f = open("/proc/self/maps", 0), n = 0; ssize_t r;\n'
        "while ((r = read(f, b, sizeof b)) > 0) for (ssize_t i = 0; i < r; i++) n += b[i] == 10;\n"
        "close(f); return n; }\n"
        "static void *sleeps(void *_) { for (;;) pause(); }\n"
        "int main(void) { long size = 512L << 20; pthread_t t; pthread_create(&t, NULL, sleeps, NULL);\n"
        "char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"
        'puts("ready"); fflush(stdout); int most = lines(), status;\n'
        "for (time_t end = time(0) + 4; time(0) < end;) {\n"
        "for (long i = 0; i < size; i += 1 << 20) { m[i] = 1; madvise(m + i, 4096, MADV_DONTNEED); }\n"
        "for (int i = 0; i < 60; i++) { if (fork() == 0) _exit(lines() > most + 1); wait(&status);\n"
        "if (status) return 1; } } return 0; }\n"
    )
    process = begun(compiled("forks", source))
    stops = 0
    while process.poll() is None:
        stops += free(Request(process.pid, start_time(process.pid), stop=0.3, patience=0.5)).stops
    process.communicate()
    assert (process.returncode, stops > 0) == (0, True)
