"""What runs in a guest of kernels.py: checks one after another, a line of JSON for each, to who started it; an empty
one is the last.

The first line that it reads says for how many seconds torture.c runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

WIRE = 10
KNOWN, TORTURE = Path("/known"), Path("/torture")
SPANS = {"empty": 100, "zero": 20, "mixed": 5, "data": 10}
# An emulated machine is slow, more so where the real one has other things to do.
SLOW: dict[str, Any] = {"stop": 2.0, "patience": 20.0, "hang": 20.0}


def kernel() -> dict[str, Any]:
    """What it is, and how entries are seen there."""
    from pterefd.live import procmem

    return {
        "release": os.uname().release,
        "pagemap_scan": bool(procmem.scan_abilities()),
        "frames": procmem.zero_pfn() != 0,
        "cpus": os.cpu_count(),
    }


def proof() -> dict[str, Any]:
    """Whether freeing says of itself that it works."""
    from pterefd.freeing.work import prove_apart

    prove_apart(SLOW["hang"])
    return {}


def anonymous(pid: int) -> int:
    """Its anonymous pages in kB, counted one by one: RssAnon lags behind, by 64 pages a thread before Linux 6.2."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))


def known(kinds: tuple[str, ...], busy: bool) -> dict[str, Any]:
    """A process whose page tables are known: scanned, freed from, and held to what it was."""
    from pterefd.live.scan import scan
    from tests.freeing.programs import Known

    one = Known(**SPANS, busy=busy, program=KNOWN)
    seen = scan(one.pid)
    assert seen is not None
    before, anon, mappings = one.kb(), anonymous(one.pid), Path(f"/proc/{one.pid}/maps").read_bytes()
    freed = one.free(kinds, **SLOW)
    anon = anonymous(one.pid) - anon
    after, same = one.kb(), Path(f"/proc/{one.pid}/maps").read_bytes() == mappings
    one.check(read=True)
    one.close()
    return {
        "kinds": kinds,
        "busy": busy,
        "scan": {kind: getattr(seen.use, kind) >> 10 for kind in ("empty", "zero", "mixed")},
        "before": before["VmPTE"],
        "after": after["VmPTE"],
        "expected": before["VmPTE"] - 4 * sum(SPANS[kind] for kind in kinds),
        "freed": {kind: getattr(freed, kind) >> 10 for kind in ("empty", "zero", "mixed")},
        "anon": anon,
        "same_maps": same,
        "why_not": freed.refused or freed.put_off,
        "stops": freed.stops,
        "longest_stop": round(freed.longest_stop, 4),
    }


def torture(seconds: float, words: tuple[str, ...]) -> dict[str, Any]:
    """torture.c, freed from again and again."""
    from pterefd.freeing import work
    from pterefd.freeing.work import KINDS, Request, free
    from pterefd.live.scan import start_time

    work.DUTY = 0.5  # a stop takes up to a second here, and there are to be many
    # Its threads would take what the proof's child needs, before every request.
    process = subprocess.Popen([TORTURE, str(seconds), *words], stdout=subprocess.PIPE, text=True)
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    request = Request(process.pid, start_time(process.pid), kinds=KINDS, **SLOW)
    stops: list[float] = []
    requests = back = total = 0
    why_not: Counter[str] = Counter()
    end = time.monotonic() + seconds - 1
    while time.monotonic() < end and process.poll() is None:
        freed = free(replace(request, seconds=end - time.monotonic()))
        stops += freed.stopped
        requests, back, total = requests + 1, back + freed.back, total + freed.freed
        why_not[freed.label] += bool(freed.label)
    text = process.communicate()[0]
    return {
        "words": words,
        "code": process.returncode,
        "says": text.strip(),
        "requests": requests,
        "stops": len(stops),
        "longest_stop": round(max(stops, default=0.0), 4),
        "back": back,
        "freed": total >> 10,
        "why_not": +why_not,
    }


def checks(seconds: float) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, what it does)"""
    return [
        ("kernel", kernel),
        ("proof", proof),
        ("known", lambda: known(("empty", "zero"), False)),
        ("known", lambda: known(("empty", "zero"), True)),
        ("known", lambda: known(("mixed",), False)),
        ("known", lambda: known(("empty", "zero", "mixed"), False)),
        ("torture", lambda: torture(seconds, ())),
        ("torture", lambda: torture(seconds, ("memory",))),
        ("torture", lambda: torture(seconds, ("single",))),
    ]


def main() -> None:
    """Run all checks, then end."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    seconds = float(os.read(WIRE, 100))
    for name, check in checks(seconds):
        began = time.monotonic()
        try:
            found = check()
        except BaseException:
            found = {"error": traceback.format_exc()}
        line = {"check": name, **found, "seconds": round(time.monotonic() - began, 1)}
        os.write(WIRE, json.dumps(line).encode() + b"\n")
    os.write(WIRE, b"{}\n")


if __name__ == "__main__":
    main()
