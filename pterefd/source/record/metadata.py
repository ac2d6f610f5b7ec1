"""The metadata of a recording that is made on this machine."""

from __future__ import annotations

import mmap
import platform

from pterefd.live import machine
from pterefd.source.meta import TraceMeta


def metadata(*, thp: str, command: list[str] | None, perf_version: str | None) -> TraceMeta:
    """Metadata of a recording made here and now. thp: as TraceMeta has it."""
    return TraceMeta(
        arch=platform.machine(),
        page_size=mmap.PAGESIZE,
        kernel_release=platform.release(),
        kernel_version=platform.version(),
        kernel_config=machine.kernel_config(),
        thp=thp,
        memory_bytes=machine.memory_bytes(),
        fault_around_bytes=machine.fault_around_bytes(),
        command=command,
        perf_version=perf_version,
    )
