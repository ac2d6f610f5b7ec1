"""What the view shows: a line each, with a history of what could be given back, and the sums."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pterefd.quantities import shown_size
from pterefd.top.sources import Row, Snapshot

HEADER_LINES = 4  # title, sums, the table's own head, the last line
KEYS = "sizes in kB   up/down or k/j: choose   f: free   q: quit"
_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
_COMM, _KB = 15, 8
_COLUMNS = ("VmPTE", "reclaimable", "empty", "zero", "mixed", "RSS")


class History:
    """The last values of each process that was shown."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int], deque[int]] = {}

    def note(self, rows: Sequence[Row]) -> None:
        """One more value each; those that are shown no more are forgotten."""
        self._values = {row.key: self._values.get(row.key, deque(maxlen=_HISTORY)) for row in rows}
        for row in rows:
            self._values[row.key].append(row.reclaimable)

    def bars(self, key: tuple[int, int]) -> str:
        """The values as bars from 0 to their highest, oldest first."""
        values = self._values.get(key, ())
        top = max(values, default=0)
        return "".join(_BARS[value * (len(_BARS) - 1) // top if top else 0] for value in values)


def cells(row: Row) -> list[str]:
    """Sizes of a row in kB, as top has them."""
    return [str(value >> 10) for value in (row.vm_pte, row.reclaimable, row.empty, row.zero, row.mixed, row.rss)]


def sums(title: str, snapshot: Snapshot) -> str:
    """The line of all processes together."""
    text = (
        f"{title}: {snapshot.processes} processes, VmPTE {shown_size(snapshot.vm_pte)}, "
        f"reclaimable {shown_size(snapshot.reclaimable)}"
    )
    if snapshot.waiting:
        text += f", {snapshot.waiting} not looked at yet"
    if snapshot.not_seen:
        text += f", {snapshot.not_seen} not seen (rights)"
    return text


def plain(title: str, snapshot: Snapshot) -> str:
    """The view as lines of text, for a file or a pipe."""
    head = f"{'PID':>8}  {'COMMAND':<16}" + "".join(f"{name:>12}" for name in _COLUMNS)
    lines = [f"{sums(title, snapshot)}; below in kB", head]
    lines += [f"{row.pid:>8}  {row.comm:<16}" + "".join(f"{cell:>12}" for cell in cells(row)) for row in snapshot.rows]
    return "\n".join(lines) + "\n"


def drawn(title: str, snapshot: Snapshot, history: History, chosen: int, message: str) -> RenderableType:
    """The view on a terminal. chosen: number of the row that a key acts on."""
    table = Table(box=None, padding=(0, 1), header_style="reverse")
    table.add_column("PID", justify="right", min_width=7)
    table.add_column("COMMAND", no_wrap=True, width=_COMM)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True, min_width=_KB)
    table.add_column("lately", no_wrap=True, max_width=_HISTORY)
    for number, row in enumerate(snapshot.rows):
        table.add_row(
            str(row.pid),
            Text(row.comm),
            *cells(row),
            history.bars(row.key),
            style="bold reverse" if number == chosen else "dim" if not row.reclaimable else "",
        )
    return Group(Text(sums(title, snapshot)), table, Text(message or KEYS, style="dim"))
