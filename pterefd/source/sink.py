"""The file that a trace is written to, and how much room the next piece of it may need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pterefd.source.footer import seal
from pterefd.source.schema import META_KEY


class Sink:
    """The file that Arrow writes to. Room can be reserved ahead, and what comes after `discard` goes nowhere."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._discarding = False
        self._held: bytearray | None = None

    def write(self, data: Any) -> int:
        """Write all of it; a write to a file may be short."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self._held is not None:
            self._held += rest
            return size
        while len(rest) and not self._discarding:
            rest = rest[self._file.write(rest) :]
        return size

    def tell(self) -> int:
        return self._file.tell() + len(self._held or b"")

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def reserve(self, size: int) -> None:
        """Make sure that `size` bytes more have room. OSError where they have none."""
        os.posix_fallocate(self._file.fileno(), self._file.tell(), size)

    def hold(self) -> None:
        """What is written from here on is the footer: it is kept back until `finish`, for its checksum."""
        self._held = bytearray()

    def finish(self) -> None:
        """Write the footer, give back what was reserved and not used, and bring the file to the disk."""
        footer, self._held = bytes(self._held or b""), None
        self.write(seal(footer) + footer)
        self._file.truncate()  # at the position
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._discarding = True

    def close(self) -> None:
        self._file.close()


class EndRoom:
    """How long the end of a Parquet file can become: its schema twice, and for each row group what its columns say."""

    def __init__(self, schema: pa.Schema) -> None:
        self._strings = [index for index, kind in enumerate(schema.types) if not pa.types.is_primitive(kind)]
        self._group = 400 * len(schema)  # measured: 130 to 200 bytes a column
        self.size = 64 * 1024 + 4 * len((schema.metadata or {}).get(META_KEY, b""))

    def group(self, table: pa.Table) -> int:
        """By how much one more row group lengthens the end."""
        more = self._group
        for index in self._strings:
            column = table.column(index)
            if column.null_count < len(column) and pa.types.is_string(column.type):
                # least and greatest value, each stored twice; longer ones than 4096 bytes are left out
                more += 4 * min(4096, pc.max(pc.binary_length(column)).as_py())
        return more


def bound(table: pa.Table) -> int:
    """Bytes that a row group takes at most: its values as they are, page headers, and what will not compress."""
    columns = (column for column in table.columns if column.null_count < len(column))
    return int(sum(column.nbytes for column in columns) * 1.05) + 1024 * table.num_columns
