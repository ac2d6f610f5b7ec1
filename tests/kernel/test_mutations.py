"""The oracle can fail: without any one of these rules of the model, a case of the kernel's differs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .cases import all_cases
from .execute import Execution, Machine
from .huge_cases import executed, huge_cases
from .huge_mutations import HUGE_CHANGES
from .mutations import CHANGES
from .oracle import encode
from .plain import plain_model
from .swapfile import swap_file

ALL_CHANGES = (*CHANGES, *HUGE_CHANGES)
REGRESSIONS = Path(__file__).with_name("regressions")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the changes name: directed cases, run on the kernel now, and programs kept from earlier."""
    wanted = {change.shown_by for change in ALL_CHANGES}
    machine = Machine.this(cpu=max(os.sched_getaffinity(0)))
    folder = tmp_path_factory.mktemp("traces")
    found = {path.stem: path for path in REGRESSIONS.glob("*.jsonl")}
    with swap_file(64):
        for number, case in enumerate(all_cases(machine.heap_start)):
            if case.name in wanted:
                found[case.name] = folder / f"{number}.jsonl"
                found[case.name].write_bytes(encode(Execution(machine, case.program()).run()))
    huge = [case for case in huge_cases(machine.heap_start) if case.name in wanted]
    for number, (case, execution) in enumerate(executed(replace(machine, states=True), huge)):
        found[case.name] = folder / f"huge-{number}.jsonl"
        found[case.name].write_bytes(encode(execution.rows))
    return found


def check(check_trace: Any, path: Path) -> Any:
    """Compare every checkpoint, with a small host."""
    from pterefd.engine.arena import Limits
    from pterefd.session.check import CheckOptions

    limits = Limits(64, 1 << 14, 1 << 10, 1 << 16, 1 << 14, 1 << 10, 1 << 18)
    result = check_trace(path, options=CheckOptions(), limits=limits)
    assert result.error is None
    return result


@pytest.mark.kernel
def test_the_plain_model_is_right(traces: dict[str, Path]) -> None:
    """Uncompiled and unchanged, the model agrees with all of them."""
    with plain_model() as check_trace:
        assert [name for name in {c.shown_by for c in ALL_CHANGES} if check(check_trace, traces[name]).differ] == []


@pytest.mark.kernel
@pytest.mark.parametrize("change", ALL_CHANGES, ids=lambda change: change.about.replace(" ", "-"))
def test_a_rule_that_is_switched_off_is_noticed(traces: dict[str, Path], change: Any) -> None:
    with plain_model(change) as check_trace:
        assert check(check_trace, traces[change.shown_by]).differ > 0
