"""ps, top, free, vmstat, pmap, pgrep, pidof and pstree: what they print of the simulated host."""

from __future__ import annotations

import math
import re

import pytest

from tests.clients.simulated import (
    BARE,
    BY_PID,
    FORKS,
    GROUP_LIMIT,
    INIT,
    MEMORY,
    ODD,
    PIDS,
    PROCESSES,
    SIMDB,
    SWAP,
    TWIN,
    WORKER,
    Simulated,
    rows,
)

pytestmark = pytest.mark.mount

TOTAL = MEMORY >> 10
CACHE = (SIMDB.file + SIMDB.shmem) >> 10


# -- ps ----------------------------------------------------------------------------------------------


@pytest.mark.client(
    "ps aux", "procps", "USER, PID, %MEM, VSZ, RSS, STAT, COMMAND of every process, and no other process"
)
@pytest.mark.parametrize("way", ["in_shell", "bound"])
def test_ps_aux(simulated: Simulated, way: str) -> None:
    """Bound in this pid namespace, where ps has a number that no simulated process has, it finds itself too."""
    lines = getattr(simulated, way)("ps", "aux").splitlines()
    assert lines[0].split()[:6] == ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS"]
    said = {int(row[1]): row for row in (line.split(None, 10) for line in lines[1:])}
    assert set(said) == PIDS
    for pid, known in BY_PID.items():
        user, _, _, share, vsz, rss, _, state, _, _, command = said[pid]
        assert (user, int(vsz), int(rss), command) == (known.user, known.total_vm >> 10, simulated.rss(pid), known.args)
        assert abs(float(share) - 100 * simulated.rss(pid) / TOTAL) <= 0.1
        assert state == ("Ssl" if known.threads > 1 else "Ss")


@pytest.mark.client("ps -eLf", "procps", "PID, PPID, LWP, NLWP of every thread")
def test_ps_threads(simulated: Simulated) -> None:
    said = [tuple(map(int, (row[1], row[2], row[3], row[5]))) for row in rows(simulated.in_shell("ps", "-eLf"), "UID")]
    assert sorted(said) == sorted(
        (known.pid, known.ppid, lwp, known.threads) for known in PROCESSES for lwp in (known.pid, *known.tids)
    )


