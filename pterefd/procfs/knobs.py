"""A plugin's tunables as files: the fields of a pydantic model become rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pterefd.errors import BadInput
from pterefd.hookspecs import Kinds, Tunables
from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX, INT_MIN
from pterefd.procfs.tree import Content, File

Find = Callable[[Faces], Mapping[str, Tunables]]


def plugin_knobs(find: Find) -> Callable[[Faces, str], Iterator[File]]:
    """Rows for a plugin's name: one writable file for each tunable that `find` knows of it.

    An int takes the kernel's integer writes, its range from the field. Looked up anew at each read and write, as a file
    that is taken up again brings tunables of its own.
    """

    def rows(faces: Faces, plugin: str) -> Iterator[File]:
        tunables = find(faces).get(plugin)
        if tunables is not None:
            for name, field in type(tunables).model_fields.items():
                yield _row(find, name, field)

    return rows


def _row(find: Find, name: str, field: FieldInfo) -> File:
    is_int = field.annotation is int
    low, high = _range(field) if is_int else (INT_MIN, INT_MAX)
    return File(
        name,
        0o644,
        field.description or "",
        Content.INT if is_int else Content.STRING,
        low=low,
        high=high,
        read=lambda faces, plugin: f"{_shown(getattr(_found(find, faces, plugin), name))}\n",
        write=lambda faces, plugin, value: _assign(faces, plugin, _found(find, faces, plugin), name, value),
    )


def _found(find: Find, faces: Faces, plugin: str) -> Tunables:
    tunables = find(faces).get(plugin)
    if tunables is None:
        raise BadInput(f"{plugin}: no such plugin any more")
    return tunables


def _range(field: FieldInfo) -> tuple[int, int]:
    """The inclusive range of a field's ge, gt, le, lt."""
    low, high = INT_MIN, INT_MAX
    for limit in field.metadata:
        low = max(low, getattr(limit, "ge", low), getattr(limit, "gt", low - 1) + 1)
        high = min(high, getattr(limit, "le", high), getattr(limit, "lt", high + 1) - 1)
    return low, high


def _shown(value: Any) -> str:
    """bool as the kernel shows one: 1 or 0."""
    if isinstance(value, Kinds):
        return value.text
    return str(int(value)) if isinstance(value, bool) else str(value)


def _assign(faces: Faces, plugin: str, tunables: Tunables, name: str, value: Any) -> None:
    """Set a tunable; acts at the next decision. pydantic checks it (validate_assignment)."""
    try:
        setattr(tunables, name, value)
    except ValidationError as e:
        raise BadInput(f"{name}: {e.errors()[0]['msg']}") from e
    except Exception as e:  # a validator of the plugin's own
        raise BadInput(f"{name}: {type(e).__name__}: {e}") from e
    faces.note("tunable set", plugin=plugin, tunable=name, value=value)
