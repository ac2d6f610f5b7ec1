"""Integers as the kernel reads them out of a write to /proc/sys.

Source: kernel/sysctl.c __do_proc_dointvec, proc_get_long, strtoul_lenient and
do_proc_dointvec_minmax_conv; lib/kstrtox.c _parse_integer. tests/procfs/test_intwrite.py makes the
same writes on the running kernel's own vm/swappiness.
"""

from __future__ import annotations

import errno

INT_MAX = 2**31 - 1
INT_MIN = -(2**31)

PAGE_SIZE = 4096  # no more than PAGE_SIZE - 1 bytes of a write are looked at
TOKEN_MAX = 21  # TMPBUFLEN - 1: a number of so many characters might go on, and is refused

# include/linux/ctype.h isspace(): the no-break space of Latin-1 counts too.
SPACES = frozenset(b" \t\n\v\f\r\xa0")
SEPARATORS = frozenset(b" \t\n")  # proc_wspace_sep: what may follow a number
DIGITS = frozenset(b"0123456789")
HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
ULONG_MAX = 2**64 - 1


def parse_int(data: bytes, low: int = INT_MIN, high: int = INT_MAX) -> tuple[int, int]:
    """The first integer of a write, and how many of its bytes count as written.

    data: what one write() was given, not empty.  low, high: inclusive range.
    Returns (value, bytes taken); bytes taken is less than len(data) where a second number follows.
    Raises OSError(EINVAL) for what is no number, out of range, or followed by anything but white space.
    """
    seen = data[: PAGE_SIZE - 1]
    start = _skip_spaces(seen, 0)
    if start == len(seen):
        raise _invalid()
    value, end = _get_long(seen, start)
    if not max(low, INT_MIN) <= value <= min(high, INT_MAX):
        raise _invalid()
    left = len(seen) - _skip_spaces(seen, end)
    return value, len(data) - left


def parse_memory(text: str) -> int:
    """Bytes of a write to a file such as cgroup v2's memory.reclaim: a number, and K, M, G, T, P or E behind it.

    lib/cmdline.c memparse(): base 8, 10 or 16 as it is written, no sign, a suffix of 1024s in either case.
    A suffix alone is 0. OSError(EINVAL) for what is no number, or has something behind it.
    """
    token = text.encode("utf-8", "surrogateescape")
    if not token:
        raise _invalid()
    base, begin = _radix(token, 0)
    allowed = HEX_DIGITS if base == 16 else DIGITS
    at = begin
    while at < len(token) and token[at] in allowed and int(token[at : at + 1], 16) < base:
        at += 1
    value = int(token[begin:at] or b"0", base)
    shift = 10 * (b"KMGTPE".find(token[at : at + 1].upper()) + 1) if at < len(token) else 0
    if value > ULONG_MAX or token[at + (shift > 0) :]:
        raise _invalid()
    return (value << shift) & ULONG_MAX


def _get_long(seen: bytes, start: int) -> tuple[int, int]:
    """kernel/sysctl.c:proc_get_long(): the number at `start`, and where it ends."""
    token = seen[start : start + TOKEN_MAX]
    negative = token[:1] == b"-" and len(seen) - start > 1
    at = 1 if negative else 0
    if at >= len(token) or token[at] not in DIGITS:
        raise _invalid()
    base, at = _radix(token, at)
    begin = at
    allowed = HEX_DIGITS if base == 16 else DIGITS
    while at < len(token) and token[at] in allowed and int(token[at : at + 1], 16) < base:
        at += 1
    value = int(token[begin:at], base)
    if value > ULONG_MAX or at == TOKEN_MAX:
        raise _invalid()
    if start + at < len(seen) and seen[start + at] not in SEPARATORS:
        raise _invalid()
    return (-value if negative else value), start + at


def _radix(token: bytes, at: int) -> tuple[int, int]:
    """lib/kstrtox.c:_parse_integer_fixup_radix() for base 0: the base, and where the digits begin."""
    if token[at : at + 1] != b"0":
        return 10, at
    if token[at + 1 : at + 2].lower() == b"x" and token[at + 2 : at + 3] and token[at + 2] in HEX_DIGITS:
        return 16, at + 2
    return 8, at


def _skip_spaces(seen: bytes, at: int) -> int:
    while at < len(seen) and seen[at] in SPACES:
        at += 1
    return at


def _invalid() -> OSError:
    return OSError(errno.EINVAL, "Invalid argument")
