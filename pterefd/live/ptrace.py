"""ptrace(2), waitpid(2), kcmp(2), pidfd_getfd(2) and the timer of a tracer's loop, through ctypes.

Only what tracers here need, under the kernel's names. A request on a task that is gone (SIGKILL ends a
task that stands still, too) answers False; anything else that fails is an OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from typing import NamedTuple

PTRACE_CONT = 7
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_GETEVENTMSG = 0x4201
PTRACE_GETSIGINFO = 0x4202
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F
PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211

PTRACE_EVENT_FORK = 1
PTRACE_EVENT_VFORK = 2
PTRACE_EVENT_CLONE = 3
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_VFORK_DONE = 5
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_STOP = 128

PTRACE_O_TRACESYSGOOD = 1
SYSCALL_STOP = signal.SIGTRAP | 0x80  # with PTRACE_O_TRACESYSGOOD
PTRACE_O_TRACEFORK = 1 << PTRACE_EVENT_FORK
PTRACE_O_TRACEVFORK = 1 << PTRACE_EVENT_VFORK
PTRACE_O_TRACECLONE = 1 << PTRACE_EVENT_CLONE
PTRACE_O_TRACEEXEC = 1 << PTRACE_EVENT_EXEC
PTRACE_O_TRACEVFORKDONE = 1 << PTRACE_EVENT_VFORK_DONE
PTRACE_O_TRACEEXIT = 1 << PTRACE_EVENT_EXIT
OPTIONS = (
    PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_TRACEVFORKDONE
    | PTRACE_O_TRACEEXIT
)
STOP_SIGNALS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

PR_SET_THP_DISABLE = 41
_WALL = 0x40000000
_SYS_KCMP = 312  # x86_64
_SYS_GETTID = 186
_SYS_PIDFD_GETFD = 438
_SYS_TIMER_CREATE = 222
_SYS_TIMER_SETTIME = 223
_SYS_TIMER_DELETE = 226
_KCMP_VM = 1
_SIGEV_THREAD_ID = 4
_CLOCK_MONOTONIC = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.waitpid.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


class SigInfo(NamedTuple):
    """What stopped a tracee: signal number, si_code, and for a fault the address (else 0)."""

    signo: int
    code: int
    addr: int


class Regs(ctypes.Structure):
    """struct user_regs_struct of x86_64: what a stopped task's registers are, in the kernel's order."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    )

    def copy(self) -> Regs:
        """Another one with the same values."""
        return Regs.from_buffer_copy(self)

    @property
    def call(self) -> int:
        """Number of the system call that it was stopped in, -1 for none."""
        return ctypes.c_int64(self.orig_rax).value

    @property
    def result(self) -> int:
        """rax as a signed number: what that call returns, or an internal code of the kernel to restart it."""
        return ctypes.c_int64(self.rax).value


def _request(request: int, tid: int, addr: int = 0, data: int = 0) -> bool:
    """One ptrace request; False where the task is gone."""
    if _libc.ptrace(request, tid, addr, data) != -1:
        return True
    code = ctypes.get_errno()
    if code == errno.ESRCH:
        return False
    raise OSError(code, f"ptrace request {request:#x} on task {tid}: {os.strerror(code)}")


def seize(tid: int, options: int = OPTIONS) -> bool:
    """Trace a running task without stopping it, by default its later threads and children too."""
    return _request(PTRACE_SEIZE, tid, 0, options)


def interrupt(tid: int) -> bool:
    """Ask a traced task to stop; it reports PTRACE_EVENT_STOP."""
    return _request(PTRACE_INTERRUPT, tid)


def cont(tid: int, sig: int = 0) -> bool:
    """Let a stopped task go on, delivering `sig` where it is not 0."""
    return _request(PTRACE_CONT, tid, 0, sig)


def until_call(tid: int, sig: int = 0) -> bool:
    """The same until it enters a system call, or leaves the one that it is in."""
    return _request(PTRACE_SYSCALL, tid, 0, sig)


def listen(tid: int) -> bool:
    """Leave a task in its group stop, but hear of SIGCONT."""
    return _request(PTRACE_LISTEN, tid)


def detach(tid: int, sig: int = 0) -> bool:
    """Stop tracing a stopped task, which goes on."""
    return _request(PTRACE_DETACH, tid, 0, sig)


def event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG: the new task's tid, the former tid at an exec, the status at an exit. 0 where gone."""
    message = ctypes.c_ulong(0)
    if not _request(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message)):
        return 0
    return message.value


def signal_info(tid: int) -> SigInfo | None:
    """PTRACE_GETSIGINFO of a task in a signal stop (x86_64 layout of siginfo_t)."""
    buffer = (ctypes.c_char * 128)()
    if not _request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(buffer)):
        return None
    raw = bytes(buffer)
    return SigInfo(
        int.from_bytes(raw[0:4], "little", signed=True),
        int.from_bytes(raw[8:12], "little", signed=True),
        int.from_bytes(raw[16:24], "little"),
    )


def registers(tid: int) -> Regs | None:
    """PTRACE_GETREGS; None where the task is gone."""
    regs = Regs()
    return regs if _request(PTRACE_GETREGS, tid, 0, ctypes.addressof(regs)) else None


