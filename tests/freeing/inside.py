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
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIRE = 10
KNOWN, TORTURE = Path("/known"), Path("/torture")
SPANS = {"empty": 300, "zero": 40, "mixed": 5, "data": 20}
STOP_SECONDS, PATIENCE_SECONDS = 0.5, 10.0  # an emulated machine is slow


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

    prove_apart()
    return {}


def known(kinds: tuple[str, ...], busy: bool) -> dict[str, Any]:
    """A process whose page tables are known: scanned, freed from, and held to what it was."""
    from pterefd.live.scan import scan
    from tests.freeing.programs import Known

    one = Known(**SPANS, busy=busy, program=KNOWN)
    seen = scan(one.pid)
    assert seen is not None
    before, mappings = one.kb(), Path(f"/proc/{one.pid}/maps").read_bytes()
    freed = one.free(kinds, stop=STOP_SECONDS, patience=PATIENCE_SECONDS)
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
        "anon": after["RssAnon"] - before["RssAnon"],
        "same_maps": same,
        "why_not": freed.refused or freed.put_off,
        "stops": freed.stops,
        "longest_stop": round(freed.longest_stop, 4),
    }


def torture(seconds: float, words: tuple[str, ...]) -> dict[str, Any]:
    """torture.c, freed from again and again."""
    from pterefd.freeing.work import KINDS, Request, free
    from pterefd.live.scan import start_time

    # Its threads would take what the proof's child needs, before every request.
    process = subprocess.Popen(
        [TORTURE, str(seconds), *words], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(19) and None
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    stops = back = total = 0
    longest, lasted = 0.0, []
    why_not: dict[str, int] = {}
    end = time.monotonic() + seconds - 1
    while time.monotonic() < end and process.poll() is None:
        began = time.monotonic()
        freed = free(
            Request(process.pid, start_time(process.pid), kinds=KINDS, stop=STOP_SECONDS, patience=2.0, seconds=5.0)
        )
        stops, back, total = stops + freed.stops, back + freed.back, total + freed.freed
        longest = max(longest, freed.longest_stop)
        lasted.append(round(time.monotonic() - began, 2))
        if freed.label:
            why_not[freed.label] = why_not.get(freed.label, 0) + 1
    text = process.communicate()[0]
    return {
        "words": words,
        "code": process.returncode,
        "says": text.strip(),
        "stops": stops,
        "back": back,
        "freed": total >> 10,
        "why_not": why_not,
        "longest_stop": longest,
        "lasted": lasted,
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
