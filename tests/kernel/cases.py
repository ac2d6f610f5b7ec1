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


# ---- what merges ------------------------------------------------------------------------------------


@case
def merge_flags() -> Case:
    c = Case("mappings merge where their flags are alike").map(0, M2, vmas=1).map(M2, M2, vmas=0)
    c.map(M4, M2, flags="private,anonymous,noreserve", vmas=1).map(3 * M2, M2, flags="private,anonymous,locked", vmas=1)
    c.map(4 * M2, M2, flags="private,anonymous,stack", vmas=1)
    c.map(5 * M2, M2, flags="private,anonymous,growsdown", vmas=1)
    c.map(GIB, M2, flags="private,anonymous,noreserve").map(GIB + M2, M2, "r--", "private,anonymous,noreserve", vmas=1)
    c.protect(GIB + M2, M2, "rw-", vmas=-1)
    return c.map(2 * GIB, M2).map(2 * GIB + M2, M2, flags="private,anonymous,stack", vmas=1)


@case
def merge_account_shared() -> Case:
    c = _file(Case("shared mappings are not accounted: made read-only and writable again they merge"), "tmpfs", 1024)
    c.map_file(0, M2, "rw-", "shared", vmas=1).map_file(M2, M2, "r--", "shared", M2, vmas=1)
    c.protect(0, M2, "r--", vmas=-1)
    return c.protect(0, M1, "rw-", vmas=1).protect(0, M1, "r--", vmas=-1)


@case
def merge_account_noreserve() -> Case:
    c = Case("MAP_NORESERVE is not accounted later").map(0, M2, "r--", "private,anonymous,noreserve", vmas=1)
    c.protect(0, M1, "rw-", vmas=1).write(0, tables=3).protect(0, M1, "r--", vmas=-1)
    c.map(GIB, M2, "r--", vmas=1).protect(GIB, M1, "rw-", vmas=1).write(GIB, tables=2)
    c.protect(GIB, M1, "r--", vmas=0)
    c.map(2 * GIB, M2, "r--", vmas=1).protect(2 * GIB, M1, "rw-", vmas=1)
    return c.protect(2 * GIB, M1, "r--", vmas=-1)


@case
def merge_hole_two_anon_vmas() -> Case:
    c = Case("between two anon_vmas: the hole's mapping joins the one below").map(0, M1).write(0, tables=3)
    c.map(M2, M1).write(M2, tables=1).map(M1, M1, vmas=0)
    c.write(0, M2, tables=0).advise("dontneed", 0, M4, errno=12, tables=-1)
    c.map(GIB, M1).write(GIB, tables=2).map(GIB + M2, M1).write(GIB + M2, tables=1)
    c.map(GIB + M1, M1, "r--", vmas=1).protect(GIB + M1, M1, "rw-", vmas=-1)
    c.write(GIB, M2, tables=0)
    return c.advise("dontneed", GIB, M4, errno=12, tables=-1)


@case
def merge_hole_one_anon_vma() -> Case:
    c = Case("between one with an anon_vma and one without: all three are one").map(0, M1).map(M2, M1)
    c.write(M2, tables=3).map(M1, M1, vmas=-1).read(0, tables=1, zero=1).fork(child_tables=0, child_zero=0)
    c.map(GIB, M1).map(GIB + M2, M1).write(GIB, tables=2).map(GIB + M1, M1, vmas=-1)
    return c.read(GIB + M2, tables=1, zero=1).fork(3, child_tables=0, child_zero=0)


@case
def merge_by_protect() -> Case:
    c = Case("mprotect joins what it makes alike: below, above, both, a part").map(0, 4 * M2).write(0, tables=3)
    c.protect(M2, M2, "r--", vmas=2).protect(M2, M1, "rw-", vmas=0).protect(M2 + M1, M1, "rw-", vmas=-2)
    c.protect(M2, M2, "r--", vmas=2).protect(M2 + M1, M1, "rw-", vmas=0).protect(M2, M1, "rw-", vmas=-2)
    c.protect(M2, M2, "r--", vmas=2).protect(M2, M2, "rw-", vmas=-2)
    c.protect(M2, M2, "r--", vmas=2).protect(M2 + K4, K4, "---", vmas=2)
    c.protect(M2 + K4, K4, "r--", vmas=-2).protect(0, 4 * M2, "r--", vmas=-2)
    return c.protect(3 * M2, M2, "rw-", vmas=1).protect(2 * M2, M2, "rw-", vmas=0)


