"""Views as structure of arrays: what hookspecs.View asks for, as far as it does not depend on the kind of host."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.hookspecs import Kinds, Usage
from pterefd.views.rates import FaultRates

I64 = npt.NDArray[np.int64]


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that nothing can make writable again: numpy refuses, as its memory is that of a bytes object."""
    return np.frombuffer(array.tobytes(), dtype=array.dtype)


def column(make: Callable[[Any], npt.NDArray[Any]]) -> property:
    """A column of the view: made at its first use, the same array from then on, read-only."""
    name = make.__name__

    def get(self: ArrayView) -> npt.NDArray[Any]:
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = frozen(make(self))
        return found

    return property(get, doc=make.__doc__)


class UsageNumbers:
    """hookspecs.HostNumbers: the host's own numbers, of what usage() says; groups and usage() are a subclass's."""

    __slots__ = ()

    def usage(self, group: str | None = None) -> Usage:
        """All numbers of the host, or of a group."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return self.usage().total

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return self.usage().free

    @property
    def min(self) -> int:
        """Watermark, bytes."""
        return self.usage().min

    @property
    def low(self) -> int:
        """Watermark, bytes."""
        return self.usage().low

    @property
    def high(self) -> int:
        """Watermark, bytes."""
        return self.usage().high


class ArrayView:
    """hookspecs.View but for its columns, which subclasses make. Arrays are taken at their first use.

    rng: the decision's generator, or what makes it when it is asked for.  rates: where fault rates are kept between
    views.  pids: the mms that are shown, None for all.
    """

    __slots__ = ("_columns", "_pids", "_rates", "_rng", "_time_ns")

    pid: Any
    faults: Any
    reclaimable_empty_bytes: Any
    reclaimable_zero_bytes: Any
    mixed_bytes: Any

    def __init__(
        self,
        time_ns: int,
        rng: random.Random | Callable[[], random.Random],
        rates: FaultRates | None = None,
        pids: frozenset[int] | None = None,
    ) -> None:
        self._time_ns = time_ns
        self._rng = rng
        self._rates = rates
        self._pids = pids
        self._columns: dict[str, npt.NDArray[Any]] = {}

    @property
    def time_ns(self) -> int:
        """The host's clock."""
        return self._time_ns

    @property
    def rng(self) -> random.Random:
        """The decision's own generator."""
        if not isinstance(self._rng, random.Random):
            self._rng = self._rng()
        return self._rng

    @column
    def fault_rate(self) -> npt.NDArray[np.float64]:
        """float64[n], faults per second of the host's time."""
        if self._rates is None:
            return np.zeros(len(self.pid))
        return self._rates.look(self._counted_ns(), self.pid, self.faults, whole=self._pids is None)

    def _counted_ns(self) -> int:
        """As of when faults are counted."""
        return self._time_ns

    def sizes(self, kinds: Kinds) -> I64:
        """int64[n]: what could be freed of these kinds."""
        name = f"sizes {kinds.value}"
        found = self._columns.get(name)
        if found is None:
            parts = {
                Kinds.EMPTY: self.reclaimable_empty_bytes,
                Kinds.ZERO: self.reclaimable_zero_bytes,
                Kinds.MIXED: self.mixed_bytes,
            }
            total = np.zeros(len(self.pid), dtype=np.int64)
            for kind in kinds:
                total += parts[kind]
            found = self._columns[name] = frozen(total)
        return found

    def ranking(self, kinds: Kinds) -> Iterator[int]:
        """Pids by falling reclaimable bytes of these kinds, those with none left out."""
        sizes = self.sizes(kinds)
        some = np.flatnonzero(sizes)
        order = some[np.argsort(-sizes[some], kind="stable")]
        yield from self.pid[order].tolist()

    def _has_row(self, pid: int) -> bool:
        place = int(np.searchsorted(self.pid, pid))
        return place < len(self.pid) and int(self.pid[place]) == pid
