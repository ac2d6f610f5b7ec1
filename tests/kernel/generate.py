"""Random programs in which rare rules meet.

The ranges of a program have their ends on few addresses, its *boundaries*, and these lie on and beside the borders of
PTE pages, PMD pages and PUD pages: so several mappings share a span, are split and merged, moved onto each other and
back. A seed and a family give the same program on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .program import GIB, PAGE, PGD, SPAN, FileSpec, Op, Program

HOME = 2 * PGD  # boards lie around addresses in PGD slots from here on, which nothing else uses
POPULATE_PAGES = 1100  # no more pages are populated at once
TOUCH_PAGES = 600

NEAR_SPAN = (0, 1, 2, 128, 255, 256, 257, 510, 511, 512, 513, 514, 640, 768, 1023, 1024, 1025, 1280, 1536, 2047, 2048)
NEAR_BORDER = (-1024, -768, -513, -512, -511, -256, -2, -1, 0, 1, 2, 256, 511, 512, 513, 1024)
G = GIB // PAGE
WIDE = (0, 1, 512, G - 512, G - 1, G, G + 1, G + 256, G + 512, 2 * G - 512, 2 * G, 2 * G + 512)
SHIFTS = (G * 8, G * 8, G * 3, G * 512, 512 * 8, 4096 + 256, G * 8 + 1, G * 512 + 1, G * 8 + 512, 5003)
HUGE = (0, 512, 1024, 1536, 2048)  # borders of spans, of which most stand on a board of this kind
BESIDE = (1, 5, 16, 255, 256, 257, 511, 513, 768, 1023, 1025, 1040, 1280, 1535, 1792, 2047)
HUGE_BORDER = (-1024, -512, 0, 512, 1024)
BESIDE_BORDER = (-768, -513, -511, -256, -16, -1, 1, 3, 256, 511, 513, 640)
BLOCKS = (0, 5, 8, 16, 32, 48, 64, 96, 105, 128, 256, 272, 500, 512, 520, 528, 576, 1024)
HUGE_SHIFTS = (G * 8, G * 8, G * 3, G * 512, 512 * 8, 512 * 8, G * 8 + 512, 4096 + 256, G * 8 + 1, 4096 + 16)
DOWN = (0, 16, 240, 256, 300, 512, 560, 700, 768, 1024, 1060, 1300, 1536, 1600)


@dataclass(frozen=True, slots=True)
class Family:
    """What programs of one kind are made of: weights of operations, of advice, of kinds of mappings, of boards.

    hugepage: the chance that a new mapping is given MADV_HUGEPAGE at once.  swap: needs somewhere to swap to.
    """

    ops: dict[str, int]
    advice: dict[str, int]
    kinds: dict[str, int]
    boards: dict[str, int]
    boundaries: tuple[int, int] = (6, 10)
    processes: int = 4
    extra_flags: dict[str, float] = field(default_factory=dict)
    hugepage: float = 0.0
    swap: bool = False


ANON_OPS = {
    "mmap": 9,
    "munmap": 8,
    "move": 10,
    "resize": 5,
    "mprotect": 9,
    "write": 20,
    "read": 14,
    "madvise": 20,
    "fork": 4,
    "exit": 2,
    "exec": 1,
}
ANON_ADVICE = {
    "dontneed": 50,
    "dontneed_locked": 3,
    "free": 8,
    "cold": 2,
    "willneed": 1,
    "populate_read": 6,
    "populate_write": 6,
    "dontfork": 3,
    "dofork": 2,
    "wipeonfork": 3,
    "keeponfork": 2,
}
FLAG_ADVICE = {  # each sets or clears a flag that decides what merges
    "hugepage": 3,
    "nohugepage": 3,
    "mergeable": 2,
    "unmergeable": 2,
    "dontdump": 3,
    "dodump": 3,
    "random": 2,
    "sequential": 2,
    "normal": 3,
}
BOARDS = {"span": 5, "gib": 4, "pgd": 3, "wide": 1}
ANON_FLAGS = {"noreserve": 0.1, "populate": 0.1}

FAMILIES: dict[str, Family] = {
    "anon": Family(ANON_OPS, ANON_ADVICE, {"anon": 1}, BOARDS, extra_flags=ANON_FLAGS),
    "vma": Family(
        {**ANON_OPS, "mprotect": 24, "read": 18, "write": 12, "fork": 7, "exit": 3, "move": 12, "munmap": 5},
        {**ANON_ADVICE, "dontneed": 20, "dontfork": 6, "dofork": 5, "wipeonfork": 6, "keeponfork": 5, **FLAG_ADVICE},
        {"anon": 1},
        {"span": 4, "gib": 2, "pgd": 1},
        boundaries=(4, 6),
        processes=5,
        extra_flags={"noreserve": 0.15, "populate": 0.05},
    ),
    "shmem": Family(
        {**ANON_OPS, "mmap": 12},
        {**ANON_ADVICE, "free": 3, "remove": 6, "wipeonfork": 1, "keeponfork": 1},
        {"anon": 3, "shared": 8, "tmpfs": 4, "tmpfs_private": 3},
        {"span": 5, "gib": 3, "pgd": 1},
        extra_flags=ANON_FLAGS,
    ),
    "file": Family(
        {**ANON_OPS, "mmap": 12, "truncate": 3},
        {**ANON_ADVICE, "free": 3, "wipeonfork": 1, "keeponfork": 1},
        {"anon": 2, "disk": 5, "disk_private": 8},
        {"span": 5, "gib": 3, "pgd": 1},
        extra_flags=ANON_FLAGS,
    ),
    "swap": Family(
        {**ANON_OPS, "madvise": 34, "write": 36, "fork": 2, "munmap": 5},
        {**ANON_ADVICE, "pageout": 45, "free": 16, "cold": 4},
        {"anon": 8, "shared": 1},
        {"span": 5, "gib": 3, "pgd": 1},
        extra_flags=ANON_FLAGS,
        swap=True,
    ),
    "guard": Family(
        {**ANON_OPS, "madvise": 34},
        {**ANON_ADVICE, "guard_install": 30, "guard_remove": 22},
        {"anon": 8, "shared": 1, "disk_private": 1, "disk": 1},
        {"span": 5, "gib": 3, "pgd": 1},
        extra_flags=ANON_FLAGS,
    ),
    "lock": Family(
        {**ANON_OPS, "mlock": 14, "munlock": 8, "mprotect": 12},
        {**ANON_ADVICE, "dontneed_locked": 16},
        {"anon": 8, "shared": 2},
        {"span": 5, "gib": 3, "pgd": 1},
        extra_flags={**ANON_FLAGS, "locked": 0.06},
    ),
    "brk": Family(
        {**ANON_OPS, "brk": 24, "mmap": 6, "stack": 4},
        ANON_ADVICE,
        {"anon": 6, "growsdown": 1},
        {"heap": 6, "span": 1},
        extra_flags=ANON_FLAGS,
    ),
    "growsdown": Family(
        {**ANON_OPS, "below": 16, "stack": 2, "move": 5},
        ANON_ADVICE,
        {"anon": 3, "growsdown": 6},
        {"down": 5, "gib": 2, "span": 1},
        extra_flags={"populate": 0.06, "noreserve": 0.04},
    ),
    "broad": Family(
        {
            **ANON_OPS,
            "mlock": 8,
            "munlock": 5,
            "brk": 6,
            "below": 8,
            "truncate": 2,
            "stack": 2,
            "madvise": 32,
            "mmap": 12,
        },
        {
            **ANON_ADVICE,
            **dict.fromkeys(FLAG_ADVICE, 1),
            "guard_install": 10,
            "guard_remove": 8,
            "dontneed_locked": 8,
            "remove": 3,
        },
        {"anon": 6, "growsdown": 4, "shared": 3, "disk": 2, "disk_private": 3, "tmpfs": 2, "tmpfs_private": 2},
        {"span": 3, "gib": 3, "pgd": 2, "heap": 2, "down": 4},
        processes=5,
        extra_flags={**ANON_FLAGS, "locked": 0.06},
    ),
    "mixed": Family(
        {**ANON_OPS, "mlock": 5, "munlock": 4, "brk": 6, "below": 4, "truncate": 2, "madvise": 30, "mmap": 12},
        {**ANON_ADVICE, "pageout": 12, "guard_install": 8, "guard_remove": 7, "dontneed_locked": 6, "remove": 2},
        {"anon": 8, "shared": 3, "disk": 2, "disk_private": 3, "tmpfs": 2, "tmpfs_private": 1, "growsdown": 1},
        {"span": 4, "gib": 3, "pgd": 2, "heap": 2},
        processes=4,
        extra_flags={**ANON_FLAGS, "locked": 0.03},
        swap=True,
    ),
}

# For the rules by which kernels differ in what they merge: little else, on few boundaries.
MERGE_FAMILIES: dict[str, Family] = {
    "joins": Family(
        {
            "mmap": 16,
            "munmap": 9,
            "move": 10,
            "mprotect": 26,
            "write": 16,
            "read": 14,
            "madvise": 3,
            "fork": 5,
            "exit": 3,
        },
        {"dontneed": 2, "dontfork": 1, "dofork": 1},
        {"anon": 1},
        {"span": 1},
        boundaries=(4, 5),
        processes=4,
    ),
}

HUGE_OPS = {
    "mmap": 6,
    "munmap": 4,
    "move": 8,
    "resize": 3,
    "mprotect": 6,
    "write": 32,
    "read": 12,
    "madvise": 36,
    "mlock": 3,
    "munlock": 3,
    "fork": 4,
    "exit": 2,
    "thp": 1,
}
HUGE_ADVICE = {
    "hugepage": 12,
    "nohugepage": 4,
    "collapse": 12,
    "dontneed": 34,
    "dontneed_locked": 3,
    "populate_read": 4,
    "populate_write": 4,
    "guard_install": 3,
    "guard_remove": 3,
    "dontfork": 2,
    "dofork": 2,
    "wipeonfork": 2,
    "keeponfork": 2,
}
HUGE_BOARDS = {"huge": 5, "huge_gib": 3, "huge_pgd": 1}
HUGE_KINDS = {"anon": 12, "growsdown": 1}
HUGE_FLAGS = {**ANON_FLAGS, "stack": 0.03, "locked": 0.03}
SPLITS = {**HUGE_ADVICE, "free": 24, "cold": 10, "pageout": 8, "dontneed": 24}

# Programs with huge pages.
HUGE_FAMILIES: dict[str, Family] = {
    "thp": Family(HUGE_OPS, HUGE_ADVICE, HUGE_KINDS, HUGE_BOARDS, extra_flags=HUGE_FLAGS, hugepage=0.8),
    "thp_fork": Family(
        {**HUGE_OPS, "fork": 12, "exit": 6, "write": 40},
        {**HUGE_ADVICE, "free": 8, "cold": 4, "dontneed": 24},
        HUGE_KINDS,
        HUGE_BOARDS,
        boundaries=(4, 7),
        processes=5,
        extra_flags=HUGE_FLAGS,
        hugepage=0.85,
    ),
    "thp_split": Family(
        {**HUGE_OPS, "madvise": 44, "fork": 2},
        SPLITS,
        HUGE_KINDS,
        HUGE_BOARDS,
        extra_flags=HUGE_FLAGS,
        hugepage=0.85,
    ),
    "thp_swap": Family(
        {**HUGE_OPS, "madvise": 40, "write": 40, "fork": 2},
        {
            **{name: weight for name, weight in HUGE_ADVICE.items() if name != "collapse"},
            "pageout": 40,
            "cold": 4,
            "free": 10,
        },
        HUGE_KINDS,
        HUGE_BOARDS,
        extra_flags=HUGE_FLAGS,
        hugepage=0.85,
        swap=True,
    ),
    "thp_broad": Family(
        {**HUGE_OPS, "brk": 6, "below": 6, "stack": 3, "truncate": 1, "mlock": 6, "munlock": 4},
        {
            **{name: weight for name, weight in SPLITS.items() if name != "collapse"},  # files are not collapsed here
            **dict.fromkeys(FLAG_ADVICE, 1),
            "hugepage": 12,
            "guard_install": 6,
            "guard_remove": 5,
            "remove": 2,
        },
        {"anon": 10, "growsdown": 4, "shared": 2, "disk_private": 2, "tmpfs_private": 2, "disk": 1, "tmpfs": 1},
        {"huge": 4, "huge_gib": 2, "heap": 3, "down": 3},
        processes=5,
        extra_flags=HUGE_FLAGS,
        hugepage=0.7,
    ),
    "mthp": Family(
        {**HUGE_OPS, "write": 44},
        {**HUGE_ADVICE, "free": 10, "cold": 4, "guard_install": 6, "collapse": 4},
        HUGE_KINDS,
        {"blocks": 5, "huge": 2, "huge_gib": 1},
        extra_flags=HUGE_FLAGS,
        hugepage=0.85,
    ),
}

# Setting of huge pages (hugepages.py) -> the families that run with it.
HUGE_RUNS: dict[str, tuple[str, ...]] = {
    "madvise": (
        "thp",
        "thp_fork",
        "thp_split",
        "thp_swap",
        "vma",
        "broad",
        "thp_broad",
        "thp",
        "thp_fork",
        "thp_split",
    ),
    "madvise,no-zero-page": ("thp", "thp_fork"),
    "madvise,64kB=madvise": ("mthp", "thp_swap"),
    "madvise,16kB=madvise,32kB=madvise,64kB=madvise": ("mthp", "thp_split", "thp_fork"),
    "madvise,64kB=always,2048kB=never": ("mthp", "anon"),
    "always": (
        *("thp", "thp_fork", "thp_split", "thp_swap", "thp_broad"),
        *("anon", "vma", "shmem", "file", "swap", "lock", "guard", "brk", "growsdown", "mixed", "broad"),
    ),
    "never": ("thp",),
    "always,16kB=madvise,64kB=always": ("mthp", "thp_broad", "swap", "brk", "growsdown", "lock"),
}


def pick(rng: random.Random, weights: dict[str, int]) -> str:
    """One key, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