@case
def merge_read_takes_anon_vma() -> Case:
    c = Case("a part without an anon_vma that is joined by mprotect gets its neighbour's").map(0, M2, "r--")
    c.map(M2, M2).write(M2, tables=3).read(0, tables=1, zero=1).protect(0, M2, "rw-", vmas=-1)
    c.fork(child_tables=0, child_zero=0)
    c.map(GIB, M2).map(GIB + M2, M2, "r--").write(GIB, tables=2).read(GIB + M2, tables=1, zero=1)
    c.protect(GIB + M2, M2, "rw-", vmas=-1).fork(3, child_tables=0, child_zero=0)
    c.map(2 * GIB, M2, "rwx").map(2 * GIB + M2, M2).write(2 * GIB, tables=2).read(2 * GIB + M2, tables=1, zero=1)
    c.protect(2 * GIB, M2, "rw-", vmas=-1).fork(4, child_tables=0, child_zero=0)
    c.map(3 * GIB, M2).map(3 * GIB + M2, M2, "rwx").write(3 * GIB + M2, tables=2).read(3 * GIB, tables=1, zero=1)
    c.protect(3 * GIB + M2, M2, "rw-", vmas=-1)
    return c.fork(5, child_tables=0, child_zero=0)


@case
def reuse_in_a_child() -> Case:
    c = Case("an inherited anon_vma is not used again").map(0, M1, "rwx").map(M1, M1, vmas=1).write(0, tables=3)
    c.fork().write(M1, pid=2, anon=1).write(M1, anon=1).protect(0, M1, "rw-", vmas=-1)
    return c.add("mprotect", 0, M1, 2, {"prot": "rw-"}, {"vmas": 0})


@case
def child_keeps_apart() -> Case:
    c = (
        Case("an inherited anon_vma does not go into a mapping without")
        .map(0, M1, "rwx")
        .map(M1, M1)
        .write(0, tables=3)
    )
    c.map(GIB, M1).write(GIB, tables=2).fork()
    c.add("mprotect", 0, M1, 2, {"prot": "rw-"}, {"vmas": 0}).protect(0, M1, "rw-", vmas=-1)
    for pid, merged in ((2, 0), (1, -1)):
        there: Op = {"new_addr": BASE + 2 * GIB, "new_len": M1, "place": "fixed"}
        c.add("mremap", GIB, M1, pid, there, {"vmas": 0})
        c.add("mmap", GIB + M1, M1, pid, {"prot": "rw-", "flags": "private,anonymous"}, {"vmas": 1})
        c.add("mremap", 2 * GIB, M1, pid, there | {"new_addr": BASE + GIB}, {"vmas": merged})
    return c


@case
def merge_objects() -> Case:
    c = _file(Case("anonymous memory and a file do not merge, though flags and offset fit"), "tmpfs", 8)
    return c.map(0, M2, vmas=1).map_file(M2, M2, "rw-", "private", BASE + M2, vmas=1)


@case
def reuse_next_first() -> Case:
    c = Case("the anon_vma of the mapping above is used before that below").map(0, M1, "rwx").map(M2, M1, "rwx")
    c.write(0, tables=3).write(M2, tables=1).map(M1, M1, vmas=1).write(M1, anon=1)
    return c.protect(M1, M1, "rwx", vmas=-1).advise("dontneed", 0, M2, tables=0)


@case
def reuse_needs_flags() -> Case:
    c = Case("an anon_vma is used again only where the flags are alike, rwx apart").map(0, M1).map(M1, M1, "rwx")
    c.write(0, tables=3).do("mlock", M1, M1, more={"onfault": True}).write(M1, anon=1).do("munlock", M1, M1)
    return c.protect(M1, M1, "rw-", vmas=0)


@case
def guard_gives_anon_vma() -> Case:
    c = Case("a guard marker gives anonymous memory an anon_vma").map(0, M1).map(M2, M1)
    c.advise("guard_install", 0, K4, tables=3).advise("guard_install", M2, K4, tables=1)
    return c.map(M1, M1, vmas=0)


