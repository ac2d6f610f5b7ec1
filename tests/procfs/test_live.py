"""The tree of a live host: whoever asks gets what the kernel's own /proc would tell him, and the numbers of a watch."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pterefd import log, paths
from pterefd.errors import NoSuchMm
from pterefd.live.host import LiveHost
from pterefd.live.match import Match
from pterefd.live.scan import scan
from pterefd.live.watch import Watch
from pterefd.procfs import mountpoint
from pterefd.procfs.live.acting import Credentials
from pterefd.procfs.live.caller import LiveCallers
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.live.root import live_tree
from pterefd.procfs.tree import Tree
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from tests.clients.simulated import public_directory
from tests.live.grower_process import MIB, PAGE, SPAN, Asked, Grower

pytestmark = pytest.mark.mount

CLIENT = Path(__file__).with_name("as_kernel.py").read_text()
NOBODY = 65534
IN_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
# Sleeps as another user, as it is then (changed) or as one that was nobody else before (plain), in a directory of all.
SLEEPER = """
import ctypes, os, sys, time
os.chdir("/")
uid = int(sys.argv[1])
os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
ctypes.CDLL(None).prctl(4, int(sys.argv[2] == "plain"), 0, 0, 0)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Asked]:
    with public_directory() as directory:
        yield from serving(directory / "mnt")


def serving(point: Path, *comms: str) -> Iterator[Asked]:
    """A process that serves the tree at point. comms: as live_mount.py has them."""
    point.mkdir()
    server = Asked([sys.executable, "-m", "tests.procfs.live_mount", str(point), *comms])
    server.mount = point  # type: ignore[attr-defined]
    try:
        assert server.stdout.readline() == "mounted\n"
        yield server
    finally:
        server.communicate(timeout=60)
        if mountpoint.is_ours(str(point)):
            mountpoint.unmount(str(point), detach=True)


