"""How long a file of the mount takes to open, read and close, and how long the daemon takes to be mounted.

    python -m bench.mount_latency [--times 5000] [--trace FILE]

Each file is read in a loop, beside the kernel's own /proc/self/status: when nothing else happens, then while the
daemon replays at full speed and another client writes free_ptes. Median and p99 in microseconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.make_traces import write

PTEREFD = Path(sys.executable).parent / "pterefd"
FILES = ("1/reclaimable_pt_bytes", "1/status", "sys/vm/pt_reclaim/policy")
KERNEL = "/proc/self/status"
BUSY_EVENTS = 30_000_000  # some seconds of replay at full speed


def latencies(path: str, times: int) -> list[float]:
    """Microseconds of open + read + close, each, ascending."""
    result = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
        result.append((time.perf_counter_ns() - begin) / 1000)
    return sorted(result)


def show(label: str, path: str, times: int) -> None:
    """One row: median and p99 of a file."""
    latencies(path, max(times // 10, 1))
    values = latencies(path, times)
    median, p99 = values[len(values) // 2], values[len(values) * 99 // 100]
    print(f"{label:10} {path.rpartition('mnt/')[2]:32} {median:9.1f} {p99:9.1f}")


@contextmanager
def daemon(mount: Path, *args: str) -> Iterator[float]:
    """A running daemon; yields the seconds from its start to its mount being there."""
    begin = time.perf_counter()
    command = [str(PTEREFD), "run", "--mount", str(mount), "--metrics-address", "off", *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(mount):
            if process.poll() is not None:
                raise SystemExit(f"the daemon ended with {process.returncode}: {' '.join(command)}")
            time.sleep(0.002)
        yield time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def wait_for(path: Path) -> None:
    """Wait until it is there."""
    while not path.exists():
        time.sleep(0.01)


@contextmanager
def load(mount: Path) -> Iterator[None]:
    """Another client that writes free_ptes, a hundred times a second."""
    stopping = threading.Event()

    def write() -> None:
        while not stopping.wait(0.01):
            (mount / "sys/vm/free_ptes").write_text("0")

    thread = threading.Thread(target=write)
    thread.start()
    yield
    stopping.set()
    thread.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5000)
    parser.add_argument(
        "--trace", help="replayed at full speed in the second half; default: one of bench/make_traces.py"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        mount = Path(directory, "mnt")
        mount.mkdir()
        print(f"{'':10} {'open + read + close, us':32} {'median':>9} {'p99':>9}")
        show("kernel", KERNEL, options.times)
        with daemon(mount, "--speed", "max") as seconds:
            wait_for(mount / "1")
            time.sleep(1)  # the bundled recording is held by then
            for name in FILES:
                show("idle", str(mount / name), options.times)
        trace = options.trace or _busy_trace(directory)
        with daemon(mount, "--speed", "max", "--trace", trace), load(mount):
            wait_for(mount / "1")
            for name in FILES:
                show(_state(mount), str(mount / name), options.times)
            print(f"{'':10} the replay stood at {(mount / 'sys/pterefd/replay/position').read_text().strip()} then")
        print(f"start to mounted: {seconds:.2f} s")


def _state(mount: Path) -> str:
    return "replaying" if (mount / "sys/pterefd/replay/state").read_text() == "running\n" else "held"


def _busy_trace(directory: str) -> str:
    path = Path(directory, "busy.parquet")
    write(path, "random_writes", BUSY_EVENTS)
    return str(path)


if __name__ == "__main__":
    main()
