"""Who asks of a live host, what he may see, and files opened and read as he would."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pterefd.errors import NoSuchMm
from pterefd.procfs.caller import Callers, NsIds, Own
from pterefd.procfs.live.acting import CAP_DAC_READ_SEARCH, CAP_SYS_NICE, CAP_SYS_PTRACE, Actor, Credentials
from pterefd.procfs.live.namespaces import Namespace, PidNamespaces
from pterefd.procfs.tree import Attributes

# fs/proc/fd.c:proc_fd_permission() lets a process into these of its own, also where it does not own them.
_LET_IN = ("fd", "fdinfo", "map_files")


@dataclass(frozen=True, slots=True)
class Caller:
    """A thread that asks. own: None where it cannot be seen from here.  namespace: its pid namespace."""

    own: Own | None
    credentials: Credentials
    namespace: Namespace | None


@dataclass(frozen=True, slots=True)
class Task(Own):
    """A process, or a thread of it, as a caller sees it: level, number and thread are of the caller's pid namespace."""

    caller: Caller

    @property
    def is_own(self) -> bool:
        """Whether it is the caller's own process."""
        return self.caller.own is not None and self.caller.own.tgid == self.tgid


class LiveCallers(Callers):
    """As Callers; and any process, as far as the kernel lets the caller see it."""

    def __init__(self, context: Callable[[], tuple[int, int, int]], proc: str = "/proc") -> None:
        super().__init__(context, proc)
        self.actor = Actor()
        self._namespaces = PidNamespaces(proc)
        self._user_namespace = self._users("self")

    # -- who asks -----------------------------------------------------------------------------
    def caller(self) -> Caller:
        """The calling thread, as it is now: its rights may change from one request to the next."""
        uid, gid, tid = self._context()
        unseen = Caller(None, Credentials(uid, gid), None)
        if not tid or not self._same_namespace:
            return unseen
        try:
            text = self.slurp(f"{tid}/status")
            of_users, of_groups, _, groups, rest = text[text.find(b"\nUid:") + 1 :].split(
                b"\n", 4
            )  # FDSize between them
            if (int(of_users.split()[4]), int(of_groups.split()[4])) != (uid, gid):
                return unseen  # another thread has the id by now
            at = rest.find(b"\nCapEff:\t") + 9
            capabilities = int(rest[at : rest.index(b"\n", at)], 16)
            if capabilities and self._users(str(tid)) != self._user_namespace:
                capabilities = 0  # they are against that user namespace, not against ours
            own = self._own(NsIds.of(text))
            namespace = self._namespaces.of(tid) if own.level else None
        except OSError:
            return unseen
        return Caller(own, Credentials(uid, gid, tuple(map(int, groups.split()[1:])), capabilities), namespace)

    def _users(self, pid: str) -> Namespace:
        status = os.stat(f"{self.proc}/{pid}/ns/user")
        return status.st_dev, status.st_ino

    # -- who is seen --------------------------------------------------------------------------
    def task(self, number: int) -> Task | None:
        """The process that has a number for the caller; None where he sees none.

        Whether it is there at all, what is asked of it next tells, for a caller of the daemon's own pid namespace.
        """
        caller = self.caller()
        own = caller.own
        if own is None:
            return None
        pid: int | None = own.tgid if number == own.number else number
        if own.level and number != own.number:
            assert caller.namespace is not None
            pid = self._namespaces.process(number, caller.namespace, own.level)
        if pid is None:
            return None
        return Task(pid, own.level, number, number, str(number), str(pid), caller)

    def numbers(self) -> dict[int, int]:
        """The processes that the caller would find listed: pid in his pid namespace, pid in the daemon's."""
        caller = self.caller()
        if caller.own is None:
            return {}
        if caller.own.level:
            assert caller.namespace is not None
            return self._namespaces.processes(caller.namespace, caller.own.level)
        with self.actor.acting(caller.credentials):  # hidepid
            names = os.listdir(self.proc)
        return {int(name): int(name) for name in names if name.isdecimal()}

    def sees_all(self) -> bool:
        """Whether the caller is in the daemon's own pid namespace."""
        own = self.caller().own
        return own is not None and not own.level

    def thread(self, task: Task, number: int) -> Task | None:
        """The thread of a process that has a number for the caller."""
        if not task.level:
            found = replace(task, thread=number, directory=f"{task.directory}/task/{number}")
            return found if self.has(found, "") else None
        return next((thread for thread in self.threads(task) if thread.thread == number), None)

    def threads(self, task: Task) -> Iterator[Task]:
        """The threads of a process."""
        for tid in self.names_of(task, "task"):
            directory = f"{task.directory}/task/{tid}"
            number = int(tid)
            if task.level:
                try:
                    number = NsIds.of(self.slurp(f"{directory}/status")).pid[task.level]
                except OSError:
                    continue  # it has ended
            yield replace(task, thread=number, directory=directory)

    def pid(self, number: int) -> int:
        """The process that the caller means by a number, by its pid here. NoSuchMm."""
        task = self.task(number)
        if task is None:
            raise NoSuchMm(f"{number}: no such process in the writer's pid namespace")
        return task.tgid

    # -- what is read as the caller -----------------------------------------------------------
    @contextmanager
    def as_caller(self, task: Task | None = None, name: str = "") -> Iterator[None]:
        """This thread acts as the caller, who may look at himself whatever else he may not (ptrace_may_access())."""
        caller = self.caller() if task is None else task.caller
        credentials = caller.credentials
        if task is not None and task.is_own:
            also = 1 << CAP_SYS_PTRACE
            if name.startswith(_LET_IN):
                also |= 1 << CAP_DAC_READ_SEARCH
            elif name == "timerslack_ns":
                also |= 1 << CAP_SYS_NICE
            credentials = replace(credentials, capabilities=credentials.capabilities | also)
        with self.actor.acting(credentials):
            yield

    def again(self, task: Task) -> Task:
        """The same task, for whoever asks now: a descriptor may have been handed on."""
        return replace(task, caller=self.caller())

    def place(self, task: Task | None, name: str) -> str:
        """Where the daemon finds a file of a process; None: of the machine."""
        return f"{self.proc}/{name}" if task is None else f"{self.proc}/{task.directory}/{name}".rstrip("/")

    def open(self, task: Task | None, name: str) -> int:
        """A descriptor of a file of a process, or of the machine, opened as the caller. OSError."""
        with self.as_caller(task, name):
            return os.open(self.place(task, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def names_of(self, task: Task, name: str) -> list[str]:
        """What a directory of a process lists for the caller. OSError."""
        with self.as_caller(task, name):
            return os.listdir(self.place(task, name))

    def readlink(self, task: Task, name: str) -> str:
        """What a link of a process reads as for the caller. OSError."""
        with self.as_caller(task, name):
            return os.readlink(self.place(task, name))

    def stat(self, task: Task | None, name: str = "") -> Attributes:
        """What the kernel says of a file of a process, or of the machine, to the caller. OSError."""
        with self.as_caller(task, name):
            status = os.lstat(self.place(task, name))
        mode = status.st_mode
        if task is not None and task.is_own and name in _LET_IN and status.st_uid != task.caller.credentials.uid:
            mode |= 0o055  # the kernel, which looks at the mode first, would not let the caller in otherwise
        return Attributes(mode, status.st_nlink, status.st_uid, status.st_gid)

    def has(self, task: Task, name: str) -> bool:
        """Whether the caller finds it there."""
        try:
            self.stat(task, name)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError as e:
            return e.errno in (errno.EACCES, errno.EPERM)
        return True
