"""A plugin's tunables as files: the fields of a pydantic model become rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pterefd.errors import BadInput
from pterefd.hookspecs import Tunables
from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX, INT_MIN
from pterefd.procfs.tree import Content, File


def plugin_knobs(_: Faces, tunables: Tunables) -> Iterator[File]:
    """One writable file for each tunable. An int takes the kernel's integer writes, its range from the field."""
    for name, field in type(tunables).model_fields.items():
        yield _row(name, field)


def _row(name: str, field: FieldInfo) -> File:
    is_int = field.annotation is int
    low, high = _range(field) if is_int else (INT_MIN, INT_MAX)
    return File(
        name,
        0o644,
        field.description or "",
        Content.INT if is_int else Content.STRING,
        low=low,
        high=high,
        read=lambda _, tunables: f"{_shown(getattr(tunables, name))}\n",
        write=lambda faces, tunables, value: _assign(faces, tunables, name, value),
    )


def _range(field: FieldInfo) -> tuple[int, int]:
    """The inclusive range of a field's ge, gt, le, lt."""
    low, high = INT_MIN, INT_MAX
    for limit in field.metadata:
        low = max(low, getattr(limit, "ge", low), getattr(limit, "gt", low - 1) + 1)
        high = min(high, getattr(limit, "le", high), getattr(limit, "lt", high + 1) - 1)
    return low, high


def _shown(value: Any) -> str:
    """bool as the kernel shows one: 1 or 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _assign(faces: Faces, tunables: Tunables, name: str, value: Any) -> None:
    """Set a tunable; acts at the next decision. pydantic checks it (validate_assignment)."""
    try:
        setattr(tunables, name, value)
    except ValidationError as e:
        raise BadInput(f"{name}: {e.errors()[0]['msg']}") from e
    faces.note("tunable set", tunable=name, value=value)
