"""`pterefd record --script`: what to run on a machine that has only perf and sh, and how its notes are read again."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from pterefd.errors import BadInput
from pterefd.live import procmem
from pterefd.live.procmem import STATUS_KB, Map, parse_maps
from pterefd.source.record import perf

_SCRIPT = r"""#!/bin/sh
# Records the page-table history of a process with perf and sh alone (x86_64, as root).
#
#   sh record.sh PID [SECONDS]     a running process, until Ctrl-C or for SECONDS; it is left running
#   sh record.sh -- COMMAND...     a command and its children
#
# Leaves perf.data and notes.txt here. Where pterefd is:
#   pterefd import perf.data --maps notes.txt -o OUT.parquet
# Switch huge pages off first if you can (echo never > /sys/kernel/mm/transparent_hugepage/enabled).
set -u
EVENTS='@EVENTS@'
BUFFER=64M                                  # for each CPU
[ "$(nproc)" -gt 16 ] && BUFFER=16M
OPTIONS="-m $BUFFER @OPTIONS@"
NOTES=notes.txt
command -v perf > /dev/null || { echo "perf is missing" >&2; exit 3; }
[ -e /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing || exit 3
[ $# -ge 1 ] || { echo "usage: sh $0 PID [SECONDS] | -- COMMAND..." >&2; exit 2; }
HAVE=
for event in $(echo "$EVENTS" | tr , ' '); do
    [ -e "/sys/kernel/tracing/events/$(echo "$event" | tr : /)" ] && HAVE="${HAVE:+$HAVE,}$event"
done

now() { sed -n 's/^now at \([0-9]*\) nsecs/\1/p' /proc/timer_list | head -n 1; }
note() { echo "== $1 $2"; cat "$3" 2> /dev/null; }
snapshot() {
    echo "== time $(now)"
    note status "$1" "/proc/$1/status"
    note maps "$1" "/proc/$1/maps"
    note stat "$1" "/proc/$1/stat"
    echo "== tasks $1"
    ls "/proc/$1/task"
    echo "== time $(now)"
}
{
    echo "== machine 0"
    uname -r
    { zcat /proc/config.gz || cat "/boot/config-$(uname -r)"; } 2> /dev/null | grep -E '^CONFIG_(@CONFIG@)='
    cat /sys/kernel/mm/transparent_hugepage/enabled
} > "$NOTES"

if [ "$1" = -- ]; then
    shift
    exec perf record -o perf.data $OPTIONS -e "$HAVE" -- "$@"
fi
PID=$1
trap '' INT
(trap - INT; exec perf record -o perf.data $OPTIONS -e "$HAVE" -p "$PID" ${2:+-- sleep $(($2 + 2))}) &
sleep 2
snapshot "$PID" >> "$NOTES"
echo "recording $PID; Ctrl-C ends it" >&2
while kill -0 $! 2> /dev/null; do wait $!; done
snapshot "$PID" >> "$NOTES"
"""


def script_text() -> str:
    """The script, with the very events and options that `record` uses."""
    from pterefd.live.machine import CONFIG_OPTIONS

    words = perf.options([])[: -len(("-e", ""))]
    options = " ".join(words[2:] if words[0] == "-m" else words)
    text = _SCRIPT.replace("@EVENTS@", ",".join(perf.EVENTS)).replace("@OPTIONS@", options)
    return text.replace("@CONFIG@", "|".join(CONFIG_OPTIONS))


@dataclass(slots=True)
class Moment:
    """One snapshot of a process in the notes, read between the times t0 and t1 (ns, 0 unknown)."""

    pid: int
    t0: int = 0
    t1: int = 0
    name: str = ""
    uid: int | None = None
    gid: int | None = None
    kb: dict[str, int] = field(default_factory=dict)
    maps: list[Map] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    start_brk: int = 0


@dataclass(slots=True)
class Notes:
    """What the script noted down beside perf.data."""

    release: str | None = None
    config: dict[str, str | bool | int] = field(default_factory=dict)
    thp: str = ""
    moments: list[Moment] = field(default_factory=list)


_SECTION = re.compile(r"^== (\w+) (\d+)?$")


def read_notes(path: Path) -> Notes:
    """Read notes.txt, or a plain copy of /proc/PID/maps. BadInput names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if lines and not lines[0].startswith("== "):
        lines = ["== maps 0", *lines]
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        try:
            reader.line(line)
        except (ValueError, IndexError):
            raise BadInput(f"{path}:{number}: not what the recording script writes: {line[:60]!r}") from None
    return reader.notes


class _Reader:
    """Takes notes.txt line by line."""

    def __init__(self) -> None:
        self.notes = Notes()
        self._section = ""
        self._time = 0
        self._moment: Moment | None = None

    def line(self, line: str) -> None:
        """One line. ValueError, IndexError: it does not fit."""
        begin = _SECTION.match(line)
        if begin is not None:
            self._begin(begin[1], int(begin[2] or 0))
        elif line:
            getattr(self, f"_{self._section}_line")(line)

    def _begin(self, section: str, value: int) -> None:
        self._section = section
        if section == "time":
            if self._moment is not None:
                self._moment.t1 = value
                self._moment = None
            self._time = value
        elif section in ("status", "maps", "stat", "tasks"):
            if self._moment is None:
                self._moment = Moment(value, t0=self._time)
                self.notes.moments.append(self._moment)
        elif section != "machine":
            raise ValueError(section)

    def _machine_line(self, line: str) -> None:
        if line.startswith("CONFIG_"):
            name, value = line.removeprefix("CONFIG_").split("=", 1)
            self.notes.config[name] = int(value) if value.isdigit() else value == "y"
        elif "[" in line:
            self.notes.thp = line.partition("[")[2].partition("]")[0]
        else:
            self.notes.release = line

    def _status_line(self, line: str) -> None:
        assert self._moment is not None
        key, _, value = line.partition(":")
        if key in STATUS_KB:
            self._moment.kb[key] = int(value.split()[0])
        elif key == "Name":
            self._moment.name = value.strip()
        elif key == "Uid":
            self._moment.uid = int(value.split()[1])
        elif key == "Gid":
            self._moment.gid = int(value.split()[1])

    def _maps_line(self, line: str) -> None:
        assert self._moment is not None
        self._moment.maps += parse_maps([line])

    def _stat_line(self, line: str) -> None:
        assert self._moment is not None
        self._moment.start_brk = int(line.rpartition(")")[2].split()[procmem.STAT_START_BRK])

    def _tasks_line(self, line: str) -> None:
        assert self._moment is not None
        self._moment.tasks.append(int(line))
