"""The oracle on other kernels, in guests: random programs, and as many as are wanted that meet what kernels merge by.

    python -m tests.kernel.kernels [--programs 200] [--joins 40] [--seed 1] [--results FILE] [--traces DIR] IMAGE...

prints a line for each kernel, `RELEASE: N programs, D differ`, and exits 1 where D is not 0. IMAGE: a bzImage, or a
Debian package with one; each runs in a process of its own. Programs that swap are left out, as guests have none.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from pterefd.mm.profile import AUTO, PF_MERGE, PF_MMAP3
from pterefd.reenact.guest import Guest
from pterefd.session.check import Checker, CheckOptions, FileResult, profile_for
from pterefd.source.trace import open_trace

from .execute import Execution, Machine
from .generate import FAMILIES, MERGE_FAMILIES, generate
from .oracle import LIMITS, encode, plan, readable
from .tally import Tally

KEPT = Path(__file__).with_name("kept")
JOINS = next(iter(MERGE_FAMILIES))
GUEST_FAMILIES = [name for name, family in FAMILIES.items() if not family.swap]
RULES = {"merge": PF_MERGE, "mmap3": PF_MMAP3}  # by which mappings join, and kernels differ
MOST_TRIES = 10  # programs of JOINS for one that meets a rule


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run on one kernel. traces: directory for an archive of all traces, or None."""

    image: Path
    programs: int
    joins: int
    seed: int
    length: int
    traces: Path | None


@dataclass(slots=True)
class Result:
    """What one kernel has shown. rules: programs that met each.  reports: of programs that differ."""

    tally: Tally
    rules: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    reports: list[str] = field(default_factory=list)


def check_file(path: Path, swapped: int = 0) -> FileResult:
    """Compare every checkpoint with what the trace's kernel does. swapped: flags of its profile to turn round."""
    trace = open_trace(path)
    profile = profile_for(trace, AUTO)
    profile = replace(profile, flags=profile.flags ^ swapped)
    result = Checker(trace, profile, CheckOptions(), strict=False, limits=LIMITS).run()
    if result.error is not None:
        raise result.error
    return result


def rules_met(path: Path) -> list[str]:
    """The rules without which a program that agrees would not."""
    return [name for name, flag in RULES.items() if check_file(path, flag).differ]


def pack(directory: Path, archive: Path) -> None:
    """All files of a directory as one .tar.xz, the same for the same files."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(directory.iterdir()):
            data = path.read_bytes()
            member = tarfile.TarInfo(path.name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def unpack(archive: Path, directory: Path) -> list[Path]:
    """The archive's files, written to the directory."""
    with tarfile.open(archive, "r:xz") as tar:
        tar.extractall(directory, filter="data")
    return sorted(directory.iterdir())


def _work(plan_: Plan, met: list[int]) -> Iterator[tuple[str, int]]:
    """(family, seed) of the programs: those of all families, then of JOINS until enough have met a rule (met[0])."""
    yield from plan(plan_.programs, plan_.seed, GUEST_FAMILIES)
    for number in count():
        if met[0] >= plan_.joins or number >= plan_.joins * MOST_TRIES:
            return
        yield JOINS, plan_.seed * 1_000_000 + number


def run_kernel(plan_: Plan) -> Result:
    """Boot it, run the programs, check each."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pterefd-kernels-") as scratch, Guest(plan_.image) as guest:
        machine = Machine(guest, states=True)
        result = Result(Tally(guest.release, plan_.seed, plan_.length))
        met = [0]
        for family, seed in _work(plan_, met):
            path = Path(scratch) / f"{family}-{seed}.jsonl"
            rows = Execution(machine, generate(family, seed, plan_.length, machine.heap_start)).run()
            path.write_bytes(encode(rows))
            checked = check_file(path)
            result.tally.count("never", family, checked.checkpoints, checked.differ > 0)
            if checked.differ:
                text = readable(rows, checked.differences)
                result.reports.append(f"{guest.release}: {family} {seed} differs:\n{text}")
            elif family == JOINS:
                rules = rules_met(path)
                met[0] += bool(rules)
                for rule in rules:
                    result.rules[rule] += 1
        if plan_.traces is not None:
            plan_.traces.mkdir(parents=True, exist_ok=True)
            pack(Path(scratch), plan_.traces / f"{guest.release}.tar.xz")
    result.tally.seconds = time.monotonic() - began
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.kernels", description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--joins", type=int, default=40, help="programs that meet merge or mmap3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--length", type=int, default=100, help="operations a program")
    parser.add_argument("--traces", type=Path, help="directory for an archive of the traces for each kernel")
    parser.add_argument("--results", type=Path, help="add what the run has shown to this file")
    args = parser.parse_args(argv)
    plans = [Plan(image, args.programs, args.joins, args.seed, args.length, args.traces) for image in args.images]
    failed = False
    with ProcessPoolExecutor(len(plans)) as pool:
        for result in pool.map(run_kernel, plans):
            for report in result.reports:
                print(report)
            programs, checkpoints, differ = result.tally.total()
            rules = ", ".join(f"{name} {number}" for name, number in result.rules.items())
            print(f"{result.tally.kernel}: {checkpoints} checkpoints, {result.tally.seconds:.0f} s; rules met: {rules}")
            print(f"{result.tally.kernel}: {programs} programs, {differ} differ", flush=True)
            if args.results is not None:
                result.tally.add_to(args.results)
            failed |= differ > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
