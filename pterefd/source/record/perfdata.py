"""Reading perf.data, perf's own file, without perf: header, tracepoint formats, records as columns.

The layout is that of tools/perf/Documentation/perf.data-file-format.txt and of include/uapi/linux/perf_event.h.
Records are walked once by a compiled loop; fields are then gathered by numpy for a whole kind of event at a time.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pterefd.errors import BadInput

I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

MAGIC = b"PERFILE2"
_FILE_HEADER = struct.Struct("<8s8Q")  # magic, size, attr size, 3 sections; the feature bits follow
_FEATURES = struct.Struct("<4Q")
_ATTR = struct.Struct("<IIQQQQQ")  # type, size, config, period, sample_type, read_format, flags
_SECTION = struct.Struct("<QQ")

HEADER_TRACING_DATA = 1
HEADER_OSRELEASE = 4
HEADER_VERSION = 5
HEADER_ARCH = 6
HEADER_CMDLINE = 11
_TEXT_FEATURES = {HEADER_OSRELEASE: "osrelease", HEADER_VERSION: "version", HEADER_ARCH: "arch"}

PERF_TYPE_TRACEPOINT = 2

# sample_type bits, in the order in which the fields stand in a sample
IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID, RAW = (1 << bit for bit in range(11))
IDENTIFIER = 1 << 16
_ORDER = (IDENTIFIER, IP, TID, TIME, ADDR, ID, STREAM_ID, CPU, PERIOD)
_FLAG_SAMPLE_ID_ALL = 1 << 18  # bits of perf_event_attr's flag word
_FLAG_USE_CLOCKID = 1 << 25

MMAP, LOST, COMM, EXIT, FORK, SAMPLE, MMAP2, LOST_SAMPLES = 1, 2, 3, 4, 7, 9, 10, 13
COMPRESSED, COMPRESSED2, AUXTRACE, FINISHED_ROUND = 81, 83, 71, 68
_SIDE = (LOST, COMM, EXIT, FORK, MMAP2, LOST_SAMPLES)
MISC_COMM_EXEC = 1 << 13


class PerfDataError(BadInput):
    """A perf.data that cannot be read as it is."""


@dataclass(slots=True)
class Field:
    """One field of a tracepoint: where it is in the raw data, how wide, whether signed."""

    offset: int
    size: int
    signed: bool


@dataclass(slots=True)
class Format:
    """A tracepoint as its format file describes it."""

    system: str
    name: str
    id: int
    fields: dict[str, Field]


_FIELD = re.compile(r"field:[^;]*?(\w+)(?:\[[^\]]*\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d+);")


def parse_format(text: str, system: str = "") -> Format:
    """A tracepoint's format file. ValueError where it has no name or ID."""
    name = re.search(r"^name:\s*(\S+)", text, re.MULTILINE)
    number = re.search(r"^ID:\s*(\d+)", text, re.MULTILINE)
    if not name or not number:
        raise ValueError("no tracepoint format")
    fields = {m[1]: Field(int(m[2]), int(m[3]), m[4] == "1") for m in _FIELD.finditer(text)}
    return Format(system, name[1], int(number[1]), fields)


@dataclass(slots=True)
class Attr:
    """One event that perf opened: its kind and the layout of its samples."""

    type: int
    config: int
    sample_type: int
    flags: int
    ids: list[int] = field(default_factory=list)

    def offsets(self) -> dict[int, int]:
        """Offset of each fixed field within the body of a sample."""
        found, at = {}, 0
        for bit in _ORDER:
            if self.sample_type & bit:
                found[bit] = at
                at += 8
        found[0] = at  # where the fields of variable length begin
        return found

    def trailer(self) -> tuple[int, int]:
        """Of the sample_id that ends other records: its size, and the offset of the time in it (-1: none)."""
        size, time = 0, -1
        for bit in (TID, TIME, ID, STREAM_ID, CPU, IDENTIFIER):
            if self.sample_type & bit:
                if bit == TIME:
                    time = size
                size += 8
        return size, time


@dataclass(slots=True)
class Samples:
    """Samples of all tracepoints, in the order of time.

    t: int64, nanoseconds of perf's clock.  pid, tid: int32, thread group and task (pid -1: already gone).
    event: int16, index in PerfData.events.  raw: int64, offset of the tracepoint's fields in the file.
    """

    t: I64
    pid: npt.NDArray[np.int32]
    tid: npt.NDArray[np.int32]
    event: npt.NDArray[np.int16]
    raw: I64

    def __len__(self) -> int:
        return len(self.t)


