"""What works on this machine, what does not, and what to do about it: `pterefd doctor`."""

from __future__ import annotations

import ctypes.util
import mmap
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pterefd.engine.cache import base_directory, usable
from pterefd.errors import EXIT_DONE, EXIT_MISSING, PterefdError

OK, WARN, MISSING = "ok", "warn", "missing"


class Row(NamedTuple):
    """One line of the table. verdict: ok, warn (it could be better) or missing (something needed is not there)."""

    what: str
    value: str
    verdict: str
    advice: str = ""


def table() -> list[dict[str, str]]:
    """All checks, each as {"what", "value", "verdict", "advice"}. Changes nothing on the machine."""
    rows = []
    for check in _CHECKS:
        try:
            rows.append(check())
        except (OSError, ValueError, PterefdError) as error:
            rows.append(Row(check.__name__.strip("_"), f"cannot be told: {error}", WARN))
    return [row._asdict() for row in rows]


def exit_code(rows: list[dict[str, str]]) -> int:
    """3 where something needed is missing, else 0."""
    return EXIT_MISSING if any(row["verdict"] == MISSING for row in rows) else EXIT_DONE


def render(rows: list[dict[str, str]]) -> str:
    """The table as text for people, lines ending in newlines."""
    width = max(len(row["what"]) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row['verdict']:<8}{row['what']:<{width + 2}}{row['value']}")
        if row["advice"]:
            lines.append(f"{'':<8}{'':<{width + 2}}-> {row['advice']}")
    return "\n".join(lines) + "\n"


# ---- the machine ---------------------------------------------------------------------------------


def _architecture() -> Row:
    arch = platform.machine()
    if arch == "x86_64":
        return Row("architecture", arch, OK)
    return Row("architecture", arch, WARN, "recording works on x86_64 only; traces replay here")


def _page_size() -> Row:
    if mmap.PAGESIZE == 4096:
        return Row("page size", "4096", OK)
    return Row(
        "page size", str(mmap.PAGESIZE), WARN, "recording works with pages of 4096 bytes only; traces replay here"
    )


def _kernel() -> Row:
    return Row("kernel", platform.release(), OK)


def _pt_reclaim() -> Row:
    from pterefd.live.machine import kernel_config

    if kernel_config().get("PT_RECLAIM"):
        return Row("PT_RECLAIM", "yes", OK)
    return Row("PT_RECLAIM", "no", OK, "MADV_DONTNEED frees no PTE page on this kernel (Linux 6.14 brought it)")


def _thp() -> Row:
    from pterefd.live.machine import thp_setting

    mode = thp_setting().partition(",")[0]
    advice = "" if mode == "never" else "off for recorded commands; a process that is attached to keeps its huge pages"
    return Row("huge pages", mode, OK, advice)


# ---- recording -----------------------------------------------------------------------------------


def _perf() -> Row:
    from pterefd.source.record import perf

    found = shutil.which("perf")
    if found is None:
        return Row("perf", "not installed", MISSING, "apt install linux-perf: `record` needs it")
    try:
        return Row("perf", perf.perf_version(found), OK)
    except PterefdError as error:
        return Row("perf", str(error), MISSING, "reinstall it: `record` needs it")


def _perf_rights() -> Row:
    paranoid = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
    if os.geteuid() == 0 or int(paranoid) < 0:
        return Row("perf rights", f"perf_event_paranoid {paranoid}", OK)
    advice = "run `record` as root, or set kernel.perf_event_paranoid=-1 and make tracefs readable"
    return Row("perf rights", f"perf_event_paranoid {paranoid}, not root", MISSING, advice)


def _tracefs() -> Row:
    from pterefd.source.record.perf import TRACEFS, TRACEFS_PLACES

    for place in TRACEFS_PLACES:
        if os.access(place / "events/exceptions/page_fault_user/id", os.R_OK):
            return Row("tracepoints", str(place), OK)
    if TRACEFS.is_dir() and os.geteuid() == 0:
        return Row("tracepoints", "tracefs is not mounted", OK, "`record` mounts it at /sys/kernel/tracing")
    return Row("tracepoints", "cannot be read", MISSING, "mount -t tracefs tracefs /sys/kernel/tracing, as root")


def _ptrace() -> Row:
    path = Path("/proc/sys/kernel/yama/ptrace_scope")
    scope = path.read_text().strip() if path.exists() else "0"
    if scope == "3":
        return Row("ptrace", "switched off (ptrace_scope 3)", MISSING, "only a reboot switches it on again")
    if scope != "0" and os.geteuid() != 0:
        advice = "commands can be recorded; `record -p` takes root"
        return Row("ptrace", f"ptrace_scope {scope}", WARN, advice)
    return Row("ptrace", "allowed", OK)


