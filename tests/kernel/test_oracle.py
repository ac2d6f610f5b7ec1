"""The model against the running kernel: random programs, and the programs that once showed a difference."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pterefd.session.check import CheckOptions, check_trace

from .cases import all_cases, numbers_of
from .execute import Execution, Machine
from .generate import FAMILIES
from .oracle import LIMITS, check_rows, plan, readable, run_many
from .swapfile import swap_file

REGRESSIONS = sorted(Path(__file__).with_name("regressions").glob("*.jsonl"))
FIXED_SEED = 2022
FIXED_PROGRAMS, FRESH_PROGRAMS = 200, 100


@pytest.fixture(scope="module")
def machine() -> Machine:
    """The running kernel, at the end of each program with the place of every entry."""
    return Machine.this(states=True, cpu=max(os.sched_getaffinity(0)))


@pytest.fixture(scope="module")
def swap() -> Iterator[None]:
    """Somewhere to swap to."""
    with swap_file(128):
        yield


def run_programs(machine: Machine, programs: int, seed: int, families: list[str]) -> int:
    """Run and check; returns the number of checkpoints. A difference fails with the shortest program that shows it."""
    checkpoints = 0
    for outcome in run_many(machine, plan(programs, seed, families)):
        assert not outcome.report, f"{outcome.family} {outcome.seed}:\n{outcome.report}"
        checkpoints += outcome.checkpoints
    return checkpoints


@pytest.mark.kernel
@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("family", FAMILIES)
def test_programs_of_a_fixed_seed(machine: Machine, family: str) -> None:
    """Every number that the kernel gives after every operation."""
    programs = FIXED_PROGRAMS // len(FAMILIES)
    assert run_programs(machine, programs, FIXED_SEED, [family]) > programs * 90


@pytest.mark.kernel
@pytest.mark.usefixtures("swap")
def test_programs_of_a_fresh_seed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs each time. The seed is printed, for `python -m tests.kernel.oracle --programs 100 --seed N`."""
    seed = random.SystemRandom().randrange(1_000_000)
    with capsys.disabled():
        print(f" seed {seed} ", end="", flush=True)
    assert run_programs(machine, FRESH_PROGRAMS, seed, list(FAMILIES)) > FRESH_PROGRAMS * 90


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_programs_that_once_differed(path: Path) -> None:
    """What the kernel said then, replayed without it."""
    result = check_trace(path, options=CheckOptions(), limits=LIMITS)
    assert result.error is None
    assert result.checkpoints > 0
    assert [str(difference) for difference in result.differences] == []


@pytest.mark.kernel
@pytest.mark.usefixtures("swap")
def test_cases(machine: Machine, subtests: pytest.Subtests) -> None:
    """The numbers of the rules: literal, held against the kernel, then the model against the kernel."""
    number = 0
    for case in all_cases(machine.heap_start):
        number += 1
        with subtests.test(case.name):
            execution = Execution(machine, case.program())
            rows = execution.run()
            assert numbers_of(execution, case) == []
            differences = check_rows(rows).differences
            assert not differences, readable(rows, differences)
    assert number > 50


def test_the_families_that_swap_are_known() -> None:
    """A family that pages out says that it needs the swap file."""
    assert all(("pageout" in family.advice) == family.swap for family in FAMILIES.values())
