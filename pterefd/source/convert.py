"""Traces from one form into the other: JSON Lines to Parquet (`import`), Parquet to JSON Lines (`export`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from pterefd.errors import BadInput, Missing
from pterefd.source.columns import Column
from pterefd.source.schema import BOOL, FIELD, INT
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
        stream.write("".join(_lines(piece)).encode())
        done += len(piece.batch)
        if progress is not None:
            progress(done, trace.events)
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
