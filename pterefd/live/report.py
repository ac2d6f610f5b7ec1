"""What scans found, as text and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pterefd.live import procmem
from pterefd.live.explain import Cause, frees_whole_spans
from pterefd.live.scan import NotSeen, TableUse
from pterefd.quantities import shown_size

_COLUMNS = ("vm_pte", "explained", "deposited", "empty", "zero", "mixed", "guard", "unseen")
GROUPS: Mapping[str, Callable[[TableUse], str]] = {
    "cgroup": lambda use: use.cgroup,
    "comm": lambda use: use.comm,
    "user": lambda use: str(use.uid),
}
Causes = Mapping[int, Sequence[Cause]]


def as_json(uses: Sequence[TableUse], not_seen: Sequence[NotSeen], causes: Causes, by: str | None) -> dict[str, Any]:
    """All in bytes. explain: the causes of each process; groups: sums of what is alike in `by`."""
    rows = []
    for use in uses:
        row = asdict(use) | {"reclaimable": use.reclaimable}
        if use.pid in causes:
            row["explain"] = [cause.as_dict() for cause in causes[use.pid]]
        rows.append(row)
    report: dict[str, Any] = {
        "kernel": {
            "release": platform.release(),
            "pagemap_scan": procmem.scan_abilities() != 0,
            "frees_whole_spans": frees_whole_spans(),
        },
        "processes": rows,
        "total": sums(uses),
        "not_seen": [str(error) for error in not_seen],
    }
    if by is not None:
        report["groups"] = [{by: name, **values} for name, values in groups(uses, by)]
    return report


def sums(uses: Sequence[TableUse]) -> dict[str, int]:
    """Sums over processes, unknown values as 0."""
    names = (*_COLUMNS, "reclaimable", "rss", "swap")
    return {"processes": len(uses)} | {name: sum(getattr(use, name) or 0 for use in uses) for name in names}


def groups(uses: Sequence[TableUse], by: str) -> list[tuple[str, dict[str, int]]]:
    """Sums by what is alike in `by`, most reclaimable first."""
    found: dict[str, list[TableUse]] = {}
    for use in uses:
        found.setdefault(GROUPS[by](use), []).append(use)
    summed = [(name, sums(members)) for name, members in found.items()]
    return sorted(summed, key=lambda row: (-row[1]["reclaimable"], row[0]))


def render(uses: Sequence[TableUse], not_seen: Sequence[NotSeen], causes: Causes, by: str | None) -> str:
    """The same as text for people, in kB as /proc has it; lines ending in newlines."""
    lines = [_line("PID", "COMMAND", [name.replace("vm_pte", "VmPTE") for name in _COLUMNS])]
    for use in uses:
        lines.append(_line(str(use.pid), use.comm, [_kb(getattr(use, name)) for name in _COLUMNS]))
        if not use.steady:
            lines.append(f"{'':>8}  its tables changed while it was looked at: take it as near the truth")
        for cause in causes.get(use.pid, ()):
            lines += _cause(cause)
    if len(uses) > 1:
        total = sums(uses)
        lines.append(_line("", f"{len(uses)} processes", [_kb(total[name]) for name in _COLUMNS]))
    if by is not None:
        lines += ["", f"{'reclaimable':>12} {'VmPTE':>12} {'RSS':>12} processes  {by}"]
        for name, values in groups(uses, by):
            kb = " ".join(f"{_kb(values[key]):>12}" for key in ("reclaimable", "vm_pte", "rss"))
            lines.append(f"{kb} {values['processes']:>9}  {name or '-'}")
    if not_seen:
        lines.append(f"{len(not_seen)} not seen: {not_seen[0]}" + (" (--json names all)" if len(not_seen) > 1 else ""))
    return "\n".join(lines) + "\n"


def _line(pid: str, comm: str, values: Sequence[str]) -> str:
    return f"{pid:>8}  {comm:<16}" + " ".join(f"{value:>10}" for value in values)


def _kb(value: int | None) -> str:
    return "?" if value is None else str(value >> 10)


def _cause(cause: Cause) -> list[str]:
    lines = [f"{'':>8}  {cause.kind} {shown_size(cause.bytes)}: {cause.why}"]
    if cause.places:
        where = " ".join(f"{start:x}-{end:x}" for start, end in cause.places)
        lines.append(f"{'':>10}  {'may be in' if cause.kind == 'empty' else 'in'} {where}")
    lines += [f"{'':>10}  -> {text}" for text in cause.helps]
    return lines
