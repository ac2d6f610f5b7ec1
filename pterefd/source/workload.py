"""A workload as a source: what its plugin emits, batch by batch, as a trace would give it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from pterefd.config import said
from pterefd.errors import BadInput
from pterefd.hookspecs import Workload
from pterefd.mm.events import Batch
from pterefd.source.builder import Builder
from pterefd.source.encode import arrays_of
from pterefd.source.meta import TraceMeta
from pterefd.source.rules import BadEvent
from pterefd.source.source import BATCH_EVENTS, Source
from pterefd.source.trace import Piece

FIRST_EVENTS = 16 * 1024  # in the first batch, at least; twice as many in each further one: a clock waits for the first
MOST_WAITING = 4 << 20  # events between two yields, 48 bytes each


class WorkloadSource(Source):
    """A workload with its parameters and seed. Every run makes it anew, so all runs give the same events.

    BadInput: a parameter that there is not, or of a value that it cannot have.
    """

    def __init__(self, workload: type[Workload], parameters: Mapping[str, Any] | None = None, seed: int = 0) -> None:
        self._class = workload
        self.parameters = dict(parameters or {})
        self.seed = seed
        if seed < 0:
            raise BadInput(f"workload {workload.name}: seed {seed} is negative")
        self._highest = self._make().highest_pid()
        self._events: int | None = None
        given = (f"--set={name}={value}" for name, value in self.parameters.items())
        self.meta = TraceMeta(
            arch="x86_64",
            page_size=4096,
            thp="never",
            command=["pterefd", "synth", workload.name, *given, f"--seed={seed}"],
        )

    @property
    def name(self) -> str:
        """The workload's name."""
        return self._class.name

    @property
    def events(self) -> int | None:
        """The number of events, once it has run to its end."""
        return self._events

    def highest_pid(self) -> int:
        """As the workload declares it."""
        return self._highest

    def where(self, index: int) -> str:
        """`allocator_churn: event 123`."""
        return f"{self.name}: event {index}"

    def _make(self) -> Workload:
        try:
            return self._class(self._class.Tunables(**self.parameters))
        except ValidationError as error:
            raise BadInput(f"workload {self.name}: {_reason(error, self._class.Tunables.model_fields)}") from None

    def batches(self) -> Iterator[Batch]:
        """Yield the events in order. BadInput names the workload and the event that it failed at."""
        workload, builder = self._make(), Builder(self._highest)
        steps = self._begin(workload, builder)
        least = FIRST_EVENTS
        while self._step(steps, builder):
            while builder.waiting >= least:
                yield builder.take(BATCH_EVENTS)
                least = min(2 * least, BATCH_EVENTS)
        while builder.waiting:
            yield builder.take(BATCH_EVENTS)
        self._events = builder.emitted

    def pieces(self) -> Iterator[Piece]:
        """The same events as columns, too, as a trace file stores them."""
        for batch in self.batches():
            yield Piece(arrays_of(batch), batch)

    def _begin(self, workload: Workload, builder: Builder) -> Iterator[Any]:
        """The workload's steps; a plain method has done its all already."""
        rng = np.random.Generator(np.random.PCG64(self.seed))
        with_steps = self._told(builder, lambda: workload.events(builder, rng))
        return iter(()) if with_steps is None else iter(with_steps)

    def _step(self, steps: Iterator[Any], builder: Builder) -> bool:
        """Let it emit up to its next yield. False at its end."""
        end = object()
        return self._told(builder, lambda: next(steps, end)) is not end

    def _told(self, builder: Builder, work: Any) -> Any:
        """Run a part of the workload's own code; what goes wrong in it is said with its name and place."""
        place = f"workload {self.name}: event"
        try:
            result = work()
        except BadEvent as error:
            raise BadInput(f"{place} {builder.emitted}: {error}") from None
        except Exception as error:
            raise BadInput(f"{place} {builder.emitted}: it raised {type(error).__name__}: {error}") from error
        if builder.waiting > MOST_WAITING:
            raise BadInput(f"{place} {builder.emitted}: more than {MOST_WAITING} events without a yield")
        return result


def _reason(error: ValidationError, known: Iterable[str]) -> str:
    """`arenas: should be at most 64, not 100` of the first of pydantic's errors. known: names of all parameters."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; there are: {', '.join(known) or 'none'}"
    return f"{name + ': ' if name else ''}{said(first)}"
