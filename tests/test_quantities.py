"""Quantities as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pterefd import quantities
from pterefd.errors import BadInput


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (quantities.seconds, "200ms", 0.2),
        (quantities.seconds, "1s", 1.0),
        (quantities.seconds, "1.5", 1.5),
        (quantities.seconds, "2m", 120.0),
        (quantities.seconds, "0", 0.0),
        (quantities.size, "16kB", 16384),
        (quantities.size, "16 kB", 16384),
        (quantities.size, "4096", 4096),
        (quantities.size, "3g", 3 << 30),
        (quantities.size, "3m", 3 << 20),
        (quantities.size, "3k", 3 << 10),
        (quantities.size, "2TiB", 2 << 40),
        (quantities.size, "2T", 2 << 40),
        (quantities.size, "2gib", 2 << 30),
        (quantities.size, "5B", 5),
        (quantities.size, "1.5MiB", 1572864),
        (quantities.speed, "max", None),
        (quantities.speed, "1", 1.0),
        (quantities.speed, "2.5", 2.5),
        (quantities.address, "127.0.0.1:9738", ("127.0.0.1", 9738)),
        (quantities.address, "[::1]:80", ("::1", 80)),
        (quantities.address, ":0", ("", 0)),
        (quantities.pid, "4711", 4711),
    ],
)
def test_reads(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (quantities.seconds, ""),
        (quantities.seconds, "-1s"),
        (quantities.seconds, "1 parsec"),
        (quantities.size, "16 apples"),
        (quantities.size, "1e3"),
        (quantities.speed, "0"),
        (quantities.speed, "-1"),
        (quantities.speed, "nan"),
        (quantities.speed, "inf"),
        (quantities.speed, "fast"),
        (quantities.pid, "abc"),
        (quantities.pid, "0"),
        (quantities.pid, "-1"),
        (quantities.pid, "1.5"),
        (quantities.pid, "9" * 5000),
        (quantities.address, "localhost"),
        (quantities.address, "localhost:http"),
        (quantities.address, "localhost:65536"),
    ],
)
def test_refuses_and_shows_what_was_written(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse(text)
    assert repr(text) in str(refused.value)
