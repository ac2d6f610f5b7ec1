"""Builds what runs on the kernel (agent.c; init.c in guests) into a cache directory, once for each version of it."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import tempfile
from pathlib import Path

from pterefd.errors import Missing

HEADER = Path(__file__).with_name("calls.h")
AGENT = Path(__file__).with_name("agent.c")
INIT = Path(__file__).with_name("init.c")

# The text lies 56 pages below a 1 GiB border, so that the heap, which follows the bss, soon crosses a
# span's border and a PMD page's border, and shares its first span with the agent's own pages.
TEXT_START = 0x4000_0000 - 56 * 4096

# Code that addresses its data relative to itself can be linked at any address, above 2 GiB too.
FLAGS = (
    "-O1 -static -nostdlib -ffreestanding -fno-stack-protector -fpie -no-pie -fno-asynchronous-unwind-tables "
    "-Wall -Wextra -Werror -Wl,-z,noseparate-code -Wl,--build-id=none"
)

PGD_SLOT = 1 << 39  # bytes that one entry of the top table covers


def cache_dir() -> Path:
    """Where built agents are kept: $XDG_CACHE_HOME/pterefd, or a directory of this user's under the temporary one."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) / "pterefd" if home else Path(tempfile.gettempdir()) / f"pterefd-agent-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    return base


def flags_for(pgd_slot: int | None) -> list[str]:
    """The compiler's flags for an agent that keeps to that PGD slot; None: with its text at TEXT_START."""
    if pgd_slot is None:
        return [*FLAGS.split(), f"-Wl,-Ttext-segment={TEXT_START:#x}"]
    start = pgd_slot * PGD_SLOT
    # What waits for its place lies in another GiB than the agent: so its move makes no table (mm/mremap.c get_old_pud).
    return [*FLAGS.split(), f"-Wl,-Ttext-segment={start:#x}", f"-DAPART={start + PGD_SLOT // 2:#x}UL"]


def build_agent(compiler: str = "gcc", pgd_slot: int | None = None) -> Path:
    """Return the path of the built agent. pgd_slot: it keeps to these 512 GiB (agent.c, APART)."""
    return build(AGENT, compiler, flags_for(pgd_slot))


def build_init(compiler: str = "gcc") -> Path:
    """Return the path of the built init.c."""
    return build(INIT, compiler, FLAGS.split())


def build(source: Path, compiler: str, flags: list[str]) -> Path:
    """Compile it where this version of it has not been compiled yet. Missing: there is no compiler."""
    parts = (source.read_bytes(), HEADER.read_bytes(), " ".join([compiler, *flags]).encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    target = cache_dir() / f"{source.stem}-{digest}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / "built"
        try:
            subprocess.run([compiler, *flags, "-o", str(built), str(source)], check=True)
        except FileNotFoundError:
            raise Missing(f"{compiler} is not there to build {source.name}: install the package gcc") from None
        # Copied page by page: so its page cache is made of folios of one page, and mapping a page maps no others.
        copy = Path(scratch) / "copy"
        data = built.read_bytes()
        with copy.open("wb", buffering=0) as out:
            for at in range(0, len(data), 4096):
                out.write(data[at : at + 4096])
        copy.chmod(0o755)
        copy.rename(target)
    return target


def heap_start(agent: Path) -> int:
    """Where the agent's heap begins with address randomisation off: the page after its last segment."""
    data = agent.read_bytes()
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    end = 0
    for at in range(offset, offset + size * count, size):
        kind = struct.unpack_from("<I", data, at)[0]
        address, memory_size = struct.unpack_from("<Q", data, at + 16)[0], struct.unpack_from("<Q", data, at + 40)[0]
        if kind == 1:  # PT_LOAD
            end = max(end, address + memory_size)
    return -(-end // 4096) * 4096
