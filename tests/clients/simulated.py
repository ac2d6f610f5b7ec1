"""The simulated host of the clients' tests: its processes, with numbers that arithmetic alone gives, and its daemon.

Nothing is short on the host itself, so whatever a process of no group touched stays in memory; the group `web` has
less than its process wants, which makes it swap; the group `tight` cannot swap what is locked, and is killed.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pterefd import paths
from pterefd.procfs import mountpoint
from tests.house import AT, MIB, SPAN, dontneed, exec_, fault, mmap, write_trace

SCRIPT = Path(sys.executable).parent / "pterefd"
MEMORY = 512 * MIB
SWAP = 128 * MIB
GROUP_LIMIT = 16 * MIB
DIRECTORIES = "pterefd-clients-"
PROGRAM = 0x400000  # where the program's file is mapped
STACK = 0x7FFFFF000000
STACK_BYTES = 132 << 10


@dataclass(frozen=True)
class Known:
    """A process, in bytes, as its trace says.

    anon: written pages, in memory or in swap.  half: of them, those that one other process maps too.  tids: without
    the first.
    """

    pid: int
    ppid: int
    comm: str
    cmdline: tuple[str, ...]
    uid: int
    user: str
    total_vm: int
    anon: int
    file: int = 0
    shmem: int = 0
    tids: tuple[int, ...] = ()
    oom_score_adj: int = 0
    group: str = ""
    half: int = 0

    @property
    def threads(self) -> int:
        return 1 + len(self.tids)

    @property
    def args(self) -> str:
        """As ps shows it."""
        return " ".join(self.cmdline) if self.cmdline else f"[{self.comm}]"


INIT = Known(1, 0, "init", ("/sbin/init",), 0, "root", 4 * MIB, MIB)
SIMDB = Known(
    20,
    1,
    "simdb",
    ("simdb", "--data", "/srv/my data"),
    33,
    "www-data",
    # heap, program, shared memory, stack, three emptied spans
    64 * MIB + 4 * MIB + 2 * MIB + STACK_BYTES + 8 * MIB,
    48 * MIB + (8 << 10),
    2 * MIB,
    MIB,
    (21, 22),
    200,
)
ODD = Known(30, 20, "sim web) x", ("sim web) x", "serve"), 65534, "nobody", 8 * MIB, 6 * MIB)
BARE = Known(40, 1, "bare", (), 0, "root", 2 * MIB, MIB, half=MIB)
TWIN = replace(BARE, pid=41, ppid=40)  # forked, and nothing written since
WORKER = Known(50, 0, "worker", ("worker", "-n", "1"), 33, "www-data", 32 * MIB, 24 * MIB, group="web", tids=(51,))
PROCESSES = (INIT, SIMDB, ODD, BARE, TWIN, WORKER)
BY_PID = {process.pid: process for process in PROCESSES}
PIDS = set(BY_PID)
KILLED = 60  # what the group `tight` could not hold


def _started(known: Known, heap: int, written: int) -> list[dict[str, Any]]:
    """A process that has written so much of a heap."""
    extra = {"cmdline": list(known.cmdline)} if known.cmdline else {}
    events = [exec_(known.pid, known.comm, uid=known.uid, gid=known.uid, oom_score_adj=known.oom_score_adj, **extra)]
    if known.ppid:
        events.insert(0, {"op": "fork", "pid": known.ppid, "child": known.pid})
    events += [mmap(known.pid, AT, heap), fault(known.pid, AT, written, write=True)]
    events += [{"op": "thread", "pid": known.pid, "tid": tid} for tid in known.tids]
    return events


def _simdb() -> list[dict[str, Any]]:
    pid, emptied, shared = SIMDB.pid, AT + 128 * SPAN, AT + 256 * SPAN
    events = [
        *_started(SIMDB, 64 * MIB, 48 * MIB),
        mmap(pid, PROGRAM, 4 * MIB, prot="r-x", flags="private", path="/usr/bin/simdb", offset=0, file_size=4 * MIB),
        fault(pid, PROGRAM, 2 * MIB, write=False),
        mmap(pid, shared, 2 * MIB, flags="shared,anonymous"),
        fault(pid, shared, MIB, write=True),
        mmap(pid, STACK, STACK_BYTES, flags="private,anonymous,growsdown,stack"),
        fault(pid, STACK + STACK_BYTES - 8192, 8192, write=True),
        mmap(pid, emptied, 4 * SPAN),
    ]
    for at in range(emptied, emptied + 3 * SPAN, SPAN):
        events += [fault(pid, at, 4096, write=True), dontneed(pid, at, MIB), dontneed(pid, at + MIB, MIB)]
    return events


HOST = [
    *_started(INIT, 4 * MIB, MIB),
    *_simdb(),
    *_started(ODD, 8 * MIB, 6 * MIB),
    *_started(BARE, 2 * MIB, MIB),
    {"op": "fork", "pid": BARE.pid, "child": TWIN.pid},
]
FORKS = sum(event["op"] in ("fork", "thread") for event in HOST) + len(WORKER.tids)
# The first process of a trace is its pid 1; the configuration shifts these two past the host's.
WEB = _started(replace(WORKER, pid=1, tids=(2,)), 32 * MIB, 24 * MIB)
TIGHT = [
    exec_(1, "greedy", uid=33, gid=33),
    mmap(1, AT, 8 * MIB),
    {"op": "mlock", "pid": 1, "addr": AT, "len": 8 * MIB},
]


def write_configuration(directory: Path) -> Path:
    """The host's traces and its configuration."""
    for name, events in (("host", HOST), ("web", WEB), ("tight", TIGHT)):
        write_trace(directory / f"{name}.jsonl", events)
    path = directory / "pterefd.toml"
    path.write_text(
        f"""
[daemon]
mount = "{directory}/mnt"
allow_other = true
[metrics]
address = "off"
[host]
memory = {MEMORY}
swap = {SWAP}
[replay]
traces = ["host.jsonl"]
speed = "max"
[[group]]
name = "web"
limit = {GROUP_LIMIT}
[[group]]
name = "tight"
limit = "4MiB"
[[mm]]
trace = "web.jsonl"
group = "web"
pid_base = {WORKER.pid - 1}
[[mm]]
trace = "tight.jsonl"
group = "tight"
pid_base = {KILLED - 1}
"""
    )
    return path


