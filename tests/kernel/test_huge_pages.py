"""Huge pages: the model against the running kernel, with the machine's settings as each program wants them."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pterefd.session.check import CheckOptions, Difference, check_trace
from tests.conftest import Run

from . import oracle
from .cases import numbers_of
from .execute import Machine
from .generate import HUGE_FAMILIES, HUGE_RUNS
from .huge_cases import executed, huge_cases
from .hugepages import SYSFS, huge_pages, refused_splits, thp_setting
from .oracle import Verdict, check_rows, plan_huge, readable, run_groups, run_one

FIXED_SEED = 2022
FIXED_PROGRAMS, FRESH_PROGRAMS = 45, 20
HUGE, PAGE = 2 << 20, 4096
MADV_PAGEOUT = 21
FIELDS = frozenset({"VmPTE", "RssAnon", "RssShmem", "VmSwap"})


@pytest.fixture(scope="module")
def machine() -> Machine:
    """The running kernel, at the end of each program with the place of every entry."""
    return Machine.this(states=True, cpu=max(os.sched_getaffinity(0)))


def sysfs() -> dict[Path, str]:
    """Every setting of huge pages that can be written."""
    files = [path for path in SYSFS.rglob("*") if path.is_file() and path.stat().st_mode & 0o200]
    return {path: path.read_text() for path in files}


@pytest.mark.kernel
@pytest.mark.parametrize("setting", HUGE_RUNS)
def test_settings_are_made_and_put_back(setting: str) -> None:
    before = sysfs()
    with huge_pages(setting):
        inside = sysfs()
        assert thp_setting() == setting
        assert f"[{setting.partition(',')[0]}]" in inside[SYSFS / "enabled"]
        assert inside[SYSFS / "use_zero_page"].strip() == str(int("no-zero-page" not in setting))
        for word in setting.split(",")[1:]:
            size, equals, mode = word.partition("=")
            assert not equals or f"[{mode}]" in inside[SYSFS / f"hugepages-{size}" / "enabled"]
        assert inside[SYSFS / "khugepaged/scan_sleep_millisecs"] == "3600000\n"
    assert sysfs() == before


@pytest.mark.kernel
def test_settings_are_put_back_after_an_error() -> None:
    before = sysfs()
    with pytest.raises(ValueError, match="no '3kB=always' here"), huge_pages("always,3kB=always"):
        pass
    with pytest.raises(ZeroDivisionError), huge_pages("always"):
        raise ZeroDivisionError
    assert sysfs() == before


def run_programs(machine: Machine, programs: int, seed: int) -> int:
    """Run and check; returns the number of checkpoints."""
    checkpoints = 0
    for outcome in run_groups(machine, plan_huge(programs, seed, HUGE_RUNS)):
        assert not outcome.report, f"{outcome.family} {outcome.seed}:\n{outcome.report}"
        checkpoints += outcome.checkpoints
    return checkpoints


@pytest.mark.kernel
def test_programs_of_a_fixed_seed(machine: Machine) -> None:
    """Every number that the kernel gives after every operation."""
    assert run_programs(machine, FIXED_PROGRAMS, FIXED_SEED) > FIXED_PROGRAMS * 90


@pytest.mark.kernel
def test_programs_of_a_fresh_seed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs each time. The seed is printed, for `python -m tests.kernel.oracle --thp --seed N`."""
    seed = random.SystemRandom().randrange(1_000_000)
    with capsys.disabled():
        print(f" seed {seed} ", end="", flush=True)
    assert run_programs(machine, FRESH_PROGRAMS, seed) > FRESH_PROGRAMS * 90


@pytest.mark.kernel
def test_cases(machine: Machine, subtests: pytest.Subtests) -> None:
    """The numbers of the rules: literal, held against the kernel, then the model against the kernel."""
    number = 0
    for case, execution in executed(machine, huge_cases(machine.heap_start)):
        number += 1
        with subtests.test(case.name):
            assert numbers_of(execution, case) == []
            differences = check_rows(execution.rows).differences
            assert not differences, readable(execution.rows, differences)
    assert number > 60


