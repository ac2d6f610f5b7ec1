"""Files of one process: fields where the kernel has them, sums that agree, a walk that is told as it is."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest

from pterefd.errors import NoSuchMm
from pterefd.host.memory import Memory
from pterefd.procfs.root import proc_tree
from pterefd.procfs.stat import exe
from pterefd.procfs.tree import Tree
from tests.build import run
from tests.house import AT, MIB, SPAN, Event, exec_, fault, house, mmap, spans

STACK = 0x7FFF00000000
PAGE = 4096


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return proc_tree(house(tmp_path).faces)


def read(tree: Tree, path: str) -> str:
    return tree.open(path, os.O_RDONLY).read(1 << 24, 0).decode()


def numbers(text: str) -> dict[str, int]:
    """Key -> number of lines such as `Rss:  12 kB`; where a key comes again they are added."""
    found: dict[str, int] = {}
    for key, value in re.findall(r"^(\w+): +(\d+)(?: kB)?$", text, re.MULTILINE):
        found[key] = found.get(key, 0) + int(value)
    return found


# -- stat, statm ----------------------------------------------------------------------------------


def test_stat_has_the_kernels_fields(tmp_path: Path) -> None:
    events: list[Event] = [
        exec_(5, "a) (b", uid=1),
        mmap(5, STACK - MIB, MIB, flags="private,anonymous,growsdown,stack"),
        mmap(5, AT, SPAN),
        fault(5, AT, 10 * PAGE, write=True),
        {"op": "thread", "pid": 5, "tid": 8},
    ]
    tree = proc_tree(house(tmp_path, [{"t": 2_500_000_000, **event} for event in events]).faces)
    for path, tid, signal in (("/5/stat", 5, 17), ("/5/task/5/stat", 5, 17), ("/5/task/8/stat", 8, -1)):
        text = read(tree, path)
        assert text.startswith(f"{tid} (a) (b) S 0 5 5 ")
        fields = text.rpartition(") ")[2].split()  # from field 3 on
        assert len(fields) == 50
        assert len(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()) == 50
        field = dict(enumerate(fields, 3))
        assert (field[10], field[12]) == ("10", "0")  # minflt, majflt
        assert field[20] == "2"  # threads
        assert field[22] == "250"  # starttime, ticks
        assert (field[23], field[24]) == (str(MIB + SPAN), "10")  # vsize in bytes, rss in pages
        assert STACK - MIB <= int(field[28]) <= STACK  # startstack, by which pmap knows the stack
        assert int(field[38]) == signal


def test_statm(tree: Tree) -> None:
    total, resident, shared, text, lib, data, dirty = map(int, read(tree, "/1/statm").split())
    assert (total, resident) == ((11 * SPAN + 8192) // PAGE, 3 * 512)
    assert (shared, text, lib, data, dirty) == (0, 2, 0, 11 * 512, 0)


def test_links(tree: Tree) -> None:
    assert tree.readlink("/1/exe") == "/usr/bin/redis-server"
    assert (tree.readlink("/1/cwd"), tree.readlink("/1/root"), tree.readlink("/7/exe")) == ("/", "/", "/")


@pytest.mark.parametrize("where", ["", "/task/{}"])
def test_modes_are_the_kernels(tree: Tree, where: str) -> None:
    ours = dict(tree.listing("/1" + where.format(1)))
    theirs = {path.name: path.lstat().st_mode for path in Path("/proc/self", where[1:].format(os.getpid())).iterdir()}
    both = ours.keys() & theirs.keys()
    assert {name: oct(ours[name]) for name in both} == {name: oct(theirs[name]) for name in both}
    assert ours.keys() - both <= {"pte_pages", "reclaimable_pt_bytes", "pt_reclaim"}


def test_lines_are_the_kernels(tree: Tree) -> None:
    """The same keys in the same order as /proc/self has, each line as wide."""
    for name in ("io", "limits"):
        ours, theirs = read(tree, f"/1/{name}"), Path(f"/proc/self/{name}").read_text()
        keys = [re.match(r"(\D+?)(?:: | {2})", line) for line in theirs.splitlines()]
        assert [line[: m.end()] for line, m in zip(ours.splitlines(), keys, strict=True) if m] == [
            m[0] for m in keys if m
        ]
    for name in ("smaps", "smaps_rollup"):
        theirs = Path(f"/proc/self/{name}").read_text()
        wanted = list(dict.fromkeys(re.findall(r"^(\w+): +\d+(?: kB)?$", theirs, re.MULTILINE)))
        found = list(dict.fromkeys(re.findall(r"^(\w+): +\d+(?: kB)?$", read(tree, f"/1/{name}"), re.MULTILINE)))
        assert [key for key in found if key != "Reclaimable_PT"] == [key for key in wanted if key != "ProtectionKey"]
        sized = re.search(r"^Rss: .*$", theirs, re.MULTILINE)
        assert sized is not None
        line = re.search(r"^Rss: .*$", read(tree, f"/1/{name}"), re.MULTILINE)
        assert line is not None
        assert len(line[0]) == len(sized[0])


# -- smaps ----------------------------------------------------------------------------------------


def test_smaps_sum_up_to_status(tree: Tree) -> None:
    for pid in (1, 2, 7):
        each, rollup, status = (numbers(read(tree, f"/{pid}/{name}")) for name in ("smaps", "smaps_rollup", "status"))
        if pid != 2:  # an mm without mappings has neither
            assert {key: each[key] for key in rollup if key in each} == {k: v for k, v in rollup.items() if k in each}
            assert rollup["Anonymous"] == numbers(read(tree, f"/{pid}/status").replace("\t", " "))["RssAnon"]
            assert rollup["Reclaimable_PT"] << 10 == int(read(tree, f"/{pid}/reclaimable_pt_bytes"))
        assert status is not None


def test_pages_that_fork_shares_are_shared_out(tmp_path: Path) -> None:
    """Three processes map 100 pages, one has written 40 of its own since; 7 pages of a file are all of theirs."""
    events: list[Event] = [
        *(exec_(1, "one"), mmap(1, AT, SPAN), fault(1, AT, 100 * PAGE, write=True)),
        mmap(1, 0x400000, 7 * PAGE, prot="r--", flags="private", path="/lib/x", offset=0, file_size=7 * PAGE),
        fault(1, 0x400000, 7 * PAGE, write=False),
        *({"op": "fork", "pid": 1, "child": child} for child in (2, 3)),
        fault(3, AT, 40 * PAGE, write=True),
        *(fault(pid, 0x400000, 7 * PAGE, write=False) for pid in (2, 3)),
    ]
    tree = proc_tree(house(tmp_path, events, Memory(1 << 30)).faces)
    one, two, three = (numbers(read(tree, f"/{pid}/smaps_rollup")) for pid in (1, 2, 3))
    # 40 pages of two, 60 of three: each page's part is rounded down, to 1/4096 byte
    assert (one["Pss_Anon"], two["Pss_Anon"]) == (159, 159)
    assert three["Pss_Anon"] == 160 + 80 - 1
    assert (one["Shared_Dirty"], one["Private_Dirty"]) == (400, 0)
    assert (three["Shared_Dirty"], three["Private_Dirty"]) == (240, 160)
    assert [mm["Pss_File"] for mm in (one, two, three)] == [7 * PAGE // 3 >> 10] * 3
    assert [mm["Shared_Clean"] for mm in (one, two, three)] == [28] * 3
    write = tree.open("/1/oom_score_adj", os.O_WRONLY)
    assert write.write(b"0", 0) == 1  # nothing has changed: the counts are kept
    assert numbers(read(tree, "/1/smaps_rollup")) == one


PROT_BITS = {"r": 1, "w": 2, "x": 4}
MAP_BITS = {"shared": 1, "private": 2, "anonymous": 0x20, "growsdown": 0x100, "noreserve": 0x4000}
MAPPINGS = (
    *(("---", "private,anonymous"), ("---", "private,anonymous,noreserve"), ("r--", "private,anonymous")),
    *(("rw-", "private,anonymous"), ("rw-", "private,anonymous,noreserve"), ("r-x", "private,anonymous")),
    *(("rw-", "private,anonymous,growsdown"), ("rw-", "shared,anonymous"), ("---", "shared,anonymous")),
    *(("r-x", "private"), ("rw-", "private"), ("rw-", "shared")),
)


def vm_flags(text: str) -> dict[int, str]:
    """The line of each mapping of smaps, by its start."""
    return {int(start, 16): line for start, line in re.findall(r"^([0-9a-f]+)-.*?^VmFlags: (.*?)$", text, re.M | re.S)}


@pytest.mark.kernel
def test_vm_flags_are_the_kernels(tmp_path: Path) -> None:
    """The same mappings here and on a host, those of no access among them."""
    libc = ctypes.CDLL(None)
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    path = tmp_path / "file"
    path.write_bytes(bytes(SPAN))
    file = os.open(path, os.O_RDWR)
    events: list[Event] = [exec_(1, "one")]
    starts = []
    for number, (prot, flags) in enumerate(MAPPINGS):
        bits = sum(MAP_BITS[flag] for flag in flags.split(",")) | 0x100000  # MAP_FIXED_NOREPLACE
        access = sum(PROT_BITS.get(letter, 0) for letter in prot)
        at = libc.mmap(0x10_0000_0000 + number * (1 << 30), SPAN, access, bits, file if "anon" not in flags else -1, 0)
        of_file = {} if "anonymous" in flags else {"path": str(path), "offset": 0, "file_size": SPAN}
        events.append(mmap(1, at, SPAN, prot=prot, flags=flags, **of_file))
        starts.append(at)
    try:
        theirs = vm_flags(Path("/proc/self/smaps").read_text())
    finally:
        for at in starts:
            libc.munmap(at, SPAN)
        os.close(file)
    ours = vm_flags(read(proc_tree(house(tmp_path, events).faces), "/1/smaps"))
    assert [ours[at] for at in starts] == [theirs[at] for at in starts]


@pytest.mark.kernel
def test_the_kernels_own_mappings_are_shown_as_it_shows_them(tmp_path: Path) -> None:
    """As a recording has them: they are of no file, so their offset reads as 0."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    special = {line[-1]: line for line in lines if line[-1].startswith(("[vvar", "[vdso"))}
    events: list[Event] = [exec_(1, "one")]
    for name, (where, prot, *_) in special.items():
        start, end = (int(part, 16) for part in where.split("-"))
        events.append(mmap(1, start, end - start, prot=prot[:3], path=name))
    tree = proc_tree(house(tmp_path, events).faces)
    assert [line.split() for line in read(tree, "/1/maps").splitlines()] == list(special.values())
    theirs = vm_flags(Path("/proc/self/smaps").read_text())
    assert vm_flags(read(tree, "/1/smaps")).items() <= theirs.items()


# -- pte_pages ------------------------------------------------------------------------------------


def test_pte_pages_are_those_of_the_trace(tree: Tree) -> None:
    assert read(tree, "/1/pte_pages").splitlines() == [
        f"{AT:08x}-{AT + 3 * SPAN:08x} 3 512 0 data",
        f"{AT + 3 * SPAN:08x}-{AT + 5 * SPAN:08x} 2 512 512 zero",
        f"{AT + 5 * SPAN:08x}-{AT + 10 * SPAN:08x} 5 0 0 empty",
    ]


def test_pte_pages_of_many_runs_are_streamed(tmp_path: Path) -> None:
    """More runs than one part holds; read in pieces of all sizes, and again from the middle."""
    count = 9000
    events: list[Event] = [
        *(exec_(1, "holes"), mmap(1, AT, 2 * count * SPAN)),
        *(fault(1, AT + 2 * i * SPAN, (1 + i % 3) * PAGE, write=True) for i in range(count)),
    ]
    tree = proc_tree(house(tmp_path, events).faces)
    wanted = "".join(
        f"{AT + 2 * i * SPAN:08x}-{AT + (2 * i + 1) * SPAN:08x} 1 {1 + i % 3} 0 data\n" for i in range(count)
    ).encode()
    for size in (1000, 65536, 1 << 24):
        opened, got = tree.open("/1/pte_pages", os.O_RDONLY), b""
        while part := opened.read(size, len(got)):
            got += part
        assert got == wanted
    opened = tree.open("/1/pte_pages", os.O_RDONLY)
    assert opened.read(50, 300_000) == wanted[300_000:300_050]
    assert opened.read(50, 17) == wanted[17:67]
    assert opened.read(50, len(wanted) + 5) == b""


def test_an_mm_that_ends_under_a_walk(tmp_path: Path) -> None:
    here = house(tmp_path, [*spans(1, full=1, zero=1, empty=1), *spans(4, full=1, zero=0, empty=0)])
    opened = proc_tree(here.faces).open("/4/pte_pages", os.O_RDONLY)
    here.host.take_away(4)
    with pytest.raises(NoSuchMm):
        opened.read(100, 0)


# -- a pid that comes again -----------------------------------------------------------------------


def test_an_open_file_stays_that_processes_own(tmp_path: Path) -> None:
    """The kernel keeps struct pid: ESRCH once the process is gone, whoever has its number now. exec changes nothing."""
    built = house(tmp_path, [exec_(1, "parent"), {"op": "fork", "pid": 1, "child": 2}])
    tree = proc_tree(built.faces)
    files = {path: tree.open(f"/2/{path}", os.O_RDWR) for path in ("oom_score_adj", "comm", "status", "task/2/stat")}
    run(built.host, ("exec", 2, 0, 0, {"comm": "same"}))
    assert files["comm"].read(100, 0) == b"same\n"
    run(built.host, ("exit", 2), ("fork", 1, 0, 0, 2))
    assert read(tree, "/2/comm") == "parent\n"
    for opened in files.values():
        with pytest.raises(ProcessLookupError):
            opened.read(100, 0)
    with pytest.raises(ProcessLookupError):
        files["oom_score_adj"].write(b"-1000", 0)
    assert read(tree, "/2/oom_score_adj") == "0\n"


def test_the_program_of_a_process_that_is_gone_is_not_there(tmp_path: Path) -> None:
    """proc_exe_link answers ENOENT, where other files say ESRCH."""
    faces = house(tmp_path, [exec_(1, "parent")]).faces
    assert exe(faces, 1) == "/"
    with pytest.raises(FileNotFoundError):
        exe(faces, 2)
