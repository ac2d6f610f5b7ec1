"""Recordings of real programs, made on the spot, and their events."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pterefd.session.check import CheckOptions, FileResult, check_trace
from pterefd.source.record import recorder

EXACT = ("VmPTE", "RssAnon", "RssShmem", "VmSwap", "vmas", "zero_entries", "swap_entries", "guard_entries")

# The interpreter itself, not a shell script in front of it, and nothing of site-packages.
PYTHON = [str(Path(sys.base_exec_prefix) / "bin" / "python3"), "-S", "-E", "-c"]


@dataclass
class Recording:
    """A finished recording: the exit code, what the recorder said, and the file."""

    path: Path
    code: int | None = None
    said: list[str] = field(default_factory=list)

    def events(self, *ops: str) -> list[dict[str, Any]]:
        """The events (of these ops), without the fields that are null."""
        rows = pq.read_table(self.path).to_pylist()
        return [
            {name: value for name, value in row.items() if value is not None}
            for row in rows
            if not ops or row["op"] in ops
        ]

    def check(self, *fields: str) -> FileResult:
        """Replay it and compare with the kernel's own numbers at every checkpoint."""
        return check_trace(self.path, options=CheckOptions(frozenset(fields or EXACT)))

    def assert_exact(self, *fields: str, checkpoints: int = 1) -> None:
        """Every checkpoint holds, nothing was corrected, and there are so many at least."""
        result = self.check(*fields)
        assert result.error is None
        assert [str(difference) for difference in result.differences] == []
        assert result.corrections == 0
        assert result.outside == 0
        assert result.checkpoints >= checkpoints


Record = Callable[..., Recording]


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Record a command: record(argv, **options of recorder.Options)."""

    def run(argv: list[str], **options: Any) -> Recording:
        recording = Recording(tmp_path_factory.mktemp("recording") / "trace.parquet")
        settings = recorder.Options(recording.path, say=recording.said.append, **options)
        recording.code = recorder.record_command(argv, settings)
        assert not [left for left in recording.path.parent.iterdir() if left != recording.path]
        return recording

    return run
