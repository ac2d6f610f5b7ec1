"""The files at the root that tell of the whole machine: meminfo, vmstat, stat and the like.

fs/proc/meminfo.c, mm/vmstat.c, fs/proc/stat.c, kernel/sched/psi.c. What the simulated machine does not have (slab,
buffers, kernel stacks, dirty pages) reads as 0. A host without accounts of memory shows the 4 TiB that its oom_score is
a share of, and what its mms hold, pages that two of them map counted twice.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable

from pterefd.hookspecs import Usage
from pterefd.host.counters import MmCounters
from pterefd.host.host import AMPLE_PAGES
from pterefd.host.memory import VmKnobs, Zone, zone_watermarks
from pterefd.procfs.faces import Faces
from pterefd.procfs.stat import TICKS_PER_SECOND
from pterefd.procfs.task import text
from pterefd.procfs.tree import Dir

PAGE = 4096
KIB_PER_PAGE = 4
HUGE_PAGE_KIB = 2048
KERNEL_THREADS = 2  # kthreadd and kswapd0, which have no directories here
SWAP_AREA = "/swap"
VMALLOC_TOTAL_KIB = ((1 << 45) - 1) >> 10
_RELEASE_OF_THE_MAILS = "5.19.0"  # what the series are based on
_VERSION = re.compile(r"v(\d+)\.(\d+)")


def _usage(faces: Faces, all_mms: MmCounters) -> Usage:
    """The host's memory; of one without accounts what its mms say."""
    host = faces.host
    if host.memory is not None:
        return host.usage()
    total = AMPLE_PAGES * PAGE
    mapped = all_mms.file_bytes
    used = all_mms.rss_bytes + all_mms.pgtables_bytes
    return Usage(
        total=total,
        free=max(total - used, 0),
        anon=all_mms.anon_bytes,
        file=mapped,
        shmem=all_mms.shmem_bytes,
        pgtables=all_mms.pgtables_bytes,
        swap_total=all_mms.swap_bytes,
    )