@pytest.fixture(scope="module")
def mnt(served: Asked) -> Path:
    return served.mount  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def sleepers() -> Iterator[list[str]]:
    """Pids: of root's, of nobody's, of one who became nobody, of somebody's."""
    started = [
        subprocess.Popen([sys.executable, "-c", SLEEPER, uid, how], stdout=subprocess.PIPE, text=True)
        for uid, how in (("0", "plain"), ("65534", "plain"), ("65534", "changed"), ("1234", "plain"))
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    yield [str(one.pid) for one in started]
    for one in started:
        one.kill()
        one.communicate()


def run(command: list[str | Path], *args: str | Path) -> str:
    """What a program prints."""
    done = subprocess.run([*command, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(*command: str | Path) -> Any:
    """The JSON that it prints."""
    return json.loads(run(list(command)))


# -- as the kernel's -------------------------------------------------------------------------------

WHO = ("root", "weak root", "nobody", "undumpable", "somebody")


@pytest.mark.kernel
@pytest.mark.parametrize("who", WHO)
def test_others_are_what_the_kernels_proc_says_of_them(mnt: Path, sleepers: list[str], who: str) -> None:
    """errno, mode, owner and content of each file of sleeping processes and of a kernel thread, for this caller."""
    found = said(sys.executable, "-c", CLIENT, who, mnt, "/proc", *sleepers, "2")
    assert found["differences"] == []
    assert found["answers"]["file"] > 300
    if who != "root":
        assert found["answers"]["EACCES"] > 30


@pytest.mark.kernel
@pytest.mark.parametrize("who", WHO)
def test_a_process_finds_itself_as_the_kernel_shows_it(mnt: Path, who: str) -> None:
    """But for what tells that it waits for the mount, and for pipes, which lead to the kernel's own links; a directory
    that it does not own, and is let into, has another mode.
    """
    found = said(sys.executable, "-c", CLIENT, who, mnt, "/proc", "self")
    left = [
        difference
        for path, (sort, ours), (_, kernels) in found["differences"]
        if (difference := (path.split("/", 1)[-1], sort, ours, kernels))
        and Path(path).name not in ("wchan", "stack", "syscall")
        and not (sort == "link" and "hostproc" in str(ours[-1]))
        and not (sort == "directory" and ours[1:3] == kernels[1:3] and who == "undumpable")
    ]
    assert left == []


@pytest.mark.kernel
@pytest.mark.parametrize("who", ["root", "nobody"])
def test_in_a_pid_namespace_it_is_what_that_ones_proc_says(mnt: Path, who: str) -> None:
    """The names, the numbers in the files, and who is not seen."""
    program = (
        "import json, os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "while open(f'/proc/{child.pid}/comm').read() != 'sleep\\n': pass\n"
        "mnt = sys.argv[3]\n"
        "numbers = [sorted(n for n in os.listdir(p) if n.isdecimal()) for p in (mnt, '/proc')]\n"
        "texts = [[open(f'{p}/{child.pid}/{n}').read() for n in ('stat', 'status')] for p in (mnt, '/proc')]\n"
        "selves = [os.readlink(f'{p}/self') for p in (mnt, '/proc')]\n"
        "command = [sys.executable, '-c', *sys.argv[1:], str(child.pid)]\n"
        "client = subprocess.run(command, capture_output=True, text=True)\n"
        "child.kill()\n"
        "print(json.dumps([numbers, texts, selves, json.loads(client.stdout)]))\n"
    )
    numbers, texts, selves, found = said(*IN_NAMESPACE, sys.executable, "-c", program, CLIENT, who, mnt, "/proc")
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 2
    assert texts[0] == texts[1]
    assert selves[0] == selves[1] == "1"
    assert found["differences"] == []


def test_rights_in_a_user_namespace_are_none_here(mnt: Path, sleepers: list[str]) -> None:
    """It has every capability there."""
    program = CLIENT.replace(
        'if __name__ == "__main__":',
        'become("root of a user namespace")\n'
        "print(json.dumps([answer(lambda: os.open(sys.argv[1] + p, os.O_RDONLY)) for p in sys.argv[2:]]))\nif 0:",
    )
    root, _, changed, somebody = sleepers
    others = [f"/{pid}/{name}" for pid in (root, changed, somebody) for name in ("environ", "maps", "fd")]
    assert said(sys.executable, "-c", program, mnt, *others) == ["EACCES"] * len(others)


def test_a_descriptor_that_is_handed_on_is_read_by_who_reads(mnt: Path, sleepers: list[str]) -> None:
    """io is checked when it is read, maps when it is opened, as the kernel does."""
    program = (
        "import json, os, sys\n"
        "paths = [f'{p}/{sys.argv[2]}/{n}' for p in (sys.argv[1], '/proc') for n in ('io', 'maps')]\n"
        "fds = [os.open(path, os.O_RDONLY) for path in paths]\n"
        "os.setgroups([]), os.setgid(1234), os.setuid(1234)\n"
        "def read(fd):\n"
        "    try:\n"
        "        return len(os.pread(fd, 100, 0)) > 0\n"
        "    except OSError as e:\n"
        "        return os.strerror(e.errno)\n"
        "print(json.dumps([read(fd) for fd in fds]))"
    )
    answers = said(sys.executable, "-c", program, mnt, sleepers[0])
    assert answers[:2] == answers[2:] == ["Permission denied", True]


def test_what_was_opened_of_a_process_that_has_ended_is_gone(mnt: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process, open(mnt / str(process.pid) / "statm") as file:
        process.kill()
        process.wait()
        with pytest.raises(ProcessLookupError):
            file.read()
        assert not (mnt / str(process.pid)).exists()


# -- the machine -----------------------------------------------------------------------------------


def test_the_machines_files_are_the_kernels(mnt: Path) -> None:
    for name in ("version", "filesystems", "swaps", "sys/vm/swappiness", "sys/kernel/osrelease", "sys/kernel/pid_max"):
        assert (mnt / name).read_text() == Path("/proc", name).read_text(), name
    assert (mnt / "meminfo").read_text().split()[1] == Path("/proc/meminfo").read_text().split()[1]
    assert {"free_ptes", "pt_reclaim"} == set(os.listdir(mnt / "sys/vm")) - set(os.listdir("/proc/sys/vm"))


@pytest.mark.parametrize("name", ["sys/vm/swappiness", "sys/vm/drop_caches", "self/comm", "self/oom_score_adj"])
def test_the_kernels_own_are_not_written(mnt: Path, name: str) -> None:
    """By root neither, also where only truncated."""
    for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
        with pytest.raises(PermissionError):
            os.close(os.open(mnt / name, flags))


# -- freeing ---------------------------------------------------------------------------------------


# Empties 32 PTE pages, and asks to have its own freed until its standard input ends; it must have been looked at.
EMPTIED = """
import mmap, os, select, sys
memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 64 << 20, 2 << 20):
    memory[at] = 1
    memory.madvise(mmap.MADV_DONTNEED, at, 4096)
while not select.select([0], [], [], 0.1)[0]:
    try:
        open(sys.argv[1] + "/sys/vm/free_ptes", "wb", 0).write(b"1")
    except ProcessLookupError:
        pass
"""


def test_a_pid_that_is_written_is_read_in_the_writers_namespace(served: Asked, mnt: Path) -> None:
    """It is 1 there; who that is here, what frees is told."""
    command = [*IN_NAMESPACE, sys.executable, "-c", EMPTIED, str(mnt)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        told = json.loads(served.stdout.readline())["free"] if select.select([served.stdout], [], [], 60)[0] else None
        text = Path(f"/proc/{told}/status").read_text()
        process.communicate(timeout=60)
    assert text.split("NSpid:")[1].split()[:2] == [str(told), "1"]


def test_a_pid_that_is_none_there_is_no_process(mnt: Path, sleepers: list[str]) -> None:
    program = (
        "import sys\n"
        "try:\n"
        "    open(sys.argv[1] + '/sys/vm/free_ptes', 'wb', 0).write(sys.argv[2].encode())\n"
        "except OSError as e:\n"
        "    print(e.errno)"
    )
    assert run([*IN_NAMESPACE, sys.executable, "-c", program], mnt, sleepers[0]) == "3\n"


# -- what a watch knows ----------------------------------------------------------------------------


@pytest.fixture
def grower() -> Iterator[Grower]:
    """Has empty PTE pages and one zero PTE page."""
    one = Grower()
    one.do("touch", 0, 8 * SPAN // PAGE, 1)
    for offset in range(0, 8 * SPAN, MIB):
        one.process.ask(f"advise {one.arena + offset} {MIB} 4")
    one.do("read", 16 * SPAN, SPAN // PAGE, 1)
    yield one
    one.end()


def tree(host: LiveHost, context: tuple[int, int, int]) -> Tree:
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    return live_tree(LiveFaces(host, Reclaimer(host, plugins, log.get()), LiveCallers(lambda: context)))


def read(tree: Tree, path: str) -> str:
    opened = tree.open(path, os.O_RDONLY)
    try:
        return opened.read(1 << 20, 0).decode()
    finally:
        opened.close()


def test_numbers_are_those_of_the_last_scan(grower: Grower) -> None:
    host = LiveHost(Watch(1.0, Match(pids=frozenset({grower.pid}))))
    host.look()
    it, seen = tree(host, (0, 0, os.getpid())), scan(grower.pid)
    assert seen is not None
    assert seen.use.empty >= 8 * PAGE
    assert seen.use.zero == PAGE
    assert read(it, f"/{grower.pid}/reclaimable_pt_bytes") == f"{seen.use.reclaimable}\n"
    names = {"pgtables": "vm_pte", "empty": "empty", "zero": "zero", "mixed": "mixed", "unlocated": "unseen"}
    for name, field in names.items():
        assert read(it, f"/{grower.pid}/pt_reclaim/{name}_bytes") == f"{getattr(seen.use, field)}\n", name
    assert int(read(it, f"/{grower.pid}/pt_reclaim/age_ms")) >= 0
    assert read(it, f"/{grower.pid}/pt_reclaim/not_seen") == "\n"


def test_before_a_scan_there_are_no_numbers(grower: Grower) -> None:
    host = LiveHost(Watch(0.0, Match(pids=frozenset({grower.pid}))))
    host.look()
    it = tree(host, (0, 0, os.getpid()))
    assert int(read(it, f"/{grower.pid}/pt_reclaim/pgtables_bytes")) > 0
    with pytest.raises(OSError, match="No data"):
        read(it, f"/{grower.pid}/reclaimable_pt_bytes")


def test_numbers_are_for_who_may_open_pagemap(mnt: Path, grower: Grower) -> None:
    path = mnt / str(grower.pid) / "reclaimable_pt_bytes"
    deadline = time.monotonic() + 60
    while True:
        try:
            assert int(path.read_text()) > 0
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    program = "import os, sys; os.setgid(65534); os.setuid(65534); os.access(sys.argv[1], 0); open(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert "PermissionError" in done.stderr


def test_those_that_match_are_listed_and_whoever_asks_is_found(grower: Grower) -> None:
    host = LiveHost(Watch(1.0, Match(pids=frozenset({grower.pid}))))
    host.look()
    it = tree(host, (0, 0, os.getpid()))
    assert [name for name, _ in it.listing("/") if name.isdecimal()] == [str(grower.pid)]
    assert read(it, f"/{os.getpid()}/comm") == Path("/proc/self/comm").read_text()
    with pytest.raises(FileNotFoundError):
        read(it, f"/{os.getppid()}/comm")


def test_who_cannot_be_seen_gets_the_machines_files_alone() -> None:
    it = tree(LiveHost(), (NOBODY, NOBODY, 0))
    assert [name for name, _ in it.listing("/") if name.isdecimal()] == []
    for path in ("/self", "/thread-self"):
        with pytest.raises(FileNotFoundError):
            it.readlink(path)
    with pytest.raises(FileNotFoundError):
        it.find("/1/status")
    assert read(it, "/version") == Path("/proc/version").read_text()
    with pytest.raises(NoSuchMm):
        it.open("/sys/vm/free_ptes", os.O_WRONLY).write(b"1", 0)


# -- acting ----------------------------------------------------------------------------------------


def own_credentials() -> list[str]:
    keys = ("Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:")
    return [line for line in Path("/proc/thread-self/status").read_text().splitlines() if line.startswith(keys)]


def test_a_thread_is_itself_again_whatever_happened() -> None:
    callers = LiveCallers(lambda: (0, 0, os.getpid()))
    before = own_credentials()
    other = Credentials(NOBODY, NOBODY - 1, (5, 7), 1 << 19)
    with callers.actor.acting(other):
        within = own_credentials()
        with pytest.raises(PermissionError):
            os.open("/proc/1/environ", os.O_RDONLY)
    assert own_credentials() == before
    assert within[0].split()[1:] == ["0", "0", "0", str(NOBODY)]
    assert within[1].split()[1:] == ["0", "0", "0", str(NOBODY - 1)]
    assert within[2].split()[1:] == ["5", "7"]
    assert int(within[4].split()[1], 16) == 1 << 19
    with pytest.raises(ZeroDivisionError), callers.actor.acting(other):
        raise ZeroDivisionError
    assert own_credentials() == before


def test_a_thread_id_that_is_anothers_by_now_gives_no_rights() -> None:
    """Nobody's request, of a thread that has ended and whose number root's has: this one."""
    caller = LiveCallers(lambda: (NOBODY, NOBODY, os.getpid())).caller()
    assert caller.own is None
    assert caller.credentials == Credentials(NOBODY, NOBODY)
