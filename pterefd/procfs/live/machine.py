"""The files of the whole machine on a live host: the kernel's own. Knobs cannot be set here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from pterefd.errors import NoSuchMm
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.live.passed import machine_file, mirrored_knobs
from pterefd.procfs.sys_pterefd import SYS_PTEREFD
from pterefd.procfs.tree import Dir
from pterefd.procfs.vm import FREE_PTES
from pterefd.procfs.vm import PT_RECLAIM as VM_PT_RECLAIM

FILES = (
    machine_file("meminfo", "Memory of the machine."),
    machine_file("vmstat", "Counts of pages, faults, swapping, reclaim and OOM kills."),
    machine_file("stat", "Processors, interrupts, when the machine was booted."),
    machine_file("cpuinfo", "Processors."),
    machine_file("uptime", "Seconds since the boot, and idle ones of all processors."),
    machine_file("loadavg", "Load, threads, the last pid."),
    machine_file("zoneinfo", "Zones of memory and their watermarks."),
    machine_file("buddyinfo", "Free blocks by size."),
    machine_file("pagetypeinfo", "Free blocks by size and kind."),
    machine_file("swaps", "Swap areas."),
    machine_file("diskstats", "Disks."),
    machine_file("partitions", "Partitions."),
    machine_file("mdstat", "Software RAID."),
    machine_file("devices", "Device numbers."),
    machine_file("interrupts", "Interrupts by processor."),
    machine_file("softirqs", "Soft interrupts by processor."),
    machine_file("slabinfo", "Slab caches."),
    machine_file("vmallocinfo", "Areas of vmalloc."),
    machine_file("schedstat", "Of the scheduler."),
    machine_file("filesystems", "Kinds of file system."),
    machine_file("cgroups", "Controllers of cgroups."),
    machine_file("cmdline", "The kernel's command line."),
    machine_file("modules", "Loaded modules."),
    machine_file("version", "The kernel."),
    machine_file("config.gz", "The kernel's configuration."),
    Dir(
        "pressure",
        (
            machine_file("pressure/memory", "Stalls for memory."),
            machine_file("pressure/cpu", "Stalls for a processor."),
            machine_file("pressure/io", "Stalls for I/O."),
        ),
        "Stalls, as averages and as a sum.",
    ),
    Dir("tty", (machine_file("tty/drivers", "Terminals."),), "Terminals."),
)


def _free_ptes(faces: LiveFaces, _: object, number: int) -> None:
    """As of a simulated host; the number is read in the writer's pid namespace, and 0 means every mm that is there."""
    them, free = faces.callers, faces.reclaimer.free_ptes
    if number:
        free(them.pid(number))
    elif them.sees_all():
        free(None)
    else:
        for pid in them.numbers().values():
            with suppress(NoSuchMm):  # not watched, or no memory
                free(pid)


_KNOB = "A knob of the kernel's, for reading only."

SYS = Dir(
    "sys",
    (
        Dir(
            "vm",
            (
                replace(FREE_PTES, write=_free_ptes),
                VM_PT_RECLAIM,
                *mirrored_knobs("sys/vm", _KNOB, besides=frozenset({"free_ptes", "pt_reclaim"})),
            ),
            "The kernel's /proc/sys/vm.",
        ),
        SYS_PTEREFD,
        *mirrored_knobs("sys", _KNOB, besides=frozenset({"vm", "pterefd"})),
    ),
    "Knobs: the kernel's own, which are only read here, and the daemon's under pterefd.",
)
