"""Names that processes give themselves, which may hold any bytes: made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line and encodable, whatever a process calls itself: `\\n` for a newline, `\\xff` for a byte."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # what "surrogateescape" makes of a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
