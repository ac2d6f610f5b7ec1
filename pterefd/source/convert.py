"""Traces from one form into the other: JSON Lines to Parquet (`import`), Parquet to JSON Lines (`export`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pterefd.errors import BadInput, Missing
from pterefd.source.columns import Column
from pterefd.source.schema import BOOL, FIELD
from pterefd.source.trace import Piece, Trace, open_trace
from pterefd.source.writer import TraceWriter, refuse_existing

Progress = Callable[[int, int | None], None]


def import_jsonl(source: Path, target: Path, *, force: bool = False, progress: Progress | None = None) -> int:
    """Write a trace (JSON Lines; Parquet is taken too, and written anew) as Parquet. Returns the number of events.

    progress: called with (events done, events in all) now and then.
    TraceError, BadInput: source breaks the format or cannot be read, target exists.  Missing: the disk is full. In all
    of these no file is left.
    """
    trace = open_trace(source)
    refuse_same(source, target)
    with TraceWriter(target, trace.meta, force=force, keep=False) as writer:
        done = 0
        total = trace.events if progress is not None else None
        for piece in trace.pieces():
            writer.add_arrays(piece.arrays, len(piece.batch))
            done += len(piece.batch)
            if progress is not None:
                progress(done, total)
    return done


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
    if target is None:
        sys.stdout.flush()
        return _export(trace, sys.stdout.buffer, progress)
    if not isinstance(target, Path):
        return _export(trace, target, progress)
    refuse_same(source, target)
    refuse_existing(target, force)
    return _export_file(trace, target, progress)


def refuse_same(source: Path, target: Path) -> None:
    """BadInput where both are one file: it would be gone before it was read."""
    if target.exists() and os.path.samefile(source, target):
        raise BadInput(f"{target}: is the file that is read")


def _export_file(trace: Trace, target: Path, progress: Progress | None) -> int:
    """Write beside the target, then rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "xb") as stream:
            done = _export(trace, stream, progress)
        os.replace(temporary, target)
    except FileNotFoundError as error:
        raise BadInput(f"{target}: cannot be written: {error.strerror}") from None
    except OSError as error:
        raise Missing(f"{target}: nothing written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return done


def _export(trace: Trace, stream: BinaryIO, progress: Progress | None) -> int:
    stream.write(orjson.dumps({"op": "trace", **trace.meta.to_dict()}, option=orjson.OPT_APPEND_NEWLINE))
    done = 0
    for piece in trace.pieces():
        stream.write(b"".join(_lines(piece)))
        done += len(piece.batch)
        if progress is not None:
            progress(done, trace.events)
    stream.flush()
    return done


def _lines(piece: Piece) -> Iterator[bytes]:
    """One line an event, with the fields that it has."""
    names = [name for name in FIELD if name in piece.arrays]
    columns = [_values(name, piece) for name in names]
    for row in zip(*columns, strict=True):
        event = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)


def _values(name: str, piece: Piece) -> list[Any]:
    """The column as Python values, None where absent."""
    column = Column(piece.arrays[name])
    values = column.python()
    if FIELD[name].type == BOOL:
        values = [bool(value) for value in values]
    if column.rows is None:
        return values
    full: list[Any] = [None] * column.n
    for row, value in zip(column.rows.tolist(), values, strict=True):
        full[row] = value
    return full
