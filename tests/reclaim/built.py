"""Plugin files and reclaimers for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pterefd import paths
from pterefd.host.host import Host
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from tests.build import host, run
from tests.host.test_host import waste

HEAD = "from pterefd.hookspecs import *\nfrom pterefd.hookspecs import hookimpl\nPTEREFD_API = 1\n"
POLICIES = {
    "empty_only",
    "idle_first",
    "largest_first",
    "none",
    "oom_score_first",
    "proportional",
    "round_robin",
    "smallest_first",
}
M = 1 << 20
PAGE = 4096
B = 0x7000_0000_0000


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    error = warning = info


def plugin(folder: Path, name: str, body: str, head: str = HEAD) -> Path:
    """A plugin file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(head + body)
    return path


def policy(choose: str, name: str = "mine", more: str = "") -> str:
    """A policy whose choose() has this body."""
    return f"""
class Mine(Policy):
    name = "{name}"
    {more}
    def choose(self, view, request):
        {choose}

@hookimpl
def pterefd_register_policies(register):
    register(Mine)
"""


def trigger(request: str, name: str = "mine", more: str = "") -> str:
    """A trigger whose request() has this body."""
    return f"""
class Mine(Trigger):
    name = "{name}"
    {more}
    def request(self, view, moment):
        {request}

@hookimpl
def pterefd_register_triggers(register):
    register(Mine)
"""


def make(machine: Host, *folders: Path, **options: Any) -> tuple[Reclaimer, Log]:
    """A reclaimer with the built-in plugins and those of the folders."""
    plugins, log = Plugins(), Log()
    plugins.load([paths.share("plugins"), *folders])
    return Reclaimer(machine, plugins, log, **options), log


def wasteful() -> Host:
    """Pids 1, 2, 3 with 2, 5 and 1 empty PTE pages."""
    machine = host("rfc-2022")
    for pid, spans in ((1, 2), (2, 5), (3, 1)):
        waste(machine, pid, spans)
    return machine


def read(machine: Host, pid: int, spans: int, pages: int = 512) -> None:
    """An mm whose `spans` PTE pages have so many zero-page entries each."""
    run(machine, ("exec", pid), ("mmap", pid, B, spans * 2 * M))
    run(machine, *(("fault", pid, B + i * 2 * M, pages * PAGE, 0) for i in range(spans)))
