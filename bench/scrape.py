"""How long a scrape of /metrics takes on a host of many mms.

    python -m bench.scrape [--mms 10000] [--times 100]

One process forks all the others. A row for each format and number of mms with series of their own ([metrics] max_mms,
100 by default): when nothing else happens (idle), then while another replay forks and ends processes at full speed
(busy). Median, p99 and most in milliseconds, over HTTP from this process, and the size of an answer.
"""

from __future__ import annotations

import argparse
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.mount_latency import daemon

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"  # what Prometheus asks for
CONFIG = """
host.memory = "256GiB"
metrics.max_mms = {max_mms}
[[group]]
name = "forks"
[[mm]]
workload = "fork_server"
group = "forks"
parameters.children = {children}
parameters.at_once = {children}
parameters.every_ms = 0
parameters.life_ms = 3600000
parameters.heap_mib = 4
parameters.scratch_mib = 0
[[mm]]
workload = "fork_server"
start = 3600
parameters = {{ children = 100000, at_once = 8, every_ms = 0, life_ms = 1, heap_mib = 64 }}
"""


def scrape(url: str, accept: str = OPENMETRICS) -> tuple[float, bytes]:
    """Milliseconds of one scrape, and what it said."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    begin = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        body: bytes = response.read()
    return (time.perf_counter() - begin) * 1000, body


def value(body: bytes, name: str) -> float:
    """Sum of a metric's series."""
    return sum(float(number) for number in re.findall(rf"^{name}{{.*}} (\S+)$".encode(), body, re.MULTILINE))


@contextmanager
def host(mms: int, max_mms: int) -> Iterator[tuple[str, Path]]:
    """A daemon with so many mms, the second replay waiting: the address of its metrics, and its mount."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory:
        mount = Path(directory, "mnt")
        config = Path(directory, "pterefd.toml")
        config.write_text(CONFIG.format(children=mms - 1, max_mms=max_mms))
        with daemon(mount, "-c", str(config), "--metrics-address", address):
            url = f"http://{address}/metrics"
            while value(scrape(url)[1], "pterefd_host_mms") < mms:
                time.sleep(0.2)
            yield url, mount


def measure(
    mms: int, times: int, *, max_mms: int = 100, accept: str = OPENMETRICS
) -> dict[str, tuple[list[float], int]]:
    """Milliseconds of each scrape, ascending, and bytes of the last answer: idle and busy."""
    found = {}
    with host(mms, max_mms) as (url, mount):
        for state in ("idle", "busy"):
            if state == "busy":
                (mount / "sys/pterefd/replay/1/speed").write_text("max")
                while value(scrape(url)[1], "pterefd_host_mms") <= mms:
                    time.sleep(0.05)
            before = value(scrape(url)[1], "pterefd_replay_events_total")
            scrapes = [scrape(url, accept) for _ in range(times)]
            moved = value(scrapes[-1][1], "pterefd_replay_events_total") > before
            assert moved == (state == "busy"), f"{state}, and events {'were' if moved else 'were not'} replayed"
            found[state] = (sorted(ms for ms, _ in scrapes), len(scrapes[-1][1]))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mms", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.mms:,} mms, ms{'':14} {'own series':>10} {'median':>9} {'p99':>9} {'most':>9} {'KiB':>7}")
    for max_mms in (100, options.mms):
        for name, accept in (("text", TEXT), ("openmetrics", OPENMETRICS)):
            times = options.times if max_mms == 100 else max(options.times // 10, 1)
            for state, (ms, size) in measure(options.mms, times, max_mms=max_mms, accept=accept).items():
                median, p99 = ms[len(ms) // 2], ms[len(ms) * 99 // 100]
                print(
                    f"{name + ', ' + state:24} {max_mms:10,} {median:9.1f} {p99:9.1f} {ms[-1]:9.1f} {size / 1024:7.0f}"
                )


if __name__ == "__main__":
    main()
