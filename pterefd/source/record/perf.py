"""Running perf: which events, with which options, switched on and off from outside.

perf does the recording proper; it is started switched off on a task that stands still, and switched on
before the task goes on, so that nothing is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from pterefd.errors import Missing, PterefdError

TRACEFS = Path("/sys/kernel/tracing")
TRACEFS_PLACES = (TRACEFS, Path("/sys/kernel/debug/tracing"))

# Calls of which entry and return are needed. The arguments are the kernel's (SYSCALL_DEFINE).
SYSCALLS = (
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "pkey_mprotect",
    "brk",
    "madvise",
    "process_madvise",
    "mlock",
    "mlock2",
    "munlock",
    "mlockall",
    "munlockall",
    "mbind",
    "shmat",
    "shmdt",
    "userfaultfd",
    "remap_file_pages",
    "prctl",
    "execve",
    "execveat",
    "clone",
    "clone3",
    "fork",
    "vfork",
)
FAULTS = ("exceptions:page_fault_user", "exceptions:page_fault_kernel")
EVENTS = (
    *FAULTS,
    *(f"syscalls:sys_{side}_{name}" for name in SYSCALLS for side in ("enter", "exit")),
    "sched:sched_process_fork",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
)
# Beside a tracer less will do, and each event costs perf some 20 ms to give back at the end: the tracer knows of forks,
# execs and exits, brk's return says all, and of calls that there is no op for it is enough that they were made.
_BY_TRACER = ("execve", "execveat", "clone", "clone3", "fork", "vfork")
_EXIT_ONLY = ("brk", "process_madvise", "userfaultfd", "remap_file_pages", "munlockall")
RECORD_EVENTS = (
    *FAULTS,
    *(f"syscalls:sys_enter_{name}" for name in SYSCALLS if name not in _BY_TRACER + _EXIT_ONLY),
    *(f"syscalls:sys_exit_{name}" for name in SYSCALLS if name not in _BY_TRACER),
)
BUFFER_MIB = 64  # per CPU: with it nothing was lost of a program that does nothing but fault
_READY_S = 60.0
_WRITTEN_S = 600.0
_WRITTEN = "Captured and wrote"


class RecorderError(PterefdError):
    """The recorder itself failed. Beside a command, env(1)'s code for that."""

    exit_code = 125


def tracefs() -> Path:
    """Where the tracepoints are; mounts tracefs where that is all that is missing and one may.

    Missing: it is not there, or may not be read.
    """
    for place in TRACEFS_PLACES:
        if _readable(place / "events"):
            return place
    if os.geteuid() == 0 and TRACEFS.is_dir():
        _mount_tracefs()
        if _readable(TRACEFS / "events"):
            return TRACEFS
    hint = "mount -t tracefs tracefs /sys/kernel/tracing" if os.geteuid() == 0 else "it takes root"
    raise Missing(f"the kernel's tracepoints cannot be read in {TRACEFS}: {hint}")


def _readable(events: Path) -> bool:
    return os.access(events / "exceptions" / "page_fault_user" / "id", os.R_OK)


def _mount_tracefs() -> None:
    """mount(2) without mount(8); no harm where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"tracefs", str(TRACEFS).encode(), b"tracefs", ctypes.c_ulong(0), None)


def check_rights() -> None:
    """Missing: the kernel does not let this user record tracepoints."""
    if os.geteuid() == 0:
        return
    try:
        level = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    except (OSError, ValueError):
        return
    if level > -1:
        raise Missing(f"recording takes root, or kernel.perf_event_paranoid=-1 (it is {level})")


def buffer_size() -> str:
    """perf's buffer for each CPU: enough for bursts, and of all CPUs together at most a sixteenth of memory."""
    share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16 // (os.cpu_count() or 1)
    return f"{min(BUFFER_MIB, 1 << max(0, (share >> 20).bit_length() - 1))}M"


def find_perf() -> str:
    """Path of perf. Missing: there is none."""
    perf = shutil.which("perf")
    if perf is None:
        raise Missing("perf is not installed (Debian: apt install linux-perf)")
    return perf


