"""What this machine's kernel is and how it is set: what a trace's metadata and a scan say of it."""

from __future__ import annotations

import contextlib
import gzip
import mmap
import os
import platform
from pathlib import Path

from pterefd.errors import Missing
from pterefd.live import procmem, ptrace

THP = Path("/sys/kernel/mm/transparent_hugepage")
PMD_KB = 2048
FAULT_AROUND = Path("/sys/kernel/debug/fault_around_bytes")
# Options that decide how tables and entries change (docs/trace-format.md).
CONFIG_OPTIONS = (
    "PT_RECLAIM",
    "TRANSPARENT_HUGEPAGE",
    "PGTABLE_LEVELS",
    "LRU_GEN",
    "KSM",
    "USERFAULTFD",
    "MEM_SOFT_DIRTY",
    "ANON_VMA_NAME",
)


def check_arch(what: str) -> None:
    """Missing: this is no x86_64 with pages of 4 KiB. what: is wanted here, for the message."""
    if platform.machine() != "x86_64":
        raise Missing(f"{what} works on x86_64 only, this is {platform.machine()}")
    if mmap.PAGESIZE != procmem.PAGE:
        raise Missing(f"{what} works with pages of 4096 bytes only, here they have {mmap.PAGESIZE}")


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fault_around_bytes() -> int | None:
    """How much a file fault maps around it, where debugfs shows it."""
    try:
        return int(FAULT_AROUND.read_text())
    except (OSError, ValueError):
        return None


def read_setting(name: str) -> str:
    """The word in brackets of a setting of huge pages, or all of it."""
    text = (THP / name).read_text()
    return text.partition("[")[2].partition("]")[0] or text.strip()


def thp_sizes() -> list[int]:
    """The sizes of folios that this kernel has for anonymous memory, in kB."""
    return sorted(int(path.parent.name[len("hugepages-") : -len("kB")]) for path in THP.glob("hugepages-*kB/enabled"))


def thp_setting() -> str:
    """What the machine gives huge pages to, as a trace says it (docs/trace-format.md); `never` without huge pages."""
    try:
        words = [read_setting("enabled")]
        if read_setting("use_zero_page") == "0":
            words.append("no-zero-page")
        for size in thp_sizes():
            mode = read_setting(f"hugepages-{size}kB/enabled")
            if mode == "inherit":
                mode = words[0]
            if mode != (words[0] if size == PMD_KB else "never"):
                words.append(f"{size}kB={mode}")
    except OSError:
        return "never"
    return ",".join(words)


def kernel_config() -> dict[str, str | bool | int]:
    """The options of CONFIG_OPTIONS: true, false or the value. PT_RECLAIM is probed where no configuration is shown."""
    text = _config_text()
    return {"PT_RECLAIM": probe_pt_reclaim()} if text is None else parse_config(text)


def parse_config(text: str) -> dict[str, str | bool | int]:
    """The same of the text of a kernel's configuration."""
    found: dict[str, str | bool | int] = {}
    values = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    for name in CONFIG_OPTIONS:
        value = values.get(f"CONFIG_{name}")
        found[name] = int(value) if value is not None and value.isdigit() else value == "y"
    return found


def _config_text() -> str | None:
    with contextlib.suppress(OSError), gzip.open("/proc/config.gz", "rt") as file:
        return file.read()
    with contextlib.suppress(OSError):
        return Path(f"/boot/config-{platform.release()}").read_text()
    return None


def probe_pt_reclaim() -> bool:
    """Whether MADV_DONTNEED of a whole span frees its PTE page here: tried out on a mapping of one's own."""
    span = 1 << procmem.SPAN_SHIFT
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) == 1
    try:
        ptrace.disable_thp()
        memory = mmap.mmap(-1, 4 * span, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 4 * span, procmem.PAGE):
            memory[at] = 1
        before = procmem.read_status(os.getpid()).kb["VmPTE"]
        memory.madvise(mmap.MADV_DONTNEED)
        after = procmem.read_status(os.getpid()).kb["VmPTE"]
        os._exit(1 if before - after >= 8 else 0)
    finally:
        os._exit(2)
