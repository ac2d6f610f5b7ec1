"""The line at the bottom of a terminal, and the log above it."""

from __future__ import annotations

from io import StringIO

from pterefd.statusline import CLEAR, Status, StatusLine, text

STATUS = Status(2, 3 << 20, 2048, ("running", 250, 1000, "1"))


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_what_the_line_says() -> None:
    assert text(STATUS) == "2 mms | VmPTE 3,072 kB | reclaimable 2 kB | running at 1x, event 250 of 1,000 (25 %)"
    assert text(Status(1, 0, 0, None)) == "1 mm | VmPTE 0 kB | reclaimable 0 kB"
    assert text(Status(1, 0, 0, ("held", 9, 10, "max"))).endswith(" | held, event 9 of 10 (90 %)")
    assert text(Status(1, 0, 0, ("running", 1234, None, "2"))).endswith(" | running at 2x, event 1,234")
    assert text(Status(0, 0, 0, ("ended", 0, 0, "max"))).endswith(" | ended, event 0 of 0 (100 %)")


def test_without_a_terminal_there_is_no_line() -> None:
    stream = StringIO()
    line = StatusLine(stream)
    line.show(STATUS)
    line.write("log\n")
    line.close()
    assert stream.getvalue() == "log\n"


def test_the_log_scrolls_by_above_the_line() -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.show(STATUS)
    drawn = stream.getvalue()
    assert text(STATUS)[:79] in drawn
    line.show(STATUS)
    assert stream.getvalue() == drawn  # nothing new, nothing drawn
    line.write("log\n")
    after = stream.getvalue().removeprefix(drawn)
    assert after.startswith(f"{CLEAR}log\n")
    assert text(STATUS)[:79] in after
    line.close()
    assert stream.getvalue().endswith(CLEAR)


def test_the_line_never_wraps() -> None:
    stream = Terminal()
    StatusLine(stream).show(Status(10**9, 1 << 60, 1 << 60, ("running", 10**12, 10**13, "0.123456789")))
    line = stream.getvalue().removeprefix(f"{CLEAR}\x1b[2m").removesuffix("\x1b[0m")
    assert len(line) == 79
