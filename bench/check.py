"""Whether replay lost speed: the suite's ratios, beside those that are committed in bench/results/suite.json.

    python -m bench.check [--runs 3] [--operations 524288]

Says which lost more than 25 %. A report and no gate: these are times. Ends with 1 only where the kernel and the model
differ in what was done (VmPTE).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.machine import RESULTS, begin
from bench.suite import Compared, measure, unequal
from pterefd.errors import Missing

LOST = 0.25
SIDES = ("each", "stored")


def committed() -> dict[str, Any]:
    """name -> row of the committed run."""
    file = RESULTS / "suite.json"
    if not file.exists():
        raise Missing(f"{file}: no such file: python -m bench.suite --json {file}")
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def lines(found: list[Compared], before: dict[str, Any]) -> list[str]:
    """One for each case and side that both have."""
    text = []
    for one in found:
        for side in SIDES:
            was = before.get(one.name, {}).get(f"ratio_{side}")
            if was is None:
                text.append(f"{one.name:<28}{side:<8}{'':>9}{one.ratio(side):>9.1f}  new")
                continue
            change = one.ratio(side) / was - 1
            lost = "  lost" if change < -LOST else ""
            text.append(f"{one.name:<28}{side:<8}{was:>9.1f}{one.ratio(side):>9.1f}{change:>+9.0%}{lost}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--operations", type=int, default=1 << 19, help="of a case, more or less")
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="cases whose name has these")
    options = parser.parse_args()
    before = committed()
    begin()
    found = measure(options.runs, options.operations, options.only)
    print(f"\n{'times as fast as the kernel':<36}{'committed':>9}{'now':>9}{'change':>9}")
    print(*lines(found, before), sep="\n")
    lost = [line for line in lines(found, before) if line.endswith("lost")]
    print(f"{len(lost)} of {len(SIDES) * len(found)} lost more than {LOST:.0%}")
    sys.exit(bool(unequal(found)))


if __name__ == "__main__":
    main()
