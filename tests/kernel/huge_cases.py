"""Directed cases with huge pages: short programs with the numbers that Linux 6.18 was seen to give.

As in cases.py. A span under a huge page counts one PTE page, the one kept aside for a split (its *deposit*). huge:
pages under PMD entries, the huge zero page among them; zero: those of the huge zero page too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

from .cases import BASE, K4, M1, M2, M4, Case
from .execute import Execution, Machine
from .hugepages import huge_pages
from .program import GIB, PGD
from .swapfile import swap_file

HUGE_CASES: list[Callable[[], Case]] = []
FAR = 8 * GIB  # from BASE; its first touch costs a PMD page


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    HUGE_CASES.append(build)
    return build


def huge_cases(heap_start: int) -> Iterable[Case]:
    for build in HUGE_CASES:
        yield build()
    yield from heap_cases(heap_start)


def executed(machine: Machine, cases: Iterable[Case]) -> Iterator[tuple[Case, Execution]]:
    """Run each with the setting of huge pages and the swap that it wants; by setting, so in another order."""
    groups: dict[tuple[str, bool], list[Case]] = {}
    for item in cases:
        assert item.thp is not None
        groups.setdefault((item.thp, item.swap), []).append(item)
    for (thp, swap), group in groups.items():
        with huge_pages(thp), swap_file(64) if swap else nullcontext():
            for item in group:
                execution = Execution(replace(machine, thp=thp), item.program())
                execution.run()
                yield item, execution


def advised(name: str, length: int = M4, thp: str = "madvise", *, swap: bool = False) -> Case:
    """A case that begins with a mapping of this length under MADV_HUGEPAGE."""
    c = Case(name, thp=thp, swap=swap)
    return c.map(0, length).advise("hugepage", 0, length, tables=0)


def written(name: str, length: int = M4, thp: str = "madvise", *, swap: bool = False) -> Case:
    """The same, its first span a huge page of which one byte was written."""
    return advised(name, length, thp, swap=swap).write(0, tables=3, anon=512, huge=512, present=512, zero=0)


def zeroed(name: str, length: int = M4, thp: str = "madvise") -> Case:
    """The same, its first span the huge zero page."""
    return advised(name, length, thp).read(0, tables=3, anon=0, huge=512, present=512, zero=512)


# ---- faults -----------------------------------------------------------------------------------------


@case
def first_write() -> Case:
    c = advised("huge: a write makes a huge page, and its deposit counts")
    c.write(7 * K4, tables=3, anon=512, present=512, huge=512, zero=0).write(8 * K4, tables=0, anon=0)
    return c.write(M2, tables=1, anon=512, huge=512)


@case
def first_read() -> Case:
    c = zeroed("huge: a read maps the huge zero page, a write replaces it")
    return c.read(K4, tables=0, zero=0).write(K4, tables=0, anon=512, zero=-512, huge=0, present=0)


@case
def no_zero_page() -> Case:
    c = advised("huge: use_zero_page=0, a read makes a huge page", thp="madvise,no-zero-page")
    return c.read(0, tables=3, anon=512, huge=512, zero=0)


@case
def without_advice() -> Case:
    c = Case("huge: without advice small pages, under always huge ones", thp="madvise").map(0, M4)
    return c.write(0, tables=3, anon=1, huge=0).read(M2, tables=1, zero=1)


@case
def always() -> Case:
    c = Case("huge: always", thp="always").map(0, M4).write(0, tables=3, anon=512, huge=512)
    c.read(M2, tables=1, zero=512, huge=512)
    return c.map(GIB, M2).advise("nohugepage", GIB, M2).write(GIB, tables=2, anon=1, huge=0)


@case
def short_mapping() -> Case:
    c = advised("huge: a span that is not wholly in one mapping gets small pages", M2 - K4)
    c.write(0, tables=3, anon=1, huge=0)
    c.map(GIB, M2).advise("hugepage", GIB, M1, vmas=1).write(GIB, tables=2, anon=1, huge=0)
    c.map(2 * GIB, M2).advise("hugepage", 2 * GIB, M1, vmas=1).advise("hugepage", 2 * GIB + M1, M1, vmas=-1)
    return c.write(2 * GIB, tables=2, anon=512, huge=512)


@case
def table_in_the_way() -> Case:
    c = Case("huge: a PTE page, empty too, forbids a huge page", thp="madvise").map(0, M4).write(0, tables=3, anon=1)
    c.advise("hugepage", 0, M4).write(K4, tables=0, anon=1, huge=0).advise("dontneed", 0, 2 * K4, tables=0, anon=-2)
    c.write(M1, tables=0, anon=1, huge=0).advise("dontneed", 0, M2, tables=-1, anon=-1)
    return c.write(M1, tables=1, anon=512, huge=512)


@case
def write_after_advice() -> Case:
    c = zeroed("huge: a write on the huge zero page makes a huge page after NOHUGEPAGE too")
    c.advise("nohugepage", 0, M4).write(0, tables=0, anon=512, zero=-512, huge=0)
    c.map(GIB, M2, "r--").advise("hugepage", GIB, M2).read(GIB, tables=2, zero=512).protect(GIB, M2, "rw-", zero=0)
    return c.write(GIB, tables=0, anon=512, zero=-512)


@case
def split_zero() -> Case:
    c = zeroed("huge: the huge zero page splits into zero entries")
    c.advise("dontneed", 0, K4, tables=0, zero=-1, present=-1, huge=-512)
    return c.write(K4, tables=0, anon=1, zero=-1).write(0, tables=0, anon=1, zero=0)


@case
def populate_one_page() -> Case:
    c = advised("huge: populating one page populates its span")
    c.advise("populate_read", 5 * K4, K4, tables=3, zero=512, huge=512)
    c.advise("populate_write", M2 + 5 * K4, K4, tables=1, anon=512, huge=512)
    c.advise("populate_write", M2 - K4, 2 * K4, tables=0, anon=512, zero=-512)
    c.map(GIB, M2 * 3).advise("hugepage", GIB, M2 * 3)
    return c.advise("populate_read", GIB + M2 - K4, 2 * K4, tables=3, zero=1024, huge=1024)


@case
def populate_around() -> Case:
    c = Case("huge: populate over a mapping with partial spans", thp="madvise").map(M1, M4).advise("hugepage", M1, M4)
    return c.advise("populate_read", M1, M4, tables=5, zero=1024, huge=512)


@case
def lock_whole() -> Case:
    c = advised("huge: mlock of whole mappings", M2).do("mlock", 0, M2, tables=3, anon=512, huge=512)
    c.map(GIB, M2, "r--").advise("hugepage", GIB, M2).do("mlock", GIB, M2, tables=2, anon=0, zero=512, huge=512)
    c.map(2 * GIB, M2).advise("hugepage", 2 * GIB, M2).read(2 * GIB, tables=2, zero=512)
    return c.do("mlock", 2 * GIB, M2, tables=0, anon=512, zero=-512, huge=0)


@case
def lock_half() -> Case:
    c = advised("huge: mlock of half a span populates small pages", M2)
    return c.do("mlock", 0, M1, tables=3, anon=256, huge=0, vmas=1)


# ---- MADV_DONTNEED, munmap ----------------------------------------------------------------------------


@case
def discard_whole() -> Case:
    c = written("huge: DONTNEED of a whole span gives back its deposit")
    c.advise("dontneed", 0, M2, tables=-1, anon=-512, huge=-512).read(0, tables=1, zero=512)
    return c.advise("dontneed", 0, M2, tables=-1, zero=-512, huge=-512)


@case
def discard_part() -> Case:
    c = written("huge: DONTNEED of a part splits the entry into the deposit")
    c.advise("dontneed", 0, M1, tables=0, anon=-256, present=-256, huge=-512, zero=0)
    c.advise("dontneed", M1, M1, tables=0, anon=-256).write(0, anon=1, huge=0)
    c.advise("dontneed", 0, M2, tables=-1, anon=-1).write(0, tables=1, anon=512, huge=512)
    return c.advise("guard_install", 0, K4, anon=-1).advise("dontneed", 0, M2, tables=0, anon=-511)


@case
def unmap_whole() -> Case:
    c = written("huge: munmap of a whole span").write(M2, tables=1).unmap(0, M2, tables=-1, anon=-512, huge=-512)
    return c.unmap(M2, M2, tables=-3, anon=-512)


@case
def unmap_part() -> Case:
    c = written("huge: munmap of a part splits", M2).unmap(0, M1, tables=0, anon=-256, huge=-512, present=-256)
    return c.unmap(M1, M1, tables=-3, anon=-256)


# ---- MADV_FREE, COLD, PAGEOUT ---------------------------------------------------------------------------


@case
def free_whole() -> Case:
    c = written("huge: FREE and COLD of a whole huge page leave it whole")
    c.advise("cold", 0, M2, tables=0, anon=0, huge=0).advise("free", 0, M2, tables=0, anon=0, huge=0)
    return c.read(M2, tables=1, zero=512).advise("free", 0, M4, huge=0, zero=0, anon=0)


@case
def free_part() -> Case:
    c = written("huge: FREE of one page splits the page: what is all zero becomes zero entries")
    c.advise("free", M1, K4, tables=0, anon=-511, zero=511, huge=-512, present=0)
    c.write(M2, tables=1).write(M2 + K4, anon=0).write(M4 - K4, anon=0)
    return c.advise("cold", M2 + M1, M1, tables=0, anon=-509, zero=509, huge=-512)


@case
def free_zero_part() -> Case:
    c = zeroed("huge: FREE and COLD of a part leave the huge zero page")
    return c.advise("free", 0, K4, huge=0, zero=0).advise("cold", K4, M1, huge=0, zero=0)


@case
def free_shared_part() -> Case:
    c = written("huge: FREE of a part leaves what a child maps too").fork(child_tables=0, child_anon=0)
    c.advise("free", 0, K4, tables=0, anon=0, huge=0, zero=0).advise("cold", 0, K4, huge=0, pid=2)
    return c.exit(2).advise("free", 0, K4, tables=0, anon=-511, zero=511, huge=-512)


@case
def free_with_a_hole() -> Case:
    c = written("huge: FREE of a whole span splits a page with a hole, not one that was only split in entries")
    c.protect(0, K4, "r--", huge=-512, anon=0, vmas=1).protect(0, K4, "rw-", vmas=-1, huge=0)
    c.advise("free", 0, M2, anon=0, zero=0).advise("dontneed", 9 * K4, K4, anon=-1)
    return c.advise("free", 0, M2, anon=-510, zero=510, tables=0)


@case
def free_locked_part() -> Case:
    c = written("huge: COLD on a locked mapping is refused; a split in one does not make zero entries")
    c.do("mlock", 0, M4, tables=1, anon=512).advise("cold", 0, K4, errno=22, huge=0)
    return c.do("munlock", 0, M4, huge=0).advise("cold", 0, K4, anon=-511, zero=511, huge=-512)


@case
def pageout_no_swap() -> Case:
    # RssAnon is left open: what was written stays where there is no swap.
    c = written("huge: PAGEOUT splits, whether there is swap or not").write(5 * K4, anon=0)
    c.advise("pageout", 0, M2, tables=0, zero=510, huge=-512)
    c.write(M2, tables=1).advise("pageout", M2, K4, tables=0, zero=511, huge=-512)
    return c.advise("dontneed", 0, M4, tables=-2, zero=-1021)


@case
def pageout_no_swap_kept() -> Case:
    c = zeroed("huge: PAGEOUT leaves the huge zero page and what a child maps too").write(M2, tables=1, anon=512)
    return c.fork().advise("pageout", 0, M4, anon=0, huge=0, zero=0)


@case
def pageout_full() -> Case:
    c = advised("huge: PAGEOUT of a page that was written all over", swap=True).write(0, M2, tables=3, anon=512)
    return c.advise("pageout", 0, M2, tables=0, anon=-512, swap=512, huge=-512, zero=0).read(0, swap=-1, anon=1)


@case
def pageout_sparse() -> Case:
    c = written("huge: PAGEOUT swaps what was written, the rest becomes zero entries", swap=True)
    c.advise("pageout", 0, M2, tables=0, anon=-512, swap=1, zero=511, huge=-512)
    c.write(M2, 100 * K4, tables=1)
    return c.advise("pageout", M2, 10 * K4, tables=0, anon=-422, swap=10, zero=412, huge=-512)


@case
def pageout_freed() -> Case:
    c = written("huge: FREE, then PAGEOUT of a whole span drops it and leaves its PTE page", swap=True)
    c.advise("free", 0, M2, huge=0).advise("pageout", 0, M2, tables=0, anon=-512, huge=-512, present=-512, swap=0)
    return c.advise("dontneed", 0, M2, tables=-1)


@case
def pageout_freed_and_written() -> Case:
    c = written("huge: FREE, a write, then PAGEOUT splits the entry, the next one the page", swap=True)
    c.advise("free", 0, M2, huge=0).write(K4, anon=0).advise("pageout", 0, M2, tables=0, anon=0, huge=-512)
    return c.advise("pageout", 0, M2, tables=0, anon=-512, huge=0, swap=2, zero=510)


@case
def pageout_freed_and_written_once() -> Case:
    c = written("huge: FREE, a write, then PAGEOUT leaves entries", swap=True).advise("free", 0, M2)
    return c.write(K4, anon=0).advise("pageout", 0, M2, tables=0, anon=0, huge=-512)


@case
def pageout_freed_block() -> Case:
    c = Case(
        "blocks: FREE, a populate, then PAGEOUT keeps the block once",
        thp="madvise,64kB=madvise,2048kB=never",
        swap=True,
    )
    c.map(0, M2).advise("hugepage", 0, M2).write(3 * K4, tables=3, anon=16).advise("free", 0, M2, anon=0)
    c.advise("populate_write", 0, K4, anon=0).advise("pageout", 0, M2, anon=0, zero=0, swap=0)
    return c.advise("pageout", 0, M2, anon=-16, zero=15, swap=1)


# ---- mprotect, mlock, advice -----------------------------------------------------------------------------


@case
def protect_whole() -> Case:
    c = written("huge: mprotect of whole spans leaves them").read(M2, tables=1)
    c.protect(0, M4, "---", tables=0, anon=0, huge=0).protect(0, M4, "rw-", tables=0, huge=0)
    return c.protect(0, M2, "r--", vmas=1, huge=0)


@case
def protect_part() -> Case:
    c = written("huge: mprotect of a part splits the entry for good").read(M2, tables=1)
    c.protect(M1, M2, "r--", vmas=2, tables=0, anon=0, huge=-1024, zero=0)
    c.protect(M1, M2, "rw-", vmas=-2, huge=0)
    return c.advise("free", M2, K4, zero=0, anon=0)


@case
def lock_part() -> Case:
    c = written("huge: mlock, NOHUGEPAGE, DONTFORK of a part split, of the whole do not").write(M2, tables=1)
    c.do("mlock", 0, M2, huge=0, vmas=1).do("munlock", 0, M2, huge=0, vmas=-1)
    c.advise("nohugepage", 0, M2, huge=0, vmas=1).advise("dontfork", M2, M1, huge=-512, vmas=1, anon=0, tables=0)
    return c.do("mlock", 0, K4, huge=-512, vmas=1, anon=0, tables=0)


@case
def protect_towards_next() -> Case:
    c = advised("huge: a mapping that grows into the next one splits the entry at its end").write(M2, tables=3)
    c.protect(M2, M2, "r--", vmas=1, huge=0)
    return c.protect(M2, M1, "rw-", vmas=0, huge=-512)


@case
def protect_towards_previous() -> Case:
    c = written("huge: a mapping that grows into the one before splits the entry at its start")
    c.protect(0, M2, "r--", vmas=1, huge=0)
    return c.protect(M1, M1, "rw-", vmas=0, huge=-512)


@case
def lock_half_split() -> Case:
    c = written("huge: a split leaves zero-filled pages in the locked half").do("mlock", 0, M1, huge=-512, vmas=1)
    return c.advise("cold", M1, K4, anon=-256, zero=256)


@case
def lock_left_by_move() -> Case:
    c = advised("huge: DONTUNMAP takes VM_LOCKED off the mapping, but its huge pages stay mlocked")
    c.do("mlock", 0, M4, more={"onfault": True}).write(M2, tables=3, anon=512).move(0, 3 * K4, FAR, keep=True)
    return c.advise("cold", M2 + 34 * K4, K4, anon=0, zero=0, huge=-512)


@case
def lock_taken_by_a_split() -> Case:
    c = advised("huge: a split munlocks a folio that stayed mlocked, where a mapping locks a page of it")
    c.do("mlock", 0, M4, anon=1024).move(M1, K4, FAR, keep=True).do("mlock", M2 + 256 * K4, K4, huge=-512)
    return c.advise("free", M2, K4, anon=-511, zero=511)


@case
def lock_left_by_move_of_blocks() -> Case:
    c = Case(
        "blocks: DONTUNMAP takes VM_LOCKED off the mapping, but its blocks stay mlocked",
        thp="madvise,64kB=madvise,2048kB=never",
    )
    c.map(0, M2).advise("hugepage", 0, M2).do("mlock", 0, M1).move(40 * K4, 2 * K4, FAR, keep=True)
    return c.advise("cold", 0, K4, anon=0, zero=0).advise("cold", 33 * K4, K4, anon=-14, zero=14)


@case
def remove_guards() -> Case:
    return written("huge: GUARD_REMOVE leaves huge pages").advise("guard_remove", 0, M1, tables=0, anon=0, huge=0)


@case
def disabled() -> Case:
    c = advised("huge: prctl(PR_SET_THP_DISABLE), inherited by a child").do("thp", more={"disabled": True})
    c.write(0, tables=3, anon=1, huge=0).advise("collapse", 0, M2, errno=22, anon=0, huge=0)
    c.fork(2).write(M2, pid=2, tables=1, anon=1, huge=0).do("thp", more={"disabled": False})
    return c.write(M2, tables=1, anon=512, huge=512)


@case
def thread_stack() -> Case:
    c = Case("huge: MAP_STACK keeps huge pages away", thp="always")
    c.map(0, M4, flags="private,anonymous,stack").write(0, tables=3, anon=1, huge=0)
    return c.advise("hugepage", 0, M4).write(M2, tables=1, anon=512, huge=512)


@case
def guards() -> Case:
    c = written("huge: GUARD_INSTALL on the whole and on a part").write(M2, tables=1)
    c.advise("guard_install", 0, M2, tables=0, anon=-512, guard=512, huge=-512)
    c.advise("guard_install", M2, K4, tables=0, anon=-1, guard=1, huge=-512, zero=0)
    c.advise("guard_remove", 0, M4, tables=0, guard=-513).write(0, anon=1, huge=0)
    c.map(GIB, M2).advise("hugepage", GIB, M2).read(GIB, tables=2)
    return c.advise("guard_install", GIB, K4, tables=0, zero=-1, guard=1, huge=-512)


# ---- mremap -----------------------------------------------------------------------------------------


@case
def move_aligned() -> Case:
    c = written("huge: mremap moves aligned entries with their deposits").read(M2, tables=1)
    c.move(0, M4, 2 * M4, tables=0, anon=0, huge=0, zero=0)
    c.move(2 * M4, M4, FAR, tables=0, huge=0)
    return c.move(FAR, M4, PGD, tables=0, huge=0)


@case
def move_over_table() -> Case:
    c = written("huge: a PTE page where it is moved to goes first").map(2 * M4, M2).write(2 * M4, tables=1, anon=1)
    return c.move(0, M2, 2 * M4, tables=-1, anon=-1, huge=0)


@case
def move_part() -> Case:
    c = written("huge: mremap of a part splits and moves entries")
    return c.move(0, M1, 2 * M4, tables=1, anon=0, huge=-512)


@case
def move_part_then_cold() -> Case:
    c = written("huge: a split finds the pages that were moved").move(0, M1, 2 * M4, tables=1, anon=0, huge=-512)
    return c.advise("cold", M1, K4, anon=-511, zero=511)


@case
def move_unaligned() -> Case:
    c = written("huge: mremap to an unaligned place splits", M2)
    c.move(0, M2, 2 * M4 + K4, tables=1, anon=0, huge=-512, zero=0)
    c.map(GIB, M2).advise("hugepage", GIB, M2).read(GIB, tables=2, zero=512)
    return c.move(GIB, M2, GIB + 2 * M4 + M1, tables=1, zero=0, huge=-512)


@case
def move_dontunmap() -> Case:
    c = written("huge: DONTUNMAP leaves no table in the source").read(M2, tables=1)
    c.move(0, M4, 2 * M4, keep=True, tables=0, anon=0, huge=0)
    return c.write(0, tables=1, anon=512, huge=512).read(M2, tables=1, zero=512)


@case
def move_realigned() -> Case:
    c = written("huge: a split span that is a mapping's head moves with its PTE page, the huge one after it too")
    c.write(M2, tables=1).unmap(0, M1, tables=0, anon=-256, huge=-512)
    return c.move(M1, M4 - M1, FAR + M1, tables=0, anon=0, huge=0)


# ---- fork -------------------------------------------------------------------------------------------


@case
def fork_huge() -> Case:
    c = written("huge: fork copies entry and deposit").read(M2, tables=1)
    return c.fork(child_tables=0, child_anon=0, child_zero=0, child_huge=0)


@case
def fork_zero_only() -> Case:
    c = zeroed("huge: fork copies a mapping that has nothing but the huge zero page")
    c.fork(child_tables=0, child_zero=0)
    c.map(GIB, M2).read(GIB, tables=2, zero=1)
    return c.fork(3, child_tables=-2, child_zero=-1)


@case
def fork_write() -> Case:
    c = written("huge: a write after fork splits the writer's entry").fork(child_tables=0)
    c.write(0, pid=2, tables=0, anon=0, huge=-512, present=0).write(K4, tables=0, anon=0, huge=-512)
    return c.write(2 * K4, pid=2, anon=0, huge=0)


@case
def fork_write_alone() -> Case:
    c = written("huge: a write after the child's exit leaves the page whole").fork(child_tables=0).exit(2)
    return c.write(0, tables=0, anon=0, huge=0)


@case
def fork_write_later() -> Case:
    c = written("huge: an entry that was split stays split when the child is gone").fork().write(0, huge=-512, anon=0)
    return c.exit(2).write(K4, anon=0, huge=0).advise("free", 0, K4, anon=0, zero=0)


def entries(name: str) -> Case:
    """A case that begins with a huge page, one byte written, whose PMD entry was split."""
    c = written(name).protect(0, K4, "r--", huge=-512, anon=0)
    return c.protect(0, K4, "rw-", vmas=-1, huge=0)


@case
def fork_entries() -> Case:
    c = entries("huge: FREE leaves entries of a page that a child maps").fork(child_tables=0, child_anon=0)
    c.advise("free", M1, K4, anon=0, zero=0).advise("cold", M1, K4, pid=2, anon=0, zero=0).exit(2)
    return c.advise("free", M1, K4, anon=-511, zero=511)


@case
def fork_three() -> Case:
    c = entries("huge: two of three processes are known to a page, the third keeps it shared").fork(2).fork(3).exit(2)
    c.advise("free", M1, K4, anon=0, zero=0).exit(3)
    return c.advise("free", M1, K4, anon=-511, zero=511)


@case
def fork_untracked() -> Case:
    c = written("huge: a single mapping is never shared, though its process is not known to the page").fork(2).fork(3)
    c.unmap(0, M4).exit(2)
    return c.advise("free", M1, K4, pid=3, anon=-511, zero=511, huge=-512)


@case
def fork_untracked_entries() -> Case:
    c = entries("huge: many mappings of one process that is not known to the page stay shared").fork(2).fork(3)
    c.unmap(0, M4).exit(2)
    return c.advise("free", M1, K4, pid=3, anon=0, zero=0)


@case
def fork_again() -> Case:
    c = entries("huge: a page that a child has alone is shared again when it forks").fork(2).unmap(0, M4)
    c.fork(3, pid=2).advise("free", M1, K4, pid=2, anon=0, zero=0).exit(3)
    return c.advise("free", M1, K4, pid=2, anon=-511, zero=511)


@case
def fork_reuse() -> Case:
    c = entries("huge: a write keeps a page of a folio that is mapped here alone").fork(2).exit(2)
    c.advise("populate_write", 9 * K4, K4, anon=0)
    return c.advise("free", M1, K4, anon=-511, zero=511)


@case
def fork_reuse_not() -> Case:
    c = entries("huge: a write copies a page of a folio that others map").fork(2)
    c.advise("populate_write", 9 * K4, K4, anon=0).exit(2)
    return c.advise("free", M1, K4, anon=-510, zero=510)


@case
def fork_last_page() -> Case:
    c = entries("huge: a write copies the last page of a folio").advise("dontneed", K4, M2 - K4, anon=-511)
    c.advise("dontneed", 0, K4, anon=-1).advise("collapse", 0, M2, anon=512, huge=512)
    c.advise("dontneed", K4, M2 - K4, anon=-511, huge=-512).fork(2).exit(2).advise("populate_write", 0, K4, anon=0)
    return c.advise("free", 0, K4, anon=0, zero=0)


@case
def fork_last_page_kept() -> Case:
    c = advised("huge: without a fork the last page of a folio stays its page").advise(
        "populate_write", 0, K4, anon=512
    )
    c.advise("dontneed", K4, M2 - K4, anon=-511, huge=-512)
    return c.advise("free", 0, K4, anon=-1, zero=1)


@case
def fork_advice() -> Case:
    c = written("huge: WIPEONFORK and DONTFORK").advise("wipeonfork", 0, M4, huge=0)
    c.fork(child_tables=-3, child_anon=-512).write(0, pid=2, tables=3, anon=512, huge=512)
    return c.advise("keeponfork", 0, M4).advise("dontfork", 0, M4).fork(3, child_tables=-3, child_vmas=-1)


# ---- MADV_COLLAPSE ------------------------------------------------------------------------------------


def small(name: str, length: int = M4) -> Case:
    """A case that begins with a mapping under MADV_HUGEPAGE whose first span has a PTE page with one page."""
    c = Case(name, thp="madvise").map(0, length).write(0, tables=3, anon=1)
    return c.advise("hugepage", 0, length)


@case
def collapse_few() -> Case:
    c = small("huge: COLLAPSE of ten pages, of zero entries, of a mix")
    c.write(K4, 9 * K4).advise("collapse", 0, M2, tables=0, anon=502, huge=512, present=502)
    c.map(GIB, M2).read(GIB, M2, tables=2, zero=512).write(GIB, anon=1, zero=-1)
    return c.advise("collapse", GIB, M2, tables=0, anon=511, zero=-511, huge=512)


@case
def collapse_contents() -> Case:
    c = small("huge: COLLAPSE copies what pages hold; what was none is all zero")
    c.write(K4, 9 * K4, anon=9).advise("populate_write", 20 * K4, 5 * K4, anon=5)
    c.advise("collapse", 0, M2, anon=497, huge=512)
    return c.advise("cold", M1, K4, anon=-502, zero=502, huge=-512)


@case
def collapse_leaves() -> Case:
    c = entries("huge: COLLAPSE lets go of the page that a child has then alone").fork(2)
    c.advise("collapse", 0, M2, anon=0, huge=512)
    return c.advise("cold", M1, K4, pid=2, anon=-511, zero=511).advise("cold", M1, K4, anon=-511, zero=511)


@case
def collapse_empty() -> Case:
    c = small("huge: COLLAPSE of an empty PTE page").advise("dontneed", 0, K4, tables=0, anon=-1)
    return c.advise("collapse", 0, M2, tables=0, anon=512, huge=512)


@case
def collapse_missing() -> Case:
    c = small("huge: COLLAPSE stops where there is no PTE page", 3 * M2).write(2 * M2, anon=512, tables=1, huge=512)
    c.advise("dontneed", 2 * M2, K4, anon=-1, huge=-512)
    return c.advise("collapse", 0, 3 * M2, errno=22, tables=0, anon=511, huge=512)


@case
def collapse_missing_slot() -> Case:
    c = Case("huge: COLLAPSE goes on where there is no PMD page", thp="madvise")
    c.map(GIB - M2, M4).write(GIB, tables=3, anon=1)
    return c.advise("collapse", GIB - M2, M4, errno=22, tables=0, anon=511, huge=512)


@case
def collapse_huge() -> Case:
    c = written("huge: COLLAPSE leaves what is huge").read(M2, tables=1)
    c.advise("collapse", 0, M4, anon=0, huge=0, zero=0)
    c.advise("dontneed", 5 * K4, K4, anon=-1, huge=-512).advise("collapse", 0, M2, tables=0, anon=1, huge=512)
    c.advise("dontneed", M2, K4, zero=-1, huge=-512)
    return c.advise("collapse", M2, M2, tables=0, anon=512, zero=-511, huge=512)


@case
def collapse_guard() -> Case:
    c = small("huge: COLLAPSE with a guard marker inside").advise("guard_install", K4, K4, guard=1)
    return c.advise("collapse", 0, M2, errno=22, tables=0, anon=0, huge=0)


@case
def collapse_refused() -> Case:
    c = Case("huge: COLLAPSE wants an anon_vma, no NOHUGEPAGE, and a whole span", thp="madvise")
    c.map(0, M2).read(0, tables=3, zero=1).advise("collapse", 0, M2, errno=22, anon=0)
    c.map(GIB, M2).write(GIB, tables=2).advise("nohugepage", GIB, M2).advise("collapse", GIB, M2, errno=22, huge=0)
    c.map(2 * GIB, M2 - K4).write(2 * GIB, tables=2).advise("collapse", 2 * GIB, M2 - K4, errno=22, huge=0)
    c.map(3 * GIB, M4).write(3 * GIB, tables=2)
    c.advise("collapse", 3 * GIB + M1, M1 + K4, errno=0, huge=0).advise("collapse", 3 * GIB + M1, K4, errno=22, huge=0)
    c.advise("collapse", 3 * GIB, M1, errno=0, huge=0)
    return c.advise("collapse", 4 * GIB, M2, errno=12, huge=0)


@case
def collapse_hole() -> Case:
    c = Case("huge: COLLAPSE passes a hole", thp="madvise").map(0, M2).map(M4, M2).write(0).write(M4)
    return c.advise("collapse", 0, 3 * M2, errno=12, tables=0, anon=1022, huge=1024)


@case
def collapse_protected() -> Case:
    c = small("huge: COLLAPSE of PROT_NONE, read-only and locked mappings").protect(0, M2, "---", vmas=1)
    c.advise("collapse", 0, M2, tables=0, anon=511, huge=512)
    c.map(GIB, M2).write(GIB, tables=2).protect(GIB, M2, "r--").advise("collapse", GIB, M2, anon=511, huge=512)
    c.map(2 * GIB, M2).write(2 * GIB, tables=2, anon=1).do("mlock", 2 * GIB, M2, more={"onfault": True})
    return c.advise("collapse", 2 * GIB, M2, anon=511, huge=512)


@case
def collapse_never() -> Case:
    c = (
        Case("huge: COLLAPSE works where nothing else makes huge pages", thp="never")
        .map(0, M4)
        .advise("hugepage", 0, M4)
    )
    c.write(0, tables=3, anon=1, huge=0).advise("collapse", 0, M2, tables=0, anon=511, huge=512)
    return c.advise("dontneed", 0, M2, tables=-1).write(0, tables=1, anon=1, huge=0)


@case
def collapse_shared() -> Case:
    c = small("huge: COLLAPSE copies what fork shares").write(0, M2, anon=511).fork(child_tables=0)
    c.advise("collapse", 0, M2, tables=0, anon=0, huge=512)
    return c.write(0, pid=2, tables=0, anon=0, huge=0)


# ---- blocks: sizes below 2 MiB ------------------------------------------------------------------------


@case
def blocks_of_64() -> Case:
    c = Case("blocks: a write fills its 64 kB", thp="madvise,64kB=madvise,2048kB=never").map(5 * K4, 100 * K4)
    c.advise("hugepage", 5 * K4, 100 * K4)
    c.write(21 * K4, tables=3, anon=16, huge=0).write(6 * K4, anon=1).read(50 * K4, zero=1, anon=0)
    c.write(52 * K4, anon=1, zero=0).write(101 * K4, anon=1).write(50 * K4, anon=1, zero=-1)
    c.advise("guard_install", 64 * K4, K4, guard=1).write(70 * K4, anon=1)
    return c.advise("dontneed", 21 * K4, K4, anon=-1).write(21 * K4, anon=1)


@case
def blocks_of_three_sizes() -> Case:
    thp = "madvise,16kB=madvise,32kB=madvise,64kB=madvise,2048kB=never"
    c = Case("blocks: the largest size whose block is empty and in the mapping", thp=thp).map(5 * K4, 100 * K4)
    c.advise("hugepage", 5 * K4, 100 * K4)
    c.write(21 * K4, tables=3, anon=16).write(6 * K4, anon=1).read(50 * K4, zero=1).write(52 * K4, anon=4)
    c.write(57 * K4, anon=8).write(101 * K4, anon=8).advise("guard_install", 64 * K4, K4, guard=1)
    return c.write(70 * K4, anon=4).write(78 * K4, anon=8).write(9 * K4, anon=8)


@case
def blocks_beside_huge() -> Case:
    c = written("blocks: a span gets 2 MiB first, its holes are filled by blocks", thp="madvise,64kB=madvise")
    c.advise("dontneed", 0, 40 * K4, tables=0, anon=-40, huge=-512)
    c.write(0, anon=16).write(35 * K4, anon=1).read(16 * K4, zero=1).write(17 * K4, anon=1)
    return c.read(M2, tables=1, zero=512, huge=512)


@case
def blocks_read() -> Case:
    c = Case("blocks: 2 MiB off, a read gives one zero entry", thp="madvise,64kB=madvise,2048kB=never").map(0, M2)
    c.advise("hugepage", 0, M2).read(0, tables=3, zero=1, huge=0).write(K4 * 20, anon=16)
    return c.advise("nohugepage", 0, M2).write(K4 * 40, anon=1)


@case
def blocks_split() -> Case:
    c = Case("blocks: FREE of a part splits a block", thp="madvise,64kB=madvise,2048kB=never").map(0, M2)
    c.advise("hugepage", 0, M2).write(K4 * 3, tables=3, anon=16).advise("free", 0, 16 * K4, anon=0, zero=0)
    c.advise("free", 5 * K4, K4, anon=-15, zero=15)
    c.write(K4 * 19, anon=16).advise("cold", 16 * K4, 8 * K4, anon=-15, zero=15)
    return c.write(K4 * 35, anon=16).advise("pageout", 32 * K4, 16 * K4, zero=15)


@case
def blocks_fork() -> Case:
    c = Case("blocks: a write after fork copies one page", thp="madvise,64kB=madvise,2048kB=never").map(0, M2)
    c.advise("hugepage", 0, M2).write(K4 * 3, tables=3, anon=16).fork(child_tables=0, child_anon=0)
    return c.write(K4 * 3, pid=2, anon=0).write(K4 * 4, anon=0).write(K4 * 20, pid=2, anon=16)


@case
def blocks_always() -> Case:
    c = Case("blocks: always", thp="madvise,64kB=always").map(0, M2).write(K4 * 3, tables=3, anon=16)
    c.advise("hugepage", 0, M2).write(K4 * 20, anon=16)
    return c.advise("dontneed", 0, M2, tables=-1, anon=-32).write(0, tables=1, anon=512, huge=512)


@case
def blocks_untracked() -> Case:
    c = Case("blocks: PAGEOUT of a whole block counts its mappings", thp="madvise,64kB=madvise,2048kB=never", swap=True)
    c.map(0, M2).advise("hugepage", 0, M2).write(3 * K4, tables=3, anon=16).fork(2).fork(3)
    c.advise("pageout", 0, 16 * K4, pid=3, anon=0, swap=0).unmap(0, M2).exit(2)
    c.advise("pageout", 0, 15 * K4, pid=3, anon=0, swap=0)
    return c.advise("pageout", 0, 16 * K4, pid=3, anon=-16, swap=1, zero=15)


# ---- heap, stacks -----------------------------------------------------------------------------------


def heap_cases(heap_start: int) -> Iterable[Case]:
    border = -(-heap_start // GIB) * GIB
    c = Case("huge: the heap under always", thp="always").do("brk", more={"addr": border + M4}, tables=0)
    c.write(border - BASE, tables=2, anon=512, huge=512).read(border - BASE + M2, tables=1, zero=512, huge=512)
    c.do("brk", more={"addr": border + M2 + M1}, tables=0, zero=-256, huge=-512)
    yield c.do("brk", more={"addr": border + M2}, tables=-1, zero=-256)


@case
def growing_down() -> Case:
    c = Case("huge: a mapping that grew down has whole spans at once", thp="always")
    c.map(2 * M4, M2, flags="private,anonymous,growsdown").write(2 * M4, tables=3, anon=512, huge=512)
    c.write(2 * M4 - M2, tables=1, anon=512, huge=512, vmas=0)
    return c.write(2 * M4 - 3 * M1, tables=1, anon=1, huge=0)


@case
def main_stack() -> Case:
    c = Case("huge: the stack under always", thp="always")
    top = 0x7FFF_FFFF_F000 - BASE
    c.write(top - 3 * M1 * 2, tables=1, anon=1, huge=0).write(top - M4, tables=1, anon=512, huge=512)
    return c.write(top - M4 - K4, tables=0, anon=0)
