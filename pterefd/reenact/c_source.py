"""Operations as a C program with a libc, which says whether the kernel does what the model expects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pterefd.engine.layout import OBJ_DEV_ZERO, OBJ_SHMEM
from pterefd.errors import BadInput
from pterefd.host.host import kind_of_path
from pterefd.reenact.calls import ADVICE_NUMBER, PAGE, Row, describe

# Fields of a checkpoint that a program can read of itself, and how.
SHOWN = {
    "VmPTE": 'status("VmPTE:")',
    "RssAnon": 'status("RssAnon:")',
    "RssFile": 'status("RssFile:")',
    "RssShmem": 'status("RssShmem:")',
    "VmSwap": 'status("VmSwap:")',
    "vmas": "mappings()",
}
NEW_ADVICE = {"guard_install", "guard_remove", "dontneed_locked", "collapse", "populate_read", "populate_write"}


class Shown(NamedTuple):
    """A difference, as changes since the first step: kB, or a number of mappings. step: after which."""

    field: str
    pid: int
    kernel: int
    model: int
    step: int


HEAD = """\
/*
 * Linux {release} and pterefd's profile {profile} disagree about what these {steps} steps do.
 * {field} changes by {kernel:+d}{unit} over all of them; {profile} expects {model:+d}{unit}.  (From {name}.)
 *
 *     gcc -Wall -O1 -o steps THIS.c && ./steps
 *
 * Exit code: 1 where {field} does not change as expected, 0 where it does, 3 where a step cannot be done.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define must(done) do {{ if (!(done)) {{ perror(#done); _exit(3); }} }} while (0)
#define at(address) ((void *)address##UL)
"""

READERS = {
    "status": """
static char text[1 << 16];

/* A line of /proc/self/status, kB. */
static long status(const char *name)
{
	int fd = open("/proc/self/status", O_RDONLY);
	long n = read(fd, text, sizeof text - 1);

	close(fd);
	text[n > 0 ? n : 0] = 0;
	return strtol(strstr(text, name) + strlen(name), NULL, 10);
}
""",
    "mappings": """
/* Lines of /proc/self/maps. */
static long mappings(void)
{
	static char text[1 << 12];
	int fd = open("/proc/self/maps", O_RDONLY);
	long n, lines = 0;

	while ((n = read(fd, text, sizeof text)) > 0)
		for (long i = 0; i < n; i++)
			lines += text[i] == '\\n';
	close(fd);
	return lines;
}
""",
}

HELPERS = {
    "access_pages": """
static void access_pages(char *from, long pages, int write)
{
	for (volatile char *page = from; page < from + pages * 4096; page += 4096) {
		if (write)
			*page = 1;
		else
			(void)*page;
	}
}
""",
    "try_access": """
/* Accesses that fail, which read(2) and write(2) survive. */
static void try_access(char *from, long pages, int write_to)
{
	char byte = 1;
	int ends[2];

	must(!pipe(ends));
	for (char *page = from; page < from + pages * 4096; page += 4096) {
		if (write_to) {
			must(write(ends[1], &byte, 1) == 1);
			if (read(ends[0], page, 1) != 1)
				must(read(ends[0], &byte, 1) == 1);
		} else if (write(ends[1], page, 1) == 1) {
			must(read(ends[0], &byte, 1) == 1);
		}
	}
	close(ends[0]);
	close(ends[1]);
}
""",
    "force_access": """
/* Accesses that pass over what mprotect forbids. */
static void force_access(unsigned long from, long pages, int write)
{
	char byte = 1;
	int fd = open("/proc/self/mem", O_RDWR);

	for (long i = 0; i < pages; i++)
		must((write ? pwrite(fd, &byte, 1, from + i * 4096) : pread(fd, &byte, 1, from + i * 4096)) == 1);
	close(fd);
}
""",
    "cache_pages": """
/* Pages of a file that are in the page cache. */
static void cache_pages(int fd, long first, long pages)
{
	static char page[4096] = { 1 };

	for (long i = first; i < first + pages; i++)
		must(pwrite(fd, page, sizeof page, i * 4096) == sizeof page);
}
""",
    "disk_file": """
