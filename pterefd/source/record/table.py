"""Groups of events as columns, brought into one order and handed to the trace writer piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pterefd.mm.events import OP_CODE, OPS
from pterefd.source.pending import plain
from pterefd.source.schema import FIELD, INT, LIST, STR

I64 = npt.NDArray[np.int64]

PIECE = 128 * 1024
_DELETED = " (deleted)"  # what d_path puts behind the name of a file that has none (any more)
FIRST, ROWS = 0, 1  # order of added events of one time: execs, others; perf's own come after both


class Words:
    """Strings and their numbers, for columns of strings."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, word: str) -> int:
        """The word's number; a name that is no UTF-8 gets its odd bytes escaped."""
        found = self._numbers.get(word)
        if found is None:
            found = self._numbers[word] = len(self.words)
            self.words.append(plain(word))
        return found

    def numbers(self, words: Sequence[str]) -> I64:
        """The same for many."""
        return np.array([self.number(word) for word in words], dtype=np.int64)


@dataclass(slots=True)
class Group:
    """Events of one op with the same fields, in ascending order of place.

    place: int64, nanoseconds that decide the order; also the events' t.  columns: field -> int64 values, numbers in
    Table.words for strings, or a list of lists for cmdline.  A value below 0 of a string field: absent.
    rank, seq: of events that were added one by one, what decides their order at equal places (seq None: perf's).
    """

    op: str
    place: I64
    columns: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    seq: I64 | None = None

    def __len__(self) -> int:
        return len(self.place)


