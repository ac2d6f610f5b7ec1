"""[[mm]] tables as sources: copies, seeds, shifts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from pterefd.config import MmSection
from pterefd.errors import BadInput, TraceError
from pterefd.hookspecs import Emit, Tunables, Workload
from pterefd.session.sources import open_sources


class Parameters(Tunables):
    pages: int = Field(default=2, ge=1, le=100)


class Drawn(Workload):
    """A page at a random place, in each of the children."""

    name = "drawn"
    Tunables = Parameters
    tunables: Parameters

    def highest_pid(self) -> int:
        return 3

    def events(self, emit: Emit, rng: np.random.Generator) -> Iterator[None]:
        emit.exec(1, "drawn", oom_score_adj=-5)
        emit.fault(1, 4096 * rng.integers(1, 1 << 20, self.tunables.pages), spacing=1000)
        yield


WORKLOADS = {"drawn": Drawn}


def sources(*tables: dict[str, Any]) -> list[Any]:
    return list(open_sources([MmSection(**table) for table in tables], WORKLOADS))


def test_each_copy_has_a_seed_and_pids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"op": "exec", "pid": 5, "comm": "a", "t": 7}) + "\n")
    made = sources({"trace": path}, {"workload": "drawn", "seed": 4, "copies": 2}, {"workload": "drawn", "seed": 5})
    assert [source.name for source in made] == [str(path), "drawn#0", "drawn#1", "drawn"]
    assert [source.pid_base for source in made] == [0, 5, 8, 11]
    places = [[int(a) for batch in source.batches() for a in batch.addr] for source in made]
    assert places[1] != places[2] == places[3], "seeds 4, 5 and 5"


def test_what_a_table_says_is_done(tmp_path: Path) -> None:
    table = {"workload": "drawn", "parameters": {"pages": 3}, "start": 0.5, "pace": 2, "group": "web"}
    (source,) = sources({**table, "oom_score_adj": 100, "pid_base": 40})
    (batch,) = source.batches()
    assert batch.t.tolist() == [500_000_000, 500_000_000, 500_000_500, 500_001_000]
    assert (batch.pid.tolist(), batch.group) == ([41] * 4, "web")
    assert batch.side == [{"comm": "drawn", "oom_score_adj": 100}]


def test_a_given_base_is_the_first_copys() -> None:
    made = sources({"workload": "drawn"}, {"workload": "drawn", "copies": 2, "pid_base": 100}, {"workload": "drawn"})
    assert [source.pid_base for source in made] == [0, 100, 103, 106]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"workload": "other"}, "there is no workload 'other'; there are: drawn"),
        (
            {"workload": "drawn", "parameters": {"pages": 0}},
            "workload drawn: pages: should be at least 1",
        ),
        ({"trace": Path("/nowhere.parquet")}, "/nowhere.parquet: no such file"),
    ],
)
def test_what_cannot_be_opened_is_one_line(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        sources(table)


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(TraceError, match="x: neither Parquet nor JSON Lines"):
        sources({"trace": tmp_path / "x"})