@case
def guard_flag_is_sticky() -> Case:
    c = _file(Case("who joins a mapping that had guard markers is copied by fork"), "tmpfs", 2048)
    c.map_file(0, M1, "r--", "shared").map_file(M2, M1, "r--", "shared", M2, vmas=1).read(0, tables=3, shmem=16)
    c.advise("guard_install", M2, K4, tables=1, guard=1).map_file(M1, M1, "r--", "shared", M1, vmas=-1)
    c.fork(child_tables=0, child_shmem=0)
    c.map_file(GIB, M1, "r--", "shared").map_file(GIB + M1, M1, "rw-", "shared", M1).read(GIB, tables=2, shmem=16)
    c.advise("guard_install", GIB + M1, K4, guard=1).protect(GIB + M1, M1, "r--", vmas=-1)
    c.fork(3, child_tables=0, child_shmem=0)
    c.map_file(2 * GIB, M1, "rw-", "shared").map_file(2 * GIB + M1, M1, "r--", "shared", M1)
    c.read(2 * GIB + M1, tables=2, shmem=16).advise("guard_install", 2 * GIB, K4, guard=1)
    c.protect(2 * GIB, M1, "r--", vmas=-1).fork(4, child_tables=0, child_shmem=0)
    c.map_file(3 * GIB, M2, "r--", "shared").read(3 * GIB, tables=2, shmem=16).protect(3 * GIB + M1, M1, "rw-")
    c.map_file(3 * GIB + M2, M1, "r--", "shared", M2).read(3 * GIB + M2, tables=1, shmem=16)
    c.advise("guard_install", 3 * GIB + M1, K4, guard=1).protect(3 * GIB + M1, M1, "r--", vmas=-2)
    return c.fork(5, child_tables=0, child_shmem=0)


# ---- stacks -----------------------------------------------------------------------------------------


@case
def stack_guard_gap() -> Case:
    c = Case("a stack keeps 256 pages from what is accessible below, unless that is a stack")
    down = "private,anonymous,growsdown"
    c.map(0, M1).map(M4, M1, flags=down).write(M1 + 255 * K4, errno=14, tables=0, vmas=0)
    c.write(M1 + 256 * K4, errno=0, tables=3, anon=1)
    c.map(GIB, M1, "---").map(GIB + M4, M1, flags=down).write(GIB + M1, errno=0, tables=2, anon=1)
    c.map(2 * GIB, M1, flags=down).map(2 * GIB + M4, M1, flags=down).write(2 * GIB + M1, errno=0, tables=2, anon=1)
    c.map(3 * GIB, M1, "r--").map(3 * GIB + M4, M1, flags=down).read(3 * GIB + M1 + 255 * K4, errno=14, tables=0)
    c.map(5 * GIB, M1).read(5 * GIB - K4, errno=14, tables=0)
    return c.read(3 * GIB + M1 + 256 * K4, errno=0, tables=2, zero=1)


# ---- the page cache ---------------------------------------------------------------------------------


@case
def cache_after_truncation() -> Case:
    c = _file(Case("what truncation took out of the page cache is not mapped around"), "tmpfs", 512)
    c.map_file(0, M2, "r--", "shared").read(0, tables=3, shmem=16).read(300 * K4, shmem=16)
    c.do("truncate", more={"file": 0, "len": 40 * K4}).do("truncate", more={"file": 0, "len": 512 * K4})
    c.advise("normal", 0, K4, tables=0, shmem=-16)
    c.read(300 * K4, shmem=1, tables=0).read(301 * K4, shmem=1).read(32 * K4, shmem=8).read(40 * K4, shmem=1)
    return c.advise("dontneed", 0, M2, tables=-1).read(303 * K4, tables=1, shmem=3).read(16 * K4, shmem=16)


@case
def removed_pages() -> Case:
    c = _file(Case("MADV_REMOVE takes pages out of every mapping, private copies stay"), "tmpfs", 512)
    c.map_file(0, M2, "rw-", "private").map_file(GIB, M2, "rw-", "shared").read(0, tables=3, shmem=16)
    c.write(0, anon=1, shmem=-1).read(16 * K4, shmem=16)
    c.advise("remove", GIB + 4 * K4, 16 * K4, tables=0, anon=0, shmem=-16)
    c.advise("remove", GIB, K4, tables=0, anon=0, shmem=0).read(4 * K4, shmem=1, tables=0)
    c.read(GIB, tables=2, shmem=5).read(GIB + 16 * K4, shmem=13)
    c.advise("remove", 0, M2, errno=13, tables=0, shmem=0).map(2 * GIB, M2).write(2 * GIB, tables=2)
    c.advise("remove", 2 * GIB, M2, errno=22, anon=0).do("mlock", GIB, K4, shmem=0)
    return c.advise("remove", GIB, K4, errno=22, shmem=0)


