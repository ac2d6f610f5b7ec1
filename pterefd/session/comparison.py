"""All results of a comparison together: regret against the bound, and the report in every format.

One list of tables, each of a few columns, is rendered as text for a terminal, as Markdown, or as plain text within 72
columns for a mail. JSON and CSV hold every number. Nothing here depends on when or where the runs were done.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pterefd import quantities
from pterefd.session.outcome import BOUND, NUMBERS, Outcome, Result

MAIL_COLUMNS = 72

UNKNOWN = (
    "A recording does not know which pages were accessed again once they were present: which pages the host swaps out "
    "first is a guess, and a page that it swapped out comes back only where the recording has a fault there.",
    "It does not know which entries of a zero PTE page were read again once the PTE page was freed. Each would be one "
    "more read fault: between 0 and the number shown.",
    "Costs are those of the table that was measured, for operations one by one. How often a fault meets a hold of the "
    "mmap_lock is expected from the rate of faults, not observed.",
)


@dataclass(frozen=True, slots=True)
class Regret:
    """How far a run is from the bound of its profile, memory and seed. Both may be below 0 where other mms were killed.

    byte_seconds: page tables above the bound's, over the trace's time.  again: PTE pages made again beyond its.
    """

    byte_seconds: int
    again: int


@dataclass(frozen=True, slots=True)
class Held:
    """One expectation of a scenario and one run: does it hold, and what is the number? run None: it is about no run.

    sized: the number is a size in bytes.
    """

    text: str
    run: int | None
    value: float | None
    holds: bool
    sized: bool = False

    def shown(self) -> str:
        """The number in the unit that a condition would have; `-` for none."""
        if self.value is None:
            return "-"
        return size(self.value) if self.sized else f"{self.value:.12g}"


@dataclass(slots=True)
class Comparison:
    """Results in the order of the table. costs: where the table of costs was measured."""

    title: str
    results: list[Result]
    costs: str
    held: list[Held]
    about: str = ""

    def regrets(self) -> list[Regret | None]:
        """Of each result; None where its bound was not computed."""
        bounds = {_bound_key(r): r.outcome for r in self.results if r.combination.policy == BOUND}
        found: list[Regret | None] = []
        for result in self.results:
            bound = bounds.get(_bound_key(result))
            found.append(None if bound is None else _regret(result.outcome, bound))
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        runs = []
        for result, regret in zip(self.results, self.regrets(), strict=True):
            above = None if regret is None else {"byte_seconds": regret.byte_seconds, "again": regret.again}
            runs.append({**result.combination.as_dict(), **result.outcome.as_dict(), "regret": above})
        expected = [{"expect": h.text, "run": h.run, "value": h.value, "holds": h.holds} for h in self.held]
        return {
            "scenario": self.title,
            "costs": self.costs,
            "runs": runs,
            "expected": expected,
            "unknown": list(UNKNOWN),
        }

    def as_csv(self) -> str:
        """A line a run."""
        out = io.StringIO()
        names = ["profile", "policy", "trigger", "memory_bytes", "seed", *NUMBERS, "freed_by_trigger"]
        table = csv.DictWriter(out, [*names, "regret_byte_seconds", "regret_again"], lineterminator="\n")
        table.writeheader()
        for result, regret in zip(self.results, self.regrets(), strict=True):
            row = result.combination.as_dict() | {name: getattr(result.outcome, name) for name in NUMBERS}
            by_trigger = result.outcome.freed_by_trigger
            row["freed_by_trigger"] = " ".join(f"{name}={by_trigger[name]}" for name in sorted(by_trigger))
            if regret is not None:
                row |= {"regret_byte_seconds": regret.byte_seconds, "regret_again": regret.again}
            table.writerow(row)
        return out.getvalue()


def _bound_key(result: Result) -> tuple[str, int, int]:
    c = result.combination
    return c.profile, c.memory_bytes, c.seed


def _regret(outcome: Outcome, bound: Outcome) -> Regret:
    above = (outcome.mean_pgtables_bytes - bound.mean_pgtables_bytes) * outcome.duration_ns
    return Regret(round(above / 1e9), outcome.allocated_again - bound.allocated_again)


# ---- numbers as people read them --------------------------------------------------------------------


size = quantities.shown_size


def duration(ns: float) -> str:
    """`310 us`, `1.52 s`."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= factor:
            return f"{ns / factor:.3g} {unit}"
    return f"{ns:.0f} ns" if ns else "0"