def perf_version(perf: str) -> str:
    """As `perf --version` says, without the words."""
    try:
        done = subprocess.run([perf, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{perf} does not run: {error}") from None
    if done.returncode != 0:
        raise Missing(f"{perf} does not run: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return done.stdout.strip().removeprefix("perf version ")


def available(place: Path, events: tuple[str, ...] = EVENTS) -> list[str]:
    """The events of these that the running kernel has. Missing: it lacks the faults or mmap."""
    there = [event for event in events if (place / "events" / event.replace(":", "/", 1) / "id").exists()]
    for needed in (*FAULTS, "syscalls:sys_enter_mmap"):
        if needed in events and needed not in there:
            raise Missing(f"the kernel has no tracepoint {needed} (CONFIG_FTRACE_SYSCALLS, x86)")
    return there


def options(events: list[str]) -> list[str]:
    """Options of perf record that decide what is recorded; the script for other machines has the same.

    -d also gives every file mapping its own record, with path and offset; -B and -N keep perf from reading
    the whole file again at its end.
    """
    buffer = ["-m", buffer_size()] if os.geteuid() == 0 else []
    return [*buffer, "-k", "CLOCK_MONOTONIC", "-d", "-B", "-N", "--no-bpf-event", "-e", ",".join(events)]


class Perf:
    """One `perf record` on a process, its threads and all that they start."""

    def __init__(self, perf: str, output: Path, pid: int, events: list[str]) -> None:
        """Start it, switched off, and wait until it is attached. RecorderError: it ended or said nothing."""
        self.output = output
        self._log = output.with_name(output.name + ".log")
        control_read, self._control = os.pipe2(os.O_CLOEXEC)
        self._answers, answer_write = os.pipe2(os.O_CLOEXEC)
        command = [
            *(perf, "record", "-o", str(output), "--synth=no", "-D", "-1", "-p", str(pid)),
            *(f"--control=fd:{control_read},{answer_write}", *options(events)),
        ]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(control_read, answer_write),
                start_new_session=True,  # so that Ctrl-C does not reach it
                env={**os.environ, "LC_ALL": "C"},
            )
        os.close(control_read)
        os.close(answer_write)
        self.pid = self._process.pid
        self.returncode: int | None = None
        self._ask("ping")

    def enable(self) -> None:
        """Switch the events on. RecorderError: perf ended."""
        self._ask("enable")

    def _ask(self, command: str) -> None:
        """One command of perf's control channel, answered."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, command.encode() + b"\n")
        end = time.monotonic() + _READY_S
        while time.monotonic() < end:
            ready, _, _ = select.select([self._answers], [], [], 0.5)
            if ready and os.read(self._answers, 64):
                return
            if ready or self.ended():
                raise RecorderError(f"perf ended: {self.last_words()}")
        raise RecorderError(f"perf did not answer to {command} within {_READY_S:.0f} s: {self.last_words()}")

    def noticed(self, status: int) -> None:
        """The caller's wait(2) met perf's end."""
        self.returncode = os.waitstatus_to_exitcode(status)
        self._process.returncode = self.returncode

    def ended(self) -> bool:
        """Whether perf has ended."""
        if self.returncode is None:
            self.returncode = self._process.poll()
        return self.returncode is not None

    def stop(self) -> bool:
        """End the recording. True: the file is complete (perf itself may need longer, to give back its events)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        end = time.monotonic() + _WRITTEN_S
        while not self.ended() and time.monotonic() < end and not self.complete:
            time.sleep(0.005)
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether the file is complete."""
        return _WRITTEN in self._log_text()

    def close(self) -> None:
        """Let go of the control channel; perf is killed where it still runs."""
        if not self.ended():
            self._process.kill()
            self.returncode = self._process.wait()
        for fd in (self._control, self._answers):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._control = self._answers = -1

    def last_words(self) -> str:
        """What perf wrote last, as one line."""
        lines = [line.strip() for line in self._log_text().splitlines() if line.strip()]
        told = [line for line in dict.fromkeys(lines) if not line.startswith(("[ perf record", "Events ", "WARNING"))]
        return "; ".join(told[:3])[:300] or "it said nothing"

    def _log_text(self) -> str:
        try:
            return self._log.read_text(errors="replace")
        except OSError:
            return ""
