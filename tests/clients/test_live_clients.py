"""ps, top, pmap, free, vmstat and psutil on the mount of a live host: what they print is what they print of /proc."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.simulated import SCRIPT, Simulated, daemon, exporter, public_directory, rows, scrape

pytestmark = [pytest.mark.mount, pytest.mark.kernel]


@pytest.fixture(scope="module")
def live() -> Iterator[Simulated]:
    """A daemon on this machine's processes."""
    with public_directory() as directory:
        path = directory / "pterefd.toml"
        path.write_text(
            f'host.kind = "live"\nmetrics.address = "off"\n[daemon]\nmount = "{directory}/mnt"\nallow_other = true\n'
        )
        with daemon(directory, path) as running:
            yield running


@pytest.fixture
def asleep() -> Iterator[subprocess.Popen[str]]:
    """A process of nobody's that does nothing."""
    program = "import os, time; os.setgid(65534); os.setuid(65534); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_pterefd_shell_is_for_simulated_ones(live: Simulated) -> None:
    """In a pid namespace of its own it would see no process but itself."""
    done = subprocess.run([SCRIPT, "shell", "--mount", live.mount, "true"], capture_output=True, text=True)
    assert done.returncode == 125
    assert "shows this machine's own processes" in done.stderr


COLUMNS = "pid,ppid,user,vsz,rss,stat,comm,args"


@pytest.mark.client("ps -p PID -o ...", "procps", "live: ids, user, sizes, state and command, as of /proc")
def test_ps(live: Simulated, asleep: subprocess.Popen[str]) -> None:
    command = ("ps", "-p", str(asleep.pid), "-o", COLUMNS)
    assert live.bound(*command) == live.run(*command)


@pytest.mark.client("ps -e", "procps", "live: every process that was there before and after, as of /proc")
def test_ps_lists_all(live: Simulated) -> None:
    command = ("ps", "-e", "-o", "pid=,comm=")
    before, ours, after = (set(say(*command).splitlines()) for say in (live.run, live.bound, live.run))
    assert before & after <= ours
    assert len(ours) > 3


@pytest.mark.client("top -b -n 1", "procps", "live: the process's user, VIRT, RES and command, and itself")
def test_top(live: Simulated, asleep: subprocess.Popen[str]) -> None:
    command = ("top", "-b", "-n", "1", "-p", str(asleep.pid))
    said, kernels = (rows(say(*command), "PID")[0] for say in (live.bound, live.run))
    assert said[:8] == kernels[:8]
    assert said[-1] == kernels[-1]


@pytest.mark.client("pmap -x", "procps", "live: every mapping, as of /proc")
def test_pmap(live: Simulated, asleep: subprocess.Popen[str]) -> None:
    command = ("pmap", "-x", str(asleep.pid))
    assert live.bound(*command) == live.run(*command)


@pytest.mark.client("free", "procps", "live: the total of memory and of swap")
def test_free(live: Simulated) -> None:
    said, kernels = ([row[:2] for row in rows(say("free"), "total")] for say in (live.bound, live.run))
    assert said == kernels


@pytest.mark.client("vmstat -s", "procps", "live: the total of memory, and that faults go on")
def test_vmstat(live: Simulated) -> None:
    said, kernels = (rows(say("vmstat", "-s")) for say in (live.bound, live.run))
    assert said[0] == kernels[0]
    assert len(said) == len(kernels)


@pytest.mark.client("psutil.PROCFS_PATH", "psutil", "live: memory, owner, name and threads of a process")
def test_psutil(live: Simulated, asleep: subprocess.Popen[str]) -> None:
    program = (
        "import json, psutil, sys\n"
        "psutil.PROCFS_PATH = sys.argv[1]\n"
        "p = psutil.Process(int(sys.argv[2]))\n"
        "print(json.dumps([p.name(), p.memory_info().rss, p.uids().effective, p.num_threads(), p.ppid(), p.exe()]))"
    )
    said, kernels = (
        json.loads(live.run(sys.executable, "-c", program, proc, str(asleep.pid)))
        for proc in (live.mount, Path("/proc"))
    )
    assert said == kernels
    assert said[2] == 65534


@pytest.mark.client("sysctl", "procps", "live: knobs of the kernel's, and that none is set")
def test_sysctl(live: Simulated) -> None:
    names = ("vm.swappiness", "kernel.osrelease", "fs.file-max")
    assert live.bound("sysctl", *names) == live.run("sysctl", *names)
    before = live.run("sysctl", "-n", "vm.swappiness")
    live.bound("sysctl", "-w", "vm.swappiness=" + before.strip())
    assert 'setting key "vm.swappiness"' in live.stderr


COLLECTORS = ("meminfo", "vmstat", "stat", "loadavg", "processes", "filefd", "pressure", "netdev", "diskstats", "uname")


@pytest.mark.client("node_exporter", "prometheus-node-exporter", "live: each of ten collectors succeeds; MemTotal")
def test_node_exporter(live: Simulated) -> None:
    collectors = [f"--collector.{name}" for name in COLLECTORS]
    command = ("prometheus-node-exporter", f"--path.procfs={live.mount}", "--collector.disable-defaults", *collectors)
    with exporter(*command, "--web.listen-address=") as url:
        said = scrape(url)
    failed = [name for name in COLLECTORS if said[f'node_scrape_collector_success{{collector="{name}"}}'] != 1]
    assert failed == []
    total = int(Path("/proc/meminfo").read_text().split()[1])
    assert said["node_memory_MemTotal_bytes"] == total << 10


@pytest.mark.client("smem", "smem", "live: USS, PSS and RSS of a process, as of /proc")
def test_smem(live: Simulated, asleep: subprocess.Popen[str]) -> None:
    command = ("smem", "-H", "-c", "pid uss pss rss")
    said, kernels = (
        next(row for row in rows(say(*command)) if row[0] == str(asleep.pid)) for say in (live.bound, live.run)
    )
    assert [said[1], said[3]] == [kernels[1], kernels[3]]
