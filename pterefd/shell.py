"""A command in a mount and pid namespace of its own, with a mounted tree on its /proc: what `pterefd shell` does.

Three processes: the one that was started, which waits, hands signals on and gives the terminal back; below it, as
pid 1 of the new namespace, one that reaps; and the command. All are in one process group, so Ctrl-C and Ctrl-Z act
as on any command, and a shell with job control makes groups of its own.

The kernel's own /proc stays reachable under hostproc (procfs/own.py), for /dev/fd.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pterefd.errors import BadInput, Missing
from pterefd.procfs import mountpoint
from pterefd.procfs.own import KERNELS_PROC

PROC = "/proc"
DEFAULT_MOUNT = Path("mnt")  # as in pterefd/config.py, which takes long to load
EXIT_NOT_STARTED = 125  # as env(1): what went wrong before the command was tried
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
NOBODY = 65534
HANDED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
THREAD_SECONDS = 2.0
OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # these reach the command by themselves
_libc = ctypes.CDLL(None, use_errno=True)


def choose_mount(given: Path | None, default: Path) -> str:
    """The mount to use: the one given, else the one at default, else the only one that is of use.

    Missing where there is none, or nobody serves it. BadInput where it is no mount of pterefd, or one must be chosen.
    """
    if mountpoint.is_ours(PROC):
        raise BadInput(f"{PROC}: a pterefd is mounted there already: leave this shell first")
    if given is not None:
        point = mountpoint.absolute(given)
        if not mountpoint.is_ours(point):
            raise BadInput(f"{given}: no pterefd is mounted there")
    else:
        point = _the_mount(mountpoint.absolute(default))
    _check_answers(point)
    return point


def _check_answers(point: str) -> None:
    reason = _unusable(point)
    if reason is not None:
        raise Missing(f"{point}: {reason}")


def check_simulated(point: str) -> None:
    """BadInput where the mount at point is of this machine's own processes: a pid namespace would hide all of them."""
    if Path(point, "sys/pterefd/host_kind").read_text(encoding="ascii") == "live\n":
        bind = f"mount --bind {point} /proc && exec $SHELL"
        raise BadInput(f"{point}: shows this machine's own processes; for those: unshare --mount sh -c '{bind}'")


def _unusable(point: str) -> str | None:
    """Why this user can do nothing with the mount at point; None where he can."""
    code = mountpoint.answer(point)
    if code is None:
        return "the pterefd that is mounted there does not answer"
    if code in mountpoint.DEAD:
        return "the pterefd that was mounted there is gone"
    if code == errno.EACCES:
        return "not for this user: be who runs the daemon, or set its daemon.allow_other"
    return os.strerror(code) if code else None


def _the_mount(default: str) -> str:
    points = list(dict.fromkeys(entry.point for entry in mountpoint.mounts() if entry.fstype == mountpoint.FSTYPE))
    if default in points:
        return default
    if not points:
        raise Missing("no pterefd is mounted here: start one with `pterefd run`")
    if len(points) == 1:
        return points[0]
    reasons = {point: _unusable(point) for point in points}
    usable = [point for point, reason in reasons.items() if reason is None]
    if not usable:
        said = "; ".join(f"{point}: {reason}" for point, reason in reasons.items())
        raise Missing(f"several are mounted, and none is of use here: {said}")
    if len(usable) > 1:
        raise BadInput(f"several are mounted, choose one with --mount: {', '.join(usable)}")
    return usable[0]


def run(point: str, argv: Sequence[str]) -> int:
    """Run a command with the tree that is mounted at point on its /proc; its exit code, 128+n for a signal.

    126 and 127 where it cannot be executed or is not found, as a shell has it, with a line on stderr. Missing where
    this user may not make namespaces. The calling process is in the new namespaces afterwards.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as it may be inherited, nobody is told of a child's end
    _new_namespaces()
    _mount_on_proc(point)
    foreground = _foreground()
    for number in OF_THE_TERMINAL:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what was ignored stays so, for the command too
            signal.signal(number, lambda *_: None)
    init = os.fork()
    if init == 0:
        _be_init(argv)
    _hand_on(init)
    _, status = os.waitpid(init, 0)
    if foreground is not None:
        _take_back_terminal(foreground)
    return _exit_code(status)


# -- namespaces ------------------------------------------------------------------------------------


def works_without_root() -> bool:
    """Whether a user without rights gets the namespaces that `run` needs: tried, by a child that does nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child only makes system calls
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    try:
        if os.geteuid() == 0:
            _become_nobody()
        _new_namespaces()
        _mount(None, "/", MS_REC | MS_SLAVE)
        os._exit(0)
    finally:
        os._exit(1)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Who changed his user may not be dumped, and then does not own his /proc/self.
    _libc.prctl(PR_SET_DUMPABLE, 1)


