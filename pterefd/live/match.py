"""Which processes of this machine are watched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pterefd.config import LiveSection
from pterefd.live import procmem
from pterefd.live.scan import read_cgroup

_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Match:
    """Those that match one of each that is given; all where none is.

    comms: names, with * ? [] as in a shell.  cgroups: paths, each with all below it, or with * ? [] of whole paths.
    users: effective uids.
    """

    pids: frozenset[int] = frozenset()
    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    users: frozenset[int] = frozenset()

    @classmethod
    def of(cls, section: LiveSection) -> Match:
        """As [live] says."""
        return cls(frozenset(section.pid), section.comm, section.cgroup, frozenset(section.user))

    def __call__(self, pid: int, status: procmem.Status) -> bool:
        """Whether a process is wanted. What costs a read comes last."""
        return (
            (not self.pids or pid in self.pids)
            and (not self.users or status.uid in self.users)
            and (not self.comms or any(fnmatchcase(status.name, pattern) for pattern in self.comms))
            and (not self.cgroups or _below(read_cgroup(pid), self.cgroups))
        )


def _below(path: str, patterns: Collection[str]) -> bool:
    return any(
        fnmatchcase(path, pattern) if _GLOB & set(pattern) else (path + "/").startswith(pattern.rstrip("/") + "/")
        for pattern in patterns
    )
