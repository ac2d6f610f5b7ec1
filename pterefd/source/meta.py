"""What a trace says of itself: the fields of the `trace` op, or of a Parquet file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from pterefd.errors import TraceError
from pterefd.source.schema import ARCH, FORMAT_VERSION, INT64_MAX, PAGE_SIZE

_INTEGERS = frozenset({"format_version", "page_size", "memory_bytes", "fault_around_bytes"})
_STRINGS = frozenset({"arch", "kernel_release", "kernel_version", "thp", "perf_version"})


@dataclass(frozen=True, slots=True)
class TraceMeta:
    """Where and how a trace was made. None is "not known".

    kernel_release, kernel_version: uname -r and -v.
    kernel_config: option without CONFIG_ -> value, of those that matter (PT_RECLAIM ...).
    thp: what the machine gave huge pages to, as mm/thp.py reads it; "never" where they were off. Older traces have
    "kept" (left as they were) and "seen" (and huge entries were there), which tell too little.
    memory_bytes: of the machine.  fault_around_bytes: how much a file fault maps around it.
    command: what was recorded, as a list of arguments.
    """

    format_version: int = FORMAT_VERSION
    arch: str | None = None
    page_size: int | None = None
    kernel_release: str | None = None
    kernel_version: str | None = None
    kernel_config: Mapping[str, str | bool | int] = field(default_factory=dict)
    thp: str | None = None
    memory_bytes: int | None = None
    fault_around_bytes: int | None = None
    command: list[str] | None = None
    perf_version: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The known fields, as they stand in a `trace` line."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}
        known["kernel_config"] = dict(self.kernel_config) or None
        return {name: value for name, value in known.items() if value is not None}

    def to_json(self) -> bytes:
        """The known fields as one JSON object."""
        return orjson.dumps(self.to_dict())


_NAMES = frozenset(item.name for item in fields(TraceMeta))


def meta_from_dict(values: Mapping[str, Any], where: str) -> TraceMeta:
    """Check the fields of a `trace` op (null is absent) and return them. `where` begins an error's text.

    TraceError: an unknown field, a wrong type, a newer format_version, another arch or page size.
    """
    known = {name: value for name, value in values.items() if value is not None and name != "op"}
    for name in known:
        if name not in _NAMES:
            raise TraceError(f"{where}: trace: there is no field {name!r}")
    if "format_version" not in known:
        raise TraceError(f"{where}: trace: format_version is missing")
    for name, value in known.items():
        known[name] = _checked(name, value, where)
    _supported(known, where)
    return TraceMeta(**known)


def _checked(name: str, value: Any, where: str) -> Any:
    """One field of the right type; a command that is one string becomes a list of one."""
    if name in _INTEGERS:
        good, wanted = type(value) is int and 0 <= value <= INT64_MAX, "an integer, 0 or more"
    elif name in _STRINGS:
        good, wanted = isinstance(value, str), "a string"
    elif name == "kernel_config":
        good = isinstance(value, Mapping) and all(isinstance(item, str | int) for item in value.values())
        wanted = "an object of names and values"
    else:
        value = [value] if isinstance(value, str) else value
        good, wanted = isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of strings"
    if not good:
        raise TraceError(f"{where}: trace: {name} must be {wanted}")
    return value


def _supported(known: Mapping[str, Any], where: str) -> None:
    """Refuse what this version cannot replay."""
    version = known["format_version"]
    if not 1 <= version <= FORMAT_VERSION:
        raise TraceError(f"{where}: format_version {version} is not supported, only up to {FORMAT_VERSION}")
    if known.get("page_size", PAGE_SIZE) != PAGE_SIZE:
        raise TraceError(f"{where}: page_size {known['page_size']} is not supported, only {PAGE_SIZE}")
    if known.get("arch", ARCH) != ARCH:
        raise TraceError(f"{where}: arch {known['arch']} is not supported, only {ARCH}")


def meta_from_json(text: bytes, where: str) -> TraceMeta:
    """The same from a JSON object, as Parquet's metadata holds it."""
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise TraceError(f"{where}: the metadata is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise TraceError(f"{where}: the metadata must be a JSON object")
    return meta_from_dict(values, where)
