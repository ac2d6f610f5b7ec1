"""The caller's own directory: who finds whom under which number, and that it says what the kernel's own /proc says.

The processes that ask are real ones; those in a pid namespace of their own have the kernel's /proc mounted there to
compare with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.caller import Callers, NsIds, nobody
from pterefd.procfs.mount import Mount
from pterefd.procfs.own import OWN_DIRECTORY
from pterefd.procfs.pid import PID
from pterefd.procfs.root import proc_tree
from pterefd.procfs.tree import Dir, mode_of
from tests.house import House, exec_, house

pytestmark = pytest.mark.mount

# A simulated process of the number that init has in a pid namespace of its own, and one more.
EVENTS = [exec_(1, "simulated", uid=33), exec_(7, "seven", uid=33)]
IN_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]


@pytest.fixture
def here(tmp_path: Path) -> House:
    return house(tmp_path, EVENTS)


@pytest.fixture
def mnt(here: House, point: Path) -> Iterator[Path]:
    """A mount that knows who asks, for all users."""
    binding = fuse_impl.load()
    here.faces.callers = Callers(binding.caller)
    mountpoint.prepare(str(point))
    mount = Mount(proc_tree(here.faces), str(point), binding, allow_other=True)
    mount.start()
    yield point
    mount.stop()


def run(command: list[str | Path], *args: str | Path) -> str:
    """What a program prints."""
    done = subprocess.run([*command, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(program: str, *args: str | Path) -> Any:
    """The JSON that a Python program prints; it has `os`, `Path` and its arguments as `argv`."""
    begin = "import json, os, sys, threading\nfrom pathlib import Path\nargv = sys.argv[1:]\n"
    return json.loads(run([sys.executable, "-c", begin + program], *args))


# -- who is who ------------------------------------------------------------------------------------


def test_self_is_the_process_that_asks(mnt: Path) -> None:
    said = asked(
        "m = Path(argv[0])\n"
        "print(json.dumps([os.getpid(), os.readlink(m / 'self'), os.readlink(m / 'thread-self'),"
        " (m / 'self/comm').read_text(), (m / str(os.getpid()) / 'stat').read_text().split()[0]]))",
        mnt,
    )
    pid = said[0]
    assert said[1:] == [str(pid), f"{pid}/task/{pid}", f"{Path(sys.executable).name}\n", str(pid)]


def test_it_is_found_and_never_listed(mnt: Path) -> None:
    program = "print(json.dumps([os.getpid(), os.listdir(argv[0]), os.path.isdir(f'{argv[0]}/{os.getpid()}')]))"
    pid, listed, found = asked(program, mnt)
    assert found
    assert {name for name in listed if name.isdecimal()} == {"1", "7"}
    assert str(pid) not in listed
    assert not (mnt / str(os.getppid())).exists()


def test_a_number_is_its_own_process_and_for_all_others_the_simulated_one(mnt: Path) -> None:
    """sh is pid 1 of its namespace; cat, which it starts, is not."""
    text = run(
        [*IN_NAMESPACE, "sh", "-c", 'read own < "$1/1/comm"; echo "$own"; cat "$1/1/comm" "$1/7/comm"', "sh"], mnt
    )
    assert text.split() == ["sh", "simulated", "seven"]


def test_the_owner_of_a_number_is_the_same_for_all(mnt: Path) -> None:
    """The kernel remembers it by path, not by who asks."""
    text = run([*IN_NAMESPACE, "python3", "-c", "import os, sys; print(os.stat(sys.argv[1]).st_uid)"], mnt / "1")
    assert int(text) == os.stat(mnt / "1").st_uid == 33


def test_who_cannot_be_seen_is_led_to_the_lowest_pid(here: House) -> None:
    here.faces.callers = Callers(nobody)
    tree = proc_tree(here.faces)
    assert (tree.readlink("/self"), tree.readlink("/thread-self")) == ("1", "1/task/1")
    assert tree.readlink("/mounts") == "self/mounts"


def test_a_proc_of_another_namespace_is_not_believed(here: House, tmp_path: Path) -> None:
    """Its numbers are not those that FUSE gives."""
    (tmp_path / "self").symlink_to("1")
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    assert Callers(lambda: (0, 0, os.getpid()), str(tmp_path)).own() is None
    (tmp_path / "self").unlink()
    (tmp_path / "self").symlink_to(str(os.getpid()))
    own = Callers(lambda: (0, 0, os.getpid()), str(tmp_path)).own()
    assert own is not None
    assert own.number == os.getpid()


def test_a_kernel_without_pid_namespaces_has_one() -> None:
    text = Path("/proc/thread-self/status").read_bytes()
    plain = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"NS"))
    assert plain != text
    ids = NsIds.of(text)
    assert (NsIds.of(plain).tgid, NsIds.of(plain).pid) == (ids.tgid[-1:], ids.pid[-1:])


# -- what it says ----------------------------------------------------------------------------------

# SigQ counts those of all processes of the user.
SAME = """
CHANGING = ('Vm', 'Rss', 'SigQ')
m = [Path(argv[0]), Path('/proc')]
me = os.getpid()
def status(p):
    rows = dict(line.split(':', 1) for line in (p / 'status').read_text().splitlines())
    return {key: value for key, value in rows.items() if 'ctxt' not in key and not key.startswith(CHANGING)}