def _available(usage: Usage) -> int:
    """mm/show_mem.c si_mem_available, in bytes: what is free above the high mark, and most of the page cache."""
    cache = usage.file - min(usage.file // 2, usage.low)
    return max(usage.free - usage.high + cache, 0)


def meminfo(faces: Faces, _: object) -> str:
    """fs/proc/meminfo.c meminfo_proc_show."""
    mms = faces.host.totals()
    usage = _usage(faces, mms)
    committed, limit = faces.host.committed
    sizes = {
        "MemTotal": usage.total,
        "MemFree": usage.free,
        "MemAvailable": _available(usage),
        "Buffers": 0,
        "Cached": usage.file + usage.shmem,
        "SwapCached": 0,
        # which pages are hot is not known
        "Active": 0,
        "Inactive": usage.anon + usage.shmem + usage.file,
        "Active(anon)": 0,
        "Inactive(anon)": usage.anon + usage.shmem,
        "Active(file)": 0,
        "Inactive(file)": usage.file,
        "Unevictable": 0,
        "Mlocked": mms.locked_vm_bytes,
        "SwapTotal": usage.swap_total,
        "SwapFree": usage.swap_free,
        "Dirty": 0,
        "Writeback": 0,
        "AnonPages": mms.anon_bytes,
        "Mapped": mms.file_bytes + mms.shmem_bytes,
        "Shmem": usage.shmem,
        "KReclaimable": 0,
        "Slab": 0,
        "SReclaimable": 0,
        "SUnreclaim": 0,
        "KernelStack": 0,
        "PageTables": mms.pgtables_bytes,
        "SecPageTables": 0,
        "NFS_Unstable": 0,
        "Bounce": 0,
        "WritebackTmp": 0,
        "CommitLimit": limit if faces.host.memory is not None else usage.total // 2,
        "Committed_AS": committed,
        "VmallocTotal": VMALLOC_TOTAL_KIB << 10,
        "VmallocUsed": 0,
        "VmallocChunk": 0,
        "Percpu": 0,
        "AnonHugePages": mms.anon_huge_bytes,
        "ShmemHugePages": 0,
        "ShmemPmdMapped": 0,
        "FileHugePages": 0,
        "FilePmdMapped": 0,
    }
    counts = {"HugePages_Total": 0, "HugePages_Free": 0, "HugePages_Rsvd": 0, "HugePages_Surp": 0}
    return (
        "".join(f"{name + ':':16}{size >> 10:8d} kB\n" for name, size in sizes.items())
        + "".join(f"{name + ':':16}{count:8d}\n" for name, count in counts.items())
        + f"{'Hugepagesize:':16}{HUGE_PAGE_KIB:8d} kB\n"
    )


def vmstat(faces: Faces, _: object) -> str:
    """mm/vmstat.c vmstat_show. Counts of the OOM killer, faults, swap and reclaim are since the start."""
    host = faces.host
    mms = host.totals()
    usage = _usage(faces, mms)
    seen = dict(host.vmstat)
    pages = {
        "nr_free_pages": usage.free,
        "nr_zone_inactive_anon": usage.anon + usage.shmem,
        "nr_zone_active_anon": 0,
        "nr_zone_inactive_file": usage.file,
        "nr_zone_active_file": 0,
        "nr_mlock": mms.locked_vm_bytes,
        "nr_inactive_anon": usage.anon + usage.shmem,
        "nr_active_anon": 0,
        "nr_inactive_file": usage.file,
        "nr_active_file": 0,
        "nr_anon_pages": mms.anon_bytes,
        "nr_mapped": mms.file_bytes + mms.shmem_bytes,
        "nr_file_pages": usage.file + usage.shmem,
        "nr_dirty": 0,
        "nr_writeback": 0,
        "nr_shmem": usage.shmem,
        "nr_page_table_pages": mms.pgtables_bytes,
    }
    lines = {name: size // PAGE for name, size in pages.items()}
    lines["nr_anon_transparent_hugepages"] = mms.anon_huge_bytes // (HUGE_PAGE_KIB << 10)
    swapped_in, swapped_out = seen.get("pswpin", 0), seen.get("pswpout", 0)
    lines["pgpgin"], lines["pgpgout"] = KIB_PER_PAGE * swapped_in, KIB_PER_PAGE * swapped_out
    lines["pswpin"], lines["pswpout"] = swapped_in, swapped_out
    lines["pgfault"], lines["pgmajfault"] = seen.pop("pgfault", 0), seen.pop("pgmajfault", 0)
    lines["allocstall_normal"] = seen.pop("allocstall", 0)
    lines["pageoutrun"] = seen.pop("kswapd_wakeups", 0)
    lines["oom_kill"] = seen.pop("oom_kill", 0)
    seen.pop("refused_maps")  # the kernel has no count of these
    return "".join(f"{name} {value}\n" for name, value in (lines | seen).items())


def stat(faces: Faces, _: object) -> str:
    """fs/proc/stat.c show_stat, of one processor that has nothing to do: nothing runs here."""
    idle = faces.host.time_ns * TICKS_PER_SECOND // 10**9
    events = faces.host.events_total
    forks = events.get("fork", 0) + events.get("thread", 0)
    times = f"0 0 0 {idle} 0 0 0 0 0 0"
    return (
        f"cpu  {times}\ncpu0 {times}\nintr 0\nctxt 0\nbtime {int(faces.booted)}\n"
        f"processes {forks}\nprocs_running 0\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
    )


def cpuinfo(_faces: Faces, _: object) -> str:
    """arch/x86/kernel/cpu/proc.c show_cpuinfo, of the processor that is simulated."""
    lines = (
        *(("processor", "0"), ("vendor_id", "pterefd"), ("cpu family", "6"), ("model", "0")),
        *(("model name", "simulated"), ("stepping", "0"), ("cpu MHz", "1000.000"), ("cache size", "0 KB")),
        *(("physical id", "0"), ("siblings", "1"), ("core id", "0"), ("cpu cores", "1"), ("apicid", "0")),
        *(("flags", "fpu lm"), ("bugs", ""), ("bogomips", "2000.00")),
    )
    tabs = {name: "\t" if len(name) > 7 else "\t\t" for name, _ in lines}
    return "".join(f"{name}{tabs[name]}: {value}\n" for name, value in lines) + "\n"


def uptime(faces: Faces, _: object) -> str:
    """fs/proc/uptime.c: the host's clock, which is the recording's; all of it idle."""
    seconds = faces.host.time_ns / 1e9
    return f"{seconds:.2f} {seconds:.2f}\n"


def loadavg(faces: Faces, _: object) -> str:
    """fs/proc/loadavg.c: nothing runs; how many threads there are, and the highest pid."""
    living = faces.host.living()
    # The kernel's own count too. atop reads all processes again until it finds fewer than this says, so for ever where
    # every process has threads and there is no thread but theirs.
    threads = KERNEL_THREADS + sum(process.threads for process in living)
    last = max((process.pid for process in living), default=0)
    return f"0.00 0.00 0.00 0/{threads} {last}\n"


def zoneinfo(faces: Faces, _: object) -> str:
    """mm/vmstat.c zoneinfo_show_print. What is free is shared out by the zones' sizes: zones are not simulated."""
    memory = faces.host.memory
    zones: Iterable[Zone] = (Zone("Normal", AMPLE_PAGES),) if memory is None else memory.zones
    zones = list(zones)
    knobs = VmKnobs() if memory is None else memory.knobs
    least = 0 if memory is None else faces.host.knob("min_free_kbytes")
    free = _usage(faces, faces.host.totals()).free // PAGE
    total = sum(zone.managed_pages for zone in zones) or 1
    blocks = []
    start = 1
    for zone, marks in zip(zones, zone_watermarks(zones, least, knobs.watermark_scale_factor), strict=True):
        numbers = {
            "boost": 0,
            "min": marks.min,
            "low": marks.low,
            "high": marks.high,
            "promo": marks.promo,
            **dict.fromkeys(("spanned", "present", "managed"), zone.managed_pages),
        }
        blocks.append(
            f"Node 0, zone {zone.name:>8}\n  pages free     {free * zone.managed_pages // total}\n"
            + "".join(f"        {name:8} {value}\n" for name, value in numbers.items())
            + f"  pagesets\n    cpu: 0\n              count:    0\n              high:     0\n"
            f"              batch:    1\n  node_unreclaimable:  0\n  start_pfn:           {start}\n"
        )
        start += zone.managed_pages
    return "".join(blocks)


def swaps(faces: Faces, _: object) -> str:
    """mm/swapfile.c swap_show: one area, where the machine has swap."""
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    if faces.host.memory is None or not (usage := faces.host.usage()).swap_total:
        return head
    size, used = usage.swap_total >> 10, (usage.swap_total - usage.swap_free) >> 10
    columns = "".join(f"{kb}\t" if kb >= 10_000_000 else f"{kb}\t\t" for kb in (size, used))
    return f"{head}{SWAP_AREA:40}partition\t{columns}-2\n"


def _pressure(faces: Faces, _: object) -> str:
    """kernel/sched/psi.c psi_show, of direct reclaim: who replays waits alone, so some and full are one."""
    a = faces.host.stalls
    line = f"avg10={a.avg10:.2f} avg60={a.avg60:.2f} avg300={a.avg300:.2f} total={a.total_us}"
    return f"some {line}\nfull {line}\n"


def _no_pressure(_faces: Faces, _: object) -> str:
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total=0"
    return f"some {line}\nfull {line}\n"


def _release(faces: Faces) -> str:
    """The kernel whose rules the mms live under, as uname -r would have it."""
    match = _VERSION.match(faces.profile)
    return f"{match[1]}.{match[2]}.0-pterefd" if match else f"{_RELEASE_OF_THE_MAILS}-{faces.profile or 'pterefd'}"


def version(faces: Faces, _: object) -> str:
    """fs/proc/version.c: the kernel whose rules the mms live under."""
    return f"Linux version {_release(faces)} (pterefd {faces.version}) #1\n"


def _boot_id(faces: Faces, _: object) -> str:
    """drivers/char/random.c: one for each start of the daemon."""
    digest = hashlib.sha256(f"{faces.booted}".encode()).digest()
    return f"{uuid.UUID(bytes=digest[:16], version=4)}\n"


def _most_tasks(faces: Faces, _: object) -> str:
    return f"{faces.host.limits.pid_max}\n"


FILES = (
    text("meminfo", "Memory of the machine: PageTables is the sum of VmPTE, AnonPages that of RssAnon.", meminfo),
    text("vmstat", "Counts of pages, faults, swapping, reclaim and OOM kills.", vmstat),
    text("stat", "The one processor, when the machine was booted, how many tasks were made.", stat),
    text("cpuinfo", "The processor, which is simulated.", cpuinfo),
    text("uptime", "Seconds of the host's clock, which is the recording's.", uptime),
    text("loadavg", "Load, which is 0; threads; the highest pid.", loadavg),
    text("zoneinfo", "Zones of memory and their watermarks, in pages.", zoneinfo),
    text("swaps", "The swap area and how much of it is used, in kB.", swaps),
    text("diskstats", "Disks, of which there are none.", lambda _faces, _: ""),
    text("filesystems", "Kinds of file system.", lambda _faces, _: "nodev\tproc\n"),
    text("version", "The kernel whose rules the mms live under.", version),
    Dir(
        "pressure",
        (
            text("memory", "How long direct reclaim kept events waiting, of the daemon's time.", _pressure),
            text("cpu", "Stalls for a processor: none.", _no_pressure),
            text("io", "Stalls for I/O: none.", _no_pressure),
        ),
        "Stalls, as averages and as a sum.",
    ),
    Dir("tty", (text("drivers", "Terminals, of which there are none.", lambda _faces, _: ""),), "Terminals."),
)

SYS_KERNEL = Dir(
    "kernel",
    (
        text("osrelease", "The kernel whose rules the mms live under.", lambda faces, _: _release(faces) + "\n"),
        text("ostype", "Linux.", lambda _faces, _: "Linux\n"),
        text("hostname", "Name of the machine.", lambda _faces, _: "pterefd\n"),
        text("pid_max", "Pids are below this.", _most_tasks),
        text("threads-max", "Most threads.", _most_tasks),
        Dir("random", (text("boot_id", "A number of this start of the daemon.", _boot_id),), "Random numbers."),
    ),
    "What the kernel says of itself.",
)
