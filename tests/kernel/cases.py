"""Directed cases: short programs with the numbers that Linux 6.18 was seen to give.

The numbers are literal and independent of the model: they are held against the kernel's own answers first, and the
model against the trace after that. tables: page-table pages (VmPTE / 4 kB); the others: pages or entries. Each is the
change by that one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .execute import Execution
from .program import GIB, PAGE, PGD, SPAN, FileSpec, Op, Program

K4, M1, M2, M4 = PAGE, SPAN // 2, SPAN, 2 * SPAN
BASE = 6 * PGD  # in PGD slots that nothing else uses
FAR = 9 * PGD


@dataclass(slots=True)
class Case:
    """A program and, for some of its operations, what changes by it: name of a counter -> change.

    child_tables (of a fork): the child's tables less the parent's.  errno: the call's, by number.
    thp: the setting of huge pages (hugepages.py); None: without any.  swap: needs somewhere to swap to.
    """

    name: str
    ops: list[Op] = field(default_factory=list)
    wanted: dict[int, dict[str, int]] = field(default_factory=dict)
    files: list[FileSpec] = field(default_factory=list)
    thp: str | None = None
    swap: bool = False

    def add(self, op: str, addr: int, length: int, pid: int, more: Op, want: dict[str, int]) -> Case:
        """Add one operation at BASE + addr (none with length 0) and what it must change."""
        row: Op = {"op": op, "pid": pid}
        if length:
            row |= {"addr": BASE + addr, "len": length}
        self.ops.append(row | more)
        if want:
            self.wanted[len(self.ops) - 1] = want
        return self

    def do(self, op: str, addr: int = 0, length: int = 0, *, more: Op | None = None, **want: int) -> Case:
        return self.add(op, addr, length, 1, more or {}, want)

    def map(self, addr: int, length: int, prot: str = "rw-", flags: str = "private,anonymous", **want: int) -> Case:
        return self.add("mmap", addr, length, 1, {"prot": prot, "flags": flags}, want)

    def map_file(self, addr: int, length: int, prot: str, flags: str, offset: int = 0, **want: int) -> Case:
        return self.add("mmap", addr, length, 1, {"prot": prot, "flags": flags, "file": 0, "offset": offset}, want)

    def unmap(self, addr: int, length: int, pid: int = 1, **want: int) -> Case:
        return self.add("munmap", addr, length, pid, {}, want)

    def write(self, addr: int, length: int = K4, pid: int = 1, **want: int) -> Case:
        return self.add("fault", addr, length, pid, {"write": True}, want)

    def read(self, addr: int, length: int = K4, pid: int = 1, **want: int) -> Case:
        return self.add("fault", addr, length, pid, {"write": False}, want)

    def advise(self, advice: str, addr: int, length: int, pid: int = 1, **want: int) -> Case:
        return self.add("madvise", addr, length, pid, {"advice": advice}, want)

    def protect(self, addr: int, length: int, prot: str, **want: int) -> Case:
        return self.add("mprotect", addr, length, 1, {"prot": prot}, want)

    def move(self, addr: int, length: int, to: int, new: int = 0, keep: bool = False, **want: int) -> Case:
        more: Op = {"new_addr": BASE + to, "new_len": new or length, "place": "fixed"}
        if keep:
            more["dontunmap"] = True
        return self.add("mremap", addr, length, 1, more, want)

    def stay(self, addr: int, length: int, new: int, **want: int) -> Case:
        more: Op = {"new_addr": BASE + addr, "new_len": new, "place": "stay"}
        return self.add("mremap", addr, length, 1, more, want)

    def fork(self, child: int = 2, pid: int = 1, **want: int) -> Case:
        return self.add("fork", 0, 0, pid, {"child": child}, want)

    def exit(self, pid: int) -> Case:
        return self.add("exit", 0, 0, pid, {}, {})

    def program(self) -> Program:
        return Program("case " + self.name, 0, self.ops, self.files)


CASES: list[Callable[[], Case]] = []


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES.append(build)
    return build


def all_cases(heap_start: int) -> Iterable[Case]:
    for build in CASES:
        yield build()
    yield from heap_cases(heap_start)


def numbers_of(execution: Execution, case: Case) -> list[str]:
    """Where the kernel's numbers are not those of the case."""
    wrong = []
    for index, wanted in case.wanted.items():
        seen = execution.changes_by(index)
        wrong += [
            f"operation {index} {case.ops[index]}: {name} changes by {seen[name]}, not by {number}"
            for name, number in wanted.items()
            if seen[name] != number
        ]
    return wrong