class Table:
    """All events of a recording."""

    def __init__(self) -> None:
        self.words: dict[str, Words] = {name: Words() for name, item in FIELD.items() if item.type == STR}
        self._groups: list[Group] = []
        self._loose: dict[tuple[str, ...], list[tuple[int, int, tuple[Any, ...]]]] = {}
        self._seq = 0
        self._deleted: dict[str, dict[int, str]] = {}

    def add_group(self, group: Group) -> None:
        """Add events; they are sorted by place here."""
        if not len(group):
            return
        if len(group) > 1 and (np.diff(group.place) < 0).any():
            order = np.argsort(group.place, kind="stable")
            group.place = group.place[order]
            group.columns = {name: values[order] for name, values in group.columns.items()}
        self._groups.append(group)

    def add(self, t: int, op: str, rank: int, **fields: Any) -> None:
        """Add one event. Those of one place and rank keep the order in which they were added."""
        shape = (op, str(rank), *fields)
        self._loose.setdefault(shape, []).append((t, self._seq, tuple(fields.values())))
        self._seq += 1

    def numbers(self, name: str, words: Sequence[str]) -> I64:
        """Numbers of the words in the string field's column."""
        return self.words[name].numbers(words)

    def file_name(self, path: str, inode: int) -> str:
        """The path, with a number behind it where several files without a name show the same one (memfd, SysV)."""
        if not path.endswith(_DELETED):
            return path
        names = self._deleted.setdefault(path, {})
        return names.setdefault(inode, f"{path}#{len(names) + 1}" if names else path)

    def with_word(self, values: I64, name: str, word: str) -> npt.NDArray[np.bool_]:
        """Of a column of comma-separated words: which values have the word among them."""
        has = np.array([word in text.split(",") for text in self.words[name].words] or [False], dtype=np.bool_)
        return has[values]

    def groups(self) -> list[Group]:
        """Every group."""
        self._settle()
        return self._groups

    def _settle(self) -> None:
        """Make groups of the events that were added one by one."""
        for (op, rank, *names), events in self._loose.items():
            events.sort(key=lambda event: event[0])
            place = np.array([event[0] for event in events], dtype=np.int64)
            seq = np.array([event[1] for event in events], dtype=np.int64)
            columns = {}
            for at, name in enumerate(names):
                columns[name] = self._column(name, [event[2][at] for event in events])
            self._groups.append(Group(op, place, columns, int(rank), seq))
        self._loose = {}

    def _column(self, name: str, values: list[Any]) -> Any:
        if FIELD[name].type == STR:
            return np.array([-1 if word is None else self.words[name].number(word) for word in values], dtype=np.int64)
        return values if FIELD[name].type == LIST else np.array(values, dtype=np.int64)

    # -- in order -------------------------------------------------------------------------------

    def pieces(self, begin: int) -> Iterator[tuple[Mapping[str, pa.Array], int]]:
        """The events in order, PIECE at a time, as columns for TraceWriter.add_arrays. begin: the time that is 0."""
        self._settle()
        groups = self._groups
        if not groups:
            return
        place, where = self._positions()
        times = np.maximum(place - begin, 0)
        for start in range(0, len(place), PIECE):
            end = min(start + PIECE, len(place))
            yield self._piece(where, start, end, times[start:end]), end - start

    def _positions(self) -> tuple[I64, list[I64]]:
        """Places in order, and for each group the positions of its events in it (ascending, as the group is)."""
        samples = [group for group in self._groups if group.seq is None]
        added = [group for group in self._groups if group.seq is not None]
        sample_place, sample_where = _sorted_together(samples, None)
        keys = [(np.full(len(group), group.rank), group.seq) for group in added]
        added_place, added_where = _sorted_together(added, keys)
        before_sample = np.searchsorted(added_place, sample_place, side="right")
        before_added = np.searchsorted(sample_place, added_place, side="left")
        sample_at = np.arange(len(sample_place)) + before_sample
        added_at = np.arange(len(added_place)) + before_added
        place = np.empty(len(sample_place) + len(added_place), dtype=np.int64)
        place[sample_at] = sample_place
        place[added_at] = added_place
        found = {id(group): sample_at[rows] for group, rows in zip(samples, sample_where, strict=True)}
        found |= {id(group): added_at[rows] for group, rows in zip(added, added_where, strict=True)}
        return place, [found[id(group)] for group in self._groups]

    def _piece(self, where: list[I64], start: int, end: int, times: I64) -> dict[str, pa.Array]:
        n = end - start
        codes = np.zeros(n, dtype=np.int8)
        parts: dict[str, list[tuple[I64, Any]]] = {}
        for group, positions in zip(self._groups, where, strict=True):
            low, high = np.searchsorted(positions, (start, end))
            if low == high:
                continue
            rows = positions[low:high] - start
            codes[rows] = OP_CODE[group.op]
            for name, values in group.columns.items():
                parts.setdefault(name, []).append((rows, values[low:high]))
        arrays = {name: self._array(name, pieces, n) for name, pieces in parts.items()}
        arrays["op"] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(OPS, pa.string()))
        arrays["t"] = pa.array(times)
        return arrays

    def _array(self, name: str, pieces: list[tuple[I64, Any]], n: int) -> pa.Array:
        kind = FIELD[name].type
        if kind == LIST:
            lists: list[Any] = [None] * n
            for rows, values in pieces:
                for row, value in zip(rows.tolist(), values, strict=True):
                    lists[row] = value
            return pa.array(lists, FIELD[name].arrow_type)
        values = np.zeros(n, dtype=np.int64)
        absent = np.ones(n, dtype=np.bool_)
        for rows, some in pieces:
            values[rows] = some
            absent[rows] = False
        if kind == STR:
            absent |= values < 0
            values[absent] = 0
            words = pa.array(self.words[name].words or [""], pa.string())
            return pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int32), mask=absent), words)
        if kind == INT:
            absent |= values == ABSENT
            return pa.array(values, mask=absent)
        return pa.array(values.astype(np.bool_), mask=absent)


def _sorted_together(groups: list[Group], keys: list[tuple[I64, Any]] | None) -> tuple[I64, list[I64]]:
    """The places of some groups in order, and for each group where its events are among them."""
    if not groups:
        return np.empty(0, dtype=np.int64), []
    place = np.concatenate([group.place for group in groups])
    if keys is None:
        order = np.argsort(place, kind="stable")
    else:
        order = np.lexsort((np.concatenate([key[1] for key in keys]), np.concatenate([key[0] for key in keys]), place))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    bounds = np.cumsum([0, *(len(group) for group in groups)]).tolist()
    return place[order], [position[a:b] for a, b in itertools.pairwise(bounds)]


ABSENT = -(1 << 62)  # in a column of integers: the event does not have the field