@case
def lock_shared() -> Case:
    c = _file(Case("mlock reads what is shared, up to a guard marker"), "tmpfs", 512)
    c.map_file(0, M2, "rw-", "shared").advise("guard_install", 3 * K4, K4, tables=3, guard=1)
    c.do("mlock", 0, M2, errno=12, tables=0, shmem=15)
    c.map_file(GIB, M2, "rw-", "private").advise("guard_install", GIB + 3 * K4, K4, tables=2, guard=1)
    return c.do("mlock", GIB, M2, errno=12, tables=0, anon=3, shmem=0)


# ---- locked memory ----------------------------------------------------------------------------------


@case
def lock_holes() -> Case:
    c = Case("mlock and munlock go up to the first hole").map(0, M2).map(M4, M2)
    c.do("mlock", 0, 3 * M2, errno=12, tables=0, anon=0).advise("dontneed", 0, M2, errno=22)
    c.advise("dontneed", M4, M2, errno=0).do("mlock", M2, M4, errno=12)
    c.do("munlock", 0, 3 * M2, errno=12).advise("dontneed", 0, M2, errno=0)
    c.map(GIB, M2).map(GIB + M2, M2, "---").map(GIB + M4, M2)
    c.do("mlock", GIB, 3 * M2, errno=12, tables=3, anon=512).advise("dontneed", GIB + M4, M2, errno=22)
    return c.do("munlock", GIB, M4, errno=0).advise("dontneed", GIB, 3 * M2, errno=22, tables=-1, anon=-512)


@case
def lock_forked() -> Case:
    c = Case("a child's memory is not locked").map(0, M2, flags="private,anonymous,locked", tables=3, anon=512)
    c.map(GIB, M2).do("mlock", GIB, M2, more={"onfault": True}, tables=0).write(GIB, tables=2)
    c.fork(child_tables=0).advise("dontneed", 0, M2, pid=2, errno=0, tables=-1)
    c.advise("dontneed", GIB, M2, pid=2, errno=0, tables=-1)
    return c.advise("dontneed", GIB, M2, errno=22, tables=0).advise("dontneed", 0, M2, errno=22, tables=0)


@case
def lock_protect() -> Case:
    c = Case("mprotect to writable populates what is locked, private and was not").map(0, M2, "r--")
    c.do("mlock", 0, M2, tables=3, zero=512).protect(0, M2, "---", zero=0).protect(0, M2, "r--", zero=0)
    c.protect(0, M2, "rw-", anon=512, zero=-512).protect(0, M2, "r--").protect(0, M2, "rw-", anon=0)
    c.advise("dontneed_locked", 0, M2, tables=-1, anon=-512).protect(0, M2, "rwx", tables=0, anon=0)
    c.map(GIB, M2, "r--").do("mlock", GIB, M2, more={"onfault": True}).protect(GIB, M2, "rw-", tables=0, anon=0)
    c.map(2 * GIB, M2, "---", "shared,anonymous").do("mlock", 2 * GIB, M2, errno=12, tables=0)
    return c.protect(2 * GIB, M2, "rw-", tables=0, shmem=0)


@case
def protect_holes() -> Case:
    c = Case("mprotect goes up to the first hole").map(0, M2).map(M4, M2).write(0, tables=3)
    c.protect(M1, 5 * M1, "r--", errno=12, vmas=1).protect(M2, M4, "r--", errno=12, vmas=0)
    return c.write(M1, errno=14, anon=0).write(M4, errno=0, anon=1)


# ---- mremap once more -------------------------------------------------------------------------------


@case
def move_gib_dontunmap() -> Case:
    c = Case("DONTUNMAP of 1 GiB leaves no PMD page").map(0, GIB).write(0, tables=3)
    return c.move(0, GIB, 4 * GIB, keep=True, tables=0, anon=0).write(0, tables=2)


@case
def realign_above_neighbour() -> Case:
    c = Case("no realignment with a lower neighbour at the destination").map(M1, M4).write(M1, M4, tables=5)
    c.map(64 * M1, M1, "r--", tables=0)
    return c.move(M1, M4, M1 * 65, keep=True, tables=2, anon=0)