def test_every_family_has_a_run() -> None:
    """A family of programs with huge pages that no setting runs would prove nothing."""
    assert set(HUGE_FAMILIES) <= {family for families in HUGE_RUNS.values() for family in families}
    assert sum(len(families) for families in HUGE_RUNS.values()) <= FIXED_PROGRAMS


# -- a folio that somebody holds ----------------------------------------------------------------------------------


class Area(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def huge_page() -> Iterator[int]:
    """The address of a huge page of this process whose first byte is written, the rest of it zero."""
    memory = mmap.mmap(-1, 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    address = -(-start // HUGE) * HUGE
    ctypes.memset(address, 1, 1)
    yield address


@contextmanager
def held(address: int) -> Iterator[None]:
    """A pipe holds a reference to the page there."""
    read_end, write_end = os.pipe()
    assert libc.vmsplice(write_end, ctypes.byref(Area(address, PAGE)), 1, 0) == PAGE
    yield
    os.close(read_end)
    os.close(write_end)


def split(address: int) -> None:
    """Paging out a part of a huge page splits it first."""
    assert libc.madvise(ctypes.c_void_p(address + 8 * PAGE), ctypes.c_size_t(4 * PAGE), MADV_PAGEOUT) == 0


def rss_anon_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


@pytest.mark.kernel
def test_a_folio_that_somebody_holds_is_not_split_and_the_kernel_says_so() -> None:
    """Where a program differs by chance: the zero pages of the folio stay, and thp_split_page_failed rises."""
    with huge_pages("madvise"), huge_page() as address:
        refused, before = refused_splits(), rss_anon_kb()
        with held(address):
            split(address)
        assert refused_splits() == refused + 1
        assert abs(rss_anon_kb() - before) < 256
        split(address)
        assert refused_splits() == refused + 1
        assert abs(before - rss_anon_kb() - 511 * 4) < 256


@pytest.mark.kernel
@pytest.mark.parametrize(("refused", "times", "differs"), [(True, 1, False), (True, 2, True), (False, 1, True)])
def test_only_what_a_refused_split_explains_is_run_again(
    machine: Machine, refused: bool, times: int, differs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference stands where the kernel refused nothing, or where it shows again."""
    calls = 0

    def checked(rows: list[oracle.Row]) -> Verdict:
        nonlocal calls
        calls += 1
        if calls == 1 and refused:
            with huge_page() as address, held(address):
                split(address)
        verdict = check_rows(rows)
        wrong = Difference("here", 1, "RssAnon", 1, 2)
        return Verdict(verdict.checkpoints, [wrong] if calls <= times else verdict.differences)

    monkeypatch.setattr(oracle, "check_rows", checked)
    with huge_pages("madvise"):
        outcome = run_one(machine, "anon", 1, 10, shrinking=False)
    assert bool(outcome.report) is differs
    assert outcome.again is not differs


# -- recordings ---------------------------------------------------------------------------------------------------

PROGRAM = """
import random
import sys
random.seed(2022)
blocks = [bytearray(random.randrange(100, 200_000)) for _ in range(300)]
for _ in range(300):
    blocks[random.randrange(300)] = bytearray(random.randrange(100, 3_000_000))
"""


@pytest.mark.kernel
@pytest.mark.parametrize("setting", ["madvise,64kB=always", "always,16kB=always,64kB=always,256kB=always"])
def test_a_recorded_program_that_is_given_blocks(setting: str, tmp_path: Path, pterefd: Run) -> None:
    """Its faults follow each other without a checkpoint in between, as no program of the oracle's does."""
    with huge_pages(setting):
        done = pterefd("record", "--thp", "keep", "-o", "a.parquet", "--", sys.executable, "-I", "-c", PROGRAM)
        assert done.returncode == 0, done.stderr
    result = check_trace(tmp_path / "a.parquet", options=CheckOptions(fields=FIELDS))
    assert result.thp == setting
    assert result.checkpoints > 0
    assert [str(difference) for difference in result.differences] == []
