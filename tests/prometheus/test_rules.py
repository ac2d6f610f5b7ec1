"""Recording rules and alerts, by Prometheus' own tool; what a runbook is for, each alert says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus.running import ETC, ROOT

UNIT = Path(__file__).parent / "rules.test.yml"
RULES = [
    rule
    for name in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((ETC / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = yaml.safe_load(UNIT.read_text())["tests"]


def promtool(*args: str | Path) -> tuple[int, str]:
    """Exit code and what it says."""
    done = subprocess.run(["promtool", *map(str, args)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_rules_are_silent_and_fire_when_they_should() -> None:
    assert promtool("test", "rules", UNIT)[0] == 0, promtool("test", "rules", UNIT)[1]


@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("alerts.yml", "ratio_memory > 0.02", "ratio_memory > 0.03"),
        ("alerts.yml", "for: 1h", "for: 50m"),
        ("alerts.yml", "pterefd_replay_stalled_seconds > 60", "pterefd_replay_stalled_seconds > 120"),
        ("recording.yml", 'kind=~"empty|zero"', 'kind=~"empty|zero|mixed"'),
    ],
)
def test_another_rule_is_noticed(tmp_path: Path, name: str, was: str, becomes: str) -> None:
    """The unit tests can fail."""
    (tmp_path / "tests" / "prometheus").mkdir(parents=True)
    shutil.copytree(ETC, tmp_path / "etc" / "prometheus")
    path = tmp_path / "etc" / "prometheus" / name
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, becomes))
    test = tmp_path / "tests" / "prometheus" / UNIT.name
    test.write_text(UNIT.read_text())
    code, said = promtool("test", "rules", test)
    assert (code, "FAILED" in said) == (1, True), said


def test_the_configuration_is_one_that_prometheus_takes() -> None:
    code, said = promtool("check", "config", ETC / "prometheus.yml")
    assert (code, f"{len(ALERTS)} rules found" in said, "FAILED" in said) == (0, True, False), said


def test_every_rule_has_a_unit_test() -> None:
    fired = {case["alertname"] for test in TESTS for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
    silent = {
        case["alertname"] for test in TESTS for case in test.get("alert_rule_test", []) if not case.get("exp_alerts")
    }
    assert fired == silent == {rule["alert"] for rule in ALERTS}
    read = " ".join(case["expr"] for test in TESTS for case in test.get("promql_expr_test", []))
    unread = {rule["record"] for rule in RULES if "record" in rule and rule["record"] not in read}
    assert unread == {"instance:pterefd_mm_reclaimable_pt_bytes:sum"}  # ... which the ratio is made of


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert rule["annotations"]["runbook"].endswith(".")
    assert f"`{rule['alert']}`" in (ROOT / "docs" / "dashboards.md").read_text()


def test_one_group_needs_node_exporter_alone() -> None:
    groups = {group["name"]: group["rules"] for group in yaml.safe_load((ETC / "alerts.yml").read_text())["groups"]}
    assert groups["node"]
    for rule in groups["node"]:
        assert "node_memory_PageTables_bytes" in rule["expr"]
        assert "pterefd" not in rule["expr"]
