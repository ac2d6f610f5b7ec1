"""The tree: nodes declared as tables, found by path, opened, read and written. Knows no FUSE.

As the kernel's ctl_table does, a table names each file once, with its mode, range, unit and help;
the directory listing, the range check and the documentation come from it. What a table's reader
and writer are handed:

    ctx   the Faces (faces.py): what the mount shows
    obj   what the nearest enclosing Family found: an mm's pid, a replay, a plugin's class; else None

mount.py maps paths and errnos of FUSE onto Tree and OpenFile, and does nothing else.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pterefd.procfs.intwrite import INT_MAX, INT_MIN, parse_int

Reader = Callable[[Any, Any], str | bytes | Iterator[str]]
IntWriter = Callable[[Any, Any, int], None]
TextWriter = Callable[[Any, Any, str], None]


class Opened(Protocol):
    """What an open file is to whoever serves it. Offsets and counts in bytes; all raise OSError."""

    def read(self, size: int, offset: int) -> bytes:
        """Up to size bytes from offset."""

    def write(self, data: bytes, offset: int) -> int:
        """The bytes taken."""

    def close(self) -> None:
        """The last descriptor is closed."""


class Attributes(NamedTuple):
    """What stat shows of a node. mode: type and permission bits."""

    mode: int
    nlink: int
    uid: int
    gid: int


Stat = Callable[[Any, Any], Attributes]
Opener = Callable[[Any, Any, int], Opened]


class Content(enum.Enum):
    """What a file holds, and so how the kernel reads and writes one like it."""

    TEXT = "text"  # fs/seq_file.c: generated at offset 0, later offsets from that snapshot
    INT = "int"  # kernel/sysctl.c proc_dointvec_minmax: reads beyond offset 0 are empty
    STRING = "string"  # kernel/sysctl.c proc_dostring: a name or a few
    STREAM = "stream"  # as TEXT, made while it is read: read returns an iterator of its parts


@dataclass(frozen=True, slots=True)
class File:
    """One file: a row of a table.

    mode: permission bits.  help: one sentence, for the docs.  unit: of the value, "" where it has none.
    low, high: inclusive range of an INT.  read: the text, without it the file cannot be opened for reading.
    write: takes the parsed value, int or stripped text, and returns when its effect is published.
    exists: False hides it: a knob that would have no effect.
    stat: what it shows, None: by mode and the family's owner.  open: opens it with the flags of open(2), for a file
    that is somebody else's to check and to read: read, write and content mean nothing then.
    """

    name: str
    mode: int
    help: str
    content: Content = Content.TEXT
    unit: str = ""
    low: int = INT_MIN
    high: int = INT_MAX
    read: Reader | None = None
    write: IntWriter | TextWriter | None = None
    exists: Callable[[Any, Any], bool] | None = None
    stat: Stat | None = None
    open: Opener | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link; target is what it reads as. exists, stat: as File's."""

    name: str
    help: str
    target: Callable[[Any, Any], str]
    exists: Callable[[Any, Any], bool] | None = None
    stat: Stat | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """Directories, or links, that come and go, all alike: one per mm, per replay, per plugin.

    label: how docs write the name (PID).  names: those there now.  find: the obj of a name, None where
    there is none.  each: the table of every one, or the link.  owner: (uid, gid) of obj's nodes, None for the daemon's.
    serial: a number that another of the same name does not have: an open file is about one of them.
    """

    label: str
    help: str
    names: Callable[[Any, Any], Iterable[str]]
    find: Callable[[Any, Any, str], Any]
    each: Dir | Link
    owner: Callable[[Any, Any], tuple[int, int]] | None = None
    serial: Callable[[Any, Any], int] | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Files that come from elsewhere (a plugin's tunables): make(ctx, obj) lists them.

    find: the one of a name, None where there is none; without it they are listed to find it.
    """

    label: str
    help: str
    make: Callable[[Any, Any], Iterable[File]]
    find: Callable[[Any, Any, str], File | None] | None = None

    def named(self, ctx: Any, obj: Any, name: str) -> File | None:
        """The file of a name; None where there is none."""
        if self.find is not None:
            return self.find(ctx, obj, name)
        return next((row for row in self.make(ctx, obj) if row.name == name), None)


@dataclass(frozen=True, slots=True)
class Dir:
    """A directory and its entries.

    exists: False hides it (no replay: no replay/).  obj: replaces the enclosing family's.  mode: permission bits.
    stat: as File's.
    """

    name: str
    entries: tuple[File | Link | Dir | Family | Rows, ...]
    help: str = ""
    exists: Callable[[Any, Any], bool] | None = None
    obj: Callable[[Any, Any], Any] | None = None
    mode: int = 0o555
    stat: Stat | None = None
    named: dict[str, File | Link | Dir] = field(init=False, repr=False, compare=False)
    dynamic: tuple[Family | Rows, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = [e for e in self.entries if isinstance(e, File | Link | Dir)]
        named = {row.name: row for row in rows}
        if len(named) != len(rows):
            raise ValueError(f"{self.name}: two entries of one name")
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "dynamic", tuple(e for e in self.entries if isinstance(e, Family | Rows)))


Entry = File | Link | Dir


class Found(NamedTuple):
    """What a path leads to: the entry, its obj, and the family that owns it."""

    entry: Entry
    obj: Any
    family: Family | None


class Tree:
    """A table, bound to what it shows. All methods raise OSError, as system calls do."""

    def __init__(self, root: Dir, ctx: Any) -> None:
        self.root = root
        self.ctx = ctx
        self.uid, self.gid = os.geteuid(), os.getegid()
        self._root = Found(root, None, None)
        # paths that lead through no family, a few dozen: what is there, and what says whether it is there now
        self._fixed: dict[str, tuple[Found, list[tuple[Callable[[Any, Any], bool], Any]]]] = {}

    # -- looking things up ------------------------------------------------------------------
    def find(self, path: str) -> Found:
        """The node at an absolute path; ENOENT or ENOTDIR where there is none."""
        known = self._fixed.get(path)
        if known is not None:
            found, conditions = known
            for exists, obj in conditions:
                if not exists(self.ctx, obj):
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return found
        found = self._root
        conditions = []
        fixed = True
        for name in path.split("/"):
            if name:
                found, stays = self._step(found, name, conditions)
                fixed &= stays
        if fixed:
            self._fixed[path] = found, conditions
        return found

    def _step(
        self, at: Found, name: str, conditions: list[tuple[Callable[[Any, Any], bool], Any]]
    ) -> tuple[Found, bool]:
        """One name further down; and whether it always leads to the same node, given its conditions."""
        if not isinstance(at.entry, Dir):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        child = at.entry.named.get(name)
        if child is not None:
            return self._static(at, child, conditions)
        for source in at.entry.dynamic:
            if isinstance(source, Family):
                obj = source.find(self.ctx, at.obj, name)
                if obj is not None:
                    return Found(source.each, obj, source), False
            else:
                row = source.named(self.ctx, at.obj, name)
                if row is not None:
                    return Found(row, at.obj, at.family), False
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _static(
        self, at: Found, child: Entry, conditions: list[tuple[Callable[[Any, Any], bool], Any]]
    ) -> tuple[Found, bool]:
        obj = at.obj
        if child.exists is not None:
            conditions.append((child.exists, obj))
            if not child.exists(self.ctx, obj):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if isinstance(child, Dir) and child.obj is not None:
            return Found(child, child.obj(self.ctx, obj), at.family), False
        return Found(child, obj, at.family), True

    def attributes(self, path: str) -> Attributes:
        """What stat says of the node at path."""
        found = self.find(path)
        if found.entry.stat is not None:
            return found.entry.stat(self.ctx, found.obj)
        uid, gid = self.uid, self.gid
        if found.family is not None and found.family.owner is not None:
            uid, gid = found.family.owner(self.ctx, found.obj)
        return Attributes(mode_of(found.entry), 2 if isinstance(found.entry, Dir) else 1, uid, gid)

    def listing(self, path: str) -> Iterator[tuple[str, int]]:
        """(name, type and permission bits) of each entry of a directory, without . and .."""
        found = self.find(path)
        if not isinstance(found.entry, Dir):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._listing(found.entry, found.obj)

    def _listing(self, directory: Dir, obj: Any) -> Iterator[tuple[str, int]]:
        for name, child in directory.named.items():
            if child.exists is None or child.exists(self.ctx, obj):
                yield name, mode_of(child)
        for source in directory.dynamic:
            if isinstance(source, Family):
                mode = mode_of(source.each)
                yield from ((name, mode) for name in source.names(self.ctx, obj))
            else:
                yield from ((row.name, mode_of(row)) for row in source.make(self.ctx, obj))

    def readlink(self, path: str) -> str:
        """The target of a symbolic link; EINVAL for anything else."""
        found = self.find(path)
        if not isinstance(found.entry, Link):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return found.entry.target(self.ctx, found.obj)

    # -- files --------------------------------------------------------------------------------
    def open(self, path: str, flags: int) -> Opened:
        """Open the file at path for reading or writing.

        EACCES where nobody may, root included, for files under sys (fs/proc/proc_sysctl.c
        proc_sys_permission); EISDIR for a directory.
        """
        found = self.find(path)
        node = found.entry
        if not isinstance(node, File):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if node.open is not None:
            return node.open(self.ctx, found.obj, flags)
        check_access(node, flags & os.O_ACCMODE)
        serial = found.family.serial if found.family is not None else None
        return OpenFile(node, self.ctx, found.obj, serial, append=bool(flags & os.O_APPEND))

    def truncate(self, path: str) -> None:
        """truncate(2), or what O_TRUNC does: nothing, where the file may be written."""
        found = self.find(path)
        if not isinstance(found.entry, File):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if found.entry.open is not None:
            found.entry.open(self.ctx, found.obj, os.O_WRONLY).close()
            return
        check_access(found.entry, os.O_WRONLY)


class OpenFile:
    """One open(): its snapshot, and where an appender stands.

    It is about the process, say, that had the name then (the kernel keeps its struct pid): ESRCH once that is gone.
    """

    __slots__ = (
        *("_appended", "_parts", "_reading", "_serial", "_serial_of", "_start"),
        *("append", "ctx", "node", "obj", "snapshot"),
    )

    def __init__(
        self,
        node: File,
        ctx: Any,
        obj: Any,
        serial_of: Callable[[Any, Any], int] | None = None,
        *,
        append: bool = False,
    ) -> None:
        """serial_of: as Family.serial."""
        self._serial_of = serial_of
        self._serial = serial_of(ctx, obj) if serial_of is not None else 0
        self.node = node
        self.ctx = ctx
        self.obj = obj
        self.append = append
        self._appended = 0
        self.snapshot: bytes | None = None
        self._reading = threading.Lock()  # of a stream: two threads may read one descriptor
        self._parts: Iterator[str] = iter(())  # ... what is still to come
        self._start = 0  # ... and the offset of what is kept of it

    def read(self, size: int, offset: int) -> bytes:
        """Up to size bytes from offset. Offset 0 renders anew; later offsets show what was rendered then."""
        if self.node.content is Content.INT and offset:
            return b""  # __do_proc_dointvec: *ppos && !write reads nothing
        if self.node.content is Content.STREAM:
            return self._read_on(size, offset)
        if self.snapshot is None or offset == 0:
            text = self._render()
            self.snapshot = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        return self.snapshot[offset : offset + size]

    def _check(self) -> None:
        if self._serial_of is not None and self._serial_of(self.ctx, self.obj) != self._serial:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))

    def _render(self) -> Any:
        if self.node.read is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._check()
        return self.node.read(self.ctx, self.obj)

    def _read_on(self, size: int, offset: int) -> bytes:
        """A stream is kept from the last read's offset on; who goes back further begins anew."""
        with self._reading:
            if self.snapshot is None or offset == 0 or offset < self._start:
                self._parts, self._start, self.snapshot = self._render(), 0, b""
            kept = bytearray(self.snapshot)
            while True:
                passed = min(offset - self._start, len(kept))
                del kept[:passed]
                self._start += passed
                part = next(self._parts, None) if len(kept) < size else None
                if part is None:
                    break
                kept += part.encode("utf-8", "surrogateescape")
            self.snapshot = bytes(kept)
            return self.snapshot[:size] if self._start == offset else b""

    def write(self, data: bytes, offset: int) -> int:
        """Write at offset; returns the bytes taken, after the effect is published.

        As with kernel.sysctl_writes_strict = 1, only what is written at offset 0 has an effect; the rest
        is taken and dropped. O_APPEND means nothing to proc: the first write of an open is at 0.
        """
        if self.node.write is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.append:
            offset, self._appended = self._appended, self._appended + len(data)
        if offset or not data:
            return len(data)
        self._check()
        if self.node.content is Content.INT:
            value, taken = parse_int(data, self.node.low, self.node.high)
            self.node.write(self.ctx, self.obj, value)  # type: ignore[arg-type]
            return taken
        self.node.write(self.ctx, self.obj, _text(data))  # type: ignore[arg-type]
        return len(data)

    def close(self) -> None:
        """Nothing is held but the snapshot."""


def mode_of(entry: Entry) -> int:
    """st_mode of an entry: links 0777, files and directories as their table says."""
    if isinstance(entry, Dir):
        return 0o040000 | entry.mode
    if isinstance(entry, Link):
        return 0o120777
    return 0o100000 | entry.mode


def check_access(node: File, access: int) -> None:
    """EACCES where the owner's bits do not allow it. The kernel has checked who asks; root it lets pass."""
    if node.content in (Content.TEXT, Content.STREAM) and node.write is None:
        return  # a plain proc file: root may open it for writing; the write is EINVAL
    wanted = 0o400 if access == os.O_RDONLY else 0o200 if access == os.O_WRONLY else 0o600
    if node.mode & wanted != wanted:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _text(data: bytes) -> str:
    """proc_dostring: up to a NUL or a newline; white space around it does not count."""
    return data.split(b"\0", 1)[0].split(b"\n", 1)[0].strip().decode("utf-8", "surrogateescape")
