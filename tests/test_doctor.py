"""`pterefd doctor` on this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from pterefd import doctor, shell


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


def test_what_single_commands_need_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(shell, "works_without_root", lambda: False)
    rows = {row["what"]: row for row in doctor.table()}
    for what, command in (("gcc", "`calibrate`"), ("qemu", "`reenact --kernel`"), ("user namespaces", "`shell`")):
        assert rows[what]["verdict"] == doctor.WARN
        assert command in rows[what]["advice"]


def test_user_namespaces_are_tried(root: Path) -> None:
    """As the user who is asked about would: by what unshare(1) comes to, as nobody."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    asked = subprocess.run(["unshare", "--user", "--mount", "--pid", "true"], check=False, cwd="/", **nobody)  # type: ignore[call-overload]
    assert shell.works_without_root() == (asked.returncode == 0)


def test_a_check_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Row:
        raise OSError("no")

    monkeypatch.setattr(doctor, "_CHECKS", (broken,))
    assert doctor.table() == [{"what": "broken", "value": "cannot be told: no", "verdict": "warn", "advice": ""}]


def test_text_and_json(pterefd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert doctor.render(doctor.table()).count("\n") >= len(doctor.table())
    ended = pterefd("doctor", "--json")
    assert {row["what"] for row in json.loads(ended.stdout)["checks"]} >= {"kernel", "perf"}
