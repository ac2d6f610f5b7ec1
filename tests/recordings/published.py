"""The published figures: the mails' program as recorded, replayed under every profile.

python -m tests.recordings.published     writes tests/kernel/results/published.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pterefd.mm.profile import PROFILES
from pterefd.session.check import CheckOptions, check_trace
from tests.conftest import ROOT
from tests.recordings.programs import RECORDINGS

RESULTS = ROOT / "tests" / "kernel" / "results" / "published.json"
VARIANTS = {"published-2mib": "MADV_DONTNEED of 2 MiB", "published-1mib": "of 1 MiB, twice"}


def kernel_said(path: Path) -> int:
    """VmPTE in kB at the last checkpoint before the program's exit, as the kernel had it."""
    rows = pq.read_table(path, columns=["op", "VmPTE"])
    values = [row["VmPTE"] for row in rows.to_pylist() if row["op"] == "expect" and row["VmPTE"] is not None]
    return int(values[-1])


def replayed(path: Path, profile: str) -> list[int]:
    """VmPTE at the end, and what free_ptes would free then, of the program under a profile, in kB."""
    result = check_trace(path, profile=profile, options=None)
    assert result.error is None
    (row,) = result.rows
    return [row.VmPTE, row.reclaimable_pt_bytes >> 10]


def table(recordings: Path = RECORDINGS) -> dict[str, Any]:
    """What docs/exactness.md shows."""
    paths = {name: recordings / f"{name}.parquet" for name in VARIANTS}
    return {
        "recorded": {name: kernel_said(path) for name, path in paths.items()},
        "exact": {name: check_trace(path, options=CheckOptions()).differ == 0 for name, path in paths.items()},
        "profiles": {profile: {name: replayed(path, profile) for name, path in paths.items()} for profile in PROFILES},
    }


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(table(), indent=1) + "\n")