class Shadow:
    """Roughly what one process has mapped: sorted, disjoint [start, end, kind]. It only steers the choices."""

    def __init__(self, areas: list[tuple[int, int, str]] | None = None) -> None:
        self.areas = list(areas or [])

    def copy(self) -> Shadow:
        return Shadow(self.areas)

    def unmap(self, start: int, end: int) -> None:
        kept = []
        for a, b, kind in self.areas:
            if a < start:
                kept.append((a, min(b, start), kind))
            if b > end:
                kept.append((max(a, end), b, kind))
        self.areas = [area for area in kept if area[0] < area[1]]

    def map(self, start: int, end: int, kind: str) -> None:
        self.unmap(start, end)
        self.areas.append((start, end, kind))
        self.areas.sort()

    def move(self, start: int, end: int, to: int, kept: bool) -> None:
        moved = [(max(a, start), min(b, end), kind) for a, b, kind in self.areas if a < end and b > start]
        if not kept:
            self.unmap(start, end)
        for a, b, kind in moved:
            self.map(a - start + to, b - start + to, kind)


class Generator:
    """Makes one program. heap_start: where the agent's heap begins."""

    def __init__(self, family: str, seed: int, length: int, heap_start: int) -> None:
        self.rng = random.Random(f"{family} {seed} {length}")
        self.name = family
        self.seed = seed
        self.length = length
        self.family = (FAMILIES | HUGE_FAMILIES | MERGE_FAMILIES)[family]
        self.heap_start = heap_start
        self.shadows: dict[int, Shadow] = {1: Shadow()}
        self.breaks: dict[int, int] = {1: heap_start}
        self.next_pid = 2
        self.files = self._make_files()
        self.sizes = [spec.pages for spec in self.files]
        self.boards = self._make_boards()
        self.marks = sorted({mark for board in self.boards for mark in board})
        self.ops: list[Op] = []
        self.used: list[int] = []  # spans of the last touches and moves
        self.parted: list[tuple[int, int]] = []  # (pid, span) of the last calls on a part of a span
        self.makers: dict[str, Callable[[int], Op | None]] = {
            "mmap": self._mmap,
            "munmap": self._munmap,
            "move": self._move,
            "resize": self._resize,
            "mprotect": self._mprotect,
            "read": lambda pid: self._touch(pid, False),
            "write": lambda pid: self._touch(pid, True),
            "below": self._below,
            "stack": self._stack,
            "madvise": self._madvise,
            "mlock": self._mlock,
            "munlock": self._munlock,
            "brk": self._brk,
            "fork": self._fork,
            "exit": self._exit,
            "exec": self._exec,
            "truncate": self._truncate,
            "thp": self._thp,
        }

    # -- boards and files ------------------------------------------------------------------------

    def _board(self, style: str) -> tuple[int, list[int]]:
        """(base, boundaries): page numbers."""
        rng = self.rng
        count = rng.randint(*self.family.boundaries)
        pages: tuple[int, ...]
        if style == "span":
            base, pages = HOME + GIB * rng.randint(1, 3) + SPAN * rng.randint(1, 5), NEAR_SPAN
        elif style == "gib":
            base, pages = HOME + GIB * rng.randint(2, 4), NEAR_BORDER
        elif style == "pgd":
            base, pages = HOME + PGD, NEAR_BORDER
        elif style == "wide":
            base, pages = HOME + GIB * rng.randint(4, 6), WIDE
        elif style == "huge":
            base, pages = HOME + GIB * rng.randint(1, 3) + SPAN * rng.randint(1, 5), BESIDE
        elif style in ("huge_gib", "huge_pgd"):
            base, pages = HOME + (PGD if style == "huge_pgd" else GIB * rng.randint(2, 4)), BESIDE_BORDER
        elif style == "blocks":
            base, pages = HOME + GIB * rng.randint(1, 3) + SPAN * rng.randint(1, 5), BLOCKS
        elif style == "down":
            base, pages = HOME + GIB * rng.randint(1, 3) - SPAN * rng.choice((0, 1, 2)), DOWN
        else:
            border = -(-self.heap_start // GIB) * GIB
            base, pages = border, (-25, -24, -16, -8, -1, 0, 1, 8, 200, 256, 511, 512, 513, 768, 1024, 1300)
        chosen = rng.sample(pages, min(count, len(pages)))
        if style.startswith("huge"):
            borders = HUGE if style == "huge" else HUGE_BORDER
            chosen = chosen[: count // 3] + [page for page in borders if rng.random() < 0.85]
        if 0 not in chosen:
            chosen[0] = 0
        return base // PAGE, sorted(chosen)

    def _make_boards(self) -> list[list[int]]:
        """Two boards, the second mostly a shifted copy of the first. Boundaries in bytes."""
        rng = self.rng
        self.style = style = pick(rng, self.family.boards)
        base, pages = self._board(style)
        boards = [[(base + p) * PAGE for p in pages]]
        if rng.random() < 0.75 or style == "heap":
            shift = rng.choice(HUGE_SHIFTS if style.startswith(("huge", "blocks")) else SHIFTS)
            if style == "heap":
                base, shift = HOME // PAGE, rng.choice((0, 1, G))
            boards.append([(base + shift + p) * PAGE for p in pages])
        else:
            other = pick(rng, {k: v for k, v in self.family.boards.items() if k != "heap"} or {"span": 1})
            base, pages = self._board(other)
            boards.append([(base + p) * PAGE for p in pages])
        return boards

    def _make_files(self) -> list[FileSpec]:
        rng = self.rng
        files = []
        for kind in ("disk", "tmpfs"):
            if any(name.startswith(kind) for name in self.family.kinds):
                pages = rng.choice((20, 100, 511, 600, 1024, 1500))
                cached = [(0, pages)]
                if kind == "tmpfs" and rng.random() < 0.7:
                    ends = sorted(rng.sample(range(pages), 6))
                    cached = [(a, b - a) for a, b in zip(ends[::2], ends[1::2], strict=True)]
                files.append(FileSpec(kind, pages, cached))
        return files

    # -- choosing ranges -------------------------------------------------------------------------

    def _boundaries(self) -> list[int]:
        # Near the heap few mappings, or it could never grow.
        return self.boards[self.rng.random() < (0.8 if self.style == "heap" else 0.5)]

    def _any_range(self) -> tuple[int, int]:
        marks = self._boundaries()
        borders = [mark for mark in marks if mark % SPAN == 0]
        if self.family.hugepage and len(borders) > 1 and self.rng.random() < 0.6:
            marks = borders
        start, end = sorted(self.rng.sample(marks, 2))
        return start, end

    def _used_span(self, areas: list[tuple[int, int, str]]) -> tuple[int, int] | None:
        """Mostly a part of a span that was touched, or moved to, not long ago."""
        if not self.used or self.rng.random() < 0.25:
            return None
        low = self.rng.choice(self.used)
        if not any(start < low + SPAN and low < end for start, end, _ in areas):
            return None
        return self._in_span(low, low + SPAN * self.rng.choice((1, 1, 1, 2)))

    def _in_span(self, start: int, end: int) -> tuple[int, int]:
        """One span of [start, end), or a part of one, or of two; the range as it is where it has no whole span."""
        rng = self.rng
        first, last = -(-start // SPAN), end // SPAN
        if first >= last:
            return start, end
        low = rng.randrange(first, last) * SPAN
        draw = rng.random()
        if draw < 0.3:
            return low, low + SPAN
        if draw < 0.4:
            return low, last * SPAN
        if draw < 0.6:
            page = low + PAGE * rng.choice((0, 1, 7, 100, 255, 256, 300, 511))
            return page, page + PAGE
        if draw < 0.7:
            return (low, low + SPAN // 2) if rng.random() < 0.5 else (low + SPAN // 2, low + SPAN)
        if draw < 0.8:
            return (low + PAGE, low + SPAN) if rng.random() < 0.5 else (low, low + SPAN - PAGE)
        if draw < 0.9 and low + 2 * SPAN <= end:
            return low + SPAN // 2, low + SPAN // 2 * 3
        page = low + PAGE * rng.randrange(0, 480)
        return page, page + PAGE * rng.randint(1, 31)

    def _mapped_range(self, pid: int, inside: bool = False) -> tuple[int, int]:
        """Mostly a part of one mapped area, with ends on boundaries."""
        rng = self.rng
        areas = self.shadows[pid].areas
        if not areas or (not inside and rng.random() < 0.2):
            return self._any_range()
        start, end, _ = rng.choice(areas)
        if self.family.hugepage and rng.random() < 0.6:
            return self._used_span(areas) or self._in_span(start, end)
        marks = [mark for mark in self.marks if start < mark < end]
        cut = rng.random()
        if cut < 0.3 and marks:
            start = rng.choice(marks)
        elif cut < 0.55 and marks:
            end = rng.choice(marks)
        elif cut < 0.65 and len(marks) > 1:
            start, end = sorted(rng.sample(marks, 2))
        elif cut < 0.72 and end - start > 2 * PAGE:
            start = start + PAGE * rng.randint(0, (end - start) // PAGE - 2)
            end = start + PAGE * rng.randint(1, min(20, (end - start) // PAGE))
        elif cut < 0.8 and not inside:
            later = [mark for mark in self.marks if mark > start]
            end = rng.choice(later) if later and rng.random() < 0.5 else end
            if end - start > 4 * GIB:
                end = start + SPAN
        return start, end

    def _limited(self, start: int, end: int, pages: int) -> tuple[int, int]:
        return start, min(end, start + pages * PAGE)

    # -- operations ------------------------------------------------------------------------------

    def _prot(self) -> str:
        often = 140 if self.family.hugepage else 70
        return pick(self.rng, {"rw-": often, "r--": 13, "---": 8, "rwx": 4, "r-x": 3, "-w-": 2})

    def _mmap(self, pid: int) -> Op:
        rng = self.rng
        areas = self.shadows[pid].areas
        start, end = self._any_range()
        if areas and rng.random() < 0.12:
            start, end = self._mapped_range(pid)
        kind = pick(rng, self.family.kinds)
        op: Op = {"op": "mmap", "pid": pid, "addr": start, "len": end - start, "prot": self._prot()}
        flags = ["private" if kind in ("anon", "growsdown") or kind.endswith("_private") else "shared"]
        if kind in ("anon", "growsdown", "shared"):
            flags.append("anonymous")
        else:
            index = next(i for i, spec in enumerate(self.files) if kind.startswith(spec.kind))
            op["file"] = index
            op["offset"] = PAGE * rng.choice((0, 0, 0, 1, 3, 16, 256, 512, self.files[index].pages // 2))
            if rng.random() < 0.3:  # the offset that continues another mapping of the file, so that they can merge
                op["offset"] = max(0, (start - self.boards[0][0]) % (SPAN * 4)) // PAGE * PAGE
        if kind == "growsdown":
            flags.append("growsdown")
        for flag, chance in self.family.extra_flags.items():
            if flag == "stack" and kind == "growsdown":
                continue  # a trace's growsdown,stack is the stack that execve made
            if rng.random() < chance and (flag == "noreserve" or end - start <= POPULATE_PAGES * PAGE):
                flags.append(flag)
        op["flags"] = ",".join(flags)
        self.shadows[pid].map(start, end, kind)
        return op

    def _munmap(self, pid: int) -> Op:
        start, end = self._mapped_range(pid)
        self.shadows[pid].unmap(start, end)
        return {"op": "munmap", "pid": pid, "addr": start, "len": end - start}

    def _move(self, pid: int) -> Op | None:
        rng = self.rng
        several = rng.random() < 0.12
        start, end = self._mapped_range(pid, inside=not several)
        to = rng.choice(self._boundaries())
        draw = rng.random()
        if draw < 0.45:  # the same place on the other board
            for here, there in ((0, 1), (1, 0)):
                if self.boards[here][0] <= start <= self.boards[here][-1]:
                    to = start - self.boards[here][0] + self.boards[there][0]
        elif draw < 0.6:
            to += PAGE * rng.choice((-1, 1, 3, 256))
        elif draw < 0.7:
            to = start % SPAN + to // SPAN * SPAN
        new_len = end - start
        dontunmap = rng.random() < 0.2
        if not dontunmap and rng.random() < 0.25:
            new_len = PAGE * max(1, new_len // PAGE + rng.choice((-1, 1, -256, 256, 512, -512, 100)))
            new_len = min(new_len, end - start + 512 * PAGE)
        op: Op = {"op": "mremap", "pid": pid, "addr": start, "len": end - start, "new_addr": to, "new_len": new_len}
        op["place"] = "any" if not dontunmap and rng.random() < 0.03 else "fixed"
        if dontunmap:
            op["dontunmap"] = True
        if op["place"] == "fixed" and (to + new_len <= start or end <= to):
            self.shadows[pid].unmap(to, to + new_len)
            self.shadows[pid].move(start, min(end, start + new_len), to, dontunmap)
        return op

    def _resize(self, pid: int) -> Op | None:
        rng = self.rng
        areas = self.shadows[pid].areas
        if not areas:
            return None
        start, end, kind = rng.choice(areas)
        if rng.random() < 0.4:
            start = max(start, end - PAGE * rng.choice((1, 255, 256, 512, 513)))
        marks = [mark for mark in self.marks if start < mark <= end + 1024 * PAGE and mark != end]
        if not marks:
            return None
        new_end = rng.choice(marks)
        if new_end > end:
            if any(a < new_end and b > end for a, b, _ in areas) and rng.random() < 0.8:
                return None
            self.shadows[pid].map(end, new_end, kind)
        else:
            self.shadows[pid].unmap(new_end, end)
        return {
            "op": "mremap",
            "pid": pid,
            "addr": start,
            "len": end - start,
            "new_addr": start,
            "new_len": new_end - start,
            "place": "stay",
        }

    def _mprotect(self, pid: int) -> Op:
        start, end = self._mapped_range(pid)
        return {"op": "mprotect", "pid": pid, "addr": start, "len": end - start, "prot": self._prot()}

    def _touch(self, pid: int, write: bool) -> Op:
        rng = self.rng
        start, end = self._mapped_range(pid, inside=rng.random() < 0.93)
        draw = rng.random()
        if draw < 0.35:
            end = start + PAGE
        elif draw < 0.5:
            start = end - PAGE
        elif draw < 0.75:
            start += PAGE * rng.randint(0, (end - start) // PAGE - 1)
            end = min(end, start + PAGE * rng.randint(1, 40))
        start, end = self._limited(start, end, TOUCH_PAGES)
        op: Op = {"op": "fault", "pid": pid, "addr": start, "len": end - start, "write": write}
        if rng.random() < 0.08:
            op["via"] = "kernel"
        return op

    def _below(self, pid: int) -> Op | None:
        """A touch under a mapping, which a growsdown one answers by growing."""
        rng = self.rng
        areas = [area for area in self.shadows[pid].areas if area[2] == "growsdown"] or self.shadows[pid].areas
        if not areas:
            return None
        start = rng.choice(areas)[0] - PAGE * rng.choice((1, 1, 2, 5, 16, 100, 255, 256, 257, 300, 511, 600))
        if start <= 0:
            return None
        return {"op": "fault", "pid": pid, "addr": start, "len": PAGE, "write": rng.random() < 0.6}

    def _stack(self, pid: int) -> Op:
        """A touch of the stack, below what execve mapped of it (132 KiB) too; its limit is 8 MiB."""
        start = 0x7FFF_FFFF_F000 - PAGE * self.rng.choice((30, 34, 40, 300, 511, 512, 513, 600, 1000, 1024, 1300, 2040))
        return {"op": "fault", "pid": pid, "addr": start, "len": PAGE, "write": self.rng.random() < 0.7}

    def _madvise(self, pid: int) -> Op | None:
        advice = pick(self.rng, self.family.advice)
        start, end = self._mapped_range(pid)
        if advice == "remove":
            # Holes in a file on disk are filled by readahead, in folios of any size: only shmem is punched.
            areas = [area for area in self.shadows[pid].areas if area[2] in ("shared", "tmpfs", "tmpfs_private")]
            if not areas:
                return None
            area = self.rng.choice(areas)
            start, end = max(start, area[0]), min(end, area[1])
            if start >= end:
                start, end = area[0], area[1]
        parted = [span for owner, span in self.parted if owner == pid]
        if advice == "collapse" and parted and self.rng.random() < 0.7:  # a span that likely has a PTE page
            start = self.rng.choice(parted)
            end = start + SPAN * self.rng.choice((1, 1, 2))
        if advice.startswith(("populate", "guard")):
            start, end = self._limited(start, end, POPULATE_PAGES)
        return {"op": "madvise", "pid": pid, "addr": start, "len": end - start, "advice": advice}

    def _mlock(self, pid: int) -> Op:
        start, end = self._limited(*self._mapped_range(pid), POPULATE_PAGES)
        op: Op = {"op": "mlock", "pid": pid, "addr": start, "len": end - start}
        if self.rng.random() < 0.35:
            op["onfault"] = True
        return op

    def _munlock(self, pid: int) -> Op:
        start, end = self._mapped_range(pid)
        return {"op": "munlock", "pid": pid, "addr": start, "len": end - start}

    def _brk(self, pid: int) -> Op:
        rng = self.rng
        border = -(-self.heap_start // GIB) * GIB
        marks = [self.heap_start, *self.boards[0], border, border + SPAN, border + 2 * SPAN]
        end = rng.choice([m for m in marks if self.heap_start <= m <= border + 3 * SPAN] or [border])
        if rng.random() < 0.2:
            end += PAGE * rng.choice((1, 2, 100))
        old = self.breaks[pid]
        if end < old:
            self.shadows[pid].unmap(end, old)
        elif end > old:
            self.shadows[pid].map(old, end, "heap")
        self.breaks[pid] = end
        return {"op": "brk", "pid": pid, "addr": end}

    def _fork(self, pid: int) -> Op | None:
        if len(self.shadows) >= self.family.processes:
            return None
        child = self.next_pid
        self.next_pid += 1
        self.shadows[child] = self.shadows[pid].copy()
        self.breaks[child] = self.breaks[pid]
        return {"op": "fork", "pid": pid, "child": child}

    def _exit(self, pid: int) -> Op | None:
        if pid == 1:
            return None
        del self.shadows[pid]
        return {"op": "exit", "pid": pid}

    def _exec(self, pid: int) -> Op | None:
        if pid == 1 and len(self.ops) < self.length // 2:
            return None
        self.shadows[pid] = Shadow()
        self.breaks[pid] = self.heap_start
        return {"op": "exec", "pid": pid}

    def _truncate(self, pid: int) -> Op | None:
        del pid
        if not self.files:
            return None
        index = self.rng.randrange(len(self.files))
        pages = self.sizes[index]
        longer = () if self.files[index].kind == "disk" else (pages + 100, 513, self.files[index].pages)
        pages = max(1, self.rng.choice((pages - 1, pages - 20, pages // 2, min(pages, 10), min(pages, 512), *longer)))
        self.sizes[index] = pages
        return {"op": "truncate", "file": index, "len": pages * PAGE}

    def _thp(self, pid: int) -> Op:
        return {"op": "thp", "pid": pid, "disabled": self.rng.random() < 0.35}

    def _step(self) -> None:
        pid = self.rng.choice(list(self.shadows))
        name = "mmap" if not self.shadows[pid].areas and self.rng.random() < 0.7 else pick(self.rng, self.family.ops)
        op = self.makers[name](pid)
        if op is not None and op.get("len", PAGE) > 0 and not self._hurts_agent(op):
            self.ops.append(op)
            if op["op"] in ("fault", "mremap"):
                self.used = [*self.used[-7:], op.get("new_addr", op["addr"]) // SPAN * SPAN]
            if op["op"] in ("madvise", "mprotect", "mlock") and (op["addr"] | op["len"]) % SPAN:
                self.parted = [*self.parted[-7:], (pid, op["addr"] // SPAN * SPAN)]
            if op.get("advice") == "collapse" and self.rng.random() < 0.4:  # what has the new page in it?
                page = op["addr"] // SPAN * SPAN + PAGE * self.rng.randrange(512)
                advice = self.rng.choice(("free", "cold"))
                self.ops.append({"op": "madvise", "pid": pid, "addr": page, "len": PAGE, "advice": advice})
            if op["op"] == "mmap" and self.family.hugepage and self.rng.random() < self.family.hugepage:
                start, end = self._huge_part(op["addr"], op["addr"] + op["len"])
                self.ops.append({"op": "madvise", "pid": pid, "addr": start, "len": end - start, "advice": "hugepage"})

    def _huge_part(self, start: int, end: int) -> tuple[int, int]:
        """What of a new mapping gets huge pages: mostly all."""
        marks = [mark for mark in self.marks if start < mark < end]
        if marks and self.rng.random() < 0.2:
            mark = self.rng.choice(marks)
            return self.rng.choice(((start, mark), (mark, end)))
        return start, end

    def _open_boards(self) -> None:
        """A mapping over each board, so that spans are whole from the start."""
        for board in self.boards:
            start, length = board[0], board[-1] - board[0]
            self.shadows[1].map(start, start + length, "anon")
            self.ops += [
                {"op": "mmap", "pid": 1, "addr": start, "len": length, "prot": "rw-", "flags": "private,anonymous"},
                {"op": "madvise", "pid": 1, "addr": start, "len": length, "advice": "hugepage"},
            ]

    def _hurts_agent(self, op: Op) -> bool:
        """It concerns the agent's own text and bss, which lie in the MiB below the heap."""
        low, high = self.heap_start - (1 << 20), self.heap_start
        ranges = [(op[a], op[n]) for a, n in (("addr", "len"), ("new_addr", "new_len")) if a in op and n in op]
        return any(start < high and start + length > low for start, length in ranges)

    def make(self) -> Program:
        """The program: `length` operations, then often one munmap over everything that a process has."""
        if self.family.hugepage:
            self._open_boards()
        while len(self.ops) < self.length:
            self._step()
        for pid in list(self.shadows):
            if self.rng.random() < 0.3:
                for board in self.boards:
                    self.ops.append({"op": "munmap", "pid": pid, "addr": board[0], "len": board[-1] - board[0]})
        return Program(self.name, self.seed, self.ops, self.files)


def generate(family: str, seed: int, length: int, heap_start: int) -> Program:
    """The program of this family, seed and length."""
    return Generator(family, seed, length, heap_start).make()
