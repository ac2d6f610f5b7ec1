"""Quantities as people write them on a command line: `200ms`, `16kB`, `1%`, `127.0.0.1:9105`.

Imports nothing of pterefd but its errors.
"""

from __future__ import annotations

import math
import re

from pterefd.errors import BadInput

_PID = re.compile(r"[1-9][0-9]{0,9}")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z%]*)")

# /proc says kB and means 1024 bytes, and so does everybody who copies a value from there.
_BYTES = {"": 1, "b": 1}
_BYTES |= {name: 1 << 10 * k for k, p in enumerate("kmgt", 1) for name in (p, f"{p}b", f"{p}ib")}
_SHOWN = (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10))
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
    """Bytes of a size: `3MiB`, `3MB`, `3m`, all the same, of 1024 as procfs's kB are; a bare number is bytes."""
    number, unit = _split(text, "a size", "1GiB or 16kB")
    if unit.lower() not in _BYTES:
        raise BadInput(f"{text!r}: unknown unit {unit!r} of size (known: B, KiB, MiB, GiB, TiB, or K, M, G, T)")
    return round(number * _BYTES[unit.lower()])


def shown_size(nbytes: float) -> str:
    """In the largest unit that leaves at least 1: `4 KiB`, `1.5 MiB`; `0`."""
    for unit, shift in _SHOWN:
        if abs(nbytes) >= 1 << shift or unit == "KiB":
            number = nbytes / (1 << shift)
            break
    if not nbytes:
        return "0"
    return f"{number:.3g} {unit}" if abs(number) < 100 else f"{number:.0f} {unit}"


def pid(text: str) -> int:
    """A process's number, from 1 on."""
    if _PID.fullmatch(text) is None:
        raise BadInput(f"{text!r} is no pid")
    return int(text)


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
