"""The kernel's integer writes: one table, tried on the parser and on the running kernel."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.procfs.intwrite import INT_MAX, parse_int, parse_memory
from tests.cgroup import memory_limit

SWAPPINESS = Path("/proc/sys/vm/swappiness")
LOW, HIGH = 0, 200

# (bytes written, value stored and bytes taken, or None for EINVAL); kernel-rules.md, section 5.1
WRITES: list[tuple[bytes, tuple[int, int] | None]] = [
    (b"60\n", (60, 3)),
    (b"61", (61, 2)),
    (b" 62 \n", (62, 5)),
    (b"\t63", (63, 3)),
    (b"\n64\n", (64, 4)),
    (b"65 66", (65, 3)),
    (b"1 x", (1, 2)),
    (b"10\n20\n", (10, 3)),
    (b"0060", (48, 4)),
    (b"070", (56, 3)),
    (b"0x20", (32, 4)),
    (b"0X2f\n", (47, 5)),
    (b"00", (0, 2)),
    (b"0", (0, 1)),
    (b"-0", (0, 2)),
    (b"200", (200, 3)),
    (b"70" + b" " * 5000, (70, 5002)),
    (b"71 " + b"x" * 5000, (71, 5003 - 4092)),
    (b"\x0b\x0c\r72", (72, 5)),
    (b"\xa073", (73, 3)),
    (b"67abc", None),
    (b"60,", None),
    (b"60-", None),
    (b"5.5", None),
    (b"1e1", None),
    (b"60\r\n", None),
    (b"60\x0b", None),
    (b"abc", None),
    (b"-", None),
    (b"- 1", None),
    (b"--1", None),
    (b"+5", None),
    (b"0b11", None),
    (b"0x", None),
    (b"0xg", None),
    (b"09", None),
    (b"078", None),
    (b"-1", None),
    (b"201", None),
    (b"2147483648", None),
    (b"4294967296", None),
    (b"4294967356", None),
    (str(2**64 + 60).encode(), None),
    (b"1" + b"0" * 23, None),
    (b" ", None),
    (b"\n", None),
    (b"\0", None),
    (b"68\0", None),
    (b" " * 5000 + b"70", None),
    (b" " * 4093 + b"74", (74, 4095)),
    (b" " * 4094 + b"75", (7, 4096)),
    (b"0" * 30 + b"60", None),
    (b"0" * 18 + b"60", (48, 20)),
    (b"0" * 19 + b"60", None),
    (b"0" * 19 + b"60 ", None),
]


def stored(data: bytes) -> tuple[int, int] | None:
    try:
        return parse_int(data, LOW, HIGH)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return None


@pytest.mark.parametrize(("data", "expected"), WRITES, ids=lambda x: repr(x)[:30] if isinstance(x, bytes) else None)
def test_a_write_is_parsed_as_the_table_says(data: bytes, expected: tuple[int, int] | None) -> None:
    assert stored(data) == expected


@contextmanager
def swappiness() -> Iterator[None]:
    """vm/swappiness for oneself; its value is put back."""
    with SWAPPINESS.open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # tests in other processes
        before = SWAPPINESS.read_text()
        try:
            yield
        finally:
            SWAPPINESS.write_text(before)


def kernel_stores(data: bytes) -> tuple[int, int] | None:
    SWAPPINESS.write_text("133")  # no write of the table stores this
    fd = os.open(SWAPPINESS, os.O_WRONLY)
    try:
        taken = os.write(fd, data)
    except OSError as e:
        if e.errno != errno.EINVAL or SWAPPINESS.read_text() != "133\n":
            raise
        return None
    finally:
        os.close(fd)
    return int(SWAPPINESS.read_text()), taken


def test_the_running_kernel_says_the_same() -> None:
    with swappiness():
        assert {data: kernel_stores(data) for data, _ in WRITES} == dict(WRITES)


PARTS = [b" ", b"\t", b"\n", b"0", b"7", b"8", b"x", b"a", b"-", b"1", b"\0", b"\xa0"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=26).map(b"".join))
def test_random_writes_do_on_the_parser_what_they_do_on_the_kernel(data: bytes) -> None:
    with swappiness():
        assert stored(data) == kernel_stores(data)


def test_a_pid_may_be_as_large_as_an_int() -> None:
    assert parse_int(b"2147483647\n", 0, INT_MAX) == (INT_MAX, 11)
    with pytest.raises(OSError, match="Invalid"):
        parse_int(b"2147483648\n", 0, INT_MAX)


# -- sizes, as memory.reclaim takes them -----------------------------------------------------------

# Text without white space around it -> bytes in whole pages, None for EINVAL.
SIZES: dict[str, int | None] = {
    "1M": 1 << 20,
    "1m": 1 << 20,
    "0x100000": 1 << 20,
    "010000K": 4 << 20,
    "10": 0,
    "0": 0,
    "4097": 4096,
    "3k": 0,
    "K": 0,
    "0x1e": 0,
    "0X2000": 8192,
    "1T": 1 << 40,
    "7G": 7 << 30,
    "2P": 2 << 50,
    **dict.fromkeys(["1Q", "1MB", "1 M", "0x", "08", "1e6", "0xg", "x", "-4096", "+1", "1.5M", "1K2", "max", "1,"]),
}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_is_read(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(OSError) as refused:
            parse_memory(text)
        assert refused.value.errno == errno.EINVAL
    else:
        assert parse_memory(text) // 4096 * 4096 == size


@pytest.mark.kernel
def test_the_running_kernel_reads_sizes_alike() -> None:
    with memory_limit() as (limit, unlimited):
        for text, size in SIZES.items():
            if text == unlimited:
                continue
            try:
                limit.write_text(text)
                found: int | None = int(limit.read_text())
            except OSError as error:
                found = None if error.errno == errno.EINVAL else -1
            assert found == size, text
