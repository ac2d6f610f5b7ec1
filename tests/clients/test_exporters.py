"""node_exporter, process-exporter and psutil, each pointed at the mount by its own option."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clients.simulated import (
    BY_PID,
    FORKS,
    MEMORY,
    ODD,
    PIDS,
    PROCESSES,
    SIMDB,
    SWAP,
    WORKER,
    Simulated,
    exporter,
    scrape,
)

pytestmark = pytest.mark.mount

COLLECTORS = ("meminfo", "vmstat", "stat", "loadavg", "processes", "pressure")
CACHE = SIMDB.file + SIMDB.shmem
THREADS = sum(known.threads for known in PROCESSES)


@pytest.mark.client(
    "node_exporter",
    "prometheus-node-exporter",
    "--collector.disable-defaults, --collector.NAME for meminfo, vmstat, stat, loadavg, processes, "
    "pressure: each succeeds, and says what the host knows",
)
def test_node_exporter(simulated: Simulated) -> None:
    command = (
        "prometheus-node-exporter",
        f"--path.procfs={simulated.mount}",
        "--collector.disable-defaults",
        *(f"--collector.{name}" for name in COLLECTORS),
        "--web.listen-address=",
    )
    with exporter(*command) as url:
        said = scrape(url)
    assert {name: said[f'node_scrape_collector_success{{collector="{name}"}}'] for name in COLLECTORS} == dict.fromkeys(
        COLLECTORS, 1
    )
    # meminfo
    swapped = sum(simulated.swapped(pid) for pid in PIDS) << 10
    assert said["node_memory_MemTotal_bytes"] == MEMORY
    assert said["node_memory_MemFree_bytes"] == MEMORY - (simulated.used() << 10)
    assert said["node_memory_Cached_bytes"] == CACHE
    assert (said["node_memory_SwapTotal_bytes"], said["node_memory_SwapFree_bytes"]) == (SWAP, SWAP - swapped)
    for name, key in (("AnonPages", "RssAnon"), ("PageTables", "VmPTE")):
        assert said[f"node_memory_{name}_bytes"] == sum(simulated.kb(pid, key) for pid in PIDS) << 10
    for name, value in simulated.table("meminfo").items():
        exported = name.replace("(", "_").replace(")", "")
        assert said.get(f"node_memory_{exported}_bytes", said.get(f"node_memory_{exported}")) in (value, value << 10)
    # vmstat
    assert said["node_vmstat_oom_kill"] == 1
    assert said["node_vmstat_pswpout"] == swapped >> 12
    assert said["node_vmstat_pgfault"] == simulated.table("vmstat")["pgfault"] > sum(k.anon for k in PROCESSES) >> 13
    # stat, loadavg, processes
    assert said["node_forks_total"] == FORKS
    assert said["node_boot_time_seconds"] > 1.6e9
    assert (said["node_load1"], said["node_procs_running"]) == (0, 0)
    assert (said["node_processes_pids"], said["node_processes_threads"]) == (len(PIDS), THREADS)
    assert said['node_processes_state{state="S"}'] == len(PIDS)
    assert said["node_processes_max_processes"] == int(simulated.read("sys/kernel/pid_max"))
    # pressure: the group's reclaim kept its process waiting
    total = int(simulated.read("pressure/memory").split("total=")[1].split()[0])
    assert said["node_pressure_memory_waiting_seconds_total"] == pytest.approx(total / 1e6)
    assert said["node_pressure_memory_stalled_seconds_total"] > 0
    assert said["node_pressure_io_waiting_seconds_total"] == 0


CONFIGURATION = """process_names:
  - name: "{{.Comm}}"
    cmdline: ['.+']
