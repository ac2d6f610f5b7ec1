"""What servers under load notice when they are freed from every second: throughput and latency with it and without.

    python -m bench.live_servers [--seconds 10] [--rounds 4] [--only NAME] [--json FILE]

redis with keys that come and go, PostgreSQL with pgbench and sorts, and a node program and a JVM with a cache
that they drop. Rounds without and with freeing in turns; ratios of their medians. Nobody may see an error: the
clients', and of PostgreSQL the sums that pgbench keeps equal. Exits 1 where there was one.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import pwd
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pterefd.errors import Missing, PterefdError
from pterefd.freeing.work import Request, free
from pterefd.live import procmem
from pterefd.live.scan import start_time

NODE = Path(__file__).with_name("live_server.js")
JVM = Path(__file__).with_name("LiveServer.java")
CLIENTS = 16
VALUE_BYTES, KEYS = 20_000, 20_000
DELETE_SECONDS = 2.0
PERIOD = 1.0
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(slots=True)
class Round:
    """One round: requests a second, p99 in ms, what clients saw go wrong; VmPTE of all processes at its end, kB."""

    rate: float
    p99: float
    errors: list[str] = field(default_factory=list)
    vm_pte: int = 0


@dataclass(slots=True)
class Frees:
    """What freeing did in all rounds."""

    stops: list[float] = field(default_factory=list)
    freed: int = 0
    requests: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Server(Protocol):
    """A server that runs. writers: of Request."""

    version: str
    writers: tuple[str, ...]

    def pids(self) -> list[int]:
        """Its processes."""

    def load(self, seconds: float) -> Round:
        """About so many seconds of load."""


# ---- redis -----------------------------------------------------------------------------------------


class Redis:
    """redis-benchmark sets keys; every other second all are deleted, and jemalloc discards their memory."""

    writers = ()

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.version = said("redis-server", "--version").split()[2].removeprefix("v=")
        self._socket = str(folder / "redis.sock")
        self._process = process
        self._rate = 20_000.0

    def pids(self) -> list[int]:
        """One."""
        return [self._process.pid]

    def _cli(self, *words: str) -> None:
        subprocess.run(["redis-cli", "-s", self._socket, *words], check=True, stdout=subprocess.DEVNULL)

    def _benchmark(self, keys: int, *words: object, requests: int = 0) -> subprocess.CompletedProcess[str]:
        numbers = ["-c", CLIENTS, "-r", keys, "-n", requests or keys]
        command = ["redis-benchmark", "-s", self._socket, *map(str, (*numbers, *words))]
        return subprocess.run(command, capture_output=True, text=True)

    def load(self, seconds: float) -> Round:
        """As many requests as take so long, by the round before."""
        over = threading.Event()

        def deletes() -> None:
            while not over.wait(DELETE_SECONDS):
                # Given back in pieces, at two times: the PTE pages stay.
                self._benchmark(KEYS, "-P", 16, "del", "key:__rand_int__")
                self._cli("memory", "purge")
                self._cli("flushall")
                self._cli("memory", "purge")

        deleter = threading.Thread(target=deletes)
        deleter.start()
        try:
            done = self._benchmark(KEYS, "-d", VALUE_BYTES, "-t", "set", "--csv", requests=int(self._rate * seconds))
        finally:
            over.set()
            deleter.join()
        if done.returncode:
            return Round(0, 0, [done.stderr.strip() or done.stdout.strip()])
        row = next(csv.DictReader(io.StringIO(done.stdout)))
        self._rate = float(row["rps"])
        return Round(self._rate, float(row["p99_latency_ms"]), done.stderr.splitlines())


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """At a Unix socket, nothing saved."""
    command = ["redis-server", "--port", "0", "--unixsocket", folder / "redis.sock", "--save", "", "--dir", folder]
    with running(command) as process:
        wait_for(folder / "redis.sock")
        yield Redis(folder, process)


# ---- PostgreSQL ------------------------------------------------------------------------------------

SORT = "select count(*) from (select filler from pgbench_accounts where aid <= 20000 order by filler, abalance) a;\n"
SUMS = (
    "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),"
    " (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)"
)
_TROUBLE = re.compile("error|fatal|panic|abort", re.IGNORECASE)


class Postgres:
    """pgbench: nine of ten transactions are its own, one sorts."""

    writers = ()

    def __init__(self, folder: Path, bin_: Path, process: subprocess.Popen[bytes]) -> None:
        self.version = said(str(bin_ / "postgres"), "--version").split()[2]
        self._folder = folder
        self._bin = bin_
        self._process = process
        self._environment = {**os.environ, "PGHOST": str(folder), "PGUSER": "postgres", "PGDATABASE": "postgres"}

    def pids(self) -> list[int]:
        """The postmaster and its children."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """One of its programs."""
        command = [self._bin / program, *words]
        return subprocess.run(command, capture_output=True, text=True, env=self._environment, cwd=self._folder)

    def load(self, seconds: float) -> Round:
        """So many seconds."""
        for log in self._folder.glob("round.*"):
            log.unlink()
        sort = self._folder / "sort.sql"
        sort.write_text(SORT)
        words = ["-n", "-c", "8", "-j", "2", "-T", f"{max(1, round(seconds))}", "-b", "tpcb-like@9", "-f", f"{sort}@1"]
        done = self.run("pgbench", *words, "-l", "--log-prefix=round")
        rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        lines = [line.split() for log in self._folder.glob("round.*") for line in log.read_text().splitlines()]
        times = sorted(int(words[2]) for words in lines)
        errors = [line for line in done.stderr.splitlines() if _TROUBLE.search(line)]
        if done.returncode or rate is None or not times:
            return Round(0, 0, errors or [f"pgbench: status {done.returncode}"])
        sums = self.run("psql", "-At", "-c", SUMS).stdout.strip()
        if len(set(sums.split("|"))) != 1:
            errors.append(f"sums differ: {sums}")
        return Round(float(rate[1]), times[len(times) * 99 // 100] / 1000, errors)


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A cluster of its own at a Unix socket, as the user postgres where this is root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise Missing("PostgreSQL is not there: setup/packages.sh bench")
    bin_ = found[-1].parent
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = folder / "data"
    words = [bin_ / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    settings = ["shared_buffers=128MB", "work_mem=32MB", f"unix_socket_directories={folder}", "listen_addresses="]
    command = [bin_ / "postgres", "-D", data, *(word for setting in settings for word in ("-c", setting))]
    with running(command, stop=signal.SIGINT, cwd=folder, **user) as process:
        wait_for(folder / ".s.PGSQL.5432")
        server = Postgres(folder, bin_, process)
        while server.run("pg_isready").returncode:
            time.sleep(0.1)
        server.run("pgbench", "-q", "-i", "-s", "10")
        yield server


# ---- node ------------------------------------------------------------------------------------------


class Node:
    """live_server.js, both ends. libuv has an io_uring of its own from node 20 on: it is accepted here."""

    writers = ("io_uring",)

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.version = said("node", "--version").strip().removeprefix("v")
        self._socket = folder / "node.sock"
        self._process = process

    def pids(self) -> list[int]:
        """One."""
        return [self._process.pid]

    def load(self, seconds: float) -> Round:
        """So many seconds."""
        return http_load(str(self._socket), seconds)


def http_load(where: str, seconds: float) -> Round:
    """Load on a server of live_server.js' kind."""
    command = ["node", NODE, "load", where, f"{CLIENTS}", f"{seconds:g}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Round(0, 0, [done.stderr.strip()])
    found = json.loads(done.stdout)
    return Round(found["rate"], found["p99"], found["errors"])


@contextmanager
def node(folder: Path) -> Iterator[Node]:
    """At a Unix socket."""
    with running(["node", NODE, "serve", folder / "node.sock"]) as process:
        wait_for(folder / "node.sock")
        yield Node(folder, process)


# ---- a JVM -----------------------------------------------------------------------------------------


class Jvm:
    """LiveServer.java; what malloc holds and does not need is given back every other second."""

    writers = ()

    def __init__(self, port: str, process: subprocess.Popen[bytes]) -> None:
        self.version = said("java", "--version").split()[1]
        self._port = port
        self._process = process

    def pids(self) -> list[int]:
        """One."""
        return [self._process.pid]

    def load(self, seconds: float) -> Round:
        """So many seconds."""
        return http_load(self._port, seconds)


@contextmanager
def jvm(folder: Path) -> Iterator[Jvm]:
    """At a port of loopback."""
    with running(["java", "-Xmx512m", "-XX:TrimNativeHeapInterval=2000", JVM, folder / "port"]) as process:
        wait_for(folder / "port")
        yield Jvm((folder / "port").read_text(), process)


# ---- all -------------------------------------------------------------------------------------------

SERVERS = {"redis": redis, "postgresql": postgres, "node": node, "jvm": jvm}


def said(*command: str) -> str:
    """What a command writes."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def running(
    command: list[Any], *, stop: signal.Signals = signal.SIGTERM, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, ended afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.send_signal(stop)
        process.wait()


def wait_for(path: Path) -> None:
    """Until it is there; Missing after a while."""
    end = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > end:
            raise Missing(f"{path.name}: no server has made it")
        time.sleep(0.01)


def vm_pte(server: Server) -> int:
    """kB of page tables of all processes."""
    total = 0
    for pid in server.pids():
        with suppress(*_GONE):
            total += procmem.read_status(pid).kb.get("VmPTE", 0)
    return total


def free_all(server: Server, frees: Frees) -> None:
    """Free from each process once."""
    for pid in server.pids():
        frees.requests += 1
        try:
            found = free(Request(pid, start_time(pid), writers=server.writers, seconds=PERIOD, patience=PERIOD / 2))
        except _GONE:
            frees.labels["gone"] += 1
            continue
        except PterefdError as error:
            frees.faults.append(str(error))
            continue
        frees.stops += found.stopped
        frees.freed += found.freed
        if found.label:
            frees.labels[found.label] += 1
            frees.reasons.setdefault(found.label, found.refused or found.put_off)


def one_round(server: Server, seconds: float, frees: Frees | None) -> Round:
    """A round of load, freed from every second where frees is given."""
    over = threading.Event()

    def work(frees: Frees) -> None:
        due = time.monotonic() + PERIOD
        while not over.wait(max(0.0, due - time.monotonic())):
            due = max(due + PERIOD, time.monotonic())
            free_all(server, frees)

    freer = threading.Thread(target=work, args=(frees,)) if frees is not None else None
    if freer is not None:
        freer.start()
    sampled: list[int] = []
    sampler = threading.Thread(target=lambda: sampled.append(_sampled(server, over)))
    sampler.start()
    found = server.load(seconds)
    over.set()
    sampler.join()
    if freer is not None:
        freer.join()
    found.vm_pte = sampled[0]
    return found


def _sampled(server: Server, over: threading.Event) -> int:
    """The median of VmPTE while the load runs."""
    values = []
    while not over.wait(0.5):
        values.append(vm_pte(server))
    return round(statistics.median(values or [vm_pte(server)]))


def measure(name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """One server's rows."""
    with tempfile.TemporaryDirectory(prefix="pterefd-live-") as folder, SERVERS[name](Path(folder)) as server:
        server.load(min(seconds, 3.0))
        frees = Frees()
        plain, freed = [], []
        for number in range(rounds):
            # which of the two comes first changes
            for with_it in (False, True) if number % 2 == 0 else (True, False):
                (freed if with_it else plain).append(one_round(server, seconds, frees if with_it else None))
        stops = sorted(frees.stops)
        row: dict[str, Any] = {"server": name, "version": server.version, "rounds": rounds, "seconds": seconds}
        row |= {"processes": len(server.pids()), "writers": list(server.writers)}
    for what, one in (("plain", plain), ("freed", freed)):
        row[what] = {
            key: statistics.median(getattr(found, key) for found in one) for key in ("rate", "p99", "vm_pte")
        } | {"rates": [found.rate for found in one], "p99s": [found.p99 for found in one]}
    row["errors"] = [error for found in (*plain, *freed) for error in found.errors] + frees.faults
    row |= {"requests": frees.requests, "stops": len(stops), "freed_kb": frees.freed >> 10}
    if stops:
        row["stop_ms"] = [1000 * stops[int(share * (len(stops) - 1))] for share in (0.5, 0.99, 1.0)]
    row |= {"labels": dict(frees.labels), "reasons": frees.reasons}
    return row


def ratio(row: Mapping[str, Any], key: str) -> float:
    """With freeing, beside without."""
    plain: float = row["plain"][key]
    return float(row["freed"][key]) / plain if plain else float("nan")


def show(row: Mapping[str, Any]) -> None:
    """One server's lines."""
    rounds = f"{row['rounds']} rounds of {row['seconds']:g} s"
    print(f"{row['server']} {row['version']}, {row['processes']} processes, {rounds}")
    for key, text in (("rate", "requests/s"), ("p99", "p99, ms"), ("vm_pte", "VmPTE, kB")):
        plain, freed = row["plain"][key], row["freed"][key]
        print(f"    {text:12}{plain:>12,.2f}{freed:>12,.2f}{ratio(row, key):>8.2f}")
    stop = "median {:.2f} ms, p99 {:.2f} ms, most {:.2f} ms".format(*row["stop_ms"]) if "stop_ms" in row else "none"
    print(f"    requests {row['requests']}, stops {row['stops']}: {stop}; freed {row['freed_kb']:,} kB")
    for label, count in row["labels"].items():
        print(f"    not done: {label} {count}, as: {row['reasons'].get(label, 'ended meanwhile')}")
    print(*(f"    error: {error}" for error in row["errors"]), f"    errors: {len(row['errors'])}", sep="\n")


def main() -> None:
    """Print a table for each server."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.live_servers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round (%(default)g)")
    parser.add_argument("--rounds", type=int, default=4, help="of each kind (%(default)d)")
    parser.add_argument("--only", choices=SERVERS, action="append", help="this server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    rows = []
    print(f"{'':16}{'without':>12}{'with':>12}{'ratio':>8}   Linux {platform.release()}, {os.cpu_count()} CPUs")
    for name in options.only or SERVERS:
        rows.append(measure(name, options.seconds, options.rounds))
        show(rows[-1])
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["errors"] for row in rows))


if __name__ == "__main__":
    main()
