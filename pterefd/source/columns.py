"""Columns of a piece of a trace as numpy arrays, null-aware: what `decode` computes with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.mm.events import OP_CODE, OP_FAULT, OPS
from pterefd.source.rules import split_cmdline
from pterefd.source.schema import FIELD

IntArray = npt.NDArray[np.int64]


class Suspect(Exception):
    """Something in a piece breaks a rule; the exact pass over its events says what and where."""


class Column:
    """The values of one field that are there.

    rows: int64[k], ascending, the events that carry the field; None where all do.
    values: the k (or n) values, without nulls, as numpy has them; strings as codes into `words`.
    words: the strings of a string column, else empty.
    """

    def __init__(self, array: pa.Array) -> None:
        self.n = len(array)
        self.rows: IntArray | None = None
        if array.null_count:  # dropping nulls costs: most columns of faults have none
            self.rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
            array = array.drop_null()
        self.words: list[str] = []
        self.lists: pa.Array | None = None
        if pa.types.is_dictionary(array.type):
            self.words = array.dictionary.to_pylist()
            array = array.indices
        elif pa.types.is_list(array.type):
            self.lists = array
            self.values = np.arange(len(array))
            return
        self.values = array.to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return len(self.values)

    def full(self, default: int, dtype: type = np.int64) -> npt.NDArray[Any]:
        """One value an event, `default` where absent. The array is new and may be written to."""
        if self.rows is None:
            return self.values.astype(dtype)
        out: npt.NDArray[Any] = np.full(self.n, default, dtype=dtype)
        out[self.rows] = self.values
        return out

    def translated(self, codes: Mapping[str, int]) -> Column:
        """The same column with each word replaced by its code. Suspect: a word in use has none."""
        table = np.array([codes.get(word, -1) for word in self.words] or [-1], dtype=np.int64)
        self.values = table[self.values]
        if len(self.values) and self.values.min() < 0:
            raise Suspect
        return self

    def python(self) -> list[Any]:
        """The values as Python has them."""
        if self.lists is not None:
            values: list[Any] = self.lists.to_pylist()
            return values
        values = self.values.tolist()
        return [self.words[code] for code in values] if self.words else values


class Columns:
    """A piece of a trace: n events, their op codes, and the fields that any of them carries.

    arrays: field name -> Arrow array of the field's own type (string columns as dictionaries), n long.
    """

    def __init__(self, arrays: Mapping[str, pa.Array], n: int) -> None:
        self.n = n
        self.arrays = {name: array for name, array in arrays.items() if array.null_count < n}
        self._columns: dict[str, Column] = {}
        if "op" not in self.arrays:
            raise Suspect
        op = self.column("op")
        if op.rows is not None:
            raise Suspect
        self.only_faults = op.words == ["fault"]
        self.op: npt.NDArray[np.uint8]
        if self.only_faults:
            self.op = np.full(n, OP_FAULT, dtype=np.uint8)
        else:
            self.op = op.translated(OP_CODE).values.astype(np.uint8)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def column(self, name: str) -> Column:
        """The field's column; it must be there."""
        if name not in self._columns:
            self._columns[name] = Column(self.arrays[name])
        return self._columns[name]

    def full(self, name: str, default: int, dtype: type = np.int64) -> npt.NDArray[Any]:
        """One value an event, `default` where the field is absent."""
        if name in self.arrays:
            return self.column(name).full(default, dtype)
        return np.full(self.n, default, dtype=dtype)

    @cached_property
    def counts(self) -> IntArray:
        """int64[len(OPS)]: how many events of each op there are."""
        if self.only_faults:
            counts = np.zeros(len(OPS), dtype=np.int64)
            counts[OP_FAULT] = self.n
            return counts
        return np.bincount(self.op, minlength=len(OPS))

    @cached_property
    def rare(self) -> IntArray:
        """int64[k]: the events that are no faults, ascending."""
        if self.counts[OP_FAULT] == self.n:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.op != OP_FAULT)

    def rows(self, *codes: int) -> IntArray:
        """int64[k]: the events of these ops (not fault), ascending."""
        if not self.counts[list(codes)].any():
            return self.rare[:0]
        wanted = np.zeros(len(OPS), dtype=np.bool_)
        wanted[list(codes)] = True
        return self.rare[wanted[self.op[self.rare]]]

    def field_counts(self, name: str) -> IntArray:
        """int64[len(OPS)]: how many events of each op carry the field."""
        rows = self.column(name).rows
        if self.only_faults and rows is not None:
            counts = np.zeros(len(OPS), dtype=np.int64)
            counts[OP_FAULT] = len(rows)
            return counts
        return self.counts if rows is None else np.bincount(self.op[rows], minlength=len(OPS))


def canonical(name: str, array: pa.Array) -> pa.Array:
    """The array with the field's own type: integers of its width, strings as a dictionary, lists of strings.

    ArrowInvalid: an integer that does not fit.  TypeError: a type that is no form of the field's.
    """
    wanted = FIELD[name].arrow_type
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), wanted)
    if pa.types.is_dictionary(array.type) and not pa.types.is_string(wanted):
        array = array.dictionary_decode()
    if not fits(name, array.type):
        raise TypeError(f"{name} is a column of {array.type}, not of {wanted}")
    if pa.types.is_string(wanted):
        return _dictionary(array)
    if pa.types.is_list(wanted) and not _is_list(array.type):
        return _split(array)
    return array if array.type == wanted else array.cast(wanted)


def fits(name: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can be the field's: same sort of value, whatever the width or encoding."""
    wanted = FIELD[name].arrow_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return True
    if pa.types.is_list(wanted):
        return _is_string(kind.value_type if _is_list(kind) else kind)
    for test in (pa.types.is_integer, pa.types.is_boolean, _is_string):
        if test(wanted):
            return bool(test(kind))
    return False


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _dictionary(array: pa.Array) -> pa.Array:
    """A string array as dictionary<int32, string>."""
    wanted = pa.dictionary(pa.int32(), pa.string())
    if not pa.types.is_dictionary(array.type):
        array = (array if array.type == pa.string() else array.cast(pa.string())).dictionary_encode()
    return array if array.type == wanted else array.cast(wanted)


def _split(array: pa.Array) -> pa.Array:
    """Command lines that came as one string each, as lists."""
    words = [None if text is None else split_cmdline(text) for text in array.to_pylist()]
    return pa.array(words, pa.list_(pa.string()))
