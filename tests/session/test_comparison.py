"""The report of a comparison: the same numbers as a table, Markdown, a mail, JSON and CSV, and as pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pterefd.errors import BadInput
from pterefd.session.comparison import (
    UNKNOWN,
    Comparison,
    Held,
    Regret,
    duration,
    number,
    render_mail,
    render_markdown,
    render_table,
    size,
)
from pterefd.session.outcome import BOUND, Combination, Killed, Outcome, Result, Series
from pterefd.session.plots import draw, save, thinned
from pterefd.session.sweep import dump, load

MB = 1 << 20
SERIES = Series([1_000_000_000, 2_000_000_000], [3 * MB, 5 * MB], [MB, 2 * MB], [9 * MB, 8 * MB], MB, 2 * MB, 3 * MB)
NONE = Outcome(
    duration_ns=2_000_000_000,
    events=12,
    lost=4000,
    peak_pgtables_bytes=5 * MB,
    mean_pgtables_bytes=4 * MB,
    kills=1,
    first_kill_ns=1_500_000_000,
    killed=(Killed(1_500_000_000, 7, "java <&> redis"),),
)
SAVED = Outcome(
    duration_ns=2_000_000_000,
    events=12,
    peak_pgtables_bytes=3 * MB,
    mean_pgtables_bytes=2 * MB,
    freed_empty_bytes=MB,
    freed_zero_bytes=2 * MB,
    freed_by_trigger={"watermark": MB, "pre_oom": 2 * MB},
    allocated_again=12_345,
    away_mean_ns=250_000_000,
    zero_refaults_most=262_144,
    write_held_ns=1_450_000,
    faults_in_hold=3.25,
    wait_p50_ns=900,
    wait_p99_ns=1780,
)
BEST = replace(SAVED, mean_pgtables_bytes=MB, allocated_again=0)


@pytest.fixture
def comparison() -> Comparison:
    results = [
        Result(Combination("rfc-2022", "none", (), 64 * MB), NONE, SERIES),
        Result(Combination("rfc-2022", "largest_first", ("watermark", "pre_oom"), 64 * MB), SAVED, SERIES),
        Result(Combination("rfc-2022", BOUND, (), 64 * MB), BEST, SERIES),
        Result(Combination("v6.18", "none", (), 0, 3), NONE, SERIES),
    ]
    held = [Held("kills >= 1", 1, 1, True), Held("kills == 0", 4, 1, False), Held("lost == 0", None, None, False)]
    return Comparison("A guest that is migrated", results, "Linux 6.18, 2 x cpu", held, "What happens, and why.")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0"), (4096, "4 KiB"), (1536 * 1024, "1.5 MiB"), (110 << 30, "110 GiB"), (-MB, "-1 MiB"), (3 << 40, "3 TiB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(("ns", "text"), [(0, "0"), (310, "310 ns"), (1_450_000, "1.45 ms"), (2.5e9, "2.5 s")])
def test_durations(ns: float, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (951, "951"), (9999, "9999"), (12_345, "12.3k"), (3.25, "3.25"), (28.8e6, "28.8M")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_regret_is_what_lies_above_the_bound_of_the_same_host(comparison: Comparison) -> None:
    assert comparison.regrets() == [Regret(6 * MB, 0), Regret(2 * MB, 12_345), Regret(0, 0), None]


def test_a_mail_is_plain_and_within_72_columns(comparison: Comparison) -> None:
    text = render_mail(comparison)
    assert max(map(len, text.splitlines())) <= 72
    assert text.isascii()


@pytest.mark.parametrize("render", [render_table, render_mail, render_markdown])
def test_every_report_says_what_a_recording_cannot_know(render: object, comparison: Comparison) -> None:
    text = " ".join(render(comparison).split())  # type: ignore[operator]
    assert all(line in text for line in UNKNOWN)


def test_the_table(comparison: Comparison) -> None:
    lines = render_table(comparison).splitlines()
    assert "2  rfc-2022  watermark+pre_oom  largest_first  64 MiB     0" in lines
    assert "1  5 MiB  4 MiB      0      0      1  1.5 s  4000" in lines
    assert "2  12.3k  250 ms   0..262k  1.45 ms    3.25  900 ns  1.78 us" in lines
    assert "2       2 MiB s       12.3k" in lines
    assert "Expected of run 4: kills == 0: DOES NOT HOLD (1)" in lines
    assert "Expected, and about no run: lost == 0: DOES NOT HOLD" in lines


def test_what_was_expected_is_shown_in_the_units_of_its_condition() -> None:
    shown = [
        held.shown()
        for held in (
            Held("", 1, 4_063_232, True, True),
            Held("", 1, 1_234_567, True),
            Held("", 1, 0.25, True),
            Held("", 1, None, False),
        )
    ]
    assert shown == ["3.88 MiB", "1234567", "0.25", "-"]


def test_markdown_is_a_table_of_its_own_for_each_question(comparison: Comparison) -> None:
    text = render_markdown(comparison)
    assert "| 2 | rfc-2022 | watermark+pre_oom | largest_first | 64 MiB | 0 |" in text.splitlines()
    heads = re.findall(r"^\|(?: ---? ?-* ?\|)+$", text, re.MULTILINE)
    assert len(heads) == 5


def test_json_and_csv_have_the_same_numbers(comparison: Comparison) -> None:
    runs = json.loads(json.dumps(comparison.as_dict()))["runs"]
    rows = list(csv.DictReader(io.StringIO(comparison.as_csv())))
    assert len(runs) == len(rows) == 4
    for run, row in zip(runs, rows, strict=True):
        for name in ("profile", "policy", "trigger", "memory_bytes", "lost", "mean_pgtables_bytes", "faults_in_hold"):
            assert str(run[name]) == row[name]
    assert rows[1]["freed_by_trigger"] == f"pre_oom={2 * MB} watermark={MB}"
    assert rows[1]["regret_byte_seconds"] == str(runs[1]["regret"]["byte_seconds"]) == str(2 * MB)
    assert runs[0]["killed"] == [{"time_ns": 1_500_000_000, "pid": 7, "comm": "java <&> redis", "group": ""}]
    assert rows[3]["regret_again"] == ""


def test_a_result_survives_as_text(comparison: Comparison) -> None:
    for result in comparison.results:
        assert load(dump(result)) == result


def test_pictures_are_the_same_each_time(comparison: Comparison, tmp_path: Path) -> None:
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")):
        for name in ("a", "b"):
            save(comparison, tmp_path / f"{name}.{kind}")
        data = (tmp_path / f"a.{kind}").read_bytes()
        assert data.startswith(start)
        assert data == (tmp_path / f"b.{kind}").read_bytes()


def test_the_page_loads_nothing_and_shows_every_run(comparison: Comparison, tmp_path: Path) -> None:
    save(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    links = set(re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page))
    assert links == set()
    assert "@import" not in page
    assert page.count('type="checkbox"') == 2  # runs 1 and 4 come to the same here, and so do 2 and 3
    assert "1: rfc-2022, none, none, 64 MiB (the same: 4)" in page
    assert 'id="run-4-0"' not in page
    assert 'id="run-2-0"' in page
    assert "java &lt;&amp;&gt; redis" in page


def test_labels_of_a_picture_lie_inside_it_and_apart(comparison: Comparison) -> None:
    """Kills a moment apart, marks near zero and far apart: as matplotlib lays the text out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    first = comparison.results[0]
    times = (100_000_000, 104_000_000, 108_000_000, 900_000_000)
    killed = tuple(Killed(t, n, f"victim{n}", "") for n, t in enumerate(times))
    series = replace(
        first.series,
        time_ns=[0, 500_000_000, 1_000_000_000],
        pgtables_bytes=[MB, 2 * MB, MB],
        reclaimable_bytes=[0, MB, 0],
        free_bytes=[60 * MB, 30 * MB, 40 * MB],
        min_bytes=MB,
        low_bytes=MB + 4096,
        high_bytes=MB + 8192,
    )
    comparison.results = [replace(first, outcome=replace(first.outcome, killed=killed), series=series)]
    figure = draw(comparison)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for panel in figure.axes for text in panel.texts]
    assert [text.get_text() for text in texts] == [
        "kill: victim0, victim1, victim2",
        "kill: victim3",
        "high 1.01 MiB\nlow 1 MiB\nmin 1 MiB",
    ]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
    assert all(box.y0 > figure.axes[0].bbox.y1 for box in boxes[:2])  # clear of the curves
    assert boxes[2].x0 > figure.axes[2].bbox.x1


def test_kills_one_after_the_other_have_rows_of_labels(comparison: Comparison) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    first = comparison.results[0]
    killed = tuple(Killed(n * 100_000_000, n, f"a-long-name-{n}", "") for n in range(21))
    series = replace(first.series, time_ns=[0, 2_000_000_000])
    comparison.results = [replace(first, outcome=replace(first.outcome, killed=killed), series=series)]
    figure = draw(comparison)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == 21
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_other_endings_are_refused(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.pdf: a picture is a file of \.png, \.svg, \.html"):
        save(comparison, tmp_path / "a.pdf")


def test_a_long_line_keeps_its_peak() -> None:
    values = [0] * 100_000
    values[77_777] = 5
    points = thinned(values, 100)
    assert len(points) <= 102
    assert 77_777 in points
    assert points[0] == 0
    assert points[-1] == 99_999
