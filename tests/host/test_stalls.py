"""Averages of stalls, against a plain loop over the kernel's formula, a millisecond at a time."""

from __future__ import annotations

import math
import random

import pytest

from pterefd.host.stalls import Stalls

MS = 1_000_000


def reference(stalled: list[bool]) -> tuple[list[float], int]:
    """avg10, avg60, avg300 after so many milliseconds, and ms stalled: kernel/sched/psi.c calc_avgs every 2 s."""
    averages = [0.0, 0.0, 0.0]
    for period in range(len(stalled) // 2000):
        percent = 100 * sum(stalled[2000 * period : 2000 * (period + 1)]) / 2000
        for k, window in enumerate((10, 60, 300)):
            decay = math.exp(-2 / window)
            averages[k] = averages[k] * decay + percent * (1 - decay)
    return averages, sum(stalled)


@pytest.mark.parametrize("seed", range(8))
def test_averages(seed: int) -> None:
    rng = random.Random(seed)
    now = 0
    stalls = Stalls(lambda: now)
    history: list[bool] = []
    for _ in range(rng.randrange(1, 60)):
        idle, busy = rng.randrange(0, 9000), rng.choice([0, 1, 30, 700, 5000])
        now += idle * MS
        with stalls.stalled(), stalls.stalled():  # one in another counts once
            now += busy * MS
            if rng.random() < 0.5:
                stalls.averages()
        history += [False] * idle + [True] * busy
    wanted, total = reference(history)
    got = stalls.averages()
    assert got.total_us == total * 1000
    assert list(got[:3]) == pytest.approx(wanted, abs=1e-6)
