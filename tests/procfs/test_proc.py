"""The tree on a real host: every node is there, says what the host knows, and does what it says."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pterefd import __version__
from pterefd.errors import BadInput, PterefdError
from pterefd.host.memory import Memory
from pterefd.procfs.root import ROOT, proc_tree
from pterefd.procfs.tree import Content, Dir, Family, File, Tree
from tests.house import AT, SPAN, House, house

FILES_OF_PID = {
    "status",
    "comm",
    "cmdline",
    "oom_score",
    "oom_score_adj",
    "maps",
    "smaps",
    "smaps_rollup",
    "pte_pages",
    "stat",
    "statm",
    "io",
    "limits",
    "cgroup",
    "mounts",
    "schedstat",
    "wchan",
    "environ",
    "reclaimable_pt_bytes",
    "pt_reclaim/pgtables_bytes",
    "pt_reclaim/empty_bytes",
    "pt_reclaim/zero_bytes",
    "pt_reclaim/kept_bytes",
    "pt_reclaim/mixed_bytes",
    "pt_reclaim/unlocated_bytes",
}
FILES_OF_TASK = (
    *("stat", "status", "statm", "comm", "cmdline", "cgroup"),
    *("io", "limits", "schedstat", "wchan", "mounts"),
)
TASKS = ((1, 1), (1, 3), (2, 2), (7, 7))
FILES_OF_MACHINE = {
    *("meminfo", "vmstat", "stat", "cpuinfo", "uptime", "loadavg", "zoneinfo", "swaps", "diskstats", "filesystems"),
    *("version", "pressure/memory", "pressure/cpu", "pressure/io", "tty/drivers"),
    *(f"sys/kernel/{name}" for name in ("osrelease", "ostype", "hostname", "pid_max", "threads-max", "random/boot_id")),
}
FILES_OF_REPLAY = {"state", "speed", "position"}
EVERY_FILE = (
    {f"{pid}/{name}" for pid in (1, 2, 7) for name in FILES_OF_PID}
    | {f"sys/pterefd/replay/{where}{name}" for where in ("", "0/") for name in FILES_OF_REPLAY}
    | {f"sys/pterefd/{name}" for name in ("version", "host_kind", "pid", "profile")}
    | {f"sys/vm/pt_reclaim/{name}" for name in ("policy", "available_policies", "triggers", "available_triggers")}
    | {f"sys/vm/pt_reclaim/{name}" for name in ("reclaim", "reload", "put_aside")}
    | {f"sys/vm/pt_reclaim/policies/{name}" for name in ("proportional/by", "round_robin/turn_bytes")}
    | {"sys/vm/pt_reclaim/policies/idle_first/idle_ms"}
    | {f"sys/vm/pt_reclaim/trigger/on_demand/{name}" for name in ("policy", "kinds")}
    | {f"sys/vm/pt_reclaim/trigger/interval/{name}" for name in ("policy", "kinds", "period_ms")}
    | {f"sys/vm/pt_reclaim/trigger/watermark/{name}" for name in ("policy", "kinds", "target", "bytes")}
    | {f"sys/vm/pt_reclaim/trigger/pre_oom/{name}" for name in ("policy", "kinds", "all", "more_bytes")}
    | {"sys/vm/free_ptes"}
    | {f"{pid}/task/{tid}/{name}" for pid, tid in TASKS for name in FILES_OF_TASK}
    | FILES_OF_MACHINE
)


@pytest.fixture
def here(tmp_path: Path) -> House:
    return house(tmp_path)


@pytest.fixture
def tree(here: House) -> Tree:
    return proc_tree(here.faces)


def read(tree: Tree, path: str) -> str:
    return tree.open(path, os.O_RDONLY).read(1 << 20, 0).decode()


def write(tree: Tree, path: str, text: str) -> int:
    return tree.open(path, os.O_WRONLY).write(text.encode(), 0)


def status(tree: Tree, pid: int) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in read(tree, f"/{pid}/status").splitlines())
    }


def walk(tree: Tree, path: str = "") -> Iterator[str]:
    """Every file; not links, which may lead anywhere."""
    for name, mode in tree.listing(path or "/"):
        below = f"{path}/{name}"
        if stat.S_ISDIR(mode):
            yield from walk(tree, below)
        elif stat.S_ISREG(mode):
            yield below[1:]


def declared(directory: Dir) -> Iterator[File]:
    for entry in directory.entries:
        if isinstance(entry, File):
            yield entry
        elif isinstance(entry, Dir):
            yield from declared(entry)
        elif isinstance(entry, Family) and isinstance(entry.each, Dir):
            yield from declared(entry.each)


# -- what is there ---------------------------------------------------------------------------------


def test_every_file_is_there_and_no_other(tree: Tree) -> None:
    assert set(walk(tree)) == EVERY_FILE


def test_without_a_replay_there_is_no_replay_directory(here: House) -> None:
    here.faces.replays = []
    tree = proc_tree(here.faces)
    assert [name for name, _ in tree.listing("/sys/pterefd")] == ["version", "host_kind", "pid", "profile"]
    with pytest.raises(FileNotFoundError):
        tree.find("/sys/pterefd/replay/state")


def test_every_node_says_what_it_is() -> None:
    for node in declared(ROOT):
        assert node.help.endswith("."), node.name
        assert bool(node.mode & 0o444) == (node.read is not None), node.name
        assert bool(node.mode & 0o222) == (node.write is not None), node.name
        if node.content is Content.INT:
            assert node.unit, node.name


def test_directories_belong_to_their_process(tree: Tree) -> None:
    for path in ("/1", "/1/status", "/1/pt_reclaim/empty_bytes"):
        assert (tree.attributes(path).uid, tree.attributes(path).gid) == (33, 34)
    assert tree.attributes("/7").uid == os.geteuid()


@pytest.mark.parametrize("name", ["0", "01", "3", "+1", "1x", "99999999999"])
def test_what_is_no_pid_here_is_not_there(tree: Tree, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        tree.attributes(f"/{name}")


# -- what it says ----------------------------------------------------------------------------------


def test_the_numbers_are_the_hosts(tree: Tree, here: House) -> None:
    for pid in here.host.pids():
        counters = here.host.counters(pid)
        assert read(tree, f"/{pid}/reclaimable_pt_bytes") == f"{counters.empty_bytes + counters.zero_bytes}\n"
        for name in ("pgtables_bytes", "empty_bytes", "zero_bytes", "kept_bytes", "mixed_bytes", "unlocated_bytes"):
            assert read(tree, f"/{pid}/pt_reclaim/{name}") == f"{getattr(counters, name)}\n"
        lines = status(tree, pid)
        assert lines["VmPTE"] == f"{counters.pgtables_bytes >> 10} kB"
        assert lines["RssAnon"] == f"{counters.anon_bytes >> 10} kB"
        assert lines["VmSize"] == f"{counters.total_vm_bytes >> 10} kB"


def test_the_numbers_are_those_of_the_trace(tree: Tree) -> None:
    assert read(tree, "/1/pt_reclaim/empty_bytes") == f"{5 * 4096}\n"
    assert read(tree, "/1/pt_reclaim/zero_bytes") == f"{2 * 4096}\n"
    assert read(tree, "/1/reclaimable_pt_bytes") == f"{7 * 4096}\n"
    assert read(tree, "/7/reclaimable_pt_bytes") == f"{9 * 4096}\n"
    assert status(tree, 1)["RssAnon"] == f"{3 * 2048} kB"


def test_names_arguments_and_threads(tree: Tree) -> None:
    assert read(tree, "/1/comm") == "redis-server\n"
    assert read(tree, "/1/cmdline") == "redis-server\0*:6379\0"
    assert read(tree, "/2/cmdline") == ""
    lines = status(tree, 1)
    assert (lines["Name"], lines["Threads"], lines["Uid"]) == ("redis-server", "2", "33\t33\t33\t33")
    assert status(tree, 2)["Name"] == "sim web) x\\\\y"
    assert status(tree, 2)["PPid"] == "1"


def test_maps(tree: Tree) -> None:
    lines = read(tree, "/1/maps").splitlines()
    assert lines[0].startswith("00400000-00402000 r-xp 00001000 00:00 ")
    assert lines[0].endswith(" /usr/bin/redis-server")
    assert lines[1] == f"{AT:x}-{AT + 11 * SPAN:x} rw-p 00000000 00:00 0 "


def test_the_daemon_itself(tree: Tree) -> None:
    assert read(tree, "/sys/pterefd/version") == f"{__version__}\n"
    assert read(tree, "/sys/pterefd/profile") == "rfc-2022\n"
    assert read(tree, "/sys/pterefd/pid") == f"{os.getpid()}\n"


# -- free_ptes -------------------------------------------------------------------------------------


def test_a_pid_frees_what_the_file_said_and_no_more(tree: Tree) -> None:
    before, could = int(read(tree, "/1/pt_reclaim/pgtables_bytes")), int(read(tree, "/1/reclaimable_pt_bytes"))
    anon, other = status(tree, 1)["RssAnon"], read(tree, "/7/reclaimable_pt_bytes")
    assert write(tree, "/sys/vm/free_ptes", "1\n") == 2
    assert int(read(tree, "/1/pt_reclaim/pgtables_bytes")) == before - could
    assert read(tree, "/1/reclaimable_pt_bytes") == "0\n"
    assert status(tree, 1)["RssAnon"] == anon
    assert read(tree, "/7/reclaimable_pt_bytes") == other


def test_0_frees_every_mm(tree: Tree, here: House) -> None:
    assert write(tree, "/sys/vm/free_ptes", "0\n") == 2
    assert [read(tree, f"/{pid}/reclaimable_pt_bytes") for pid in here.host.pids()] == ["0\n"] * 3
    here.host.validate()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x", errno.EINVAL),
        ("-1", errno.EINVAL),
        ("2147483648", errno.EINVAL),
        ("\n", errno.EINVAL),
        ("3", errno.ESRCH),
        ("2147483647", errno.ESRCH),
    ],
)
def test_free_ptes_refuses(tree: Tree, text: str, code: int) -> None:
    with pytest.raises((OSError, Exception)) as refused:
        write(tree, "/sys/vm/free_ptes", text)
    assert refused.value.errno == code  # type: ignore[attr-defined]
    assert read(tree, "/1/reclaimable_pt_bytes") == f"{7 * 4096}\n"


# -- the rest --------------------------------------------------------------------------------------


def test_the_policy_is_chosen_by_name(tree: Tree, here: House) -> None:
    available = read(tree, "/sys/vm/pt_reclaim/available_policies").split()
    assert read(tree, "/sys/vm/pt_reclaim/policy") == f"{here.reclaimer.policy}\n"
    assert "largest_first" in available
    for name in available:
        assert write(tree, "/sys/vm/pt_reclaim/policy", f"{name}\n") == len(name) + 1
        assert read(tree, "/sys/vm/pt_reclaim/policy") == f"{name}\n"


def test_triggers_are_chosen_by_name(tree: Tree) -> None:
    assert read(tree, "/sys/vm/pt_reclaim/triggers") == "on_demand\n"
    assert "on_demand" in read(tree, "/sys/vm/pt_reclaim/available_triggers").split()
    write(tree, "/sys/vm/pt_reclaim/triggers", "\n")
    assert read(tree, "/sys/vm/pt_reclaim/triggers") == "\n"
    write(tree, "/sys/vm/pt_reclaim/triggers", "on_demand\n")
    assert read(tree, "/sys/vm/pt_reclaim/triggers") == "on_demand\n"


@pytest.mark.parametrize("path", ["policy", "triggers"])
def test_a_name_that_nobody_has_is_einval(tree: Tree, path: str) -> None:
    before = read(tree, f"/sys/vm/pt_reclaim/{path}")
    with pytest.raises(Exception, match="nobody") as refused:
        write(tree, f"/sys/vm/pt_reclaim/{path}", "nobody\n")
    assert refused.value.errno == errno.EINVAL  # type: ignore[attr-defined]
    assert read(tree, f"/sys/vm/pt_reclaim/{path}") == before


@pytest.mark.parametrize("where", ["replay", "replay/0"])
def test_the_speed_of_a_replay(tree: Tree, where: str) -> None:
    path = f"/sys/pterefd/{where}/speed"
    assert read(tree, path) == "max\n"
    for text, shown in (("2.5\n", "2.5"), ("1", "1"), ("max\n", "max"), ("1000000", "1000000")):
        write(tree, path, text)
        assert read(tree, path) == f"{shown}\n"
    for text in ("0", "-1", "fast", "nan", "inf", ""):
        if text:
            with pytest.raises(Exception, match="speed"):
                write(tree, path, text)
    assert read(tree, path) == "1000000\n"


def test_the_position_and_state_of_a_replay_that_is_over(tree: Tree, here: House) -> None:
    events = here.replays[0].events
    assert read(tree, "/sys/pterefd/replay/position") == f"{events}/{events}\n"
    assert read(tree, "/sys/pterefd/replay/0/state") == "ended\n"
    with pytest.raises(Exception, match="pause or resume"):
        write(tree, "/sys/pterefd/replay/state", "stop")


def refused(tree: Tree, path: str, text: str) -> int | None:
    """errno of a write, None where it is taken."""
    try:
        write(tree, path, text)
    except OSError as e:
        return e.errno
    except PterefdError as e:
        return e.errno
    return None


def test_reclaim_takes_bytes_over_all_mms_and_says_when_less_was_freed(tree: Tree, here: House) -> None:
    """16 pages: 9 of pid 7, 7 of pid 1."""
    reclaim = "/sys/vm/pt_reclaim/reclaim"
    assert refused(tree, reclaim, "40K\n") is None
    assert read(tree, "/7/reclaimable_pt_bytes") == "0\n"
    assert read(tree, "/1/reclaimable_pt_bytes") == f"{6 * 4096}\n"
    assert refused(tree, reclaim, "4095") is None  # no whole page
    assert read(tree, "/1/reclaimable_pt_bytes") == f"{6 * 4096}\n"
    for text in ("much", "-1", "1KB", "\n"):
        assert refused(tree, reclaim, text) == errno.EINVAL
    assert refused(tree, reclaim, "1M") == errno.EAGAIN
    assert read(tree, "/1/reclaimable_pt_bytes") == "0\n"
    assert refused(tree, reclaim, "4096") == errno.EAGAIN
    here.reclaimer.set_triggers([])
    assert refused(tree, reclaim, "4096") == errno.EAGAIN


def test_a_trigger_has_tunables_and_a_policy_of_its_own(tree: Tree, here: House) -> None:
    base = "/sys/vm/pt_reclaim/trigger/on_demand"
    assert (read(tree, f"{base}/policy"), read(tree, f"{base}/kinds")) == ("default\n", "empty+zero\n")
    write(tree, f"{base}/kinds", "zero\n")
    write(tree, f"{base}/policy", "smallest_first\n")
    write(tree, "/sys/vm/pt_reclaim/reclaim", "8192")
    assert read(tree, "/1/pt_reclaim/zero_bytes") == "0\n"
    assert here.reclaimer.totals == {
        ("on_demand", "smallest_first", "empty"): 0,
        ("on_demand", "smallest_first", "zero"): 8192,
    }
    assert read(tree, f"{base}/policy") == "smallest_first\n"
    write(tree, f"{base}/policy", "default")
    assert here.reclaimer.policy_of("on_demand") is None
    for path, text in ((f"{base}/policy", "nobody"), (f"{base}/kinds", "some"), (f"{base}/kinds", "")):
        assert refused(tree, path, text + "\n") == errno.EINVAL
    period = "/sys/vm/pt_reclaim/trigger/interval/period_ms"
    for text in ("9", "86400001", "x"):
        assert refused(tree, period, text) == errno.EINVAL
    assert refused(tree, period, "0x20") is None
    assert read(tree, period) == "32\n"
    assert refused(tree, "/sys/vm/pt_reclaim/policies/round_robin/turn_bytes", "4097") == errno.EINVAL


# -- through a real mount --------------------------------------------------------------------------


@pytest.mark.mount
def test_a_shell_frees_page_tables(tree: Tree, here: House, mounted: Callable[[Tree], Path]) -> None:
    mnt = mounted(tree)

    def sh(command: str) -> subprocess.CompletedProcess[str]:
        # The mount is served by this process: between vfork and exec, which cwd= lies in, nothing of it would answer.
        return subprocess.run(["sh", "-c", f"cd '{mnt}' && {command}"], capture_output=True, text=True)

    def vm_pte() -> int:
        return int(sh("grep VmPTE 1/status").stdout.split()[1])

    before, could = vm_pte(), int(sh("cat 1/reclaimable_pt_bytes").stdout)
    assert could == 7 * 4096
    assert sh("echo 1 > sys/vm/free_ptes").returncode == 0
    assert before - vm_pte() == could >> 10
    assert sh("cat 1/reclaimable_pt_bytes").stdout == "0\n"
    assert sh("echo 77 > sys/vm/free_ptes").returncode != 0
    here.host.validate()


@pytest.mark.mount
def test_the_whole_tree_can_be_read_through_the_mount(tree: Tree, mounted: Callable[[Tree], Path]) -> None:
    mnt = mounted(tree)
    found: dict[str, Any] = {}
    for path in sorted(mnt.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = str(path.relative_to(mnt))
            found[name] = None if path.stat().st_mode & 0o444 == 0 else path.read_text()
    assert set(found) == set(walk(tree))
    for name, text in found.items():
        assert text is None or text == read(tree, f"/{name}")


@pytest.mark.mount
def test_errnos_reach_the_writer(tree: Tree, mounted: Callable[[Tree], Path]) -> None:
    mnt = mounted(tree)
    for path, data, code in (
        ("sys/vm/free_ptes", b"x", errno.EINVAL),
        ("sys/vm/free_ptes", b"3\n", errno.ESRCH),
        ("sys/vm/pt_reclaim/policy", b"nobody", errno.EINVAL),
        ("sys/vm/pt_reclaim/reclaim", b"1G\n", errno.EAGAIN),
        ("sys/vm/pt_reclaim/reload", b"2", errno.EINVAL),
        ("sys/vm/pt_reclaim/put_aside", b"largest_first", errno.EINVAL),
        ("sys/pterefd/replay/speed", b"fast", errno.EINVAL),
    ):
        fd = os.open(mnt / path, os.O_WRONLY)
        with pytest.raises(OSError, match=os.strerror(code)):
            os.write(fd, data)
        os.close(fd)


# ---- a host with memory -----------------------------------------------------------------------------

VM_KNOBS = {
    "min_free_kbytes": ("0", "2147483647", "-1"),
    "watermark_scale_factor": ("1", "3000", "0"),
    "swappiness": ("0", "200", "201"),
    "overcommit_memory": ("0", "2", "3"),
    "overcommit_ratio": ("-1", "101", "x"),
    "max_map_count": ("0", "65530", "-1"),
    "oom_kill_allocating_task": ("5", "-5", "x"),
    "panic_on_oom": ("0", "2", "3"),
}


@pytest.fixture
def short(tmp_path: Path) -> Tree:
    return proc_tree(house(tmp_path, memory=Memory(1 << 30, swap_bytes=1 << 30)).faces)


def test_knobs_without_effect_are_not_there(tree: Tree) -> None:
    assert not {name for name, _ in tree.listing("/sys/vm")} & {*VM_KNOBS, "drop_caches"}
    with pytest.raises(OSError, match="No such file"):
        tree.open("/sys/vm/swappiness", os.O_RDONLY)


@pytest.mark.parametrize("name", VM_KNOBS)
def test_a_knob_of_sys_vm_is_as_the_kernels(short: Tree, name: str) -> None:
    """Default and mode of the running kernel's own, but where its memory decides; ranges of kernel-rules.md, 5.2."""
    path = f"/sys/vm/{name}"
    real = Path("/proc") / path[1:]
    assert short.attributes(path).mode & 0o777 == real.stat().st_mode & 0o777
    low, high, bad = VM_KNOBS[name]
    for text in (low, high):
        assert write(short, path, text + "\n") == len(text) + 1
        assert read(short, path) == text + "\n"
    with pytest.raises(OSError, match="Invalid argument") as refused:
        write(short, path, bad)
    assert refused.value.errno == errno.EINVAL
    assert read(short, path) == high + "\n"