/* A file without a name in the current directory. */
static int disk_file(void)
{
	char name[] = "pterefd-XXXXXX";
	int fd = mkstemp(name);

	must(fd >= 0 && !unlink(name));
	return fd;
}
""",
}


class _Writer:
    """Statements of the steps. files: path -> the C variable of its descriptor."""

    def __init__(self, ops: Sequence[Row], sizes: Mapping[str, int], told: Collection[str]) -> None:
        self._told = told
        self._sizes = dict(sizes)
        paths = {op["path"] for op in ops if "path" in op and kind_of_path(op["path"]) >= 0}
        self.files = {path: f"file{number}" for number, path in enumerate(sorted(paths))}
        heaps = [op.get("start", op["addr"]) for op in ops if op["op"] == "brk"]
        self._heap = heaps[0] if heaps else None
        self.root = next(op["pid"] for op in ops if "pid" in op)

    @property
    def has_heap(self) -> bool:
        """Whether the steps use the program's own heap."""
        return self._heap is not None

    def open_files(self) -> Iterator[str]:
        """Declarations of the descriptors, and what makes the files."""
        for path, name in self.files.items():
            kind = kind_of_path(path)
            how = {OBJ_SHMEM: 'memfd_create("file", 0)', OBJ_DEV_ZERO: 'open("/dev/zero", O_RDWR)'}
            yield f"int {name} = {how.get(kind, 'disk_file()')};"
        for path, name in self.files.items():
            kind, size = kind_of_path(path), self._sizes.get(path, 0)
            if kind == OBJ_DEV_ZERO or not size:
                continue
            if kind != OBJ_SHMEM and path not in self._told:
                yield f"cache_pages({name}, 0, {-(-size // PAGE)});"
            yield f"must(!ftruncate({name}, {size}));"

    def place(self, address: int) -> str:
        """An address as C has it."""
        if self._heap is not None and self._heap <= address < self._heap + (1 << 34):
            return f"(heap + {address - self._heap:#x})"
        return f"at({address:#x})"

    def statements(self, op: Row) -> list[str]:
        """What does the operation. BadInput: a program cannot."""
        name = op["op"]
        method = getattr(self, "_" + name, None)
        if method is None:
            raise BadInput(f"a program cannot do {name}")
        calls: list[str] = method(op)
        if op.get("errno") and name not in ("fault", "fork", "exit"):
            return [f"(void)!({call});" for call in calls]  # it fails, and does what it does before
        return [f"must({call});" if name in _CALLS else call + ";" * (call[-1] != "}") for call in calls]

    def _mmap(self, op: Row) -> list[str]:
        words = op["flags"].split(",")
        flags = ["MAP_" + word.upper() for word in words if word != "heap"]
        if "growsdown" in words and "stack" in words:
            flags.remove("MAP_STACK")
        file = self.files.get(op.get("path", ""), "-1") if "anonymous" not in words else "-1"
        if file == "-1" and "MAP_ANONYMOUS" not in flags:
            flags.append("MAP_ANONYMOUS")
        if not op.get("errno"):
            flags.append("MAP_FIXED")
        where = f"{self.place(op['addr'])}, {op['len']:#x}, {_prot(op['prot'])}, {' | '.join(flags)}"
        return [f"mmap({where}, {file}, {op.get('offset', 0) if file != '-1' else 0}) != MAP_FAILED"]

    def _munmap(self, op: Row) -> list[str]:
        return [f"!munmap({self.place(op['addr'])}, {op['len']:#x})"]

    def _mremap(self, op: Row) -> list[str]:
        flags = "0"
        if op.get("dontunmap"):
            flags = "MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP"
        elif op["new_addr"] != op["addr"]:
            flags = "MREMAP_MAYMOVE | MREMAP_FIXED"
        where = f"{self.place(op['addr'])}, {op['len']:#x}, {op['new_len']:#x}, {flags}, {self.place(op['new_addr'])}"
        return [f"mremap({where}) != MAP_FAILED"]

    def _mprotect(self, op: Row) -> list[str]:
        return [f"!mprotect({self.place(op['addr'])}, {op['len']:#x}, {_prot(op['prot'])})"]

    def _brk(self, op: Row) -> list[str]:
        if op["addr"] == op.get("start"):
            return []
        place = self.place(op["addr"])
        return [f"syscall(SYS_brk, {place}) == (long){place}"]

    def _madvise(self, op: Row) -> list[str]:
        advice = op["advice"]
        # a libc may be too old to name these
        number = str(ADVICE_NUMBER[advice]) if advice in NEW_ADVICE else f"MADV_{advice.upper()}"
        return [f"!madvise({self.place(op['addr'])}, {op['len']:#x}, {number})"]

    def _mlock(self, op: Row) -> list[str]:
        return [f"!syscall(SYS_mlock2, {self.place(op['addr'])}, {op['len']:#x}, {int(bool(op.get('onfault')))})"]

    def _munlock(self, op: Row) -> list[str]:
        return [f"!munlock({self.place(op['addr'])}, {op['len']:#x})"]

    def _fault(self, op: Row) -> list[str]:
        pages, write = op.get("len", PAGE) // PAGE, int(op["write"])
        call = "try_access" if op.get("errno") else "access_pages"
        return [f"{call}({self.place(op['addr'])}, {pages}, {write})"]

    def _state(self, op: Row) -> list[str]:
        write = int(op["entry"] in ("anon", "swap"))
        return [f"force_access((unsigned long){self.place(op['addr'])}, {op['len'] // PAGE}, {write})"]

    def _cache(self, op: Row) -> list[str]:
        return [f"cache_pages({self.files[op['path']]}, {op['offset'] // PAGE}, {-(-op['len'] // PAGE)})"]

    def _truncate(self, op: Row) -> list[str]:
        return [f"must(!ftruncate({self.files[op['path']]}, {op['len']}))"]

    def _fork(self, op: Row) -> list[str]:
        if "child" not in op:
            return []
        return [f"if (!fork()) {{ me = {op['child']}; continue; }}"]

    def _exec(self, op: Row) -> list[str]:
        """The first program is this one; another one that nobody forked is a child."""
        return [] if op["pid"] == self.root else [f"if (!fork()) {{ me = {op['pid']}; continue; }}"]

    def _exit(self, op: Row) -> list[str]:
        return [] if op["pid"] == self.root else ["all->turn++", "_exit(0)"]

    def _nothing(self, op: Row) -> list[str]:
        return []

    _thread = _thread_exit = _expect = _swap_out = _mlockall = _munlockall = _mbind = _nothing


