"""Taking names and addresses out of a recording, so that it can be given away.

Page tables depend on which spans, GiB slots and PGD slots are in use together and in what order, and on nothing else of
an address. So whole GiB slots are moved, close to each other: what lay within one still does, what was apart still is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pterefd.live.procmem import GIB_SHIFT, PGD_SHIFT
from pterefd.source.record.table import ABSENT, Group, Table

I64 = npt.NDArray[np.int64]

_SLOTS = 1 << (PGD_SHIFT - GIB_SHIFT)  # GiB slots in a PGD slot
_SPECIAL = ("[stack]", "[heap]", "[vdso]", "[vvar]", "[vvar_vclock]")
_ADDRESSES = (("addr", "len"), ("new_addr", "new_len"), ("start", None))
_NOT_ADDRESSES = ("cache", "truncate")


def anonymize(table: Table) -> None:
    """Leave out names, paths, command lines and owners, and rebase addresses, in place."""
    _rename(table)
    groups = [group for group in table.groups() if group.op not in _NOT_ADDRESSES]
    mapping = slot_mapping(_used_slots(groups))
    for group in groups:
        for name, _ in _ADDRESSES:
            if name in group.columns:
                group.columns[name] = mapping.moved(group.columns[name])


def _rename(table: Table) -> None:
    names: dict[str, str] = {}
    for word in table.words["path"].words:
        names[word] = word if word in _SPECIAL else f"{_kind(word)}{len(names)}"
    table.words["path"].words = list(names.values())
    table.words["comm"].words = ["process"] * len(table.words["comm"].words)
    for group in table.groups():
        for name in ("cmdline", "uid", "gid"):
            group.columns.pop(name, None)


def _kind(path: str) -> str:
    """What a file's name is replaced by, with the next number: whether it is shmem's, or a segment, stays visible."""
    if path.startswith("/SYSV"):
        return "/SYSV"
    shmem = path.startswith(("/dev/zero", "/memfd:", "/dev/shm/", "/anon_hugepage"))  # noqa: S108
    return "/dev/shm/file" if shmem else "/file"  # noqa: S108


def _used_slots(groups: list[Group]) -> list[tuple[int, int]]:
    """Runs of GiB slots [first, last] that any event names, apart from each other, ascending."""
    firsts, lasts = [], []
    for group in groups:
        for name, length in _ADDRESSES:
            start = group.columns.get(name)
            if start is None:
                continue
            there = start != ABSENT
            some = start[there]
            size = group.columns[length][there] if length in group.columns else np.ones(len(some), dtype=np.int64)
            firsts.append(some >> GIB_SHIFT)
            lasts.append((some + np.maximum(size, 1) - 1) >> GIB_SHIFT)
    if not firsts:
        return []
    first, last = np.concatenate(firsts), np.concatenate(lasts)
    pairs = np.unique(np.stack([first, last], axis=1), axis=0)
    runs: list[tuple[int, int]] = []
    for low, high in pairs.tolist():
        if runs and low <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], max(runs[-1][1], high)
        else:
            runs.append((low, high))
    return runs


class SlotMapping:
    """Old and new number of the first slot of each run."""

    def __init__(self, old: list[int], new: list[int]) -> None:
        self._old = np.array(old, dtype=np.int64)
        self._shift = np.array(new, dtype=np.int64) - self._old

    def moved(self, addresses: I64) -> I64:
        """Addresses in their new place; ABSENT stays."""
        if not len(self._old):
            return addresses
        at = np.maximum(np.searchsorted(self._old, addresses >> GIB_SHIFT, side="right") - 1, 0)
        return np.where(addresses == ABSENT, addresses, addresses + (self._shift[at] << GIB_SHIFT))


def slot_mapping(runs: list[tuple[int, int]]) -> SlotMapping:
    """Where each run of GiB slots goes: as low as can be, in the same order, apart where it was apart.

    Runs that share a PGD slot still do; a run that ends or begins at a PGD slot's border still does.
    """
    old, new = [], []
    next_free = 1  # new number of the first slot that may be used; slot 0 stays empty
    last_old_pgd = -1
    pgd_shift = 0  # PGD slots by which the runs are moved at present
    for number, (first, last) in enumerate(runs):
        pgd = first // _SLOTS
        if pgd != last_old_pgd:
            target = -(-next_free // _SLOTS) if last_old_pgd >= 0 else 0
            if last_old_pgd >= 0 and pgd == last_old_pgd + 1:
                target = last_old_pgd - pgd_shift + 1
            elif last_old_pgd >= 0:
                target = last_old_pgd - pgd_shift + 2  # apart by an empty one
            pgd_shift = pgd - target
            next_free = target * _SLOTS + (1 if first % _SLOTS else 0)
        crosses = last // _SLOTS != pgd
        borders = number + 1 < len(runs) and runs[number + 1][0] == last + 1
        at = first - pgd_shift * _SLOTS if crosses or borders or first % _SLOTS == 0 else next_free
        old.append(first)
        new.append(at)
        next_free = at + (last - first + 1) + 1
        last_old_pgd = last // _SLOTS
    return SlotMapping(old, new)
