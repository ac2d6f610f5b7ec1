"""Makes a program that shows a difference as short as can be, running each attempt on the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .program import PAGE, Op, Program

Shows = Callable[[Program], bool]


def _with(program: Program, ops: list[Op]) -> Program:
    return replace(program, ops=ops)


def drop_operations(program: Program, shows: Shows) -> Program:
    """Leave out runs of operations, longest first, as long as the difference stays (delta debugging)."""
    size = max(1, len(program.ops) // 2)
    while size:
        at = 0
        while at < len(program.ops):
            less = _with(program, program.ops[:at] + program.ops[at + size :])
            if less.ops and shows(less):
                program = less
            else:
                at += size
        size //= 2
    return program


def _simpler(op: Op) -> list[Op]:
    """The same operation with one thing less."""
    out = []
    if op["op"] in ("fault", "mlock", "madvise") and op["len"] > PAGE:
        out += [op | {"len": PAGE}, op | {"addr": op["addr"] + op["len"] - PAGE, "len": PAGE}]
    if op.get("via"):
        out.append({key: value for key, value in op.items() if key != "via"})
    for flag in ("noreserve", "populate", "locked", "growsdown"):
        if flag in op.get("flags", ""):
            out.append(op | {"flags": ",".join(word for word in op["flags"].split(",") if word != flag)})
    if op.get("prot") not in (None, "rw-"):
        out.append(op | {"prot": "rw-"})
    return out


def simplify_operations(program: Program, shows: Shows) -> Program:
    """Make single operations plainer as long as the difference stays."""
    for at in range(len(program.ops)):
        for op in _simpler(program.ops[at]):
            less = _with(program, [*program.ops[:at], op, *program.ops[at + 1 :]])
            if shows(less):
                program = less
                break
    return program


def shrink(program: Program, shows: Shows) -> Program:
    """The shortest program found that still shows the difference.

    shows: runs a program and says whether it shows a difference; an agent that dies must count as False.
    """
    before = len(program.ops) + 1
    while len(program.ops) < before:
        before = len(program.ops)
        program = simplify_operations(drop_operations(program, shows), shows)
    return program