_CALLS = frozenset({"mmap", "munmap", "mremap", "mprotect", "brk", "madvise", "mlock", "munlock"})


def _prot(prot: str) -> str:
    words = [
        word for letter, word in zip("rwx", ("PROT_READ", "PROT_WRITE", "PROT_EXEC"), strict=True) if letter in prot
    ]
    return " | ".join(words) or "PROT_NONE"


def source_of(
    ops: Sequence[Row],
    shown: Shown,
    sizes: Mapping[str, int],
    told: Collection[str],
    release: str,
    profile: str,
    name: str,
) -> str:
    """The program. BadInput: a program cannot do one of the operations."""
    writer = _Writer(ops, sizes, told)
    steps = [(op, writer.statements(op)) for op in ops]
    steps = [(op, statements) for op, statements in steps if statements]
    alone = not any(op["op"] in ("fork", "exec") for op, _ in steps)
    body = list(_alone(steps, writer, shown) if alone else _together(steps, writer, shown))
    text = "\n".join(body)
    unit = "" if shown.field == "vmas" else " kB"
    head = HEAD.format(release=release, profile=profile, steps=len(steps), name=name, unit=unit, **shown._asdict())
    parts = [head, READERS["mappings" if shown.field == "vmas" else "status"]]
    parts += [helper for called, helper in HELPERS.items() if f"{called}(" in text]
    verdict = _VERDICT.format(field=shown.field, unit=unit, profile=profile, model=shown.model)
    return "".join(parts) + "\n" + text + verdict


_VERDICT = """
	printf("{field} %+ld{unit}, expected under {profile}: {model:+d}{unit}\\n", grown);
	return grown != {model};
}}
"""


