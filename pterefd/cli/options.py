"""Option types that several commands share, and how they print JSON and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pterefd.errors import BadInput

# Whether a file is there, readable and right is said by whoever opens it, in one way for all commands.
FILE = click.Path(path_type=Path)
STDOUT = "-"


class _Output(click.ParamType):
    """A file that is written. `-`, where it may stand for standard output, becomes None."""

    name = "file"

    def __init__(self, *, stdout: bool) -> None:
        self._stdout = stdout

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | None:
        if value == STDOUT and not self._stdout:
            self.fail("- is standard output, where this cannot go; a file of that name is ./-", param, ctx)
        return None if value == STDOUT else Path(value)


def output(
    *names: str, what: str, metavar: str = "FILE", required: bool = False, stdout: bool = False
) -> Callable[[Any], Any]:
    """An option for a file that is written, which may be given once.

    what: its help.  stdout: `-` stands for standard output, and gives None as if nothing had been given.
    """

    def once(ctx: click.Context, param: click.Parameter, value: tuple[Path | None, ...]) -> Path | None:
        if len(value) > 1:
            raise click.UsageError(f"{param.opts[-1]} is given {len(value)} times: one file can be written", ctx)
        return value[0] if value else None

    kind = _Output(stdout=stdout)
    return click.option(*names, type=kind, multiple=True, callback=once, metavar=metavar, required=required, help=what)


def force(names: str = "OUT") -> Callable[[Any], Any]:
    """The option --force."""
    return click.option("--force", is_flag=True, help=f"Replace an existing {names}.")


# Of a mounted tree, for shell.choose_mount.
mount = click.option(
    "--mount", type=FILE, metavar="DIR", help="Where the tree is mounted.  [default: ./mnt, else the only one of use]"
)


class Quantity(click.ParamType):
    """A click type out of one of the functions of pterefd.quantities: their errors become usage errors."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except BadInput as error:
            self.fail(str(error), param, ctx)


def parameters(given: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` texts by their keys. UsageError: one that is none."""
    pairs = [text.partition("=") for text in given]
    for text, (key, equals, _) in zip(given, pairs, strict=True):
        if not key or not equals:
            raise click.UsageError(f"{text!r} is not KEY=VALUE")
    return {key.strip(): value.strip() for key, _, value in pairs}


def print_json(value: Any) -> None:
    """Print one JSON object, and nothing else, on standard output."""
    import orjson

    sys.stdout.flush()
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    sys.stdout.buffer.write(orjson.dumps(value, option=options, default=str))
    sys.stdout.buffer.flush()


Tell = Callable[[int, int | None], None]


@contextmanager
def progress(what: str, unit: str = "events") -> Iterator[Tell | None]:
    """A progress bar on standard error, for the time of the block: call what it yields with (done, total or None).

    None, and silence, where standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, count="")
        yield lambda done, total: bar.update(task, completed=done, total=total, count=f"{done:,} {unit}")