def set_registers(tid: int, regs: Regs) -> bool:
    """PTRACE_SETREGS."""
    return _request(PTRACE_SETREGS, tid, 0, ctypes.addressof(regs))


def signal_mask(tid: int) -> int | None:
    """PTRACE_GETSIGMASK: the mask that the task has outside a call that sets one for its time; None where gone."""
    mask = ctypes.c_uint64(0)
    return mask.value if _request(PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask)) else None


def set_signal_mask(tid: int, mask: int) -> bool:
    """PTRACE_SETSIGMASK."""
    return _request(PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(ctypes.c_uint64(mask)))


def rseq_area(tid: int) -> int:
    """Where the task's struct rseq is (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13); 0 for nowhere, or not told."""
    found = (ctypes.c_uint64 * 3)()  # pointer; size and signature; flags and padding
    # The kernel answers with the number of bytes, and with EIO where it has no such request.
    if _libc.ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, ctypes.sizeof(found), ctypes.addressof(found)) <= 0:
        return 0
    return found[0]


def dispatches_calls(tid: int) -> bool:
    """Whether system calls may be turned into SIGSYS (prctl PR_SET_SYSCALL_USER_DISPATCH); told from Linux 6.4 on."""
    found = (ctypes.c_uint64 * 4)()  # mode, selector, offset, length
    # EINVAL or EIO where the kernel has no such request.
    size, place = ctypes.sizeof(found), ctypes.addressof(found)
    return _libc.ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, place) == 0 and found[0] != 0


def copied_descriptor(pidfd: int, fd: int) -> int | None:
    """pidfd_getfd(2): a copy of another process's descriptor; None where that may not be had."""
    zero = ctypes.c_long(0)
    answer = int(_libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_long(pidfd), ctypes.c_long(fd), zero))
    return None if answer < 0 else answer


def wait(pid: int = -1, *, block: bool = True) -> tuple[int, int] | None:
    """waitpid(2) with __WALL: (pid, status); None where a signal came first, or nothing is there yet.

    Unlike os.waitpid it returns on a signal (EINTR), so that a timer can end the wait. Raises
    ChildProcessError where there is nobody left to wait for.
    """
    status = ctypes.c_int(0)
    got = _libc.waitpid(pid, ctypes.byref(status), _WALL | (0 if block else os.WNOHANG))
    if got > 0:
        return got, status.value
    if got == 0:
        return None
    code = ctypes.get_errno()
    if code == errno.EINTR:
        return None
    if code == errno.ECHILD:
        raise ChildProcessError(code, "no traced task is left")
    raise OSError(code, f"waitpid: {os.strerror(code)}")


def shares_mm(one: int, other: int) -> bool | None:
    """Whether two tasks have one mm (kcmp(2), KCMP_VM); None where the kernel does not say."""
    answer = _libc.syscall(
        ctypes.c_long(_SYS_KCMP),
        ctypes.c_long(one),
        ctypes.c_long(other),
        ctypes.c_long(_KCMP_VM),
        ctypes.c_long(0),
        ctypes.c_long(0),
    )
    return None if answer < 0 else answer == 0


def disable_thp() -> bool:
    """Switch huge pages off for this process and all that it starts (prctl PR_SET_THP_DISABLE)."""
    zero = ctypes.c_ulong(0)
    return bool(_libc.prctl(ctypes.c_int(PR_SET_THP_DISABLE), ctypes.c_ulong(1), zero, zero, zero) == 0)


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread_id", ctypes.c_int),
        ("pad", ctypes.c_int * 11),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Ticker:
    """A timer that interrupts a blocking wait of this very thread, every `seconds`.

    A realtime signal of its own (SIGALRM may be somebody else's), sent to this thread alone. Its handler
    is a C function without effect: it only has to exist, so that the wait ends with EINTR.
    """

    SIGNAL = signal.SIGRTMIN + 5

    def __init__(self, seconds: float) -> None:
        self._timer = ctypes.c_int(0)
        action = _SigAction()
        action.handler = ctypes.cast(_libc.getpid, ctypes.c_void_p).value
        _libc.sigaction(int(self.SIGNAL), ctypes.byref(action), None)
        event = _SigEvent(signo=int(self.SIGNAL), notify=_SIGEV_THREAD_ID)
        event.thread_id = _libc.syscall(ctypes.c_long(_SYS_GETTID))
        create = ctypes.c_long(_SYS_TIMER_CREATE), ctypes.c_long(_CLOCK_MONOTONIC)
        if _libc.syscall(*create, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"timer_create: {os.strerror(code)}")
        whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
        spec = _TimerSpec(whole, part, whole, part)
        zero = ctypes.c_long(0)
        _libc.syscall(ctypes.c_long(_SYS_TIMER_SETTIME), self._timer, zero, ctypes.byref(spec), zero)

    def close(self) -> None:
        """Stop the timer. A tick that is still on its way finds a handler: the signal's stays."""
        _libc.syscall(ctypes.c_long(_SYS_TIMER_DELETE), self._timer)


def stop_signal(status: int) -> int:
    """The signal of a stop, from a wait status."""
    return (status >> 8) & 0xFF


def stop_event(status: int) -> int:
    """PTRACE_EVENT_* of a stop, 0 where it is a plain signal stop."""
    return (status >> 16) & 0xFF
