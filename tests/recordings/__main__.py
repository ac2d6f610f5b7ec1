"""`make record-programs`: real programs, recorded here and now, and every checkpoint compared with the model.

    python -m tests.recordings [NAME]... [--every 200ms] [--keep DIR] [--results FILE]

A table on standard output, a line a program, and the differences; exits 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pterefd.session.check import CheckOptions, check_trace
from tests.conftest import ROOT, SCRIPT
from tests.recordings.programs import BY_NAME, PROGRAMS, Program

FIELDS = ("VmPTE", "RssAnon", "RssShmem", "VmSwap")
RESULTS = ROOT / "tests" / "kernel" / "results" / "recordings.json"
TIMEOUT_S = 600


@dataclass(slots=True)
class Result:
    """What a recording and its check gave.

    processes: address spaces, those of exec and of fork each counted.  unchecked_exits: exits without an exact
    checkpoint before them.  window_ms: the widest [t0, t1] of a checkpoint.  said: what `record` told the user.
    """

    program: str
    version: str
    code: int
    processes: int = 0
    events: int = 0
    checkpoints: int = 0
    differ: int = 0
    corrections: int = 0
    outside: int = 0
    unchecked_exits: int = 0
    window_ms: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def exact(self) -> bool:
        """Whether all is as the kernel said, and the recording whole."""
        wrong = self.differ + self.corrections + self.outside + self.unchecked_exits + self.code
        return not wrong and self.error is None and self.checkpoints > 0


def unchecked_exits(path: Path) -> int:
    """Exits of an mm of which no checkpoint without a window was taken since it began."""
    columns = ["op", "pid", "child", "t0"]
    rows = pq.read_table(path, columns=columns)
    wanted = pa.array(("exec", "fork", "expect", "exit"))
    rows = rows.filter(pc.is_in(rows["op"].cast("string"), wanted))
    return _unchecked(rows.to_pylist())


def _unchecked(rows: list[dict[str, object]]) -> int:
    checked: set[object] = set()
    missing = 0
    for row in rows:
        if row["op"] == "exec":
            checked.discard(row["pid"])
        elif row["op"] == "fork":
            checked.discard(row["child"])
        elif row["op"] == "expect":
            if row["t0"] is None:
                checked.add(row["pid"])
        elif row["pid"] not in checked:
            missing += 1
    return missing


def record(program: Program, trace: Path, every: str) -> Result:
    """Record one program into `trace`, and check that."""
    command = [str(SCRIPT), "record", "--force", "--checkpoint-every", every, "-o", str(trace), "--"]
    begin = time.monotonic()
    with program.prepared() as (directory, words), tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [*command, *words],
            cwd=directory,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=TIMEOUT_S,
        )
        said.seek(0)
        result = Result(program.name, program.version(), done.returncode, said=said.read().splitlines())
    if not trace.exists():
        result.error = "there is no recording"
        return result
    checked = check_trace(trace, options=CheckOptions(frozenset(FIELDS)))
    result.seconds = time.monotonic() - begin
    result.processes, result.events, result.checkpoints = len(checked.rows), checked.events, checked.checkpoints
    result.differ, result.corrections, result.outside = checked.differ, checked.corrections, checked.outside
    result.window_ms, result.bytes = checked.widest_window_ns / 1e6, trace.stat().st_size
    result.differences = [str(difference) for difference in checked.differences]
    result.error = None if checked.error is None else str(checked.error)
    result.unchecked_exits = unchecked_exits(trace)
    return result


COLUMNS = (
    ("program", lambda r: r.program),
    ("processes", lambda r: f"{r.processes:,}"),
    ("events", lambda r: f"{r.events:,}"),
    ("checkpoints", lambda r: f"{r.checkpoints:,}"),
    ("differ", lambda r: str(r.differ)),
    ("corrections", lambda r: str(r.corrections)),
    ("widest window", lambda r: f"{r.window_ms:.1f} ms" if r.window_ms else "none"),
    ("kB", lambda r: f"{r.bytes >> 10:,}"),
    ("seconds", lambda r: f"{r.seconds:.1f}"),
)


def line(cells: list[str]) -> str:
    """A row of the table."""
    return f"{cells[0]:16}" + "".join(f"{cell:>14}" for cell in cells[1:])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.recordings", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BY_NAME))
    parser.add_argument("--every", default="200ms", help="between checkpoints")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the recordings are kept")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON of what came out")
    options = parser.parse_args()
    for name in options.names:
        if name not in BY_NAME:
            parser.error(f"there is no program {name}; there are: {', '.join(BY_NAME)}")
    print(line([title for title, _ in COLUMNS]), flush=True)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        keep = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for program in [BY_NAME[name] for name in options.names] or PROGRAMS:
            result = record(program, keep / f"{program.name}.parquet", options.every)
            results.append(result)
            print(line([show(result) for _, show in COLUMNS]), flush=True)
            tell(result)
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(as_json(results, options.every), indent=1) + "\n")
    wrong = sum(not result.exact for result in results)
    print(f"{len(results)} programs, {wrong} differ")
    return 1 if wrong else 0


def tell(result: Result) -> None:
    """What is to be said beyond the line in the table."""
    if result.code:
        print(f"    ended with {result.code}")
    for name in ("outside", "unchecked_exits", "error"):
        if getattr(result, name):
            print(f"    {name}: {getattr(result, name)}")
    for text in result.said[-10:]:
        print(f"    {text}")
    for text in result.differences[:10]:
        print(f"    {text.partition(': ')[2]}")


def as_json(results: list[Result], every: str) -> dict[str, object]:
    """What a table in the documentation is made of."""
    return {
        "kernel_release": platform.release(),
        "date": date.today().isoformat(),
        "fields": FIELDS,
        "checkpoint_every": every,
        "programs": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
