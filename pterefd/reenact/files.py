"""Files in place of those that a trace maps: as long, and as much of them in the page cache."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pterefd.engine.layout import OBJ_DEV_ZERO, OBJ_SHMEM
from pterefd.host.host import kind_of_path
from pterefd.reenact.agent import FILE_DISK, FILE_MEMFD, FILE_ZERO, Process
from pterefd.reenact.calls import PAGE
from pterefd.reenact.operations import Row, Survey

FIRST_FD = 200  # above what agents and their slots use
LAST_FD = 1000  # below the usual RLIMIT_NOFILE
CACHED_BYTES = 256 << 20  # files that the trace says nothing of are written up to this, all together; others are sparse
PAGES_AT_ONCE = 4096  # written by one command, which must answer in time

SHMEM, ZERO = OBJ_SHMEM, OBJ_DEV_ZERO


@dataclass(slots=True)
class Substitute:
    """A file of ours. fd: in the agents.  size: bytes.  shmem: in RssShmem."""

    fd: int
    size: int
    shmem: bool
    zero: bool


class Files:
    """The substitutes of a trace's files, made by the agent that all others are forked from.

    left_out: what could not be done as it was, by kind.
    """

    def __init__(self, keeper: Process, survey: Survey, left_out: Counter[str]) -> None:
        self._keeper = keeper
        self._told = survey.told
        self._left_out = left_out
        self._files: dict[str, Substitute] = {}
        self._room = CACHED_BYTES
        self._fd = FIRST_FD

    def get(self, path: str) -> Substitute | None:
        """The path's substitute, where it has one."""
        return self._files.get(path)

    def make(self, survey: Survey) -> Iterator[Row]:
        """Make all that the trace maps, smallest first. Yields what the trace of it must say: sizes, cached pages."""
        for path, size in sorted(survey.sizes.items(), key=lambda item: item[1]):
            kind = {SHMEM: FILE_MEMFD, ZERO: FILE_ZERO}.get(kind_of_path(path), FILE_DISK)
            answer = self._keeper.ask(f"o {self._fd:x} {kind:x}") if self._fd <= LAST_FD else None
            if answer is None or answer.errno:
                why = "more files than descriptors" if answer is None else errno.errorcode[answer.errno]
                self._left_out[f"files that could not be made ({why})"] += 1
                continue
            file = self._files[path] = Substitute(self._fd, 0, kind == FILE_MEMFD, kind == FILE_ZERO)
            self._fd += 1
            if not file.zero:
                yield from self.grow(path, size)

    def grow(self, path: str, size: int) -> Iterator[Row]:
        """The file has this size from now on, if it was shorter; what is new is in the page cache, as far as known."""
        file = self._files[path]
        if size <= file.size:
            return
        begin, file.size = file.size, size
        self._keeper.ask(f"z {file.fd:x} {size:x}")
        yield {"op": "truncate", "path": path, "len": size}
        if file.shmem or path in self._told:
            return
        if size - begin > self._room:
            self._left_out["file pages in the page cache (the file was left sparse)"] += (size - begin) // PAGE
            return
        self._room -= size - begin
        yield from self.cache(path, begin // PAGE * PAGE, size - begin // PAGE * PAGE)

    def cache(self, path: str, offset: int, length: int) -> Iterator[Row]:
        """Pages of the file are in the page cache."""
        file = self._files[path]
        page, last = offset // PAGE, -(-(offset + length) // PAGE)
        for at in range(page, last, PAGES_AT_ONCE):
            answer = self._keeper.ask(f"c {file.fd:x} {at:x} {min(PAGES_AT_ONCE, last - at):x}")
            if answer.errno:
                self._left_out[f"file pages in the page cache ({errno.errorcode[answer.errno]})"] += last - at
                return
        if last * PAGE > file.size:
            self._keeper.ask(f"z {file.fd:x} {file.size:x}")
        yield {"op": "cache", "path": path, "offset": offset, "len": length}

    def truncate(self, path: str, size: int) -> Iterator[Row]:
        """The file's new size."""
        file = self._files[path]
        file.size = size
        self._keeper.ask(f"z {file.fd:x} {size:x}")
        yield {"op": "truncate", "path": path, "len": size}