def write_shipped_configuration(directory: Path) -> Path:
    """The shipped recording on a host without accounts of memory, as `make run` has it, but at once at its end."""
    path = directory / "pterefd.toml"
    path.write_text(
        f"""
daemon.mount = "{directory}/mnt"
metrics.address = "off"
replay.traces = ["{paths.share("etc/traces/redis.parquet")}"]
replay.speed = "max"
"""
    )
    return path


@dataclass
class Simulated:
    """A running daemon, what is mounted, and the ways to point a client at it."""

    mount: Path
    process: subprocess.Popen[str]
    environment: dict[str, str] = field(default_factory=lambda: {**os.environ, "LC_ALL": "C", "COLUMNS": "500"})

    # -- what the host itself says, read without any client ---------------------------------------
    def read(self, path: str) -> str:
        return (self.mount / path).read_text()

    def status(self, pid: int) -> dict[str, str]:
        """Lines of PID/status, values without their unit."""
        rows = (line.partition(":") for line in self.read(f"{pid}/status").splitlines())
        return {key: value.strip().removesuffix(" kB") for key, _, value in rows}

    def kb(self, pid: int, key: str) -> int:
        """A line of PID/status, in kB."""
        return int(self.status(pid)[key])

    def table(self, path: str) -> dict[str, int]:
        """meminfo (kB) or vmstat: a number for each key."""
        rows = (line.replace(":", " ").split() for line in self.read(path).splitlines())
        return {row[0]: int(row[1]) for row in rows}

    def rss(self, pid: int) -> int:
        """kB in memory: what was written, less what is in swap."""
        known = BY_PID[pid]
        return ((known.anon + known.file + known.shmem) >> 10) - self.swapped(pid)

    def swapped(self, pid: int) -> int:
        """kB in swap. How much the group's limit leaves no room for; of all others nothing."""
        return self.kb(pid, "VmSwap")

    def pss(self, pid: int) -> int:
        """kB: what it shares counts half."""
        return self.rss(pid) - (BY_PID[pid].half >> 11)

    def uss(self, pid: int) -> int:
        """kB that no other process maps."""
        return self.rss(pid) - (BY_PID[pid].half >> 10)

    def used(self) -> int:
        """kB that are not free: each page once, and the page tables."""
        held = sum(self.pss(pid) for pid in PIDS)
        return held + sum(self.kb(pid, "VmPTE") for pid in PIDS)

    def wait_until_ended(self) -> None:
        deadline = time.monotonic() + 200  # kernels that changed are compiled first
        replays = self.mount / "sys/pterefd/replay"
        states = [replays / number / "state" for number in os.listdir(replays) if number.isdecimal()]
        while any(state.read_text() not in ("ended\n", "held\n") for state in states):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    # -- running clients --------------------------------------------------------------------------
    def run(self, *command: str | Path, code: int = 0, timeout: float = 60, **options: Any) -> str:
        """What a command prints; it must end with `code`."""
        settings: dict[str, Any] = {"env": self.environment, "stdin": subprocess.DEVNULL, **options}
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=timeout, **settings
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        self.stderr = done.stderr
        return done.stdout

    def in_shell(self, *command: str | Path, **options: Any) -> str:
        """What a client prints in `pterefd shell`."""
        return self.run(SCRIPT, "shell", "--mount", self.mount, "--", *command, **options)

    def bound(self, *command: str | Path, **options: Any) -> str:
        """What a client prints in a mount namespace with the tree on /proc, in this pid namespace."""
        script = 'mount --bind "$1" /proc && shift && exec "$@"'
        within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        return self.run(*within, self.mount, *command, **options)


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that other users may enter; those of pytest they may not."""
    with tempfile.TemporaryDirectory(prefix=DIRECTORIES) as name:
        os.chmod(name, 0o755)
        yield Path(name)


def take_away_dead_mounts() -> None:
    """What daemons left that were killed, and not terminated, in such directories."""
    for entry in mountpoint.mounts():
        ours = Path(entry.point).parent.name.startswith(DIRECTORIES) and entry.fstype == mountpoint.FSTYPE
        if ours and mountpoint.answer(entry.point) in mountpoint.DEAD:
            mountpoint.unmount(entry.point, detach=True)


@contextmanager
def daemon(directory: Path, configuration: Path) -> Iterator[Simulated]:
    """A daemon with that configuration, whose mount point is mnt in directory. It ends, and unmounts, with the tests.

    Also where those are killed: it is not in their process group, which `timeout -s KILL` kills as a whole.
    """
    mount = directory / "mnt"
    mount.mkdir()
    command = ["setpriv", "--pdeathsig", "TERM", SCRIPT, "run", "-c", configuration]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
        )
    try:
        assert process.stdout is not None
        assert "mounted at" in process.stdout.readline(), (directory / "log").read_text()
        yield Simulated(mount, process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
            if mountpoint.is_ours(str(mount)):
                mountpoint.unmount(str(mount), detach=True)


@contextmanager
def exporter(*command: str | Path) -> Iterator[str]:
    """An exporter that serves on the free port put behind its last argument; yields the URL of its metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [str(word) for word in command]
    process = subprocess.Popen(
        [*words[:-1], words[-1] + address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    url = f"http://{address}/metrics"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                scrape(url)
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


def scrape(url: str) -> dict[str, float]:
    """A value for each `name{labels}` that an exporter says."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return samples(response.read().decode())


def rows(text: str, header: str | None = None) -> list[list[str]]:
    """Lines split at white space, those below the line that begins with `header` where one is given."""
    lines = text.splitlines()
    if header is not None:
        begin = next(i for i, line in enumerate(lines) if line.split()[:1] == [header])
        lines = lines[begin + 1 :]
    return [line.split() for line in lines if line.strip()]


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format: a value for each `name{labels}`."""
    found = (re.fullmatch(r"([a-zA-Z_:][^ {]*(?:\{.*\})?) (\S+)", line) for line in text.splitlines())
    return {match[1]: float(match[2]) for match in found if match}


@contextmanager
def smallest() -> Iterator[Simulated]:
    """A daemon on the small host of tests/house.py, which its own user alone may see."""
    with public_directory() as directory:
        write_trace(directory / "trace.jsonl")
        path = directory / "pterefd.toml"
        path.write_text(f'daemon.mount = "{directory}/mnt"\nmetrics.address = "off"\nreplay.traces = ["trace.jsonl"]\n')
        with daemon(directory, path) as running:
            yield running
