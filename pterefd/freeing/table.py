"""Which processes may be freed from, for whom: a file that only root writes, read anew for each request."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pterefd.errors import BadInput
from pterefd.freeing.refuse import WRITERS
from pterefd.privileged import read_tables, uid_of

TABLE = "/etc/pterefd/free.toml"
_WHICH = ("comm", "cgroup", "user")
_KEYS = {"daemon", *_WHICH, "every", "writers", "stop_ms", "acts_per_minute"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A [[free]] of the table. daemon: uid that may ask.  comm, cgroup: patterns of fnmatch(3), user: uid; None: any.

    writers: of refuse.WRITERS, that may be there.  stop: seconds at a time.  rate: acts a minute.
    """

    daemon: int
    comm: str | None
    cgroup: str | None
    user: int | None
    writers: tuple[str, ...]
    stop: float
    rate: int

    def fits(self, daemon: int, comm: str, cgroup: str, user: int) -> bool:
        """Whether a daemon's user may have a process freed from."""
        return (
            daemon in (self.daemon, 0)
            and (self.comm is None or fnmatchcase(comm, self.comm))
            and (self.cgroup is None or fnmatchcase(cgroup, self.cgroup))
            and self.user in (None, user)
        )


def table(path: str) -> list[Entry]:
    """What may be asked for. BadInput, in one line; nothing is allowed then."""
    return [_entry(where, given) for where, given in read_tables(path, "free")]


def _entry(where: str, given: dict[str, Any]) -> Entry:
    if unknown := given.keys() - _KEYS:
        raise BadInput(f"{where}: no such key: {', '.join(sorted(unknown))}")
    if "daemon" not in given:
        raise BadInput(f"{where}: daemon, the user who may ask, is missing")
    every = given.get("every", False)
    if not isinstance(every, bool) or every == any(key in given for key in _WHICH):
        raise BadInput(f"{where}: say which processes, by comm, cgroup or user, or every = true")
    for key in ("comm", "cgroup"):
        if not isinstance(given.get(key, ""), str):
            raise BadInput(f"{where}: {key} {given[key]!r} is not a pattern")
    writers = given.get("writers", [])
    if not isinstance(writers, list) or not set(map(str, writers)) <= WRITERS.keys():
        raise BadInput(f"{where}: writers are of {', '.join(WRITERS)}")
    return Entry(
        uid_of(where, given["daemon"]),
        given.get("comm"),
        given.get("cgroup"),
        uid_of(where, given["user"]) if "user" in given else None,
        tuple(writers),
        _number(where, given, "stop_ms", 5, 1, 1000) / 1000,
        int(_number(where, given, "acts_per_minute", 60, 1, 100_000)),
    )


def _number(where: str, given: dict[str, Any], key: str, default: int, least: int, most: int) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadInput(f"{where}: {key} should be from {least} to {most}, not {value!r}")
    return value
