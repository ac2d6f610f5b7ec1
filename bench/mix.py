"""What mixing costs beside a plain replay of the same recording: time an event, and the ratio.

    python -m bench.mix [FILE...] [--runs 7]

Decoding is not counted. alone: the recording as a mix of one. ticked: the same with something that waits for every
10 ms. four: four copies of it in turns, a quarter of their time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pterefd.host.host import Host
from pterefd.mm.events import Batch
from pterefd.mm.profile import named
from pterefd.session.feed import Feed
from pterefd.session.mix import Mix
from pterefd.source.place import Placed, pid_bases
from pterefd.source.source import Source
from pterefd.source.trace import open_trace

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = [ROOT / "etc" / "traces" / f"{name}.parquet" for name in ("redis", "python", "programs/java")]


class Decoded(Source):
    """A trace whose batches are in memory."""

    def __init__(self, path: Path) -> None:
        self._trace = open_trace(path)
        self.meta = self._trace.meta
        self._decoded = list(self._trace.batches())

    @property
    def name(self) -> str:
        return self._trace.name

    @property
    def events(self) -> int:
        return self._trace.events

    def batches(self) -> Iterator[Batch]:
        return iter(self._decoded)

    def where(self, index: int) -> str:
        return self._trace.where(index)


def plain(source: Source) -> float:
    """Seconds of a replay."""
    feed = Feed(source, Host(named("rfc-2022")))
    begin = time.perf_counter()
    for batch in source.batches():
        feed.run(batch, 0, len(batch))
    return time.perf_counter() - begin


def mixed(source: Source, copies: int, on_tick: Callable[[], object] | None) -> float:
    """Seconds of a mix of so many copies, for one of them."""
    bases = pid_bases([source] * copies, [None] * copies)
    mix = Mix([Placed(source, pid_base=base) for base in bases], Host(named("rfc-2022")), on_tick=on_tick)
    begin = time.perf_counter()
    mix.run()
    return (time.perf_counter() - begin) / copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=BUNDLED)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    print(f"{'recording':<12}{'events':>9}{'seconds':>9}{'plain, ms':>11}{'alone':>8}{'ticked':>8}{'four':>8}")
    for path in options.files:
        source = Decoded(path)
        length = max(int(batch.t.max(initial=0)) for batch in source.batches()) / 1e9
        works: list[Callable[[], float]] = [
            lambda: plain(source),  # noqa: B023 - called in this turn
            lambda: mixed(source, 1, None),  # noqa: B023
            lambda: mixed(source, 1, lambda: None),  # noqa: B023
            lambda: mixed(source, 4, None),  # noqa: B023
        ]
        plain(source)
        columns = zip(*([work() for work in works] for _ in range(options.runs)), strict=True)
        first, *others = [statistics.median(column) for column in columns]
        ratios = "".join(f"{other / first:>8.2f}" for other in others)
        print(f"{path.stem:<12}{source.events:>9}{length:>9.1f}{first * 1e3:>11.1f}{ratios}")


if __name__ == "__main__":
    main()
