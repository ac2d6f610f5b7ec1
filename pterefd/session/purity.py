"""Notes where a plugin reads the wall clock or takes randomness that no seed gives: in a process made for it.

watch() puts wrappers around what the standard library and numpy offer; each does what it did, and notes the line of the
plugin that it was called from, directly or through these libraries.
"""

from __future__ import annotations

import datetime
import functools
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

CLOCK, RANDOM = "reads the wall clock", "takes randomness that no seed gives"
_TIME = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"),
    *("process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "sleep"),
)
_TIME_WITHOUT = {"localtime": 0, "gmtime": 0, "ctime": 0, "asctime": 0, "strftime": 1}  # with so many arguments: now
_BETWEEN = ("/random.py", "/secrets.py", "/uuid.py", "/datetime.py", "/_pydatetime.py", "/numpy/random/", __file__)


class Purity:
    """What was noted: (what is wrong, call, line) once each, in order."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._depth = 0  # of calls that were noted: what they call themselves is not the plugin's doing
        self.found: dict[tuple[str, str, int], None] = {}

    def note(self, wrong: str, call: str) -> None:
        """Whoever called the caller, if it is the plugin."""
        if self._depth:
            return
        frame = sys._getframe(2)
        while frame is not None and any(part in frame.f_code.co_filename for part in _BETWEEN):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None and frame.f_code.co_filename == self._file:
            self.found.setdefault((wrong, call, frame.f_lineno))

    def watch(self) -> None:
        """From now on, for good."""
        for name in _TIME:
            self._wrap(time, name, CLOCK)
        for name, number in _TIME_WITHOUT.items():
            self._wrap(time, name, CLOCK, most=number)
        self._watch_dates()
        self._watch_random()
        for name in ("urandom", "getrandom"):
            self._wrap(os, name, RANDOM)
        for module, names in ((secrets, secrets.__all__), (uuid, ("uuid1", "uuid4"))):
            for name in names:
                if callable(getattr(module, name)) and not isinstance(getattr(module, name), type):
                    self._wrap(module, name, RANDOM)
        for name in dir(np.random):
            function = getattr(np.random, name)
            if getattr(function, "__self__", None) is np.random.mtrand._rand:
                self._wrap(np.random, name, RANDOM)
        self._wrap(np.random, "default_rng", RANDOM, most=0)

    def _wrap(self, module: Any, name: str, wrong: str, *, most: int = 1 << 30) -> None:
        """module.name notes calls with at most so many arguments."""
        function: Callable[..., Any] = getattr(module, name)
        call = f"{module.__name__}.{name}"

        @functools.wraps(function, updated=())
        def noted(*args: Any, **options: Any) -> Any:
            given = [value for value in (*args, *options.values()) if value is not None]
            if len(given) <= most:
                self.note(wrong, call)
            self._depth += 1
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1

        setattr(module, name, noted)

    def _watch_dates(self) -> None:
        """These are types: a subclass of each stands in its place."""

        stand_ins: dict[type[Any], type[Any]] = {}

        def noting(cls: type[Any], name: str) -> classmethod[Any, Any, Any]:
            def noted(own: type[Any], *args: Any, **options: Any) -> Any:
                self.note(CLOCK, f"{cls.__name__}.{name}")
                self._depth += 1
                try:
                    return getattr(super(stand_ins[cls], own), name)(*args, **options)
                finally:
                    self._depth -= 1

            return classmethod(noted)

        for cls, names in ((datetime.datetime, ("now", "utcnow", "today")), (datetime.date, ("today",))):
            stand_ins[cls] = type(cls.__name__, (cls,), {name: noting(cls, name) for name in names})
            setattr(datetime, cls.__name__, stand_ins[cls])

    def _watch_random(self) -> None:
        purity = self

        class Seeded(random.Random):
            def __init__(self, x: Any = None) -> None:
                if x is None:
                    purity.note(RANDOM, "random.Random")
                super().__init__(x)

        for name in random.__all__:
            if not isinstance(getattr(random, name), type):
                self._wrap(random, name, RANDOM)
        random.Random = Seeded  # type: ignore[misc]
        self._wrap(random, "SystemRandom", RANDOM)
