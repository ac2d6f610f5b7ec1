"""Files, links and directories that are the kernel's own, opened and read as whoever asks; none may be written."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from pterefd.procfs.live.caller import LiveCallers, Task
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.tree import Attributes, Dir, Family, File, Link, Opened, Rows

Rewrite = Callable[[LiveCallers, bytes, Task], bytes]
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


class Place(NamedTuple):
    """A file or directory of the kernel's. task: None: path is below /proc, else below the directory of the task."""

    task: Task | None
    path: str


Where = Callable[[Any], Place]  # of what a family found


def _of_a_task(name: str) -> Where:
    return lambda task: Place(task, name)


def _of_the_machine(name: str) -> Where:
    return lambda _: Place(None, name)


def _stat(where: Where, shown: int = 0o177777) -> Callable[[LiveFaces, Any], Attributes]:
    """shown: bits of the mode."""

    def stat(faces: LiveFaces, obj: Any) -> Attributes:
        found = faces.callers.stat(*where(obj))
        return found._replace(mode=found.mode & shown)

    return stat


def _open(where: Where, rewrite: Rewrite | None = None) -> Callable[[LiveFaces, Any, int], Opened]:
    def opened(faces: LiveFaces, obj: Any, flags: int) -> Opened:
        check_reading(flags)
        them, (task, path) = faces.callers, where(obj)
        fd = them.open(task, path)

        def reading() -> Any:
            return them.as_caller(None if task is None else them.again(task), path)

        passed = Passed(fd, reading)
        if rewrite is None or task is None:
            return passed
        return Rendered(lambda: rewrite(them, passed.whole(), task), passed.close)

    return opened


@cache
def _known_names(directory: str) -> frozenset[str]:
    """What this kernel has in it: its release and its configuration decide."""
    return frozenset(os.listdir(directory))


def _exists(where: Where) -> Callable[[LiveFaces, Any], bool]:
    """Whether this kernel has a file of the name, of processes, of threads, or of the machine."""

    def exists(faces: LiveFaces, obj: Any) -> bool:
        task, path = where(obj)
        directory, _, name = path.rpartition("/")
        if task is not None:
            directory = f"{'thread-self' if '/' in task.directory else 'self'}/{directory}"
        try:
            return name in _known_names(f"{faces.callers.proc}/{directory}")
        except OSError:
            return False

    return exists


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def file(path: str, help: str, mode: int = 0o444, rewrite: Rewrite | None = None) -> File:
    """A file of a process. path: below the process's directory.  mode: for the docs.  rewrite: of its ids."""
    where = _of_a_task(path)
    return File(_last(path), mode, help, exists=_exists(where), stat=_stat(where), open=_open(where, rewrite))


def machine_file(path: str, help: str) -> File:
    """A file of the machine. path: below /proc."""
    where = _of_the_machine(path)
    return File(_last(path), 0o444, help, exists=_exists(where), stat=_stat(where), open=_open(where))


def link(name: str, help: str) -> Link:
    """A link of a process, which reads as the kernel's; whoever follows it gets to what is there in his own root."""
    where = _of_a_task(name)
    return Link(name, help, lambda faces, task: faces.callers.readlink(task, name), _exists(where), _stat(where))


def directory(name: str, help: str, *entries: Any, mode: int = 0o555) -> Dir:
    """A directory of a process, of these entries."""
    where = _of_a_task(name)
    return Dir(name, entries, help, exists=_exists(where), mode=mode, stat=_stat(where))


# -- directories as they are -----------------------------------------------------------------------

_DEPTH = 5  # of /proc/sys/net/ipv4/conf/eth0


def mirrored(name: str, help: str, below: str) -> Dir:
    """A directory of a process with all that the kernel has there. below: what one of its files is."""
    where = _of_a_task(name)
    return Dir(name, _all_of(below), help, exists=_exists(where), obj=lambda _, task: where(task), stat=_place_stat())


def mirrored_knobs(path: str, below: str, *, besides: frozenset[str] = frozenset()) -> tuple[Rows, Family]:
    """What the kernel has in a directory below /proc, for reading only. besides: names that are pterefd's own there."""
    return _all_of(below, _of_the_machine(path), besides, 0o177555)


def _place_stat(shown: int = 0o177777) -> Callable[[LiveFaces, Any], Attributes]:
    return _stat(lambda place: place, shown)


def _all_of(
    help: str,
    where: Where = lambda place: place,
    besides: frozenset[str] = frozenset(),
    shown: int = 0o177777,
    depth: int = _DEPTH,
) -> tuple[Rows, Family]:
    """The files and the directories of a directory. where: it is."""

    def entries(faces: LiveFaces, obj: Any, *, directories: bool) -> list[str]:
        task, path = where(obj)
        them = faces.callers
        with them.as_caller(task, path), os.scandir(them.place(task, path)) as found:
            return [e.name for e in found if e.is_dir(follow_symlinks=False) == directories and e.name not in besides]

    @lru_cache(maxsize=4096)
    def row(name: str) -> File:
        def there(obj: Any) -> Place:
            task, path = where(obj)
            return Place(task, f"{path}/{name}")

        return File(name, 0o444, help, stat=_stat(there, shown), open=_open(there))

    def kind(faces: LiveFaces, obj: Any, name: str) -> int:
        task, path = where(obj)
        if name in besides:
            return 0
        try:
            return stat_module.S_IFMT(faces.callers.stat(task, f"{path}/{name}").mode)
        except OSError:
            return 0

    def find_file(faces: LiveFaces, obj: Any, name: str) -> File | None:
        return row(name) if kind(faces, obj, name) == stat_module.S_IFREG else None

    def find_directory(faces: LiveFaces, obj: Any, name: str) -> Place | None:
        task, path = where(obj)
        return Place(task, f"{path}/{name}") if kind(faces, obj, name) == stat_module.S_IFDIR else None

    inside = _all_of(help, shown=shown, depth=depth - 1) if depth else ()
    files = Rows("NAME", help, lambda faces, obj: map(row, entries(faces, obj, directories=False)), find_file)
    return files, Family(
        "DIRECTORY",
        f"Directories within. {help}",
        lambda faces, obj: entries(faces, obj, directories=True),
        find_directory,
        Dir("DIRECTORY", inside, stat=_place_stat(shown)),
    )
