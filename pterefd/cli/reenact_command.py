"""`pterefd reenact`: a trace's operations as real system calls on a kernel, held against the model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pterefd import outputs
from pterefd.cli.differences import BUT_FOR_LARGE_FOLIOS, check_options, difference_lines, last_line
from pterefd.cli.options import FILE, force, output, print_json, progress
from pterefd.errors import Partly, PterefdError

if TYPE_CHECKING:
    from pterefd.reenact.kernel import Kernel
    from pterefd.reenact.reenact import Result


@click.command("reenact")
@click.argument("file", type=FILE)
@click.option("--kernel", "image", type=FILE, metavar="IMAGE", help="In a qemu guest with this kernel, not here.")
@click.option(
    "--profile", metavar="P", default="auto", help="Which kernel's rules; default: those of the kernel it runs on."
)
@click.option("--every", type=click.IntRange(min=1), metavar="N", help="Compare after every N events, too.")
@click.option("--fields", metavar="A,B|all", help=f"Compare these; default {BUT_FOR_LARGE_FOLIOS}.")
@click.option("--tolerance", "tolerances", multiple=True, metavar="FIELD=16kB|1%", help="Repeatable.")
@click.option("--time", "timed", is_flag=True, help="Also say how long kernel and model take, medians of 5 runs.")
@output("--reproducer", metavar="OUT.c", what="Where something differs: write the shortest C program.")
@output("--keep", metavar="OUT", what="Keep the new trace, of what was done and what the kernel said.")
@force()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    file: Path,
    image: Path | None,
    profile: str,
    every: int | None,
    fields: str | None,
    tolerances: tuple[str, ...],
    timed: bool,
    reproducer: Path | None,
    keep: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Do what FILE says once more, as real system calls, and compare what the kernel says with the model.

    It is compared where FILE has checkpoints, at the end of every process, and with --every in between. What could not
    be done as it was is counted by kind. The last line is `FILE: N checkpoints, M differ`; exit code 1 where one
    differs.
    """
    inputs = [file, *([image] if image is not None else [])]
    for target, ending in ((reproducer, ".c"), (keep, ".parquet")):
        if target is not None:
            outputs.check(target, force=force, ending=ending, inputs=inputs)
    from pterefd.reenact import reenact as session

    options = check_options(fields, tolerances, session.FIELDS)
    with session.kernel_for(image) as kernel, progress(f"re-enacting {file}") as tell:
        result = session.reenact(
            file,
            kernel,
            profile=profile,
            options=options,
            every=every or 0,
            keep=keep,
            force=force,
            timed=timed,
            progress=tell,
        )
        written = _reproduce(result, kernel, reproducer) if reproducer is not None and result.check.differ else None
    if result.check.error is not None:
        raise result.check.error
    if as_json:
        print_json(result.as_dict() | ({"reproducer": written} if written is not None else {}))
    else:
        click.echo("".join(f"{line}\n" for line in _text(result, written)), nl=False)
    return int(result.check.differ > 0)


def _reproduce(result: Result, kernel: Kernel, target: Path) -> str | None:
    """What the written program says; None, and why on standard error, where none could be made."""
    from pterefd.reenact.reproducer import reproduce

    try:
        return reproduce(result, kernel, target)
    except Partly as error:
        print(f"pterefd: {error}", file=sys.stderr)
        return None
    except PterefdError as error:
        print(f"pterefd: no reproducer: {error}", file=sys.stderr)
        return None


def _text(result: Result, written: str | None) -> Iterator[str]:
    done = result.done
    yield f"{result.check.path}: {done.operations:,} events on {result.kernel} under {result.check.profile}"
    numbers = {name: number for name, number in done.recorded.items() if name in result.fields}
    if numbers:
        again = ", ".join(f"{name} {done.as_recorded[name]} of {number}" for name, number in numbers.items())
        yield f"as recorded: {again} checkpoints"
    for kind, number in done.left_out.items():
        yield f"not as it was: {kind}: {number:,}"
    yield from _unlike(result)
    if result.timing is not None:
        yield str(result.timing)
    yield from difference_lines(result.check)
    if written is not None:
        yield written
    yield last_line(result.check)


def _unlike(result: Result) -> Iterator[str]:
    """Answers that are not the trace's, a line a kind."""
    first: dict[tuple[str, str, str], int] = {}
    kinds: Counter[tuple[str, str, str]] = Counter()
    for one in result.done.unlike:
        kind = (one.op, one.traced or "done", one.here or "done")
        first.setdefault(kind, one.index)
        kinds[kind] += 1
    for kind, number in kinds.items():
        op, traced, here = kind
        where = result.where(first[kind])
        yield f"answered otherwise: {op}: {traced} in the trace, {here} here: {number:,} (first: {where})"
