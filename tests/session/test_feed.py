"""Events that are the session's: of an mm that the host's OOM killer took they are passed over."""

from __future__ import annotations

import json
from pathlib import Path

from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm.profile import named
from pterefd.session.feed import Feed
from pterefd.source.trace import open_trace
from tests.build import SMALL
from tests.house import AT, MIB, exec_, fault, mmap


def test_what_a_killed_mm_would_have_been_asked_is_passed_over(tmp_path: Path) -> None:
    events = [
        exec_(1, "large"),
        mmap(1, AT, 64 * MIB, flags="private,anonymous,noreserve"),
        fault(1, AT, 64 * MIB, write=True),
        {"op": "free_ptes", "pid": 1},
        {"op": "expect", "pid": 1, "VmPTE": 144, "unlocated_pte_pages": 3},
        {"op": "fork", "pid": 1, "child": 2},
        {"op": "free_ptes", "pid": 2},
        {"op": "exit", "pid": 2},
        {"op": "exit", "pid": 1},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    host = Host(named("rfc-2022"), limits=SMALL, memory=Memory(16 * MIB))
    trace = open_trace(path)
    feed = Feed(trace, host)
    for batch in trace.batches():
        feed.run(batch, 0, len(batch))
    assert [kill.pid for kill in host.kills] == [1]
    assert host.lost == 4  # the rest of the access, the fork, both exits
    assert host.pids() == []
