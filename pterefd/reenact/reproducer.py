"""The shortest C program that shows a difference: a trace's operations, fewer and fewer, on the kernel each time."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pterefd.engine.arena import Limits
from pterefd.errors import BadInput, Missing, Partly, PterefdError
from pterefd.host.host import kind_of_path
from pterefd.reenact.build import PGD_SLOT
from pterefd.reenact.c_source import SHOWN, Shown, source_of
from pterefd.reenact.calls import GIB, PGD, SPAN
from pterefd.reenact.kernel import Kernel, ThisKernel
from pterefd.reenact.operations import Operation, Survey, operations, survey
from pterefd.reenact.reenact import Reenacted, Result, enact, header
from pterefd.reenact.shrink import Op, shrink
from pterefd.session.check import Checker, CheckOptions
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import Piece, Trace
from pterefd.source.writer import TraceWriter

SECONDS = 120.0  # for making it short
COARSE = 256  # operations between checkpoints, until it is known about where the first difference is
FIRST_SLOT = 32  # PGD slots from here on hold nothing of a program with a libc
LIMITS = Limits(
    mms=1 << 10, mappings=1 << 18, pmd_pages=1 << 14, pte_pages=1 << 22, own_entries=1 << 18, files=1 << 14,
    blocks=1 << 20,
)  # fmt: skip
RANGES = (("addr", "len"), ("new_addr", "new_len"), ("start", ""))  # of an operation: place and length
PLACES = tuple(place for place, _ in RANGES)


class _Steps(Trace):
    """Operations by their number."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.path = Path("steps")
        self.meta = TraceMeta()
        self._ops = ops

    @property
    def events(self) -> int:
        return len(self._ops)

    def pieces(self) -> Iterator[Piece]:
        return iter(())

    def where(self, index: int) -> str:
        return str(index)


@dataclass(slots=True)
class Attempts:
    """Runs lists of operations on the kernel and says what differs.

    fields: those that a program can show.  found: of the whole trace.
    """

    kernel: Kernel
    result: Result
    found: Survey
    fields: frozenset[str]
    deadline: float

    def first(self, ops: Sequence[Op], every: int = 1, since: int = 0) -> Shown | None:
        """The first difference, None where there is none. every, since: which operations a checkpoint follows."""
        paths = {op["path"] for op in ops if "path" in op}
        sizes = {path: size for path, size in self.found.sizes.items() if path in paths}
        found = replace(self.found, sizes=sizes, pgd_slots=_slots(ops))
        options = CheckOptions(self.fields, self.result.options.tolerances)
        steps = (Operation(number, 1, op) for number, op in enumerate(ops))
        with tempfile.TemporaryDirectory(prefix="pterefd-reenact-") as scratch:
            target = Path(scratch) / "trace.parquet"
            with TraceWriter(target, header(self.kernel)) as writer:
                done, origins = enact(self.kernel, found, steps, writer, every=every, since=since)
            new = Reenacted(target, _Steps(ops), origins)
            check = Checker(new, self.result.profile, options, strict=False, limits=LIMITS).run()
        if check.error is not None or not check.differences:
            return None
        difference = check.differences[0]
        if difference.field not in SHOWN:
            return None
        own = getattr(done.own[difference.pid], difference.field)
        return Shown(
            difference.field, difference.pid, difference.kernel - own, difference.model - own, int(difference.where)
        )

    def shows(self, ops: Sequence[Op]) -> bool:
        """Whether these still differ. When time is up nothing does, so that shrinking ends."""
        if time.monotonic() > self.deadline:
            return False
        try:
            return self.first(ops) is not None
        except PterefdError:
            return False


