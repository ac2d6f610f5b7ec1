"""Traces written by hand: JSON Lines text, and Parquet made with pyarrow alone, without the project's writer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Event = dict[str, Any]

# The types of trace-format.md, said once more here: what the tests write does not go by the project's own table.
TYPES_OF = """
    int64 t pid addr len offset file_size new_addr new_len start child tid uid gid oom_score_adj
    int64 VmPTE RssAnon RssFile RssShmem VmSwap zero_entries present_entries swap_entries guard_entries vmas
    int64 reclaimable_pt_bytes unlocated_pte_pages t0 t1
    string op prot flags path advice entry comm errno
    bool write dontunmap onfault current future policy dropped tables huge disabled
"""
TYPES = {name: pa.type_for_alias(line.split()[0]) for line in TYPES_OF.split("\n") for name in line.split()[1:]}
TYPES["cmdline"] = pa.list_(pa.string())


def to_jsonl(path: Path, lines: Iterable[Event | str | bytes]) -> Path:
    """Write events, or raw lines, one a line."""
    with path.open("wb") as file:
        for line in lines:
            raw = json.dumps(line) if isinstance(line, dict) else line
            file.write((raw.encode() if isinstance(raw, str) else raw) + b"\n")
    return path


def to_parquet(
    path: Path,
    events: list[Event],
    meta: Event | None = None,
    types: dict[str, pa.DataType] | None = None,
    **options: Any,
) -> Path:
    """Write events with only the columns that occur, with pyarrow alone."""
    kinds = {**TYPES, **(types or {})}
    names = list(dict.fromkeys(name for event in events for name in event))
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
    table = pa.Table.from_pylist(events, schema)
    if meta is not None:
        table = table.replace_schema_metadata({"pterefd": json.dumps(meta)})
    pq.write_table(table, path, **options)
    return path


def write_as(form: str, directory: Path, events: list[Event]) -> Path:
    """Write events in one of the two forms."""
    if form == "jsonl":
        return to_jsonl(directory / "trace.jsonl", events)
    return to_parquet(directory / "trace.parquet", events)


EXEC: Event = {"op": "exec", "pid": 1, "comm": "a"}
