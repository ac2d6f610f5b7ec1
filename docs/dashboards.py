"""Draws docs/dashboards/*.svg: `make dashboards`; takes a minute and a half.

Two daemons run docs/dashboards.toml in real time, one with its policies, one with none; Debian's Prometheus scrapes
both each second with the rules of etc/prometheus, and what the panels of etc/grafana ask for is drawn where they stand.
The events are the same in each run; at which moments Prometheus looks is not.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.prometheus.running import Prometheus, Series, boards, daemon, filled, free_address, prometheus  # noqa: E402

SECONDS = 60
LOOK_BACK = {"__rate_interval": "5s"}
# What is chosen in each dashboard.
CHOSEN = {
    "host": {"host_kind": "simulated", "instance": "policies"},
    "mm": {"host_kind": "simulated", "instance": "policies", "comm": "ydb-server", "pid": "2"},
    "policies": {"host_kind": "simulated", "instance": ".+", "policy": ".+"},
}
# Grafana's unit: what the numbers are divided by, and what stands at the axis.
UNITS = {
    "bytes": (1 << 20, "MiB"),
    "binBps": (1 << 20, "MiB/s"),
    "percentunit": (0.01, "%"),
    "s": (1, "s"),
    "short": (1, ""),
    "ops": (1, "1/s"),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
MOST = 8  # lines of a panel, the highest
STEP = 1  # seconds between two points
STYLE = {"svg.hashsalt": "pterefd", "svg.fonttype": "none", "font.size": 7, "font.sans-serif": ["DejaVu Sans"]}


def main() -> None:
    text = (HERE / "dashboards.toml").read_text()
    (HERE / "dashboards").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        without = re.sub(r'^policy = "\w+"', 'policy = "none"', text, flags=re.MULTILINE)
        addresses = {"policies": free_address(), "none": free_address()}
        with (
            prometheus(directory, {"pterefd": addresses}) as server,
            daemon(text, directory / "policies", addresses["policies"]),
            daemon(without, directory / "none", addresses["none"]),
        ):
            start = time.time()
            time.sleep(SECONDS)
            for board, values in CHOSEN.items():
                path = HERE / "dashboards" / f"{board}.svg"
                path.write_bytes(drawn(boards()[board], values | LOOK_BACK, server, start))
                print(path.name, file=sys.stderr, flush=True)


def drawn(board: Mapping[str, Any], values: Mapping[str, str], server: Prometheus, start: float) -> bytes:
    """A dashboard as SVG, each panel at its place."""
    places = [panel["gridPos"] for panel in board["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.28 * rows + 0.4), layout="constrained")
        chosen = ", ".join(
            f"{key}={value}" for key, value in values.items() if not key.startswith("__") and value != ".+"
        )
        figure.suptitle(f"{board['title']} ({chosen})", fontsize=9)
        grid = GridSpec(rows, 24, figure=figure)
        for panel, at in zip(board["panels"], places, strict=True):
            axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]])
            axes.set_title(panel["title"], fontsize=7, loc="left")
            lines = [
                (named(target["legendFormat"], series["metric"]), series)
                for target in panel["targets"]
                for series in server.query_range(filled(target["expr"], values), start, start + SECONDS, 1)
            ]
            assert lines, panel["title"]
            divisor, unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
            if panel["type"] == "stat":
                number(axes, float(lines[0][1]["values"][-1][1]) / divisor, unit)
            else:
                curves(axes, lines, panel["fieldConfig"]["defaults"]["custom"], start, divisor)
                axes.set_ylabel(unit, fontsize=6)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(rb"(\d\.\d\d)\d+", rb"\1", out.getvalue())  # hundredths of a point are enough


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with its labels in."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend).strip(" ,")


def number(axes: Axes, value: float, unit: str) -> None:
    """A panel that is one number."""
    axes.set_axis_off()
    axes.text(0.5, 0.4, f"{value:.3g} {unit}", ha="center", va="center", fontsize=11, transform=axes.transAxes)


def curves(
    axes: Axes, lines: Sequence[tuple[str, Series]], custom: Mapping[str, Any], start: float, divisor: float
) -> None:
    """Lines, areas upon each other, or bars; those that are highest are named."""
    points = {
        name: {round(t - start): float(value) / divisor for t, value in series["values"] if value != "NaN"}
        for name, series in lines
    }
    order = sorted(points, key=lambda name: -max(points[name].values(), default=0))[:MOST]
    if custom.get("stacking", {}).get("mode") == "normal":
        x = list(range(0, SECONDS + 1, STEP))
        heights = [[points[name].get(t, 0.0) for t in x] for name in order]
        axes.stackplot(x, heights, labels=order, colors=COLOURS, alpha=0.7, linewidth=0)
    elif custom.get("drawStyle") == "bars":
        for name, colour in zip(order, COLOURS, strict=False):
            axes.bar(list(points[name]), list(points[name].values()), width=1, color=colour, label=name)
    else:
        for name, colour in zip(order, COLOURS, strict=False):
            axes.plot(list(points[name]), list(points[name].values()), color=colour, linewidth=0.9, label=name)
    axes.set_xlim(0, SECONDS)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6)
    axes.locator_params(nbins=4)
    if len(order) > 1 or order[0]:
        columns = 3 if max(map(len, order)) < 16 else 2
        axes.legend(fontsize=5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=columns)


if __name__ == "__main__":
    main()
