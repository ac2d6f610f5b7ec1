"""How a snapshot of a process is told in a trace: as an exec, its mappings, its entries, and what sets its flags."""

from __future__ import annotations

from itertools import pairwise

from pterefd.live.procmem import PAGE, Map
from pterefd.source.record.lives import Exec
from pterefd.source.record.marks import Snapshot
from pterefd.source.record.table import ABSENT, FIRST, Table

_ADVICE_FLAGS = (("dc", "dontfork"), ("wf", "wipeonfork"), ("hg", "hugepage"), ("nh", "nohugepage"))
_MERGE_FLAGS = frozenset({"nr", "gd", "lo", "lf", "wf", "dc", "ac", "nh", "hg", "ht"})


def add_snapshot(table: Table, new: Exec) -> None:
    """An exec with its mappings, its entries and its heap, all of one time and in this order."""
    t, pid, snapshot = new.t, new.pid, new.mark.snapshot
    owner = {"uid": snapshot.uid, "gid": snapshot.gid, "oom_score_adj": snapshot.oom_score_adj}
    known = {name: value for name, value in owner.items() if value is not None}
    if snapshot.cmdline:
        known["cmdline"] = snapshot.cmdline  # type: ignore[assignment]
    table.add(t, "exec", FIRST, pid=pid, comm=snapshot.comm, **known)
    if snapshot.thp_disabled:
        table.add(t, "thp", FIRST, pid=pid, disabled=1)
    apart = kept_apart(snapshot)
    late: list[tuple[str, dict[str, int | str]]] = []  # calls behind the entries: with them the snapshot ends
    for mapping in snapshot.maps:
        place: dict[str, int | str] = {"addr": mapping.start, "len": mapping.end - mapping.start}
        prot = first_prot(snapshot, mapping, apart=mapping.start in apart)
        if prot != mapping.prot:
            late.append(("mprotect", {**place, "prot": mapping.prot}))
        late += _calls(place, snapshot.flags.get(mapping.start, frozenset()))
        table.add(t, "mmap", FIRST, pid=pid, **place, prot=prot, **_what(table, snapshot, mapping))
    for row in snapshot.state:
        huge = {"huge": 1} if row.huge else {}
        table.add(t, "state", FIRST, pid=pid, addr=row.start, len=row.end - row.start, entry=row.entry, **huge)
    _add_heap(table, new)
    for op, fields in late:
        table.add(t, op, FIRST, pid=pid, **fields)


def _what(table: Table, snapshot: Snapshot, mapping: Map) -> dict[str, object]:
    """flags, path, offset and file_size of a mapping."""
    set_flags = snapshot.flags.get(mapping.start, frozenset())
    return {
        "flags": map_flags(mapping, set_flags),
        "path": table.file_name(mapping.path, mapping.inode) or None,
        "offset": mapping.offset if mapping.inode else ABSENT,
        "file_size": snapshot.sizes.get(mapping.start, ABSENT),
    }


def map_flags(mapping: Map, set_flags: frozenset[str]) -> str:
    """The format's flags of a line of maps and its VmFlags."""
    names = ["shared" if mapping.shared else "private"]
    if not mapping.inode:
        names.append("anonymous")
    if "nr" in set_flags:
        names.append("noreserve")
    if "gd" in set_flags or mapping.path == "[stack]":
        names.append("growsdown")
    if set_flags & {"um", "uw", "ui"}:
        names.append("uffd")
    if "ht" in set_flags:
        names.append("hugetlb")
    if mapping.path == "[stack]":
        names.append("stack")
    if mapping.path == "[heap]":
        names.append("heap")
    return ",".join(names)


def first_prot(snapshot: Snapshot, mapping: Map, *, apart: bool) -> str:
    """The protection with which a mapping is told first, if it takes an mprotect behind the entries to be told right.

    apart: it must not merge with the one below.
    """
    prot = mapping.prot
    if mapping.shared:
        return prot
    if apart:
        return f"{prot[0]}{'-' if prot[1] == 'w' else 'w'}{prot[2]}"
    if "ac" in snapshot.flags.get(mapping.start, ()) and prot[1] != "w":
        return f"{prot[0]}w{prot[2]}"  # it was writable when it was accounted (VM_ACCOUNT), which it still is
    return prot


def kept_apart(snapshot: Snapshot) -> frozenset[int]:
    """Starts of mappings that look as if they were one with the one below, and are not.

    Each has an anon_vma of its own (mm/vma.c is_mergeable_anon_vma). Told with another protection first, they do not
    merge before their entries have given them one, and then not any more. Every second of a row of them is enough.
    """
    found: set[int] = set()
    for below, mapping in pairwise(snapshot.maps):
        if below.start not in found and not mapping.shared and _alike(snapshot, below, mapping):
            found.add(mapping.start)
    return frozenset(found)


def _alike(snapshot: Snapshot, below: Map, mapping: Map) -> bool:
    if below.end != mapping.start or (below.perms, below.path, below.inode) != (
        mapping.perms,
        mapping.path,
        mapping.inode,
    ):
        return False
    if mapping.inode and below.offset + below.end - below.start != mapping.offset:
        return False
    one, other = (snapshot.flags.get(start, frozenset()) & _MERGE_FLAGS for start in (below.start, mapping.start))
    return one == other


def _calls(place: dict[str, int | str], set_flags: frozenset[str]) -> list[tuple[str, dict[str, int | str]]]:
    """The calls that give a mapping its flags, of those that decide how it merges and forks."""
    calls: list[tuple[str, dict[str, int | str]]] = [
        ("madvise", {**place, "advice": name}) for flag, name in _ADVICE_FLAGS if flag in set_flags
    ]
    if "lo" in set_flags:  # behind the entries, since it makes some where there are none
        calls.append(("mlock", {**place, "onfault": int("lf" in set_flags)}))
    return calls


def _add_heap(table: Table, new: Exec) -> None:
    """Where the heap begins, and where it ends now: at the end of its mapping, where it has one."""
    snapshot = new.mark.snapshot
    start = -(-snapshot.brk_start // PAGE) * PAGE
    if start:
        heap = [mapping.end for mapping in snapshot.maps if mapping.path == "[heap]"]
        table.add(new.t, "brk", FIRST, pid=new.pid, addr=max([start, *heap]), start=start)
