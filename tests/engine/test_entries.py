"""Entries of one PTE page, held against a plain array of 512 states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.engine import layout as lo
from pterefd.engine.arena import make_state
from pterefd.engine.entries import apply, apply_one, holds, new_page
from pterefd.engine.pools import take_mm, take_pmd
from pterefd.engine.validate import ValidationError, recount, validate_mm
from pterefd.mm.fork import new_mm
from tests.build import SMALL

# What each transition makes of each state, written out once more from kernel-rules.md, section 2.
PLAIN = {
    lo.T_ZAP: lambda e: e if e == "guard" else "none",
    lo.T_READ: lambda e: {"none": "zero", "swap": "anon"}.get(e, e),
    lo.T_WRITE: lambda e: "anon" if e in ("none", "zero", "swap") else e,
    lo.T_FREE: lambda e: "none" if e == "swap" else e,
    lo.T_SWAP_OUT: lambda e: "swap" if e == "anon" else e,
    lo.T_GUARD: lambda _: "guard",
    lo.T_UNGUARD: lambda e: "none" if e == "guard" else e,
    lo.T_UNMAP_ALL: lambda _: "none",
}
NAMES = {lo.E_NONE: "none", lo.E_ZERO: "zero", lo.E_ANON: "anon", lo.E_SWAP: "swap", lo.E_GUARD: "guard"}

STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(PLAIN)), st.integers(0, 511), st.integers(1, 512)), min_size=1, max_size=30
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_page_is_what_a_plain_array_says(steps: list[tuple[int, int, int]]) -> None:
    s = make_state(SMALL)
    m = new_mm(s, 1, 0, 0, 0)
    t = take_pmd(s)
    p = new_page(s, m, t, 7, lo.E_NONE)
    plain = ["none"] * 512
    for transition, begin, length in steps:
        end = min(begin + length, 512)
        if length == 1:
            apply_one(s, m, t, 7, p, begin, transition)
        else:
            apply(s, m, t, 7, p, begin, end, transition)
        plain[begin:end] = [PLAIN[transition](entry) for entry in plain[begin:end]]
        row = int(s.pte[p, lo.P_ENT])
        codes = s.ent[row] if row > 0 else np.full(512, -row)
        assert [NAMES[int(code) & lo.E_STATE] for code in codes] == plain
        mapped, zero = 512 - plain.count("none"), plain.count("zero")
        assert int(s.pte[p, lo.P_REF]) == mapped | zero << 10
        assert int(s.mm[m, lo.M_EMPTY]) == (mapped == 0)
        assert int(s.mm[m, lo.M_ZERO]) == (zero == 512)
        for state, name in NAMES.items():
            if name != "none":
                assert int(s.mm[m, lo.M_E + state]) == plain.count(name)
                assert holds(s, p, state) == (name in plain)


def test_uniform_pages_keep_no_entries() -> None:
    s = make_state(SMALL)
    m = new_mm(s, 1, 0, 0, 0)
    t = take_pmd(s)
    in_use = lo.G_POOLS + lo.POOL_ENT * lo.POOL_COLUMNS + 2
    p = new_page(s, m, t, 0, lo.E_NONE)
    apply(s, m, t, 0, p, 0, 512, lo.T_WRITE)
    assert int(s.g[in_use]) == 0
    apply(s, m, t, 0, p, 3, 5, lo.T_UNMAP_ALL)
    assert int(s.g[in_use]) == 1
    for j in (3, 4):
        apply_one(s, m, t, 0, p, j, lo.T_WRITE)
    assert int(s.g[in_use]) == 0


def test_the_recount_sees_a_wrong_counter() -> None:
    from pterefd.engine.tables import make_page

    s = make_state(SMALL)
    m = new_mm(s, 1, 0, 0, 0)
    make_page(s, m, 5 << 21)
    validate_mm(s, m)
    assert recount(s, m)["pte"] == 1
    s.mm[m, lo.M_EMPTY] += 1
    with pytest.raises(ValidationError, match="empty is kept as 2, recounted 1"):
        validate_mm(s, m)


def test_a_pool_that_runs_out_says_so() -> None:
    s = make_state(SMALL)
    taken = [take_mm(s) for _ in range(SMALL.mms)]
    assert taken[-1] == 0
    assert int(s.g[lo.G_FULL]) == lo.POOL_MM + 1
