"""Builds measure.c, runs it with 1 to N threads, and makes a table of costs of the medians."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pterefd.errors import Missing, PterefdError
from pterefd.reenact.build import build
from pterefd.session.costs import Costs, Figure, Latency, Operations, Threads

SOURCE = Path(__file__).with_name("measure.c")
FLAGS = ("-O2", "-pthread", "-Wall", "-Wextra")
RUNS = 15
MOST_THREADS = 64  # MAX_THREADS of measure.c
DISTURBANCES = ("none", "mprotect", "dontneed", "munmap")
TIMEOUT_SECONDS = 600

Values = Mapping[str, Sequence[float]]  # figure -> its value in each run


def calibrate(
    most_threads: int, *, runs: int = RUNS, progress: Callable[[int, int | None], None] | None = None
) -> Costs:
    """Measure with 1, 2, 4 ... and most_threads threads. Missing: no compiler, or one that cannot build it."""
    program = _built()
    counts = thread_counts(most_threads)
    tables: dict[int, Values] = {}
    how = ""
    for done, threads in enumerate(counts):
        if progress is not None:
            progress(done, len(counts))
        tables[threads], how = parse(_run(program, threads, runs))
    single = tables[1]
    return Costs(
        kernel=platform.release(),
        machine=_machine(),
        runs=runs,
        pte_freed_by=how,
        operations=Operations(**{name: figure(single[name]) for name in Operations.model_fields if name in single}),
        threads=tuple(_threads(threads, values) for threads, values in tables.items()),
    )


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 ... below most, and most."""
    counts = [1 << k for k in range(7) if 1 << k < most]
    return [*counts, most]


def parse(text: str) -> tuple[Values, str]:
    """The lines of measure.c: each figure's values, and how PTE pages were freed."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    how = ""
    for line in text.splitlines():
        name, _run_number, value = line.split()
        if name == "how":
            how = value
        else:
            values[name].append(max(float(value), 0.0))  # a difference of two times may come out below 0
    return values, how


def figure(values: Sequence[float]) -> Figure:
    """Median, least and most, to a tenth of a nanosecond."""
    return Figure(ns=round(statistics.median(values), 1), low=round(min(values), 1), high=round(max(values), 1))


def _threads(threads: int, values: Values) -> Threads:
    given: dict[str, Any] = {name: figure(values[name]) for name in ("fault", "zero_fault", "pte_free", "lock")}
    latency = {
        name: Latency(p50=figure(values[f"latency_{name}_p50"]), p99=figure(values[f"latency_{name}_p99"]))
        for name in DISTURBANCES
    }
    return Threads(threads=threads, latency=latency, **given)


def _built() -> Path:
    try:
        return build(SOURCE, os.environ.get("CC") or "gcc", list(FLAGS))
    except subprocess.CalledProcessError:
        raise Missing(f"{SOURCE.name} cannot be built: the compiler said why above (libc6-dev is needed)") from None


def _run(program: Path, threads: int, runs: int) -> str:
    try:
        done = subprocess.run(
            [str(program), str(threads), str(runs)], capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip() or f"exit code {error.returncode}"
        raise PterefdError(f"measuring with {threads} threads failed: {why}") from None
    except subprocess.TimeoutExpired:
        raise PterefdError(f"measuring with {threads} threads took more than {TIMEOUT_SECONDS} s") from None
    return done.stdout


def _machine() -> str:
    """Number and model of the processors."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = " ".join(line.partition(":")[2].split())
                break
    except OSError:
        pass
    return f"{os.cpu_count()} x {model}"


def render(costs: Costs) -> str:
    """The table for people: nanoseconds, spread behind each."""
    lines = [costs.about, f"{'':24}{'ns':>10}   least .. most"]
    for name in Operations.model_fields:
        one = getattr(costs.operations, name)
        lines.append(f"{name:24}" + ("not measured: no swap" if one is None else _cells(one)))
    for row in costs.threads:
        lines.append(f"with {row.threads} thread{'s' if row.threads > 1 else ''}:")
        lines += [f"  {name:22}{_cells(getattr(row, name))}" for name in ("fault", "zero_fault", "pte_free", "lock")]
        lines.append(f"  {'faults a second, each':22}{1e9 / row.fault.ns if row.fault.ns else 0:10,.0f}")
        for name, latency in row.latency.items():
            beside = "no other thread" if name == "none" else f"{name} in another"
            lines.append(f"  fault beside {beside}: p50 {latency.p50.ns:,.0f}, p99 {latency.p99.ns:,.0f}")
    return "\n".join(lines) + "\n"


def _cells(one: Figure) -> str:
    return f"{one.ns:10,.1f}   {one.low:,.1f} .. {one.high:,.1f}"
