"""How long a file of the mount takes to open, read and close, beside a file system of one file in C.

    python -m bench.mount_latency [--times 5000] [--rounds 7] [--json FILE]

The C one (bench/one_file.c) and pterefd with 10,000 mms are mounted at the same time and read in turns, a round each:
the ratio is of the rounds' medians. Then the same files, in turns with nothing else, while the daemon replays at full
speed and another client writes free_ptes: the ratio is of p99. ls of the root and the daemon's start are timed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.make_traces import BASE, GIB, PAGE, parts
from pterefd.errors import Missing
from pterefd.source.meta import TraceMeta
from pterefd.source.writer import TraceWriter

PTEREFD = Path(sys.executable).parent / "pterefd"
REFERENCE = Path(__file__).with_name("one_file.c")
MMS = 10_000
FILES = {"sys/vm/swappiness": 1.5, f"{MMS // 2}/status": 2.5}  # and the target beside the C one's median
BUSY = 3.0  # target: p99 while busy beside p99 when idle
LS_MS = 100.0
BUSY_EVENTS = 60_000_000  # replay at full speed for as long as it is measured
MEMORY = "64GiB"


def latencies(path: Path, times: int) -> list[float]:
    """Microseconds of open + read + close, each, ascending."""
    name = str(path)
    result = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        fd = os.open(name, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
        result.append((time.perf_counter_ns() - begin) / 1000)
    return sorted(result)


def p99(values: list[float]) -> float:
    """Of ascending values."""
    return values[len(values) * 99 // 100]


@contextmanager
def mounted(process: subprocess.Popen[bytes], there: Path) -> Iterator[None]:
    """Waits for the file; ends the process afterwards."""
    try:
        while not there.exists():
            if process.poll() is not None:
                raise Missing(f"{process.args!r} ended with {process.returncode}")
            time.sleep(0.002)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def reference(folder: Path) -> Iterator[Path]:
    """The C file system; yields its file."""
    mount = folder / "c"
    mount.mkdir()
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    program = folder / "one_file"
    subprocess.run(["cc", "-O2", "-o", str(program), str(REFERENCE), *flags.stdout.split()], check=True)
    with mounted(subprocess.Popen([str(program), "-f", str(mount)]), mount / "file"):
        yield mount / "file"


@contextmanager
def daemon(mount: Path, *args: str) -> Iterator[float]:
    """A running daemon; yields the seconds from its start to its mount being there."""
    mount.mkdir()
    begin = time.perf_counter()
    command = [str(PTEREFD), "run", "--mount", str(mount), "--metrics-address", "off", *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with mounted(process, mount / "sys"):
        yield time.perf_counter() - begin


@contextmanager
def load(mount: Path) -> Iterator[None]:
    """Another client, a process of its own, that writes free_ptes a hundred times a second."""
    program = "import sys, time\nwhile True:\n    open(sys.argv[1], 'w').write('1')\n    time.sleep(0.01)"
    client = subprocess.Popen([sys.executable, "-c", program, str(mount / "sys/vm/free_ptes")])
    try:
        yield
    finally:
        client.kill()
        client.wait()


def many(path: Path) -> None:
    """A trace: 10,000 mms of a few mappings, then random writes of the first for as long as anybody listens."""
    meta = TraceMeta(arch="x86_64", page_size=PAGE, command=["mount_latency"])
    with TraceWriter(path, meta, force=True) as writer:
        for pid in range(1, MMS + 1):
            writer.add("exec", t=0, pid=pid, comm=f"mm{pid}", uid=1000, gid=1000)
            length = 8 * GIB if pid == 1 else 1 << 20
            writer.add("mmap", t=0, pid=pid, addr=BASE, len=length, prot="rw-", flags="private,anonymous,noreserve")
            writer.add("fault", t=0, pid=pid, addr=BASE, len=PAGE, write=True)
        rng, now = np.random.default_rng(1), 2
        for columns in parts("random_writes", BUSY_EVENTS, rng):
            columns["t"] = now + np.cumsum(rng.exponential(1500, len(columns["op"]))).astype(np.int64)
            now = int(columns["t"][-1])
            writer.add_columns(columns)


def config(folder: Path, trace: Path) -> Path:
    """A host with memory, so that sys/vm has its knobs."""
    path = folder / "bench.toml"
    path.write_text(f'[host]\nmemory = "{MEMORY}"\n\n[[mm]]\ntrace = "{trace}"\n')
    return path


def ls_ms(mount: Path, times: int) -> list[float]:
    """Milliseconds of listing the root, as ls does it: getdents."""
    result = []
    for _ in range(times):
        begin = time.perf_counter()
        names = os.listdir(mount)
        result.append((time.perf_counter() - begin) * 1000)
        if len(names) < MMS:
            raise Missing(f"{len(names)} names where {MMS} mms should be")
    return result


def measure(times: int, rounds: int) -> list[dict[str, Any]]:
    """All rows."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trace = folder / "many.parquet"
        many(trace)
        c_file = stack.enter_context(reference(folder))
        mount = folder / "mnt"
        seconds = stack.enter_context(daemon(mount, "-c", str(config(folder, trace)), "--speed", "max"))
        rows.append({"what": "start to mounted", "median": seconds * 1000, "unit": "ms", "target": None})
        while not (mount / str(MMS)).exists():
            time.sleep(0.01)
        state = mount / "sys/pterefd/replay/state"
        state.write_text("pause")
        places = {"C": c_file, **{name: mount / name for name in FILES}}
        for path in places.values():
            latencies(path, times // 10)
        idle: dict[str, list[list[float]]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, path in places.items():
                idle[name].append(latencies(path, times // rounds))
        middle = {name: statistics.median(statistics.median(part) for part in found) for name, found in idle.items()}
        tail = {name: p99(sorted(value for part in found for value in part)) for name, found in idle.items()}
        for name in places:
            ratio = middle[name] / middle["C"]
            row = {"what": f"{name}, idle", "median": middle[name], "p99": tail[name], "unit": "us", "ratio": ratio}
            rows.append(row | {"target": FILES.get(name)})
        listed = ls_ms(mount, rounds)
        rows.append({"what": f"ls of {MMS} mms", "median": statistics.median(listed), "unit": "ms", "target": LS_MS})
        state.write_text("resume")
        with load(mount):
            for name in FILES:
                found = latencies(places[name], times)
                ratio = p99(found) / tail[name]
                row = {"what": f"{name}, busy", "median": statistics.median(found), "p99": p99(found), "unit": "us"}
                rows.append(row | {"ratio": ratio, "target": BUSY, "state": state.read_text().strip()})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    rows = measure(options.times, options.rounds)
    print(f"{'what':34}{'median':>9}{'p99':>9}  {'unit':5}{'ratio':>7}  target")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        tail = f"{row['p99']:.1f}" if "p99" in row else ""
        target = "" if row["target"] is None else f"{row['target']:g} or less"
        print(f"{row['what']:34}{row['median']:>9.1f}{tail:>9}  {row['unit']:5}{ratio:>7}  {target}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
