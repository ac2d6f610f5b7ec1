"""The programs that are recorded: scripts and sources in etc/traces/programs, each run in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

SOURCES = ROOT / "etc" / "traces" / "programs"
RECORDINGS = SOURCES  # a recording lies beside what was recorded
PLACE = Path("/var/tmp/pterefd-recordings")  # its name stands in recordings: mapped files have paths


@dataclass(frozen=True, slots=True)
class Program:
    """One program.

    file: in SOURCES.  packages: Debian's, whose versions a result names.  one_cpu: on one CPU alone: of processes that
    map shared memory on two at once, fault-around in the one passes over the pages that the other's has locked at that
    very moment (mm/filemap.c next_uptodate_folio), and no event tells of that.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    one_cpu: bool = False

    def version(self) -> str:
        """The packages with their versions."""
        asked = ["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *self.packages]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.removesuffix(", ")

    @contextmanager
    def prepared(self) -> Iterator[tuple[Path, list[str]]]:
        """A fresh directory that has the program, compiled where it is C, and the command to run there."""
        directory = PLACE / self.name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            source = Path(shutil.copy(SOURCES / self.file, directory))
            if source.suffix == ".c":
                source = source.with_suffix("")
                subprocess.run(["gcc", "-O2", "-o", str(source), f"{source}.c"], check=True)
            pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if self.one_cpu else []
            yield directory, [*pinned, f"./{source.name}", *self.arguments]
        finally:
            shutil.rmtree(directory, ignore_errors=True)


PROGRAMS = (
    Program("redis-bgsave", "redis-bgsave.sh", ("redis-server", "redis-tools")),
    Program("postgres", "postgres.sh", ("postgresql-15",), one_cpu=True),
    Program("gcc", "gcc.sh", ("gcc-12", "binutils", "make")),
    Program("threads", "threads.py", ("python3-minimal",)),
    Program("pools", "pools.py", ("python3-minimal",)),
    Program("sqlite", "sqlite.sh", ("sqlite3",)),
    Program("jemalloc", "jemalloc.sh", ("libjemalloc2", "perl-base", "coreutils")),
    Program("tcmalloc", "tcmalloc.sh", ("libtcmalloc-minimal4", "perl-base", "coreutils")),
    Program("node", "node.js", ("nodejs",)),
    Program("java", "java.sh", ("openjdk-17-jre-headless",)),
    Program("stress-ng", "stress-ng.sh", ("stress-ng",)),
    Program("pipelines", "pipelines.sh", ("bash", "coreutils", "mawk")),
    Program("git", "git.sh", ("git",)),
    Program("published-2mib", "published.c", ("libc6",), ("50", "2")),
    Program("published-1mib", "published.c", ("libc6",), ("50", "1")),
)
BY_NAME = {program.name: program for program in PROGRAMS}
