"""What is in a trace: `pterefd info`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pterefd.mm.events import OP_EXEC, OP_EXIT, OP_EXPECT, OP_FORK, OPS, Batch
from pterefd.names import printable
from pterefd.source.parquet import ParquetTrace
from pterefd.source.trace import Trace, open_trace


@dataclass(slots=True)
class _Process:
    """One life of a pid, from its first exec or the fork that made it."""

    pid: int
    parent: int | None = None
    comm: str = ""
    execs: int = 0
    events: int = 0
    peak_pte_kb: int | None = None


@dataclass(slots=True)
class _Summary:
    """What has been counted so far."""

    ops: Any = field(default_factory=lambda: np.zeros(len(OPS), dtype=np.int64))
    processes: list[_Process] = field(default_factory=list)
    living: dict[int, _Process] = field(default_factory=dict)
    first_t: int | None = None
    last_t: int | None = None
    windows: int = 0
    widest_ns: int = 0
    unlocated: dict[int, int] = field(default_factory=dict)  # pid -> the last that was said

    def duration(self) -> int | None:
        """Nanoseconds from the first event with a time to the last."""
        return None if self.first_t is None or self.last_t is None else self.last_t - self.first_t


def describe(path: Path) -> dict[str, Any]:
    """Everything that `pterefd info --json` prints, as plain values; sizes in bytes or kB as the names say.

    Reads the whole trace, and so checks it. TraceError, BadInput: as open_trace and Trace.batches.
    """
    trace = open_trace(path)
    summary = _Summary()
    for batch in trace.batches():
        _count(summary, batch)
    peaks = [process.peak_pte_kb for process in summary.processes if process.peak_pte_kb is not None]
    return {
        "path": str(path),
        "form": "parquet" if isinstance(trace, ParquetTrace) else "jsonl",
        "size_bytes": path.stat().st_size,
        "events": int(summary.ops.sum()),
        "duration_ns": summary.duration(),
        "events_by_op": {op: int(count) for op, count in zip(OPS, summary.ops, strict=True) if count},
        "processes": [_process(process) for process in summary.processes],
        "peak_VmPTE_kB": max(peaks, default=None),
        "checkpoints": int(summary.ops[OP_EXPECT]),
        "checkpoints_with_window": summary.windows,
        "widest_window_ns": summary.widest_ns,
        "states": int(summary.ops[OPS.index("state")]),
        "unlocated_pte_pages": sum(summary.unlocated.values()),
        "huge_pages_seen": _huge(trace),
        "metadata": trace.meta.to_dict(),
    }


def _huge(trace: Trace) -> bool | None:
    """Whether huge entries were there; None where the trace does not say."""
    return {"seen": True, "never": False}.get(trace.meta.thp or "")


def _process(process: _Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "parent": process.parent,
        "comm": process.comm,
        "execs": process.execs,
        "events": process.events,
        "peak_VmPTE_kB": process.peak_pte_kb,
    }


def _count(summary: _Summary, batch: Batch) -> None:
    """Count a batch in. Between two events that begin or end a process, events are counted by pid as a whole."""
    summary.ops += np.bincount(batch.op, minlength=len(OPS))
    timed = batch.t[batch.t >= 0]
    if len(timed):
        summary.first_t = int(timed[0]) if summary.first_t is None else summary.first_t
        summary.last_t = int(timed[-1])
    begin = 0
    rare = np.isin(batch.op, (OP_EXEC, OP_FORK, OP_EXIT, OP_EXPECT))
    for row in np.flatnonzero(rare).tolist():
        _count_events(summary, batch, begin, row + 1)
        begin = row + 1
        _count_rare(summary, batch, row)
    _count_events(summary, batch, begin, len(batch))


def _count_events(summary: _Summary, batch: Batch, begin: int, end: int) -> None:
    """Add the events [begin, end) to the processes that live."""
    pids, counts = np.unique(batch.pid[begin:end], return_counts=True)
    for pid, count in zip(pids.tolist(), counts.tolist(), strict=True):
        process = summary.living.get(pid)
        if process is None and pid and batch.op[end - 1] == OP_EXEC:
            process = _start(summary, pid, None)
        if process is not None:
            process.events += count


def _start(summary: _Summary, pid: int, parent: int | None) -> _Process:
    process = summary.living[pid] = _Process(pid, parent)
    summary.processes.append(process)
    return process


def _count_rare(summary: _Summary, batch: Batch, row: int) -> None:
    pid, op, failed = int(batch.pid[row]), int(batch.op[row]), bool(batch.err[row])
    process = summary.living[pid]
    if op == OP_EXEC and not failed:
        process.comm = batch.side[int(batch.arg[row])]["comm"]
        process.execs += 1
    elif op == OP_FORK and not failed:
        _start(summary, int(batch.arg[row]), pid).comm = process.comm
    elif op == OP_EXIT and not failed:
        del summary.living[pid]
    elif op == OP_EXPECT:
        _count_expect(summary, process, batch.side[int(batch.arg[row])])


def _count_expect(summary: _Summary, process: _Process, said: Mapping[str, int]) -> None:
    if "VmPTE" in said:
        process.peak_pte_kb = max(process.peak_pte_kb or 0, said["VmPTE"])
    if "t0" in said and said["t1"] > said["t0"]:
        summary.windows += 1
        summary.widest_ns = max(summary.widest_ns, said["t1"] - said["t0"])
    if "unlocated_pte_pages" in said:
        summary.unlocated[process.pid] = said["unlocated_pte_pages"]


_MOST_PROCESSES = 40


def render(described: Mapping[str, Any]) -> str:
    """The same as text for people, lines ending in newlines."""
    lines = [
        f"{described['path']}: {described['form']}, {described['size_bytes']:,} bytes, {described['events']:,} events",
        f"duration      {_seconds(described['duration_ns'])}",
        f"peak VmPTE    {_kb(described['peak_VmPTE_kB'])}",
        f"checkpoints   {_checkpoints(described)}",
        f"state rows    {described['states']:,}",
        f"unlocated     {described['unlocated_pte_pages']:,} PTE pages whose place is not known",
    ]
    if described["huge_pages_seen"]:
        lines.append("HUGE PAGES    were seen while recording: page tables are not exact where they were")
    for name, value in described["metadata"].items():
        lines.append(f"{name:<13} {_meta(value)}")
    lines += ["", "events by op"]
    counts = sorted(described["events_by_op"].items(), key=lambda item: -item[1])
    lines += [f"  {op:<12} {count:>14,}" for op, count in counts]
    lines += ["", "     pid  parent  execs         events  peak VmPTE  comm"]
    processes = described["processes"]
    lines += [_process_line(process) for process in processes[:_MOST_PROCESSES]]
    if len(processes) > _MOST_PROCESSES:
        lines.append(f"  ... and {len(processes) - _MOST_PROCESSES} more (--json has all)")
    return "\n".join(lines) + "\n"


def _process_line(process: Mapping[str, Any]) -> str:
    parent = "-" if process["parent"] is None else process["parent"]
    peak = _kb(process["peak_VmPTE_kB"])
    comm = printable(process["comm"])
    return f"{process['pid']:>8} {parent:>7} {process['execs']:>6} {process['events']:>14,} {peak:>11}  {comm}"


def _checkpoints(described: Mapping[str, Any]) -> str:
    text = f"{described['checkpoints']:,}"
    if described["checkpoints_with_window"]:
        widest = _seconds(described["widest_window_ns"])
        text += f", {described['checkpoints_with_window']:,} with a window (widest {widest})"
    return text


def _kb(value: int | None) -> str:
    return "-" if value is None else f"{value} kB"


def _seconds(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else f"{nanoseconds / 1e9:.6g} s"


def _meta(value: object) -> str:
    if isinstance(value, Mapping):
        return printable(" ".join(f"{name}={item}" for name, item in value.items()))
    return printable(shlex.join(map(str, value)) if isinstance(value, list) else str(value))