def _new_namespaces() -> None:
    """A mount and a pid namespace; without the right to, in a user namespace, where the user stays who he is."""
    uid, gid = os.geteuid(), os.getegid()
    code = _unshare(CLONE_NEWNS | CLONE_NEWPID)
    if code == errno.EPERM:
        code = _unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID)
        if not code:
            code = _stay(uid, gid)
    if code:
        raise Missing(f"no namespaces: {os.strerror(code)}; run as root, or allow this user to make user namespaces")


def _stay(uid: int, gid: int) -> int:
    """Map a user and a group to themselves in the new user namespace. 0, or errno."""
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _unshare(flags: int) -> int:
    """0, or errno."""
    deadline = time.monotonic() + THREAD_SECONDS
    while _libc.unshare(flags):
        code = ctypes.get_errno()
        # Only a process of one thread may; the one that asked whether the mount answers may not be quite gone.
        if code != errno.EINVAL or time.monotonic() > deadline:
            return code
        time.sleep(0.001)
    return 0


def _mount_on_proc(point: str) -> None:
    # Slaves: what is mounted outside later appears here too, and nothing of here outside.
    _mount(None, "/", MS_REC | MS_SLAVE)
    _mount(PROC, f"{point}/{KERNELS_PROC}", MS_BIND | MS_REC)
    _mount(point, PROC, MS_BIND | MS_REC)


def _mount(source: str | None, target: str, flags: int) -> None:
    name = None if source is None else os.fsencode(source)
    if _libc.mount(name, os.fsencode(target), None, flags, None):
        reason = os.strerror(ctypes.get_errno())
        raise Missing(f"{target}: cannot be mounted on in a namespace: {reason}")


# -- pid 1 -----------------------------------------------------------------------------------------


def _be_init(argv: Sequence[str]) -> NoReturn:
    """Start the command and reap what ends, as pid 1; end as the command does, which ends all others here."""
    code = EXIT_NOT_STARTED
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _leave_simulated_pids()
        code = _start_and_reap(argv)
    except OSError as error:
        code = EXIT_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE
        print(f"pterefd: {argv[0]}: {os.strerror(error.errno or errno.EIO)}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _start_and_reap(argv: Sequence[str]) -> int:
    handed_on = {number for number in HANDED_ON if signal.getsignal(number) is not signal.SIG_IGN}  # nohup
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*handed_on, signal.SIGCHLD})
    ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
    command = os.posix_spawnp(argv[0], list(argv), os.environ, setsigmask=before, setsigdef=ignored_by_python)
    while True:
        told = signal.sigwaitinfo({*handed_on, signal.SIGCHLD})
        if told.si_signo == signal.SIGCHLD:
            code = _reap(command)
            if code is not None:
                return code
        # To those inside, pid 1 is the simulated one: what they send it reaches nobody. Who is outside has no pid here.
        elif told.si_pid == 0:
            with suppress(ProcessLookupError):
                os.kill(command, told.si_signo)


def _reap(command: int) -> int | None:
    """Take in what has ended; the command's exit code where it is among it."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, command):
            return _exit_code(status) if pid else None


def _leave_simulated_pids() -> None:
    """Let the next processes here have pids above the simulated ones: who finds itself there cannot see the other."""
    kernel = Path(PROC, KERNELS_PROC, "sys/kernel")
    with suppress(OSError, ValueError):  # a container that may not write it: numbers may then meet
        limit = int((kernel / "pid_max").read_text())
        highest = max((int(name) for name in os.listdir(PROC) if name.isdecimal()), default=1)
        first = limit // 2
        if first <= highest < limit - limit // 8:
            first = highest + 1
        (kernel / "ns_last_pid").write_text(str(first))


def _hand_on(pid: int) -> None:
    """What is sent to this process goes to that one."""

    def send(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in HANDED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, send)


# -- the terminal ----------------------------------------------------------------------------------


def _foreground() -> int | None:
    """This process group, where the terminal on standard input is its own."""
    with suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            return os.getpgrp()
    return None


def _take_back_terminal(group: int) -> None:
    """A shell with job control leaves its own, dead group in the foreground."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):
        os.tcsetpgrp(0, group)
    signal.signal(signal.SIGTTOU, before)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
