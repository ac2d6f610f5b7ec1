"""The slow truth: every counter of an mm, recomputed from its entries. For tests and for doubt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pterefd.engine import layout as lo
from pterefd.engine.charge import anon_pages, swap_pages
from pterefd.engine.state import State


class ValidationError(AssertionError):
    """A counter or a bit does not say what the entries say."""


def _row_states(s: State, p: int) -> Any:
    """uint8[512]: the states of one PTE page's entries."""
    e = int(s.pte[p, lo.P_ENT])
    if e > 0:
        return s.ent[e] & lo.E_STATE
    return np.full(512, -e & lo.E_STATE, dtype=np.uint8)


def _block(s: State, m: int, column: int) -> tuple[Any, Any]:
    position, length = int(s.mm[m, column]), int(s.mm[m, column + 1])
    return s.key[position : position + length], s.val[position : position + length]


def recount(s: State, m: int) -> dict[str, int]:
    """Counters of mm m, from its tables and entries alone; checks refcounts and bits on the way."""
    slots, tables = _block(s, m, lo.M_SLOTS)
    states = np.zeros(lo.N_STATES, dtype=np.int64)
    counts = {"pte": 0, "empty": 0, "zero": 0, "mixed": 0}
    for slot, t in zip(slots.tolist(), tables.tolist(), strict=True):
        row = s.pmd[t]
        bits = np.unpackbits(row[lo.PMD_BITS : lo.PMD_BITS + 16].view(np.uint8), bitorder="little")
        for i in np.flatnonzero(row[:512]).tolist():
            p = int(row[i])
            hist = np.bincount(_row_states(s, p), minlength=lo.N_STATES)
            states += hist
            mapped, zero = 512 - int(hist[lo.E_NONE]), int(hist[lo.E_ZERO])
            where = f"mm {m}, span {(slot << lo.SLOT_SHIFT) + (i << lo.SPAN_SHIFT):#x}"
            if int(s.pte[p, lo.P_REF]) != mapped | zero << lo.REF_ZERO_SHIFT:
                raise ValidationError(
                    f"{where}: pte_refcount {int(s.pte[p, lo.P_REF]):#x}, {mapped} mapped, {zero} zero"
                )
            if bool(bits[i]) != (mapped == 0 or zero == 512):
                raise ValidationError(f"{where}: reclaimable bit {bits[i]}, {mapped} mapped, {zero} zero")
            counts["pte"] += 1
            counts["empty"] += mapped == 0
            counts["zero"] += zero == 512
            counts["mixed"] += 0 < mapped == zero < 512
        if int(row[lo.PMD_RECLAIMABLE]) != int(bits.sum()) or int(row[lo.PMD_PAGES]) != np.count_nonzero(row[:512]):
            raise ValidationError(f"mm {m}, GiB slot {slot:#x}: counts of its PMD page")
    counts["pmd"] = len(slots)
    counts["pud"] = sum(int(word).bit_count() for word in s.mm[m, lo.M_PUDS : lo.M_PUDS + 4].view(np.uint64))
    return counts | {f"state{state}": int(states[state]) for state in range(1, lo.N_STATES)}


def validate_folios(s: State, mms: Sequence[int]) -> None:
    """Raise ValidationError where a large folio's mappings are not as many as the entries of these mms (all) say."""
    truth: Counter[int] = Counter()
    for m in mms:
        for t in _block(s, m, lo.M_SLOTS)[1].tolist():
            for p in s.pmd[t][:512][s.pmd[t][:512] != 0].tolist():
                e = int(s.pte[p, lo.P_ENT])
                if e < 0 and -e & lo.E_STATE == lo.E_HUGE:
                    truth[-e >> lo.FOLIO_SHIFT] += 1
                elif e > 0 and s.entfol[e]:
                    row = s.frow[int(s.entfol[e])]
                    members = row[:512][row[:512] != 0]
                    if int(row[lo.FROW_COUNT]) != len(members):
                        raise ValidationError(f"mm {m}: {len(members)} entries of a page map folios, not as kept")
                    truth.update((members[members > 0] >> lo.FROW_SHIFT).tolist())
    for f, maps in truth.items():
        if int(s.fol[f, lo.F_MAPS]) != maps:
            raise ValidationError(f"folio {f}: {int(s.fol[f, lo.F_MAPS])} mappings are kept, recounted {maps}")
    used = int(s.g[lo.G_POOLS + lo.POOL_FOLIO * lo.POOL_COLUMNS + 2])
    if used != len(truth):
        raise ValidationError(f"{used} large folios are kept, {len(truth)} are mapped")


