"""The proof that freeing works here: on a child of one's own, whose memory is known.

It is done before every request, too: what is done for the first time in a process takes several times as long.
"""

from __future__ import annotations

import mmap
import os
import signal
from contextlib import suppress
from typing import NoReturn

from pterefd.errors import Missing
from pterefd.freeing.errors import PutOff, Refused
from pterefd.freeing.spans import SPAN
from pterefd.freeing.stop import HANG_SECONDS, Target, Wanted, one_stop
from pterefd.live import procmem, ptrace
from pterefd.live.procmem import PAGE
from pterefd.live.scan import start_time

_SPANS = 16
_WITH_DATA = (0, 7, 15)
_ATTEMPTS = 3  # of a child that is to stand still within a short time, on a machine that may be busy
_STOP = 0.1  # of the seconds after which a stop hangs


class _Unwatched:
    def stopped(self) -> None: ...

    def going(self) -> None: ...


def prove(hang: float = HANG_SECONDS) -> None:
    """Free from a child and see that its page tables are gone and its memory is as it was. Missing, Refused, PutOff.

    hang: seconds after which a stop hangs.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _once(hang)
            return
        except PutOff:
            if attempt == _ATTEMPTS - 1:
                raise


def _once(hang: float) -> None:
    ready, told = os.pipe()
    go, goes = os.pipe()
    child = os.fork()
    if child == 0:
        _child(told, go)
    os.close(told)
    os.close(go)
    freed = 0
    try:
        address = int.from_bytes(os.read(ready, 8), "little")
        target = Target(child, start_time(child), ours=True)
        try:
            at = -(-address // SPAN) * SPAN
            end = at + _SPANS * SPAN
            while at < end:  # on a busy machine one stop may come to a part of it
                stop = one_stop(
                    target,
                    [(at, end)],
                    Wanted(empty=True, zero=procmem.tells_zero_pages(), mixed=False),
                    _Unwatched(),
                    patience=1.0,
                    seconds=_STOP * hang,
                    hang=hang,
                )
                at, freed = stop.end, freed + stop.freed
        finally:
            target.close()
        os.write(goes, b"x")
        _, status = os.waitpid(child, 0)
        child = 0
    except OSError as error:
        raise Refused("proof", f"freeing does not work here: {error.strerror}") from None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(ready)
        os.close(goes)
    _judge(freed, status)


def _judge(freed: int, status: int) -> None:
    if status:
        raise Missing("freeing does not work here: a process that was freed from found its memory changed")
    told = procmem.tells_zero_pages()
    wanted = PAGE * sum(span not in _WITH_DATA and (told or span % 2 == 1) for span in range(_SPANS))
    if freed < wanted:
        raise Missing(
            f"freeing does not work here: {freed >> 10} kB of page tables went where {wanted >> 10} should "
            "(mremap with MREMAP_DONTUNMAP is of Linux 5.7)"
        )


def _child(told: int, go: int) -> NoReturn:
    """Memory with empty, zero and used spans; ends with 0 where it is unchanged when it is told to look."""
    code = 1
    try:
        _close_but(told, go)  # what the parent has open must end with the parent
        ptrace.disable_thp()
        memory = mmap.mmap(-1, (_SPANS + 1) * SPAN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = procmem.address_of(memory)
        shift = -address % SPAN
        for span in range(_SPANS):
            at = shift + span * SPAN
            if span % 2:
                memory[at] = 1
                memory.madvise(mmap.MADV_DONTNEED, at, PAGE)
            else:
                sum(memory[at + page] for page in range(0, SPAN, PAGE))
            if span in _WITH_DATA:
                memory[at + span * PAGE] = span + 1
        os.write(told, address.to_bytes(8, "little"))
        os.read(go, 1)
        used = {shift + span * SPAN + span * PAGE: span + 1 for span in _WITH_DATA}
        code = any(memory[at] != used.get(at, 0) for at in range(shift, shift + _SPANS * SPAN, PAGE))
    finally:
        os._exit(int(code))


def _close_but(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd not in kept:
            with suppress(OSError):  # of the listing's own
                os.close(fd)
