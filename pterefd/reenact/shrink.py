"""Makes a list of operations that shows a difference as short as can be, by running each attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pterefd.reenact.calls import PAGE

Op = dict[str, Any]
Shows = Callable[[list[Op]], bool]


def drop_operations(ops: list[Op], shows: Shows) -> list[Op]:
    """Leave out runs of operations, longest first, as long as the difference stays (delta debugging)."""
    size = max(1, len(ops) // 2)
    while size:
        at = 0
        while at < len(ops):
            less = ops[:at] + ops[at + size :]
            if less and shows(less):
                ops = less
            else:
                at += size
        size //= 2
    return ops


def _simpler(op: Op) -> list[Op]:
    """The same operation with one thing less."""
    out = []
    length = op.get("len", PAGE)
    if op["op"] in ("fault", "mlock", "madvise") and length > PAGE:
        out += [op | {"len": PAGE}, op | {"addr": op["addr"] + length - PAGE, "len": PAGE}]
    if op.get("via"):
        out.append({key: value for key, value in op.items() if key != "via"})
    for flag in ("noreserve", "populate", "locked", "growsdown"):
        if flag in op.get("flags", ""):
            out.append(op | {"flags": ",".join(word for word in op["flags"].split(",") if word != flag)})
    if op.get("prot") not in (None, "rw-"):
        out.append(op | {"prot": "rw-"})
    return out


def simplify_operations(ops: list[Op], shows: Shows) -> list[Op]:
    """Make single operations plainer as long as the difference stays."""
    for at in range(len(ops)):
        for op in _simpler(ops[at]):
            less = [*ops[:at], op, *ops[at + 1 :]]
            if shows(less):
                ops = less
                break
    return ops


def shrink(ops: list[Op], shows: Shows) -> list[Op]:
    """The shortest list found that still shows the difference.

    shows: runs operations and says whether they show a difference; an agent that dies must count as False.
    """
    before = len(ops) + 1
    while len(ops) < before:
        before = len(ops)
        ops = simplify_operations(drop_operations(ops, shows), shows)
    return ops
