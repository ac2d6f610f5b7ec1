"""PID/maps, in the kernel's format: fs/proc/task_mmu.c show_map_vma, show_vma_header_prefix."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pterefd.host.maps import VmaRow
    from pterefd.procfs.faces import Faces

# seq_setwidth(m, 25 + sizeof(void *) * 6 - 1), then seq_pad's own blank before the name.
NAME_COLUMN = 25 + 8 * 6


def maps(faces: Faces, pid: int) -> str:
    """One line per mapping, ascending."""
    return "".join(map(map_line, faces.host.vmas(pid)))


def map_line(vma: VmaRow) -> str:
    """The line of one mapping, with its newline."""
    name = vma_name(vma)
    sharing = "s" if vma.shared else "p"
    head = f"{vma.start:08x}-{vma.end:08x} {vma.prot}{sharing} {vma.offset:08x} 00:00 {inode(name)} "
    return f"{head.ljust(NAME_COLUMN)}{name}\n" if name else head + "\n"


def vma_name(vma: VmaRow) -> str:
    """What stands in the last column, with newlines written as seq_path writes them."""
    if vma.shared and not vma.path:
        return "/dev/zero (deleted)"  # mm/shmem.c:shmem_zero_setup() backs it by an unlinked file
    return vma.path.replace("\n", "\\012")


def inode(name: str) -> int:
    """A number for a file's name. A recording has no inodes, but readers of maps tell files by one.

    Differs from Linux: equal names have equal numbers, and the device is 00:00.
    """
    if not name or name.startswith("["):
        return 0
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) or 1
