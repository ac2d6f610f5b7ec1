"""A plugin file held against the contract: on a small recorded host, in two processes, whose answers must be equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pterefd.host.warm import warm

SECONDS = 120.0  # for one trial as a whole, all kernels compiled


@dataclass
class Verdict:
    """What was found. classes: (kind, name) that the file registers.  decisions: acts that were compared.

    findings: one line each; none where the file keeps the contract.
    """

    classes: list[tuple[str, str]] = field(default_factory=list)
    decisions: int = 0
    findings: list[str] = field(default_factory=list)


def check(path: Path, seconds: float = SECONDS) -> Verdict:
    """Try the file twice, as on two machines, and compare."""
    path = path.resolve()
    warm()  # kernels are compiled once, not twice at a time, and not within the time of a trial
    with tempfile.TemporaryDirectory(prefix="pterefd-check-") as folder:
        outs = [Path(folder) / f"{number}.json" for number in (1, 2)]
        trials = [_start(path, out, number, restore=number == 2) for number, out in enumerate(outs, 1)]
        codes = [_end(trial, seconds) for trial in trials]
        reports = [json.loads(out.read_text()) if out.exists() else None for out in outs]
    verdict = Verdict()
    for report, code in zip(reports, codes, strict=True):
        if report is None:
            what = f"does not come to an end within {seconds:g} s" if code is None else f"ends the process, code {code}"
            verdict.findings.append(what)
            return verdict
    _compare(reports, verdict)
    return verdict


def _start(path: Path, out: Path, number: int, *, restore: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pterefd.session.trial", str(path), str(out), *(["--restore"] if restore else [])]
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "PYTHONHASHSEED": str(number)}
    return subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)


def _end(trial: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code; None where it had to be killed."""
    try:
        return trial.wait(seconds)
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.wait()
        return None


def _compare(reports: list[Any], verdict: Verdict) -> None:
    first, second = reports
    found: dict[str, None] = {}
    for report in reports:
        if report["error"] is not None:
            found.setdefault(report["error"])
        for line in report["wrong"]:
            found.setdefault(line)
        for what, call, line in report["impure"]:
            found.setdefault(f"{what}: {call}, line {line}")
    verdict.classes = [(kind, name) for kind, name in first["classes"]]
    for whose, answers in first["answers"].items():
        verdict.decisions += sum(answer[1] is not None for answer in answers)
        other, restored = second["answers"].get(whose, []), second["restored"].get(whose, [])
        if other != answers:
            found.setdefault(f"{whose}: gives different answers in two runs with the same seed{_where(answers, other)}")
        elif restored != other:
            found.setdefault(f"{whose}: goes on differently after state() and restore(){_where(other, restored)}")
    verdict.findings = list(found)


def _where(one: list[Any], other: list[Any]) -> str:
    """The first moment whose answers differ, where there is one."""
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if a != b:
            return f", first at moment {number} ({a[0]})"
    return ""
