"""The daemon's log: structlog, one line an act, for people (console) or for machines (json).

Imports nothing of pterefd.
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any, Protocol

import structlog

LEVELS = ("debug", "info", "warning", "error")


class Stream(Protocol):
    """What a log is written to: a text file, or the terminal with its status line."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


def setup(form: str = "console", level: str = "info", stream: Stream | None = None) -> Any:
    """Configure structlog and the standard library's logging alike; returns the daemon's logger.

    form: console or json.  level: one of LEVELS.  stream: stderr by default, as stdout is for results.
    Times are UTC, ISO 8601.
    """
    out: Any = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        render: list[Any] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries speak of trouble only
    return structlog.get_logger()


def get() -> Any:
    """The logger, as last set up."""
    return structlog.get_logger()


def silent() -> Any:
    """A logger that says nothing: for runs whose errors are counted and shown otherwise."""
    return structlog.wrap_logger(structlog.ReturnLogger(), processors=[structlog.processors.JSONRenderer()])


def caller(uid: int, pid: int) -> AbstractContextManager[Any]:
    """Names whoever asked in every line that is logged within: uid and pid of the process that wrote."""
    return structlog.contextvars.bound_contextvars(by_uid=uid, by_pid=pid)
