"""Freeing on other kernels, in guests under qemu: what is known by construction goes there, too, and nothing else.

    python -m tests.freeing.kernels [--torture SECONDS] IMAGE...

prints a line for each check that inside.py makes in the guest, then rows for the table of docs/live.md, and exits 1
where something is not as it must be. IMAGE: a bzImage, or a Debian package with one. The guest has this very Python,
numpy and pterefd: the files that they have loaded here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pterefd.reenact.guest import Guest
from tests.freeing.inside import SPANS
from tests.freeing.programs import built

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside.py")
LINKER = Path("/lib64/ld-linux-x86-64.so.2"), Path("/etc/ld.so.cache")
CPU = "Nehalem"  # numpy is compiled for x86-64-v2
# Run here: all files that the guest's Python takes. Lazily loaded are encodings, and what a traceback needs.
LIST = """
import json, linecache, subprocess, sys, tokenize, traceback
import encodings.ascii, encodings.latin_1
import pterefd.freeing.work, tests.freeing.programs
files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
files |= {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
files |= {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if len(line.split(None, 5)) > 5}
print(json.dumps(sorted(file for file in files if file and file.startswith("/"))))
"""
KB = {kind: 4 * spans for kind, spans in SPANS.items()}


def needed_files() -> list[Path]:
    """Files of this machine that inside.py needs."""
    words = [sys.executable, "-c", LIST]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    config = Path(sys.prefix, "pyvenv.cfg")
    return [Path(sys.executable), INSIDE, *LINKER, config, *map(Path, json.loads(done.stdout))]


def with_links(paths: Iterable[Path]) -> dict[str, Path]:
    """The files, the links that lead to them, and the links beside them by which libraries are found: name -> path."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_file():
            real = path.resolve()
            beside = _links_beside(real) if ".so" in real.name else ()
            for name in (path, *beside):
                found.update((str(part), part) for part in _parts(name))
    return found


def _links_beside(real: Path) -> Iterator[Path]:
    stem = real.name.partition(".so")[0]
    yield from (path for path in real.parent.glob(f"{stem}.so*") if path.is_symlink() and path.resolve() == real)


def _parts(path: Path) -> Iterator[Path]:
    """The links on the way to a file, and the file."""
    at = Path("/")
    rest = list(path.parts[1:])
    while rest:
        at /= rest.pop(0)
        if at.is_symlink():
            yield at
            rest = [*Path(os.path.normpath(at.parent / at.readlink())).parts[1:], *rest]
            at = Path("/")
    yield at


def wrong(line: dict[str, Any], scans: bool) -> str:
    """What is not as it must be in a line of inside.py, "" where all is. scans: the kernel has PAGEMAP_SCAN."""
    if "error" in line:
        return str(line["error"])
    wanted: dict[str, Any] = {}
    match line["check"]:
        case "kernel":
            wanted = {"pagemap_scan": scans, "frames": True}
        case "known":
            wanted = {
                "scan": {kind: KB[kind] for kind in ("empty", "zero", "mixed")},
                "after": line["expected"],
                "freed": {kind: KB[kind] * (kind in line["kinds"]) for kind in ("empty", "zero", "mixed")},
                "same_maps": True,
                "why_not": "",
            }
            if line["anon"] not in (0, 4):  # the stub's page of program text becomes the process's own
                return f"anon {line['anon']}"
        case "torture":
            wanted = {"code": 0}
            if not line["says"].startswith("fine") or not line["stops"]:
                return f"{line['says']}, {line['stops']} stops"
    return ", ".join(f"{key} {line[key]}, not {value}" for key, value in wanted.items() if line[key] != value)


def run_kernel(image: Path, torture: float, cpus: int, files: dict[str, Path]) -> bool:
    """Boot it and judge every check. Whether all is as it must be."""
    fine, rows = True, []
    with Guest(image, cpu=CPU, cpus=cpus, files=files) as guest:
        scans = tuple(int(word) for word in guest.release.split(".")[:2]) >= (6, 7)
        guest.start(sys.executable, str(INSIDE))
        guest.send(0, b"%g\n" % torture)
        while line := json.loads(guest.line(0)):
            why = wrong(line, scans)
            print(f"{guest.release}: {json.dumps(line)}{': WRONG: ' if why else ''}{why}", flush=True)
            fine = fine and not why
            if line["check"] == "known" and not why:
                rows.append(_row(guest.release, line))
        if not fine:
            print(guest.console())
    print(*rows, sep="\n", flush=True)
    return fine


def _row(release: str, line: dict[str, Any]) -> str:
    kinds = ", ".join(f"{SPANS[kind]} {kind}" for kind in line["kinds"])
    return f"| {release} | {kinds} | {line['before']} -> {line['after']} | {line['expected']} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.freeing.kernels", description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--torture", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--cpus", type=int, default=2)
    args = parser.parse_args(argv)
    files = with_links(needed_files())
    files |= {f"/{name}": built(name) for name in ("known", "torture")}
    fine = True
    for image in args.images:
        fine &= run_kernel(image, args.torture, args.cpus, files)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
