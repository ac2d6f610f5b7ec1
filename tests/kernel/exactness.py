"""The tables of docs/exactness.md: which rule was checked how, by how many checkpoints, with how many differences.

Made of what runs left in results/ (`make oracle RESULTS=...`, `make oracle-kernels`, `make record-programs`), of the
directed cases and of the mutation checks; docs/generate.py puts them into the page.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from .cases import Case, all_cases
from .huge_cases import huge_cases
from .huge_mutations import HUGE_CHANGES
from .mutations import CHANGES
from .tally import FOLDER

ALL_CHANGES = (*CHANGES, *HUGE_CHANGES)
HEAP = 0x4000_0000  # cases name their heap by it; any will do for their numbers


@dataclass(frozen=True, slots=True)
class Topic:
    """Rules that belong together: the modules of pterefd.mm that hold them, and the families that meet them."""

    title: str
    source: str
    modules: tuple[str, ...]
    families: tuple[str, ...]


TOPICS = (
    Topic(
        "accesses: which tables and entries a fault makes, what is refused, stack growth",
        "mm/memory.c handle_mm_fault, do_anonymous_page, do_wp_page, do_swap_page; mm/mmap.c expand_stack",
        ("mm.fault",),
        ("anon", "brk", "growsdown", "broad", "mixed"),
    ),
    Topic(
        "files and shared memory: fault-around, the end of a file, truncation, holes",
        "mm/memory.c do_fault_around, do_cow_fault, do_shared_fault; mm/filemap.c filemap_map_pages",
        ("mm.files",),
        ("file", "shmem", "broad", "mixed"),
    ),
    Topic(
        "MADV_DONTNEED and munmap: which tables go",
        "mm/pt_reclaim.c, mm/memory.c zap_pte_range, free_pgtables",
        ("mm.unmap", "engine.tables"),
        ("anon", "vma", "shmem", "file", "guard", "lock", "brk", "growsdown", "broad", "mixed"),
    ),
    Topic(
        "madvise: what each advice does, where a call stops, guard markers",
        "mm/madvise.c",
        ("mm.advise",),
        ("anon", "vma", "swap", "guard", "broad", "mixed"),
    ),
    Topic(
        "populate, mlock, mprotect", "mm/gup.c, mm/mlock.c, mm/mprotect.c", ("mm.populate",), ("lock", "broad", "mixed")
    ),
    Topic(
        "mappings: splits, merges, the anon_vma",
        "mm/vma.c, mm/rmap.c",
        ("mm.vma",),
        ("vma", "anon", "lock", "guard", "broad", "mixed"),
    ),
    Topic(
        "mmap, brk and mremap: tables that move whole or entry by entry",
        "mm/mmap.c, mm/mremap.c",
        ("mm.remap",),
        ("anon", "vma", "brk", "growsdown", "broad", "mixed"),
    ),
    Topic("fork and exit: what is copied", "kernel/fork.c dup_mmap, mm/memory.c copy_page_range", ("mm.fork",), ("*",)),
    Topic(
        "huge pages: PMD entries, the huge zero page, deposits, splits, folios that are shared, collapse, mTHP",
        "mm/huge_memory.c, mm/khugepaged.c, include/linux/rmap.h",
        ("mm.huge", "engine.huge", "engine.folios"),
        ("thp", "thp_fork", "thp_split", "thp_swap", "mthp"),
    ),
    Topic(
        "swap: what goes out and comes in", "mm/vmscan.c, mm/memory.c do_swap_page", (), ("swap", "mixed", "thp_swap")
    ),
)


def _load(pattern: str) -> list[dict[str, Any]]:
    """The runs in the result files of that name."""
    runs: list[dict[str, Any]] = []
    for path in sorted(FOLDER.glob(pattern)):
        found = json.loads(path.read_text())
        runs += found if isinstance(found, list) else [found]
    return runs


def _number(value: int) -> str:
    return f"{value:,}"


def _by_kernel() -> dict[str, dict[str, list[int]]]:
    """kernel -> family -> [programs, checkpoints, differ], all settings of huge pages together."""
    sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for run in _load("oracle*.json"):
        for families in run["families"].values():
            for family, numbers in families.items():
                own = sums[_short(run["kernel"])][family]
                own[:] = [a + b for a, b in zip(own, numbers, strict=True)]
    return sums


def _short(release: str) -> str:
    """6.18 of 6.18.44-x."""
    return ".".join(release.split("-", maxsplit=1)[0].split(".")[:2])


def _shown(release: str) -> str:
    """A distribution's release as it is; of others what comes before the builder's own name."""
    return release if release.endswith("-amd64") else release.partition("-")[0]


def rules() -> str:
    """A row a topic: source, how many checkpoints met it on each kernel, how many rules were switched off."""
    sums = _by_kernel()
    kernels = sorted(sums, key=lambda release: [int(part) for part in release.split(".")])
    lines = [
        "| rules | kernel source | "
        + " | ".join(f"checkpoints on {k}" for k in kernels)
        + " | differ | switched off |",
        "| --- | --- |" + " ---: |" * (len(kernels) + 2),
    ]
    for topic in TOPICS:
        counts, differ = [], 0
        for kernel in kernels:
            met = [n for family, n in sums[kernel].items() if family in topic.families or topic.families == ("*",)]
            counts.append(_number(sum(n[1] for n in met)))
            differ += sum(n[2] for n in met)
        off = sum(change.module in topic.modules for change in ALL_CHANGES)
        lines.append(f"| {topic.title} | {topic.source} | {' | '.join(counts)} | {differ} | {off} |")
    return "\n".join(lines) + "\n"


def runs() -> str:
    """A row a run of random programs and setting of huge pages."""
    lines = [
        "| kernel | huge pages | seed | operations each | programs | checkpoints | differ | ran again | date |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for run in _load("oracle*.json"):
        for thp, families in sorted(run["families"].items()):
            programs, checkpoints, differ = (sum(numbers[i] for numbers in families.values()) for i in range(3))
            lines.append(
                f"| {_shown(run['kernel'])} | {thp} | {run['seed']} | {run['length']} | {_number(programs)} "
                f"| {_number(checkpoints)} | {differ} | {run.get('again', {}).get(thp, '')} | {run['date']} |"
            )
    total = [numbers for families in _by_kernel().values() for numbers in families.values()]
    sums = [sum(numbers[i] for numbers in total) for i in range(3)]
    lines.append(f"| **all** | | | | **{_number(sums[0])}** | **{_number(sums[1])}** | **{sums[2]}** | | |")
    return "\n".join(lines) + "\n"


def cases() -> str:
    """A row a directed case: its name, and how many literal numbers it holds against the kernel."""
    found: list[Case] = [*all_cases(HEAP), *huge_cases(HEAP)]
    lines = ["| case | operations | numbers |", "| --- | ---: | ---: |"]
    lines += [
        f"| {case.name} | {len(case.ops)} | {sum(len(want) for want in case.wanted.values())} |" for case in found
    ]
    return "\n".join(lines) + "\n"


def mutations() -> str:
    """A row a rule that a test switches off, and the case or kept program that notices."""
    lines = ["| rule | in | noticed by |", "| --- | --- | --- |"]
    lines += [f"| {change.about} | `{change.module}` | {change.shown_by} |" for change in ALL_CHANGES]
    return "\n".join(lines) + "\n"


def recordings() -> str:
    """A row a program that was recorded: how large, how many processes and checkpoints, what differed."""
    (run,) = _load("recordings.json")
    lines = [
        f"On {_shown(run['kernel_release'])}, {run['date']}, "
        f"a checkpoint every {run['checkpoint_every']} and before each exit:",
        "",
        "| program | packages | processes | events | checkpoints | differ | corrections | kB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {p['program']} | {p['version']} | {p['processes']} | {_number(p['events'])} | {p['checkpoints']} "
        f"| {p['differ']} | {p['corrections']} | {_number(p['bytes'] >> 10)} |"
        for p in run["programs"]
    ]
    return "\n".join(lines) + "\n"


def published() -> str:
    """VmPTE at the end of the mails' program: the kernel's own, then by profile, and what free_ptes would free."""
    (run,) = _load("published.json")
    whole, halves = run["recorded"]
    lines = [
        "| | discarded in calls of 2 MiB | of it free_ptes frees | in calls of 1 MiB | of it free_ptes frees |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| recorded on 6.18 | {run['recorded'][whole]} kB | | {run['recorded'][halves]} kB | |",
    ]
    for profile, values in run["profiles"].items():
        cells = [f"{kb} kB" for name in (whole, halves) for kb in values[name]]
        lines.append(f"| `{profile}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PARTS = {
    "exact_rules": rules,
    "exact_runs": runs,
    "exact_cases": cases,
    "exact_mutations": mutations,
    "exact_recordings": recordings,
    "exact_published": published,
}
