"""`pterefd replay`: traces through the model at full speed, no daemon; with --check against their checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pterefd.cli.differences import check_options, difference_lines, large_folio_line, last_line
from pterefd.cli.options import FILE, print_json, progress

if TYPE_CHECKING:
    from pterefd.session.check import FileResult
    from pterefd.session.report import MmRow

Columns = Sequence[tuple[str, Callable[["MmRow"], str]]]

# Title and text of each column of the table; sizes in kB.
COLUMNS = (
    ("pid", lambda row: str(row.pid)),
    ("exec", lambda row: str(row.exec_number)),
    ("VmPTE", lambda row: str(row.VmPTE)),
    ("RssAnon", lambda row: str(row.RssAnon)),
    ("RssFile", lambda row: str(row.RssFile)),
    ("RssShmem", lambda row: str(row.RssShmem)),
    ("VmSwap", lambda row: str(row.VmSwap)),
    ("empty", lambda row: str(row.empty_bytes >> 10)),
    ("zero", lambda row: str(row.zero_bytes >> 10)),
    ("reclaimable", lambda row: str(row.reclaimable_pt_bytes >> 10)),
    ("peak VmPTE", lambda row: str(row.peak_VmPTE)),
    ("peak reclaimable", lambda row: str(row.peak_reclaimable_pt_bytes >> 10)),
)

COSTS = (
    ("pid", lambda row: str(row.pid)),
    ("exec", lambda row: str(row.exec_number)),
    ("refcount updates", lambda row: str(row.refcount_updates)),
    ("walker pairs", lambda row: str(row.walker_pairs)),
    ("rmap locks", lambda row: str(row.rmap_locks)),
    ("write holds", lambda row: str(row.mmap_write_holds)),
    ("freed by itself", lambda row: str(row.freed_by_itself)),
    ("on request", lambda row: str(row.freed_on_request)),
    ("allocated again", lambda row: str(row.allocated_again)),
)


@click.command("replay")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--profile", metavar="P", help="Which kernel's rules (docs/profiles.md); default rfc-2022, with --check auto."
)
@click.option("--check", is_flag=True, help="Compare with every checkpoint; exit code 1 where one differs.")
@click.option("--fields", metavar="A,B", help="With --check: compare these fields alone.")
@click.option("--tolerance", "tolerances", multiple=True, metavar="FIELD=16kB|1%", help="With --check; repeatable.")
@click.option("--costs", is_flag=True, help="Show what the profile's way of freeing costs, too (docs/costs.md).")
@click.option("--strict", is_flag=True, help="A fault outside every mapping is an error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    files: tuple[Path, ...],
    profile: str | None,
    check: bool,
    fields: str | None,
    tolerances: tuple[str, ...],
    costs: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Replay each FILE on a host of its own and show every mm at its end and at its peak, in kB.

    With --check the last line for a file is `FILE: N checkpoints, M differ`. Every file is tried.
    """
    if not check and (fields is not None or tolerances):
        raise click.UsageError("--fields and --tolerance go with --check")
    from pterefd.session import check as session

    options = check_options(fields, tolerances, None) if check else None
    results = []
    for file in files:
        with progress(f"replaying {file}") as tell:
            results.append(session.check_trace(file, profile=profile, options=options, strict=strict, progress=tell))
        _warn(results[-1])
        if not as_json:
            click.echo("".join(f"{line}\n" for line in _text(results[-1], check, costs)), nl=False)
        if results[-1].by_large_folios:
            print(large_folio_line(results[-1]), file=sys.stderr)
    if as_json:
        print_json({"files": [result.as_dict() for result in results]})
    return session.exit_code(results)


def _warn(result: FileResult) -> None:
    """What went wrong, or makes the numbers less than exact, on standard error."""
    if result.error is not None:
        print(f"pterefd: {result.error}", file=sys.stderr)
    if result.thp == "seen":
        print(
            f"pterefd: {result.path}: HUGE PAGES were seen while recording: not exact where they were", file=sys.stderr
        )
    if result.outside:
        print(f"pterefd: {result.path}: {result.outside:,} faults lay outside every mapping", file=sys.stderr)
    for what, number in result.skipped.items():
        print(f"pterefd: {result.path}: {what}: {number:,} times", file=sys.stderr)


def _text(result: FileResult, check: bool, costs: bool) -> Iterator[str]:
    """The lines about one file."""
    if result.error is not None:
        return
    yield f"{result.path}: {result.events:,} events under {result.profile}"
    yield from _table(result.rows, COLUMNS)
    if costs:
        yield from _table(result.rows, COSTS)
    if not check:
        return
    yield from difference_lines(result)
    window = f"{result.widest_window_ns / 1e6:.3g} ms" if result.widest_window_ns else "none"
    yield f"corrections: {result.corrections}, widest window: {window}"
    yield last_line(result)


def _table(rows: Sequence[MmRow], columns: Columns) -> Iterator[str]:
    cells = [[title for title, _ in columns], *([text(row) for _, text in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line, comm in zip(cells, ["comm", *(row.comm for row in rows)], strict=True):
        yield "  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), comm])
