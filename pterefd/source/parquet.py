"""Traces in Parquet: one row an event, a column a field, the trace's metadata under one key of the file's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pterefd.errors import TraceError
from pterefd.mm.thp import thp_bits
from pterefd.source.columns import Suspect, canonical, fits
from pterefd.source.decode import Decoder
from pterefd.source.footer import BadFooter, sealed_footer, used_columns
from pterefd.source.meta import TraceMeta, meta_from_json
from pterefd.source.rules import BadEvent, check_event
from pterefd.source.schema import FIELD, META_KEY, STRING_NAMES
from pterefd.source.stream import Stream
from pterefd.source.trace import BATCH_EVENTS, Piece, Trace

_EXACT_ROWS = 4096  # rows at a time in the exact pass

_DAMAGE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)


class ParquetTrace(Trace):
    """A trace in a Parquet file. Columns may be absent, wider or narrower integers, plain or dictionary strings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._words: list[str] = []  # string columns, read as dictionaries
        with self._open() as file:
            schema = file.schema_arrow
            self._events = file.metadata.num_rows
        self._check_columns(schema)
        self._words = [name for name in STRING_NAMES if name in schema.names]
        text = (schema.metadata or {}).get(META_KEY)
        self.meta = TraceMeta() if text is None else meta_from_json(text, str(path))

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        """The open file, its footer checked. Nothing inside the block may raise what Arrow raises of damaged data."""
        try:
            sealed_footer(self.path)
            # no memory map: a file that is cut off while it is read would be a SIGBUS
            file = pq.ParquetFile(
                self.path, read_dictionary=self._words, page_checksum_verification=True, pre_buffer=False
            )
        except (*_DAMAGE, BadFooter) as error:
            raise TraceError(f"{self.path}: cut off or damaged Parquet: {_one_line(error)}") from None
        with file:
            yield file

    def _check_columns(self, schema: pa.Schema) -> None:
        for name, kind in zip(schema.names, schema.types, strict=True):
            if name not in FIELD:
                raise TraceError(f"{self.path}: column {name!r} is no field of the format")
            if not fits(name, kind):
                raise TraceError(f"{self.path}: column {name} holds {kind}, it must be {FIELD[name].type}")
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise TraceError(f"{self.path}: column {name} is there more than once")
        if "op" not in schema.names and self._events:
            raise TraceError(f"{self.path}: Parquet without the column op: no trace")

    @property
    def events(self) -> int:
        """The number of rows."""
        return self._events

    def where(self, index: int) -> str:
        """`FILE: row N`, rows from 0."""
        return f"{self.path}: row {index}"

    def pieces(self) -> Iterator[Piece]:
        """Yield the rows in order, checked, a row group at a time (in parts where it is long)."""
        decoder = Decoder(thp_bits(self.meta.thp))
        with self._open() as file:
            for group, used in enumerate(self._used(file)):
                for rows in self._row_group(file, group, _in_use(used), decoder):
                    yield self._piece(rows, decoder)
        if decoder.next != self._events:
            raise TraceError(f"{self.path}: damaged: {decoder.next} rows where the footer says {self._events}")

    def _used(self, file: pq.ParquetFile) -> list[set[str]]:
        try:
            return used_columns(self.path, file)
        except (BadFooter, OSError) as error:
            raise TraceError(f"{self.path}: cut off or damaged Parquet: {error}") from None

    def _row_group(
        self, file: pq.ParquetFile, group: int, names: list[str], decoder: Decoder
    ) -> Iterator[pa.RecordBatch]:
        """The parts of a row group, with only the columns in which something stands."""
        try:
            yield from file.iter_batches(BATCH_EVENTS, row_groups=[group], columns=names, use_threads=False)
        except _DAMAGE as error:
            raise TraceError(f"{self.where(decoder.next)} and following: damaged: {_one_line(error)}") from None

    def _piece(self, rows: pa.RecordBatch, decoder: Decoder) -> Piece:
        n = len(rows)
        try:
            arrays = _canonical_columns(rows)
            return Piece(arrays, decoder.decode(arrays, n))
        except UnicodeDecodeError as error:
            raise TraceError(f"{self.where(decoder.next)} and following: not UTF-8: {error.reason}") from None
        except (Suspect, pa.ArrowInvalid):
            raise self._first_error(rows, decoder) from None

    def _first_error(self, rows: pa.RecordBatch, decoder: Decoder) -> TraceError:
        """Go through the rows one by one and say what is wrong with the first that breaks a rule."""
        stream = decoder.stream.copy()
        for begin in range(0, len(rows), _EXACT_ROWS):
            for row, event in enumerate(rows.slice(begin, _EXACT_ROWS).to_pylist(), decoder.next + begin):
                text = broken_rule(event, stream)
                if text is not None:
                    return TraceError(f"{self.where(row)}: {text}")
        raise AssertionError("the rules pass what decode does not")


def broken_rule(event: Mapping[str, object], stream: Stream) -> str | None:
    """What is wrong with an event, None where nothing is; the stream then has taken it."""
    try:
        check_event(event)
        stream.step(event)
    except BadEvent as error:
        return str(error)
    return None


def _canonical_columns(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    return {name: canonical(name, rows.column(name)) for name in rows.schema.names}


def _in_use(used: set[str]) -> list[str]:
    """The columns to read, in the order of the schema.

    An empty command line counts as a null in the footer: it is read wherever there is an exec.
    """
    return [name for name in FIELD if name in used or (name == "cmdline" and "comm" in used)]


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