# ---- faults -----------------------------------------------------------------------------------------


@case
def first_touches() -> Case:
    c = Case("first touches cost the tables that are missing")
    c.map(0, 3 * GIB, flags="private,anonymous,noreserve", tables=0).read(0, tables=3, zero=1, anon=0)
    c.write(0, tables=0, zero=-1, anon=1).write(K4, tables=0, anon=1)
    return c.write(SPAN, tables=1).write(GIB, tables=2).write(GIB + K4, tables=0)


@case
def lazy_calls() -> Case:
    c = Case("calls on untouched memory allocate nothing").map(0, M4, tables=0)
    for advice in ("willneed", "cold", "free", "pageout", "dontneed"):
        c.advise(advice, 0, M4, tables=0)
    return c.protect(0, M1, "r--", tables=0).protect(0, M4, "rw-", tables=0)


@case
def refused_faults() -> Case:
    c = Case("a refused fault allocates nothing").map(0, M2, "---").map(M2, M2, "r--")
    c.read(0, tables=0, errno=14).write(0, tables=0, errno=14).write(M2, tables=0, errno=14)
    for addr in (0, M2):
        c.do("fault", addr, K4, more={"write": True, "via": "kernel"}, tables=0, errno=14)
    return c.advise("populate_read", 0, M2, tables=0, errno=22).read(M2, tables=3, zero=1)


@case
def kernel_touches() -> Case:
    c = Case("write(2) from an untouched page maps zero, read(2) into it allocates").map(0, M2)
    c.do("fault", 0, K4, more={"write": False, "via": "kernel"}, tables=3, zero=1, anon=0)
    return c.do("fault", K4, K4, more={"write": True, "via": "kernel"}, tables=0, zero=0, anon=1)


@case
def populate() -> Case:
    c = Case("MAP_POPULATE by protection").map(0, M4, flags="private,anonymous,populate", tables=4, anon=1024)
    c.map(GIB, M4, "r--", "private,anonymous,populate", tables=3, zero=1024, anon=0)
    c.map(2 * GIB, M4, "---", "private,anonymous,populate", tables=0)
    c.map(3 * GIB, M4).advise("populate_read", 3 * GIB, M4, tables=3, zero=1024)
    return c.advise("populate_write", 3 * GIB, M4, tables=0, zero=-1024, anon=1024)