@case
def realign_offsets() -> Case:
    c = (
        Case("no realignment where the offsets in the spans differ")
        .map(3 * M1 // 2, M4)
        .write(3 * M1 // 2, M4, tables=5)
    )
    return c.move(3 * M1 // 2, M4, 64 * M1 + M1 // 2, keep=True, tables=3, anon=0)


@case
def realign_kept() -> Case:
    c = Case("realigned with DONTUNMAP: no PTE page stays at the start").map(M1, M4).write(M1, M4, tables=5)
    c.move(M1, M4, M1 * 65, keep=True, tables=1, anon=0)
    c.map(GIB + M1, M1).write(GIB + M1, M1, tables=2).move(GIB + M1, M1, GIB + 65 * M1, keep=True, tables=0, anon=0)
    c.map(2 * GIB + M1, M1 // 2).write(2 * GIB + M1, M1 // 2, tables=2)
    return c.move(2 * GIB + M1, M1 // 2, 2 * GIB + 65 * M1, keep=True, tables=1, anon=0)


@case
def move_locked() -> Case:
    c = Case("a locked mapping stays locked where it moves, and its new part is populated").map(0, M2)
    c.do("mlock", 0, M2, tables=3, anon=512).move(0, M2, M4, new=3 * M1, tables=1, anon=256)
    c.advise("dontneed", M4, M2, errno=22, tables=0).do("munlock", M4, 3 * M1)
    c.map(GIB, M2).do("mlock", GIB, M2, tables=2, anon=512).move(GIB, M2, GIB + M4, keep=True, tables=0, anon=0)
    c.read(GIB, tables=1, zero=1).advise("dontneed", GIB, M2, errno=0, tables=-1)
    c.advise("dontneed", GIB + M4, M2, errno=22)
    c.map(2 * GIB, M2).do("mlock", 2 * GIB, M2, tables=2, anon=512).stay(2 * GIB, M2, M4, tables=1, anon=512)
    c.map(3 * GIB, M2).do("mlock", 3 * GIB, M2, more={"onfault": True}).write(3 * GIB, tables=2)
    return c.move(3 * GIB, M2, 3 * GIB + M4, new=M4, tables=0, anon=0)


@case
def move_shrinking() -> Case:
    c = Case("a move that shrinks unmaps the tail first, one that grows makes room").map(0, M4).write(0, M4, tables=4)
    c.move(0, M4, GIB, new=M1, tables=-1, anon=-768, vmas=0)
    c.map(2 * GIB, M1).write(2 * GIB, M1, tables=2).map(3 * GIB, M4, "r--").read(3 * GIB, M4, tables=3, zero=1024)
    c.move(2 * GIB, M1, 3 * GIB, new=M2, tables=-2, zero=-512, vmas=0)
    c.map(5 * GIB, M4, "rwx").write(5 * GIB, M4, tables=3).map(6 * GIB, M4, "r--").read(6 * GIB, M4, tables=3)
    return c.move(5 * GIB, M4, 6 * GIB, new=M2, tables=-3, anon=-512, zero=-512, vmas=0)


@case
def move_part() -> Case:
    c = Case("a part that moves takes its offset along, unless it was never written").map(0, M4).write(0, tables=3)
    c.move(M2, M2, GIB, tables=0, vmas=1).move(GIB, M2, M2, tables=0, vmas=-1)
    c.map(2 * GIB, M4).move(2 * GIB + M2, M2, 3 * GIB, vmas=1).move(3 * GIB, M2, 2 * GIB + M2, vmas=-1)
    c.map(4 * GIB, M2).write(4 * GIB, tables=2).move(4 * GIB, M2, 4 * GIB + M4, tables=0, vmas=0)
    return c.map(4 * GIB + 3 * M2, M2, vmas=1).map(4 * GIB + M2, M2, vmas=1)


@case
def grow_into_next() -> Case:
    c = Case("growth in place joins what follows").map(0, M2).map(M4, M2).write(M4, tables=3).read(0, tables=1)
    c.stay(0, M2, M4, tables=0, vmas=-1).fork(child_tables=0, child_zero=0)
    c.map(GIB, M2).map(GIB + M4, M2, "r--").write(GIB, tables=2).stay(GIB, M2, M4, vmas=0, tables=0)
    return c.stay(GIB, M4, 3 * M2, errno=12, vmas=0, tables=0)


# ---- madvise once more ------------------------------------------------------------------------------


@case
def advice_flags() -> Case:
    c = Case("advice that sets a flag splits, the opposite one joins again").map(0, 3 * M2, vmas=1)
    pairs = (("random", "normal"), ("sequential", "normal"), ("dontfork", "dofork"), ("wipeonfork", "keeponfork"))
    pairs += (("dontdump", "dodump"), ("hugepage", "nohugepage"), ("mergeable", "unmergeable"))
    for on, off in pairs:
        if on == "hugepage":
            c.advise("nohugepage", 0, 3 * M2, vmas=0)
        c.advise(on, M2, M2, vmas=2, errno=0).advise(on, 0, 3 * M2, vmas=-2).advise(off, M2, M2, vmas=2)
        c.advise(off, 0, 3 * M2, vmas=-2)
    c.advise("random", 0, M2, vmas=1).advise("sequential", 0, 3 * M2, vmas=-1).advise("random", 0, M2, vmas=1)
    c.advise("random", M2, M4, vmas=-1).advise("normal", 0, M2, vmas=1).advise("random", 0, M2, vmas=-1)
    return c.advise("hugepage", 0, 3 * M2, vmas=0)


@case
def advice_refused() -> Case:
    c = _file(Case("who refuses which advice"), "tmpfs", 512)
    c.map_file(0, M2, "rw-", "private").advise("free", 0, M2, errno=22).advise("wipeonfork", 0, M2, errno=22, vmas=0)
    c.map(GIB, M2, flags="shared,anonymous").advise("wipeonfork", GIB, M2, errno=22).advise("free", GIB, M2, errno=22)
    c.advise("mergeable", GIB, M1, errno=0, vmas=0)
    c.map(2 * GIB, M2, flags="private,anonymous,locked", tables=3)
    for advice in ("dontneed", "free", "cold", "pageout", "guard_install", "remove"):
        c.advise(advice, 2 * GIB, M2, errno=22, tables=0, anon=0)
    c.advise("guard_remove", 2 * GIB, M2, errno=0).advise("dontfork", 2 * GIB, M2, errno=0)
    c.map(3 * GIB, M1).advise("populate_write", 3 * GIB - M2, M4, errno=12, tables=0)
    c.advise("populate_write", 3 * GIB, M2, errno=12, tables=2, anon=256)
    c.map(4 * GIB, M1).write(4 * GIB, tables=2).map_file(4 * GIB - M1, M1, "rw-", "private")
    return c.advise("wipeonfork", 4 * GIB - M1, M2, errno=22, vmas=0).fork(child_anon=-512)


@case
def free_stops() -> Case:
    c = _file(Case("MADV_FREE stops at a file and at locked memory"), "tmpfs", 512).map(M2, M2).write(M2, M1, tables=3)
    c.advise("pageout", M2, M2, swap=256).map_file(0, M2, "rw-", "private").advise("free", 0, M4, errno=22, swap=0)
    c.map(0, M2, flags="private,anonymous,locked", tables=1).advise("free", 0, M4, errno=22, swap=0)
    return c.advise("free", M2, M2, errno=0, swap=-256)


@case
def guard_file() -> Case:
    c = _file(Case("guard markers in files: fault-around goes round them"), "tmpfs", 512)
    c.map_file(0, M2, "rw-", "private").advise("guard_install", 5 * K4, 2 * K4, tables=3, guard=2)
    c.read(0, shmem=14).read(5 * K4, errno=14, shmem=0).write(6 * K4, errno=14, anon=0)
    c.advise("populate_read", 0, 16 * K4, errno=14, shmem=0).advise("guard_remove", 0, M2, guard=-2, shmem=0)
    return c.read(5 * K4, errno=0, shmem=2)


@case
def beyond_the_end() -> Case:
    c = _file(Case("beyond the end: upper tables, and an anon_vma for a write"), "tmpfs", 8)
    c.map_file(0, M4, "rw-", "private").write(M2, errno=14, tables=2).read(GIB // 2, errno=14, tables=0)
    c.fork(child_tables=0).read(20 * K4, errno=14, tables=0).read(9 * K4, errno=14, tables=1, shmem=8)
    c.map_file(GIB, M4, "rw-", "shared").write(GIB + M2, errno=14, tables=1)
    return c.fork(3, child_tables=-1, child_shmem=0)
