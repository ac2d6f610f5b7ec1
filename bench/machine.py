"""Where it was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pterefd import __version__

RESULTS = Path(__file__).parent / "results"  # figures that are committed


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
