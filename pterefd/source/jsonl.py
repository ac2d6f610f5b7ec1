"""Traces in JSON Lines: one object a line. The file is read in chunks of whole lines.

A chunk goes through Arrow's JSON reader, which is fast and strict about types but not about lines, and whole columns
are checked at once. Where either doubts, the chunk is read again line by line, to name the first error exactly.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pj

from pterefd.errors import TraceError
from pterefd.mm.thp import thp_bits
from pterefd.source.columns import Suspect, canonical
from pterefd.source.decode import Decoder
from pterefd.source.meta import TraceMeta, meta_from_dict
from pterefd.source.rules import BadEvent, check_event, split_cmdline
from pterefd.source.schema import ARROW, FIELD, FIELDS
from pterefd.source.trace import BATCH_EVENTS, Piece, Trace

_CHUNK = 4 << 20
_BLOCK = 1 << 20
_MAX_LINE = 16 << 20

Arrays = dict[str, pa.Array]


class JsonLinesTrace(Trace):
    """A trace of one JSON object a line; blank lines are skipped. The first may be the op `trace`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = TraceMeta()
        self._offset, self._line = 0, 1  # of the first event
        self._fields = {"t", "op", "pid", "addr", "len", "write"}  # met so far: Arrow is fastest with few columns
        self._begins: list[int] = []  # first event of each chunk read so far ...
        self._numbers: list[Sequence[int]] = []  # ... and the line of each of its events
        self._read_meta()

    def _read_meta(self) -> None:
        """Take the first line that is not blank, where it is a `trace` line; the events begin after it."""
        with self._open() as file:
            for number, text in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if not text.strip():
                    continue
                values = _parse(text, f"{self.path}:{number}")
                if values.get("op") == "trace":
                    self.meta = meta_from_dict(values, f"{self.path}:{number}")
                    self._offset, self._line = file.tell(), number + 1
                return
        raise TraceError(f"{self.path}: empty: no events")

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb") as file:
                yield file
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number of the first line, whole lines, each ending in a newline), from the first event on."""
        line, rest = self._line, b""
        with self._open() as file:
            file.seek(self._offset)
            while block := file.read(_CHUNK):
                whole, newline, tail = block.rpartition(b"\n")
                if not newline:
                    rest += tail
                    if len(rest) > _MAX_LINE:
                        raise TraceError(f"{self.path}:{line}: the line is longer than {_MAX_LINE} bytes")
                    continue
                chunk = rest + whole + newline
                if b"\r" in chunk:
                    chunk = chunk.replace(b"\r\n", b"\n")
                yield line, chunk
                line, rest = line + chunk.count(b"\n"), tail
        if rest:
            yield line, rest.removesuffix(b"\r") + b"\n"

    @cached_property
    def _count(self) -> int:
        return sum(len(_event_lines(line, chunk)) for line, chunk in self._chunks())

    @property
    def events(self) -> int:
        """The number of lines that are not blank, but for the `trace` line."""
        return self._count

    def where(self, index: int) -> str:
        """`FILE:LINE`, lines from 1."""
        if not self._begins or index >= self._begins[-1] + len(self._numbers[-1]):
            self._begins, self._numbers = [], []
            begin = 0
            for line, chunk in self._chunks():
                self._note(begin, _event_lines(line, chunk))
                begin += len(self._numbers[-1])
        at = bisect_right(self._begins, index) - 1
        return f"{self.path}:{self._numbers[at][index - self._begins[at]]}"

    def _note(self, begin: int, numbers: Sequence[int]) -> None:
        """Remember the lines of a chunk's events; a second reading finds them there already."""
        if not self._begins or begin > self._begins[-1]:
            self._begins.append(begin)
            self._numbers.append(numbers)

    def pieces(self) -> Iterator[Piece]:
        """Yield the events in order, checked, a chunk at a time (in parts where it is long)."""
        decoder = Decoder(thp_bits(self.meta.thp))
        for line, chunk in self._chunks():
            begin = decoder.next
            numbers: Sequence[int] = range(line, line + chunk.count(b"\n"))
            arrays = self._fast(chunk, len(numbers))
            try:
                if arrays is None:
                    raise Suspect
                pieces = _decode_parts(decoder, arrays, len(numbers))
            except Suspect:
                arrays, numbers = self._exact(line, chunk, decoder)
                pieces = _decode_parts(decoder, arrays, len(numbers))
            self._note(begin, numbers)
            yield from pieces

    def _fast(self, chunk: bytes, lines: int) -> Arrays | None:
        """The chunk's columns by Arrow's reader; None where it does not take the chunk as one object a line.

        Arrow splits at objects, not at lines, and crashes on a lone `null`: every line must begin and end as an object
        does (which nested values, all refused, cannot imitate), and there must be as many objects as lines.
        """
        if not _objects_alone(chunk):
            return None
        try:
            if not chunk.isascii():
                chunk.decode()
            table = self._arrow(chunk)
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        if len(table) != lines:
            return None
        return {name: canonical(name, table[name].combine_chunks()) for name in table.column_names}

    def _arrow(self, chunk: bytes) -> pa.Table:
        try:
            return _read_json(chunk, [field for field in ARROW if field.name in self._fields])
        except pa.ArrowInvalid as error:
            if "unexpected field" not in str(error) or len(self._fields) == len(FIELDS):
                raise
        table = _read_json(chunk, list(ARROW))
        self._fields |= {name for name in table.column_names if table[name].null_count < len(table)}
        return table

    def _exact(self, line: int, chunk: bytes, decoder: Decoder) -> tuple[Arrays, list[int]]:
        """Read the chunk line by line: its columns and the lines of its events. TraceError: the first that is wrong."""
        stream = decoder.stream.copy()
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        for number, text in enumerate(chunk[:-1].split(b"\n"), line):
            if not text.strip():
                continue
            where = f"{self.path}:{number}"
            row = _parse(text, where)
            try:
                check_event(row)
                stream.step(row)
            except BadEvent as error:
                raise TraceError(f"{where}: {error}") from None
            rows.append(row)
            numbers.append(number)
        return _columns(rows), numbers