"""


@pytest.mark.client(
    "process-exporter",
    "prometheus-process-exporter",
    "memory of each kind, processes, threads, faults by name; no read errors",
)
def test_process_exporter(simulated: Simulated, tmp_path: Path) -> None:
    (tmp_path / "names.yml").write_text(CONFIGURATION)
    command = (
        *("prometheus-process-exporter", "-procfs", simulated.mount, "-config.path", tmp_path / "names.yml"),
        "-children=false",
        "-web.listen-address=",
    )
    with exporter(*command) as url:
        scrape(url)
        said = scrape(url)

    def of(metric: str, comm: str, label: str = "") -> float:
        return said[f'namedprocess_namegroup_{metric}{{groupname="{comm}"{label}}}']

    named = [known for known in PROCESSES if known.cmdline]
    for known in named:
        assert of("num_procs", known.comm) == 1
        assert of("num_threads", known.comm) == known.threads
        sizes = {
            "resident": simulated.rss(known.pid),
            "virtual": known.total_vm >> 10,
            "swapped": simulated.swapped(known.pid),
            "proportionalResident": simulated.pss(known.pid),
        }
        for kind, size in sizes.items():
            assert of("memory_bytes", known.comm, f',memtype="{kind}"') == size << 10, (known.comm, kind)
    assert ODD in named
    assert len([name for name in said if name.startswith("namedprocess_namegroup_num_procs")]) == len(named)
    for errors in ("scrape_errors", "scrape_procread_errors", "scrape_partial_errors"):
        assert said[f"namedprocess_{errors}"] == 0


PSUTIL = """
import json, sys, warnings
import psutil
warnings.simplefilter("error")
psutil.PROCFS_PATH = sys.argv[1]
attributes = ["pid", "ppid", "name", "cmdline", "username", "num_threads", "memory_full_info", "status", "exe", "cwd"]
attributes += ["uids", "create_time", "memory_percent", "num_ctx_switches", "io_counters", "cpu_times", "environ"]
processes = {process.pid: process.info for process in psutil.process_iter(attributes)}
for info in processes.values():
    info["memory_full_info"] = info["memory_full_info"]._asdict()
maps = [m._asdict() for m in psutil.Process(int(sys.argv[2])).memory_maps(grouped=False)]
memory, swap = psutil.virtual_memory()._asdict(), psutil.swap_memory()._asdict()
print(json.dumps([processes, maps, memory, swap, psutil.boot_time()], default=str))
"""


@pytest.mark.client(
    "psutil",
    "psutil",
    "process_iter with memory_full_info, names, owners, threads; memory_maps; virtual_memory; swap_memory",
)
def test_psutil(simulated: Simulated) -> None:
    text = simulated.run(sys.executable, "-c", PSUTIL, simulated.mount, str(SIMDB.pid))
    processes, maps, memory, swap, booted = json.loads(text)
    assert {int(pid) for pid in processes} == PIDS
    for pid, known in BY_PID.items():
        info = processes[str(pid)]
        assert (info["name"], info["username"], info["ppid"]) == (known.comm, known.user, known.ppid)
        assert (info["cmdline"], info["num_threads"], info["uids"]) == (
            list(known.cmdline),
            known.threads,
            [known.uid] * 3,
        )
        sizes = {
            "rss": simulated.rss(pid),
            "vms": known.total_vm >> 10,
            "shared": (known.file + known.shmem) >> 10,
            "uss": simulated.uss(pid),
            "pss": simulated.pss(pid),
            "swap": simulated.swapped(pid),
        }
        assert {key: info["memory_full_info"][key] for key in sizes} == {key: kb << 10 for key, kb in sizes.items()}
        assert info["memory_percent"] == pytest.approx(100 * (simulated.rss(pid) << 10) / MEMORY)
        assert (info["status"], info["cwd"]) == ("sleeping", "/")
        assert abs(float(info["create_time"]) - booted) < 60
    assert processes[str(SIMDB.pid)]["exe"] == "/usr/bin/simdb"
    assert {row["path"]: row["rss"] for row in maps if row["path"].startswith("/usr")} == {"/usr/bin/simdb": SIMDB.file}
    assert (memory["total"], memory["free"]) == (MEMORY, MEMORY - (simulated.used() << 10))
    assert (memory["cached"], memory["shared"]) == (CACHE, SIMDB.shmem)
    swapped = simulated.swapped(WORKER.pid) << 10
    assert (swap["total"], swap["used"], swap["sin"], swap["sout"]) == (SWAP, swapped, 0, swapped)
