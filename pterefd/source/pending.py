"""Events on their way into a file: collected one by one, as parts of columns, as the table of a row group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.mm.events import OP_CODE, OPS
from pterefd.source.schema import ARROW, FIELD

IntArray = npt.NDArray[np.int64]

_OP_WORDS = pa.array(OPS, pa.string())


def stored(name: str) -> pa.DataType:
    """The type of a column on its way into a file: as in the schema, `op` as a dictionary over OPS."""
    return pa.dictionary(pa.int8(), pa.string()) if name == "op" else ARROW.field(name).type


STORED = pa.schema([(name, stored(name)) for name in FIELD])


class Part(NamedTuple):
    """n events as columns, in the types of STORED; a field that none of them has is left out."""

    arrays: Mapping[str, pa.Array]
    n: int

    def slice(self, begin: int, n: int) -> Part:
        """The events [begin, begin + n), without a copy."""
        return Part({name: array.slice(begin, n) for name, array in self.arrays.items()}, n)


def join(parts: Sequence[Part]) -> Part:
    """The events of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    names = [name for name in FIELD if any(name in part.arrays for part in parts)]
    return Part(
        {name: pa.concat_arrays([_array(name, part) for part in parts]) for name in names},
        sum(part.n for part in parts),
    )


def _array(name: str, part: Part) -> pa.Array:
    return part.arrays[name] if name in part.arrays else _nulls(name, part.n)


def _nulls(name: str, n: int) -> pa.Array:
    """A column of nulls; most columns of most row groups are, so they share their memory."""
    return _long_nulls(name).slice(0, n) if n <= _LONG else pa.nulls(n, stored(name))


_LONG = 128 * 1024


@cache
def _long_nulls(name: str) -> pa.Array:
    return pa.nulls(_LONG, stored(name))


def as_table(part: Part) -> pa.Table:
    """The part as a table of STORED, with nulls where a field is absent."""
    return pa.table([_array(name, part) for name in FIELD], schema=STORED)


class Pending:
    """Events that were added one by one, kept by shape (op, names of fields): what is alike becomes columns at once."""

    def __init__(self) -> None:
        self.n = 0
        self._groups: dict[tuple[str, ...], tuple[list[int], list[tuple[Any, ...]]]] = {}

    def add(self, op: str, fields: Mapping[str, Any]) -> None:
        """Keep one event; None is as if absent. KeyError: no such op or field."""
        shape = (op, *fields)
        try:
            rows, events = self._groups[shape]
        except KeyError:
            rows, events = self._groups[shape] = _new_group(shape)
        rows.append(self.n)
        events.append(tuple(fields.values()))
        self.n += 1

    def take(self) -> Part:
        """What was collected; nothing is left here. Arrow's errors: a value of a wrong type."""
        ops = np.empty(self.n, dtype=np.int8)
        parts: dict[str, list[tuple[IntArray, pa.Array]]] = {}
        for shape, (numbers, events) in self._groups.items():
            rows = np.array(numbers, dtype=np.int64)
            ops[rows] = OP_CODE[shape[0]]
            for name, values in zip(shape[1:], zip(*events, strict=True), strict=True):
                parts.setdefault(name, []).append((rows, value_array(name, values)))
        columns = {name: _spread(name, pieces, self.n) for name, pieces in parts.items()}
        columns["op"] = op_column(ops)
        part = Part(columns, self.n)
        self.n, self._groups = 0, {}
        return part


def _new_group(shape: tuple[str, ...]) -> tuple[list[int], list[tuple[Any, ...]]]:
    op, *names = shape
    if op not in OP_CODE:
        raise KeyError(op)
    for name in names:
        if name not in FIELD or name == "op":
            raise KeyError(name)
    return [], []


def op_column(codes: npt.NDArray[Any]) -> pa.Array:
    """The op column of these OP_* codes."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), _OP_WORDS)


def _spread(name: str, pieces: list[tuple[IntArray, pa.Array]], n: int) -> pa.Array:
    """The n-long column with each piece's values in its rows, and nulls elsewhere."""
    if len(pieces) == 1 and len(pieces[0][0]) == n:
        return pieces[0][1]
    rows = np.concatenate([rows for rows, _ in pieces])
    values = pa.concat_arrays([array for _, array in pieces])
    index = np.zeros(n, dtype=np.int64)
    index[rows] = np.arange(len(rows))
    absent = np.ones(n, dtype=np.bool_)
    absent[rows] = False
    return values.take(pa.array(index, mask=absent))


def value_array(name: str, values: Sequence[Any] | npt.NDArray[Any]) -> pa.Array:
    """Values of one field as Arrow has them.

    Names that were no UTF-8 (with surrogates, as os.fsdecode gives them) get backslash escapes for the odd bytes.
    """
    try:
        return pa.array(values, stored(name))
    except UnicodeEncodeError:
        return pa.array([plain(value) for value in values], stored(name))


def plain(value: Any) -> Any:
    """A string, or list of strings, with every byte that was no UTF-8 as \\xNN."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return [plain(item) for item in value] if isinstance(value, list) else value
