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