def number(value: float) -> str:
    """Short: `951`, `0.12`, `12.3k`, `1.2M`."""
    if abs(value) < 10_000:
        return f"{value:.0f}" if value == int(value) else f"{value:.3g}"
    unit, factor = next((u, f) for u, f in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if abs(value) >= f)
    return f"{value / factor:.3g}{unit}"


# ---- tables -----------------------------------------------------------------------------------------

Cell = Callable[[Result, "Regret | None"], str]


def _first_kill(o: Outcome) -> str:
    if o.panicked and o.first_kill_ns is None:
        return "panic"
    return "-" if o.first_kill_ns is None else duration(o.first_kill_ns)


# Title of each table, and its columns. All lie within 72 columns, the number of the run in front.
TABLES: tuple[tuple[str, tuple[tuple[str, Cell], ...]], ...] = (
    (
        "Page tables, and who was killed",
        (
            ("peak", lambda r, _: size(r.outcome.peak_pgtables_bytes)),
            ("mean", lambda r, _: size(r.outcome.mean_pgtables_bytes)),
            ("empty", lambda r, _: size(r.outcome.freed_empty_bytes)),
            ("zero", lambda r, _: size(r.outcome.freed_zero_bytes + r.outcome.freed_mixed_bytes)),
            ("kills", lambda r, _: str(r.outcome.kills)),
            ("first", lambda r, _: _first_kill(r.outcome)),
            ("lost", lambda r, _: number(r.outcome.lost)),
        ),
    ),
    (
        "What it cost",
        (
            ("again", lambda r, _: number(r.outcome.allocated_again)),
            ("away", lambda r, _: duration(r.outcome.away_mean_ns)),
            ("refaults", lambda r, _: f"0..{number(r.outcome.zero_refaults_most)}"),
            ("held", lambda r, _: duration(r.outcome.write_held_ns)),
            ("waited", lambda r, _: number(r.outcome.faults_in_hold)),
            ("p50", lambda r, _: duration(r.outcome.wait_p50_ns)),
            ("p99", lambda r, _: duration(r.outcome.wait_p99_ns)),
        ),
    ),
    (
        "Swap, and what keeping count cost",
        (
            ("pswpout", lambda r, _: number(r.outcome.pswpout)),
            ("pswpin", lambda r, _: number(r.outcome.pswpin)),
            ("majflt", lambda r, _: number(r.outcome.pgmajfault)),
            ("counts", lambda r, _: number(r.outcome.refcount_updates)),
            ("walkers", lambda r, _: number(r.outcome.walker_pairs)),
            ("rmap", lambda r, _: number(r.outcome.rmap_locks)),
            ("in all", lambda r, _: duration(r.outcome.cost_ns)),
        ),
    ),
)
REGRET = (
    "Above the bound, which knows the future",
    (
        ("bytes x time", lambda _r, g: "-" if g is None else f"{size(g.byte_seconds)} s"),
        ("made again", lambda _r, g: "-" if g is None else number(g.again)),
    ),
)
RUNS = (
    ("profile", lambda r, _: r.combination.profile),
    ("trigger", lambda r, _: r.combination.trigger),
    ("policy", lambda r, _: r.combination.policy),
    ("memory", lambda r, _: size(r.combination.memory_bytes) if r.combination.memory_bytes else "-"),
    ("seed", lambda r, _: str(r.combination.seed)),
)
LEGEND = (
    "peak, mean: bytes of page tables over the trace's time.  empty, zero: bytes of PTE pages freed on request, by "
    "kind.  first: when the first process was killed.  lost: events of killed processes and refused mappings.",
    "again: PTE pages made again after being freed, and how long they were away.  refaults: reads of freed zero PTE "
    "pages that no recording shows.  held: mmap_lock held for writing to free PTE pages.  waited: faults of the same "
    "process expected to have met a hold, and for how long.",
    "majflt: faults that read a page.  counts, walkers, rmap: updates of a PTE page's count, walkers' gets and puts, "
    "rmap locks.  in all: holds, counts, walkers, locks and PTE pages made again.",
)


