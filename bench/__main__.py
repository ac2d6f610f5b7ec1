"""`make bench`: how fast replay, import and start are here. A table on standard output; medians, and the spread.

    python -m bench [--events 2000000] [--runs 5] [--json FILE]

replay: single-page fault events from Parquet, decoding included, in one thread. import: JSON Lines into Parquet.
armed: the same replay on a host with memory that is accounted, every trigger active and never pressed, beside one
without: run in turns, as a ratio of the times.
start: from the command to a mounted tree that answers, kernels compiled before.
scrape: of /metrics as Prometheus asks for it, with 10,000 mms, 100 of them with series of their own; when nothing else
happens, then while processes are forked and end at full speed.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import scrape
from bench.machine import begin, save
from bench.make_traces import write
from pterefd import log, paths
from pterefd.errors import Missing
from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm.profile import named
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.check import check_trace
from pterefd.session.feed import Feed
from pterefd.source.convert import export_jsonl, import_jsonl
from pterefd.source.trace import open_trace

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.executable).parent / "pterefd"
TRACES = ("sequential_reads", "random_reads", "random_writes")
TARGETS = {
    "replay": "5 M/s or more",
    "armed": "1.05 or less",
    "import": "0.5 M/s or more",
    "start": "2 s or less",
    "scrape": "100 ms or less",
}
START_SECONDS = 60
MMS = 10_000

Row = dict[str, object]


def timed(work: Callable[[], object], runs: int) -> list[float]:
    """Wall seconds of `runs` runs, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return times[1:]


def rate(what: str, name: str, events: int, times: list[float]) -> Row:
    """A row in millions of events a second."""
    speeds = sorted(events / seconds / 1e6 for seconds in times)
    return row(what, name, "M events/s", speeds)


def row(what: str, name: str, unit: str, values: list[float]) -> Row:
    low, high = min(values), max(values)
    return {"what": what, "name": name, "unit": unit, "median": statistics.median(values), "min": low, "max": high}


def replay(path: Path) -> None:
    """As `pterefd replay` does it."""
    result = check_trace(path)
    if result.error is not None:
        raise result.error


def armed(path: Path, runs: int) -> list[float]:
    """CPU time of a replay with accounts and all triggers over that of one without, a ratio for each pair of runs.

    Who comes first in a pair changes from pair to pair.
    """
    trace = open_trace(path)
    batches = list(trace.batches())

    def seconds(memory: Memory | None) -> float:
        plugins = Plugins()
        plugins.load([paths.share("plugins")])
        host = Host(named("rfc-2022"), memory=memory)
        Reclaimer(host, plugins, log.get(), triggers=tuple(sorted(plugins.triggers)))
        feed = Feed(trace, host)
        begin = time.process_time()
        for batch in batches:
            feed.run(batch, 0, len(batch))
        return time.process_time() - begin

    def ratio(memory_first: bool) -> float:
        first, then = (seconds(memory) for memory in ((ample, None) if memory_first else (None, ample)))
        return first / then if memory_first else then / first

    ample = Memory(1 << 40)
    ratio(True)
    return [ratio(number % 2 == 0) for number in range(runs)]


def start(trace: Path, folder: Path) -> float:
    """Seconds from the command to the first answer of the mount."""
    mount = folder / "mnt"
    mount.mkdir(exist_ok=True)
    command = [str(SCRIPT), "run", "--trace", str(trace), "--mount", str(mount), "--metrics-address", "127.0.0.1:0"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        while not (mount / "sys").exists():
            if daemon.poll() is not None or time.perf_counter() - begin > START_SECONDS:
                raise Missing(f"the daemon did not mount within {START_SECONDS} s: {' '.join(command)}")
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(START_SECONDS)
    return seconds


def measure(events: int, runs: int) -> list[Row]:
    """All rows. Kernels are compiled, and files read once, before anything is counted."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for name in TRACES:
            path = folder / f"{name}.parquet"
            write(path, name, events)
            count = open_trace(path).events
            rows.append(rate("replay", name, count, timed(lambda path=path: replay(path), runs)))  # type: ignore[misc]
        for name in TRACES:
            rows.append(row("armed", name, "ratio", armed(folder / f"{name}.parquet", 2 * runs + 1)))
        path = folder / "random_writes.parquet"
        lines, target = path.with_suffix(".jsonl"), folder / "imported.parquet"
        export_jsonl(path, lines)
        count = open_trace(path).events
        rows.append(rate("import", path.stem, count, timed(lambda: import_jsonl(lines, target, force=True), runs)))
        recording = ROOT / "etc" / "traces" / "redis.parquet"
        rows.append(row("start", recording.stem, "s", [start(recording, folder) for _ in range(runs)]))
    scrapes = scrape.measure(MMS, 10 * runs)
    rows += [row("scrape", f"{MMS:,} mms, {state}", "ms", ms) for state, (ms, _) in scrapes.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    where = begin()
    rows = measure(options.events, options.runs)
    print(f"{'what':<8}{'trace':<18}{'median':>8}{'min':>8}{'max':>8}  {'unit':<12}target")
    for r in rows:
        figures = "".join(f"{r[key]:>8.2f}" for key in ("median", "min", "max"))
        print(f"{r['what']:<8}{r['name']:<18}{figures}  {r['unit']:<12}{TARGETS[str(r['what'])]}")
    save(options.json, where, rows=rows)


if __name__ == "__main__":
    main()
