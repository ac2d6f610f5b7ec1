"""The two readings of a trace agree: whole columns at once, and event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pterefd.errors import TraceError
from pterefd.mm.events import ADVICE, ENTRIES, MAP_FLAGS
from pterefd.source.rules import BadEvent, check_event
from pterefd.source.schema import FIELD, OP
from pterefd.source.stream import Stream
from pterefd.source.trace import open_trace
from tests.source.handmade import EXEC, Event, to_jsonl, to_parquet

PAGE = 4096
ADDRESSES = st.sampled_from([0, PAGE, 1 << 30, (1 << 47) - PAGE, (1 << 47) - 2 * PAGE])
LENGTHS = st.sampled_from([PAGE, 2 * PAGE, 1 << 21])
NUMBERS = st.integers(0, 100)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("addr", "start", "new_addr"), ADDRESSES),
    **dict.fromkeys(("len", "new_len"), LENGTHS),
    **dict.fromkeys(("pid", "child", "tid"), st.integers(1, 3)),
    **dict.fromkeys(
        ("write", "dontunmap", "onfault", "current", "future", "policy", "dropped", "tables", "huge", "disabled"),
        st.booleans(),
    ),
    "t": st.integers(0, 5),
    "prot": st.sampled_from(["rw-", "r--", "---", "rwx"]),
    "flags": st.sampled_from([f"private,{name}" for name in MAP_FLAGS[2:]] + ["shared"]),
    "path": st.sampled_from(["/a", "/b", "", "/\u00fc \u2603"]),
    "offset": st.sampled_from([0, PAGE, 1 << 40]),
    "advice": st.sampled_from(ADVICE),
    "entry": st.sampled_from(ENTRIES),
    "comm": st.text(max_size=5),
    "cmdline": st.lists(st.text(max_size=3), max_size=3),
    "errno": st.sampled_from(["ENOMEM", "EINVAL", "EFAULT", "EAGAIN"]),
    "t0": st.just(3),
    "t1": st.integers(3, 9),
}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, -1, 0, 1, 5, PAGE, 1 << 46, 1 << 47, 1 << 62, (1 << 63) - 1, "", "rw-", "x", "private", True, False]
)


@st.composite
def event(draw: st.DrawFn, odd: bool) -> Event:
    """An event with what its op needs and some of what it may have; an odd one has something changed."""
    op = draw(st.sampled_from(sorted(OP)))
    spec = OP[op]
    names = [*spec.required, *draw(st.lists(st.sampled_from(sorted(spec.fields - {"op"})), max_size=4, unique=True))]
    row = {"op": op, **{name: draw(VALUES.get(name, NUMBERS)) for name in names}}
    if op == "expect" and ("t0" in row) != ("t1" in row):
        row.update(t0=3, t1=4)
    if odd and draw(st.booleans()):
        names = sorted(FIELD) if draw(st.booleans()) else sorted(spec.fields)
        row[draw(st.sampled_from(names))] = draw(ODD)
    return row


def first_wrong(events: list[Event]) -> tuple[int, str] | None:
    """By the rules, one event after another: the first that is wrong, and why."""
    stream = Stream()
    for number, row in enumerate(events):
        try:
            check_event(row)
            stream.step(row)
        except BadEvent as error:
            return number, str(error)
    return None


def read(path: Path) -> str | None:
    try:
        list(open_trace(path).batches())
    except TraceError as error:
        return str(error)
    return None


TRACES = st.lists(st.one_of(event(odd=False), event(odd=True)), min_size=1, max_size=12)
MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@MANY
@given(TRACES)
@example([{"op": "fork", "pid": 1, "child": 2, "errno": "EAGAIN"}, {"op": "exit", "pid": 2}])
@example([{"op": "fault", "pid": 1, "addr": (1 << 47) - PAGE, "len": PAGE, "write": True}])
@example([{"op": "fork", "pid": 1, "child": 2}, {"op": "exit", "pid": 1}, {"op": "fork", "pid": 2, "child": 2}])
def test_json_lines_as_one_by_one(tmp_path_factory: Any, events: list[Event]) -> None:
    path = tmp_path_factory.getbasetemp() / "rules.jsonl"
    events = [EXEC, *events]
    wrong = first_wrong(events)
    to_jsonl(path, events)
    assert read(path) == (None if wrong is None else f"{path}:{wrong[0] + 1}: {wrong[1]}")


def storable(row: Event) -> bool:
    """Whether a column of the field's type can hold every value."""
    kinds = {"an integer": int, "true or false": bool, "a string": str, "a list of strings": list}
    return all(value is None or type(value) is kinds[FIELD[name].type] for name, value in row.items())


@MANY
@given(TRACES, st.integers(1, 5))
def test_parquet_as_one_by_one(tmp_path_factory: Any, events: list[Event], group: int) -> None:
    path = tmp_path_factory.getbasetemp() / "rules.parquet"
    events = [EXEC, *filter(storable, events)]
    wrong = first_wrong(events)
    to_parquet(path, events, row_group_size=group)
    assert read(path) == (None if wrong is None else f"{path}: row {wrong[0]}: {wrong[1]}")


def test_the_traces_above_are_good_and_bad() -> None:
    """Otherwise the comparison would be of one kind alone."""
    good, bad = [], []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(TRACES)
    def sort(events: list[Event]) -> None:
        (bad if first_wrong([EXEC, *events]) else good).append(json.dumps(events))

    sort()
    assert len(good) > 10
    assert len(bad) > 50
