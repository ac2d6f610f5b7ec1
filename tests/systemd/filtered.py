"""Runs a command under a system call filter, as systemd does: `filtered.py ERRNO NUMBER,NUMBER,... COMMAND...`.

Imports nothing of the checkout: it runs with no rights, before the command.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
NR_AT, ARCH_AT = 0, 4  # in struct seccomp_data


def program(numbers: list[int], errno: int) -> bytes:
    """struct sock_filter[]: these system calls of this machine's own kind are let through, others fail with errno."""
    lines = [
        (LOAD_WORD, 0, 0, ARCH_AT),
        (JUMP_EQUAL, 1, 0, ARCH[os.uname().machine]),
        (RETURN, 0, 0, KILL),
        (LOAD_WORD, 0, 0, NR_AT),
    ]
    for number in numbers:
        lines += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    lines.append((RETURN, 0, 0, ERRNO | errno))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def install(code: bytes) -> None:
    """From now on, for this process and what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl{arguments[:2]}")


if __name__ == "__main__":
    errno, numbers, *command = sys.argv[1:]
    install(program([int(number) for number in numbers.split(",")], int(errno)))
    os.execvp(command[0], command)