def validate_mm(s: State, m: int) -> None:
    """Raise ValidationError where a kept counter of mm m differs from its recount, or mappings overlap."""
    truth = recount(s, m)
    columns = {
        "pte": lo.M_NPTE,
        "pmd": lo.M_NPMD,
        "pud": lo.M_NPUD,
        "empty": lo.M_EMPTY,
        "zero": lo.M_ZERO,
        "mixed": lo.M_MIXED,
    } | {f"state{state}": lo.M_E + state for state in range(1, lo.N_STATES)}
    for name, column in columns.items():
        if int(s.mm[m, column]) != truth[name]:
            raise ValidationError(f"mm {m}: {name} is kept as {int(s.mm[m, column])}, recounted {truth[name]}")
    starts, records = _block(s, m, lo.M_VMAS)
    total, end = 0, 0
    for start, v in zip(starts.tolist(), records.tolist(), strict=True):
        if int(s.vma[v, lo.V_START]) != start or start < end or int(s.vma[v, lo.V_END]) <= start:
            raise ValidationError(f"mm {m}: mapping at {start:#x} is out of order or overlaps")
        end = int(s.vma[v, lo.V_END])
        total += (end - start) >> 12
    if total != int(s.mm[m, lo.M_TOTAL_VM]):
        raise ValidationError(f"mm {m}: total_vm is kept as {int(s.mm[m, lo.M_TOTAL_VM])}, recounted {total}")


class _Held:
    """What a group holds, each page once: filled by looking at every entry."""

    def __init__(self) -> None:
        self.anon = 0  # pages that one entry maps, or entries of one row
        self.swap = 0
        self.shared: set[int] = set()  # records of S.shp
        self.slots: set[int] = set()
        self.folios: set[int] = set()

    def pages(self, s: State) -> int:
        return self.anon + len(self.shared) + sum(1 << int(s.fol[f, lo.F_ORDER]) for f in self.folios)


def _look_at(s: State, p: int, held: _Held, rows: set[int], counts: Counter[tuple[int, int]]) -> None:
    """The anonymous pages and swap slots of one PTE page."""
    e = int(s.pte[p, lo.P_ENT])
    if e <= 0:
        state = -e & lo.E_STATE
        held.anon += 512 * (state == lo.E_ANON)
        held.swap += 512 * (state == lo.E_SWAP)
        if state == lo.E_HUGE:
            held.folios.add(-e >> lo.FOLIO_SHIFT)
        return
    if e in rows:
        return
    rows.add(e)
    members = s.frow[int(s.entfol[e])][:512].tolist() if s.entfol[e] else [0] * 512
    for state, v in zip((s.ent[e] & lo.E_STATE).tolist(), members, strict=True):
        if v < 0:
            slot = -v & 1
            if state != (lo.E_SWAP if slot else lo.E_ANON):
                raise ValidationError(f"shared page {-v >> 1}: an entry of state {state} is counted as {slot}")
            counts[-v >> 1, slot] += 1
            (held.slots if slot else held.shared).add(-v >> 1)
        elif v > 0:
            held.folios.add(v >> lo.FROW_SHIFT)
        else:
            held.anon += state == lo.E_ANON
            held.swap += state == lo.E_SWAP


