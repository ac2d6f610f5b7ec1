"""Where it was measured."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from pterefd import __version__

RESULTS = Path(__file__).parent / "results"  # figures that are committed


def begin() -> dict[str, object]:
    """Print and return where it is measured."""
    where = machine()
    print(" ".join(f"{name}={value}" for name, value in where.items()))
    return where


def save(file: Path | None, where: dict[str, object], **figures: object) -> None:
    """Write the figures as JSON, where a file is named."""
    if file is not None:
        file.write_text(json.dumps({"machine": where, **figures}, indent=1) + "\n")


def machine() -> dict[str, object]:
    """Versions, CPU and load: beside every table of figures."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "pterefd": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": model[0].partition(": ")[2] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
