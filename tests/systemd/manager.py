"""What systemd is to a service: a socket that it notifies, signals, and no terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pterefd.procfs import mountpoint
from tests.house import EVENTS, write_trace

HELD = [*EVENTS, {"op": "exit", "pid": 2}, {"op": "exit", "pid": 1}]
WAIT_SECONDS = 280  # kernels that changed are compiled first


class Manager:
    """Starts `pterefd run` in a directory, with a configuration there, and hears what it says. stop() ends it.

    whole: all of the configuration. Without it that is `text`, and a mount at `mnt`, no port, full speed, and a trace
    that is held at its end.
    """

    def __init__(self, directory: Path, text: str = "", *, watchdog_seconds: float = 0, **options: Any) -> None:
        self.directory = directory
        self.mount: Path = options.pop("mount", directory / "mnt")
        self.log = directory / "log"
        self.config = directory / "pterefd.toml"
        whole = options.pop("whole", None)
        if whole is None:
            self.configure(text)
        else:
            self.config.write_text(whole)
        write_trace(directory / "trace.jsonl", options.pop("events", HELD))
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        self._socket.settimeout(0.1)
        environment = {**os.environ, "NOTIFY_SOCKET": str(directory / "notify"), **options.pop("environment", {})}
        if watchdog_seconds:
            environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
        program: Sequence[str | Path] = options.pop("program", (sys.executable, "-m", "pterefd"))
        command = [*program, "run", "--config", self.config]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environment, stdout=log, stderr=log, start_new_session=True, **options
            )

    def configure(self, text: str) -> None:
        """Write the configuration."""
        head = f"daemon.mount = '{self.mount}'"
        if "metrics.address" not in text:
            head += "\nmetrics.address = 'off'"
        if "replay.speed" not in text:
            head += "\nreplay.speed = 'max'"
        if "[[mm]]" not in text and "replay.traces" not in text:
            head += "\nreplay.traces = ['trace.jsonl']"
        self.config.write_text(f"{head}\n{text}\n")

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def hear(self) -> list[str]:
        """Lines of the messages that have come since the last call."""
        lines = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                self.heard += lines
                return lines

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, while it runs; what it gave."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            if found := condition():
                return found
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, (self.heard, self.said())
            self.hear()

    def until_heard(self, line: str) -> None:
        """Wait for a line of a message, in all that was heard so far."""
        self.until(lambda: line in self.heard)

    def until_said(self, text: str) -> None:
        """Wait for a text in the log."""
        self.until(lambda: text in self.said())

    def reload(self, text: str) -> list[str]:
        """`systemctl reload` with another configuration: the lines that are logged for it."""
        before = len(self.said().splitlines())
        self.configure(text)
        self.hear()
        self.heard.clear()
        self.process.send_signal(signal.SIGHUP)
        self.until_heard("READY=1")
        return self.said().splitlines()[before:]

    def read(self, path: str) -> str:
        """A file of the mount."""
        return (self.mount / path).read_text()

    def stop(self) -> int:
        """The exit code after SIGTERM; a daemon that hangs is killed, as systemd does."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._socket.fileno() >= 0:
            self.hear()
            self._socket.close()
        return self.process.returncode


@contextmanager
def starting(directory: Path) -> Iterator[tuple[Callable[..., Manager], list[Manager]]]:
    """What starts a daemon and waits until it says that it is ready; and all that were started, for who ends them.

    Nothing of theirs is left mounted.
    """
    managers: list[Manager] = []
    (directory / "mnt").mkdir()

    def start(text: str = "", **options: Any) -> Manager:
        one = Manager(directory, text, **options)
        managers.append(one)
        one.until_heard("READY=1")
        return one

    try:
        yield start, managers
    finally:
        for one in managers:
            mountpoint.unmount(str(one.mount), detach=True)
