"""Sorted blocks, held against a sorted list."""

from __future__ import annotations

import bisect

from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.engine import blocks
from pterefd.engine import layout as lo
from pterefd.engine.arena import make_state
from tests.build import SMALL

KEYS = st.integers(0, 60)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=120))
def test_blocks_are_sorted_lists(steps: list[tuple[bool, int]]) -> None:
    s = make_state(SMALL)
    plain: list[int] = []
    for put, key in steps:
        k = blocks.find(s, s.mm, 3, lo.M_VMAS, key)
        assert k == bisect.bisect_right(plain, key) - 1
        present = k >= 0 and plain[k] == key
        if put and not present:
            blocks.insert(s, s.mm, 3, lo.M_VMAS, k + 1, key, key * 10)
            plain.insert(k + 1, key)
        elif not put and present:
            blocks.erase(s, s.mm, 3, lo.M_VMAS, k, k + 1)
            del plain[k]
        base, length = (int(x) for x in s.mm[3, lo.M_VMAS : lo.M_VMAS + 2])
        assert s.key[base : base + length].tolist() == plain
        assert s.val[base : base + length].tolist() == [key * 10 for key in plain]
    blocks.clear(s, s.mm, 3, lo.M_VMAS)
    assert s.mm[3, lo.M_VMAS : lo.M_VMAS + 3].tolist() == [0, 0, 0]