def stat(p):
    fields = (p / 'stat').read_text().rpartition(')')[2].split()
    return [int((p / 'stat').read_text().split()[0]), *fields[:7], fields[17], fields[19]]
def both(f, name):
    return [f(p / name) for p in m]
out = {}
started, ending = threading.Event(), threading.Event()
thread = threading.Thread(target=lambda: (started.set(), ending.wait()))
thread.start(); started.wait()
for name in ['self', 'thread-self', str(me)]:
    out[f'{name} status'] = both(status, name)
    out[f'{name} stat'] = both(stat, name)
for name in ['comm', 'cmdline', 'environ', 'limits', 'cgroup', 'mounts', 'mountinfo', 'oom_score_adj']:
    out[name] = both(Path.read_text, f'self/{name}')
for name in ['exe', 'cwd', 'root', 'ns/pid']:
    out[name] = both(os.readlink, f'self/{name}')
out['task'] = both(lambda p: sorted(os.listdir(p)), 'self/task')
out['tids'] = both(lambda p: [stat(t)[0] for t in sorted(p.iterdir())], 'self/task')
out['fd 1'] = both(os.readlink, 'self/fd/1')
out['maps'] = both(lambda p: [line.split()[5:] for line in p.read_text().splitlines() if '/' in line], 'self/maps')
ending.set()
print(json.dumps(out))
"""


@pytest.mark.parametrize("within", [(), (*IN_NAMESPACE,), (*IN_NAMESPACE, "sh", "-c", '"$@"; true', "sh")])
def test_it_says_what_the_kernels_proc_says(mnt: Path, within: tuple[str, ...], tmp_path: Path) -> None:
    """In the daemon's pid namespace, as pid 1 of another, and as a child of that one's."""
    with (tmp_path / "out").open("w") as out:
        begin = "import json, os, sys, threading\nfrom pathlib import Path\nargv = sys.argv[1:]\n"
        command = [*within, sys.executable, "-c", begin + SAME, str(mnt)]
        assert subprocess.run(command, stdout=out, timeout=60).returncode == 0
    said = json.loads((tmp_path / "out").read_text())
    for name, (ours, kernels) in said.items():
        assert ours == kernels, name
    assert said["self stat"][0][0] == (1 if within == (*IN_NAMESPACE,) else said["self stat"][1][0])
    assert len(said["task"][0]) == 2
    assert said["fd 1"][0] == str(tmp_path / "out")


def test_numbers_of_memory_are_the_real_ones(mnt: Path) -> None:
    """Two hundred megabytes that a process has are seen by it in each of its files."""
    said = asked(
        "held = b'x' * (200 << 20)\n"
        "s = Path(argv[0]) / 'self'\n"
        "def kb(name, key):\n"
        "    return sum(int(line.split()[1]) for line in (s / name).read_text().splitlines() if line.startswith(key))\n"
        "print(json.dumps([kb('status', 'VmRSS:'), kb('smaps', 'Rss:'), kb('smaps_rollup', 'Rss:'),"
        " int((s / 'statm').read_text().split()[1]) * 4]))",
        mnt,
    )
    assert all(200 << 10 <= kib < 300 << 10 for kib in said)


def test_a_pipe_is_led_to_the_kernels_own_link(mnt: Path) -> None:
    target = run(["readlink", mnt / "self/fd/1"]).strip()
    assert target == "../../hostproc/self/fd/1"
    assert os.listdir(mnt / "hostproc") == []
    assert "hostproc" not in os.listdir(mnt)


def test_a_daemon_of_another_user_leads_to_the_kernels_own_links() -> None:
    """It may not read whose descriptors these are; who asks may."""
    program = (
        "from types import SimpleNamespace\n"
        "from pterefd.procfs.caller import Callers\n"
        "from pterefd.procfs.own import OWN\n"
        "from pterefd.procfs.tree import Dir, Tree\n"
        "asks = int(argv[0])\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "callers = Callers(lambda: (0, 0, asks))\n"
        "tree = Tree(Dir('', OWN), SimpleNamespace(callers=callers))\n"
        "stat = tree.open(f'/{asks}/stat', os.O_RDONLY).read(4096, 0).decode()\n"
        "print(json.dumps([tree.readlink(f'/{asks}/fd/0'), int(stat.split()[0]) == asks]))"
    )
    assert asked(program, str(os.getpid())) == ["../../hostproc/self/fd/0", True]


# -- who may read ----------------------------------------------------------------------------------


def test_a_descriptor_that_another_process_was_given_reads_nothing(mnt: Path) -> None:
    program = (
        "fd = os.open(f'{argv[0]}/self/maps', os.O_RDONLY)\n"
        "mine = len(os.read(fd, 100))\n"
        "read, write = os.pipe()\n"
        "if not os.fork():\n"
        "    try:\n"
        "        said = os.pread(fd, 100, 0)\n"
        "    except OSError as e:\n"
        "        said = os.strerror(e.errno).encode()\n"
        "    os.write(write, said)\n"
        "    os._exit(0)\n"
        "print(json.dumps([mine, os.read(read, 100).decode()]))"
    )
    assert asked(program, mnt) == [100, "Permission denied"]


@pytest.mark.kernel
def test_what_a_process_hides_from_its_user_it_does_not_see_here_either(mnt: Path) -> None:
    """One that may not be dumped: root owns its files in /proc, and environ and io are for their owner alone."""
    program = (
        "import ctypes\n"
        "os.chdir(argv[0])\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "def answer(path):\n"
        "    try:\n"
        "        return len(path.read_bytes()) > 0 if path.name != 'fd' else len(os.listdir(path)) > 0\n"
        "    except OSError as e:\n"
        "        return os.strerror(e.errno)\n"
        "names = ['environ', 'io', 'fd', 'status', 'maps', 'smaps', 'limits']\n"
        "print(json.dumps([{n: answer(Path(p) / 'self' / n) for n in names} for p in (argv[1], '/proc')]))"
    )
    mnt.parent.chmod(0o755)
    ours, kernels = asked(program, mnt.parent, mnt.name)
    assert kernels["environ"] == "Permission denied"
    assert ours == kernels


def test_a_file_of_its_own_is_not_written(mnt: Path) -> None:
    for name in ("oom_score_adj", "comm"):
        done = subprocess.run(["sh", "-c", 'echo 5 > "$1"', "sh", mnt / "self" / name], capture_output=True)
        assert done.returncode != 0


# -- the tables ------------------------------------------------------------------------------------


def kinds(directory: Dir) -> dict[str, type]:
    return {name: type(entry) for name, entry in directory.named.items()}


def test_a_name_is_of_one_sort_for_all() -> None:
    """The kernel remembers by path whether a name is a file, a link or a directory: EIO where that changed."""
    own, simulated = kinds(OWN_DIRECTORY), kinds(PID)
    both = own.keys() & simulated.keys()
    assert {"status", "comm", "cmdline", "maps", "oom_score"} <= both
    assert {name: own[name] for name in both} == {name: simulated[name] for name in both}
    # fd is for the caller even where its user does not own it; who may list it is not left to the mode
    for name in both - {"fd"}:
        assert mode_of(OWN_DIRECTORY.named[name]) & 0o444 == mode_of(PID.named[name]) & 0o444, name


def test_threads_ask_at_once(mnt: Path, here: House) -> None:
    """Each thread finds itself, while the others ask too."""
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(50):
            tid = threading.get_native_id()
            link = os.readlink(mnt / "thread-self")
            pid = (mnt / "thread-self/status").read_text().split("\nPid:\t")[1].split("\n")[0]
            if (link, pid) != (f"{os.getpid()}/task/{tid}", str(tid)):
                wrong.append(link)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
