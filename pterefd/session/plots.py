"""Pictures of a comparison over the trace's time: page-table bytes, reclaimable bytes, free memory, kills.

PNG and SVG by matplotlib; HTML is one file with the SVG in it, the report below, and a box for each run that shows and
hides its lines; it loads nothing from anywhere.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pterefd.errors import BadInput, Missing
from pterefd.session.comparison import Comparison, render_table, size
from pterefd.session.outcome import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "html")
MOST_POINTS = 2000  # of a line
MOST_NAMED = 20  # runs in a legend
MOST_COMMS = 3  # in one label
LABEL_HEIGHT = 0.06  # of a panel's height: a line of a label
LETTER_WIDTH = 0.0058  # of the panel's width: a letter of a label
ROW_POINTS = 8  # from one row of labels to the next
NEAR = 0.03  # of the panel's width: kills that are nearer than this share a label
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")


def check_format(path: Path) -> str:
    """The format by the file's ending. BadInput: another one."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise BadInput(f"{path}: a picture is a file of .{', .'.join(FORMATS)}")
    return ending


def save(comparison: Comparison, path: Path) -> None:
    """Draw the comparison into a file. BadInput: it cannot be written. Missing: there is no matplotlib."""
    kind = check_format(path)
    figure = draw(comparison)
    data = _page(comparison, figure) if kind == "html" else _bytes(figure, kind)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def draw(comparison: Comparison) -> Figure:
    """The figure: a panel for page tables, one for reclaimable bytes, and one for free memory where it is limited."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise Missing("--plot needs matplotlib: install it beside pterefd") from None
    with_memory = any(result.series.free_bytes for result in comparison.results)
    panels = 3 if with_memory else 2
    with mpl.rc_context({"svg.hashsalt": "pterefd", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.6, 2.4 * panels + 0.9), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        figure.suptitle(comparison.title, fontsize=10)
        for panel, title in zip(axes, ("page tables", "reclaimable page tables", "free memory"), strict=False):
            _frame(panel, title)
        groups = alike(comparison.results)
        for index, numbers in enumerate(groups):
            _lines(axes, comparison.results, numbers, index)
        _kills(axes[0], comparison.results, groups)
        if with_memory:
            _watermarks(axes[2], comparison.results)
        for panel in axes:
            panel.set_ylim(bottom=0)
        axes[-1].set_xlabel("time of the trace, s")
        figure.legend(*_legend(axes[0]), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


def name_of(result: Result, number: int) -> str:
    """`3: rfc-2022, pre_oom, largest_first, 512 MiB`."""
    c = result.combination
    parts = [c.profile, c.trigger, c.policy]
    parts += [size(c.memory_bytes)] if c.memory_bytes else []
    parts += [f"seed {c.seed}"] if c.seed else []
    return f"{number}: {', '.join(parts)}"


def alike(results: Sequence[Result]) -> list[list[int]]:
    """Numbers of the runs, from 1, in groups that come to the same curves and kills: a line for each."""
    groups: list[list[int]] = []
    for number, result in enumerate(results, 1):
        for group in groups:
            first = results[group[0] - 1]
            if first.series == result.series and first.outcome.killed == result.outcome.killed:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def label_of(results: Sequence[Result], numbers: Sequence[int]) -> str:
    """The name of the first of some runs that are alike, and which are."""
    first, *others = numbers
    name = name_of(results[first - 1], first)
    return f"{name} (the same: {', '.join(map(str, others))})" if others else name


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Indices of the points that are drawn: every n-th, and of each stretch its highest, so that peaks stay."""
    n = len(values)
    if n <= most:
        return list(range(n))
    step = -(-n // (most // 2))
    kept = set()
    for begin in range(0, n, step):
        stretch = range(begin, min(begin + step, n))
        kept |= {begin, max(stretch, key=values.__getitem__)}
    return sorted({*kept, n - 1})


def _frame(panel: Axes, title: str) -> None:
    panel.set_ylabel(f"{title}, MiB")
    panel.grid(alpha=0.3, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _look(index: int) -> tuple[str, str]:
    """Colour and style of a line."""
    return COLOURS[index % len(COLOURS)], ("-", "--", ":", "-.")[index // len(COLOURS) % 4]


def _lines(axes: Sequence[Axes], results: Sequence[Result], numbers: Sequence[int], index: int) -> None:
    """Runs that are alike, in every panel; each line has the id run-N of the first, by which the page hides it."""
    number = numbers[0]
    series = results[number - 1].series
    colour, style = _look(index)
    columns: list[Sequence[int]] = [series.pgtables_bytes, series.reclaimable_bytes, series.free_bytes]
    for k, (panel, values) in enumerate(zip(axes, columns, strict=False)):
        points = thinned(values)
        x = [series.time_ns[i] / 1e9 for i in points]
        y = [values[i] / (1 << 20) for i in points]
        (line,) = panel.plot(x, y, style, color=colour, linewidth=1, label=label_of(results, numbers))
        line.set_gid(f"run-{number}-{k}")
    for k, kill in enumerate(results[number - 1].outcome.killed):
        mark = axes[0].axvline(kill.time_ns / 1e9, color=colour, linewidth=0.7, linestyle=style, alpha=0.7)
        mark.set_gid(f"run-{number}-kill-{k}")


def _kills(panel: Axes, results: Sequence[Result], groups: Sequence[Sequence[int]]) -> None:
    """Who was killed, above the marks and clear of every curve; kills that are too near for a label each share one."""
    kills = sorted(
        (kill.time_ns / 1e9, kill.comm, index)
        for index, numbers in enumerate(groups)
        for kill in results[numbers[0] - 1].outcome.killed
    )
    low, high = panel.get_xlim()
    near: list[list[tuple[float, str, int]]] = []
    for kill in kills:
        if near and kill[0] - near[-1][0][0] < NEAR * (high - low):
            near[-1].append(kill)
        else:
            near.append([kill])
    ends: list[float] = []  # of each row of labels: where its last one ends
    for label in near:
        whose = {index for _, _, index in label}
        comms = list(dict.fromkeys(comm for _, comm, _ in label))
        more = f" and {len(comms) - MOST_COMMS} more" if len(comms) > MOST_COMMS else ""
        words = f"kill: {', '.join(comms[:MOST_COMMS])}{more}"
        at, width = (label[0][0] - low) / (high - low), len(words) * LETTER_WIDTH
        begin = at if at + width < 1 else at - width
        row = next((row for row, end in enumerate(ends) if end < begin), len(ends))
        ends[row : row + 1] = [begin + width]
        text = panel.annotate(
            words, (label[0][0], 1), (0, 2 + row * ROW_POINTS), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=6, color=_look(*whose)[0] if len(whose) == 1 else "#444444",
            ha="left" if begin == at else "right", va="bottom",
        )  # fmt: skip
        if len(whose) == 1:
            number = groups[label[0][2]][0]
            text.set_gid(f"run-{number}-killed-{label[0][0]:.9f}")


def _watermarks(panel: Axes, results: Sequence[Result]) -> None:
    """The marks of each memory, high, low and min, with their sizes; those that lie too near are named one a line."""
    most = max(max(r.series.free_bytes, default=0) for r in results)
    named = {
        (value, name)
        for s in (r.series for r in results if r.series.free_bytes)
        for value, name in ((s.min_bytes, "min"), (s.low_bytes, "low"), (s.high_bytes, "high"))
    }
    stacks: list[list[tuple[int, str]]] = []
    for value, name in sorted(named):
        panel.axhline(value / (1 << 20), color="#888888", linewidth=0.6, linestyle=":")
        if stacks and value - stacks[-1][0][0] < LABEL_HEIGHT * most * len(stacks[-1]):
            stacks[-1].append((value, name))
        else:
            stacks.append([(value, name)])
    for stack in stacks:
        panel.annotate(
            "\n".join(f"{name} {size(value)}" for value, name in reversed(stack)), (1, stack[0][0] / (1 << 20)),
            (2, -3), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=6, color="#666666",
            va="bottom",
        )  # fmt: skip


def _legend(panel: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > MOST_NAMED:
        labels[MOST_NAMED - 1] = f"and {len(labels) - MOST_NAMED + 1} more"
    return handles[:MOST_NAMED], labels[:MOST_NAMED]


def _bytes(figure: Figure, kind: str) -> bytes:
    """The file's content, the same for the same figure: no date, no random ids."""
    import matplotlib as mpl

    out = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "pterefd", "svg.fonttype": "none"}):
        figure.savefig(out, format=kind, dpi=120, metadata=metadata)
    return out.getvalue()


_SCRIPT = """
document.querySelectorAll("input[data-run]").forEach(box => box.addEventListener("change", () =>
  document.querySelectorAll(`[id^="run-${box.dataset.run}-"]`).forEach(
    line => { line.style.display = box.checked ? "" : "none"; })));
"""


def _page(comparison: Comparison, figure: Figure) -> bytes:
    picture = _bytes(figure, "svg").decode()
    picture = picture[picture.index("<svg") :]
    boxes = "\n".join(
        f'<label><input type="checkbox" checked data-run="{numbers[0]}">'
        f" {html.escape(label_of(comparison.results, numbers))}</label><br>"
        for numbers in alike(comparison.results)
    )
    title = html.escape(comparison.title)
    report = html.escape(render_table(comparison))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 1em; }}
svg {{ max-width: 100%; height: auto; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
{picture}
<form>
{boxes}
</form>
<pre>
{report}</pre>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()
