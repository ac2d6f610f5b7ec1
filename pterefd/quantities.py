"""Quantities as people write them on a command line: `200ms`, `16kB`, `1%`, `127.0.0.1:9105`.

Imports nothing of pterefd but its errors.
"""

from __future__ import annotations

import math
import re

from pterefd.errors import BadInput

_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z%]*)")

# /proc says kB and means 1024 bytes, and so does everybody who copies a value from there.
_BYTES = {"": 1, "B": 1, "kB": 1024, "KB": 1024, "K": 1024, "k": 1024, "KiB": 1024}
_BYTES |= {"MB": 1 << 20, "M": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "G": 1 << 30, "GiB": 1 << 30}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0}


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{text!r} is not {what} (such as {example})")
    return float(match[1]), match[2]


def seconds(text: str) -> float:
    """Seconds of a duration: `200ms`, `1.5s`, `2m`; a bare number is seconds."""
    number, unit = _split(text, "a duration", "200ms or 1s")
    if unit not in _SECONDS:
        raise BadInput(f"{text!r}: unknown unit {unit!r} of time (known: us, ms, s, m)")
    return number * _SECONDS[unit]


def size(text: str) -> int:
    """Bytes of a size: `16kB` (1024 bytes each, as procfs says kB), `3MiB`; a bare number is bytes."""
    number, unit = _split(text, "a size", "16kB")
    if unit not in _BYTES:
        raise BadInput(f"{text!r}: unknown unit {unit!r} of size (known: B, kB, MB, GB)")
    return round(number * _BYTES[unit])


def speed(text: str) -> float | None:
    """Factor of real time, or None for `max`: as fast as it goes."""
    if text == "max":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise BadInput(f"{text!r} is not a speed: a factor of real time greater than 0, or max")
    return factor


def address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[V6]:PORT` or `:PORT` (every interface). Port 0 asks for any free one."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
