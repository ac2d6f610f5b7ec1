"""Writes docs/scenarios.md and its pictures: every shipped scenario, run. `make scenarios`; takes some minutes.

tests/session/test_scenarios.py holds what the scenarios expect; the figures here are what they came to on this day.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pterefd import paths
from pterefd.session.comparison import render_markdown
from pterefd.session.plots import save
from pterefd.session.scenario import Choices, Expectation, Loaded, comparison, load, plan, processors
from pterefd.session.sweep import Kept, here, run_all

HERE = Path(__file__).resolve().parent
HEAD = """# Scenarios

What `etc/scenarios/*.toml` come to: `pterefd compare etc/scenarios/NAME.toml`. All of this page is written by
docs/scenarios.py. What the numbers are, and what they are not, [compare.md](compare.md) says.
"""


def page() -> Iterator[str]:
    """The page, part by part; pictures are written beside it."""
    yield HEAD
    (HERE / "scenarios").mkdir(exist_ok=True)
    for path in sorted(paths.share("etc/scenarios").glob("*.toml")):
        print(path.name, file=sys.stderr, flush=True)
        loaded = load(path)
        planned = plan(loaded, Choices())
        done = comparison(planned, run_all(planned.tasks, here(processors()), Kept(None)))
        assert all(held.holds for held in done.held), path
        picture = f"scenarios/{path.stem}.svg"
        save(done, HERE / picture)
        text = render_markdown(done)
        tables = text[: text.index("\npeak, mean: ")]  # the legend stands in compare.md
        yield tables.replace(f"## {done.title}\n", f"## {path.stem}\n\n**{done.title}**\n", 1)
        yield f"![page tables, reclaimable page tables and free memory over time]({picture})\n"
        yield from otherwise(loaded)


def otherwise(loaded: Loaded) -> Iterator[str]:
    """What is expected, as it is and with other parameters: all of it is a test."""
    settings = dict.fromkeys(e.settings for e in loaded.expectations)
    lines = ["| with | it is expected that |", "| --- | --- |"]
    for setting in settings:
        expected = "; ".join(_expected(e) for e in loaded.expectations if e.settings == setting)
        names = ", ".join(f"`{name}`" for name in sorted(setting)) or "the scenario as it is"
        lines.append(f"| {names} | {expected} |")
    yield "\n".join(lines) + "\n"


def _expected(e: Expectation) -> str:
    whose = ", ".join(f"{key} {' or '.join(names)}" for key, names in e.whose.items())
    return f"`{e.measure} {re.sub(' +', ' ', e.text.rpartition(e.measure)[2]).strip()}`{f' ({whose})' if whose else ''}"


if __name__ == "__main__":
    (HERE / "scenarios.md").write_text("\n".join(page()))
