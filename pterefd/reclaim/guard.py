"""What plugins may do to the daemon: raise, answer nonsense, hang. Their calls run in a thread that can be left behind.

An act of reclaim is one hand-over to a worker thread and one back; the worker notes when it enters and leaves a
plugin's code. Whoever waits sees a plugin that is over its time, leaves the worker behind and goes on with the rest of
the act in another one. The time that the host's own work takes does not count.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pterefd.hookspecs import Tunables

R = TypeVar("R")
Plugin = tuple[str, str]  # kind (trigger, policy, observer), name


class Abandoned(BaseException):
    """Raised in a thread that was left behind, wherever it is: nobody waits for it any more."""


class TookTooLong(Exception):
    """A plugin was over its time."""


class Watch:
    """One act's clock, shared by the worker and whoever waits for it.

    Invariant: once `abandoned` is set, the worker gets no further than the plugin's code that it is in.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.abandoned = False
        self.plugin: Plugin | None = None
        self._lock = threading.Lock()
        self._inside: float | None = None  # when the plugin's code was entered
        self._spent = 0.0  # seconds in the plugin's code before

    def call(self, plugin: Plugin, function: Callable[..., R], *args: Any) -> R:
        """function(*args), a plugin's. TookTooLong where it, with the calls before it of the same plugin, was."""
        with self._lock:
            if plugin != self.plugin:
                self.plugin, self._spent = plugin, 0.0
            self._inside = time.perf_counter()
        try:
            return function(*args)
        finally:
            with self._lock:
                if self.abandoned:
                    raise Abandoned
                self._spent += time.perf_counter() - self._inside
                self._inside = None
            if self.deadline is not None and self._spent > self.deadline:
                raise self.late()

    def late(self) -> TookTooLong:
        """The error of the plugin that it is about."""
        return TookTooLong(f"took longer than {self.deadline:g} s")

    def left(self) -> float:
        """Seconds until it is worth looking again; 0 or less where the plugin is over its time."""
        assert self.deadline is not None
        with self._lock:
            if self._inside is None:
                return self.deadline
            return self.deadline - self._spent - (time.perf_counter() - self._inside)

    def abandon(self) -> bool:
        """Leave the worker behind, if it still is in the plugin's code."""
        with self._lock:
            self.abandoned = self._inside is not None
            return self.abandoned


class _Worker:
    """A thread that does one job at a time."""

    def __init__(self) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self._done = threading.Lock()
        self._done.acquire()
        self._job: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="plugins", daemon=True)
        self._thread.start()

    def give(self, job: Callable[[], None]) -> None:
        """Begin the job."""
        self._job = job
        self._wake.release()

    def wait(self, seconds: float) -> bool:
        """Whether the job is done within so many seconds; what it raised is raised here."""
        if not self._done.acquire(timeout=max(seconds, 0)):
            return False
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def interrupt(self) -> None:
        """Raise Abandoned in the thread, as soon as it runs Python code."""
        ident = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Abandoned))

    def _work(self) -> None:
        try:
            while True:
                self._wake.acquire()
                job, self._job = self._job, None
                assert job is not None
                try:
                    job()
                except Abandoned:
                    return
                except BaseException as error:
                    self._error = error
                del job
                self._done.release()
        except Abandoned:
            pass


_idle: list[_Worker] = []  # of the whole process; list.append and list.pop are atomic
os.register_at_fork(after_in_child=_idle.clear)


def guarded(
    steps: Callable[[Watch], None], deadline: float | None, failed: Callable[[Plugin, Exception], None]
) -> None:
    """Run steps(watch) to the end, in a worker thread where there is a deadline.

    Where a plugin that it calls through the watch is over its time, failed(plugin, error) is called and steps anew,
    which goes on behind that plugin. deadline: seconds; None runs everything here, for as long as it takes.
    """
    if deadline is None:
        steps(Watch(None))
        return
    context = contextvars.copy_context()
    while True:
        worker = _idle.pop() if _idle else _Worker()
        watch = Watch(deadline)
        worker.give(partial(context.run, steps, watch))
        seconds = deadline
        while not worker.wait(seconds):
            seconds = watch.left()
            if seconds <= 0 and watch.abandon():
                break
        else:
            _idle.append(worker)
            return
        worker.interrupt()
        context = contextvars.copy_context()  # the other one is still entered
        assert watch.plugin is not None
        failed(watch.plugin, watch.late())


def plain(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def has_own(plugin: Any, method: str) -> bool:
    """Whether a plugin's class has a method of its own, not the contract's empty one."""
    return getattr(type(plugin), method).__module__ != Tunables.__module__
