"""Drives the agent: one address space or several (forks), each commanded on a slot of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FD0 = 10  # the agent's descriptor of slot 0
SLOTS = 12
ANSWER_SECONDS = 20.0

# How a page is touched; FORCED passes over what mprotect forbids (/proc/PID/mem).
READ, WRITE, KERNEL_READ, KERNEL_WRITE, FORCED_READ, FORCED_WRITE = range(6)

# The kinds of mappings in the answer to `y`.
KIND_ANON, KIND_FILE, KIND_STACK, KIND_VVAR, KIND_VCLOCK, KIND_VDSO, KIND_OTHER = range(7)
FILE_DISK, FILE_MEMFD, FILE_ZERO = range(3)  # what `o` opens
BATCH = 1024  # commands that `n` takes at once, where the agent lives apart


class AgentError(Exception):
    """The agent died or did not answer."""


class Counters(NamedTuple):
    """What the kernel says of one address space. VmPTE .. VmSwap: kB; the others: counts."""

    VmPTE: int
    RssAnon: int
    RssFile: int
    RssShmem: int
    VmSwap: int
    zero_entries: int
    present_entries: int
    swap_entries: int
    guard_entries: int
    vmas: int
    huge_entries: int


class Run(NamedTuple):
    """A run of alike entries. start, end: bytes; categories: PAGE_IS_* bits of PAGEMAP_SCAN."""

    start: int
    end: int
    categories: int


IS_FILE, IS_PRESENT, IS_SWAPPED, IS_PFNZERO, IS_HUGE, IS_GUARD = 4, 8, 16, 32, 64, 256


@dataclass(slots=True)
class Outcome:
    """A command of a batch that failed, or gave another address than it asked for. failed: as in Answer."""

    errno: int
    result: int
    failed: list[tuple[int, int, int]]


@dataclass(slots=True)
class Answer:
    """One answer. failed: (first page, pages, signal) of a touch; runs: entries or mappings, where asked for.

    outcomes: of a batch, by the index of the command; its result is the time that the batch took, in ns.
    """

    errno: int
    result: int
    counters: Counters
    failed: list[tuple[int, int, int]]
    runs: list[Run]
    outcomes: dict[int, Outcome] = field(default_factory=dict)


def parse_answer(line: bytes) -> Answer:
    """Decode one line of the agent's (agent.c says what stands in it)."""
    words = line.split()
    head = [int(word) for word in words[:13]]
    failed: list[tuple[int, int, int]] = []
    answer = Answer(head[0], head[1], Counters(*head[2:]), failed, [])
    for at in range(13, len(words), 4):
        triple = (int(words[at + 1], 16), int(words[at + 2], 16), int(words[at + 3], 16))
        if words[at] == b"F":
            failed.append(triple)
        elif words[at] == b"E":
            outcome = answer.outcomes[triple[0]] = Outcome(triple[1], triple[2], [])
            failed = outcome.failed  # those of a touch follow
        else:
            answer.runs.append(Run(*triple))
    return answer


