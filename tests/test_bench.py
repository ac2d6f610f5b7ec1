"""The benches that need no quiet machine: what both sides do is the same, and the report says what it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from bench import suite
from bench.check import lines
from bench.suite import RANGES, SUITE, Compared

ROOT = Path(__file__).resolve().parent.parent


def test_bench_check() -> None:
    """The running kernel's VmPTE grows by what the model's does, in every case: else it ends with 1."""
    command = [sys.executable, "-m", "bench.check", "--runs", "1", "--operations", "16384"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in SUITE | RANGES:
        assert done.stdout.count(f"\n{name} ") == 3, name  # its times, and each of the two ratios
    assert "differ" not in done.stdout


def test_what_is_lost_is_said() -> None:
    found = Compared("a case", 1, kernel=[100.0], each=[10.0], stored=[4.0], grew={0})
    before = {"a case": {"ratio_each": 13.0, "ratio_stored": 40.0}}
    assert [line.split()[-1] for line in lines([found], before)] == ["-23%", "lost"]


def test_sides_that_differ_are_said() -> None:
    assert [one.name for one in suite.unequal([Compared("x", 1, [1], [1], [1], {4096, 8192})])] == ["x"]


def test_a_case_is_the_same_list_on_both_sides(tmp_path: Path) -> None:
    """What is stored as runs has as many pages as the list."""
    done = SUITE["jemalloc-like churn"](4096)
    ops, _, length = done.columns()
    suite.write_trace(done, tmp_path / "x.parquet", runs=True)
    batches = list(suite.open_trace(tmp_path / "x.parquet").batches())
    pages = sum(int(batch.len[batch.op == suite.OP_FAULT].sum()) for batch in batches) // suite.PAGE
    assert (
        pages
        == int(np.isin(ops, (suite.READ, suite.WRITE)).sum())
        == int((length[ops == suite.WRITE] == suite.PAGE).sum())
    )