def _pagemap() -> Row:
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(id(file) // mmap.PAGESIZE * 8)
        word = int.from_bytes(file.read(8), "little")
    if not word >> 63:
        return Row("pagemap", "shows nothing", MISSING, "entries cannot be read: another kernel, or root")
    return Row("pagemap", "readable", OK)


def _pagemap_scan() -> Row:
    from pterefd.live import procmem

    abilities = procmem.scan_abilities()
    if not abilities:
        advice = "checkpoints have no count of zero pages and take longer (Linux 6.7 brought it)"
        return Row("PAGEMAP_SCAN", "no", WARN, advice)
    if not abilities & procmem.PAGE_IS_GUARD:
        return Row("PAGEMAP_SCAN", "yes, without guard markers", OK)
    return Row("PAGEMAP_SCAN", "yes", OK)


# ---- the mount -----------------------------------------------------------------------------------


def _fuse_device() -> Row:
    if not os.path.exists("/dev/fuse"):
        return Row("/dev/fuse", "not there", MISSING, "modprobe fuse: `run` needs it to mount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Row("/dev/fuse", "no access", MISSING, "`run` must be able to open it")
    return Row("/dev/fuse", "usable", OK)


def _fuse_library() -> Row:
    three, two = ctypes.util.find_library("fuse3"), ctypes.util.find_library("fuse")
    found = [name for name in (three, two) if name]
    if three is None and two is None:
        return Row("libfuse", "not installed", MISSING, "apt install libfuse3-3 (or libfuse2)")
    if three is None:
        return Row("libfuse", ", ".join(found), OK, "libfuse3 answers faster: apt install libfuse3-3")
    return Row("libfuse", ", ".join(found), OK)


def _fusermount() -> Row:
    found = shutil.which("fusermount3") or shutil.which("fusermount")
    if found is None and os.geteuid() != 0:
        return Row("fusermount3", "not installed", MISSING, "apt install fuse3: without it only root can mount")
    if found is None:
        return Row("fusermount3", "not installed", WARN, "apt install fuse3")
    return Row("fusermount3", found, OK)


def _cgroups() -> Row:
    text = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    kinds = {line.split()[2] for line in text.splitlines() if len(line.split()) > 2}
    versions = [name for kind, name in (("cgroup2", "v2"), ("cgroup", "v1")) if kind in kinds]
    return Row("cgroups", " and ".join(versions) or "none", OK)


# ---- what single commands need -------------------------------------------------------------------


def _compiler() -> Row:
    found = shutil.which("gcc")
    if found is None:
        return Row("gcc", "not installed", WARN, "apt install gcc libc6-dev: `reenact` and `calibrate` need it")
    return Row("gcc", found, OK)


def _qemu() -> Row:
    from pterefd.reenact.guest import QEMU

    found = shutil.which(QEMU)
    if found is None:
        return Row("qemu", "not installed", WARN, "apt install qemu-system-x86: `reenact --kernel` needs it")
    return Row("qemu", found, OK)


def _user_namespaces() -> Row:
    from pterefd import shell

    if shell.works_without_root():
        return Row("user namespaces", "allowed", OK)
    advice = (
        "`shell` takes root: user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns or a container forbids them"
    )
    return Row("user namespaces", "not allowed", WARN, advice)


# ---- this program --------------------------------------------------------------------------------


def _python() -> Row:
    return Row("Python", platform.python_version(), OK)


def _kernel_cache() -> Row:
    """Where compiled kernels are kept, and whether they can be."""
    place = base_directory()
    if usable(place):
        return Row("compiled kernels", f"kept under {place}", OK)
    advice = "each start compiles them anew (a minute): set PTEREFD_CACHE to a directory that only you can write"
    return Row("compiled kernels", f"cannot be kept under {place}", WARN, advice)


_CHECKS: tuple[Callable[[], Row], ...] = (
    _architecture,
    _page_size,
    _kernel,
    _pt_reclaim,
    _thp,
    _perf,
    _perf_rights,
    _tracefs,
    _ptrace,
    _pagemap,
    _pagemap_scan,
    _fuse_device,
    _fuse_library,
    _fusermount,
    _cgroups,
    _compiler,
    _qemu,
    _user_namespaces,
    _python,
    _kernel_cache,
)
