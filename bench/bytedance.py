"""The server of the mail (VIRT 55 TiB, RES 590 GB, VmPTE 110 GB) in a daemon: built, freed from by one write, and what
others wait for meanwhile.

    python -m bench.bytedance [--scale 1] [--runs 3] [--json FILE]

built: from the command to the last event of the workload `bytedance`, 1 % of its spans with random entries. peak: VmHWM
of the daemon, at the end. echo: of its pid into sys/vm/free_ptes, until the write returns. A small mm's status, a knob
and /metrics are read all the time; their p99 is of the reads that began during the echo.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.machine import begin, save
from bench.mount_latency import PTEREFD, mounted, p99
from pterefd.errors import Missing

BUILD_SECONDS = 900
PROBE_SECONDS = 0.002  # between two reads of one prober
TARGETS = {"built": 60.0, "peak": 1024.0, "echo": 1.0, "each": 35.0, "p99": 20.0}
CONFIG = """
[metrics]
address = "127.0.0.1:{port}"
[replay]
speed = "max"
[[mm]]
workload = "bytedance"
parameters = {{ scale = {scale}, sparse_share = 0.01 }}
[[mm]]
workload = "hungry"
parameters = {{ size_mib = 16 }}
pid_base = 1000
"""


@dataclass
class Run:
    """One daemon. built, echo: seconds; peak: MiB; before, after: VmPTE, kB; freed: PTE pages; reads: ms, by name."""

    built: float
    peak: float
    before: int
    after: int
    freed: int
    echo: float
    reads: dict[str, list[float]] = field(default_factory=dict)

    @property
    def each(self) -> float:
        """Nanoseconds a freed PTE page."""
        return self.echo * 1e9 / max(self.freed, 1)


class Prober(threading.Thread):
    """Reads something again and again. times: (when it began, milliseconds)."""

    def __init__(self, read: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self.times: list[tuple[float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(PROBE_SECONDS):
            began = time.perf_counter()
            self._read()
            self.times.append((began, (time.perf_counter() - began) * 1000))


def _kb(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise Missing(f"no {name}")
    return int(found[1])


def once(scale: float, folder: Path) -> Run:
    """Build, free, look."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, mount = folder / "bench.toml", folder / "mnt"
    config.write_text(CONFIG.format(port=port, scale=scale))
    mount.mkdir(exist_ok=True)
    began = time.perf_counter()
    command = [str(PTEREFD), "run", "-c", str(config), "--mount", str(mount)]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with mounted(daemon, mount / "sys"):
        states = [mount / f"sys/pterefd/replay/{number}/state" for number in (0, 1)]
        while any(state.read_text().strip() not in ("held", "ended") for state in states):
            if time.perf_counter() - began > BUILD_SECONDS or daemon.poll() is not None:
                raise Missing(f"not built within {BUILD_SECONDS} s")
            time.sleep(0.05)
        built = time.perf_counter() - began
        status, small = mount / "1/status", mount / "1001/status"
        before = _kb(status.read_text(), "VmPTE")
        url = f"http://127.0.0.1:{port}/metrics"
        probers = {
            "another mm's status": Prober(small.read_text),
            "the state of a replay": Prober(states[0].read_text),
            "/metrics": Prober(lambda: urllib.request.urlopen(url).read()),
        }
        for prober in probers.values():
            prober.start()
        time.sleep(0.5)
        start = time.perf_counter()
        (mount / "sys/vm/free_ptes").write_text("1")
        end = time.perf_counter()
        time.sleep(0.2)
        for prober in probers.values():
            prober.over.set()
            prober.join()
        after = _kb(status.read_text(), "VmPTE")
        peak = _kb(Path(f"/proc/{daemon.pid}/status").read_text(), "VmHWM") / 1024
        reads = {
            name: sorted(
                ms for began, ms in prober.times if start <= began <= end or began <= start <= began + ms / 1e3
            )
            for name, prober in probers.items()
        }
        return Run(built, peak, before, after, (before - after) // 4, end - start, reads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    where = begin()
    with tempfile.TemporaryDirectory() as directory:
        runs = [once(options.scale, Path(directory)) for _ in range(options.runs)]
    one = runs[-1]
    print(f"VmPTE {one.before:,} -> {one.after:,} kB, {one.freed:,} PTE pages freed")
    for name, unit in (("built", "s"), ("peak", "MiB"), ("echo", "s"), ("each", "ns a freed PTE page")):
        values = [getattr(run, name) for run in runs]
        spread = f"({min(values):.2f} .. {max(values):.2f})"
        print(f"{name:<6}{statistics.median(values):>9.2f} {unit} {spread}, target {TARGETS[name]:g}")
    for name in one.reads:
        values = sorted(value for run in runs for value in run.reads[name])
        if values:
            text = f"{name}: {len(values)} reads, median {statistics.median(values):.2f} ms, p99 {p99(values):.2f} ms"
            print(f"during the echo, {text}, target {TARGETS['p99']:g}")
    save(options.json, where, rows=[asdict(run) for run in runs])


if __name__ == "__main__":
    main()
