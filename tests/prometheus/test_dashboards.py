"""The dashboards' files are what etc/grafana/build.py makes, and each thing in them is what Grafana needs."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
import yaml

from tests.prometheus.running import DASHBOARDS, ETC, ROOT, boards

GRAFANA = ROOT / "etc" / "grafana"
BOARDS = boards()
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board["panels"]]


def build(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("build_dashboards", GRAFANA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_they_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(monkeypatch)
    assert {path: path.read_text() for path in DASHBOARDS.glob("*.json")} == module.files(), "run `make dashboards`"


def test_there_are_the_host_one_mm_and_policies_compared() -> None:
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        "host": "pterefd-host",
        "mm": "pterefd-mm",
        "policies": "pterefd-policies",
    }
    variables = {name: [v["name"] for v in board["templating"]["list"]] for name, board in BOARDS.items()}
    assert variables == {
        "host": ["datasource", "host_kind", "instance"],
        "mm": ["datasource", "host_kind", "instance", "comm", "pid"],
        "policies": ["datasource", "host_kind", "instance", "policy"],
    }


@pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=lambda value: value if isinstance(value, str) else value["title"]
)
def test_panels(name: str, panel: dict[str, Any]) -> None:
    """Each says what it shows and in what unit, asks the data source of the dashboard, for the host that was chosen."""
    assert panel["type"] in ("stat", "timeseries")
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert 'host_kind="$host_kind", instance=~"$instance"' in target["expr"]
        assert target["legendFormat"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_rows_and_do_not_overlap(name: str) -> None:
    taken = [
        (x, y)
        for panel in BOARDS[name]["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert len({panel["title"] for panel in BOARDS[name]["panels"]}) == len(BOARDS[name]["panels"])


def test_provisioning_names_what_is_there() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/pterefd.yaml").read_text())["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    scraped = yaml.safe_load((ETC / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/pterefd.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in (ROOT / "docs" / "dashboards.md").read_text()
