"""The footer of a Parquet trace: which columns of a row group hold nothing, and a checksum of the footer itself.

pyarrow tells the first, fast, but ends the process (a C++ exception that nobody catches) where the footer is damaged.
So the project's writer puts a checksum before the footer, where Parquet allows any bytes, and pyarrow is asked only
about a footer that agrees with it. Of files without one, which others wrote, the few fields are read here: the footer
is a Thrift struct in the compact protocol (parquet-format: parquet.thrift).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_SEAL = b"ptefcrc1"  # then the CRC-32 of what follows, up to the end of the file, in 4 bytes
_SEAL_SIZE = len(_SEAL) + 4
_TAIL = 8  # after the footer: its length in 4 bytes, and PAR1

# Field numbers of parquet.thrift
_FILE_ROW_GROUPS = 4
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3
_CHUNK_META = 3
_META_PATH, _META_VALUES, _META_STATISTICS = 3, 5, 12
_STATISTICS_NULLS = 3

# Types of the compact protocol
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)

Struct = dict[int, Any]


class BadFooter(ValueError):
    """The footer is not what the format or the checksum says."""


def seal(footer: bytes) -> bytes:
    """What a writer puts before the footer (with its length and PAR1)."""
    return _SEAL + zlib.crc32(footer).to_bytes(4, "little")


def used_columns(path: Path, file: pq.ParquetFile) -> list[set[str]]:
    """For each row group the names of the top-level columns that are not known to be null throughout.

    BadFooter: the footer is damaged.  OSError: the file cannot be read.
    """
    footer, sealed = sealed_footer(path)
    if sealed:
        return [_used_by_pyarrow(file.metadata.row_group(group)) for group in range(file.num_row_groups)]
    try:
        return [_used(group) for group in _Reader(footer).struct().get(_FILE_ROW_GROUPS, [])]
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFooter(f"the footer cannot be read ({type(error).__name__})") from None


def sealed_footer(path: Path) -> tuple[bytes, bool]:
    """The footer's bytes, and whether a checksum vouches for them. BadFooter: there is one, and it differs."""
    with open(path, "rb") as file:
        file.seek(-_TAIL, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        begin = max(0, file.seek(0, os.SEEK_END) - _TAIL - length - _SEAL_SIZE)
        file.seek(begin)
        data = file.read()
    footer = data[_SEAL_SIZE:]
    if not data.startswith(_SEAL):
        return footer, False
    if data[:_SEAL_SIZE] != seal(footer):
        raise BadFooter("the footer's checksum is wrong")
    return footer, True


def _used_by_pyarrow(group: pq.RowGroupMetaData) -> set[str]:
    used = set()
    for index in range(group.num_columns):
        column = group.column(index)
        statistics = column.statistics
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if not nulls == column.num_values == group.num_rows:
            used.add(column.path_in_schema.partition(".")[0])
    return used


def _used(group: Struct) -> set[str]:
    used = set()
    for chunk in group[_GROUP_COLUMNS]:
        meta = chunk[_CHUNK_META]
        nulls = meta.get(_META_STATISTICS, {}).get(_STATISTICS_NULLS)
        if not nulls == meta[_META_VALUES] == group[_GROUP_ROWS]:
            used.add(meta[_META_PATH][0].decode())
    return used


class _Reader:
    """Thrift's compact protocol: structs as dicts by field number, lists as lists, strings as bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> Struct:
        """The struct that begins here."""
        fields: Struct = {}
        number = 0
        while True:
            header = self._data[self._at]
            self._at += 1
            kind = header & 0x0F
            if kind == _STOP:
                return fields
            number = number + (header >> 4) if header >> 4 else self._integer()
            # in a struct a bool is its own type
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            return self._list()
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._bytes(1)
        if kind == _DOUBLE:
            return self._bytes(8)
        raise BadFooter(f"the footer cannot be read (type {kind})")

    def _list(self) -> list[Any]:
        header = self._data[self._at]
        self._at += 1
        size = header >> 4
        if size == 0x0F:
            size = self._varint()
        kind = header & 0x0F
        return [self._value(kind) for _ in range(size)]

    def _bytes(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise IndexError
        value = self._data[self._at : end]
        self._at = end
        return value

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
