"""Room for the stub in a process: bytes of a page of program text that are behind the end of its segment.

They are in no program's way: the file has them only since mappings are whole pages. Written through /proc/PID/mem
they become the process's own copy of that page (FOLL_FORCE), which the file never sees.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from pterefd.freeing.stub import STUB_BYTES
from pterefd.live.procmem import PAGE, Map

_EHDR_PHOFF, _EHDR_PHENTSIZE = 32, 54
_PHDR = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr: type, flags, offset, vaddr, paddr, filesz, memsz, align
_PT_LOAD, _PF_X = 1, 1
_ALIGN = 16


@dataclass(frozen=True, slots=True)
class Cave:
    """address: of at least STUB_BYTES.  before: what is there."""

    address: int
    before: bytes


def find_cave(memory: int, maps: list[Map]) -> Cave | None:
    """The first room for the stub. memory: a descriptor of /proc/PID/mem."""
    headers: dict[tuple[str, int], int] = {}
    for mapping in maps:
        file = mapping.device, mapping.inode
        if mapping.offset == 0 and mapping.inode:
            headers.setdefault(file, mapping.start)
        if mapping.perms != "r-xp" or not mapping.inode or file not in headers:
            continue
        end = _segment_end(memory, headers[file], mapping)
        if end is None:
            continue
        address = -(-end // _ALIGN) * _ALIGN
        # Within one page, the last one, so that one page is copied.
        if address + STUB_BYTES <= mapping.end and address // PAGE == (mapping.end - 1) // PAGE:
            return Cave(address, os.pread(memory, STUB_BYTES, address))
    return None


def _segment_end(memory: int, header: int, mapping: Map) -> int | None:
    """Where the bytes of the executable segment end that a mapping is of."""
    try:
        head = os.pread(memory, 64, header)
        if head[:5] != b"\x7fELF\x02":
            return None
        (offset,) = struct.unpack_from("<Q", head, _EHDR_PHOFF)
        size, count = struct.unpack_from("<HH", head, _EHDR_PHENTSIZE)
        if size != _PHDR.size:
            return None
        table = os.pread(memory, size * count, header + offset)
    except OSError:
        return None
    for at in range(0, len(table) - size + 1, size):
        kind, flags, begin, _, _, length, _, _ = _PHDR.unpack_from(table, at)
        if kind == _PT_LOAD and flags & _PF_X and begin // PAGE * PAGE == mapping.offset:
            end = int(mapping.start + begin - mapping.offset + length)
            return end if mapping.start < end <= mapping.end else None
    return None
