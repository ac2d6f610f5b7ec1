"""sys/vm: free_ptes, where the mails put it, and pt_reclaim, which is pterefd's own."""

from __future__ import annotations

from collections.abc import Iterable

from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX, INT_MIN
from pterefd.procfs.knobs import plugin_knobs
from pterefd.procfs.tree import Content, Dir, Family, File, Rows


def _free_ptes(faces: Faces, _: object, pid: int) -> None:
    """Free the empty and zero PTE pages of pid; 0, which names no process here, means every mm."""
    faces.reclaimer.free_ptes(pid or None)


def _set_policy(faces: Faces, _: object, name: str) -> None:
    """Differs from Linux: an unknown name is EINVAL, where tcp_congestion_control says ENOENT."""
    faces.reclaimer.set_policy(name)
    faces.note("policy set", policy=name)


def _set_triggers(faces: Faces, _: object, text: str) -> None:
    names = text.split()
    faces.reclaimer.set_triggers(names)
    faces.note("triggers set", triggers=names)


def _words(names: Iterable[str]) -> str:
    """As tcp_available_congestion_control: names with a blank between them."""
    return " ".join(names) + "\n"


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

POLICIES = Dir(
    "policies",
    (
        Family(
            "NAME",
            "One directory per policy that declares tunables.",
            lambda faces, _: faces.reclaimer.policy_tunables(),
            lambda faces, _, name: faces.reclaimer.policy_tunables().get(name),
            Dir("NAME", (Rows("TUNABLE", "A tunable that the policy declares.", plugin_knobs),)),
        ),
    ),
    "Tunables of each policy.",
    exists=lambda faces, _: bool(faces.reclaimer.policy_tunables()),
)

PT_RECLAIM = Dir(
    "pt_reclaim",
    (
        File(
            "policy",
            0o644,
            "The policy that chooses which mms are reclaimed from, in what order, how much.",
            Content.STRING,
            read=lambda faces, _: faces.reclaimer.policy + "\n",
            write=_set_policy,
        ),
        File(
            "available_policies",
            0o444,
            "Policies that may be written to policy.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.available_policies()),
        ),
        File(
            "triggers",
            0o644,
            "Triggers that are asked when something happens, blanks between them.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.triggers),
            write=_set_triggers,
        ),
        File(
            "available_triggers",
            0o444,
            "Triggers that may be written to triggers.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.available_triggers()),
        ),
        POLICIES,
    ),
    "Who decides when and where page tables are reclaimed.",
)

SYS_VM = Dir(
    "vm",
    (
        File(
            "free_ptes",
            0o200,
            "Write a pid to free the empty and zero PTE pages of its mm; 0 means every mm.",
            Content.INT,
            unit="pid",
            low=0,
            high=INT_MAX,
            write=_free_ptes,
        ),
        *VM_KNOBS,
        PT_RECLAIM,
    ),
    "The kernel's /proc/sys/vm.",
)
