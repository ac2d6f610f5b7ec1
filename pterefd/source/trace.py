"""A trace as replay sees it: metadata, and batches of events in order, whatever form the file has."""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pterefd.errors import BadInput, TraceError
from pterefd.mm.events import Batch
from pterefd.source.source import BATCH_EVENTS, Source

__all__ = ["BATCH_EVENTS", "Piece", "Trace", "open_trace"]

PARQUET_MAGIC = b"PAR1"
PERF_MAGIC = b"PERFILE2"


class Piece(NamedTuple):
    """A part of a trace, checked: the columns as stored (nulls where absent) and the same events decoded."""

    arrays: Mapping[str, pa.Array]
    batch: Batch


class Trace(Source):
    """A trace file that has been opened. It may be read any number of times."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    @abstractmethod
    def events(self) -> int:
        """The number of events. JSON Lines are counted at the first call, which reads the file once."""

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Yield the events in order, checked, as stored columns and as batches.

        TraceError names the file and the line or row of the first event that breaks a rule. Pieces before it have been
        yielded by then.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Where event `index` (from 0) stands: `FILE:LINE` for JSON Lines, `FILE: row N` for Parquet."""

    def batches(self) -> Iterator[Batch]:
        """Yield the events in order, checked, at most BATCH_EVENTS at a time. Errors are those of `pieces`."""
        for piece in self.pieces():
            yield piece.batch


def open_trace(path: Path | str) -> Trace:
    """Open a trace, Parquet or JSON Lines by its content.

    BadInput: no such file, a directory, no permission.  TraceError: a file that is neither, or whose metadata cannot
    be used.
    """
    # here, as both import this module
    from pterefd.source.jsonl import JsonLinesTrace
    from pterefd.source.parquet import ParquetTrace

    path = Path(path)
    start = _first_bytes(path)
    if start.startswith(PARQUET_MAGIC):
        return ParquetTrace(path)
    if start.startswith(PERF_MAGIC):
        raise TraceError(f"{path}: a perf recording, not a trace: import it first")
    text = start.lstrip(b" \t\r\n")
    if not text and len(start) < _SNIFF:
        raise TraceError(f"{path}: empty: no events")
    if text and not text.startswith(b"{"):
        raise TraceError(f"{path}: neither Parquet nor JSON Lines")
    return JsonLinesTrace(path)


_SNIFF = 4096


def _first_bytes(path: Path) -> bytes:
    """The beginning of a regular file. BadInput: it cannot be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path}: is a directory, not a trace")
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            return file.read(_SNIFF)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
