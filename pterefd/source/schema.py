"""The trace format as data: every field with its type and range, every op with its fields.

Both forms, Parquet and JSON Lines, and everything that reads, writes or checks them, go by these tables. The
format itself is described in docs/trace-format.md.
"""

from __future__ import annotations

import errno as _errno
from dataclasses import dataclass

import pyarrow as pa

from pterefd.mm.events import ENTRIES, OPS

FORMAT_VERSION = 1
META_KEY = b"pterefd"  # Parquet: key of the file metadata that holds the `trace` op's fields, as JSON
PAGE_SIZE = 4096
ARCH = "x86_64"
ADDRESS_END = 1 << 47  # the user half of canonical addresses with 4 levels, arch/x86: TASK_SIZE_MAX + a page
PID_MAX = 4 * 1024 * 1024  # include/linux/threads.h: PID_MAX_LIMIT
FILE_END = 1 << 62  # file offsets and sizes stay below, so that offset + length fits 64 bits
INT64_MAX = (1 << 63) - 1

INT, BOOL, STR, LIST = "an integer", "true or false", "a string", "a list of strings"

_ARROW = {INT: pa.int64(), BOOL: pa.bool_(), STR: pa.string(), LIST: pa.list_(pa.string())}


@dataclass(frozen=True, slots=True)
class Field:
    """One named field: its JSON type, and for integers the inclusive range and the alignment that all ops share.

    arrow: the type of its column in Parquet (int64 unless said).
    """

    name: str
    type: str = INT
    low: int = 0
    high: int = INT64_MAX
    align: int = 1
    arrow: pa.DataType | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the field's column."""
        return self.arrow if self.arrow is not None else _ARROW[self.type]


def _pid(name: str) -> Field:
    return Field(name, low=1, high=PID_MAX, arrow=pa.int32())


def _address(name: str) -> Field:
    return Field(name, high=ADDRESS_END - 1, align=PAGE_SIZE)


EXPECT_KB = ("VmPTE", "RssAnon", "RssFile", "RssShmem", "VmSwap")
EXPECT_COUNTS = ("zero_entries", "present_entries", "swap_entries", "guard_entries", "vmas")
EXPECT_VALUES = (*EXPECT_KB, *EXPECT_COUNTS, "reclaimable_pt_bytes", "unlocated_pte_pages")

# In the order of the Parquet columns and of the keys of an exported line.
FIELDS = (
    Field("t"),
    Field("op", STR),
    _pid("pid"),
    _address("addr"),
    Field("len", high=FILE_END),  # page-aligned and up to ADDRESS_END where it is a range of addresses: RANGE_OPS
    Field("write", BOOL),
    Field("prot", STR),
    Field("flags", STR),
    Field("path", STR),
    Field("offset", high=FILE_END),  # page-aligned in mmap
    Field("file_size", high=FILE_END),
    _address("new_addr"),
    Field("new_len", low=1, high=ADDRESS_END, align=PAGE_SIZE),
    Field("dontunmap", BOOL),
    _address("start"),
    Field("advice", STR),
    Field("onfault", BOOL),
    Field("current", BOOL),
    Field("future", BOOL),
    Field("policy", BOOL),
    Field("dropped", BOOL),
    Field("entry", STR),
    Field("tables", BOOL),
    Field("huge", BOOL),
    Field("disabled", BOOL),
    _pid("child"),
    _pid("tid"),
    Field("comm", STR),
    Field("cmdline", LIST),
    Field("uid", high=(1 << 32) - 1),
    Field("gid", high=(1 << 32) - 1),
    Field("oom_score_adj", low=-1000, high=1000, arrow=pa.int32()),
    Field("errno", STR),
    *(Field(name) for name in EXPECT_VALUES),
    Field("t0"),
    Field("t1"),
)
FIELD = {field.name: field for field in FIELDS}
NAMES = tuple(FIELD)


@dataclass(frozen=True, slots=True)
class Op:
    """Which fields an op has, beyond `t` and `errno`, which any may carry."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Every field that an event of this op may have."""
        return frozenset((*self.required, *self.optional, "op", "t", "errno"))


_RANGE = ("pid", "addr", "len")
OP = {
    "exec": Op(("pid", "comm"), ("cmdline", "uid", "gid", "oom_score_adj")),
    "fork": Op(("pid",), ("child",)),  # child is required where the call did not fail
    "thread": Op(("pid", "tid")),
    "thread_exit": Op(("pid", "tid")),
    "exit": Op(("pid",)),
    "mmap": Op((*_RANGE, "prot", "flags"), ("path", "offset", "file_size")),
    "munmap": Op(_RANGE),
    "mremap": Op((*_RANGE, "new_addr", "new_len"), ("dontunmap",)),
    "mprotect": Op((*_RANGE, "prot")),
    "brk": Op(("pid", "addr"), ("start",)),
    "madvise": Op((*_RANGE, "advice")),
    "mlock": Op(_RANGE, ("onfault",)),
    "munlock": Op(_RANGE, ("onfault",)),
    "mlockall": Op(("pid",), ("current", "future", "onfault")),
    "munlockall": Op(("pid",)),
    "mbind": Op((*_RANGE, "policy")),
    "fault": Op(("pid", "addr", "write"), ("len",)),
    "swap_out": Op(_RANGE, ("dropped",)),
    "cache": Op(("path", "offset", "len")),
    "truncate": Op(("path", "len")),
    "free_ptes": Op(("pid",)),
    "state": Op((*_RANGE, "entry"), ("tables", "huge")),
    "expect": Op(("pid",), (*EXPECT_VALUES, "t0", "t1")),
    "thp": Op(("pid", "disabled")),
}
RANGE_OPS = frozenset(name for name, op in OP.items() if "addr" in op.fields and "len" in op.fields)
assert set(OP) == set(OPS)

ENTRY_NAMES = ENTRIES
ERRNO = {name: number for name, number in vars(_errno).items() if name[0] == "E" and isinstance(number, int)}
PROTS = {  # rwx -> PROT_* bits (mm/events.py)
    "---": 0,
    "r--": 1,
    "-w-": 2,
    "rw-": 3,
    "--x": 4,
    "r-x": 5,
    "-wx": 6,
    "rwx": 7,
}

ARROW = pa.schema([(field.name, field.arrow_type) for field in FIELDS])
STRING_NAMES = tuple(field.name for field in FIELDS if field.type == STR)
