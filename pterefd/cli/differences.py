"""How commands say where the model and a kernel differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pterefd import quantities
from pterefd.errors import BadInput

if TYPE_CHECKING:
    from pterefd.session.check import CheckOptions, FileResult, Tolerance

# What docs/exactness.md holds real programs to, and `reenact` compares unless it is told otherwise.
BUT_FOR_LARGE_FOLIOS = "VmPTE,RssAnon,RssShmem,VmSwap"
MOST_DIFFERENCES = 20  # of a file that are shown; --json has all


def check_options(fields: str | None, tolerances: Sequence[str], default: frozenset[str] | None) -> CheckOptions:
    """Of --fields and --tolerance. BadInput: no such field, no such amount."""
    from pterefd.session.check import CheckOptions, parse_fields

    return CheckOptions(
        fields=default if fields is None else parse_fields(fields),
        tolerances=dict(map(_tolerance, tolerances)),
    )


def _tolerance(text: str) -> tuple[str, Tolerance]:
    """One --tolerance; what is wrong with it is said with its name."""
    from pterefd.session.check import parse_tolerance

    option = f"--tolerance {text!r}: "
    try:
        return parse_tolerance(text, quantities.size)
    except BadInput as error:
        raise BadInput(option + str(error).removeprefix(option)) from None


def difference_lines(result: FileResult) -> Iterator[str]:
    """The first differences, a line each."""
    yield from (str(difference) for difference in result.differences[:MOST_DIFFERENCES])
    if len(result.differences) > MOST_DIFFERENCES:
        yield f"... and {len(result.differences) - MOST_DIFFERENCES} more (--json has all)"


def large_folio_line(result: FileResult) -> str:
    """What to make of a file that differs in nothing but what large folios of files account for."""
    fields = sorted({difference.field for difference in result.differences})
    what = f"{' and '.join(fields)} {'differ' if len(fields) > 1 else 'differs'}"
    return (
        f"pterefd: {result.path}: only {what}: large folios of files, see docs/exactness.md; "
        f"--fields {BUT_FOR_LARGE_FOLIOS} leaves them out"
    )


def last_line(result: FileResult) -> str:
    """What ends the text about a file."""
    return f"{result.path}: {result.checkpoints} checkpoints, {result.differ} differ"