@case
def stack_growth() -> Case:
    c = Case("stack growth costs a PTE page a span touched")
    top = 0x7FFF_FFFF_F000 - BASE
    c.write(top - 3 * M1, tables=1, anon=1).write(top - 13 * M1 // 2, tables=1, anon=1)
    return c.write(top - 13 * M1 // 2 + K4, tables=0, anon=1)


# ---- MADV_DONTNEED ----------------------------------------------------------------------------------


@case
def dontneed_empty() -> Case:
    c = Case("DONTNEED of a whole span frees an empty PTE page too").map(0, M4).write(0, tables=3)
    c.advise("dontneed", 0, K4, tables=0, anon=-1)
    return c.advise("dontneed", 0, M2, tables=-1)


@case
def dontneed_partial() -> Case:
    c = Case("DONTNEED of [1M,3M) empties and frees none").map(0, M4).write(0, M4, tables=4, anon=1024)
    return c.advise("dontneed", M1, M2, tables=0, anon=-512).advise("dontneed", 0, M4, tables=-2, anon=-512)


@case
def dontneed_by_vma() -> Case:
    c = Case("coverage is judged by mapping").map(0, M4).write(0, M4, tables=4).protect(0, M1, "r--")
    c.advise("dontneed", 0, M4, tables=-1, anon=-1024)
    return c.protect(0, M1, "rw-", vmas=-1).advise("dontneed", 0, M4, tables=-1)


@case
def dontneed_short() -> Case:
    c = Case("a mapping of 4M less a page gives its first PTE page").map(0, M4 - K4).write(0, M4 - K4, tables=4)
    return c.advise("dontneed", 0, M4 - K4, tables=-1)


@case
def dontneed_516() -> Case:
    c = Case("516 PTE pages: DONTNEED frees them and no upper table").map(0, GIB + 4 * M2)
    for span in range(516):
        c.write(span * M2)
    c.advise("dontneed", 0, GIB + 4 * M2, tables=-516, anon=-516)
    return c.unmap(0, GIB + 4 * M2, tables=-3)


@case
def dontneed_zero() -> Case:
    c = Case("512 zero entries: DONTNEED frees, FREE and COLD do not").map(0, M2).read(0, M2, tables=3, zero=512)
    c.advise("free", 0, M2, tables=0, zero=0).advise("cold", 0, M2, tables=0, zero=0)
    return c.advise("dontneed", 0, M2, tables=-1, zero=-512)


@case
def dontneed_locked() -> Case:
    c = Case("DONTNEED_LOCKED frees likewise").map(0, M2).do("mlock", 0, M2, tables=3, anon=512)
    return c.advise("dontneed", 0, M2, errno=22, tables=0, anon=0).advise(
        "dontneed_locked", 0, M2, tables=-1, anon=-512
    )


@case
def dontneed_prot_none() -> Case:
    c = Case("DONTNEED of PROT_NONE with entries").map(0, M2).write(0, M2, tables=3).protect(0, M2, "---", present=0)
    return c.advise("dontneed", 0, M2, tables=-1, anon=-512)


@case
def dontneed_fails_late() -> Case:
    c = Case("a failing DONTNEED has done its part").map(0, M4).write(0, M4, tables=4, anon=1024).do("mlock", M2, M2)
    c.advise("dontneed", 0, M4, errno=22, tables=-1, anon=-512)
    c.map(GIB, M2).map(GIB + M4, M2).write(GIB, tables=2).write(GIB + M4, tables=1)
    return c.advise("dontneed", GIB, 3 * M2, errno=12, tables=-2, anon=-2)


# ---- guard markers ----------------------------------------------------------------------------------


@case
def guard_pins() -> Case:
    c = Case("a guard marker survives DONTNEED and pins its PTE page").map(0, M2).write(0, M2, tables=3)
    c.advise("guard_install", 0, K4, tables=0, anon=-1, guard=1)
    c.advise("dontneed", 0, M2, tables=0, anon=-511, guard=0)
    return c.advise("guard_remove", 0, M2, tables=0, guard=-1).advise("dontneed", 0, M2, tables=-1)


@case
def guard_allocates() -> Case:
    c = Case("GUARD_INSTALL allocates tables; touches and populates stop there").map(0, M4)
    c.advise("guard_install", M2, M1, tables=3, guard=256).write(M2, errno=14, tables=0)
    c.advise("populate_write", 0, M4, errno=14, tables=1, anon=512)
    return c.fork(child_tables=0)


# ---- fork -------------------------------------------------------------------------------------------


@case
def fork_empty_tables() -> Case:
    c = Case("fork copies empty tables of a mapping that was written").map(0, M4).write(0, tables=3)
    c.advise("dontneed", 0, K4, tables=0, anon=-1)
    return c.fork(tables=0, child_tables=0).unmap(0, M4, pid=2, tables=-3)


@case
def fork_read_only() -> Case:
    c = Case("fork does not copy a mapping that was only read").map(0, M4).read(0, M1, tables=3, zero=256)
    c.fork(tables=0, child_tables=-3, child_zero=-256)
    return c.write(M1, anon=1).fork(3, tables=0, child_tables=0, child_zero=0)


@case
def fork_shared_span() -> Case:
    c = Case("in a shared span the child has the copied mapping's entries").map(0, M2).protect(0, M1, "r--", vmas=1)
    c.write(M1, tables=3, anon=1).read(0, zero=1, tables=0)
    return c.fork(tables=0, child_tables=0, child_zero=-1)


@case
def fork_split_after() -> Case:
    c = Case("a split after the first write leaves both halves copied").map(0, M4).write(0, tables=3).read(M2, tables=1)
    c.protect(M2, M2, "r--", vmas=1)
    return c.fork(child_tables=0, child_zero=0)


@case
def fork_split_before() -> Case:
    c = Case("a split before it leaves the read half out").map(0, M4).protect(M2, M2, "r--", vmas=1).write(0, tables=3)
    c.read(M2, tables=1, zero=1)
    return c.fork(child_tables=-1, child_zero=-1)


@case
def fork_advice() -> Case:
    c = Case("DONTFORK: no mapping, WIPEONFORK: no tables").map(0, M2).map(GIB, M2).map(2 * GIB, M2)
    c.write(0, tables=3).write(GIB, tables=2).write(2 * GIB, tables=2)
    c.advise("dontfork", GIB, M2).advise("wipeonfork", 2 * GIB, M2)
    return c.fork(child_tables=-4, child_vmas=-1)


@case
def fork_cow() -> Case:
    c = Case("a write after fork changes no table").map(0, M2).write(0, M1, tables=3).fork(child_tables=0)
    return c.write(0, M1, pid=2, tables=0, anon=0).write(0, M1, tables=0, anon=0).unmap(0, M2, pid=2, tables=-3)


# ---- munmap, MAP_FIXED --------------------------------------------------------------------------------


@case
def unmap_spans() -> Case:
    c = Case("munmap of a middle span, of half a span, of the last span").map(0, 3 * M2).write(0, 3 * M2, tables=5)
    c.unmap(M2, M2, tables=-1).unmap(0, M1, tables=0).unmap(M1, M1, tables=-1)
    return c.unmap(2 * M2, M2, tables=-3)


@case
def unmap_two_in_span() -> Case:
    c = Case("two mappings in one span: first 0, second -3").map(0, M1).map(M1, M1, "r--").write(0, tables=3)
    return c.unmap(0, M1, tables=0, anon=-1).unmap(M1, M1, tables=-3)


@case
def unmap_untouched_neighbour() -> Case:
    c = Case("an untouched neighbour in the GiB slot keeps the PMD page").map(0, M2).map(M4, M2).write(0, tables=3)
    return c.unmap(0, M2, tables=-1).unmap(M4, M2, tables=-2)


@case
def unmap_far() -> Case:
    c = Case("mappings 5 GiB apart: -2, -3; at once -5; in two PGD slots -3 each").map(0, M2).map(5 * GIB, M2)
    c.write(0, tables=3).write(5 * GIB, tables=2).unmap(0, M2, tables=-2).unmap(5 * GIB, M2, tables=-3)
    c.map(0, M2).map(5 * GIB, M2).write(0, tables=3).write(5 * GIB, tables=2).unmap(0, 6 * GIB, tables=-5)
    c.map(0, M2).map(PGD, M2).write(0, tables=3).write(PGD, tables=3)
    return c.unmap(0, M2, tables=-3).unmap(PGD, M2, tables=-3)


@case
def unmap_after_dontneed() -> Case:
    c = Case("munmap after DONTNEED takes the PMD and PUD pages").map(0, M2).write(0, tables=3)
    c.advise("dontneed", 0, M2, tables=-1)
    return c.unmap(0, M2, tables=-2)


@case
def unmap_first_page_last() -> Case:
    c = Case("munmap [4K,2M), then [0,4K), beside a neighbour in the slot").map(0, M2).map(M4, M2, "r--")
    return c.write(0, M2, tables=3).unmap(K4, M2 - K4, tables=0, anon=-511).unmap(0, K4, tables=-1, anon=-1)


@case
def map_over() -> Case:
    c = Case("MAP_FIXED over memory is a munmap without the new neighbour").map(0, M4).write(0, M4, tables=4)
    c.map(0, M4, tables=-4, anon=-1024)
    c.map(GIB, 4 * M2).write(GIB, 4 * M2, tables=6).map(GIB + M2, M2, tables=-1)
    return c.map(GIB + M4, M1, tables=0, anon=-256)


def heap_cases(heap_start: int) -> Iterable[Case]:
    """brk: the heap begins 25 pages or so below a 1 GiB border."""
    border = -(-heap_start // GIB) * GIB

    def brk(c: Case, addr: int, **want: int) -> Case:
        return c.do("brk", more={"addr": addr}, **want)

    c = Case("brk shrinks as munmap does")
    brk(c, border + 3 * M2, tables=0).write(border - BASE, 3 * M2, tables=4, anon=1536)
    brk(c, border + M2, tables=-2, anon=-1024)
    brk(c, border + M1, tables=0, anon=-256)
    brk(c, border, tables=-2, anon=-256)
    yield c


# ---- mremap -----------------------------------------------------------------------------------------


@case
def move_span() -> Case:
    c = Case("a whole aligned span moves with its PTE page, empty too").map(0, M2).write(0, M2, tables=3)
    c.move(0, M2, M4 * 8, tables=0, anon=0).advise("dontneed", M4 * 8, M1, tables=0)
    c.advise("dontneed", M4 * 8 + M1, M1, tables=0)
    return c.move(M4 * 8, M2, 0, tables=0).advise("dontneed", 0, M2, tables=-1)


@case
def move_unaligned() -> Case:
    c = Case("4M moved by a page more: three new PTE pages, two freed").map(0, M4).write(0, M4, tables=4)
    return c.move(0, M4, 8 * M4 + K4, tables=1, anon=0)


@case
def move_unaligned_empty() -> Case:
    c = Case("an empty PTE page makes an empty one where it is moved unaligned").map(0, M2).write(0, tables=3)
    c.advise("dontneed", 0, K4, tables=0)
    return c.move(0, M1, 8 * M4, tables=1).unmap(M1, M1, tables=-1)


@case
def move_dontunmap() -> Case:
    c = Case("DONTUNMAP: aligned leaves no table, unaligned an empty one").map(0, M2).write(0, tables=3)
    c.move(0, M2, M4, keep=True, tables=0, anon=0).read(0, tables=1, zero=1)
    c.map(GIB, M1).write(GIB, tables=2).move(GIB, M1, GIB + M4, keep=True, tables=1, anon=0)
    return c.write(GIB, tables=0, anon=1)


@case
def move_to_virgin_slot() -> Case:
    c = Case("a span without a PTE page still makes a PUD page in a virgin PGD slot").map(0, M4).write(0, tables=3)
    c.move(M2, M2, PGD, tables=1)
    return c.move(PGD, M2, M2, tables=-1)


@case
def move_realigned() -> Case:
    c = Case("[1M,5M) to [65M,69M) moves whole spans").map(M1, M4).write(M1, M4, tables=5)
    return c.move(M1, M4, M1 * 65, tables=0, anon=0)


@case
def move_not_realigned() -> Case:
    c = Case("the same with a lower neighbour: +1").map(0, M1, "r--").map(M1, M4).write(M1, M4, tables=5)
    return c.move(M1, M4, M1 * 65, tables=1, anon=0)


@case
def move_gib() -> Case:
    c = Case("1 GiB moves with its PMD page, or by PTE pages").map(0, GIB)
    for span in range(0, 512, 37):
        c.write(span * M2)
    c.move(0, GIB, 4 * GIB, tables=0, anon=0)
    return c.move(4 * GIB, GIB, 8 * GIB + M2, tables=0, anon=0)


@case
def move_gib_full() -> Case:
    c = Case("1 GiB of 512 PTE pages to +2M: two new PMD pages, one freed").map(0, GIB)
    for span in range(512):
        c.write(span * M2)
    return c.move(0, GIB, 4 * GIB + M2, tables=1, anon=0)


@case
def move_inside() -> Case:
    c = Case("4 pages to another span of the same mapping: +1").map(0, 4 * M2).write(0, 4 * K4, tables=3)
    return c.move(0, 4 * K4, M4, tables=1, anon=0)


@case
def shrink_in_place() -> Case:
    c = Case("mremap shrinks as munmap does, grows for nothing").map(0, M2).write(0, M2, tables=3)
    return c.stay(0, M2, M1, tables=0, anon=-256).stay(0, M1, M4, tables=0).stay(0, M4, M2, tables=0)


# ---- mprotect, mlock --------------------------------------------------------------------------------


@case
def protect_and_back() -> Case:
    c = Case("mprotect changes no table and no entry").map(0, M2).read(0, M1).write(M1, M1)
    c.protect(0, M2, "---", tables=0, zero=0, anon=0)
    return c.protect(0, M2, "rw-", tables=0, zero=0, anon=0)


@case
def lock() -> Case:
    c = Case("mlock populates by protection").map(0, M2).map(GIB, M2, "r--").map(2 * GIB, M2, "---").map(3 * GIB, M2)
    c.do("mlock", 0, M2, tables=3, anon=512, zero=0).do("mlock", GIB, M2, tables=2, anon=0, zero=512)
    c.do("mlock", 2 * GIB, M2, tables=0, errno=12)
    c.do("mlock", 3 * GIB, M2, more={"onfault": True}, tables=0).read(3 * GIB, tables=2, zero=1)
    return c.protect(GIB, M2, "rw-", tables=0, anon=512, zero=-512)


# ---- files, shmem -----------------------------------------------------------------------------------


def _file(c: Case, kind: str, pages: int, cached: list[tuple[int, int]] | None = None) -> Case:
    c.files = [FileSpec(kind, pages, [(0, pages)] if cached is None else cached)]
    return c


@case
def fault_around() -> Case:
    c = _file(Case("fault-around: 16 entries by address, clamped to the mapping"), "disk", 1024)
    c.map_file(0, M2, "r--", "private").read(20 * K4, tables=3, file=16).read(16 * K4, file=0)
    c.map_file(GIB + 5 * K4, M1, "r--", "private").read(GIB + 13 * K4, tables=2, file=16)
    c.read(GIB + 20 * K4, file=0).read(GIB + 21 * K4, file=11)
    c.map_file(2 * GIB + 510 * K4, M1, "r--", "private").read(2 * GIB + 510 * K4, tables=2, file=2)
    return c.map_file(3 * GIB, M1, "r--", "private", 3 * K4).read(3 * GIB + 20 * K4, tables=2, file=16)


@case
def private_file_writes() -> Case:
    c = _file(Case("a private write copies one page, a shared one maps one"), "disk", 600)
    c.map_file(0, M2, "rw-", "private").write(20 * K4, tables=3, anon=1, file=0).read(21 * K4, anon=0, file=15)
    c.write(21 * K4, anon=1, file=-1).advise("dontneed", 0, M2, tables=-1, anon=-2, file=-14)
    return c.map_file(GIB, M2, "rw-", "shared").write(GIB + 20 * K4, tables=2, anon=0, file=1)


@case
def populated_files() -> Case:
    c = _file(Case("MAP_POPULATE: shared maps the file, private copies it"), "disk", 512)
    c.map_file(0, M2, "rw-", "shared,populate", tables=3, file=512, anon=0)
    return c.map_file(GIB, M2, "rw-", "private,populate", tables=2, file=0, anon=512)


@case
def truncated_file() -> Case:
    c = _file(Case("truncation unmaps private copies too and frees no table"), "disk", 512)
    c.map_file(0, M2, "rw-", "private").read(0, M2, file=512, tables=3).write(300 * K4, anon=1, file=-1)
    c.do("truncate", more={"file": 0, "len": 256 * K4})
    return c.do("madvise", 0, K4, more={"advice": "normal"}, tables=0).read(300 * K4, errno=14, tables=0)


@case
def shmem_holes() -> Case:
    c = Case("a read of a shmem hole allocates its page").map(0, M2, flags="shared,anonymous")
    c.read(20 * K4, tables=3, shmem=1, zero=0).read(21 * K4, shmem=1).read(40 * K4, shmem=1)
    c.advise("dontneed", 0, M2, tables=-1, shmem=-3)
    return c.read(20 * K4, tables=1, shmem=2)


@case
def fork_shared() -> Case:
    c = Case("fork does not copy shared memory").map(0, M2, flags="shared,anonymous").write(0, M1, tables=3, shmem=256)
    return c.fork(child_tables=-3).read(0, pid=2, tables=3, shmem=16)


# ---- swap -------------------------------------------------------------------------------------------


@case
def swap_out_and_in() -> Case:
    c = Case("PAGEOUT makes swap entries, frees no table; a fault brings one back").map(0, M2).write(0, M1, tables=3)
    c.read(M1, M1, zero=256, tables=0)
    c.advise("pageout", 0, M2, tables=0, anon=-256, swap=256, zero=0).read(0, anon=1, swap=-1, tables=0)
    c.protect(0, M2, "---", swap=0).protect(0, M2, "rw-", swap=0)
    c.advise("free", 0, M2, swap=-255, anon=0, tables=0)
    return c.advise("dontneed", 0, M2, tables=-1, anon=-1, zero=-256)


@case
def swap_discarded() -> Case:
    c = Case("DONTNEED of a span of swap entries frees its PTE page").map(0, M2).write(0, M2, tables=3)
    c.advise("pageout", 0, M2, tables=0, swap=512).advise("dontneed", 0, M2, tables=-1, swap=-512)
    return c