def validate_near(s: State) -> None:
    """Raise ValidationError where S.near says of a PMD page what is not so."""
    for key, pmd in s.near[s.near[:, lo.N_KEY] != 0].tolist():
        m, slot = key >> lo.NEAR_SHIFT, key & ((1 << lo.NEAR_SHIFT) - 1)
        slots, tables = _block(s, m, lo.M_SLOTS)
        if tables[slots == slot].tolist() != [pmd]:
            raise ValidationError(f"mm {m}, GiB slot {slot:#x}: PMD page {pmd} is remembered, not its own")


def validate_groups(s: State, mms: Sequence[int]) -> None:
    """Raise ValidationError where what the groups are charged is not what these mms (all, settled) and objects hold."""
    groups = range(int(s.g[lo.G_GROUPS]))
    held = {g: _Held() for g in groups}
    rows: set[int] = set()
    counts: Counter[tuple[int, int]] = Counter()
    tables: Counter[int] = Counter()
    for m in mms:
        g = int(s.mm[m, lo.M_GROUP])
        tables[g] += sum(int(s.mm[m, column]) for column in (lo.M_NPTE, lo.M_NPMD, lo.M_NPUD, lo.M_UNLOCATED))
        for t in _block(s, m, lo.M_SLOTS)[1].tolist():
            for p in s.pmd[t][:512][s.pmd[t][:512] != 0].tolist():
                _look_at(s, p, held[g], rows, counts)
    for (h, slot), n in counts.items():
        if int(s.shp[h, slot]) != n:
            raise ValidationError(f"shared page {h}: {int(s.shp[h, slot])} rows are kept, recounted {n}")
    used = int(s.g[lo.G_POOLS + lo.POOL_SHARED * lo.POOL_COLUMNS + 2])
    if used != len({h for h, _ in counts}):
        raise ValidationError(f"{used} shared pages are kept, {len({h for h, _ in counts})} are held")
    objects = {g: [0, 0, 0] for g in groups}
    for o in range(1, int(s.g[lo.G_POOLS + lo.POOL_OBJ * lo.POOL_COLUMNS])):
        if s.obj[o, lo.O_REFS] <= 0:
            continue
        charged, evicted = (_run_pages(s, o, column) for column in (lo.O_CHARGED, lo.O_EVICTED))
        if (charged, evicted) != (int(s.obj[o, lo.O_NCHARGED]), int(s.obj[o, lo.O_NEVICTED])):
            raise ValidationError(f"object {o}: {charged} pages charged, {evicted} evicted, not as kept")
        shmem = int(s.obj[o, lo.O_KIND]) == lo.OBJ_SHMEM
        each = (0, charged, evicted) if shmem else (charged, 0, 0)
        for column, n in enumerate(each):
            objects[int(s.obj[o, lo.O_GROUP])][column] += n
    for g in groups:
        parts = [g] if g else list(groups)
        truth = {
            "anon": sum(held[part].pages(s) for part in parts),
            "swap": sum(held[part].swap + len(held[part].slots) + objects[part][2] for part in parts),
            "file": sum(objects[part][0] for part in parts),
            "shmem": sum(objects[part][1] for part in parts),
            "tables": sum(tables[part] for part in parts),
        }
        kept = {
            "anon": int(anon_pages(s, g)),
            "swap": int(swap_pages(s, g)),
            "file": int(s.grp[g, lo.C_FILE]),
            "shmem": int(s.grp[g, lo.C_SHMEM]),
            "tables": int(s.grp[g, lo.C_TABLES]),
        }
        if kept != truth:
            raise ValidationError(f"group {g}: charged {kept}, recounted {truth}")


def _run_pages(s: State, o: int, column: int) -> int:
    """Pages in the runs of one of an object's blocks."""
    position, length = int(s.obj[o, column]), int(s.obj[o, column + 1])
    return int((s.val[position : position + length] - s.key[position : position + length]).sum())
