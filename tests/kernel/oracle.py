"""The oracle: random programs on the running kernel, their traces checked with the model.

    python -m tests.kernel.oracle --programs 300 --seed 1 [--family anon] [--thp [SETTING]] [--length 100] [--keep DIR]

ends with `N programs, D differ` and exits 1 where D is not 0. A program that differs is made as short as can be; its
trace goes to --keep, and it is printed with the first checkpoint that differs.

Two things a program does not decide. A split is refused while anybody holds a reference to the folio, kdamond for a
moment, say: the kernel counts that (thp_split_page_failed in /proc/vmstat). And faults do not map around them a page
of a file that is locked just then, as writeback does (mm/filemap.c next_uptodate_folio): RssFile is lower. A program
that differs while that counter rises, or in RssFile alone, is run again, AGAIN times; where each of them is equal it
does not differ, and is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from pterefd.engine.arena import Limits
from pterefd.reenact.agent import AgentError
from pterefd.reenact.calls import describe
from pterefd.reenact.kernel import ThisKernel
from pterefd.reenact.shrink import shrink
from pterefd.session.check import LARGE_FOLIO_FIELDS, CheckOptions, check_trace

from .execute import Execution, Machine, Row
from .generate import FAMILIES, HUGE_FAMILIES, HUGE_RUNS, generate
from .hugepages import huge_pages, refused_splits
from .program import Program
from .swapfile import swap_file
from .tally import Tally

LIMITS = Limits(
    mms=64, mappings=1 << 14, pmd_pages=1 << 10, pte_pages=1 << 16, own_entries=1 << 14, files=1 << 10, blocks=1 << 18
)
ALL_FAMILIES = FAMILIES | HUGE_FAMILIES
AGAIN = 5

Work = list[tuple[str, int]]  # (family, seed) of each program


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of one trace said. differences: in order; each says where, which field, kernel's, model's."""

    checkpoints: int
    differences: list[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One program's: its number of checkpoints, and where it differs the report and the shortest trace.

    thp: the setting of huge pages that it ran with.  again: it differed once, by chance.
    """

    family: str
    seed: int
    thp: str
    checkpoints: int
    report: str = ""
    trace: bytes = b""
    again: bool = False


def encode(rows: Iterable[Row]) -> bytes:
    """Rows as JSON Lines."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def check_rows(rows: list[Row]) -> Verdict:
    """Replay the rows with the model and compare every checkpoint; then once more with nothing to stop at but the last.

    Events that nothing lies between are run in one go, by shorter ways.
    """
    verdict = _checked(rows)
    return verdict if verdict.differences else replace(verdict, differences=_checked(last_alone(rows)).differences)


def last_alone(rows: list[Row]) -> list[Row]:
    """The rows without the checkpoints that have another of the same process behind them."""
    last = {row["pid"]: number for number, row in enumerate(rows) if row["op"] == "expect"}
    return [row for number, row in enumerate(rows) if row["op"] != "expect" or last[row["pid"]] == number]


def _checked(rows: list[Row]) -> Verdict:
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.NamedTemporaryFile(prefix="pterefd-oracle-", suffix=".jsonl", dir=directory) as file:
        file.write(encode(rows))
        file.flush()
        result = check_trace(Path(file.name), options=CheckOptions(), limits=LIMITS)
    if result.error is not None:
        raise result.error
    return Verdict(result.checkpoints, list(result.differences))


def differs(machine: Machine, program: Program) -> bool:
    """Run it and say whether the model differs; a program that the agent does not survive does not."""
    try:
        return bool(check_rows(Execution(machine, program).run()).differences)
    except AgentError:
        return False


def readable(rows: list[Row], differences: list[Any]) -> str:
    """The trace as text, without its checkpoints, then what differs first."""
    lines = [describe(row) for row in rows if row["op"] not in ("trace", "expect", "state")]
    return "\n".join(
        ["  " + line for line in lines] + [f"  first difference: {differences[0]}"] if differences else lines
    )


def run_one(machine: Machine, family: str, seed: int, length: int, shrinking: bool = True) -> Outcome:
    """Generate, run, check; where it differs, shrink."""
    program = generate(family, seed, length, machine.heap_start)
    refused = refused_splits()
    execution = Execution(machine, program)
    verdict = check_rows(execution.run())
    outcome = partial(Outcome, family, seed, machine.thp or "never", verdict.checkpoints)
    if not verdict.differences:
        return outcome()
    by_chance = refused_splits() > refused or {d.field for d in verdict.differences} <= LARGE_FOLIO_FIELDS
    if by_chance and not any(differs(machine, program) for _ in range(AGAIN)):
        return outcome(again=True)
    if shrinking:
        careful = replace(machine, every_process=True)
        ops = shrink(program.ops, lambda ops: differs(careful, replace(program, ops=ops)))
        rows = Execution(careful, replace(program, ops=ops)).run()
        again = check_rows(rows)
        if again.differences:
            return outcome(readable(rows, again.differences), encode(rows))
    # It does not show again (or was not to be shrunk): keep what was seen.
    return outcome(readable(execution.rows, verdict.differences), encode(execution.rows))


def plan(programs: int, seed: int, families: Sequence[str]) -> Work:
    """The families in turn."""
    return [(families[i % len(families)], seed * 1_000_000 + i) for i in range(programs)]


def plan_huge(programs: int, seed: int, runs: Mapping[str, Sequence[str]]) -> dict[tuple[str, bool], Work]:
    """By setting of huge pages and need of swap: all settings' families in turn, from one that the seed decides.

    Without a need there is no swap, as paging out then does another thing: it only splits.
    """
    pairs = [(setting, family) for setting, families in runs.items() for family in families]
    pairs = pairs[seed % len(pairs) :] + pairs[: seed % len(pairs)]
    groups: dict[tuple[str, bool], Work] = {}
    for (setting, _), (family, number) in zip(cycle(pairs), plan(programs, seed, [f for _, f in pairs]), strict=False):
        groups.setdefault((setting, ALL_FAMILIES[family].swap), []).append((family, number))
    return groups


def run_share(args: tuple[Machine, Work, int, bool]) -> list[Outcome]:
    """One worker's programs."""
    machine, share, length, shrinking = args
    return [run_one(machine, family, seed, length, shrinking) for family, seed in share]


@contextmanager
def swap_for(families: Iterable[str], megabytes: int = 512) -> Iterator[None]:
    """A swap file where a family needs one."""
    with swap_file(megabytes) if any(ALL_FAMILIES[family].swap for family in families) else nullcontext():
        yield


def run_many(
    machine: Machine,
    work: Work,
    length: int = 100,
    *,
    jobs: int = 1,
    shrinking: bool = True,
) -> Iterator[Outcome]:
    """Run programs and yield their outcomes; with jobs > 1 in as many processes, each on a CPU of its own."""
    if jobs == 1:
        for family, seed in work:
            yield run_one(machine, family, seed, length, shrinking)
        return
    cpus = sorted(os.sched_getaffinity(0))
    size = max(1, min(20, len(work) // jobs))
    shares = [work[at : at + size] for at in range(0, len(work), size)]
    tasks = [
        (replace(machine, kernel=ThisKernel(cpus[i % len(cpus)])), share, length, shrinking)
        for i, share in enumerate(shares)
    ]
    with ProcessPoolExecutor(jobs) as pool:
        for outcomes in pool.map(run_share, tasks):
            yield from outcomes


def run_groups(
    machine: Machine,
    groups: Mapping[tuple[str, bool], Work],
    length: int = 100,
    *,
    jobs: int = 1,
    shrinking: bool = True,
) -> Iterator[Outcome]:
    """What plan_huge planned, each setting for as long as its programs run."""
    for (setting, _), work in groups.items():
        with huge_pages(setting), swap_for(family for family, _ in work):
            yield from run_many(replace(machine, thp=setting), work, length, jobs=jobs, shrinking=shrinking)


def keep(outcome: Outcome, directory: Path | None) -> None:
    """Print a difference, and store its trace."""
    print(f"{outcome.family} {outcome.seed} differs:\n{outcome.report}", flush=True)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{outcome.family}-{outcome.seed}.jsonl").write_bytes(outcome.trace)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.oracle", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--seed", type=int, help="default: a fresh one, printed")
    parser.add_argument("--family", choices=[*ALL_FAMILIES, "all"], default="all")
    parser.add_argument("--thp", nargs="?", const="all", help="with huge pages: all settings in turn, or SETTING")
    parser.add_argument("--length", type=int, default=100, help="operations a program")
    parser.add_argument("--keep", type=Path, help="directory for the traces of programs that differ")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--states", action="store_true", help="compare at the end where each entry is, too")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--results", type=Path, help="add what the run has shown to this file")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # huge pages and swap are put back
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1_000_000)
    machine = Machine.this(states=args.states, cpu=max(os.sched_getaffinity(0)))
    began = time.monotonic()
    tally = Tally(machine.kernel.release, seed, args.length)
    outcomes: Iterator[Outcome]
    options: Any = {"jobs": args.jobs, "shrinking": not args.no_shrink}
    with ExitStack() as stack:
        if args.thp:
            runs = {setting: families for setting, families in HUGE_RUNS.items() if args.thp in ("all", setting)}
            if args.family != "all":
                runs = dict.fromkeys(runs or [args.thp], (args.family,))
            outcomes = run_groups(machine, plan_huge(args.programs, seed, runs), args.length, **options)
        else:
            families = list(FAMILIES) if args.family == "all" else [args.family]
            stack.enter_context(swap_for(families))
            outcomes = run_many(machine, plan(args.programs, seed, families), args.length, **options)
        for outcome in outcomes:
            tally.count(outcome.thp, outcome.family, outcome.checkpoints, bool(outcome.report), outcome.again)
            if outcome.report:
                keep(outcome, args.keep)
    programs, checkpoints, differ = tally.total()
    tally.seconds = time.monotonic() - began
    if args.results is not None:
        tally.add_to(args.results)
    print(f"seed {seed}, {checkpoints} checkpoints, {tally.seconds:.1f} s")
    if again := sum(tally.again.values()):
        print(f"{again} ran again, and equal {AGAIN} times: a folio was held or locked for a moment")
    print(f"{programs} programs, {differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
