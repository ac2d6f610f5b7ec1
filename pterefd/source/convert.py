"""Traces from one form into the other: JSON Lines to Parquet (`import`), Parquet to JSON Lines (`export`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from pterefd import outputs
from pterefd.errors import BadInput, Missing
from pterefd.source.columns import Column
from pterefd.source.meta import TraceMeta
from pterefd.source.schema import BOOL, FIELD, INT
from pterefd.source.trace import Piece, open_trace
from pterefd.source.writer import TraceWriter

Progress = Callable[[int, int | None], None]


class PieceSource(Protocol):
    """A source that yields its events as columns, too: a trace, a workload."""

    @property
    def meta(self) -> TraceMeta:
        """What is known of it."""

    @property
    def events(self) -> int | None:
        """Their number, where that is known."""

    def pieces(self) -> Iterator[Piece]:
        """The events in order."""


def import_jsonl(source: Path, target: Path, *, force: bool = False, progress: Progress | None = None) -> int:
    """Write a trace (JSON Lines; Parquet is taken too, and written anew) as Parquet. Returns the number of events read;
    faults of one page after the other are stored as one (runs.py).

    progress: called with (events done, events in all) now and then.
    TraceError, BadInput: source breaks the format or cannot be read, target exists.  Missing: the disk is full. In all
    of these no file is left.
    """
    trace = open_trace(source)
    outputs.check(target, force=force, ending=".parquet", inputs=[source])
    with TraceWriter(target, trace.meta, force=force, keep=False, runs=True) as writer:
        return _each(trace, lambda piece: writer.add_arrays(piece.arrays, len(piece.batch)), progress)


def export_jsonl(
    source: Path,
    target: Path | BinaryIO | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a trace as JSON Lines, to a file, a binary stream or (None) standard output. Returns the number of events.

    The first line is the `trace` op with what is known; the fields stand in the order of the schema.
    TraceError, BadInput: source is damaged, target exists.  Missing: the disk is full. A target that is a path then
    stays as it was.  BrokenPipeError: who read the stream has gone.
    """
    trace = open_trace(source)
    if isinstance(target, Path):
        outputs.check(target, force=force, ending=".jsonl", inputs=[source])
    return _write_jsonl(trace, target, force, progress)


def write_trace(
    source: PieceSource, target: Path | None = None, *, force: bool = False, progress: Progress | None = None
) -> int:
    """Write what a source yields, to a file (JSON Lines where its name ends in .jsonl, else Parquet), or with None as
    JSON Lines to standard output. Returns the number of events.

    BadInput: what the source says, target exists.  Missing: the disk is full. In all of these no file is left.
    """
    if target is None or target.suffix == ".jsonl":
        return _write_jsonl(source, target, force, progress)
    outputs.check(target, force=force, ending=".parquet")
    with TraceWriter(target, source.meta, force=force, keep=False) as writer:
        return _each(source, lambda piece: writer.add_arrays(piece.arrays, len(piece.batch)), progress)


def _each(source: PieceSource, take: Callable[[Piece], object], progress: Progress | None) -> int:
    """Hand over all pieces; the number of events."""
    done = 0
    total = source.events if progress is not None else None
    for piece in source.pieces():
        take(piece)
        done += len(piece.batch)
        if progress is not None:
            progress(done, total)
    return done


def _write_jsonl(source: PieceSource, target: Path | BinaryIO | None, force: bool, progress: Progress | None) -> int:
    if target is None:
        sys.stdout.flush()
        return _export(source, sys.stdout.buffer, progress)
    if not isinstance(target, Path):
        return _export(source, target, progress)
    outputs.check(target, force=force)
    return _export_file(source, target, progress)


def _export_file(source: PieceSource, target: Path, progress: Progress | None) -> int:
    """Write beside the target, then rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "xb") as stream:
            done = _export(source, stream, progress)
        os.replace(temporary, target)
    except FileNotFoundError as error:
        raise BadInput(f"{target}: cannot be written: {error.strerror}") from None
    except OSError as error:
        raise Missing(f"{target}: nothing written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return done


def _export(source: PieceSource, stream: BinaryIO, progress: Progress | None) -> int:
    stream.write(orjson.dumps({"op": "trace", **source.meta.to_dict()}, option=orjson.OPT_APPEND_NEWLINE))
    done = _each(source, lambda piece: stream.write("".join(_lines(piece)).encode()), progress)
    stream.flush()
    return done


def _lines(piece: Piece) -> list[str]:
    """One line an event, with the fields that it has, in the order of the schema.

    Events that have the same fields share a template, so that no object is made for each.
    """
    columns = {name: Column(piece.arrays[name]) for name in FIELD if name in piece.arrays}
    shapes = np.zeros(len(piece.batch), dtype=np.int64)  # bit i: the event has the i-th of these fields
    for bit, column in enumerate(columns.values()):
        shapes[slice(None) if column.rows is None else column.rows] |= 1 << bit
    lines = [""] * len(shapes)
    for shape in np.unique(shapes).tolist():
        rows = np.flatnonzero(shapes == shape)
        there = {name: column for bit, (name, column) in enumerate(columns.items()) if shape >> bit & 1}
        template = "{" + ",".join(f'"{name}":%s' for name in there) + "}\n"
        texts = [_texts(name, column, rows) for name, column in there.items()]
        for row, values in zip(rows.tolist(), zip(*texts, strict=True), strict=True):
            lines[row] = template % values
    return lines


def _texts(name: str, column: Column, rows: npt.NDArray[np.int64]) -> list[Any]:
    """The values of these events, which all have the field, as JSON writes them (integers as they are)."""
    values = column.values[rows if column.rows is None else np.searchsorted(column.rows, rows)]
    if FIELD[name].type == INT:
        return values.tolist()
    if FIELD[name].type == BOOL:
        words = ["false", "true"]
    else:
        items = column.words if column.lists is None else column.lists.to_pylist()
        words = [orjson.dumps(item).decode() for item in items]
    return [words[code] for code in values.tolist()]