def _opening(writer: _Writer) -> Iterator[str]:
    for line in writer.open_files():
        yield f"\t{line}"
    if writer.has_heap:
        yield "\tchar *heap = (char *)(((unsigned long)sbrk(0) + 4095) & -4096UL);"
        yield ""
        yield "\tmust(!brk(heap));"


def _alone(steps: Sequence[tuple[Row, list[str]]], writer: _Writer, shown: Shown) -> Iterator[str]:
    """One process: the steps in a row."""
    value = SHOWN[shown.field]
    yield "int main(void)\n{"
    yield "\tlong before, grown;"
    yield from _opening(writer)
    yield ""
    yield f"\t{value};  /* once, so that what it needs is there */"
    yield f"\tbefore = {value};"
    for number, (op, statements) in enumerate(steps, 1):
        yield f"\n\t/* {number}: {describe(op)} */"
        yield from (f"\t{statement}" for statement in statements)
    yield f"\n\tgrown = {value} - before;"


def _depth(steps: Sequence[tuple[Row, list[str]]], pid: int) -> int:
    """How many forks lie between the first process and this one."""
    parents = {op["child"]: op["pid"] for op, _ in steps if op["op"] == "fork"}
    depth = 0
    while pid in parents:
        pid, depth = parents[pid], depth + 1
    return depth + any(op["op"] == "exec" and op["pid"] == pid for op, _ in steps)


def _together(steps: Sequence[tuple[Row, list[str]]], writer: _Writer, shown: Shown) -> Iterator[str]:
    """Several processes: each does its own steps when it is their turn."""
    value = SHOWN[shown.field]
    yield "/* What all processes share: whose turn it is, and what was found. */"
    yield "static struct { volatile int turn; volatile long before, grown; } *all;\n"
    yield "/* What a process so many forks away has before the first step. */"
    yield "static long before(int forks)\n{"
    yield "\tif (!forks)\n\t\treturn " + value + ";"
    yield "\tall->turn = 0;"
    yield "\tif (!fork()) {"
    yield "\t\tall->before = before(forks - 1);"
    yield "\t\tall->turn = 1;"
    yield "\t\t_exit(0);"
    yield "\t}"
    yield "\twhile (!all->turn)\n\t\tsched_yield();"
    yield "\treturn all->before;\n}\n"
    yield "int main(void)\n{"
    owners = ", ".join(str(op.get("pid", writer.root) if op["op"] != "exec" else writer.root) for op, _ in steps)
    yield f"\tstatic const int owner[] = {{ {owners} }};"
    yield f"\tint me = {writer.root}, steps = {len(steps)};"
    yield "\tlong grown;"
    yield from _opening(writer)
    yield ""
    yield "\tall = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);"
    yield "\tmust(all != MAP_FAILED);"
    yield f"\tbefore({_depth(steps, shown.pid)});  /* once, so that what it needs is there */"
    yield f"\tall->before = before({_depth(steps, shown.pid)});"
    yield "\tall->turn = 0;"
    yield "\tfor (int step = 0; step < steps; step++) {"
    yield "\t\twhile (all->turn < step)\n\t\t\tsched_yield();"
    yield "\t\tif (owner[step] != me)\n\t\t\tcontinue;"
    yield "\t\tswitch (step) {"
    for number, (op, statements) in enumerate(steps):
        yield f"\t\tcase {number}: /* {describe(op)} */"
        yield from (f"\t\t\t{statement}" for statement in statements)
        if op["op"] != "exit":
            yield "\t\t\tbreak;"
    yield "\t\t}"
    yield "\t\tall->turn = step + 1;"
    yield "\t}"
    yield "\twhile (all->turn < steps)\n\t\tsched_yield();"
    yield f"\tif (me == {shown.pid}) {{"
    yield f"\t\tall->grown = {value} - all->before;"
    yield "\t\tall->turn = steps + 1;"
    yield "\t}"
    yield "\twhile (all->turn <= steps)\n\t\tsched_yield();"
    yield f"\tif (me != {writer.root})\n\t\t_exit(0);"
    yield "\tgrown = all->grown;"