def _slots(ops: Iterable[Op]) -> set[int]:
    """PGD slots that operations use."""
    used: set[int] = set()
    for op in ops:
        for place, length in RANGES:
            if place in op:
                used.update(range(op[place] // PGD_SLOT, (op[place] + op.get(length, 1) - 1) // PGD_SLOT + 1))
    return used


def _elsewhere(ops: Sequence[Op]) -> list[Op]:
    """The same in PGD slots that a program with a libc leaves free; places within each stay."""
    slots = {slot: FIRST_SLOT + number for number, slot in enumerate(sorted(_slots(ops)))}
    return [
        op | {name: op[name] % PGD_SLOT + slots[op[name] // PGD_SLOT] * PGD_SLOT for name in PLACES if name in op}
        for op in ops
    ]


def _without_heap(ops: Sequence[Op]) -> list[Op]:
    """brk as mappings of the same memory."""
    ends: dict[int, int] = {}
    out: list[Op] = []
    for op in ops:
        if op["op"] == "fork" and op["pid"] in ends and "child" in op:
            ends[op["child"]] = ends[op["pid"]]
        if op["op"] != "brk":
            out.append(op)
            continue
        old, new = ends.get(op["pid"], op.get("start", op["addr"])), op["addr"]
        ends[op["pid"]] = new
        if new > old:
            heap = {"addr": old, "len": new - old, "prot": "rw-", "flags": "private,anonymous"}
            out.append({"op": "mmap", "pid": op["pid"], **heap})
        elif new < old:
            out.append({"op": "munmap", "pid": op["pid"], "addr": new, "len": old - new})
    return out


def _as_accesses(ops: Sequence[Op]) -> list[Op]:
    """Snapshots as accesses, the kernel's own mappings as memory."""
    out: list[Op] = []
    for op in ops:
        if op["op"] == "state":
            write = op["entry"] in ("anon", "swap")
            if op["entry"] not in ("none", "guard"):
                out.append({"op": "fault", "pid": op["pid"], "addr": op["addr"], "len": op["len"], "write": write})
        elif op["op"] == "mmap" and kind_of_path(op.get("path", "/")) < 0:
            out.append({name: value for name, value in op.items() if name != "path"})
        else:
            out.append(op)
    return out


def _near(ops: Sequence[Op], size: int) -> list[Op]:
    """Those that touch what the last one touches, in units of so many bytes, and those that have no place."""
    last = ops[-1]
    units: set[int] = set()
    for place, length in RANGES:
        if place in last:
            units.update(range(last[place] // size, (last[place] + last.get(length, 1) - 1) // size + 1))

    def touches(op: Op) -> bool:
        ranges = [(op[place], op.get(length, 1)) for place, length in RANGES if place in op]
        return not ranges or any(not units.isdisjoint(range(a // size, (a + n - 1) // size + 1)) for a, n in ranges)

    return [op for op in ops if touches(op)]


def shortest(attempts: Attempts, ops: list[Op]) -> tuple[list[Op], Shown]:
    """The fewest operations found that differ in a field that a program can show, where it can run them.

    Partly: they do not differ again, or not in such a field.
    """
    shown = attempts.first(ops, COARSE)
    if shown is None:
        raise Partly(f"no reproducer: nothing differs again in {', '.join(sorted(attempts.fields))}")
    ops = ops[: shown.step + 1]
    shown = attempts.first(ops, since=len(ops) - 2 * COARSE)
    if shown is not None:
        ops = ops[: shown.step + 1]
    for size in (SPAN, GIB, PGD):
        near = _near(ops, size)
        if attempts.shows(near):
            ops = near
            break
    for change in (_as_accesses, _without_heap, _elsewhere):
        changed = change(ops)
        if attempts.shows(changed):
            ops = changed
    ops = shrink(ops, attempts.shows)
    for change in (_as_accesses, _without_heap, _elsewhere):
        changed = change(ops)
        if changed != ops and attempts.first(changed) is not None:
            ops = changed
    shown = attempts.first(ops)
    if shown is None:
        raise Partly("no reproducer: the difference comes and goes")
    return ops[: shown.step + 1], shown


def reproduce(result: Result, kernel: Kernel, target: Path) -> str:
    """Write the program. Returns what became of it, for people.

    Partly: there is none, or it does not show the difference by itself (it is written all the same).
    Missing: no compiler.  BadInput: it cannot be written.
    """
    fields = result.fields & SHOWN.keys()
    found = survey(result.trace)
    attempts = Attempts(kernel, result, found, fields, time.monotonic() + SECONDS)
    ops, shown = shortest(attempts, [operation.row for operation in operations(result.trace)])
    sizes = {path: found.sizes.get(path, 0) for path in (op["path"] for op in ops if "path" in op)}
    text = source_of(ops, shown, sizes, found.told, kernel.release, result.profile.name, result.trace.path.name)
    try:
        target.write_text(text)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written: {error.strerror}") from None
    late = "" if time.monotonic() < attempts.deadline else f" (not the shortest: {SECONDS:.0f} s were over)"
    told = f"{target}: {len(ops)} steps{late}"
    if not isinstance(kernel, ThisKernel):
        return f"{told}; not run, as it is for Linux {kernel.release}"
    code, said = compile_and_run(target)
    if code != 1 or said.split()[1:2] != [f"{shown.kernel:+d}"]:
        raise Partly(f"{target}: written, but by itself it says: {said.strip() or code}")
    return f"{told}; run here, it says: {said.strip()}"


def compile_and_run(source: Path) -> tuple[int, str]:
    """Compile the program and run it once. Returns its exit code and output. Missing: it cannot be compiled."""
    with tempfile.TemporaryDirectory(prefix="pterefd-reenact-") as scratch:
        program = Path(scratch) / "program"
        try:
            built = subprocess.run(
                ["gcc", "-Wall", "-O1", "-o", str(program), str(source)], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise Missing("gcc is not there to compile the program: install the package gcc") from None
        if built.returncode:
            first = next((line for line in built.stderr.splitlines() if "error" in line), built.stderr.strip())
            raise Missing(f"{source} cannot be compiled: {first} (is the package libc6-dev installed?)")
        environment: dict[str, Any] = {"PATH": os.environ.get("PATH", "")}
        ran = subprocess.run([program], capture_output=True, text=True, check=False, env=environment, timeout=60)
        return ran.returncode, ran.stdout + ran.stderr