@dataclass(slots=True)
class Side:
    """A record beside the samples. kind: FORK, EXIT, COMM or MMAP2.

    FORK, EXIT: pid, tid, ppid, ptid.  COMM: exec, text (name).
    MMAP2: addr, len, offset (bytes), prot and flags as for mmap(2), inode, text (path).
    """

    kind: int
    t: int
    pid: int
    tid: int
    ppid: int = 0
    ptid: int = 0
    exec: bool = False
    addr: int = 0
    len: int = 0
    offset: int = 0
    inode: int = 0
    prot: int = 0
    flags: int = 0
    text: str = ""


class PerfData:
    """An open perf.data. Raises PerfDataError, which names the file, for anything that does not fit."""

    def __init__(self, path: Path, formats: Mapping[int, Format] | None = None, *, copy: bool = False) -> None:
        """formats: tracepoint formats by ID, for a file that lost its own (perf did not end in order).

        copy: read it into memory, so that the file itself may go.
        """
        self.path = path
        self._open(copy=copy)
        try:
            self._read_header()
            self.formats = dict(formats or {})
            self.formats.update(self._tracing_formats())
            self.events = [self._event_name(attr) for attr in self.attrs]
            self._walk()
        except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
            raise self._error(f"is damaged ({error})") from None

    def _error(self, why: str) -> PerfDataError:
        return PerfDataError(f"{self.path}: {why}")

    def _open(self, *, copy: bool) -> None:
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _FILE_HEADER.size + _FEATURES.size:
                    raise self._error("is too short for a perf.data")
                if copy:
                    self._bytes = mmap.mmap(-1, size)
                    file.readinto(self._bytes)
                else:
                    self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from None
        self.size = size
        self.data: Bytes = np.frombuffer(self._bytes, dtype=np.uint8)

    def _read_header(self) -> None:
        magic, size, attr_size, *sections = _FILE_HEADER.unpack_from(self._bytes, 0)
        if magic != MAGIC:
            swapped = " of the other byte order" if magic == MAGIC[::-1] else ""
            raise self._error(f"is not a perf.data{swapped}")
        if size == 16:
            raise self._error("was written to a pipe (perf record -o -): record into a file")
        self._features = _FEATURES.unpack_from(self._bytes, _FILE_HEADER.size)
        attrs_at, attrs_size, self._data_at, data_size = sections[:4]
        if not 64 <= attr_size <= 4096 or attrs_at + attrs_size > self.size or self._data_at > self.size:
            raise self._error("has a damaged header")
        # perf that was killed leaves 0 there: then the records go on to the end of the file
        self.complete = 0 < data_size <= self.size - self._data_at
        self.data_end = self._data_at + data_size if self.complete else self.size
        if data_size and not self.complete:
            raise self._error(f"is truncated: {self.size} bytes of {self._data_at + data_size} and more")
        self.attrs = [self._attr(attrs_at + i * attr_size, attr_size) for i in range(attrs_size // attr_size)]
        if not self.attrs:
            raise self._error("names no events")
        self.texts = {name: self._text_feature(bit) for bit, name in _TEXT_FEATURES.items()}

    def _attr(self, at: int, size: int) -> Attr:
        kind, _, config, _, sample_type, _, flags = _ATTR.unpack_from(self._bytes, at)
        ids_at, ids_size = _SECTION.unpack_from(self._bytes, at + size - _SECTION.size)
        if ids_at + ids_size > self.size:
            raise self._error("has a damaged header")
        ids = list(struct.unpack_from(f"<{ids_size // 8}Q", self._bytes, ids_at))
        return Attr(kind, config, sample_type, flags, ids)

    # -- feature sections ---------------------------------------------------------------------

    def _feature(self, wanted: int) -> tuple[int, int] | None:
        """Offset and size of a feature section; the sections' table follows the records."""
        if not self.complete:
            return None
        at = self.data_end
        for bit in range(256):
            if self._features[bit // 64] >> (bit % 64) & 1:
                if bit == wanted:
                    start, size = _SECTION.unpack_from(self._bytes, at)
                    return (start, size) if size and start + size <= self.size else None
                at += _SECTION.size
        return None

    def _text_feature(self, bit: int) -> str:
        """A feature that is one string: its length, then its bytes, padded with zeros."""
        found = self._feature(bit)
        if found is None or found[1] < 4:
            return ""
        start, size = found
        (length,) = struct.unpack_from("<I", self._bytes, start)
        return self._bytes[start + 4 : start + 4 + min(length, size - 4)].split(b"\0")[0].decode("utf-8", "replace")

    def _tracing_formats(self) -> dict[int, Format]:
        """Formats of the tracepoints, from HEADER_TRACING_DATA (trace-cmd.dat's header, version 0.6)."""
        found = self._feature(HEADER_TRACING_DATA)
        if found is None:
            return {}
        data = self._bytes[found[0] : found[0] + found[1]]
        if not data.startswith(b"\x17\x08\x44tracing"):
            raise ValueError("tracing data")
        at = data.index(b"\0", 10) + 1 + 1 + 1 + 4  # version, byte order, size of a long, page size
        for name in (b"header_page\0", b"header_event\0"):
            if data[at : at + len(name)] != name:
                raise ValueError("tracing data")
            (size,) = struct.unpack_from("<Q", data, at + len(name))
            at += len(name) + 8 + size
        formats: dict[int, Format] = {}
        _, at = _files(data, at)  # ftrace's own events
        (systems,) = struct.unpack_from("<I", data, at)
        at += 4
        for _ in range(systems):
            end = data.index(b"\0", at)
            system, at = data[at:end].decode(), end + 1
            texts, at = _files(data, at)
            for text in texts:
                fmt = parse_format(text.decode("utf-8", "replace"), system)
                formats[fmt.id] = fmt
        return formats

    def _event_name(self, attr: Attr) -> str:
        """system:name of a tracepoint, "" for anything else."""
        if attr.type != PERF_TYPE_TRACEPOINT:
            return ""
        fmt = self.formats.get(attr.config)
        if fmt is None:
            raise self._error(f"does not describe its tracepoint {attr.config} (perf did not end in order?)")
        return f"{fmt.system}:{fmt.name}"

    # -- records ------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Find every record; then the samples' fixed fields, sorted by time, and the other records."""
        start = self._data_at
        body = self.data[start : self.data_end]
        at, kinds, walked = _scan_records(body)
        if walked < len(body) and self.complete:
            raise self._error(f"is damaged: no record at byte {start + walked}")
        self.truncated_at = start + walked if walked < len(body) else None
        for kind in (COMPRESSED, COMPRESSED2):
            if (kinds == kind).any():
                raise self._error("is compressed (perf record -z): record without -z")
        self._kinds, self._at = kinds, at + start
        self.samples = self._collect_samples(self._at[kinds == SAMPLE])
        self.lost, self.sides = self._collect_sides()

    def _collect_samples(self, at: I64) -> Samples:
        tracepoints = [attr for attr in self.attrs if attr.type == PERF_TYPE_TRACEPOINT]
        self.flushed_until = 0
        if not tracepoints:
            raise self._error("holds no tracepoints")
        layout = self._common_layout(tracepoints)
        ids = np.array([i for attr in self.attrs for i in attr.ids], dtype=np.uint64).astype(np.int64)
        owners = np.array([n for n, attr in enumerate(self.attrs) for _ in attr.ids], dtype=np.int16)
        order = np.argsort(ids)
        t, pid, tid, event, raw, good = _read_samples(self.data, at, layout, ids[order], owners[order])
        if not good:
            raise self._error("is damaged: a sample does not fit its record")
        self.flushed_until = self._flushed(at, t)
        kept = np.flatnonzero(raw >= 0)  # samples of events that are no tracepoints say nothing here
        order = kept[np.argsort(t[kept], kind="stable")]
        return Samples(t[order], pid[order], tid[order], event[order], raw[order])

    def _flushed(self, at: I64, t: I64) -> int:
        """Up to which time no CPU's buffer can hold more, had perf been killed.

        perf empties all buffers in rounds; what a round began with is complete at the next one's end.
        """
        rounds = self._at[self._kinds == FINISHED_ROUND]
        if len(rounds) < 2:
            return 0
        before = t[at < rounds[-2]]
        return int(before.max()) if len(before) else 0

    def _common_layout(self, tracepoints: list[Attr]) -> I64:
        """Offsets of id, pid/tid, time and of the raw data, and whether a call chain stands before it."""
        kinds = {attr.sample_type for attr in tracepoints}
        if len(kinds) != 1:
            raise self._error("has events with samples of different layouts")
        attr = tracepoints[0]
        offsets = attr.offsets()
        if not attr.sample_type & RAW or TID not in offsets or TIME not in offsets:
            raise self._error("has samples without task, time or raw data (record with the printed command)")
        if attr.sample_type & READ:
            raise self._error("has samples with counter values (perf record -s or a group): record without")
        identity = IDENTIFIER if IDENTIFIER in offsets else ID
        if identity not in offsets and len(self.attrs) > 1:
            raise self._error("does not say which event a sample belongs to")
        chain = 1 if attr.sample_type & CALLCHAIN else 0
        return np.array([offsets.get(identity, -1), offsets[TID], offsets[TIME], offsets[0], chain], dtype=np.int64)

    def _collect_sides(self) -> tuple[int, list[Side]]:
        """Number of lost events, and the records FORK, EXIT, COMM, MMAP2 in the order of time."""
        lost = 0
        sides = []
        trailers = {attr.trailer() for attr in self.attrs if attr.flags & _FLAG_SAMPLE_ID_ALL}
        if len(trailers) != 1:
            trailers = self._tracking_trailer()
        size, time = trailers.pop() if trailers else (0, -1)
        wanted = np.flatnonzero(np.isin(self._kinds, _SIDE))
        for at, kind in zip(self._at[wanted].tolist(), self._kinds[wanted].tolist(), strict=True):
            (misc, length) = struct.unpack_from("<HH", self._bytes, at + 4)
            body = self._bytes[at + 8 : at + length]
            if kind == LOST:
                lost += struct.unpack_from("<QQ", body)[1]
            elif kind == LOST_SAMPLES:
                lost += struct.unpack_from("<Q", body)[0]
            else:
                stamp = struct.unpack_from("<Q", body, len(body) - size + time)[0] if time >= 0 else 0
                sides.append(_side(kind, misc, body[: len(body) - size], stamp))
        sides.sort(key=lambda side: side.t)
        return lost, sides

    def _tracking_trailer(self) -> set[tuple[int, int]]:
        """Where events differ, the records beside come from the one that tracks: dummy, else the first."""
        others = [attr for attr in self.attrs if attr.type != PERF_TYPE_TRACEPOINT] or self.attrs
        return {others[0].trailer()}

    def has_clock_monotonic(self) -> bool:
        """Whether the times are CLOCK_MONOTONIC's (perf record -k CLOCK_MONOTONIC)."""
        return all(attr.flags & _FLAG_USE_CLOCKID for attr in self.attrs if attr.type == PERF_TYPE_TRACEPOINT)

    # -- fields of tracepoints ----------------------------------------------------------------

    def event_indices(self, name: str) -> list[int]:
        """Indices in `events` of the tracepoint system:name."""
        return [index for index, event in enumerate(self.events) if event == name]

    def gather(self, name: str, field_name: str, rows: I64) -> I64:
        """The field of the samples `rows`, which are all of event `name`: int64 (unsigned ones wrap)."""
        found = self.event_indices(name)
        if not found:
            raise self._error(f"does not record {name} (record with the printed command)")
        fmt = self.formats[self.attrs[found[0]].config]
        where = fmt.fields.get(field_name)
        if where is None or where.size not in (4, 8):
            raise self._error(f"tracepoint {name} has no field {field_name}")
        return _gather(self.data, self.samples.raw[rows] + where.offset, where.size, where.signed)

    def close(self) -> None:
        """Unmap the file. Arrays that were taken from it are copies and stay."""
        self.data = np.empty(0, dtype=np.uint8)
        self._bytes.close()


def _files(data: bytes, at: int) -> tuple[list[bytes], int]:
    """A counted list of (size, text): the texts, and where the list ends."""
    (count,) = struct.unpack_from("<I", data, at)
    at += 4
    texts = []
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8
        if at + size > len(data):
            raise ValueError("tracing data")
        texts.append(data[at : at + size])
        at += size
    return texts, at


def _side(kind: int, misc: int, body: bytes, t: int) -> Side:
    """One record beside the samples."""
    if kind in (FORK, EXIT):
        pid, ppid, tid, ptid = struct.unpack_from("<iiii", body)
        return Side(kind, t, pid, tid, ppid=ppid, ptid=ptid)
    pid, tid = struct.unpack_from("<ii", body)
    if kind == COMM:
        return Side(kind, t, pid, tid, exec=bool(misc & MISC_COMM_EXEC), text=_text(body[8:]))
    addr, length, offset, _, inode, _, prot, flags = struct.unpack_from("<QQQQQQII", body, 8)
    side = Side(kind, t, pid, tid, addr=addr, len=length, offset=offset, prot=prot, flags=flags)
    side.inode = inode
    side.text = _text(body[64:])
    return side


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


# ---- compiled loops ------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _u64(data: Any, at: int) -> Any:
    """Little-endian 8 bytes at any offset, as int64."""
    value = np.uint64(0)
    for i in range(8):
        value |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return np.int64(value)


@njit(cache=True, nogil=True)
def _u32(data: Any, at: int) -> Any:
    """Little-endian 4 bytes at any offset, as int64, 0 .. 2**32 - 1."""
    return (
        np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
    )


@njit(cache=True, nogil=True)
def _scan_records(data: Any) -> Any:
    """Offsets (int64) and types (int32) of the records in uint8 data, and where the walk had to stop.

    The payload that follows an AUXTRACE record is passed over.
    """
    room = len(data) // 8 + 1
    count = 0
    at = np.int64(0)
    end = np.int64(len(data))
    while at + 8 <= end:  # first how many, so that memory is what is needed
        size = np.int64(data[at + 6]) | np.int64(data[at + 7]) << 8
        if size < 8 or at + size > end or count >= room:
            break
        count += 1
        if _u32(data, at) == 71 and size >= 16:
            at += max(np.int64(0), _u64(data, at + 8))
        at += size
    offsets = np.empty(count, np.int64)
    kinds = np.empty(count, np.int32)
    at = np.int64(0)
    for i in range(count):
        offsets[i] = at
        kinds[i] = _u32(data, at)
        if kinds[i] == 71 and (np.int64(data[at + 6]) | np.int64(data[at + 7]) << 8) >= 16:
            at += max(np.int64(0), _u64(data, at + 8))
        at += np.int64(data[at + 6]) | np.int64(data[at + 7]) << 8
    return offsets, kinds, min(at, end)


@njit(cache=True, nogil=True)
def _read_samples(data: Any, at: Any, layout: Any, ids: Any, owners: Any) -> Any:
    """Time, pid, tid, event and offset of the raw data of the samples whose records begin at `at`.

    layout: int64[5], see PerfData._common_layout.  ids: int64[k], ascending; owners: the event of each.
    raw is -1 for a sample of no known event.  The last answer is False where a sample is too short.
    """
    n = len(at)
    t = np.empty(n, np.int64)
    pid = np.empty(n, np.int32)
    tid = np.empty(n, np.int32)
    event = np.empty(n, np.int16)
    raw = np.empty(n, np.int64)
    for i in range(n):
        body = at[i] + 8
        end = at[i] + (np.int64(data[at[i] + 6]) | np.int64(data[at[i] + 7]) << 8)
        if body + layout[3] + 4 > end:
            return t, pid, tid, event, raw, False
        t[i] = _u64(data, body + layout[2])
        pid[i] = np.int32(_u32(data, body + layout[1]))
        tid[i] = np.int32(_u32(data, body + layout[1] + 4))
        where = 0
        if layout[0] >= 0:
            identity = _u64(data, body + layout[0])
            where = np.searchsorted(ids, identity)
            if where >= len(ids) or ids[where] != identity:
                raw[i] = -1
                event[i] = -1
                continue
        event[i] = owners[where] if len(owners) else 0
        start = body + layout[3]
        if layout[4]:
            start += 8 + 8 * _u64(data, start)
        if start < body or start + 4 > end or start + 4 + _u32(data, start) > end:
            return t, pid, tid, event, raw, False
        raw[i] = start + 4
    return t, pid, tid, event, raw, True


@njit(cache=True, nogil=True)
def _gather(data: Any, at: Any, size: int, signed: bool) -> Any:
    """The 4- or 8-byte integers at the offsets `at`, as int64."""
    out = np.empty(len(at), np.int64)
    for i in range(len(at)):
        if size == 8:
            out[i] = _u64(data, at[i])
        else:
            value = _u32(data, at[i])
            out[i] = value - (np.int64(1) << 32) if signed and value >= (np.int64(1) << 31) else value
    return out