def tables(comparison: Comparison) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows of cells; the first row has the columns' names, the first column the run's number)."""
    regrets = comparison.regrets()
    shown = [("Runs", RUNS), *TABLES, *([REGRET] if any(regrets) else [])]
    for title, columns in shown:
        rows = [["", *(name for name, _ in columns)]]
        for index, (result, regret) in enumerate(zip(comparison.results, regrets, strict=True), 1):
            rows.append([str(index), *(cell(result, regret) for _, cell in columns)])
        yield title, rows


def _notes(comparison: Comparison) -> Iterator[str]:
    """Paragraphs behind the tables."""
    yield from LEGEND
    yield f"Costs: {comparison.costs}."
    for held in comparison.held:
        verb = "holds" if held.holds else "DOES NOT HOLD"
        if held.run is None:
            yield f"Expected, and about no run: {held.text}: {verb}"
            continue
        yield f"Expected of run {held.run}: {held.text}: {verb} ({held.shown()})"
    yield "What a recording cannot know:"
    yield from (f"- {line}" for line in UNKNOWN)


def _aligned(rows: list[list[str]], text_columns: int) -> Iterator[str]:
    """Lines of a table; the first columns, but for the number, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if 1 <= k <= text_columns else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def render_table(comparison: Comparison, width: int = 100) -> str:
    """For a terminal; also for a mail, whose width is 72. A run's line too long for it is broken before its policy."""
    import textwrap

    lines = [*textwrap.wrap(comparison.title, width), ""]
    for paragraph in comparison.about.split("\n\n") if comparison.about else []:
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    for title, rows in tables(comparison):
        text = list(_aligned(rows, 3 if title == "Runs" else 0))
        if max(map(len, text)) > width:
            text = list(_broken(rows))
        lines += [title, *text, ""]
    for note in _notes(comparison):
        lines += textwrap.wrap(note, width, subsequent_indent="  ", break_long_words=False)
    return "\n".join(lines) + "\n"


def _broken(rows: list[list[str]]) -> Iterator[str]:
    """Runs with long names: a line for each."""
    names, *cells = rows
    for row in cells:
        yield f"{row[0]}:"
        yield from (f"   {name} {cell}" for name, cell in zip(names[1:], row[1:], strict=True))


def render_mail(comparison: Comparison) -> str:
    """Plain text within 72 columns."""
    return render_table(comparison, MAIL_COLUMNS)


def render_markdown(comparison: Comparison) -> str:
    """GitHub's tables."""
    parts = [f"## {comparison.title}\n"]
    if comparison.about:
        parts.append(f"{comparison.about.strip()}\n")
    for title, (names, *rows) in tables(comparison):
        lines = [_markdown_row(names), _markdown_row(["---"] * len(names)), *map(_markdown_row, rows)]
        parts.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    notes = list(_notes(comparison))
    bullets = [note for note in notes if note.startswith("- ")]
    parts += [f"{note}\n" for note in notes if not note.startswith("- ")]
    parts.append("\n".join(bullets) + "\n")
    return "\n".join(parts)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


RENDERERS: dict[str, Callable[[Comparison], str]] = {
    "table": render_table,
    "markdown": render_markdown,
    "mail": render_mail,
}