def _decode_parts(decoder: Decoder, arrays: Arrays, n: int) -> list[Piece]:
    """The pieces of a chunk of n events. Suspect: none of it has been taken."""
    if n <= BATCH_EVENTS:
        return [Piece(arrays, decoder.decode(arrays, n))] if n else []
    saved = decoder.next, decoder.stream.copy()
    pieces = []
    try:
        for begin in range(0, n, BATCH_EVENTS):
            part = {name: array.slice(begin, BATCH_EVENTS) for name, array in arrays.items()}
            pieces.append(Piece(part, decoder.decode(part, min(BATCH_EVENTS, n - begin))))
    except Suspect:
        decoder.next, decoder.stream = saved
        raise
    return pieces


def _read_json(chunk: bytes, fields: list[pa.Field]) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(chunk),
        read_options=pj.ReadOptions(block_size=_BLOCK),
        parse_options=pj.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="error"),
    )


def _columns(rows: list[dict[str, Any]]) -> Arrays:
    """Columns of the fields that any row has."""
    arrays = {}
    for name in FIELD:
        values = [row.get(name) for row in rows]
        if any(value is not None for value in values):
            if name == "cmdline":
                values = [split_cmdline(value) if isinstance(value, str) else value for value in values]
            arrays[name] = canonical(name, pa.array(values, FIELD[name].arrow_type))
    return arrays


def _parse(text: bytes, where: str) -> dict[str, Any]:
    """One line as an object. TraceError: not UTF-8, not JSON, no object, a name twice."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise TraceError(f"{where}: not UTF-8 (byte {error.start + 1} of the line)") from None
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise TraceError(f"{where}: bad JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(values, dict):
        raise TraceError(f"{where}: not a JSON object")
    for name in _repeated(text, len(values)):
        raise TraceError(f"{where}: the field {name!r} is there twice")
    return values


def _repeated(text: bytes, distinct: int) -> list[str]:
    """Names that stand more than once in the object of a line; orjson keeps the last of each."""
    if text.count(b":") == distinct:
        return []
    pairs: list[tuple[str, Any]] = []

    def keep(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = items  # the outermost object comes last
        return dict(items)

    try:
        json.loads(text, object_pairs_hook=keep)
    except RecursionError:
        return []  # no field takes values that deep: the rules will say so
    names = [name for name, _ in pairs]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _objects_alone(chunk: bytes) -> bool:
    """Whether every line begins with { and ends with }."""
    text = np.frombuffer(chunk, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    begins = text[ends[:-1] + 1]
    return text[0] == ord("{") and bool((begins == ord("{")).all()) and bool((text[ends - 1] == ord("}")).all())


def _event_lines(line: int, chunk: bytes) -> Sequence[int]:
    """Numbers of the lines that are not blank."""
    if _objects_alone(chunk):
        return range(line, line + chunk.count(b"\n"))
    return [number for number, text in enumerate(chunk[:-1].split(b"\n"), line) if text.strip()]
