"""What page tables cost: the program measures on the running kernel, and its figures become a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pterefd.calibrate.calibrate import figure, parse, thread_counts
from pterefd.session import costs

Run = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_it_measures_with_one_to_n_threads(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


def test_lines_become_medians_with_their_spread() -> None:
    values, how = parse("how pte_free munmap\nlock 0 90.0\nlock 1 70.26\nlock 2 -3.5\nfault 0 1500\n")
    assert how == "munmap"
    assert figure(values["lock"]) == costs.Figure(ns=70.3, low=0, high=90)
    assert figure(values["fault"]) == costs.Figure(ns=1500, low=1500, high=1500)


@pytest.mark.kernel
def test_it_measures_the_running_kernel(pterefd: Run, tmp_path: Path) -> None:
    """Loose bounds: the tests share their machine."""
    done = pterefd("calibrate", "-o", "costs.json", "--threads", "2", "--runs", "5")
    assert done.stderr == ""
    assert done.returncode == 0
    measured = costs.load(tmp_path / "costs.json")
    assert [row.threads for row in measured.threads] == [1, 2]
    assert measured.kernel in done.stdout
    for row in measured.threads:
        assert 50 < row.fault.ns < 100_000
        assert 0 < row.pte_free.ns < 100_000
        assert sorted(row.latency) == ["dontneed", "mprotect", "munmap", "none"]
        assert all(latency.p50.ns <= latency.p99.ns for latency in row.latency.values())
    # a page that is written has to be zeroed, one that is read has not
    assert measured.operations.zero_fault.ns < measured.operations.fault.ns
    assert 0 < measured.operations.refcount.ns < measured.operations.walker.ns


def test_without_a_compiler_it_says_so_in_one_line(pterefd: Run, tmp_path: Path) -> None:
    done = pterefd("calibrate", env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "pterefd: gcc is not there to build measure.c: install the package gcc\n"


def test_the_shipped_costs_say_where_they_were_measured() -> None:
    shipped = costs.load()
    assert shipped.kernel.startswith("6.18")
    assert shipped.runs >= 15
    assert shipped.operations.swap_out is not None


def test_costs_by_threads() -> None:
    shipped = costs.load()
    assert shipped.of_threads(1).threads == 1
    assert shipped.of_threads(200) is shipped.threads[-1]
    row = shipped.threads[0]
    assert shipped.hold_ns(1) == row.lock.ns + row.pte_free.ns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("kernel"), "kernel: field required"),
        (lambda c: c.update(format_version=2), "format_version: should be at most 1, not 2"),
        (lambda c: c["operations"].update(swop=1), "operations.swop: no such key"),
        (lambda c: c["operations"]["lock"].update(ns=-1), "operations.lock.ns: should be at least 0"),
        (lambda c: c.update(threads=[]), "threads: "),
    ],
)
def test_a_bad_file_of_costs_is_one_line(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    given = json.loads(costs.DEFAULT.read_text())
    change(given)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(given))
    with pytest.raises(costs.BadInput) as caught:
        costs.load(path)
    assert str(caught.value).startswith(f"{path}: not a file of costs: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_or_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    with pytest.raises(costs.BadInput, match=r"bad\.json: cannot be read: No such file"):
        costs.load(path)
    path.write_text("costs")
    with pytest.raises(costs.BadInput, match=r"bad\.json: not a file of costs: Invalid JSON"):
        costs.load(path)
