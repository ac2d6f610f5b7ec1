"""The sources of a host, from [[mm]] tables: opened, and put so that their pids do not collide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pterefd.config import MmSection
from pterefd.errors import BadInput, TraceError
from pterefd.hookspecs import Workload
from pterefd.source.place import Placed, pid_bases
from pterefd.source.source import Source
from pterefd.source.trace import open_trace
from pterefd.source.workload import WorkloadSource


def open_sources(
    mms: Sequence[MmSection],
    workloads: Mapping[str, type[Workload]],
    where: Callable[[int], str] = lambda _: "",
) -> list[Source]:
    """A source for each table and copy, in order. The first keeps its pids, each further one is shifted past the
    highest in use, unless pid_base says otherwise.

    where: begins the line about what the table of a number has wrong, up to its key, as `FILE: mm.0.` does; a trace
    that breaks its format is named by its own line.
    BadInput: no such trace or workload, a bad parameter, pids that collide.  TraceError: a file that is no trace.
    """
    opened: list[tuple[MmSection, Source, str, int | None]] = []
    for number, mm in enumerate(mms):
        with _said(where(number), "trace"):
            trace = open_trace(mm.trace) if mm.trace is not None else None
        for copy in range(mm.copies):
            with _said(where(number), "workload"):
                source = trace if trace is not None else workload_source(mm, workloads, mm.seed + copy)
            name = source.name if mm.copies == 1 else f"{source.name}#{copy}"
            opened.append((mm, source, name, mm.pid_base if copy == 0 else None))
    given = [base for _, _, _, base in opened]
    file, colon, _ = where(0).rpartition(": ")
    with _said(file + colon, "mm"):
        bases = pid_bases([source for _, source, _, _ in opened], given)
    return [
        Placed(
            source,
            pid_base=base,
            start_ns=round(mm.start * 1e9),
            pace=mm.pace,
            group=mm.group,
            oom_score_adj=mm.oom_score_adj,
            name=name,
        )
        for (mm, source, name, _), base in zip(opened, bases, strict=True)
    ]


@contextmanager
def _said(where: str, key: str) -> Iterator[None]:
    """A BadInput's line begins with where and the key; that of a trace's format names its file already."""
    begin = f"{where}{key if where[-1] in '. ' else ''}: " if where else ""
    try:
        yield
    except TraceError:
        raise
    except BadInput as error:
        raise BadInput(f"{begin}{error}") from error


def workload_source(mm: MmSection, workloads: Mapping[str, type[Workload]], seed: int) -> WorkloadSource:
    """The workload that a table names. BadInput: there is none, or a parameter is bad."""
    found = workloads.get(mm.workload or "")
    if found is None:
        raise BadInput(f"there is no workload {mm.workload!r}; there are: {', '.join(sorted(workloads)) or 'none'}")
    return WorkloadSource(found, mm.parameters, seed)