class Process(ABC):
    """One address space: a slot, and the pid where it runs."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.real_pid = 0

    @abstractmethod
    def send(self, command: str) -> None:
        """Send one command (agent.c lists them)."""

    @abstractmethod
    def receive(self) -> Answer:
        """Wait for one answer. Raises AgentError where none comes."""

    @abstractmethod
    def maps(self) -> list[str]:
        """The lines of its /proc/PID/maps."""

    @abstractmethod
    def gone(self) -> None:
        """Wait until the process has exited, its address space torn down."""

    def ask(self, command: str) -> Answer:
        self.send(command)
        return self.receive()

    def hello(self) -> Answer:
        """The first answer of a new process: its result is the real pid."""
        answer = self.receive()
        self.real_pid = answer.result
        return answer


class AgentGroup(ABC):
    """An agent and what it forks: use as a context manager, which ends all of them."""

    def __init__(self, slots: int) -> None:
        """The agent has been started on slot 0. slots: how many processes there may be at a time."""
        self.free_slots = list(range(1, slots))
        self.living: list[Process] = []
        self.first = self._process(0)
        try:
            self.first_answer = self.first.hello()
        except AgentError:
            self.close()
            raise
        self.living.append(self.first)

    @abstractmethod
    def _process(self, slot: int) -> Process:
        """The process that answers on that slot."""

    @abstractmethod
    def close(self) -> None:
        """End every process that still lives."""

    def fork(self, parent: Process) -> tuple[Answer, Process | None, Answer | None]:
        """Fork. Returns the parent's answer and, where it succeeded, the child and the child's first answer."""
        slot = self.free_slots.pop(0)
        answer = parent.ask(f"f {slot:x}")
        if answer.errno:
            self.free_slots.insert(0, slot)
            return answer, None, None
        child = self._process(slot)
        hello = child.hello()
        self.living.append(child)
        return answer, child, hello

    def exec(self, process: Process) -> Answer:
        """The process executes the agent anew, on the same slot."""
        process.send(f"e {process.slot:x}")
        return process.hello()

    def exit(self, process: Process) -> None:
        """The process exits; when this returns, its address space is gone. Its slot can be used again."""
        process.send("x")
        process.gone()
        self.living.remove(process)
        self.free_slots.append(process.slot)

    def __enter__(self) -> AgentGroup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# -- on this machine -----------------------------------------------------------------------------


class LocalProcess(Process):
    """A process here, commanded through a socket. A pidfd tells when it is gone."""

    def __init__(self, slot: int, sock: socket.socket) -> None:
        super().__init__(slot)
        self.sock = sock
        self.pidfd = -1
        self._rest = b""

    def send(self, command: str) -> None:
        self.sock.sendall(command.encode() + b"\n")

    def receive(self) -> Answer:
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            try:
                got = self.sock.recv(1 << 16)
            except TimeoutError:
                raise AgentError(f"slot {self.slot}: no answer") from None
            if not got:
                raise AgentError(f"slot {self.slot}: closed")
            parts.append(got)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return parse_answer(line)

    def hello(self) -> Answer:
        answer = super().hello()
        if self.pidfd < 0:
            self.pidfd = os.pidfd_open(self.real_pid)
        return answer

    def maps(self) -> list[str]:
        return Path(f"/proc/{self.real_pid}/maps").read_text().splitlines()

    def gone(self) -> None:
        if not select.select([self.pidfd], [], [], ANSWER_SECONDS)[0]:
            raise AgentError(f"slot {self.slot}: does not exit")
        os.close(self.pidfd)
        self.pidfd = -1

    def kill(self) -> None:
        """End it, if it lives."""
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.gone()


class LocalGroup(AgentGroup):
    """An agent on the running kernel.

    thp: leave huge pages as the machine has them.  cpu: run on that CPU alone, so that the kernel's per-CPU batches
    are always the same ones.  slots: how many processes there may be at a time.
    """

    def __init__(self, path: Path, *, thp: bool = False, cpu: int | None = None, slots: int = SLOTS) -> None:
        self._pairs = [socket.socketpair() for _ in range(slots)]
        for ours, _ in self._pairs:
            ours.settimeout(ANSWER_SECONDS)
        actions: list[tuple[int, int, int]] = []
        # Lift every source above the targets first, so that no dup2 overwrites a source that is still needed.
        sources = [theirs.fileno() for _, theirs in self._pairs]
        first = max(*sources, FD0 + slots) + 1
        for slot, source in enumerate(sources):
            actions.append((os.POSIX_SPAWN_DUP2, source, first + slot))
        for slot in range(slots):
            actions.append((os.POSIX_SPAWN_DUP2, first + slot, FD0 + slot))
            actions.append((os.POSIX_SPAWN_CLOSE, first + slot))  # type: ignore[arg-type]
        self._main_pid = os.posix_spawn(path, [str(path), "-t" if thp else "-"], {}, file_actions=actions)
        if cpu is not None:
            os.sched_setaffinity(self._main_pid, {cpu})
        for _, theirs in self._pairs:
            theirs.close()
        super().__init__(slots)

    def _process(self, slot: int) -> LocalProcess:
        return LocalProcess(slot, self._pairs[slot][0])

    def exit(self, process: Process) -> None:
        super().exit(process)
        if process is self.first:
            os.waitpid(self._main_pid, 0)
            self._main_pid = 0

    def close(self) -> None:
        for process in self.living:
            assert isinstance(process, LocalProcess)
            with contextlib.suppress(OSError, AgentError):
                process.kill()
        self.living.clear()
        if self._main_pid:
            with contextlib.suppress(OSError):
                os.kill(self._main_pid, signal.SIGKILL)
                os.waitpid(self._main_pid, 0)
            self._main_pid = 0
        for ours, _ in self._pairs:
            ours.close()