@pytest.mark.client("ps -o pss,uss,oom,oomadj", "procps", "PSS and USS of shared and private pages, scores, groups")
def test_ps_of_rollups_and_scores(simulated: Simulated) -> None:
    text = simulated.in_shell("ps", "-eo", "pid,pss,uss,oom,oomadj,cgroup:40,comm")
    said = {int(row[0]): row[1:] for row in rows(text, "PID")}
    assert set(said) == PIDS
    for pid, (pss, uss, score, adj, group, *comm) in said.items():
        known = BY_PID[pid]
        assert (int(pss), int(uss)) == (simulated.pss(pid), simulated.uss(pid))
        assert int(score) == int(simulated.read(f"{pid}/oom_score"))
        assert int(adj) == known.oom_score_adj
        assert (known.group in group) if known.group else ("web" not in group)
        assert " ".join(comm) == known.comm
    assert simulated.uss(TWIN.pid) == 0
    # mm/oom_kill.c oom_badness, fs/proc/base.c proc_oom_score
    total = (MEMORY + SWAP) >> 12
    pages = (simulated.rss(SIMDB.pid) + simulated.kb(SIMDB.pid, "VmPTE")) >> 2
    badness = pages + SIMDB.oom_score_adj * total // 1000
    assert int(said[SIMDB.pid][2]) == (1000 + badness * 1000 // total) * 2 // 3


@pytest.mark.client("ps -C, -u, --ppid", "procps", "which pids are selected by name, user and parent")
def test_ps_selects(simulated: Simulated) -> None:
    def pids(*how: str) -> set[int]:
        return {int(word) for word in simulated.in_shell("ps", "-o", "pid=", *how).split()}

    assert pids("-C", SIMDB.comm) == {SIMDB.pid}
    assert pids("-u", "www-data") == {SIMDB.pid, WORKER.pid}
    assert pids("--ppid", "1") == {SIMDB.pid, BARE.pid}
    assert pids("-p", "1") == {1}


# -- top, free, vmstat ------------------------------------------------------------------------------


@pytest.mark.client("top -b", "procps", "tasks, memory, swap; USER, VIRT, RES, SHR, S, %MEM of every process")
def test_top(simulated: Simulated) -> None:
    text = simulated.in_shell("top", "-b", "-n", "1", "-w", "500", "-E", "k", "-e", "k", "-c")
    assert re.search(rf"Tasks:\s+{len(PIDS)} total,\s+0 running,\s+{len(PIDS)} sleeping", text)
    memory = re.search(r"KiB Mem :\s*([\d.]+) total,\s*([\d.]+) free,\s*([\d.]+) used,\s*([\d.]+) buff/cache", text)
    swap = re.search(r"KiB Swap:\s*([\d.]+) total,\s*([\d.]+) free,\s*([\d.]+) used", text)
    assert memory
    assert swap
    assert [float(n) for n in memory.groups()[:2]] == [TOTAL, TOTAL - simulated.used()]
    assert float(memory[4]) == CACHE
    assert [float(n) for n in swap.groups()] == [SWAP >> 10, (SWAP >> 10) - _swapped(simulated), _swapped(simulated)]
    said = {
        int(row[0]): row for row in (line.split(None, 11) for line in text.partition("PID USER")[2].splitlines()[1:])
    }
    assert set(said) == PIDS
    for pid, (_, user, _, _, virt, res, shr, state, _, share, _, command) in said.items():
        known = BY_PID[pid]
        assert (user, int(virt), int(res)) == (known.user, known.total_vm >> 10, simulated.rss(pid))
        assert (int(shr), state, command) == ((known.file + known.shmem) >> 10, "S", known.args)
        assert abs(float(share) - 100 * simulated.rss(pid) / TOTAL) <= 0.1


def _swapped(simulated: Simulated) -> int:
    """kB of swap in use."""
    return sum(simulated.swapped(pid) for pid in PIDS)


@pytest.mark.client("free", "procps", "total, free, used, shared, buff/cache; swap total, used, free")
def test_free(simulated: Simulated) -> None:
    memory, swap = rows(simulated.in_shell("free", "-k"), "total")
    total, used, free, shared, cache, available = map(int, memory[1:])
    assert (total, free) == (TOTAL, TOTAL - simulated.used())
    assert (shared, cache) == (SIMDB.shmem >> 10, CACHE)
    assert used == total - available
    assert simulated.rss(WORKER.pid) + simulated.kb(WORKER.pid, "VmPTE") <= GROUP_LIMIT >> 10
    assert [int(n) for n in swap[1:]] == [SWAP >> 10, _swapped(simulated), (SWAP >> 10) - _swapped(simulated)]


@pytest.mark.client("vmstat, vmstat -s", "procps", "swpd, free, cache; totals, pages swapped out, faults, forks")
def test_vmstat(simulated: Simulated) -> None:
    columns, values = rows(simulated.in_shell("vmstat"), "procs")
    said = dict(zip(columns, map(int, values), strict=True))
    assert said["swpd"] == _swapped(simulated)
    assert said["free"] == TOTAL - simulated.used()
    assert said["cache"] == CACHE
    sums = {" ".join(row[1:]): int(row[0]) for row in rows(simulated.in_shell("vmstat", "-s"))}
    sums |= {" ".join(row[2:]): int(row[0]) for row in rows(simulated.in_shell("vmstat", "-s")) if row[1] == "K"}
    assert (sums["total memory"], sums["free memory"]) == (TOTAL, TOTAL - simulated.used())
    assert sums["pages swapped out"] == _swapped(simulated) // 4
    assert sums["pages swapped in"] == 0
    assert sums["forks"] == FORKS


@pytest.mark.client("free, sysctl", "procps", "single files and sys/vm on those of /proc, beside real processes")
def test_single_files_are_mounted_over(simulated: Simulated) -> None:
    script = (
        'mount --bind "$1/meminfo" /proc/meminfo && mount --bind "$1/sys/vm" /proc/sys/vm && '
        'free -k | grep Mem && sysctl -n vm.min_free_kbytes && cat "/proc/$$/comm"'
    )
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    memory, least, comm = simulated.run(*within, simulated.mount).splitlines()
    assert int(memory.split()[1]) == TOTAL
    assert (int(least), comm) == (math.isqrt(TOTAL * 16), "sh")


# -- pmap --------------------------------------------------------------------------------------------


@pytest.mark.client("pmap -x", "procps", "Kbytes, RSS, Dirty, Mode and name of every mapping, and their sums")
def test_pmap(simulated: Simulated) -> None:
    text = simulated.in_shell("pmap", "-x", str(SIMDB.pid))
    assert text.startswith(f"{SIMDB.pid}:   {SIMDB.args}\n")
    lines = rows(text, "Address")
    said = {
        int(row[0], 16): (*map(int, row[1:4]), row[4], " ".join(row[5:]))
        for row in lines
        if re.fullmatch("[0-9a-f]{16}", row[0])
    }
    assert said == {
        0x400000: (4096, 2048, 0, "r-x--", "simdb"),
        0x7F0000000000: (64 << 10, 48 << 10, 48 << 10, "rw---", "[ anon ]"),
        0x7F0010000000: (8 << 10, 0, 0, "rw---", "[ anon ]"),
        0x7F0020000000: (2 << 10, 1 << 10, 1 << 10, "rw-s-", "zero (deleted)"),
        0x7FFFFF000000: (132, 8, 8, "rw---", "[ stack ]"),
    }
    total = next(row for row in lines if row[:2] == ["total", "kB"])
    assert [int(n) for n in total[2:]] == [
        SIMDB.total_vm >> 10,
        simulated.rss(SIMDB.pid),
        (SIMDB.anon + SIMDB.shmem) >> 10,
    ]


@pytest.mark.client("pmap -X", "procps", "columns of smaps, Reclaimable_PT among them, for every mapping")
def test_pmap_shows_reclaimable_page_tables(simulated: Simulated) -> None:
    text = simulated.in_shell("pmap", "-X", str(SIMDB.pid))
    columns, *lines = [line.split() for line in text.splitlines()[1:]]
    said = {
        int(row[0], 16): dict(zip(columns, row, strict=False)) for row in lines if re.fullmatch(r"[0-9a-f]{8,}", row[0])
    }
    assert len(said) == 5
    assert {at: int(row["Reclaimable_PT"]) for at, row in said.items() if row["Reclaimable_PT"] != "0"} == {
        0x7F0010000000: 3 * 4
    }
    assert sum(int(row["Pss"]) for row in said.values()) == simulated.pss(SIMDB.pid)
    assert sum(int(row["Size"]) for row in said.values()) == SIMDB.total_vm >> 10


@pytest.mark.client("pmap -X, -XX", "procps", "every mapping of the shipped recording, with its offset and flags")
@pytest.mark.parametrize("option", ["-X", "-XX"])
def test_pmap_of_the_shipped_recording(shipped: Simulated, option: str) -> None:
    text = shipped.in_shell("pmap", option, "1")
    assert shipped.stderr == ""
    columns, *lines = [line.split() for line in text.splitlines()[1:]]
    said = [row for row in lines if re.fullmatch(r"[0-9a-f]{8,}", row[0])]
    maps = [line.split() for line in shipped.read("1/maps").splitlines()]
    assert [row[:3] for row in said] == [[start.partition("-")[0], prot, at] for start, prot, at, *_ in maps]
    assert {row[-1] for row in said} >= {"[vvar]", "[vdso]", "[stack]"}
    sizes = [int(row[columns.index("Size")]) for row in said]
    assert sum(sizes) == shipped.kb(1, "VmSize")
    if option == "-XX":
        flags = re.findall(r"^VmFlags: (.*?) ?$", shipped.read("1/smaps"), re.MULTILINE)
        assert all(" ".join(row).count(codes) == 1 for row, codes in zip(said, flags, strict=True))


@pytest.mark.client("pmap PID", "procps", "the total of a process of the lowest pid, and of one that swaps")
def test_pmap_of_pid_1(simulated: Simulated) -> None:
    """pid 1 of the namespace is pterefd's own; for pmap 1 is the simulated one."""
    assert simulated.in_shell("pmap", "1").splitlines()[-1].split() == ["total", f"{INIT.total_vm >> 10}K"]
    text = simulated.in_shell("pmap", "-X", str(WORKER.pid))
    columns = text.splitlines()[1].split()
    row = text.splitlines()[2].split()
    assert int(row[columns.index("Swap")]) == simulated.swapped(WORKER.pid)
    assert int(row[columns.index("Rss")]) == simulated.rss(WORKER.pid)


# -- who is there -------------------------------------------------------------------------------------


@pytest.mark.client("pgrep", "procps", "pids by name, user, parent, arguments")
def test_pgrep(simulated: Simulated) -> None:
    expected = {
        "pgrep .": sorted(PIDS),
        "pgrep -x simdb": [SIMDB.pid],
        r"pgrep -x 'sim web\) x'": [ODD.pid],
        "pgrep -u www-data": [SIMDB.pid, WORKER.pid],
        "pgrep -P 1": [SIMDB.pid, BARE.pid],
        "pgrep -f 'my data'": [SIMDB.pid],
        "pgrep no-such": [],
    }
    text = simulated.in_shell("sh", "-c", "; ".join(f"echo $({command})" for command in expected))
    said = [[int(word) for word in line.split()] for line in text.splitlines()]
    assert dict(zip(expected, said, strict=True)) == expected
    assert simulated.in_shell("pgrep", "-l", "work") == f"{WORKER.pid} worker\n"


@pytest.mark.client("pidof", "sysvinit-utils", "pids by the name of a program")
def test_pidof(simulated: Simulated) -> None:
    assert simulated.in_shell("pidof", "simdb").split() == [str(SIMDB.pid)]
    assert simulated.in_shell("pidof", "worker").split() == [str(WORKER.pid)]
    assert simulated.in_shell("pidof", "no-such", code=1) == ""


@pytest.mark.client("pstree", "psmisc", "who is whose child, threads, owners")
def test_pstree(simulated: Simulated) -> None:
    """From pid 1 down; the worker has no parent in its trace."""
    text = simulated.in_shell("pstree", "-A", "-p", "-u", "-c", "-l")
    assert text == (
        "init(1)-+-bare(40)---bare(41)\n"
        "        `-simdb(20,www-data)-+-sim web) x(30,nobody)\n"
        "                             |-{simdb}(21)\n"
        "                             `-{simdb}(22)\n"
    )
    assert simulated.in_shell("pstree", "-A", "-p", str(WORKER.pid)).strip() == "worker(50)---{worker}(51)"
