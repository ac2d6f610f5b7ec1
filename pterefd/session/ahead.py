"""The next batches of several sources, made before anybody waits for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from pterefd.mm.events import Batch
from pterefd.source.source import Source

BATCHES = 2  # that are kept of a source beside the one in use


class Ahead:
    """Reads sources in a thread of its own, so that what takes long to make is there when its time comes.

    The source that has nothing ready comes first, then the one whose events reach least far in time: one thread for
    all, as Python's lock lets one of them work at a time anyway.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._lines = [_Line(source, number) for number, source in enumerate(sources)]
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no further; whoever waits in take() is let go. What is being made now is left to itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def fill(self) -> None:
        """Wait until every source has a batch ready, or has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or all(line.ready for line in self._lines))

    def take(self, number: int) -> Batch | None:
        """The next batch of a source, waited for; None behind its last one, or after stop().

        What the source raised is raised here, in its place among the batches.
        """
        line = self._lines[number]
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or line.ready)
            if line.batches:
                self._changed.notify_all()
                return line.batches.popleft()
        if line.error is not None:
            raise line.error
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._next() is not None or self._all_made())
                line = self._next()
                if self._stopping or line is None:
                    return
            batch = line.make()
            with self._changed:
                line.add(batch)
                self._changed.notify_all()

    def _next(self) -> _Line | None:
        """The source that is read next; None where all have enough."""
        hungry = [line for line in self._lines if not line.made and len(line.batches) < BATCHES]
        return min(hungry, key=_Line.rank, default=None)

    def _all_made(self) -> bool:
        return all(line.made for line in self._lines)


class _Line:
    """What has been made of one source and not been taken. made: there is no more to come."""

    def __init__(self, source: Source, number: int) -> None:
        self._source = iter(source.batches())
        self._number = number
        self._until = 0  # ns of the source's time
        self.batches: deque[Batch] = deque()
        self.made = False
        self.error: BaseException | None = None

    @property
    def ready(self) -> bool:
        return bool(self.batches) or self.made

    def rank(self) -> tuple[bool, int, int]:
        """Less: more urgent."""
        return bool(self.batches), self._until, self._number

    def make(self) -> Batch | None:
        """The next batch that is not empty; None at the end. Takes as long as the source takes."""
        try:
            return next((batch for batch in self._source if len(batch)), None)
        except BaseException as error:
            self.error = error
            return None

    def add(self, batch: Batch | None) -> None:
        if batch is None:
            self.made = True
            return
        self.batches.append(batch)
        self._until = max(self._until, int(batch.t[-1]))
