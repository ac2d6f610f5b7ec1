"""What a machine gives huge pages to (/sys/kernel/mm/transparent_hugepage), as a trace says it."""

from __future__ import annotations

import re

from pterefd.engine.layout import PMD_ORDER, THP_ADVISED, THP_ZERO_PAGE

_MODES = ("never", "madvise", "always")
_SIZE = re.compile(r"([0-9]+)kB=(never|madvise|always)")


def _order_bits(order: int, mode: str) -> int:
    """Bits of M_THP that say `enabled` of folios of 2**order pages is `mode`."""
    always, advised = 1 << order, 1 << order + THP_ADVISED
    return {"never": 0, "madvise": advised, "always": always | advised}[mode]


def thp_bits(text: str | None) -> int:
    """M_THP (engine/layout.py) of a trace's `thp`; 0, no huge pages, where it says nothing that is known.

    text: `never`, `madvise` or `always`; then, after commas, `no-zero-page` (use_zero_page is 0) and sizes with a
    setting of their own, `64kB=madvise`, `2048kB=never`.
    """
    words = (text or "").split(",")
    if words[0] not in _MODES:
        return 0
    bits = _order_bits(PMD_ORDER, words[0]) | THP_ZERO_PAGE
    for word in words[1:]:
        size = _SIZE.fullmatch(word)
        if word == "no-zero-page":
            bits &= ~THP_ZERO_PAGE
        elif size is not None:
            order = (int(size[1]) // 4).bit_length() - 1
            if 2 <= order <= PMD_ORDER:
                bits = bits & ~_order_bits(order, "always") | _order_bits(order, size[2])
    return bits
