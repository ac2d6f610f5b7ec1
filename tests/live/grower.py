"""A process whose page-table memory is known by construction: it does what it is told, a line at a time.

    touch ADDRESS PAGES STEP | read ADDRESS PAGES STEP | advise ADDRESS BYTES ADVICE | huge ADDRESS | quit

Pages of 4096 bytes, every STEP-th of them; no huge pages before `huge`. Prints the address of its arena, aligned to
1 GiB, then `ok` for each line.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

ARENA = 3 << 30
PR_SET_THP_DISABLE = 41
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def main() -> None:
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    start = libc.mmap(None, ARENA, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    arena = -(-start // (1 << 30)) * (1 << 30)
    print(arena, flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        values = [int(number) for number in numbers]
        if word == "quit":
            return
        if word == "huge":
            libc.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)
            print("ok", flush=True)
            continue
        if word == "advise":
            if libc.madvise(*values):
                raise OSError(ctypes.get_errno(), line)
        else:
            address, pages, step = values
            for page in range(0, pages, step):
                place = ctypes.c_byte.from_address(address + page * 4096)
                if word == "touch":
                    place.value = 1
                else:
                    assert place.value == 0
        print("ok", flush=True)


main()
