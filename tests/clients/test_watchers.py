"""smem, htop, atop and earlyoom: what they report of the simulated host."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clients.simulated import (
    BY_PID,
    MEMORY,
    PIDS,
    PROCESSES,
    SCRIPT,
    SIMDB,
    SWAP,
    WORKER,
    Simulated,
    rows,
)
from tests.clients.terminal import Terminal

pytestmark = pytest.mark.mount

TOTAL = MEMORY >> 10
CACHE = (SIMDB.file + SIMDB.shmem) >> 10


# -- smem --------------------------------------------------------------------------------------------


@pytest.mark.client("smem", "smem", "USS, PSS, RSS, swap, user and command of every process with arguments")
@pytest.mark.parametrize("way", ["shell", "option"])
def test_smem(simulated: Simulated, way: str, tmp_path: Path) -> None:
    """A process without arguments is a kernel thread for it. -S takes the directory that holds proc."""
    columns = ("smem", "-H", "-c", "pid user swap uss pss rss command")
    if way == "shell":
        text = simulated.in_shell(*columns)
    else:
        (tmp_path / "proc").symlink_to(simulated.mount)
        text = simulated.run(*columns, "-S", tmp_path)
    said = {int(row[0]): row[1:] for row in (line.split(None, 6) for line in text.splitlines())}
    assert set(said) == {known.pid for known in PROCESSES if known.cmdline}
    for pid, (user, *sizes, command) in said.items():
        known = BY_PID[pid]
        assert user == known.user
        assert list(map(int, sizes)) == [
            simulated.swapped(pid),
            simulated.uss(pid),
            simulated.pss(pid),
            simulated.rss(pid),
        ]
        assert command.strip() == known.args[:27].strip()


@pytest.mark.client("smem -w", "smem", "used and cached memory of the machine")
def test_smem_of_the_system(simulated: Simulated) -> None:
    said = {" ".join(row[:-3]): list(map(int, row[-3:])) for row in rows(simulated.in_shell("smem", "-w"), "Area")}
    assert said["free memory"] == [TOTAL - simulated.used(), TOTAL - simulated.used(), 0]
    assert said["userspace memory"][1:] == [CACHE, sum(simulated.kb(pid, "RssAnon") for pid in PIDS)]


# -- htop --------------------------------------------------------------------------------------------


@pytest.mark.client("htop", "htop", "meters of tasks, memory and swap; USER, VIRT, RES, SHR, S, Command on its screen")
def test_htop(simulated: Simulated, tmp_path: Path) -> None:
    command = [SCRIPT, "shell", "--mount", simulated.mount, "--", "htop", "--readonly", "--no-color", "--delay=5"]
    with Terminal(*command, TERM="linux", HTOPRC=str(tmp_path / "htoprc"), LC_ALL="C", lines=40, columns=160) as htop:
        # its bar of keys is the last that it draws: a screen may come in two pieces
        htop.wait_for_screen(lambda lines: all(drawn in "".join(lines) for drawn in ("simdb --data", "F10Quit")))
        lines = list(htop.screen.display)
        htop.type("q")
        assert htop.end() == 0
    text = "\n".join(lines)
    assert re.search(rf"Mem\[[^.\d]*{(simulated.used() - CACHE) / 1024:.1f}M/512M\]", text)
    assert re.search(rf"Swp\[.*?{simulated.swapped(WORKER.pid) / 1024:.2f}M/128M\]", text)
    assert re.search(rf"Tasks: {len(PIDS)}, {sum(k.threads for k in PROCESSES) - len(PIDS)} thr", text)
    said = {int(match[1]): line.split() for line in lines if (match := re.match(r"\s*(\d+) [a-z-]+ +20 ", line))}
    for pid, known in BY_PID.items():
        _, user, _, _, virtual, resident, shared, state, *_ = said[pid]
        assert (user, state) == (known.user, "S")
        assert (int(virtual), int(resident)) == (known.total_vm >> 10, simulated.rss(pid))
        assert int(shared) == (known.file + known.shmem) >> 10


# -- atop --------------------------------------------------------------------------------------------


@pytest.mark.client(
    "atop -P", "atop", "MEM, SWP, PAG; names, sizes, faults, swap (PRM) of every process, threads (PRG)"
)
def test_atop(simulated: Simulated) -> None:
    text = simulated.in_shell("atop", "-P", "MEM,SWP,PAG,PRM,PRG", "0", "1")
    said: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        # a name stands in brackets, and may hold brackets and blanks
        name = re.search(r" \((.*?)\) (?=[A-Z] )", line)
        words = line.replace(name[0], " NAME ").split() if name else line.split()
        said.setdefault(words[0], []).append([name[1] if name and word == "NAME" else word for word in words[6:]])
    page = 4096
    memory, swap, paging = said["MEM"][0], said["SWP"][0], said["PAG"][0]
    swapped = simulated.swapped(WORKER.pid) // 4
    assert list(map(int, memory[:4])) == [page, MEMORY // page, (TOTAL - simulated.used()) // 4, CACHE // 4]
    assert list(map(int, swap[:3])) == [page, SWAP // page, SWAP // page - swapped]
    scans, swapins, swapouts, kills = (int(paging[i]) for i in (1, 4, 5, 6))
    assert (scans, swapins, swapouts, kills) == (simulated.table("vmstat")["pgscan_direct"], 0, swapped, 1)
    processes = {int(row[0]): row for row in said["PRM"] if row[16] == "y"}
    assert set(processes) == PIDS
    for pid, row in processes.items():
        known = BY_PID[pid]
        assert row[1] == known.comm
        assert list(map(int, row[3:6])) == [page, known.total_vm >> 10, simulated.rss(pid)]
        assert (int(row[13]), int(row[14])) == (simulated.kb(pid, "VmStk"), simulated.swapped(pid))
    owners = {int(row[0]): tuple(map(int, row[3:7])) for row in reversed(said["PRG"])}
    for known in PROCESSES:
        assert owners[known.pid] == (known.uid, known.uid, known.pid, known.threads)
        for tid in known.tids:
            assert owners[tid] == (known.uid, known.uid, known.pid, 1)


@pytest.mark.client("atop -P PRG", "atop", "that it comes to an end where every process has threads")
def test_atop_where_every_process_has_threads(shipped: Simulated) -> None:
    """It reads all of them again until it finds fewer threads than loadavg says."""
    text = shipped.in_shell("atop", "-P", "PRG", "0", "1")
    assert {int(line.split()[6]) for line in text.splitlines() if "(redis-server)" in line} >= {1}


# -- earlyoom ----------------------------------------------------------------------------------------


@pytest.mark.client(
    "earlyoom --dryrun", "earlyoom", "memory and swap it sees, the process it would take, its score and size"
)
def test_earlyoom(simulated: Simulated) -> None:
    """Whatever is free is below 99 %; it takes the highest oom_score. Never without --dryrun."""
    command = [SCRIPT, "shell", "--mount", simulated.mount, "--", "earlyoom", "--dryrun", "-m", "99,98", "-s", "99,98"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "dryrun, not actually" in line or len(lines) > 60:
                break
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    text = "".join(lines)
    assert f"mem total: {MEMORY >> 20:4d} MiB, swap total: {SWAP >> 20:4d} MiB" in text
    chosen = re.search(r'process (\d+) uid (\d+) "(.*?)": badness (\d+), VmRSS (\d+) MiB', text)
    assert chosen, text
    pid, uid, name, badness, rss = chosen.groups()
    assert (int(pid), int(uid), name) == (SIMDB.pid, SIMDB.uid, SIMDB.comm)
    assert (int(badness), int(rss)) == (int(simulated.read("20/oom_score")), simulated.rss(SIMDB.pid) >> 10)