def test_min_free_kbytes_is_made_of_the_memory(short: Tree) -> None:
    """int_sqrt(1 GiB in kB * 16) = 4096."""
    assert read(short, "/sys/vm/min_free_kbytes") == "4096\n"


def test_drop_caches_is_written_alone(short: Tree) -> None:
    assert write(short, "/sys/vm/drop_caches", "1") == 1
    for bad in ("0", "9"):
        with pytest.raises(OSError, match="Invalid argument"):
            write(short, "/sys/vm/drop_caches", bad)
    with pytest.raises(OSError, match="Permission denied"):
        short.open("/sys/vm/drop_caches", os.O_RDONLY)


# (written to oom_score_adj, what it then is; None: EINVAL), tried on the running kernel's own file too
ADJ = [("17", 17), (" -5 \n", -5), ("+3", 3), ("010", 8), ("0x10", 16), ("1000", 1000), ("-1000", -1000)]
BAD_ADJ = ["1001", "-1001", "x", "", "1 2", "08", "0x", "--1"]


@pytest.mark.parametrize("text", [*(text for text, _ in ADJ), *BAD_ADJ])
def test_oom_score_adj_is_as_the_kernels(short: Tree, text: str) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    real = Path(f"/proc/{sleeper.pid}/oom_score_adj")
    try:
        expected = dict(ADJ).get(text)
        if expected is None:
            if text:  # an empty write reaches no parser
                with pytest.raises(OSError, match="Invalid argument"):
                    real.write_text(text)
                with pytest.raises(BadInput) as refused:
                    write(short, "/1/oom_score_adj", text)
                assert refused.value.errno == errno.EINVAL
            return
        write(short, "/1/oom_score_adj", text)
        assert read(short, "/1/oom_score_adj") == f"{expected}\n"
        if expected >= 0:  # less takes CAP_SYS_RESOURCE, which root may lack
            real.write_text(text)
            assert real.read_text() == f"{expected}\n"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_oom_score_follows_its_adj(short: Tree) -> None:
    """pid 1 holds about 6 MiB of 2 GiB; 500 points of adj are half of everything: (1000 + 500) * 2 / 3."""
    assert read(short, "/1/oom_score") == "668\n"
    write(short, "/1/oom_score_adj", "500")
    assert 1000 <= int(read(short, "/1/oom_score")) <= 1002
    write(short, "/1/oom_score_adj", "-1000")
    assert read(short, "/1/oom_score") == "0\n"
