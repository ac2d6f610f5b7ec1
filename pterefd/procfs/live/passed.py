"""Files, links and directories that are the kernel's own, opened and read as whoever asks; none may be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from pterefd.procfs.live.caller import LiveCallers, Task, attributes
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.tree import Attributes, Dir, File, Link, Opened, Rows

Rewrite = Callable[[LiveCallers, bytes, Task], bytes]
_WRITE_BITS = 0o222
_STEP = 1 << 17


def check_reading(flags: int) -> None:
    """EACCES for who would write."""
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


class Passed:
    """An open file of the kernel's, which stays that of the process that had the name then. Read as who reads."""

    def __init__(self, fd: int, reading: Callable[[], Any]) -> None:
        """reading: a context around each read."""
        self._fd = fd
        self._reading = reading

    def read(self, size: int, offset: int) -> bytes:
        """As pread(2)."""
        with self._reading():
            return os.pread(self._fd, size, offset)

    def whole(self) -> bytes:
        """All of it."""
        text = bytearray()
        while part := self.read(_STEP, len(text)):
            text += part
        return bytes(text)

    def write(self, _data: bytes, _offset: int) -> int:
        """EBADF: it is never open for writing."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        """Closes the kernel's."""
        os.close(self._fd)


class Rendered:
    """An open file that is rendered anew at offset 0; later offsets show what was rendered then."""

    def __init__(self, render: Callable[[], bytes], close: Callable[[], None] = lambda: None) -> None:
        self._render = render
        self._close = close
        self._text: bytes | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Up to size bytes from offset."""
        if self._text is None or offset == 0:
            self._text = self._render()
        return self._text[offset : offset + size]

    def write(self, _data: bytes, _offset: int) -> int:
        """EBADF: it is never open for writing."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        """What it was rendered from goes."""
        self._close()


# -- of a process ----------------------------------------------------------------------------------


@cache
def _known_names(directory: str) -> frozenset[str]:
    """What this kernel has for every process: its configuration decides, and its release."""
    return frozenset(os.listdir(directory))


def _exists(name: str) -> Callable[[LiveFaces, Task], bool]:
    """Whether this kernel has a file of the name, of processes or of threads."""

    def exists(faces: LiveFaces, task: Task) -> bool:
        of_a_thread = "/" in task.directory
        own = f"{faces.callers.proc}/{'thread-self' if of_a_thread else 'self'}"
        directory, _, last = name.rpartition("/")
        return last in _known_names(f"{own}/{directory}")

    return exists


def _stat(name: str) -> Callable[[LiveFaces, Task], Attributes]:
    return lambda faces, task: faces.callers.stat(task, name)


def file(name: str, help: str, mode: int = 0o444, rewrite: Rewrite | None = None) -> File:
    """A file of a process. name: its path below the process's directory.  rewrite: of its ids."""

    def opened(faces: LiveFaces, task: Task, flags: int) -> Opened:
        check_reading(flags)
        them = faces.callers
        fd = them.open(task, name)

        def reading() -> Any:
            return them.as_caller(them.again(task), name)

        passed = Passed(fd, reading)
        return passed if rewrite is None else Rendered(lambda: rewrite(them, passed.whole(), task), passed.close)

    return File(name.rpartition("/")[2], mode, help, exists=_exists(name), stat=_stat(name), open=opened)


def link(name: str, help: str) -> Link:
    """A link of a process, which reads as the kernel's; whoever follows it gets to what is there in his own root."""
    return Link(
        name.rpartition("/")[2],
        help,
        lambda faces, task: faces.callers.readlink(task, name),
        exists=_exists(name),
        stat=_stat(name),
    )


def directory(name: str, help: str, *entries: Any, mode: int = 0o555) -> Dir:
    """A directory of a process."""
    return Dir(name.rpartition("/")[2], entries, help, exists=_exists(name), mode=mode, stat=_stat(name))


def files_of(name: str, help: str) -> Rows:
    """Whatever files the kernel has in a directory of a process."""

    def rows(faces: LiveFaces, task: Task) -> Iterator[File]:
        them = faces.callers
        with them.as_caller(task, name), os.scandir(them.path(task, name)) as found:
            names = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        for each in names:
            yield _one_of(f"{name}/{each}", help)

    return Rows("NAME", help, rows)


@cache
def _one_of(name: str, help: str) -> File:
    row = file(name, help)
    return File(row.name, row.mode, help, stat=row.stat, open=row.open)


# -- of the machine --------------------------------------------------------------------------------


def machine_file(name: str, help: str, *, read_only: bool = False) -> File:
    """A file of the kernel's /proc, by its path there. read_only: its mode is shown without the write bits."""

    def stat(faces: LiveFaces, _: object) -> Attributes:
        them = faces.callers
        with them.as_caller():
            found = attributes(os.lstat(f"{them.proc}/{name}"))
        return found._replace(mode=found.mode & ~_WRITE_BITS) if read_only else found

    def opened(faces: LiveFaces, _: object, flags: int) -> Opened:
        check_reading(flags)
        them = faces.callers
        with them.as_caller():
            fd = os.open(f"{them.proc}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return Passed(fd, them.as_caller)

    def exists(faces: LiveFaces, _: object) -> bool:
        return os.path.lexists(f"{faces.callers.proc}/{name}")

    return File(name.rpartition("/")[2], 0o444, help, exists=exists, stat=stat, open=opened)


def machine_files_of(name: str, help: str, *, besides: frozenset[str] = frozenset()) -> Rows:
    """Whatever files the kernel has in a directory of its /proc, without those that may only be written.

    besides: names that are pterefd's own there.
    """

    def rows(faces: LiveFaces, _: object) -> Iterator[File]:
        them = faces.callers
        with them.as_caller(), os.scandir(f"{them.proc}/{name}") as found:
            names = [
                entry.name
                for entry in found
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mode & 0o444
            ]
        for each in names:
            if each not in besides:
                yield _one_of_the_machine(f"{name}/{each}", help)

    return Rows("NAME", help, rows)


@cache
def _one_of_the_machine(name: str, help: str) -> File:
    return machine_file(name, help, read_only=True)
