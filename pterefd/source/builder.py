"""What a workload emits, as columns: the other side of hookspecs.Emit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.mm import events as ev
from pterefd.mm.events import Batch
from pterefd.source.rules import BadEvent, flags_bits
from pterefd.source.schema import ADDRESS_END, FILE_END, INT64_MAX, PAGE_SIZE, PROTS
from pterefd.source.space import HEAP_START, Space, pages

I64 = npt.NDArray[np.int64]
T, PID, OP, ADDR, LEN, ARG = range(6)  # rows of a chunk
_PENDING = 4096  # events added one by one before they become a chunk
_UNALIGNED = PAGE_SIZE - 1
_PLAIN = ev.MAP_PRIVATE | ev.MAP_ANONYMOUS


class Builder:
    """Implements hookspecs.Emit for one run of a workload.

    highest_pid: a pid or tid above it is refused.  BadEvent: an event that no recording could hold.
    Invariant: `emitted` counts all events; of these the last `waiting` have not been taken.
    """

    def __init__(self, highest_pid: int) -> None:
        self.now = 0
        self.emitted = 0
        self.waiting = 0
        self._highest = highest_pid
        self._taken = 0
        self._spaces: dict[int, Space] = {}
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._chunks: list[I64] = []  # each int64[6, n]
        self._ext: list[tuple[int, int, int, int, int]] = []  # of the mmaps and mremaps that wait
        self._side: list[dict[str, Any]] = []  # of the execs that wait
        self._paths: list[str] = []
        self._path_index: dict[str, int] = {}

    # ---- what has been emitted --------------------------------------------------------------------

    def take(self, most: int) -> Batch:
        """The first of the events that wait, at most so many."""
        n = min(most, self.waiting)
        self._chunk_rows()
        parts, have = [], 0
        while have < n:
            chunk = self._chunks.pop(0)
            rest = n - have
            if chunk.shape[1] > rest:
                self._chunks.insert(0, chunk[:, rest:])
                chunk = chunk[:, :rest]
            parts.append(chunk)
            have += chunk.shape[1]
        columns = np.concatenate(parts, axis=1) if parts else np.zeros((6, 0), dtype=np.int64)
        batch = self._batch(columns, n)
        self.waiting -= n
        self._taken += n
        return batch

    def _batch(self, columns: I64, n: int) -> Batch:
        op, arg = columns[OP].astype(np.uint8), columns[ARG]
        with_ext = np.flatnonzero((op == ev.OP_MMAP) | (op == ev.OP_MREMAP))
        arg[with_ext] = np.arange(len(with_ext))
        execs = np.flatnonzero(op == ev.OP_EXEC)
        arg[execs] = np.arange(len(execs))
        ext, self._ext = self._ext[: len(with_ext)], self._ext[len(with_ext) :]
        side, self._side = self._side[: len(execs)], self._side[len(execs) :]
        return Batch(
            t=columns[T],
            pid=columns[PID].astype(np.int32),
            op=op,
            addr=columns[ADDR],
            len=columns[LEN],
            arg=arg,
            err=np.zeros(n, dtype=np.int16),
            ext=np.array(ext, dtype=np.int64).reshape(-1, ev.EXT_COLUMNS),
            side=side,
            paths=self._paths,
            first=self._taken,
        )

    def _chunk_rows(self) -> None:
        if self._rows:
            self._chunks.append(np.ascontiguousarray(np.array(self._rows, dtype=np.int64).T))
            self._rows = []

    def _one(self, op: int, pid: int, addr: int = 0, length: int = 0, arg: int = 0) -> None:
        self._rows.append((self.now, pid, op, addr, length, arg))
        self.waiting += 1
        self.emitted += 1
        if len(self._rows) >= _PENDING:
            self._chunk_rows()

    def _many(self, op: int, pid: int, addr: Any, length: Any, arg: Any, spacing: int) -> None:
        """An event for each element, or one."""
        spacing = operator.index(spacing)
        if spacing < 0:
            raise BadEvent(f"{ev.OPS[op]}: spacing {spacing} is negative")
        self._space(op, pid)
        if type(addr) is int and type(length) is int and not isinstance(arg, np.ndarray):
            self._check_range(op, addr, length)
            self._one(op, pid, addr, length, int(arg))
            self.now += spacing
            return
        at, size, what = np.broadcast_arrays(_whole(op, "addr", addr), _whole(op, "length", length), np.asarray(arg))
        at, size, what = at.ravel(), size.ravel(), what.ravel()
        n = len(at)
        if n == 0:
            return
        self._check_ranges(op, at, size)
        self._check_time(self.now + spacing * n)
        self._chunk_rows()
        chunk = np.empty((6, n), dtype=np.int64)
        chunk[T] = self.now + spacing * np.arange(n) if spacing else self.now
        chunk[PID], chunk[OP], chunk[ADDR], chunk[LEN], chunk[ARG] = pid, op, at, size, what
        self._chunks.append(chunk)
        self.now += spacing * n
        self.waiting += n
        self.emitted += n

    # ---- checks -----------------------------------------------------------------------------------

    def _space(self, op: int, pid: int) -> Space:
        try:
            return self._spaces[pid]
        except KeyError:
            raise BadEvent(
                f"{ev.OPS[op]}: pid {pid} was never started here (no exec or fork, or it has exited)"
            ) from None

    def _check_id(self, op: int, what: str, number: int) -> None:
        if not 1 <= number <= self._highest:
            raise BadEvent(f"{ev.OPS[op]}: {what} {number} is not in 1..{self._highest}, the workload's highest_pid")

    @staticmethod
    def _check_range(op: int, addr: int, length: int) -> None:
        if (addr | length) & _UNALIGNED or length <= 0 or addr < 0 or addr + length > ADDRESS_END:
            raise BadEvent(
                f"{ev.OPS[op]}: addr {addr:#x} and length {length:#x} are no range of whole pages below 2^47"
            )

    def _check_ranges(self, op: int, addr: I64, length: I64) -> None:
        both = int(np.bitwise_or.reduce(addr) | np.bitwise_or.reduce(length))
        if both & _UNALIGNED or addr.min() < 0 or length.min() <= 0 or (addr + length).max() > ADDRESS_END:
            for start, size in zip(addr.tolist(), length.tolist(), strict=True):
                self._check_range(op, start, size)

    @staticmethod
    def _check_time(time_ns: int) -> None:
        if time_ns > INT64_MAX:
            raise BadEvent(f"time {time_ns} ns does not fit 63 bits")

    @staticmethod
    def _prot(op: int, prot: str) -> int:
        try:
            return PROTS[prot]
        except KeyError:
            raise BadEvent(f"{ev.OPS[op]}: prot {prot!r} is not three of rwx or -") from None

    def _path(self, path: str) -> int:
        if path not in self._path_index:
            self._path_index[path] = len(self._paths)
            self._paths.append(path)
        return self._path_index[path]

    # ---- hookspecs.Emit ---------------------------------------------------------------------------

    def at(self, time_ns: int) -> None:
        """As Emit.at."""
        time_ns = operator.index(time_ns)
        if time_ns < self.now:
            raise BadEvent(f"at({time_ns}): it is {self.now} ns already")
        self._check_time(time_ns)
        self.now = time_ns

    def sleep(self, ns: int) -> None:
        """As Emit.sleep."""
        self.at(self.now + operator.index(ns))

    def exec(
        self,
        pid: int,
        comm: str,
        *,
        cmdline: Sequence[str] = (),
        uid: int | None = None,
        gid: int | None = None,
        oom_score_adj: int | None = None,
    ) -> None:
        """As Emit.exec."""
        self._check_id(ev.OP_EXEC, "pid", pid)
        given = {"uid": uid, "gid": gid, "oom_score_adj": oom_score_adj, "cmdline": list(cmdline) or None}
        self._side.append({"comm": comm[:15], **{name: value for name, value in given.items() if value is not None}})
        self._spaces[pid] = Space()
        self._one(ev.OP_EXEC, pid)

    def fork(self, pid: int, child: int) -> None:
        """As Emit.fork."""
        space = self._space(ev.OP_FORK, pid)
        self._check_id(ev.OP_FORK, "child", child)
        if child in self._spaces:
            raise BadEvent(f"fork: child {child} is a pid that is still running")
        self._spaces[child] = space.copy()
        self._one(ev.OP_FORK, pid, arg=child)

    def exit(self, pid: int) -> None:
        """As Emit.exit."""
        self._space(ev.OP_EXIT, pid)
        del self._spaces[pid]
        self._one(ev.OP_EXIT, pid)

    def thread(self, pid: int, tid: int) -> None:
        """As Emit.thread."""
        self._space(ev.OP_THREAD, pid)
        self._check_id(ev.OP_THREAD, "tid", tid)
        self._one(ev.OP_THREAD, pid, arg=tid)

    def thread_exit(self, pid: int, tid: int) -> None:
        """As Emit.thread_exit."""
        self._space(ev.OP_THREAD_EXIT, pid)
        self._check_id(ev.OP_THREAD_EXIT, "tid", tid)
        self._one(ev.OP_THREAD_EXIT, pid, arg=tid)

    def mmap(
        self,
        pid: int,
        length: int,
        *,
        addr: int | None = None,
        prot: str = "rw-",
        flags: str = "private,anonymous",
        path: str | None = None,
        offset: int = 0,
        file_size: int | None = None,
    ) -> int:
        """As Emit.mmap."""
        space = self._space(ev.OP_MMAP, pid)
        length, bits = pages(operator.index(length)), flags_bits(flags)
        where = self._place(ev.OP_MMAP, space, length, bits & _PLAIN == _PLAIN) if addr is None else addr
        self._check_range(ev.OP_MMAP, where, length)
        of_file = path is not None
        if offset % PAGE_SIZE or not 0 <= offset <= FILE_END:
            raise BadEvent(f"mmap: offset {offset} is not page-aligned ({PAGE_SIZE})")
        self._ext.append(
            (
                self._prot(ev.OP_MMAP, prot),
                bits,
                -1 if path is None else self._path(path),
                offset if of_file else -1,
                -1 if file_size is None else file_size,
            )
        )
        space.take(where, where + length)
        self._one(ev.OP_MMAP, pid, where, length)
        return where

    @staticmethod
    def _place(op: int, space: Space, length: int, huge: bool) -> int:
        where = space.place(length, huge) if length > 0 else 0
        if where is None:
            raise BadEvent(f"{ev.OPS[op]}: no {length} bytes of address space are free in one piece")
        return where

    def munmap(self, pid: int, addr: int, length: int) -> None:
        """As Emit.munmap."""
        self._many(ev.OP_MUNMAP, pid, addr, length, 0, 0)
        self._spaces[pid].free(addr, addr + length)

    def mremap(
        self, pid: int, addr: int, length: int, new_length: int, *, new_addr: int | None = None, dontunmap: bool = False
    ) -> int:
        """As Emit.mremap."""
        space = self._space(ev.OP_MREMAP, pid)
        new_length = pages(operator.index(new_length))
        self._check_range(ev.OP_MREMAP, addr, length)
        if new_addr is not None:
            where = new_addr
        elif not dontunmap and (new_length <= length or space.is_free(addr + length, addr + new_length)):
            where = addr
        else:
            where = self._place(ev.OP_MREMAP, space, new_length, True)
        self._check_range(ev.OP_MREMAP, where, new_length)
        if not dontunmap:
            space.free(addr, addr + length)
        space.take(where, where + new_length)
        self._ext.append((where, new_length, int(dontunmap), 0, 0))
        self._one(ev.OP_MREMAP, pid, addr, length)
        return where

    def mprotect(self, pid: int, addr: int, length: int, prot: str) -> None:
        """As Emit.mprotect."""
        self._many(ev.OP_MPROTECT, pid, addr, length, self._prot(ev.OP_MPROTECT, prot), 0)

    def brk(self, pid: int, addr: int | None = None) -> int:
        """As Emit.brk."""
        space = self._space(ev.OP_BRK, pid)
        first = not space.brk_end
        old = space.brk_end or HEAP_START
        if addr is None and not first:
            return old
        end = old if addr is None else pages(operator.index(addr))
        if end < HEAP_START or end >= ADDRESS_END or (end > old and not space.is_free(old, end + PAGE_SIZE)):
            raise BadEvent(f"brk: the heap cannot end at {end:#x}")
        space.free(HEAP_START, old)
        if end > HEAP_START:
            space.take(HEAP_START, end)
        space.brk_end = end
        self._one(ev.OP_BRK, pid, end, arg=HEAP_START if first else 0)
        return end

    def madvise(self, pid: int, addr: Any, length: Any, advice: str, *, spacing: int = 0) -> None:
        """As Emit.madvise."""
        if advice not in ev.ADVICE_CODE:
            raise BadEvent(f"madvise: advice {advice!r} is none")
        self._many(ev.OP_MADVISE, pid, addr, length, ev.ADVICE_CODE[advice], spacing)

    def mlock(self, pid: int, addr: int, length: int, *, onfault: bool = False) -> None:
        """As Emit.mlock."""
        self._many(ev.OP_MLOCK, pid, addr, length, int(onfault), 0)

    def munlock(self, pid: int, addr: int, length: int) -> None:
        """As Emit.munlock."""
        self._many(ev.OP_MUNLOCK, pid, addr, length, 0, 0)

    def fault(
        self,
        pid: int,
        addr: Any,
        length: Any = PAGE_SIZE,
        *,
        write: bool | npt.NDArray[np.bool_] = True,
        spacing: int = 0,
    ) -> None:
        """As Emit.fault."""
        self._many(ev.OP_FAULT, pid, addr, length, write, spacing)

    def swap_out(self, pid: int, addr: Any, length: Any = PAGE_SIZE, *, dropped: bool = False) -> None:
        """As Emit.swap_out."""
        self._many(ev.OP_SWAP_OUT, pid, addr, length, int(dropped), 0)

    def cache(self, path: str, offset: int, length: int) -> None:
        """As Emit.cache."""
        if not 0 <= offset <= FILE_END or not 0 < length <= FILE_END:
            raise BadEvent(f"cache: offset {offset} and length {length} are no part of a file")
        self._one(ev.OP_CACHE, 0, offset, length, self._path(path))

    def truncate(self, path: str, length: int) -> None:
        """As Emit.truncate."""
        if not 0 <= length <= FILE_END:
            raise BadEvent(f"truncate: length {length} is no file's size")
        self._one(ev.OP_TRUNCATE, 0, 0, length, self._path(path))

    def thp(self, pid: int, disabled: bool) -> None:
        """As Emit.thp."""
        self._space(ev.OP_THP, pid)
        self._one(ev.OP_THP, pid, arg=int(disabled))

    def free_ptes(self, pid: int) -> None:
        """As Emit.free_ptes."""
        self._space(ev.OP_FREE_PTES, pid)
        self._one(ev.OP_FREE_PTES, pid)


def _whole(op: int, what: str, value: Any) -> I64:
    """int64 array of addresses or lengths."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise BadEvent(f"{ev.OPS[op]}: {what} holds {array.dtype}, it must be integers")
    return array.astype(np.int64, copy=False)
