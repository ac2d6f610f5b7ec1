"""sys/vm of a host with memory: the kernel's knobs, each with its effect. Not there where nothing is accounted."""

from __future__ import annotations

from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX, INT_MIN
from pterefd.procfs.tree import Content, File


def _has_memory(faces: Faces, _: object) -> bool:
    return faces.host.memory is not None


def _knob(name: str, low: int, high: int, unit: str, help: str) -> File:
    """A row of the kernel's vm tables: VmKnobs of the host's memory has the field."""

    def write(faces: Faces, _: object, value: int) -> None:
        faces.host.set_knob(name, value)
        faces.note("knob set", knob=name, value=value)

    return File(
        name,
        0o644,
        help,
        Content.INT,
        unit=unit,
        low=low,
        high=high,
        read=lambda faces, _: f"{faces.host.knob(name)}\n",
        write=write,
        exists=_has_memory,
    )


def _drop_caches(faces: Faces, _: object, value: int) -> None:
    """Bit 0 is the page cache; there is no slab here for bit 1 to drop."""
    pages = faces.host.drop_caches() if value & 1 else 0
    faces.note("caches dropped", value=value, pages=pages)


# mm/page_alloc.c, mm/vmscan.c, mm/util.c, mm/mmap.c, mm/oom_kill.c; kernel-rules.md, section 5.2
VM_KNOBS = (
    _knob("min_free_kbytes", 0, INT_MAX, "kB", "Memory that the min watermarks of all zones keep free."),
    _knob("watermark_scale_factor", 1, 3000, "1/10000", "Distance of the low and high watermarks, of a zone's memory."),
    _knob(
        "swappiness", 0, 200, "ratio", "How much of what reclaim takes is anonymous memory; 100 is as much as files."
    ),
    _knob(
        "overcommit_memory", 0, 2, "mode", "0: mappings larger than memory and swap are refused, 1: none, 2: strict."
    ),
    _knob("overcommit_ratio", INT_MIN, INT_MAX, "percent", "Share of memory that may be committed in mode 2."),
    _knob("max_map_count", 0, INT_MAX, "mappings", "Most mappings of an mm; mmap is refused above it."),
    _knob("oom_kill_allocating_task", INT_MIN, INT_MAX, "flag", "Not 0: the OOM killer takes who asks for memory."),
    _knob("panic_on_oom", 0, 2, "mode", "1: the machine panics instead of a kill, but in a group; 2: always."),
    File(
        "drop_caches",
        0o200,
        "Write 1 to drop the pages of files that nobody maps; 2 and 4 do nothing here.",
        Content.INT,
        unit="bits",
        low=1,
        high=4,
        write=_drop_caches,
        exists=_has_memory,
    ),
)
