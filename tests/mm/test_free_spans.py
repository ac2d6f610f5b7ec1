"""PTE pages listed and freed by their spans, as the bound of `compare` does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pterefd.mm.free_ptes import GONE, MADE_AGAIN, MISSED
from tests.house import AT, SPAN, fault, house, spans

EVENTS = spans(1, full=2, zero=3, empty=4)


def test_the_spans_that_free_ptes_would_free(tmp_path: Path) -> None:
    host = house(tmp_path, EVENTS).host
    listed = host.reclaimable_spans(1)
    assert listed.tolist() == [AT + (2 + k) * SPAN for k in range(7)]
    assert len(listed) * 4096 == host.counters(1).reclaimable_pt_bytes


@pytest.mark.parametrize("slice_spans", [1, 7, 100, 300, 1000])
def test_spans_are_listed_a_slice_at_a_time(slice_spans: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pterefd.host.host.LISTED_SPANS", slice_spans)
    host = house(tmp_path, spans(1, full=0, zero=300, empty=0)).host
    assert host.reclaimable_spans(1).tolist() == [AT + k * SPAN for k in range(300)]


def test_spans_are_freed_where_they_can_be(tmp_path: Path) -> None:
    """A full one, one that has no PTE page and one above all tables are passed over."""
    host = house(tmp_path, EVENTS).host
    before = host.counters(1)
    asked = np.array([AT, AT + 3 * SPAN, AT + 8 * SPAN, AT + 9 * SPAN, 1 << 46], dtype=np.int64)
    assert host.free_spans(1, asked) == (4096, 4096)
    assert host.free_spans(1, asked) == (0, 0)
    after = host.counters(1)
    assert before.pgtables_bytes - after.pgtables_bytes == 2 * 4096
    assert after.freed_on_request == 2
    assert after.mmap_write_holds == 2
    assert host.reclaimable_spans(1).tolist() == [AT + k * SPAN for k in (2, 4, 5, 6, 7)]
    host.validate()


def test_what_became_of_spans_whose_pte_page_was_freed(tmp_path: Path) -> None:
    events = [
        *spans(1, full=0, zero=4, empty=0),
        {"op": "free_ptes", "pid": 1},
        fault(1, AT + SPAN, 8192, write=True),
        {"op": "munmap", "pid": 1, "addr": AT + 2 * SPAN, "len": SPAN},
    ]
    host = house(tmp_path, events).host
    asked = np.array([AT + k * SPAN for k in range(5)], dtype=np.int64)
    assert host.freed_spans(host.process(1), asked).tolist() == [MISSED, MADE_AGAIN, GONE, MISSED, GONE]
    assert host.counters(1).allocated_again == 1
