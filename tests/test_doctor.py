"""`pterefd doctor` on this machine."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from pterefd import doctor


def test_every_check_gives_a_row() -> None:
    rows = doctor.table()
    named = {row["what"]: row for row in rows}
    assert len(named) == len(rows)
    assert set(named["perf"]) == {"what", "value", "verdict", "advice"}
    assert {"architecture", "page size", "kernel", "PT_RECLAIM", "perf", "tracepoints", "pagemap", "/dev/fuse"} <= set(
        named
    )
    assert {row["verdict"] for row in rows} <= {doctor.OK, doctor.WARN, doctor.MISSING}
    assert named["kernel"]["value"] == platform.release()
    assert all(row["advice"] for row in rows if row["verdict"] != doctor.OK)


def test_what_is_missing_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    rows = doctor.table()
    perf = next(row for row in rows if row["what"] == "perf")
    assert perf["verdict"] == doctor.MISSING
    assert "linux-perf" in perf["advice"]
    assert doctor.exit_code(rows) == 3
    assert doctor.exit_code([row for row in rows if row["verdict"] == doctor.OK]) == 0


def test_a_check_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Row:
        raise OSError("no")

    monkeypatch.setattr(doctor, "_CHECKS", (broken,))
    assert doctor.table() == [{"what": "broken", "value": "cannot be told: no", "verdict": "warn", "advice": ""}]


def test_text_and_json(pterefd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert doctor.render(doctor.table()).count("\n") >= len(doctor.table())
    ended = pterefd("doctor", "--json")
    assert {row["what"] for row in json.loads(ended.stdout)["checks"]} >= {"kernel", "perf"}
