"""What runs of random programs have shown, kept in files that docs/exactness.md is made of."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")


@dataclass(slots=True)
class Tally:
    """Programs, checkpoints and programs that differ of one run: by setting of huge pages, by family.

    kernel: its release.  length: operations a program.  again: by setting, the programs that were run again, and
    equal: a folio had been held or locked for a moment.
    """

    kernel: str
    seed: int
    length: int
    seconds: float = 0.0
    families: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)

    def count(self, thp: str, family: str, checkpoints: int, differs: bool, again: bool = False) -> None:
        """One program."""
        numbers = self.families.setdefault(thp, {}).setdefault(family, [0, 0, 0])
        numbers[0] += 1
        numbers[1] += checkpoints
        numbers[2] += differs
        self.again[thp] = self.again.get(thp, 0) + again

    def total(self) -> tuple[int, int, int]:
        """(programs, checkpoints, programs that differ)."""
        rows = [numbers for families in self.families.values() for numbers in families.values()]
        return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: families are {thp: {family: [programs, checkpoints, differ]}}."""
        return {
            "kernel": self.kernel,
            "seed": self.seed,
            "length": self.length,
            "seconds": round(self.seconds, 1),
            "date": datetime.date.today().isoformat(),
            "families": self.families,
            "again": self.again,
        }

    def add_to(self, path: Path) -> None:
        """Add the run to the file's list; it replaces one of the same kernel, seed, length and settings."""
        own = self.as_dict()
        runs = json.loads(path.read_text()) if path.exists() else []
        runs = [run for run in runs if _which(run) != _which(own)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(run) for run in [*runs, own]) + "\n]\n")


def _which(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["kernel"], run["seed"], run["length"], sorted(run["families"])
