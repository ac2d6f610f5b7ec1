"""Rebased addresses keep what page tables depend on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pterefd.source.record.anonymize import slot_mapping

GIB, PGD = 1 << 30, 1 << 39


def _moved(runs: list[tuple[int, int]], addresses: list[int]) -> list[int]:
    return slot_mapping(runs).moved(np.array(addresses, dtype=np.int64)).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_tables_stay_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    slots = 512 * 12
    starts = np.sort(random.choice(slots, size=int(random.integers(1, 30)), replace=False))
    runs: list[tuple[int, int]] = []
    for start in starts.tolist():
        last = start + int(random.choice([0, 0, 1, 3, 600]))
        if runs and start <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], max(runs[-1][1], last)
        else:
            runs.append((start, last))
    old = [slot * GIB + 12345 * 4096 for first, last in runs for slot in range(first, last + 1)]
    new = _moved(runs, old)
    assert all(a % GIB == b % GIB for a, b in zip(old, new, strict=True))
    assert (np.diff(new) > 0).all()
    for a, b in zip(np.diff(old), np.diff(new), strict=True):
        assert (a == GIB) == (b == GIB)  # neighbours stay neighbours, others stay apart
    same_old = [a // PGD == b // PGD for a, b in pairwise(old)]
    same_new = [a // PGD == b // PGD for a, b in pairwise(new)]
    assert same_old == same_new
    assert 0 <= new[0] <= old[0] + GIB
    assert new[-1] < 1 << 47


def test_a_usual_process_moves_down() -> None:
    """Program, libraries and stack of a Linux process: three PGD slots at most, close to each other."""
    runs = [(0x5555_5555_5000 >> 30, 0x5555_5555_5000 >> 30), (0x7F12_3456_7000 >> 30, 0x7F12_3456_7000 >> 30)]
    low, high = _moved(runs, [0x5555_5555_5000, 0x7F12_3456_7000])
    assert low < PGD
    assert PGD < high < 4 * PGD
