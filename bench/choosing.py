"""How long a policy takes to choose the next mm, among a thousand and among a million: the target is 3 times at most.

    python -m bench.choosing [--policy largest_first ...] [--runs 200]

A table on standard output, and exit code 1 where largest_first, the mail's, takes more than 3 times as long. The mms
have published numbers and a place in the ranking, and no page tables: nothing is freed. Both sizes are measured in turn
in one process.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

import numpy as np

from pterefd import log, paths
from pterefd.engine import layout as lo
from pterefd.hookspecs import ReclaimRequest
from pterefd.host.host import Host
from pterefd.host.process import Process
from pterefd.host.view import HostView
from pterefd.mm.profile import named
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer

FEW, MANY = 1_000, 1_000_000
TIMES = 3.0


def crowd(number: int) -> Host:
    """A host with so many mms, whose numbers a batch might have published."""
    host = Host(named("rfc-2022"))
    rng = np.random.default_rng(1)
    rows = np.zeros((number + 1, lo.MM_COLUMNS), dtype=np.int64)
    rows[1:, lo.M_PID] = np.arange(1, number + 1)
    rows[1:, lo.M_EMPTY] = rng.integers(0, 1000, number)
    rows[1:, lo.M_LAST_FAULT] = rng.integers(0, 1 << 40, number)
    host._published = rows
    host._processes = {pid: Process(pid, pid) for pid in range(1, number + 1)}
    for pid, pages in enumerate(rows[1:, lo.M_EMPTY].tolist(), 1):
        host.ranking.set(pid, pages)
    return host


def first_choice(host: Host, policy: str) -> float:
    """Seconds from a fresh view to the first choice."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    chooser = Reclaimer(host, plugins, log.get(), policy=policy, deadline=None)._policies[policy]
    request = ReclaimRequest(bytes_wanted=lo.PAGE)
    begin = time.perf_counter()
    view = HostView(host, host.time_ns, random.Random(1))
    next(iter(chooser.choose(view, request)), None)
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append", default=None)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    hosts = {number: crowd(number) for number in (FEW, MANY)}
    print(f"{'policy':<18}{'1,000 mms':>14}{'1,000,000':>14}{'ratio':>10}")
    code = 0
    for policy in options.policy or ["largest_first"]:
        seconds: dict[int, list[float]] = {number: [] for number in hosts}
        for _ in range(options.runs):
            for number, host in hosts.items():
                seconds[number].append(first_choice(host, policy))
        few, many = (statistics.median(seconds[number]) for number in (FEW, MANY))
        print(f"{policy:<18}{few * 1e6:>11.1f} us{many * 1e6:>11.1f} us{many / few:>10.2f}")
        code |= policy == "largest_first" and many > TIMES * few
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
