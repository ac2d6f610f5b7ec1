"""Faults of one page after the other are stored as one event: which, by a slow reading of the rule; and nothing else
comes of it, by a replay of the recordings with each page as an event of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pterefd import paths
from pterefd.host.host import Host
from pterefd.mm.profile import for_kernel
from pterefd.session.feed import Feed
from pterefd.source.convert import export_jsonl, import_jsonl
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import open_trace
from pterefd.source.writer import TraceWriter
from tests.source.handmade import EXEC, Event, to_jsonl

PAGE = 4096
MS = 1_000_000
START: list[Event] = [{**EXEC, "t": 0}, {"op": "exec", "pid": 2, "comm": "b", "t": 0}]


def exported(source: Path, base: Path) -> list[Event]:
    """What a trace in JSON Lines is once it has been imported, without the line of its metadata."""
    import_jsonl(source, base / "runs.parquet", force=True)
    export_jsonl(base / "runs.parquet", base / "runs.jsonl", force=True)
    return [json.loads(line) for line in (base / "runs.jsonl").read_text().splitlines()][1:]


def plainly(events: list[Event]) -> list[Event]:
    """Event by event: one that goes on where the last one ends, in its millisecond, outside every window, is its."""
    windows = [(event["t0"], event["t1"]) for event in events if "t0" in event]
    found: list[Event] = []
    before: Event = {}
    for event in events:
        last = found[-1] if found else {}
        both = [event, before]
        if (
            all(one.get("op") == "fault" and "errno" not in one for one in both)
            and (last["pid"], last["write"]) == (event["pid"], event["write"])
            and last["addr"] + last.get("len", PAGE) == event["addr"]
            and before["t"] // MS == event["t"] // MS
            and not any(before["t"] <= t1 and event["t"] >= t0 for t0, t1 in windows)
        ):
            last["len"] = last.get("len", PAGE) + event.get("len", PAGE)
        else:
            found.append(dict(event))
        before = event
    return found


@st.composite
def streams(draw: Any) -> list[Event]:
    t = 0
    page = 8
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 40))):
        t += draw(st.sampled_from([0, 0, 1, 400_000, 2 * MS]))
        what = draw(st.sampled_from(["next", "next", "next", "next", "far", "range", "failed", "munmap", "expect"]))
        pid = draw(st.sampled_from([1, 1, 1, 2]))
        write = draw(st.sampled_from([True, True, True, False]))
        fault = {"t": t, "op": "fault", "pid": pid, "addr": page * PAGE, "write": write}
        if what == "far":
            page = draw(st.integers(0, 30))
        elif what == "range":
            fault["len"] = 3 * PAGE
            page += 2
        elif what == "failed":
            fault["errno"] = "EFAULT"
        elif what == "munmap":
            fault = {"t": t, "op": "munmap", "pid": pid, "addr": 0, "len": PAGE}
        elif what == "expect":
            begin = max(t - draw(st.sampled_from([0, 1, 500_000])), 0)
            end = begin + draw(st.sampled_from([0, 1, 300_000]))
            fault = {"t": t, "op": "expect", "pid": pid, "vmas": 0, "t0": begin, "t1": end}
        events.append(fault)
        page += 1
    return events


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_which_faults_are_one(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    base = tmp_path_factory.getbasetemp()
    assert exported(to_jsonl(base / "each.jsonl", [*START, *events]), base) == plainly([*START, *events])


def test_a_window_of_the_next_part(tmp_path: Path) -> None:
    """The events of it are held back until the part with the checkpoint has come."""
    faults = {
        "pid": np.ones(100),
        "addr": np.arange(100) * PAGE,
        "write": np.ones(100, dtype=bool),
        "t": np.arange(100),
    }
    with TraceWriter(tmp_path / "runs.parquet", TraceMeta(), runs=True) as writer:
        writer.add("exec", t=0, pid=1, comm="a")
        writer.add_columns({"op": np.full(100, "fault"), **faults})
        writer.add("expect", t=100, pid=1, vmas=0, t0=95, t1=99)
    rows = [
        event
        for batch in open_trace(tmp_path / "runs.parquet").batches()
        for event in zip(batch.t, batch.len, strict=True)
    ]
    assert [(int(t), int(length) // PAGE) for t, length in rows[1:-1]] == [
        (0, 95), *((t, 1) for t in range(95, 100)),
    ]  # fmt: skip


def test_events_without_a_time(tmp_path: Path) -> None:
    faults = [{"op": "fault", "pid": 1, "addr": i * PAGE, "write": False} for i in range(5)]
    rows = exported(to_jsonl(tmp_path / "each.jsonl", [EXEC, *faults]), tmp_path)
    assert rows[1:] == [{**faults[0], "len": 5 * PAGE}]


@pytest.mark.parametrize("name", ["redis", "python"])
def test_a_recording_replays_to_the_same(name: str, tmp_path: Path) -> None:
    """Every counter of every process, at every checkpoint: as when each page is an event."""
    recorded = paths.share("etc") / "traces" / f"{name}.parquet"
    export_jsonl(recorded, tmp_path / "runs.jsonl")
    first, *lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    each: list[Event] = [first]
    for event in lines:
        pages = event.get("len", PAGE) // PAGE if event["op"] == "fault" and "errno" not in event else 1
        page = {**event, "len": PAGE}
        each += [{**page, "addr": event["addr"] + i * PAGE} for i in range(pages)] if pages > 1 else [event]
    assert len(each) > 1.3 * len(lines)
    assert states(to_jsonl(tmp_path / "each.jsonl", each)) == states(recorded)


def states(path: Path) -> list[str]:
    """What is known of the process of each checkpoint."""
    trace = open_trace(path)
    host = Host(for_kernel(trace.meta.kernel_release, trace.meta.kernel_config))
    found: list[str] = []

    def seen(_index: int, pid: int, _fields: dict[str, Any]) -> None:
        found.append(f"{pid} {host.counters(pid)} {host.vmas(pid)}")

    feed = Feed(trace, host, on_expect=seen)
    for batch in trace.batches():
        feed.run(batch, 0, len(batch))
    return found
