"""Another kernel under qemu, in software emulation: boots an image with the agent in it, and runs agents there.

The guest is qemu's `-cpu qemu64` (four levels of page tables) with one CPU and no devices but two serial ports: the
kernel's console, which goes to a log, and the port that init.c answers on. Its root is a ramfs, so the agent's text and
the files beside it are made of file pages. There is no swap.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import select
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO

from pterefd.errors import BadInput, Missing
from pterefd.live.machine import parse_config

from .agent import SLOTS, AgentError, AgentGroup, Answer, Process, parse_answer
from .build import build_agent, build_init
from .kernel import Kernel

QEMU = "qemu-system-x86_64"
BOOT_SECONDS = 120.0
ANSWER_SECONDS = 120.0
SPAN = 1 << 21
CHUNK = 2048  # bytes of a program in one message
INIT = 0xFF  # whom a message on the wire is for, beside the slots


# -- what the guest boots ------------------------------------------------------------------------


def initramfs(init: Path, files: Mapping[str, Path] = MappingProxyType({})) -> bytes:
    """A cpio archive (newc, see the kernel's buffer-format.rst) of init and of the devices that it uses.

    files: more, absolute names in the guest -> files and symbolic links of this machine.
    """
    archive = bytearray()

    def add(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0), mtime: int = 0) -> None:
        number = len(archive)  # any that differs from the others
        fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive.extend(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    parents = {str(parent)[1:] for name in files for parent in PurePosixPath(name).parents}
    for directory in sorted((parents - {""}) | {"dev", "proc", "tmp"}):
        add(directory, 0o040755)
    for name, path in files.items():
        if path.is_symlink():
            add(name[1:], stat.S_IFLNK | 0o777, os.fsencode(path.readlink()))
        else:
            status = path.stat()
            add(name[1:], status.st_mode, path.read_bytes(), mtime=int(status.st_mtime))
    add("dev/console", 0o020600, device=(5, 1))
    add("dev/ttyS1", 0o020600, device=(4, 65))
    add("dev/null", 0o020666, device=(1, 3))
    add("dev/urandom", 0o020666, device=(1, 9))
    add("init", 0o100755, init.read_bytes())
    add("TRAILER!!!", 0)
    return bytes(archive)


def is_kernel(path: Path) -> bool:
    """It is a kernel as x86 boot loaders load it (Documentation/arch/x86/boot.rst)."""
    with path.open("rb") as file:
        return file.read(0x206)[0x202:] == b"HdrS"


def _members(deb: IO[bytes]) -> Iterator[tuple[str, int]]:
    """(name, size) of each member of an ar archive, the file at its first byte."""
    if deb.read(8) != b"!<arch>\n":
        return
    while len(head := deb.read(60)) == 60:
        size, at = int(head[48:58]), deb.tell()
        yield head[:16].decode().strip().rstrip("/"), size
        deb.seek(at + size + size % 2)


def unpack_kernel(deb: Path, directory: Path) -> Path:
    """Put the kernel of a Debian package, and its configuration, into the directory. Returns the kernel's path."""
    image = None
    try:
        with deb.open("rb") as file:
            for name, size in _members(file):
                if not name.startswith("data.tar"):
                    continue
                with tarfile.open(fileobj=io.BytesIO(file.read(size)), mode="r|*") as tar:
                    for member in tar:
                        base = Path(member.name).name
                        if Path(member.name).parent.name == "boot" and base.startswith(("vmlinuz-", "config-")):
                            content = tar.extractfile(member)
                            assert content is not None
                            (directory / base).write_bytes(content.read())
                            image = directory / base if base.startswith("vmlinuz-") else image
                        elif image is not None:
                            break  # /boot comes first, and modules are large
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise BadInput(f"{deb}: not a Debian package that can be unpacked here: {error}") from None
    if image is None:
        raise BadInput(f"{deb}: no kernel in it (no boot/vmlinuz-...)")
    return image


# -- the guest -------------------------------------------------------------------------------------


class Guest(Kernel):
    """A running guest: use as a context manager, which ends it. One group of agents at a time runs in it.

    image: a bzImage, or a Debian package with one.  memory_mb: the guest's.  append: more for its command line.
    cpu, cpus: qemu's model, and how many.  files: more for its root, as initramfs() takes them.
    BadInput: it is no kernel, or does not boot.  Missing: no qemu.
    """

    def __init__(
        self,
        image: Path,
        *,
        memory_mb: int = 2048,
        append: str = "",
        cpu: str = "qemu64",
        cpus: int = 1,
        files: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.image = image
        self._scratch = tempfile.TemporaryDirectory(prefix="pterefd-guest-")
        self._qemu: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._lines: dict[int, bytes] = {}
        self._programs: set[str] = set()
        try:
            self._boot(memory_mb, append, cpu, cpus, files)
        except BaseException:
            self.close()
            raise

    def _boot(self, memory_mb: int, append: str, cpu: str, cpus: int, files: Mapping[str, Path]) -> None:
        scratch = Path(self._scratch.name)
        try:
            kernel = unpack_kernel(self.image, scratch) if self.image.suffix == ".deb" else self.image
            if not is_kernel(kernel):
                raise BadInput(f"{self.image}: not an x86 kernel image (bzImage)")
        except OSError as error:
            raise BadInput(f"{self.image}: {error.strerror}") from None
        if shutil.which(QEMU) is None:
            raise Missing(f"{QEMU}: not found (Debian: apt-get install qemu-system-x86)")
        (scratch / "initramfs").write_bytes(initramfs(build_init(), files))
        self._console = scratch / "console"
        # rootfstype: the root is a ramfs, not a tmpfs.  panic: a kernel that panics ends, for -no-reboot.
        # no_timer_check: on a busy machine the emulated timer comes too late for check_timer (arch/x86 io_apic.c).
        line = f"console=ttyS0 quiet panic=-1 rootfstype=ramfs no_timer_check {append}".strip()
        self._qemu = subprocess.Popen(
            [
                *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
                *("-accel", "tcg", "-cpu", cpu, "-smp", str(cpus), "-m", str(memory_mb)),
                *("-kernel", str(kernel), "-initrd", str(scratch / "initramfs"), "-append", line),
                *("-chardev", f"file,id=console,path={self._console}", "-device", "isa-serial,chardev=console"),
                *("-chardev", "stdio,id=wire,signal=off", "-device", "isa-serial,chardev=wire"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(scratch / "messages").open("wb"),
            bufsize=0,
        )
        try:
            self._result(BOOT_SECONDS)
        except AgentError as error:
            raise BadInput(f"{self.image}: does not boot: {error}") from None
        self.release = self.read("/proc/sys/kernel/osrelease").decode().strip()
        self.version = self.read("/proc/sys/kernel/version").decode().strip()
        self.config = self._config(kernel)

    def _config(self, kernel: Path) -> dict[str, str | bool | int]:
        """From a file beside the image, as /boot has it, or /proc/config.gz; else PT_RECLAIM alone, tried out."""
        if kernel.name.startswith("vmlinuz-"):
            beside = kernel.with_name(kernel.name.replace("vmlinuz-", "config-", 1))
            if beside.is_file():
                return parse_config(beside.read_text())
        try:
            return parse_config(gzip.decompress(self.read("/proc/config.gz")).decode())
        except OSError:
            return {"PT_RECLAIM": self._reclaims()}

    def _reclaims(self) -> bool:
        """Whether MADV_DONTNEED of a whole span frees its PTE page."""
        with self.agents() as agents:
            place = 1 << 45
            agents.first.ask(f"m {place:x} {SPAN:x} 3 4032 ffffffff 0")  # rw-, private anonymous fixed noreserve
            before = agents.first.ask(f"t {place:x} 1 1").counters.VmPTE
            return agents.first.ask(f"a {place:x} {SPAN:x} 4").counters.VmPTE < before

    # -- the wire ----------------------------------------------------------------------------------

    def _died(self, what: str) -> AgentError:
        """What qemu and the guest's kernel said last."""
        said = []
        for name in ("messages", "console"):
            path = Path(self._scratch.name) / name
            if path.exists():
                said += [line for line in path.read_text(errors="replace").splitlines() if line.strip()][-3:]
        return AgentError(f"{what}{': ' if said else ''}{' | '.join(said)}")

    def _more(self, deadline: float) -> None:
        """Read some bytes from the wire."""
        assert self._qemu is not None
        assert self._qemu.stdout is not None
        if not select.select([self._qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise self._died("the guest does not answer")
        got = os.read(self._qemu.stdout.fileno(), 1 << 16)
        if not got:
            raise self._died("the guest ended")
        self._unread += got

    def _message(self, deadline: float) -> tuple[int, bytes]:
        """The next message: from whom, and its bytes."""
        while b"\n" not in self._unread:
            self._more(deadline)
        head, _, self._unread = self._unread.partition(b"\n")
        sender, length = (int(word, 16) for word in head.split())
        while len(self._unread) < length:
            self._more(deadline)
        message, self._unread = self._unread[:length], self._unread[length:]
        return sender, message

    def send(self, to: int, message: bytes) -> None:
        """Send bytes to a slot's agent, or to INIT."""
        assert self._qemu is not None
        assert self._qemu.stdin is not None
        try:
            self._qemu.stdin.write(b"%x %x\n%s" % (to, len(message), message))
        except BrokenPipeError:
            raise self._died("the guest ended") from None

    def line(self, slot: int) -> bytes:
        """The next line of a slot's agent. AgentError where none comes."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._lines.get(slot, b""):
            sender, message = self._message(deadline)
            if not message:
                raise self._died(f"slot {slot}: closed")
            self._lines[sender] = self._lines.get(sender, b"") + message
        line, _, self._lines[slot] = self._lines[slot].partition(b"\n")
        return line

    def _result(self, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        """What init.c answers: a number and bytes. Messages of slots that come before it are kept."""
        deadline = time.monotonic() + seconds
        while True:
            sender, message = self._message(deadline)
            if sender == INIT:
                number, _, rest = message.partition(b"\n")
                return int(number), rest
            self._lines[sender] = self._lines.get(sender, b"") + message

    def ask(self, command: bytes) -> bytes:
        """A command of init.c. OSError where it answers an errno."""
        self.send(INIT, command)
        number, rest = self._result()
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return rest

    # -- what agents need ------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """A file of the guest's, /proc mostly."""
        return self.ask(b"r %s" % path.encode())

    def _install(self, agent: Path) -> str:
        """Copy a program into the guest, once. Returns its path there."""
        name = f"/{agent.name}"
        if name not in self._programs:
            data = agent.read_bytes()
            for at in range(0, len(data), CHUNK):
                self.ask(b"p %s\n%s" % (name.encode(), data[at : at + CHUNK]))
            self._programs.add(name)
        return name

    def start(self, program: str, argument: str) -> None:
        """Start a program of `files`. Its descriptor 10 leads here: line(0), send(0, ...)."""
        self.ask(b"a 1 %s %s" % (argument.encode(), program.encode()))

    def agents(self, agent: Path | None = None, *, thp: bool = False, slots: int = SLOTS) -> AgentGroup:
        return GuestGroup(self, self._install(agent or build_agent()), thp=thp, slots=slots)

    def console(self) -> str:
        """What its kernel and its programs have said."""
        return self._console.read_text(errors="replace")

    def end_agents(self) -> None:
        """Kill every agent."""
        self.ask(b"k")
        self._lines.clear()

    def close(self) -> None:
        """End the guest."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            for pipe in (self._qemu.stdin, self._qemu.stdout):
                if pipe is not None:
                    pipe.close()
            self._qemu = None
        self._scratch.cleanup()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class GuestProcess(Process):
    """An address space in a guest."""

    def __init__(self, guest: Guest, slot: int) -> None:
        super().__init__(slot)
        self._guest = guest

    def send(self, command: str) -> None:
        self._guest.send(self.slot, command.encode() + b"\n")

    def receive(self) -> Answer:
        return parse_answer(self._guest.line(self.slot))

    def maps(self) -> list[str]:
        return self._guest.read(f"/proc/{self.real_pid}/maps").decode().splitlines()

    def gone(self) -> None:
        try:
            self._guest.ask(b"w %x" % self.real_pid)
        except OSError:
            raise AgentError(f"slot {self.slot}: does not exit") from None


class GuestGroup(AgentGroup):
    """An agent in a guest and what it forks."""

    def __init__(self, guest: Guest, agent: str, *, thp: bool, slots: int) -> None:
        self._guest = guest
        guest.ask(b"a %x %s %s" % (slots, b"-t" if thp else b"-", agent.encode()))
        super().__init__(slots)

    def _process(self, slot: int) -> GuestProcess:
        return GuestProcess(self._guest, slot)

    def close(self) -> None:
        self.living.clear()
        self._guest.end_agents()
