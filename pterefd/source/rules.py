"""The rules of the trace format for one event by itself.

`check_event` is the exact form, one event at a time, with a message that says what is wrong. `decode` checks whole
batches by the same rules; this is asked only to find and name the first error. What must hold from event to event is
in `stream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pterefd.engine.layout import SPAN
from pterefd.mm.events import ADVICE_CODE, ENTRY_CODE, MAP_FLAG_BIT, MAP_PRIVATE, MAP_SHARED
from pterefd.source.schema import (
    ADDRESS_END,
    BOOL,
    ERRNO,
    EXPECT_VALUES,
    FIELD,
    INT,
    LIST,
    OP,
    PAGE_SIZE,
    PROTS,
    RANGE_OPS,
)

Row = Mapping[str, Any]

HUGE_ENTRIES = (ENTRY_CODE["anon"], ENTRY_CODE["zero"])  # what a PMD entry can map


class BadEvent(Exception):
    """An event breaks a rule; the text says which, without the place."""


def flags_bits(text: str) -> int:
    """MAP_* bits of a comma-separated list. BadEvent: an unknown name, or not one of private and shared."""
    bits = 0
    for name in text.split(","):
        if name not in MAP_FLAG_BIT:
            raise BadEvent(f"flags: {name!r} is not a known flag")
        bits |= MAP_FLAG_BIT[name]
    if bool(bits & MAP_PRIVATE) == bool(bits & MAP_SHARED):
        raise BadEvent(f"flags: {text!r} must have one of private and shared")
    return bits


def split_cmdline(text: str) -> list[str]:
    """A command line that came as one string: split at NUL bytes as in /proc/PID/cmdline, else one argument."""
    return text.removesuffix("\0").split("\0")


def check_event(row: Row) -> None:
    """Check one event by itself: names, types, what its op needs, ranges. BadEvent names the first thing wrong.

    row: field name -> value as JSON has it, None as if absent.
    """
    if row.get("op") == "trace":
        raise BadEvent("op 'trace' may only stand in the first line")
    for name in row:
        if name not in FIELD:
            raise BadEvent(f"there is no field {name!r}")
    if row.get("op") is None:
        raise BadEvent("op is missing")
    op = row["op"]
    if not isinstance(op, str) or op not in OP:
        raise BadEvent(f"{op!r} is not a known op" if isinstance(op, str) else "op must be a string")
    try:
        _check_fields(op, {name: value for name, value in row.items() if value is not None})
    except BadEvent as error:
        raise BadEvent(f"{op}: {error}") from None


def _check_fields(op: str, row: Row) -> None:
    for name in row:
        if name not in OP[op].fields:
            raise BadEvent(f"has no field {name!r}")
    for name in OP[op].required:
        if name not in row:
            raise BadEvent(f"{name} is missing")
    for name, value in row.items():
        _check_type(name, value)
        _check_range(name, value)
    _check_names(row)
    _check_together(op, row)


def _check_type(name: str, value: Any) -> None:
    wanted = FIELD[name].type
    if wanted == INT:
        good = type(value) is int
    elif wanted == BOOL:
        good = type(value) is bool
    elif wanted == LIST:
        good = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    else:
        good = isinstance(value, str)
    if not good:
        raise BadEvent(f"{name} must be {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"the string {value!r}" if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_range(name: str, value: Any) -> None:
    field = FIELD[name]
    if field.type != INT:
        return
    if name in ("addr", "start", "new_addr"):
        _check_address(name, value)
    elif name == "new_len":
        check_range_length(name, value)
    elif not field.low <= value <= field.high:
        raise BadEvent(f"{name} {value} is not in {field.low}..{field.high}")


def _check_address(name: str, value: int) -> None:
    if not 0 <= value < ADDRESS_END:
        raise BadEvent(f"{name} {value:#x} is not a canonical user address (0 <= {name} < 2^47)")
    if value % PAGE_SIZE:
        raise BadEvent(f"{name} {value:#x} is not page-aligned ({PAGE_SIZE})")


def check_range_length(name: str, value: int) -> None:
    """A length of a range of addresses: positive, whole pages, no longer than the address space."""
    if value <= 0:
        raise BadEvent(f"{name} is {value}: it must be positive")
    if value % PAGE_SIZE:
        raise BadEvent(f"{name} {value} is not a multiple of the page size ({PAGE_SIZE})")
    if value > ADDRESS_END:
        raise BadEvent(f"{name} {value} is longer than the address space (2^47)")


def _check_names(row: Row) -> None:
    if "flags" in row:
        flags_bits(row["flags"])
    for name, known in (("prot", PROTS), ("advice", ADVICE_CODE), ("entry", ENTRY_CODE), ("errno", ERRNO)):
        if name in row and row[name] not in known:
            hint = ": it must be three characters, as rw-" if name == "prot" else " is not known"
            raise BadEvent(f"{name} {row[name]!r}{hint}")


def _check_together(op: str, row: Row) -> None:
    """What depends on the op or on two fields."""
    if op in RANGE_OPS and "len" in row:
        check_range_length("len", row["len"])
    if op == "cache" and row["len"] == 0:
        raise BadEvent("len is 0: it must be positive")
    if op == "mmap" and row.get("offset", 0) % PAGE_SIZE:
        raise BadEvent(f"offset {row['offset']} is not page-aligned ({PAGE_SIZE})")
    for start, length in (("addr", "len"), ("new_addr", "new_len")):
        if start in row and length in row and row[start] + row[length] > ADDRESS_END:
            raise BadEvent(f"{start} {row[start]:#x} + {length} {row[length]} runs past the address space (2^47)")
    if op == "fork" and "errno" not in row and "child" not in row:
        raise BadEvent("child is missing")
    if op == "state" and row.get("huge"):
        _check_huge(row["addr"], row["len"], row["entry"])
    if op == "expect":
        _check_expect(row)


def _check_huge(addr: int, length: int, entry: str) -> None:
    """A `state` of huge pages: whole spans of folios, or of the huge zero page."""
    if ENTRY_CODE[entry] not in HUGE_ENTRIES:
        raise BadEvent(f"huge goes with the entries anon and zero, not with {entry}")
    if (addr | length) % SPAN:
        raise BadEvent(f"huge: addr {addr:#x} and len {length} are not multiples of 2 MiB")


def _check_expect(row: Row) -> None:
    if not any(name in row for name in EXPECT_VALUES):
        raise BadEvent("says nothing: it needs a field to compare, such as VmPTE")
    if ("t0" in row) != ("t1" in row):
        raise BadEvent("t0 and t1 go together")
    if "t0" in row and row["t0"] > row["t1"]:
        raise BadEvent(f"t0 {row['t0']} is after t1 {row['t1']}")
